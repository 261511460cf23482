"""A run that broke goes on from its last snapshot, and its numbers are those of a run left alone."""

import errno
import hashlib
import json
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from functools import partial

import forked
import numpy as np
import pytest
import torch
from conftest import LETTERS, NANO_MODEL, ROOT, SMALL, TRAIN, composed, environment
from omegaconf import OmegaConf
from runs import broken_after, same

from dash_exp.commands import hydra_setup, run
from dash_exp.commands.sweep.finished import finished
from dash_exp.core import files, metrics, process
from dash_exp.core.errors import UserError
from dash_exp.results import cells, run_folder
from dash_exp.training import random_state, snapshot, snapshot_file
from dash_exp.training.module import PolicyModule


@pytest.mark.parametrize(
    "overrides",
    [
        "algo=ppo_mini batch.minibatches=4",
        "algo=sft_h",
        "algo=no_gf filter=zero_variance kl=adaptive",
        "algo=dash budget.sampled_tokens=1100",  # reached in step 5
        "algo=grpo select=greso data.limit=16",
        "algo=dapo select=greso data.limit=12 rollout.sampler._target_=rank_parts.CopySampler rollout.staleness=1",
        "algo=no_gf select=screen select.rounds=2",
    ],
)
def test_it_goes_on_as_if_nothing_had_been(overrides, tmp_path, monkeypatch):
    cfg = composed(*LETTERS, "steps=6", "resume_every=2", "eval.every=3", *overrides.split())
    run.run(cfg, tmp_path / "alone")
    broken_after(tmp_path / "broken", cfg, 3, monkeypatch)
    assert len(run_folder.snapshots(tmp_path / "broken")) == 1
    run.run(cfg, tmp_path / "broken")
    same(tmp_path / "broken", tmp_path / "alone")
    assert not (tmp_path / "broken" / run_folder.SNAPSHOTS).exists()
    if "select" in overrides:
        result = run_folder.read_result(tmp_path / "alone")
        assert result["select/skipped_prompts"] + result["select/screened_out_prompts"] > 0


def test_it_says_where_it_goes_on(tmp_path, monkeypatch, capsys):
    cfg = composed(*LETTERS, "steps=4", "resume_every=2", "eval.every=4")
    broken_after(tmp_path, cfg, 3, monkeypatch)
    run.run(cfg, tmp_path)
    assert "resumes after outer step 2" in capsys.readouterr().out


def test_a_snapshot_of_other_settings_is_not_gone_on_from(tmp_path, monkeypatch, capsys):
    broken_after(tmp_path, composed(*LETTERS, "steps=4", "eval.every=4"), 3, monkeypatch)
    other = [*LETTERS, "steps=4", "eval.every=4", "seed=1"]
    with pytest.raises(UserError, match=r"other settings that can be resumed \(seed=1, not 0\)\. .*resume=false starts again"):
        finished(tmp_path, composed(*other))
    assert not finished(tmp_path, composed(*other, "resume=false"))
    assert not finished(tmp_path, composed(*LETTERS, "steps=4", "eval.every=4", "watch.clipped.policy=stop"))
    run.run(composed(*other, "resume=false"), tmp_path)
    assert "resumes after" not in capsys.readouterr().out
    assert cells.load_cell(tmp_path).metrics["step"].tolist() == [0, 1, 2, 3, 4]


def test_a_step_that_was_left_out_is_not_mixed_into_the_snapshot_of_the_one_before(tmp_path, monkeypatch):
    """Every optimizer step is skipped, and the run ends after the schedule has stepped: it goes on as if nothing had been."""
    never = ["reward.pattern='never'", "watch.no_signal.policy=skip_step", "resume_every=null"]
    cfg = composed(*LETTERS, "steps=4", "eval.every=4", *never)
    run.run(cfg, tmp_path / "alone")
    broken_after(tmp_path / "broken", cfg, 2, monkeypatch)
    assert [file.name[:10] for file in run_folder.snapshots(tmp_path / "broken")] == ["step_00002"]
    run.run(cfg, tmp_path / "broken")
    same(tmp_path / "broken", tmp_path / "alone")


