"""One run: train with the parts that `build` makes, evaluate, and leave the record."""

from __future__ import annotations

import csv
import json
import logging
import subprocess
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import torch
import transformers
from omegaconf import DictConfig, OmegaConf

from dash_exp.commands import ending, prompting, several
from dash_exp.commands.build import Parts, build, close, make_trainer, record_of
from dash_exp.commands.sizes import derived_sizes, device_name, quick_words, sizes, slow_words
from dash_exp.commands.sweep.finished import with_other_problems
from dash_exp.core import files, process
from dash_exp.core.errors import UserError
from dash_exp.core.metrics import PHASES, SIDES, SNAPSHOT
from dash_exp.core.types import Prompt
from dash_exp.core.watch import check_trained
from dash_exp.data import digests
from dash_exp.distributed import place, ranks, world
from dash_exp.distributed.ranks import ALONE, NOTICE_S, Ranks
from dash_exp.distributed.world import RankLostError
from dash_exp.results.problems import DIGEST
from dash_exp.results.run_folder import ENDING, read_result, same_numbers, write_result
from dash_exp.results.trackers import Tracker
from dash_exp.training.budget import LIMITS, Budget
from dash_exp.training.heap import Heap
from dash_exp.training.module import PolicyModule
from dash_exp.training.progress import Progress
from dash_exp.training.record import RunRecord
from dash_exp.training.snapshot import Snapshots

log = logging.getLogger(__name__)

Right = dict[str, dict[str, bool]]  # test set -> id of the problem -> whether its greedy completion was right
Trained = tuple[dict[str, Any], Sequence[Mapping[str, Any]], Sequence[Tracker]]  # result, rows, trackers: for `ending.end`


def run(cfg: DictConfig, run_dir: Path, in_sweep: bool = False) -> dict[str, Any]:
    """Run one arm to its end and return its result, which is also in `result.json` of `run_dir`.

    A run that SIGTERM ends exits with SystemExit(`process.RESUME_ME`), one that Ctrl-C ends with `process.INTERRUPTED`. Raises
    UserError for what the user can fix, such as a full disk.
    """
    start = time.perf_counter()
    quiet()
    check_machine(cfg)
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        with process.alone_in(run_dir), process.leaving_on_sigterm():
            if ending.is_left(run_dir, cfg):
                return ending.resume(cfg, run_dir, in_sweep)
            files.write_whole(run_dir / "config.yaml", OmegaConf.to_yaml(cfg, resolve=True))
            if place.size() == 1 and cfg.trainer.devices > 1:
                return on_this_machine(cfg, run_dir, in_sweep)
            return lead(cfg, run_dir, in_sweep, start)
    except OSError as error:
        if told := disk_error(error, run_dir, "starts from the beginning"):
            raise told from error
        raise


def check_machine(cfg: DictConfig) -> None:
    """Raise UserError where this machine, or what has started the ranks, does not have what the trainer asks for."""
    trainer = cfg.trainer
    if trainer.accelerator == "gpu" and not (torch.cuda.is_available() or torch.backends.mps.is_available()):
        raise UserError("trainer.accelerator=gpu", "torch finds no GPU on this machine", "Use trainer=cpu")
    if trainer.accelerator == "gpu" and trainer.devices > (there := max(torch.cuda.device_count(), 1)):
        raise UserError(f"trainer.devices={trainer.devices}", f"torch finds {there} GPU(s) on this machine", "Lower it")
    place.check(trainer.devices, trainer.num_nodes)


def on_this_machine(cfg: DictConfig, run_dir: Path, in_sweep: bool) -> dict[str, Any]:
    """A run whose ranks this process starts, and waits for."""
    try:
        return several.launched(cfg, run_dir, in_sweep)
    except UserError as error:
        write_failed(run_dir, error)
        raise


