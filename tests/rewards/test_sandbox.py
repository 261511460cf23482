"""The sandbox: hostile programs get nothing, right ones pass, and nothing is left behind."""

import os
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from processes import command_lines, unstarted, wait_until, wait_until_gone
from untrusted import CARELESS, ESCAPES, HOSTILE, LONG, RIGHT, TESTS, TOLERANT, WALLS, WRONG

from dash_exp.core.errors import UserError
from dash_exp.rewards import bubblewrap as command_line
from dash_exp.rewards.inside import start
from dash_exp.rewards.sandbox import Outcome, Sandbox

pytestmark = pytest.mark.usefixtures("nothing_is_left")

# --- hostile programs --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("program", HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_program_gets_nothing(impatient, tmp_path, program):
    planted = tmp_path / "planted"
    planted.write_text("here")
    assert impatient.grade(program, TESTS).status in ("failed", "timeout")
    assert planted.read_text() == "here"


@pytest.mark.parametrize("test", CARELESS)
@pytest.mark.parametrize(
    "program", ["import os\ndef f(x): os._exit(0)", "def f(x): raise SystemExit", HOSTILE["sends a huge message"]]
)
def test_a_program_that_is_gone_passes_no_careless_test(impatient, program, test):
    assert impatient.grade(program, (test,)).status == "failed"


@pytest.mark.parametrize("test", TOLERANT)
@pytest.mark.parametrize(
    "name", ["an object that agrees to everything", "equal to everything", "a descriptor of memory for numpy"]
)
def test_no_comparison_is_left_to_the_program(box, name, test):
    assert box.grade(HOSTILE[name], (test,)).status == "failed"
    assert box.grade("def f(x): return [271828]" if "in f" in test else "def f(x): return 271828", (test,)).status == "passed"


@pytest.mark.parametrize(("program", "test"), ESCAPES.values(), ids=ESCAPES)
def test_what_libraries_let_pass_is_closed(box, program, test):
    assert box.grade(program, (test,)).status == "failed"


def test_what_is_closed_stays_open_for_right_programs(box):
    array = "import numpy as np\nassert np.allclose(f(2), [2.5, 3.5])\nassert not np.allclose(f(2), [2.5, 9])"
    assert box.grade("def f(x): return (x + 0.5, x + 1.5)", (array,)).status == "passed"
    generator = "assert list(f(3)) == [0, 1, 2]\nassert next(iter(f(1))) == 0"
    assert box.grade("def f(x): yield from range(x)", (generator,)).status == "passed"


# --- the walls, as a program in there meets them -----------------------------------------------------------------------


@pytest.mark.parametrize(("program", "test"), WALLS.values(), ids=WALLS)
def test_walls(box, monkeypatch, program, test):
    monkeypatch.setenv("DASH_EXP_SECRET", "x")
    if "{home!r}" in test:
        files = [str(next(Path.home().iterdir())), str(Path(__file__).parent)]
        libraries = [Path(f) for f in (sys.base_prefix, *command_line.site_folders())]
        in_tmp = sorted({f.relative_to("/tmp").parts[0] for f in libraries if f.is_relative_to("/tmp")})  # an environment there
        test = test.format(home=files[0], here=files[1], tmp=in_tmp)
    assert box.grade(program, (test,)) == Outcome("passed")


# --- right programs ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("program", "tests"), RIGHT.values(), ids=RIGHT)
def test_a_right_program_passes(box, program, tests):
    assert box.grade(program, tuple(tests)) == Outcome("passed")


@pytest.mark.parametrize(("program", "tests", "status"), WRONG)
def test_what_is_no_pass(box, program, tests, status):
    assert box.grade(program, tuple(tests)).status == status


def test_many_at_a_time(box):
    programs = [f"def f(x):\n    return x + {i % 3}" for i in range(60)]
    with ThreadPoolExecutor(8) as pool:
        statuses = list(pool.map(lambda p: box.grade(p, ("assert f(1) == 2",)).status, programs))
    assert statuses == ["passed" if i % 3 == 1 else "failed" for i in range(60)]


def test_grading_in_a_thread_that_ends(box):
    """Processes die with their parent, which to the kernel is the thread that started them."""
    found = []
    thread = threading.Thread(target=lambda: found.append(box.grade("def f(x): return 271828", TESTS)))
    thread.start()
    thread.join(60)
    assert found == [Outcome("passed")]


def test_no_descriptor_stays_open(box):
    before = len(os.listdir("/proc/self/fd"))
    for program in ("def f(x): return 271828", HOSTILE["exits with 0"]):
        box.grade(program, TESTS)
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.fixture
def owner(bubblewrap, mark):
    """Starts a process that starts sandboxes and can be killed."""

    def start(*lines):
        script = ["import os, signal, subprocess", "from dash_exp.rewards import sandbox"]
        script += [f"sandbox.ENVIRONMENT['DASH_EXP_TEST'] = {mark!r}", *lines]
        return subprocess.Popen([sys.executable, "-c", "\n".join(script)], stderr=subprocess.PIPE, text=True)

    return start