def flip_a_bit(file):
    contents = bytearray(file.read_bytes())
    contents[len(contents) // 2] ^= 1
    file.write_bytes(contents)


def cut_in_half(file):
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def empty(file):
    file.write_bytes(b"")


FIVE = [*LETTERS, "steps=5", "eval.every=5"]


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """A folder with a run of 5 steps left alone, and one that broke after 4 of them."""
    folder, cfg = tmp_path_factory.mktemp("both"), composed(*FIVE)
    run.run(cfg, folder / "alone")
    with pytest.MonkeyPatch.context() as patch:
        broken_after(folder / "broken", cfg, 4, patch)
    return folder


@pytest.fixture
def alone(both):
    return both / "alone"


@pytest.fixture
def broken(both, tmp_path):
    """A copy for one test."""
    return shutil.copytree(both / "broken", tmp_path / "broken")


@pytest.mark.parametrize("tear", [flip_a_bit, cut_in_half, empty])
def test_a_torn_snapshot_is_recognised_and_the_one_before_it_used(tear, alone, broken, capsys, caplog):
    last, before = run_folder.snapshots(broken)
    assert (last.name[:10], before.name[:10]) == ("step_00004", "step_00003")
    tear(last)
    run.run(composed(*FIVE), broken)
    assert "resumes after outer step 3" in capsys.readouterr().out
    assert f"{last} is damaged" in caplog.text
    same(broken, alone)


def test_where_all_snapshots_are_torn_the_run_begins_anew(alone, broken, capsys):
    for file in run_folder.snapshots(broken):
        cut_in_half(file)
    run.run(composed(*FIVE), broken)
    assert "resumes after" not in capsys.readouterr().out
    same(broken, alone)


def test_the_snapshots_of_a_program_are_not_run(tmp_path, monkeypatch):
    """A pickle that would call a function when it is loaded, under a name that its contents do have."""

    class Malice:
        def __reduce__(self):
            return (tmp_path.joinpath("marker").touch, ())

    cfg = composed(*LETTERS)
    folder = tmp_path / "run" / run_folder.SNAPSHOTS
    folder.mkdir(parents=True)
    torch.save({"config": Malice()}, folder / "new")
    digest = hashlib.sha256((folder / "new").read_bytes()).hexdigest()
    (folder / "new").rename(folder / f"step_00001-{digest[:16]}.pt")
    run.run(cfg, tmp_path / "run")
    assert not (tmp_path / "marker").exists()
    assert cells.load_cell(tmp_path / "run").status == "done"


def test_random_numbers_go_on_as_well():
    def draw():
        return torch.rand(3).tolist(), np.random.random(3).tolist(), random.random()

    state = random_state.random_state()
    first = draw()
    assert draw() != first
    random_state.set_random_state(state)
    assert draw() == first


# --- how often, and beside training ------------------------------------------------------------------------------------


class Time:
    """A clock that only moves when it is told. A step takes 60 s and a snapshot 6, which `run` writes as `every` says."""

    def __init__(self, monkeypatch):
        self.now_s = 0.0
        self.written = []
        monkeypatch.setattr(run, "Snapshots", partial(snapshot.Snapshots, now=lambda: self.now_s))
        monkeypatch.setattr(snapshot, "write", self.write)
        finish_row = PolicyModule.finish_row

        def a_minute(module):
            self.now_s += 60
            return finish_row(module)

        monkeypatch.setattr(PolicyModule, "finish_row", a_minute)

    def write(self, run_dir, state):
        self.now_s += 6
        self.written.append(state["step"])


@pytest.mark.parametrize(
    ("every", "steps"),
    [
        (3, [3, 6]),
        ("null", []),
        ("2m", [2, 4, 6]),  # 120 s from the start, then from the snapshot before: its 6 s and 2 steps
        ("5h", []),
        # After the first, of whose cost nothing is known: 6 + 6 s are 5% of 240, reached at 246; 18 of 360, at 372
        ("5%", [1, 4, 6]),
        ("100%", [1, 2, 3, 4, 5, 6]),
    ],
)
def test_how_often_a_snapshot_is_written(every, steps, tmp_path, monkeypatch):
    """Written while training waits, so that each takes its 6 s of the same clock."""
    monkeypatch.setattr(snapshot, "is_written_beside", lambda *_: False)
    clock = Time(monkeypatch)
    result = run.run(composed(*LETTERS, "steps=7", "eval.every=7", f"resume_every={every}"), tmp_path)
    assert clock.written == steps
    assert (result["time/snapshot_s"], result["time/snapshot_beside_s"]) == (6 * len(steps), 0)
    rows = cells.load_cell(tmp_path).metrics
    assert rows["time/snapshot_s"].tolist()[1:] == [6.0 * (step - 1 in steps) for step in range(1, 8)]


def test_a_large_snapshot_is_not_begun_before_a_run_can_afford_it(tmp_path, monkeypatch):
    """At an assumed rate at which the first one would take 10 s, which are 5% of 200: after 4 steps of 60."""
    monkeypatch.setattr(snapshot, "is_written_beside", lambda *_: False)
    monkeypatch.setattr(snapshot.Snapshots, "_size", lambda *_: (10 * snapshot.ASSUMED_RATE, True))
    clock = Time(monkeypatch)
    run.run(composed(*LETTERS, "steps=6", "eval.every=6", "resume_every=5%"), tmp_path)
    assert clock.written == [4, 5]  # it took 6: 12 s are 5% of 240


@pytest.mark.parametrize(
    ("size", "in_cpu_memory", "beside"),
    [(2**20, True, True), (2**33, True, False), (2**33, False, True)],
)
def test_a_copy_that_would_crowd_the_memory_of_the_run_is_not_made(size, in_cpu_memory, beside):
    assert snapshot.is_written_beside(size, in_cpu_memory) == beside


@pytest.mark.parametrize("overrides", ["algo=ppo_mini batch.minibatches=4", "model.dtype=bfloat16 kl=adaptive"])
def test_training_changes_nothing_that_is_still_to_be_written(overrides, tmp_path, monkeypatch):
    """The thread begins when the next outer step has taken its optimizer steps."""
    cfg = composed(*LETTERS, "steps=5", "resume_every=2", "eval.every=5", *overrides.split())
    run.run(cfg, tmp_path / "alone")
    trained = threading.Event()
    finish_row = PolicyModule.finish_row

    def tells(module):
        if module.current_epoch == 2:
            trained.set()
        return finish_row(module)

    def late(run_dir, state):
        assert trained.wait(60)
        snapshot_file.write(run_dir, state)

    with monkeypatch.context() as patch:
        patch.setattr(PolicyModule, "finish_row", tells)
        patch.setattr(snapshot, "write", late)
        broken_after(tmp_path / "broken", cfg, 3, patch)
    assert [file.name[:10] for file in run_folder.snapshots(tmp_path / "broken")] == ["step_00002"]
    run.run(cfg, tmp_path / "broken")
    same(tmp_path / "broken", tmp_path / "alone")


def test_one_at_a_time_and_the_end_waits(tmp_path, monkeypatch):
    begun, ended = [], []

    def slow(run_dir, state):
        assert begun == ended
        begun.append(state["step"])
        time.sleep(0.3)  # several steps
        ended.append(state["step"])

    monkeypatch.setattr(snapshot, "write", slow)
    result = run.run(composed(*LETTERS, "steps=4", "eval.every=4"), tmp_path)
    assert ended == [1, 2, 3]
    assert result["time/snapshot_beside_s"] >= 0.89


@pytest.mark.parametrize("beside", [True, False])
def test_a_snapshot_that_could_not_be_written_ends_the_run(beside, tmp_path, monkeypatch):
    monkeypatch.setattr(snapshot, "is_written_beside", lambda *_: beside)

    def full(run_dir, state):
        if state["step"] == 2:
            raise OSError(errno.ENOSPC, "x", "/a/b")
        snapshot_file.write(run_dir, state)

    with monkeypatch.context() as patch, pytest.raises(UserError, match="the disk is full") as told:
        patch.setattr(snapshot, "write", full)
        run.run(composed(*LETTERS, "steps=4", "eval.every=4"), tmp_path)
    assert "the same command then resumes after outer step 1" in str(told.value)
    assert [file.name[:10] for file in run_folder.snapshots(tmp_path)] == ["step_00001"]


# --- stopped by a signal -----------------------------------------------------------------------------------------------

LONG = [*SMALL, "steps=300", "eval.every=300", "batch.prompts=4"]


def signalled(tmp_path, number, step, *overrides):
    """`train.py` in `tmp_path`, which gets the signal after that outer step. Exit status and what it said."""
    said = tmp_path / f"said_{step}"
    with forked.Program(TRAIN, [*LONG, *overrides], tmp_path, environment(tmp_path), said, said) as started:
        while started.poll() is None and not list(tmp_path.glob(f"outputs/small/*/completions/step_{step:05d}.jsonl")):
            time.sleep(0.02)
        started.send_signal(number)
        return started.wait(timeout=60), said.read_text()


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 75), (signal.SIGINT, 130)], ids=["SIGTERM", "Ctrl-C"])
@pytest.mark.parametrize("every", ["1", "null"])
def test_a_run_that_is_told_to_leave_saves_and_the_same_command_goes_on(train, tmp_path, number, status, every):
    """Without snapshots on the way (null) too: where the policy has not changed since, the last outer step is saved."""
    code, said = signalled(tmp_path, number, 3, f"resume_every={every}")
    assert code == status, said
    assert "Traceback" not in said
    (folder,) = (tmp_path / "outputs" / "small").iterdir()
    assert cells.load_cell(folder).status == "stopped"
    held = run_folder.snapshots(folder)
    if every == "null" and not held:  # it was told between the optimizer step and the end of the outer step
        assert "stopped: the same command starts from the beginning" in said
        return
    step = int(held[0].name[5:10])
    assert step >= 2
    assert f"stopped: the same command resumes after outer step {step}" in said
    assert len(snapshot_file.read(held[0])["rows"]) == step + 1

    other = train(*LONG, f"resume_every={every}", "resume=false", "steps=1")
    assert other.returncode == 0  # another run, in a folder of its own
    _, said = signalled(tmp_path, number, step + 2, f"resume_every={every}")
    assert f"resumes after outer step {step} (resume=false starts from the beginning)" in said
    assert f"-> {folder}" in said
    assert len(list((tmp_path / "outputs" / "small").iterdir())) == 2