def lead(cfg: DictConfig, run_dir: Path, in_sweep: bool, start: float) -> dict[str, Any]:
    """What the first rank does, or the only one. `start`: see `start_run`."""
    with leading(cfg, run_dir) as group:
        try:
            trained = start_run(cfg, run_dir, in_sweep, start, group)
        except (RuntimeError, RankLostError) as error:  # a collective that failed says nothing of whose fault it is
            lost = error if isinstance(error, RankLostError) else group.lost(NOTICE_S)
            if lost is None:
                raise
            raise lost_error(run_dir, lost) from error
    return ending.end(run_dir, *trained)  # which needs no other rank: one that goes away now is not missed


@contextmanager
def leading(cfg: DictConfig, run_dir: Path) -> Iterator[Ranks]:
    """The ranks of a run that this process leads; itself alone where no others were started."""
    if place.size() == 1:
        yield ALONE
        return
    here = world.entered()
    here.begin(json.dumps({"config": OmegaConf.to_yaml(cfg, resolve=True), "folder": str(run_dir)}))
    with ranks.of_run(here, told=partial(lost_error, run_dir)) as group:
        yield group


def lost_error(run_dir: Path, lost: RankLostError) -> UserError:
    """What the user is told where a rank has gone: with it, what the same command does. Also the result of the run."""
    told = UserError(lost.where, lost.wrong, f"The same command {several.way_on(run_dir)}")
    write_failed(run_dir, told)
    return told


def write_failed(run_dir: Path, error: UserError) -> None:
    """The result of a run that another process, or a thread of this one, has ended. A trained one keeps its own: only its end
    is left to do.
    """
    result = read_result(run_dir)
    if result.get("status") != ENDING:
        write_result(run_dir, result | {"status": "failed", "error": f"UserError: {error}", "git": git_revision()})


def disk_error(error: BaseException, run_dir: Path, way_on: str) -> UserError | None:
    """The message for the user where a write to the disk failed; None for other errors."""
    found = files.trouble(error)
    return found and UserError(found[0] or str(run_dir), found[1], f"{found[2]}; the same command then {way_on}")


def start_run(cfg: DictConfig, run_dir: Path, in_sweep: bool, start: float, group: Ranks) -> Trained:
    """Build the parts and train. `start` is when the run began, by `time.perf_counter`."""
    L.seed_everything(cfg.seed, verbose=False)
    try:
        parts = build(cfg, group, run_dir)
    except BaseException as error:
        leave = process.status_of_stop(error)
        write_result(run_dir, {"status": "stopped" if leave else "failed", "error": str(error), "git": git_revision()})
        if leave:
            print("stopped during set-up: the same command resumes, or starts from the beginning", flush=True)
            raise SystemExit(leave) from error
        try:
            trackers = ending.start_trackers(cfg, run_dir, in_sweep)  # so that they have every cell of a sweep
            ending.finish_trackers(trackers, run_dir, read_result(run_dir))
        except Exception:
            log.exception("the trackers have no record of this run")
        raise
    try:
        return train(cfg, parts, run_dir, in_sweep, start, group)
    finally:
        close(parts)


def follow(cfg: DictConfig, run_dir: Path, group: Ranks) -> None:
    """What every rank but the first does (see `ranks`): the same steps, without a record."""
    quiet()
    L.seed_everything(cfg.seed, verbose=False)
    parts = build(cfg, group)
    L.seed_everything(cfg.seed + group.index, verbose=False)  # from here on noise of its own, such as dropout
    try:
        snapshots = Snapshots(
            run_dir,
            cfg.resume_every,
            settings_text(cfg),
            parts.data,
            dict,
            anew=not cfg.resume,
            ranks=group,
            problems=parts.digests,
            is_sharded=parts.module.sharded,
        )
        record = record_of(cfg, parts, run_dir, snapshots, writes=False)
        budget = Budget(parts.clock, **limits(cfg, snapshots.rows), ranks=group)
        trainer = make_trainer(cfg, run_dir, group, [budget, record, snapshots, Heap()])
        if snapshots.state is not None:
            snapshots.put_back(trainer, parts.module, record)
        else:
            trainer.validate(parts.module, datamodule=parts.data, verbose=False)
        trainer.fit(parts.module, datamodule=parts.data)
    finally:
        close(parts)