def test_programs_end_with_us(owner, mark):
    """A run that is killed leaves no program behind, not even one that no longer asks to die with its parent."""
    sleep = ["sleep", f"{LONG}.{os.getpid()}"]
    program = f"import ctypes, os\nctypes.CDLL(None).prctl(1, 0)\nos.execv('/bin/sleep', {sleep!r})"
    with owner(f"sandbox.Sandbox(timeout_s=100).grade({program!r}, ('f()',))") as ours:
        wait_until(lambda: ours.poll() is not None or " ".join(sleep) in command_lines(), 60)
        assert ours.poll() is None, f"it ended before the program ran: {ours.stderr.read()}"
        ours.kill()
    # the kernel kills them at once; the time is for a machine that is busy, and shorter than any limit of a sandbox
    wait_until(lambda: " ".join(sleep) not in command_lines(), 60)
    wait_until_gone(mark, 60)


def test_a_sandbox_ends_with_us_even_while_it_starts(owner, mark):
    """bubblewrap asks to die with its parent only when it has started; a parent that was killed before is not missed by it.

    One killed in the moment between bubblewrap's first process and its go-ahead leaves that process: it waits, and has started
    nothing (containers/bubblewrap, issue 633). No program of a model is ever left.
    """
    killed_at_once = """
class Killed(subprocess.Popen):
    def __init__(self, *arguments, **more):
        super().__init__(*arguments, **more)
        os.kill(os.getpid(), signal.SIGKILL)
sandbox.subprocess.Popen = Killed
sandbox.Sandbox(timeout_s=1)
"""
    for _ in range(3):
        with owner(killed_at_once) as ours:
            assert ours.wait(60) == -signal.SIGKILL
    wait_until(lambda: len(command_lines(mark)) == len(unstarted(mark)), start.START_S + 60, lambda: command_lines(mark))
    for pid in unstarted(mark):
        os.kill(pid, signal.SIGKILL)
    wait_until_gone(mark, 60)


# --- what is refused, and what fails ----------------------------------------------------------------------------------


def test_unknown_isolation():
    with pytest.raises(UserError, match=r"reward\.isolation=chroot: is not known"):
        Sandbox("chroot")


def test_a_sandbox_that_fails_is_an_error_and_no_wrong_answer(box, monkeypatch):
    monkeypatch.setattr(box, "_prefix", ["/bin/false"])
    assert box.grade("def f(x): return 271828", TESTS).status == "error"


def test_a_judge_that_dies_is_an_error(box):
    assert box.grade("def f(x): return 271828", ("import os\nf(2)\nos._exit(0)",)).status == "error"


# --- the weaker mode ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def plain_process():
    return Sandbox("process", timeout_s=1, memory_mb=256, processes=4)


@pytest.fixture(scope="module")
def patient_process():
    return Sandbox("process", timeout_s=20, memory_mb=256, processes=4)


def test_process_mode_needs_no_bubblewrap(path):
    assert Sandbox("process").grade("def f(x): return 271828", TESTS) == Outcome("passed")


# There all processes of an ordinary user count, and a program can start none.
STARTS_NONE = {name: case for name, case in RIGHT.items() if "os.fork" not in case[0]}


@pytest.mark.parametrize(("program", "tests"), STARTS_NONE.values(), ids=STARTS_NONE)
def test_right_programs_in_process_mode(patient_process, tmp_path, program, tests):
    program = program.replace("'/tmp/x'", "'x'")  # its folder is its own
    assert patient_process.grade(program, tuple(tests)) == Outcome("passed")


@pytest.mark.parametrize(
    "name",
    [
        "endless loop",
        "huge allocation",
        "growing allocation",
        "huge output",
        "exits with 0",
        "leaves without clean-up in a call",
        "equal to everything",
        "an object that agrees to everything",
        "patches the encoder",
        "walks the frames",
        "forges the verdict",
        "answers before it is asked",
        "one byte at a time",
        "stops itself",
        "ignores signals",
        "recurses to the end of the stack",
        "sends a huge message",
    ],
)
def test_hostile_programs_in_process_mode(plain_process, name):
    assert plain_process.grade(HOSTILE[name], TESTS).status in ("failed", "timeout")


def test_process_mode_has_limits_and_no_environment(plain_process, monkeypatch):
    monkeypatch.setenv("DASH_EXP_SECRET", "x")
    program = """
import os, resource
def f():
    memory = resource.getrlimit(resource.RLIMIT_AS)[1]
    return memory, 'DASH_EXP_SECRET' in os.environ, os.listdir('.'), os.getsid(0) == os.getpid()
"""
    assert plain_process.grade(program, ("assert f() == (256 << 20, False, [], True)",)) == Outcome("passed")