def test_code_in_c_may_hide_that_the_process_was_told_to_leave():
    def raised(inner):
        try:
            try:
                raise inner
            except BaseException:
                raise RuntimeError("a hook failed")  # noqa: B904
        except RuntimeError as error:
            return error

    assert process.status_of_stop(SystemExit(75)) == process.status_of_stop(raised(SystemExit(75))) == 75
    assert process.status_of_stop(KeyboardInterrupt()) == process.status_of_stop(raised(KeyboardInterrupt())) == 130
    assert process.status_of_stop(raised(OSError())) is None
    assert process.status_of_stop(SystemExit(1)) is None  # of a library that gives up


def test_which_folder_a_run_alone_gets(tmp_path):
    def folder(*overrides):
        cfg = composed("name=small", *overrides)
        return hydra_setup.run_folder(str(tmp_path), "new", _root_=cfg)

    def stopped(name, *overrides, status="stopped"):
        made = tmp_path / name / run_folder.SNAPSHOTS
        made.mkdir(parents=True)
        (made / f"step_00001-{'0' * 16}.pt").touch()
        (tmp_path / name / "config.yaml").write_text(OmegaConf.to_yaml(composed("name=small", *overrides), resolve=True))
        (tmp_path / name / "result.json").write_text(json.dumps({"status": status}))

    new = f"{tmp_path}/new"
    assert folder() == new
    stopped("1")
    stopped("2")
    stopped("3", "seed=1")
    stopped("4", status="done")
    assert folder() == f"{tmp_path}/2"
    for kept in ("resume_every=7", "logger=both"):
        assert folder(kept) == f"{tmp_path}/2"
    assert folder("resume=false") == new
    assert folder("seed=1") == f"{tmp_path}/3"
    assert folder("seed=2") == new
    assert folder("optimizer.lr=???") == new  # what is wrong is said later
    with process.alone_in(tmp_path / "2"):
        assert folder() == f"{tmp_path}/1"
        with pytest.raises(UserError, match="another process is working in it"):
            run.run(composed(*LETTERS), tmp_path / "2")
    assert folder() == f"{tmp_path}/2"