def settings_text(cfg: DictConfig) -> str:
    """The settings that a snapshot must have for this run to resume from it."""
    return json.dumps(same_numbers(OmegaConf.to_container(cfg, resolve=True)))  # type: ignore[arg-type]


def limits(cfg: DictConfig, rows: Sequence[dict[str, float | int | None]]) -> dict[str, Any]:
    """The limits of the budget, and what was used of it before, by these rows of metrics."""
    sampled = sum(int(row.get("tokens/sampled") or 0) for row in rows)
    return {name: cfg.budget[name] for name in LIMITS} | {"already_sampled_tokens": sampled}


def train(cfg: DictConfig, parts: Parts, run_dir: Path, in_sweep: bool, start: float, group: Ranks = ALONE) -> Trained:
    """Train, evaluate and write the record, all but its end."""
    tests = parts.data.test_prompts
    columns = [f"accuracy/{test}" for test in tests]
    columns += [f"eval/{test}/{name}" for test in tests for name in parts.data.evaluator.names(test) if name != "accuracy"]
    columns += [f"reward/{name}" for name in getattr(parts.reward, "components", ())]
    result: dict[str, Any] = {"status": "failed", "git": git_revision()}
    base: Right = {}
    snapshots = Snapshots(
        run_dir,
        cfg.resume_every,
        settings_text(cfg),
        parts.data,
        lambda: {"result": dict(result), "base": base, "total_s": time.perf_counter() - start},
        anew=not cfg.resume,
        ranks=group,
        problems=parts.digests,
        is_sharded=parts.module.sharded,
    )
    trackers = ending.start_trackers(cfg, run_dir, in_sweep)  # before the record, which removes what an earlier attempt left
    record = record_of(cfg, parts, run_dir, snapshots, columns)
    budget = Budget(parts.clock, **limits(cfg, snapshots.rows), ranks=group)
    shown = [Progress(cfg.steps)] if group.first else []  # the others have the same terminal
    trainer = make_trainer(cfg, run_dir, group, [budget, record, snapshots, Heap(), *shown], trackers)
    print(sizes(cfg, parts, run_dir), flush=True)
    print(prompting.shown(parts.tokenizer, parts.data.problems_of_step(0)[0]), flush=True)
    if slow := slow_words(cfg):
        log.warning(slow)
    derived = derived_sizes(cfg, parts)
    if quick := quick_words(cfg, derived["parameters"]):
        print(quick, flush=True)
    device = device_name(trainer.strategy.root_device)
    result["device"] = device if group.size == 1 else f"{group.size} x {device}"
    result |= {f"sizes/{name}": size for name, size in derived.items()}
    result |= {f"{DIGEST}{name}": digest for name, digest in parts.digests.items()}
    for line in with_other_problems(run_dir, cfg, parts.digests) if in_sweep else ():
        log.warning(line)
    try:
        if snapshots.state is not None:
            snapshots.put_back(trainer, parts.module, record)
            more = snapshots.state["more"]
            result |= {k: v for k, v in more["result"].items() if k.endswith("/base")}
            base, start = more["base"], start - more["total_s"]
            if str(result["git"]) not in str(more["result"]["git"]).split(" then "):
                result["git"] = f"{more['result']['git']} then {result['git']}"  # which the report warns of
            print(f"resumes after outer step {snapshots.step} (resume=false starts from the beginning)", flush=True)
        else:
            trainer.validate(parts.module, datamodule=parts.data, verbose=False)
            record.write_base(parts.module, trainer)
            result |= {f"{name}/base": value for name, value in evaluated(parts.module).items()}
            base = parts.module.right
        trainer.fit(parts.module, datamodule=parts.data)
        check_trained(record.rows)
        assert parts.module.accuracy_version == parts.module.policy_version, "the last step was not evaluated"
        result |= {f"{name}/final": value for name, value in evaluated(parts.module).items()}
        write_problems(run_dir, base, parts.module.right, parts.data.test_prompts)
        result |= {"status": ENDING, "stopped_by": budget.reached}
        process.stay_to_the_end()
    except BaseException as error:
        if leave := process.status_of_stop(error):
            result["status"] = "stopped"
            print(f"stopped: the same command {snapshots.way_on()}", flush=True)
            raise SystemExit(leave) from error
        told = disk_error(error, run_dir, snapshots.way_on())
        result["error"] = f"{type(told or error).__name__}: {told or error}"
        if told:
            raise told from error
        raise
    finally:
        result |= totals(parts, record, time.perf_counter() - start)
        try:
            write_result(run_dir, result)
            if result["status"] != ENDING:
                ending.finish_trackers(trackers, run_dir, result)
        except OSError as error:
            if result["status"] == ENDING:
                raise
            log.warning("result.json was not written: %s", error)  # the error that ended the run is the one to report
    return result, record.rows, trackers


