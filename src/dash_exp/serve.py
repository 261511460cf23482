"""`python -m dash_exp.serve port=8001 ...`: see `commands.serve`."""

from dash_exp.commands import cli
from dash_exp.commands.serve import main

if __name__ == "__main__":
    cli.launch(main)
