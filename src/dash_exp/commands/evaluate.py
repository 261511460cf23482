"""Evaluate a checkpoint of a run, or any model, on the test sets of a data set.

    python -m dash_exp.evaluate RUN_OR_MODEL [name=value ...]

RUN_OR_MODEL  a run folder, whose data, reward and sampling settings are taken over, or a Transformers folder or hub name
k=[1,8]       also pass@k, for each k
n=8           completions sampled of each problem, for pass@k, avg@n and maj@n; the largest k where it is not given
temperature=0.7 top_p=0.95     of the sampled completions
checkpoint=last                of a run: last, best, or base (the model that it started from)
limit=100     the first problems of each test set alone
seed=0        of the sampled completions; that of the run where it is not given
out=FILE.json default: evaluation.json in the run folder, or in the current folder; the completions go into FILE.jsonl

Greedy accuracy is always measured. Any other setting of train.py can be given: data=gsm8k data.path=DIR reward=math
rollout.max_response_tokens=512 trainer=gpu model.compute_dtype=bfloat16 eval.prompts=64.
"""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from dash_exp.commands import cli
from dash_exp.core import process
from dash_exp.core.errors import UserError
from dash_exp.core.files import write_whole
from dash_exp.settings.validate import validate

if TYPE_CHECKING:  # they bring torch, which is loaded when the command has been found good
    from dash_exp.core.types import Prompt
    from dash_exp.evaluation.evaluator import Evaluation, Evaluator

CHECKPOINTS = ("last", "best", "base")
# What the choice of a group on the command line replaces of a run's settings; data brings its reward.
SECTIONS = {
    "data": ("data", "reward"),
    "reward": ("reward",),
    "rollout": ("rollout",),
    "model": ("model",),
    "trainer": ("trainer",),
    "experiment": ("data", "reward", "rollout", "model", "trainer", "eval"),
}


@dataclass(frozen=True)
class Command:
    """The command line: what is evaluated, the settings of the evaluation itself, and overrides of the configuration."""

    target: str
    overrides: list[str]
    k: tuple[int, ...] = ()
    n: int = 0
    temperature: float = 0.7
    top_p: float = 0.95
    checkpoint: str | None = None
    out: str | None = None


def main() -> None:
    command = parse(cli.help_or_arguments(__doc__))
    cfg = configuration(command)
    out = output(command)
    run(cfg, command, out)


# --- the command line and the configuration ----------------------------------------------------------------------------


def parse(arguments: Sequence[str]) -> Command:
    """The command line taken apart and checked. The first argument is the target: folders of sweeps have = in their names."""
    target, rest = arguments[0], arguments[1:]
    if target.startswith("-") or ("=" in target and not Path(target).expanduser().is_dir()):
        raise UserError(target, "is no run folder and no model", "Name one first; see --help")
    own: dict[str, str] = {}
    overrides = []
    for argument in rest:
        name, equals, value = argument.partition("=")
        if not equals and not name.startswith("~"):
            raise UserError(argument, "is not of the form name=value", f"Only {target} is evaluated; see --help")
        if name in ("k", "n", "temperature", "top_p", "checkpoint", "out"):
            own[name] = value.strip()
        else:
            overrides.append(f"eval.limit={value}" if name == "limit" else argument)
    k = tuple(sorted({_whole("k", v, 1) for v in own["k"].strip("[]() ").split(",")})) if "k" in own else ()
    n = _whole("n", own["n"], 0) if "n" in own else max(k, default=0)
    if k and k[-1] > n:
        raise UserError(f"k={k[-1]}", f"is more than n={n} completions of each problem", f"Raise n to {k[-1]}, or lower k")
    checkpoint = own.get("checkpoint")
    if checkpoint is not None and checkpoint not in CHECKPOINTS:
        raise UserError(f"checkpoint={checkpoint}", "is not known", f"Use one of {', '.join(CHECKPOINTS)}")
    return Command(
        target=target,
        overrides=overrides,
        k=k,
        n=n,
        temperature=_number("temperature", own.get("temperature", "0.7"), math.inf),
        top_p=_number("top_p", own.get("top_p", "0.95"), 1.0),
        checkpoint=checkpoint,
        out=own.get("out"),
    )


