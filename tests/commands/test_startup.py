"""A run loads no large package that it does not use, and none before its settings were found good."""

import gc
import os
import subprocess
import sys

from conftest import ROOT

from dash_exp.core import process

SETTINGS = ["logger=csv", "data.train.size=64", "batch.prompts=8", "data.tests.in_dist.size=8", "data.tests.out_dist.size=8"]
# What only other settings need (a tracker, data from the hub, mathematics, other samplers), or a report, or the last picture.
NOT_USED = ["wandb", "datasets", "pandas", "pyarrow", "math_verify", "vllm", "httpx", "uvicorn", "IPython"]
BEFORE = """
import runpy, sys
runpy.run_path("train.py")
from dash_exp import evaluate, serve
from dash_exp.commands.cli import composed
from dash_exp.settings.validate import validate
validate(composed(sys.argv[1:]))
"""
BUILT = """
import sys
from dash_exp.commands import cli, run
run.build(cli.composed(sys.argv[1:]))
"""


def loaded(program: str) -> set[str]:
    """The names of the packages that the program has loaded when it has ended."""
    program += "print(*(name for name in sys.modules if '.' not in name))"
    command = [sys.executable, "-c", program, *SETTINGS]
    return set(subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split())


def test_settings_are_checked_without_torch():
    assert not loaded(BEFORE) & {*NOT_USED, "torch", "numpy", "scipy", "transformers", "lightning", "matplotlib"}


def test_a_run_loads_what_it_uses():
    found = loaded(BUILT)
    assert {"torch", "lightning", "transformers"} <= found
    assert not found & set(NOT_USED)


def test_garbage_is_looked_for_again_after_the_imports(monkeypatch):
    monkeypatch.delitem(sys.modules, "torch")
    try:
        with process.importing():
            assert not gc.isenabled()
        assert gc.isenabled()
        assert gc.get_freeze_count() > 0
    finally:
        gc.unfreeze()


def test_few_compiled_products_are_kept_unless_the_user_says_otherwise(monkeypatch):
    first, second = process.KEPT_PRODUCTS
    monkeypatch.delitem(sys.modules, "torch")
    monkeypatch.delenv(first, raising=False)
    monkeypatch.setenv(second, "7")
    try:
        with process.importing():
            assert (os.environ[first], os.environ[second]) == ("64", "7")
    finally:
        gc.unfreeze()
        os.environ.pop(first)


def test_a_later_cell_of_a_sweep_keeps_no_garbage():
    assert "torch" in sys.modules
    before = gc.get_freeze_count()
    with process.importing():
        assert gc.isenabled()
    assert gc.get_freeze_count() == before
