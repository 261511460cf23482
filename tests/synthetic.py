"""Run folders as a sweep leaves them, with numbers that a test chooses."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml

from dash_exp.commands import cli
from dash_exp.results.cells import Cell, Results

_composed: dict[tuple[str, ...], dict[str, Any]] = {}


def config(*overrides: str) -> dict[str, Any]:
    """The resolved configuration of train.py; composed once for each."""
    if overrides not in _composed:
        _composed[overrides] = cli.settings(list(overrides))
    return copy.deepcopy(_composed[overrides])


def write_cell(
    folder: Path,
    overrides: Sequence[str],
    in_dist: Sequence[int] = (1, 1, 1, 0),
    out_dist: Sequence[int] = (1, 0, 0, 0),
    base: Sequence[int] = (1, 0, 0, 0),
    seconds: float = 100.0,
    curve: Sequence[float] | None = None,
    status: str = "done",
    result: Mapping[str, Any] | None = None,
    settings: Mapping[str, Any] | None = None,
    completion: str = "3+4=7 A:7",
    digests: Sequence[str] | None = None,
) -> Path:
    """A finished run. `in_dist`, `out_dist`, `base`: 1 for each test problem that is right at the end, or before training.

    `curve` is the accuracy in distribution after each outer step, the base model's first; `seconds` are spread evenly over
    the steps, which sample 100 tokens each. `settings` changes top-level sections of the configuration. `digests`: of the test
    problems; None as in a run of an earlier version.
    """
    folder.mkdir(parents=True)
    (folder / ".hydra").mkdir()
    (folder / ".hydra" / "overrides.yaml").write_text(yaml.safe_dump(list(overrides)))
    seed = next((int(o.removeprefix("seed=")) for o in overrides if o.startswith("seed=")), 0)
    of_program = (o for o in overrides if not o.startswith(("seed=", "own.")))  # not those of the sweep file itself
    cfg = config(*of_program) | {"seed": seed} | dict(settings or {})
    (folder / "config.yaml").write_text(yaml.safe_dump(cfg, sort_keys=False))
    curve = [float(np.mean(base)), *np.linspace(0.3, 0.6, 2), float(np.mean(in_dist))] if curve is None else curve
    metrics(curve, float(np.mean(base)), float(np.mean(out_dist)), seconds).to_csv(folder / "metrics.csv", index=False)
    finals = {"in_dist": in_dist, "out_dist": out_dist}
    problems = pd.DataFrame(
        [(t, f"{t}/{i}", b, f) for t, rights in finals.items() for i, (b, f) in enumerate(zip(base, rights, strict=True))],
        columns=["test", "problem", "base", "final"],
    )
    if digests is not None:
        problems["digest"] = [*digests] * len(finals)
        result = {f"digest/data.tests.{test}": "".join(digests) for test in finals} | dict(result or {})
    problems.to_csv(folder / "problems.csv", index=False)
    (folder / "completions").mkdir()
    lines = [
        {"problem": "p", "prompt": "3+4=", "completion": text, "answer": "7", "reward": r, "advantage": a, "kept": k}
        for text, r, a, k in ((completion, 1.0, 0.5, True), ("A:8", 0.0, -0.05, False))
    ]
    file = folder / "completions" / f"step_{len(curve) - 1:05d}.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "result.json").write_text(
        json.dumps(finished(base, finals, seconds, len(curve) - 1, status) | dict(result or {}))
    )
    return folder


def metrics(curve: Sequence[float], base: float, out_dist: float, seconds: float) -> pd.DataFrame:
    steps = np.arange(len(curve))
    first = steps == 0
    columns = {
        "step": steps,
        "accuracy/in_dist": curve,
        "accuracy/out_dist": np.linspace(base, out_dist, len(curve)),
        "time/elapsed_s": seconds * steps / max(1, len(curve) - 1),
        "policy/version": steps,
        "tokens/sampled": np.where(first, np.nan, 100.0),
    }
    drawn = {"reward/mean": curve, "length/mean_tokens": 20 + steps, "advantage/abs_mean": 0.5 - 0.001 * steps}
    drawn |= {"filter/kept_fraction": 0.7 + 0 * steps, "kl/ref_nats_per_token": 0.01 * steps, "grad/norm": 1.0 / (1 + steps)}
    return pd.DataFrame(columns | {name: np.where(first, np.nan, y) for name, y in drawn.items()})


def finished(
    base: Sequence[int], finals: Mapping[str, Sequence[int]], seconds: float, steps: int, status: str
) -> dict[str, Any]:
    """`result.json`: half of the time is sampling, a quarter updating, and evaluation comes on top."""
    found: dict[str, Any] = {"status": status, "git": "a" * 40, "device": "Some CPU, 2 thread(s)", "sizes/parameters": 1000}
    for test, rights in finals.items():
        found |= {f"accuracy/{test}/base": float(np.mean(base)), f"accuracy/{test}/final": float(np.mean(rights))}
        found |= {f"eval/{test}/length/mean_tokens/{when}": 20.0 for when in ("base", "final")}
    found |= {"time/sample_s": seconds / 2, "time/score_s": 0.0, "time/update_s": seconds / 4, "time/sync_s": 0.0}
    found |= {"time/eval_s": 10.0, "time/elapsed_s": seconds, "time/total_s": seconds + 10.0}
    found |= {"tokens/sampled": 100 * steps, "tokens/trained": 70 * steps, "steps": steps, "stopped_by": None}
    return found | {"completions/sampled": 10 * steps, "completions/kept": 7 * steps, "optimizer_steps": steps}


def in_memory(rights: Mapping[str, np.ndarray]) -> Results:
    """Cells without folders: arm -> (seeds, problems) of 0 and 1 at the end; the base model is wrong everywhere."""
    cells = []
    for arm, right_SP in rights.items():
        names = [f"p{i}" for i in range(right_SP.shape[1])]
        for seed, right_P in enumerate(right_SP):
            table = pd.DataFrame({"test": "in_dist", "problem": names, "base": 0, "final": right_P})
            result = {"accuracy/in_dist/final": float(right_P.mean()), "accuracy/in_dist/base": 0.0}
            overrides = {"algo": arm, "seed": str(seed)}
            cell = Cell(Path(f"{arm}-{seed}"), overrides, "done", {"seed": seed}, result)
            vars(cell)["problems"] = table  # as if it had been read
            cells.append(cell)
    return Results(cells)