def configuration(command: Command) -> DictConfig:
    """The settings of train.py by which the target is evaluated; `model.path` is the target's. Checked, nothing loaded."""
    for override in command.overrides:
        if override.startswith(("eval.n=", "eval.k=", "eval.temperature=", "eval.top_p=")):
            raise UserError(override, "is a setting of training", f"Write {override.removeprefix('eval.')}")
        if override.startswith(("model.path=", "model.architecture=")):
            raise UserError(override, f"{command.target} is what is evaluated", "Leave it out, or name another model first")
    target = Path(command.target).expanduser()
    if _is_run(target):
        cfg = _of_run(target, command.overrides)
        path, own_tokenizer = _checkpoint(target, command.checkpoint or "last", cfg)
    else:
        if command.checkpoint:
            raise UserError(f"checkpoint={command.checkpoint}", f"{command.target} is no run folder", "Leave it out")
        _check_model(command.target)
        cfg = cli.composed(command.overrides)
        path, own_tokenizer = str(target) if target.is_dir() else command.target, True
    if own_tokenizer and not any(o.startswith("model.tokenizer=") for o in command.overrides):
        cfg.model.tokenizer = path
    cfg.model.path, cfg.model.architecture = path, None
    if "adapter" in cfg.model:  # a run of an earlier version does not have it
        cfg.model.adapter = None  # one that was trained is merged into its base
    validate(cfg)
    return cfg


def output(command: Command) -> Path:
    """The file of results. What is there already is never overwritten."""
    target = Path(command.target).expanduser()
    path = Path(command.out).expanduser() if command.out else (target if _is_run(target) else Path()) / "evaluation.json"
    if path.suffix != ".json":
        raise UserError(f"out={command.out}", "is not the name of a .json file", "Write out=FILE.json")
    for file in (path, path.with_suffix(".jsonl"), picture(path)):
        if file.exists():
            raise UserError(str(file), "is there already", "Remove it, or write out=OTHER.json")
    return path


def picture(out: Path) -> Path:
    """Where the curve of pass@k goes."""
    return out.with_name("pass_at_k.png" if out.stem == "evaluation" else f"{out.stem}-pass_at_k.png")


def _of_run(folder: Path, overrides: list[str]) -> DictConfig:
    """The settings of a run, changed by the command line.

    Hydra keeps them with their references (`data.tests.in_dist.path: ${data.path}`) in .hydra. In config.yaml these are
    resolved, and to change a value there would not change what referred to it.
    """
    with_references = folder / ".hydra" / "config.yaml"
    cfg = OmegaConf.load(with_references if with_references.is_file() else folder / "config.yaml")
    assert isinstance(cfg, DictConfig)
    parsed = OverridesParser.create().parse_overrides(overrides)
    groups = [o for o in parsed if (cli.conf_folder() / o.key_or_group).is_dir()]
    values = [o for o in parsed if o not in groups]
    for override in values:
        if override.is_sweep_override():
            raise UserError(str(override.input_line), "has several values", "Evaluate one after the other")
        if (
            override.key_or_group.startswith("data.")
            and not with_references.is_file()
            and "data" not in {g.key_or_group for g in groups}
        ):
            raise UserError(
                str(override.input_line),
                f"{with_references} is gone, so what depends on this value is not known",
                f"Choose the data set as well: data={OmegaConf.select(cfg, 'data.name')}",
            )
    if "rollout" in cfg:  # a run of an earlier version does not have all of its settings
        cfg.rollout = OmegaConf.merge(cli.composed().rollout, cfg.rollout)
    chosen = cli.composed([str(o.input_line) for o in groups])
    for group in groups:
        if group.key_or_group == "test":  # +test@data.tests.NAME=OPTION
            OmegaConf.update(cfg, str(group.package), OmegaConf.select(chosen, str(group.package)), force_add=True)
        elif group.key_or_group not in SECTIONS:
            raise UserError(str(group.input_line), "has no part in evaluation", "Leave it out")
    for section in [s for group in groups for s in SECTIONS.get(group.key_or_group, ())]:
        cfg[section] = OmegaConf.to_container(chosen[section])
    OmegaConf.set_struct(cfg, True)
    ConfigLoaderImpl._apply_overrides_to_config(values, cfg)
    return cfg


def _is_run(folder: Path) -> bool:
    return (folder / "config.yaml").is_file()