# --- disks -------------------------------------------------------------------------------------------------------------

BWRAP = ["bwrap", "--dev-bind", "/", "/"]


@pytest.mark.needs("bubblewrap")
def test_a_full_disk_is_told_and_the_run_goes_on_when_there_is_space(tmp_path):
    """A disk of 9 MB that another program fills while the run is in its fourth step or later."""
    small, disk = " ".join([*SMALL, "model=tiny_random", *NANO_MODEL, "steps=8", "eval.every=8"]), tmp_path / "disk"
    disk.mkdir()
    script = f"""
        cd {disk}
        fill() {{
            while [ ! -e outputs/small/*/completions/step_00003.jsonl ]; do sleep 0.02; done
            dd if=/dev/zero of=filler bs=64k; dd if=/dev/zero of=crumbs bs=512
        }}
        fill 2>/dev/null &
        {sys.executable} {ROOT / "train.py"} {small} >first 2>{tmp_path}/first.err; echo $? >{tmp_path}/first.status
        wait; rm filler crumbs
        {sys.executable} {ROOT / "train.py"} {small} >{tmp_path}/second 2>&1; echo $? >{tmp_path}/second.status
        cp -r outputs/small/* {tmp_path}/run
    """
    command = [*BWRAP, "--size", "9000000", "--tmpfs", str(disk), "--", "bash", "-c", script]
    subprocess.run(command, env=environment(tmp_path), check=True, timeout=240)
    told = (tmp_path / "first.err").read_text()
    assert (tmp_path / "first.status").read_text() == "1\n", told
    assert told.count("error: ") == 1
    assert "the disk is full. Free some space; the same command then resumes after outer step" in told
    assert "Traceback" not in told
    second = (tmp_path / "second").read_text()
    assert (tmp_path / "second.status").read_text() == "0\n", second
    assert "resumes after outer step" in second
    run.run(composed(*small.split()), tmp_path / "alone")
    same(tmp_path / "run", tmp_path / "alone")


