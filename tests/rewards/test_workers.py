"""Worker processes: what breaks them, what limits them, and that none of them stays."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import hostile
import pytest
from problems import SEVEN, graded
from processes import command_lines, wait_until, wait_until_gone

from dash_exp.rewards.math import MathReward
from dash_exp.rewards.worker import SPARE_S, size
from dash_exp.rewards.workers import Workers


@pytest.fixture(scope="module")
def one_worker():
    reward = MathReward(timeout_s=20, workers=1, memory_mb=256)
    yield reward
    reward.close()


@pytest.fixture
def breakable(one_worker, monkeypatch):
    """A math reward whose worker breaks where the completion says so."""
    monkeypatch.setattr("dash_exp.rewards.math.math_equal", hostile.grade)
    monkeypatch.setattr("dash_exp.rewards.math.math_answer", hostile.answer)
    return one_worker


@pytest.mark.parametrize(
    "text",
    ["dies", "exits", "fills memory", "asks for 8 GiB", "cannot be read back", "cannot be said", "recursion"],
)
def test_what_breaks_a_worker_is_an_error_of_one_completion(breakable, text):
    scores = graded(breakable, SEVEN, [text, "9"], "7", "8")
    assert (scores.rewards, scores.timeouts, scores.errors) == ([0, 0], 0, 1)
    assert breakable.answers([text, "9"]) == [None, "9"]


def test_a_completion_is_not_to_blame_for_a_worker_that_the_system_killed(breakable, tmp_path):
    scores = graded(breakable, SEVEN, [f"dies once {tmp_path}/mark", "9"], "7", "8")
    assert (scores.rewards, scores.timeouts, scores.errors) == ([1, 0], 0, 0)


def test_memory_that_a_grading_keeps_is_given_back(breakable):
    def in_use():
        (found,) = breakable.workers.map(size, [()], ["size"]).values
        return found[1]

    at_first = in_use()
    assert breakable([SEVEN] * 5, ["fills memory"] * 5).errors == 5
    assert in_use() < at_first + 256 * 2**20


def test_workers_that_died_while_idle_are_replaced(breakable):
    (before,) = breakable.workers.map(os.getpid, [()], ["pid"]).values
    os.kill(before, signal.SIGKILL)
    scores = graded(breakable, SEVEN, ["9"] * 3, "7", "8")
    assert (scores.rewards, scores.timeouts, scores.errors) == ([0] * 3, 0, 0)
    assert breakable.workers.map(os.getpid, [()], ["pid"]).values != [before]


def test_a_process_serves_many_calls_and_ends_when_it_is_closed():
    workers = Workers(hostile.nothing, timeout_s=20, count=2, memory_mb=256)
    pids = set(workers.map(os.getpid, [()] * 20, [""] * 20).values)
    assert 1 <= len(pids) <= 2
    workers.close()
    assert not [pid for pid in pids if Path(f"/proc/{pid}").exists()]
    assert workers.map(abs, [(-1,)], [""]).values == [1]  # with a new process
    workers.close()


def test_a_time_limit_is_one_of_computing():
    """A grading may wait for longer than that, as on a busy machine, but not for ever."""
    workers = Workers(hostile.nothing, timeout_s=0.2, count=3, memory_mb=256)
    results = workers.map(hostile.grade, [("7", "waits 0.5"), ("7", "waits 1000"), ("7", "slow")], ["a", "b", "c"])
    workers.close()
    assert (results.values, results.timeouts, results.errors) == ([True, None, None], 2, 0)


def test_a_process_that_was_killed_at_its_limit_is_replaced_before_the_next_call():
    workers = Workers(hostile.nothing, timeout_s=0.2, count=1, memory_mb=256)

    def alive():
        return [worker.process.pid for worker in workers._started if not worker.is_dead()]

    assert workers.map(hostile.grade, [("7", "slow")], ["a"]).timeouts == 1
    wait_until(alive, 60)
    (pid,) = alive()
    assert workers.map(os.getpid, [()], ["pid"]).values == [pid]
    workers.close()
    assert not alive()


def test_a_function_that_cannot_be_sent_is_an_error(breakable):
    for function in (lambda: 7, hostile.lock):
        results = breakable.workers.map(function, [()], ["call"])
        assert (results.values, results.timeouts, results.errors) == ([None], 0, 1)


def test_a_process_that_cannot_start_ends_the_call(capfd):
    with pytest.raises(RuntimeError, match="no process for grading can be started: ValueError: not today"):
        Workers(hostile.refuses, timeout_s=20, count=1, memory_mb=256).map(abs, [(-1,)], [""])


def test_a_process_that_dies_while_it_starts_is_replaced(tmp_path, monkeypatch):
    """As when the system takes its memory: `first` kills its process once."""
    monkeypatch.setenv("DASH_EXP_TEST_MARK", str(tmp_path / "mark"))
    workers = Workers(hostile.dies_at_first, timeout_s=20, count=1, memory_mb=256)
    results = workers.map(abs, [(-1,), (-2,)], ["a", "b"])
    workers.close()
    assert (results.values, results.timeouts, results.errors) == ([1, 2], 0, 0)


def test_what_ends_a_call_early_waits_for_no_grading(monkeypatch):
    """Ctrl-C, here when a failed grading is logged, while another call sleeps: the processes are killed at once."""

    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("dash_exp.rewards.workers.log.warning", interrupt)
    workers = Workers(hostile.nothing, timeout_s=1000, count=2, memory_mb=256)
    with pytest.raises(KeyboardInterrupt):
        workers.map(time.sleep, [("no number",), (1000,)], ["a", "b"])
    wait_until(lambda: all(worker.is_dead() for worker in workers._started), 60)


def test_closing_twice_at_the_same_time_ends():
    workers = Workers(hostile.nothing, timeout_s=20, count=4, memory_mb=256)
    workers.map(abs, [(-1,)] * 8, ["call"] * 8)
    closers = [threading.Thread(target=workers.close) for _ in range(2)]
    for closer in closers:
        closer.start()
    for closer in closers:
        closer.join(60)
        assert not closer.is_alive()


# --- what a script meets -----------------------------------------------------------------------------------------------

UNGUARDED = """
from dash_exp.core.types import Problem
from dash_exp.rewards.math import MathReward