def _checkpoint(run: Path, which: str, cfg: DictConfig) -> tuple[str, bool]:
    """The model folder of a run's checkpoint, and whether its tokenizer lies there too."""
    if which == "base":
        if cfg.model.architecture:
            raise UserError("checkpoint=base", f"{run} started from random weights, which were not kept", "Use last or best")
        return str(cfg.model.path), False
    folder = run / "checkpoints" / which
    if not _is_model(folder):
        there = ", ".join(sorted(p.name for p in (run / "checkpoints").glob("*/") if _is_model(p)))
        raise UserError(
            str(run),
            f"has no checkpoint {which} (there: {there or 'none'})",
            f"Use checkpoint={there.split(', ')[0]}" if there else "Use a run that has ended",
        )
    return str(folder), True


def _check_model(target: str) -> None:
    """A folder must hold a model; what can only be a path must be there. Anything else is a hub name."""
    folder = Path(target).expanduser()
    if folder.is_dir():
        if not _is_model(folder):
            raise UserError(target, "is no run folder (config.yaml) and no Transformers folder (config.json)", "Name another")
    elif folder.exists() or target.startswith((".", "/", "~")) or target.count("/") > 1:
        raise UserError(target, "there is no such folder", "Name a run folder, a Transformers folder or a hub name")


def _is_model(folder: Path) -> bool:
    return any((folder / file).is_file() for file in ("config.json", "adapter_config.json"))


def _whole(name: str, text: str, least: int) -> int:
    try:
        value = int(text)
    except ValueError:
        value = least - 1
    if value < least:
        hint = " or several as k=[1,8]" if name == "k" else ""
        raise UserError(f"{name}={text}", f"is not a whole number of at least {least}", f"Write {name}=8{hint}")
    return value


def _number(name: str, text: str, most: float) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not (0 < value <= most and math.isfinite(value)):
        wanted = "above 0" + (f" and at most {most:g}" if math.isfinite(most) else "")
        raise UserError(f"{name}={text}", f"is not a number {wanted}", "Greedy accuracy is measured in any case")
    return value


# --- the evaluation ----------------------------------------------------------------------------------------------------


