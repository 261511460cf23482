"""`python -m dash_exp.reward_model MODEL out=FOLDER ...`: see `commands.reward_model`."""

from dash_exp.commands import cli
from dash_exp.commands.reward_model import main

if __name__ == "__main__":
    cli.launch(main)
