"""`python -m dash_exp.evaluate RUN_OR_MODEL ...`: see `commands.evaluate`."""

from dash_exp.commands import cli
from dash_exp.commands.evaluate import main

if __name__ == "__main__":
    cli.launch(main)