def evaluated(module: PolicyModule) -> dict[str, float | None]:
    """The last evaluation: `accuracy/TEST`, and `eval/TEST/...` with the ends of each 95% interval."""
    return {**{f"accuracy/{name}": value for name, value in module.accuracy.items()}, **module.evaluation}


def write_problems(run_dir: Path, base: Right, final: Right, tests: Mapping[str, Sequence[Prompt]]) -> None:
    """`problems.csv`: whether the greedy completion of each test problem was right, before training and after it, and the
    problem's digest.
    """
    with files.whole(run_dir / "problems.csv", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["test", "problem", "base", "final", "digest"])
        for test, right in final.items():
            digest = {prompt.problem.id: digests.of_problem(prompt.problem) for prompt in tests[test]}
            writer.writerows([test, p, int(base[test][p]), int(right[p]), digest[p]] for p in right)


def totals(parts: Parts, record: RunRecord, total_s: float) -> dict[str, Any]:
    """Seconds by phase and the counts of the whole run."""
    result: dict[str, Any] = {"time/total_s": round(total_s, 3)}
    result["time/elapsed_s"] = record.rows[-1]["time/elapsed_s"] if record.rows else 0.0
    result["steps"] = len(record.rows) - 1 if record.rows else 0
    result["optimizer_steps"] = parts.module.policy_version
    result |= {f"time/{phase}_s": round(parts.clock.seconds[phase], 3) for phase in PHASES}
    result |= {f"time/{side}_idle_s": round(parts.clock.idle[side], 3) for side in SIDES}
    result |= {f"time/{name}_s": round(parts.clock.snapshot[name], 3) for name in SNAPSHOT}
    counts = ["tokens/sampled", "tokens/trained", "completions/sampled", "completions/kept", "score/timeouts", "score/errors"]
    counts += ["optimizer/skipped_steps", "select/skipped_prompts", "select/screened_out_prompts"]
    for name in counts:
        result[name] = sum(int(row.get(name) or 0) for row in record.rows)
    watch = parts.module.watch
    result |= {f"watch/{name}": count for name, count in watch.counts.items()} | {"watch/stopped_by": watch.stopped_by}
    result |= {"eval/timeouts": parts.data.eval_timeouts, "eval/errors": parts.data.eval_errors}
    return result


def git_revision() -> str | None:
    """Commit of the source, with "+changes" where the working tree differs from it; None outside a checkout."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(Path(__file__).parent), *arguments]
        return subprocess.run(command, capture_output=True, encoding="utf-8", errors="replace", check=True).stdout.strip()

    try:
        return git("rev-parse", "HEAD") + ("+changes" if git("status", "--porcelain", "-uno") else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def quiet() -> None:
    """Silence warnings of Lightning and others about choices that are deliberate here."""
    for name in ("lightning.pytorch", "matplotlib", "httpx"):
        logging.getLogger(name).setLevel(logging.WARNING)
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # PEFT looks for it, and it for kernels that it can do without
    transformers.utils.logging.disable_progress_bar()
    for message in (
        "does not have many workers",
        "`IterableDataset` has `__len__`",
        "LeafSpec",
        "in eval mode at the start",
        "Detected call of `lr_scheduler.step",  # where the watch left the first optimizer step out
        "The `srun` command is available",  # on a cluster, where a launcher has used it
        "It is recommended to use `self.log",  # vLLM in this process makes a process group of one
    ):
        warnings.filterwarnings("ignore", f".*{message}")
