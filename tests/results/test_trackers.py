"""TensorBoard, MLflow and Trackio: what each got, read with its own reader; several together; and trackers that fail."""

import fcntl
import os
import sys
import time
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from conftest import LETTERS, composed
from omegaconf import OmegaConf

from dash_exp.commands import ending, run
from dash_exp.core.metrics import FAMILIES, METRICS, read_metrics
from dash_exp.results import mlflow_logger, run_folder
from dash_exp.results.mlflow_logger import allowed
from dash_exp.results.trackers import Tracker, flat_settings, last_row, numbers
from dash_exp.training.module import PolicyModule

COLUMNS = ["step", "reward/mean", "time/elapsed_s", "eval/in_dist/pass@8"]
OVERRIDES = ["algo=dash", "kl.coef=0", "+test@data.tests.more=gsm8k"]
EACH = [pytest.param(name, marks=pytest.mark.needs(name)) for name in ("tensorboard", "mlflow", "trackio")]


@dataclass
class Found:
    """What a tracker has of the only run in it. `points`: by the name of a metric, its outer steps and values."""

    points: dict[str, list[tuple[int, float]]]
    settings: dict[str, object]
    group: str
    name: str
    status: str


def of_tensorboard(cell: Path) -> Found:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

    (folder,) = {file.parent for file in cell.parent.rglob("events.out.tfevents.*")}
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0, "tensors": 0})
    events.Reload()
    points = {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
    start = HParamsPluginData.FromString(events.PluginTagToContent("hparams")["_hparams_/session_start_info"])
    settings = {key: getattr(value, value.WhichOneof("kind")) for key, value in start.session_start_info.hparams.items()}
    config, status = (events.Tensors(f"{tag}/text_summary")[0].tensor_proto.string_val[0] for tag in ("config", "status"))
    assert b"    name: small\n" in config
    return Found(points, settings, folder.parts[-3], folder.parts[-2], status.decode())


def of_mlflow(cell: Path, run_id: str = "") -> Found:
    from mlflow import MlflowClient

    client = MlflowClient(store())
    runs = client.search_runs([client.get_experiment_by_name(project_of(cell)).experiment_id])
    (found,) = [run for run in runs if run_id in ("", run.info.run_id)]
    histories = {key: client.get_metric_history(found.info.run_id, key) for key in found.data.metrics}
    points = {key.replace("_at_", "@"): [(p.step, p.value) for p in history] for key, history in histories.items()}
    status = {"FINISHED": "done", "KILLED": "stopped", "FAILED": "failed"}[found.info.status]
    assert status == found.data.tags["status"]
    return Found(points, found.data.params, found.data.tags["group"], found.info.run_name, status)


def of_trackio(cell: Path, run_id: str = "") -> Found:
    from trackio.sqlite_storage import SQLiteStorage

    project = project_of(cell)
    ((run_id, name),) = [(r["id"], r["name"]) for r in SQLiteStorage.get_run_records(project) if run_id in ("", r["id"])]
    points = defaultdict(list)
    for row in SQLiteStorage.get_logs(project, run_id=run_id):
        for key, value in row.items():
            if key not in ("timestamp", "step"):
                points[key].append((row["step"], value))
        points["step"] += [(row["step"], row["step"])] if "reward/mean" in row else []
    settings = SQLiteStorage.get_run_config(project, run_id=run_id)
    return Found(points, settings, settings["_Group"], name, run_folder.read_result(cell)["status"])  # it has no status


READERS = {"tensorboard": of_tensorboard, "mlflow": of_mlflow, "trackio": of_trackio}


def id_of(name: str, cell: Path) -> str:
    """The id that the run folder keeps."""
    return (cell / f"{name}_id").read_text().split()[0]


def store() -> str:
    return f"sqlite:///{os.environ['TRACKIO_DIR']}/mlflow.db"


def project_of(cell: Path) -> str:
    """Of this test alone: all have the databases of the process, since a new one of MLflow takes seconds."""
    return cell.parent.parent.name


@pytest.fixture(scope="module", autouse=True)
def places(tmp_path_factory):
    """Trackio reads them when it is imported."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRACKIO_DIR", str(tmp_path_factory.mktemp("trackio")))
        patch.setenv("TRACKIO_STORAGE_MODE", "sqlite")
        patch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        yield


@pytest.fixture
def cell(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)  # MLflow makes a folder for files in the current one
    folder = tmp_path / "small" / "algo=dash,kl.coef=0"
    (folder / ".hydra").mkdir(parents=True)
    (folder / ".hydra" / "overrides.yaml").write_text(yaml.safe_dump(OVERRIDES))
    return folder


def chosen(names: str, cell: Path):
    """The settings of a run with these trackers, which write below the test's own folder."""
    cfg = composed(f"logger={names}", "name=small", "seed=3")
    if "mlflow" in cfg.logger:
        cfg.logger.mlflow.tracking_uri, cfg.logger.mlflow.experiment = store(), project_of(cell)
    if "trackio" in cfg.logger:
        cfg.logger.trackio.project = project_of(cell)
    return cfg


def attempt(cfg, cell: Path, steps: list[int], status: str = "done", first: int = 0) -> list[Tracker]:
    """What a run of the program does with its trackers, without the training. It goes on with the rows from `first` on, and
    gives the trackers those before again.
    """
    trackers = ending.start_trackers(cfg, cell, in_sweep=True)
    lines = (cell / "metrics.csv").read_text().splitlines()[: first + 1] if first else [",".join(COLUMNS)]
    for step in steps:
        row = dict(zip(COLUMNS, (step, step / 8, step * 0.5, 1 - step / 4), strict=True))
        for tracker in trackers:
            tracker.log_metrics(row, step=step)
        lines += [",".join(map(str, row.values()))] if step >= first else []
    (cell / "metrics.csv").write_text("\n".join(lines) + "\n")
    run_folder.write_result(cell, {"status": status, "steps": steps[-1], "accuracy/in_dist/final": 0.25, "git": None})
    ending.finish_trackers(trackers, cell, run_folder.read_result(cell))
    return trackers


def assert_has_all(found: Found, steps: list[int]) -> None:
    """One run with each row once, under the names of `metrics.csv`, the settings, the group and the result."""
    assert {name: found.points[name] for name in COLUMNS} == {
        "step": [(step, step) for step in steps],
        "reward/mean": [(step, step / 8) for step in steps],
        "time/elapsed_s": [(step, step * 0.5) for step in steps],
        "eval/in_dist/pass@8": [(step, 1 - step / 4) for step in steps],
    }
    assert found.points["result/accuracy/in_dist/final"][-1] == (steps[-1], 0.25)
    assert (found.group, found.name, found.status) == ("small", "algo=dash,kl.coef=0", "done")
    wanted = {"seed": 3, "optimizer._target_": "torch.optim.AdamW", "cell": "algo=dash,kl.coef=0", "overrides.kl_coef": "0"}
    assert {key: str(found.settings[key]).removesuffix(".0") for key in wanted} == {k: str(v) for k, v in wanted.items()}


@pytest.mark.parametrize("name", EACH)
def test_its_own_reader_finds_the_run(name, cell):
    attempt(chosen(name, cell), cell, [0, 1, 2])
    assert_has_all(READERS[name](cell), [0, 1, 2])


@pytest.mark.parametrize("name", EACH)
def test_a_run_that_goes_on_is_the_same_run_and_has_each_row_once(name, cell):
    """Stopped after its third row, it goes on from a snapshot of the second."""
    attempt(chosen(name, cell), cell, [0, 1, 2], status="stopped")
    attempt(chosen(name, cell), cell, [0, 1, 2, 3, 4], first=2)
    assert last_row(cell) == 4
    assert_has_all(READERS[name](cell), [0, 1, 2, 3, 4])


@pytest.mark.parametrize("name", EACH)
def test_a_run_that_failed_before_its_first_row_is_there(name, cell):
    (tracker,) = ending.start_trackers(chosen(name, cell), cell, in_sweep=True)
    run_folder.write_result(cell, {"status": "failed", "error": "none", "time/total_s": 1.5})
    ending.finish_trackers([tracker], cell, run_folder.read_result(cell))
    assert not tracker.has_failed
    found = READERS[name](cell)
    assert (found.status, found.points["result/time/total_s"]) == ("failed", [(0, 1.5)])


@pytest.mark.parametrize("name", EACH[1:])
def test_a_run_that_begins_anew_with_other_settings_is_another_run(name, cell):
    """TensorBoard has no runs beside the folder: the files of the first attempt are gone."""
    attempt(chosen(name, cell), cell, [0, 1, 2], status="stopped")
    first = id_of(name, cell)
    cfg = chosen(name, cell)
    before, cfg.optimizer.lr = cfg.optimizer.lr, 1e-3
    attempt(cfg, cell, [0, 1], status="stopped")
    cfg.resume_every = 7  # may change while a run goes on
    attempt(cfg, cell, [0, 1, 2, 3], first=2)
    runs = {lr: READERS[name](cell, run_id) for lr, run_id in ((before, first), (1e-3, id_of(name, cell)))}
    for lr, steps in ((before, 3), (1e-3, 4)):
        assert (len(runs[lr].points["reward/mean"]), float(runs[lr].settings["optimizer.lr"])) == (steps, lr)


@pytest.mark.needs("mlflow")
def test_a_run_that_was_deleted_in_mlflow_starts_anew(cell):
    from mlflow import MlflowClient

    attempt(chosen("mlflow", cell), cell, [0, 1], status="stopped")
    MlflowClient(store()).delete_run(id_of("mlflow", cell))
    attempt(chosen("mlflow", cell), cell, [0, 1, 2], first=2)
    assert_has_all(of_mlflow(cell), [0, 1, 2])


@pytest.mark.parametrize("uri", ["sqlite:///mlflow.db", "sqlite:///new/mlflow.db", "sqlite:///{}/new/mlflow.db"])
def test_a_run_that_starts_is_alone_at_a_database_of_mlflow(cell, tmp_path, monkeypatch, uri):
    """Until it has its experiment, which another one would make too. The lock is where the database is."""
    locked = []

    class Logger:
        run_id = "1"

        def __init__(self, *_, **__):
            pass

        @property
        def experiment(self):
            locked.append(in_lock(tmp_path / "new" if "new" in uri else tmp_path))

        def log_hyperparams(self, _):
            locked.append(in_lock(tmp_path))

    monkeypatch.setitem(sys.modules, "mlflow", SimpleNamespace(MlflowClient=None))
    monkeypatch.setattr(mlflow_logger, "RowLogger", Logger)
    mlflow_logger.mlflow_logger(cell, "small", None, {}, "x", uri.format(tmp_path))
    assert locked == [True, False]


def in_lock(folder: Path) -> bool:
    opened = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(opened)
    return False


@pytest.mark.needs("trackio")
def test_two_folders_of_the_same_name_are_two_runs_of_trackio(cell, tmp_path):
    from trackio.sqlite_storage import SQLiteStorage

    other = tmp_path / "elsewhere" / cell.name
    other.mkdir(parents=True)
    for folder in (cell, other, cell):
        attempt(chosen("trackio", cell), folder, [0, 1])
    ids = {id_of("trackio", folder) for folder in (cell, other)}
    assert len(ids) == 2
    assert {record["id"] for record in SQLiteStorage.get_run_records(project_of(cell))} == ids


@pytest.mark.needs("mlflow")
def test_a_server_that_does_not_answer_costs_a_line(cell, caplog):
    cfg = chosen("mlflow", cell)
    cfg.logger.mlflow.tracking_uri = "http://127.0.0.1:9"
    assert attempt(cfg, cell, [0, 1]) == []
    assert caplog.text.count("MLflow cannot be used (") == 1


def test_the_names_that_all_of_them_get(cell):
    """Dotted, as on the command line; the numbers of the result beside the metrics, some of which have the same name."""
    settings = {"kl": {"coef": 0.0, "schedule": None}, "seed": 3}
    assert flat_settings(cell, settings) == {
        "kl.coef": 0.0,
        "kl.schedule": None,
        "seed": 3,
        "cell": cell.name,
        "overrides.algo": "dash",
        "overrides.kl_coef": "0",
        "overrides.test@data_tests_more": "gsm8k",
    }
    assert numbers({"status": "done", "git": None, "time/sample_s": 2.5, "steps": 4}) == {
        "result/time/sample_s": 2.5,
        "result/steps": 4,
    }
    assert last_row(cell) == -1


@pytest.mark.parametrize(
    ("name", "in_mlflow"),
    [
        ("reward/mean", "reward/mean"),
        ("eval/in_dist/pass@8", "eval/in_dist/pass_at_8"),
        ("optimizer._target_", "optimizer._target_"),
        ("own.a+b,c", "own.a_b_c"),
    ],
)
def test_names_that_mlflow_takes(name, in_mlflow):
    assert allowed(name) == in_mlflow


# --- the real program --------------------------------------------------------------------------------------------------

LOGGED: dict[str, list] = {}


class StandIn:
    """A tracker that notes what it is told, and breaks with the row of `breaks_at`."""

    def __init__(self, name: str, breaks_at: int | None) -> None:
        self.notes = LOGGED.setdefault(name, [])
        self.breaks_at = breaks_at

    def log_metrics(self, metrics, step):
        if step == self.breaks_at:
            raise ConnectionError("the server is gone")
        self.notes.append(metrics)

    def finish(self, run_dir, result):
        self.notes.append(result["status"])


def stand_in(run_dir, name, group, settings, key, breaks_at=None):
    if breaks_at == -1:
        raise ConnectionError("there is no server")
    LOGGED[f"{key} starts"] = [run_dir, name, group, settings]
    return StandIn(key, breaks_at)


def with_stand_ins(*overrides: str, **breaks_at: int | None):
    """The settings of a small run with a stand-in for each of these sections of `logger`."""
    LOGGED.clear()
    cfg = composed(*LETTERS, *overrides)
    part = {"_target_": f"{__name__}.stand_in", "_partial_": True}
    cfg.logger = OmegaConf.create({key: {**part, "key": key, "breaks_at": step} for key, step in breaks_at.items()})
    return cfg


def test_a_tracker_that_fails_costs_neither_the_run_nor_the_others(tmp_path, caplog):
    cell = tmp_path / "small" / "seed=0"
    result = run.run(with_stand_ins(wandb=None, tensorboard=1, mlflow=-1), cell, in_sweep=True)
    assert result["status"] == "done"
    rows, status = LOGGED["wandb"][:-1], LOGGED["wandb"][-1]
    assert ([row["step"] for row in rows], status) == ([0, 1, 2], "done")
    assert ([row["step"] for row in LOGGED["tensorboard"][:-1]], LOGGED["tensorboard"][-1]) == ([0], "done")
    assert caplog.text.count("TensorBoard does not have all of this run (the server is gone); the run folder has") == 1
    assert caplog.text.count("MLflow cannot be used (there is no server): it does not get this run") == 1
    assert LOGGED["tensorboard starts"][:3] == LOGGED["wandb starts"][:3] == [cell, "seed=0", "small"]
    assert LOGGED["wandb starts"][3]["steps"] == 2
    files = [{k: v for k, v in row.items() if v is not None} for row in read_metrics(cell / "metrics.csv")]
    assert [row.keys() for row in rows] == [row.keys() for row in files]
    assert all(name in METRICS or name.startswith(tuple(FAMILIES)) for row in rows for name in row)


def test_what_a_tracker_takes_is_not_training(tmp_path, monkeypatch):
    """Each row takes 1000 s: of the base model, and of two steps, of which the second would have that of the first."""
    waited, clock = [0], time.perf_counter
    monkeypatch.setattr(time, "perf_counter", lambda: clock() + sum(waited))
    monkeypatch.setattr(StandIn, "log_metrics", lambda *_, **__: waited.append(1000))
    result = run.run(with_stand_ins(wandb=None), tmp_path)
    assert result["time/elapsed_s"] < 1000 < 3000 < result["time/total_s"]


def test_a_run_that_resumes_gives_each_tracker_all_rows(tmp_path, monkeypatch):
    settings = {"wandb": None, "trackio": None}
    finish_row = PolicyModule.finish_row

    def breaks(module):
        if module.current_epoch == 2:
            raise RuntimeError("power cut")
        return finish_row(module)

    with monkeypatch.context() as broken:
        broken.setattr(PolicyModule, "finish_row", breaks)
        with pytest.raises(RuntimeError, match="power cut"):
            run.run(with_stand_ins("steps=4", "resume_every=1", **settings), tmp_path)
    assert LOGGED["trackio"][-1] == "failed"
    run.run(with_stand_ins("steps=4", "resume_every=1", **settings), tmp_path)
    for name in settings:
        assert [row["step"] for row in LOGGED[name][:-1]] == [0, 1, 2, 3, 4]
    assert LOGGED["trackio starts"][1:3] == [f"small/{tmp_path.name}", None]


def test_a_full_disk_in_the_end_is_an_error_of_the_run(tmp_path):
    class Full:
        def log_metrics(self, metrics, step):
            raise OSError(28, "No space left on device")

        finish = log_metrics

    tracker = Tracker("W&B", Full())
    tracker.log_metrics({"step": 0}, step=0)
    with pytest.raises(OSError, match="No space left"):
        tracker.finish(tmp_path, {})


@pytest.mark.needs("tensorboard")
@pytest.mark.needs("mlflow")
@pytest.mark.needs("trackio")
def test_a_run_with_all_of_them(cell):
    cfg = composed(*LETTERS, "logger=[tensorboard,mlflow,trackio]")
    cfg.logger.mlflow.tracking_uri = store()
    cfg.logger.mlflow.experiment = cfg.logger.trackio.project = project_of(cell)
    result = run.run(cfg, cell, in_sweep=True)
    rows = read_metrics(cell / "metrics.csv")
    for reader in READERS.values():
        found = reader(cell)
        wanted = [(int(row["step"]), row["reward/mean"]) for row in rows if row["reward/mean"] is not None]
        assert found.points["reward/mean"] == [(step, pytest.approx(value)) for step, value in wanted]
        assert found.points["result/accuracy/in_dist/final"][-1][1] == pytest.approx(result["accuracy/in_dist/final"])
        assert found.status == "done"