@pytest.mark.needs("bubblewrap")
@pytest.mark.parametrize("more", [[], ["-m"]], ids=["run", "sweep"])
def test_a_folder_that_can_only_be_read_is_told(tmp_path, more):
    command = [*BWRAP, "--ro-bind", str(tmp_path), str(tmp_path), "--chdir", str(tmp_path), "--"]
    command += [sys.executable, str(ROOT / "train.py"), *more, *SMALL]
    done = subprocess.run(command, env=environment(tmp_path), capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    assert done.stderr.count("error: ") == 1
    assert "is read-only" in done.stderr
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.iterdir())


# --- torn records ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("torn", "tear"), [("result.json", cut_in_half), ("result.json", empty), ("config.yaml", empty)])
def test_a_run_whose_record_is_torn_is_not_done_and_is_run_again(torn, tear, alone, tmp_path):
    cfg, folder = composed(*FIVE), shutil.copytree(alone, tmp_path / "torn")
    assert finished(folder, cfg) and finished(folder, composed(*FIVE, "logger=both"))
    tear(folder / torn)
    assert not finished(folder, cfg)
    run.run(cfg, folder)
    same(folder, alone)


def test_a_row_of_metrics_that_was_being_written_is_left_out(tmp_path):
    file = tmp_path / "metrics.csv"
    file.write_text("step,reward/mean\n1,0.25\n2,0.7")
    (tmp_path / "config.yaml").write_text("seed: 0\n")
    assert metrics.read_metrics(file) == [{"step": 1.0, "reward/mean": 0.25}]
    assert cells.load_cell(tmp_path).metrics["reward/mean"].tolist() == [0.25]


def test_what_a_killed_process_left_of_a_checkpoint_is_mended(tmp_path):
    def checkpoint(name, text):
        (tmp_path / name).mkdir()
        (tmp_path / name / "weights").write_text(text)

    checkpoint("best.old", "old")
    checkpoint("best.new", "ne")
    files.mend_folder(tmp_path / "best")  # it was killed between the two renamings
    assert [f.name for f in tmp_path.iterdir()] == ["best"]
    assert (tmp_path / "best" / "weights").read_text() == "old"
    with pytest.raises(OSError), files.whole_folder(tmp_path / "best") as new:
        (new / "weights").write_text("half")
        raise OSError
    assert (tmp_path / "best" / "weights").read_text() == "old"
    with files.whole_folder(tmp_path / "best") as new:
        (new / "weights").write_text("new")
    assert (tmp_path / "best" / "weights").read_text() == "new"
    assert [f.name for f in tmp_path.iterdir()] == ["best"]


def test_a_file_is_whole_or_as_it_was(tmp_path):
    file = tmp_path / "result.json"
    file.write_text("old")
    with pytest.raises(KeyboardInterrupt), files.whole(file) as new:
        new.write("half")
        raise KeyboardInterrupt
    assert file.read_text() == "old"
    assert [f.name for f in tmp_path.iterdir()] == ["result.json"]


def test_what_a_disk_says():
    assert files.trouble(OSError(errno.ENOSPC, "x", "/a/b")) == ("/a/b", "the disk is full", "Free some space")
    assert files.trouble(RuntimeError("I/O error: No space left on device (os error 28)"))[1] == "the disk is full"
    assert files.trouble(RuntimeError("403: permission denied")) is None
    assert files.trouble(FileNotFoundError(errno.ENOENT, "x")) is None


def test_ctrl_c_at_the_end_of_a_write_does_not_abort_the_process(tmp_path):
    """It comes before torch's writer has written the end of the file, which the writer then does in its destructor."""
    script = f"""
import torch
from dash_exp.training import snapshot_file

def interrupted(*_):
    raise KeyboardInterrupt

torch.serialization._open_zipfile_writer_buffer.__exit__ = interrupted
try:
    with open({str(tmp_path / "new.pt")!r}, "w+b") as file:
        snapshot_file.save({{"weights": torch.zeros(1000)}}, file)
except KeyboardInterrupt:
    print("interrupted")
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (0, "interrupted\n"), done.stderr