def run(cfg: DictConfig, command: Command, out: Path) -> dict[str, Any]:
    """Evaluate on every test set and write the results, which are also returned."""
    with process.importing():
        from dash_exp.commands.run import git_revision, quiet
        from dash_exp.evaluation.evaluator import evaluate
        from dash_exp.results.plots import plot_pass_at_k
        from dash_exp.results.summary import evaluation_table

    start = time.perf_counter()
    quiet()
    tests, evaluator = build(cfg, command)
    sampled = f"{command.n} completion(s) each at temperature {command.temperature:g}, top-p {command.top_p:g}, seed {cfg.seed}"
    print(f"{cfg.model.path} on {cfg.data.name}: greedy{f', and {sampled}' if command.n else ''}", flush=True)
    result: dict[str, Any] = {
        "settings": {
            "model": cfg.model.path,
            "target": command.target,
            "n": command.n,
            "k": list(command.k),
            "temperature": command.temperature if command.n else None,
            "top_p": command.top_p if command.n else None,
            "seed": cfg.seed,
            "max_response_tokens": cfg.rollout.max_response_tokens,
            "limit": cfg.eval.limit,
            "data": OmegaConf.to_container(cfg.data, resolve=True),
            "reward": OmegaConf.to_container(cfg.reward, resolve=True),
            "git": git_revision(),
        },
        "tests": {},
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    rows = out.with_suffix(".jsonl")
    try:
        for name, prompts in tests.items():
            progress = Progress(name, len(prompts))
            # as many completions at a time as training evaluates
            done = evaluate(prompts, evaluator, max(1, cfg.eval.prompts // max(1, command.n)), progress)
            progress.close()
            summary = done.summary()
            counts = {"problems": len(prompts), "timeouts": done.timeouts, "errors": done.errors}
            result["tests"][name] = {**counts, **summary}
            print(evaluation_table(name, len(prompts), summary), flush=True)
            if done.timeouts or done.errors:
                print(f"  gradings that did not come to an end: {done.timeouts} time-outs, {done.errors} errors", flush=True)
            with rows.open("a", encoding="utf-8") as file:
                file.writelines(json.dumps({"test": name, **row}, ensure_ascii=False) + "\n" for row in per_problem(done))
            result["time/total_s"] = round(time.perf_counter() - start, 3)
            write_whole(out, json.dumps(result, indent=2) + "\n")
    finally:
        evaluator.sampler.close()
        if hasattr(evaluator.reward, "close"):
            evaluator.reward.close()
    if len(command.k) > 1:
        plot_pass_at_k(result["tests"], command.k, picture(out))
    print(f"results {out}, completions {rows}", flush=True)
    return result


def build(cfg: DictConfig, command: Command) -> tuple[dict[str, list[Prompt]], Evaluator]:
    """The test sets as the model will see them, and the evaluator. The model is loaded last."""
    import torch

    from dash_exp.evaluation.evaluator import Evaluator
    from dash_exp.models import loading
    from dash_exp.rewards.base import check_problems
    from dash_exp.sampling.base import Sampling
    from dash_exp.training.rollout import tokenized

    device = "cpu"
    if cfg.trainer.accelerator == "gpu":
        device = "cuda" if torch.cuda.is_available() else "mps"
        if device == "mps" and not torch.backends.mps.is_available():
            raise UserError("trainer.accelerator=gpu", "torch finds no GPU on this machine", "Use trainer=cpu")
    loading.check_folder(cfg.model.path)
    trust = cfg.model.get("trust_remote_code", False)  # a run of an earlier version does not have it
    tokenizer = loading.load_tokenizer(cfg.model.tokenizer, trust_remote_code=trust)
    problems = {name: instantiate(test) for name, test in cfg.data.tests.items() if test is not None}
    reward = instantiate(cfg.reward)
    check_problems(reward, [p for test in problems.values() for p in test])
    policy = loading.load_policy(
        cfg.model.path, cfg.model.dtype, attn_implementation=cfg.model.attn_implementation, trust_remote_code=trust
    )
    loading.check_vocabulary(policy, tokenizer, cfg.model.path)
    torch.nn.Module.to(policy, device)
    compute_dtype = getattr(torch, cfg.model.compute_dtype)
    sampler = instantiate(cfg.rollout.sampler)(policy=policy, tokenizer=tokenizer, compute_dtype=compute_dtype)
    sampler.load_weights(policy.state_dict(), 0)
    max_tokens = cfg.rollout.max_response_tokens
    context = loading.context_length(policy, cfg.rollout.sampler.get("max_model_len"))
    tests = {
        name: tokenized(test[: cfg.eval.limit], tokenizer, context, max_tokens, f"data.tests.{name}")
        for name, test in problems.items()
    }
    evaluator = Evaluator(
        sampler=sampler,
        reward=reward,
        tokenizer=tokenizer,
        greedy=Sampling(max_tokens, temperature=0.0),
        n=command.n,
        k=command.k,
        sampling=Sampling(max_tokens, command.temperature, command.top_p) if command.n else None,
        seed=cfg.seed,
    )
    return tests, evaluator


def per_problem(done: Evaluation) -> list[dict[str, Any]]:
    """One record per problem: its completions and what was made of them."""
    votes = done.votes()
    rows = []
    for p, problem in enumerate(done.problems):
        row: dict[str, Any] = {"problem": problem.id, "prompt": problem.prompt, "answer": problem.answer}
        for name, graded in (("greedy", done.greedy), ("sampled", done.sampled)):
            if graded is not None:
                each = graded.of_problem(p)
                lists = ("texts", "rewards", "correct", "tokens", "truncated", "answers")
                row[name] = {key: getattr(graded, key)[each] for key in lists if getattr(graded, key) is not None}
        if votes is not None:
            row["majority"] = float(votes[p])
        rows.append(row)
    return rows


class Progress:
    """Problems done and accuracy so far: a bar on a terminal, a line every `line_every_s` seconds elsewhere."""

    def __init__(self, name: str, total: int, line_every_s: float = 10.0) -> None:
        from tqdm import tqdm

        self.name, self.total, self.line_every_s = name, total, line_every_s
        self.bar = (
            tqdm(total=total, desc=name, unit="problem", dynamic_ncols=True, leave=False) if sys.stderr.isatty() else None
        )
        self._start = self._last_line = time.perf_counter()

    def __call__(self, done: int, so_far: Evaluation) -> None:
        says = f"accuracy {100 * so_far.accuracy:.1f}%"
        if self.bar is not None:
            self.bar.set_postfix_str(says, refresh=False)
            self.bar.update(done - self.bar.n)
            return
        now = time.perf_counter()
        if now - self._last_line >= self.line_every_s and done < self.total:
            from dash_exp.core.words import duration

            left_s = (now - self._start) / done * (self.total - done)
            print(f"{self.name} {done}/{self.total}  {says}  left {duration(left_s)}", flush=True)
            self._last_line = now

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()
