"""`python -m dash_exp.grade ANSWER TEXT ...`: see `commands.grade`."""

from dash_exp.commands import cli
from dash_exp.commands.grade import main

if __name__ == "__main__":
    cli.launch(main)
