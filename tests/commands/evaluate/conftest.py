"""A run of the real program to evaluate, and the command as typed."""

import shutil
from pathlib import Path

import pytest
from conftest import SMALL, TRAIN, program


@pytest.fixture
def command(tmp_path):
    """`python -m dash_exp.evaluate ...` in a folder of the test's own."""

    def start(*arguments, **how):
        return program(tmp_path, "dash_exp.evaluate", *map(str, arguments), **how)

    return start


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The folder of a short run of the real program."""
    folder = tmp_path_factory.mktemp("made")
    program(folder, TRAIN, *SMALL, "hydra.run.dir=run").check_returncode()
    return folder / "run"


@pytest.fixture
def trained(made, tmp_path):
    """A copy of it for one test."""
    return Path(shutil.copytree(made, tmp_path / "trained"))