print("once")
reward = MathReward(workers=2)
print(reward([Problem("a", "?", "1/2"), Problem("b", "?", "7")], ["it is 0.5", "so 8"]).rewards)
"""


@pytest.fixture
def script(tmp_path):
    """Starts a script of its own in a process that finds this package, and everything that it starts by a mark."""
    file, mark = tmp_path / "script.py", f"dash_exp-test-{os.getpid()}-{tmp_path.name}"
    path = os.pathsep.join(filter(None, sys.path))

    def start(text):
        file.write_text(text)
        return subprocess.Popen(
            [sys.executable, str(file)],
            cwd=tmp_path,
            env=os.environ | {"PYTHONPATH": path, "DASH_EXP_TEST": mark},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    start.mark = mark
    return start


def test_a_script_needs_no_guard(script):
    """Neither `if __name__ == "__main__":` nor `close()`: the script is run once, and nothing of it is left."""
    with script(UNGUARDED) as started:
        try:
            output, errors = started.communicate(timeout=120)
        finally:
            started.kill()
    assert (started.returncode, output, errors) == (0, "once\n[1.0, 0.0]\n", "")
    wait_until_gone(script.mark, 20)


def test_a_worker_does_not_outlive_its_call_when_its_owner_is_killed(script, tmp_path):
    """The owner is killed while its worker computes in C, where Python notices nothing: only the kernel's timer ends it."""
    text = "import hostile\nfrom dash_exp.rewards.workers import Workers\n"
    text += "Workers(hostile.nothing, timeout_s=5, count=1, memory_mb=256)"
    with script(text + f".map(hostile.grade, [('7', 'endless {tmp_path}/begun')], [''])") as started:
        wait_until(lambda: started.poll() is not None or (tmp_path / "begun").exists(), 60)
        assert started.poll() is None, started.stderr.read()
        started.kill()
    assert len(command_lines(script.mark)) == 1
    wait_until_gone(script.mark, 5 + SPARE_S + 20)
