r"""Time to an accuracy, compared with TRL: same base model, order of problems, number of completions, optimizer and test.

    python benchmarks/peers.py                              # needs pip install -e '.[peers]'
    python benchmarks/peers.py --arms dash,trl --seeds 1    # a part of it
    python benchmarks/peers.py --ranks 2 --coupled-batch 8 --steps 40 batch.prompts=32 schedule.name=linear  # the paper's sizes
    python benchmarks/peers.py --ranks 2 --coupled-batch 8 --steps 80 --target 0.9 batch.prompts=32 schedule.name=linear \
        'data.train.operands=[3,3]' data.train.size=4000 '+data.tests.in_dist.operands=[3,3]'    # to 90%: chains of 3 numbers
    python benchmarks/peers.py --only-time model=... trainer=gpu    # settings of train.py for all arms; random rewards
    python benchmarks/peers.py --dtypes float32,bfloat16 --trl-attention sdpa,eager --trl-batch 32 --target 0.2 \
        model=smollm2-135m data=sums batch.prompts=16 batch.group_size=8    # a real model

TRL's GRPOTrainer is run in two ways (`peers_trl.py`): `trl_coupled` samples `--coupled-batch` completions just before each
backward pass (the paper's baseline), and `trl` samples once for each optimizer step, as TRL does today. If TRL's defaults
would make it slow here (gradient checkpointing, micro-batches of 8), it gets better settings. Every run has its own process.
Only one process runs at a time; the arms of one seed run one after the other. Finished runs are kept in `--out` and not
repeated.

All arms keep weights in `model.dtype`. They compute matrix products in the type that `--dtypes` gives, TRL with that attention
of Transformers which `--trl-attention` names. Of several each arm takes two steps in each way, and then uses that in which the
second step took least time by token; the table names it. Without these options it is `model.compute_dtype` and `sdpa`. In TRL
attention computes in this type too, and `sdpa` is slow in bfloat16 on CPUs.

Accuracy is measured on two completions of each test problem at temperature 1, every second step, with the same code for all
arms, and does not count as time. Greedy accuracy says little here: it is near 90% after two steps and then falls.

Writes `runs.csv`, `ratios.csv` (each run divided by the run of TRL with the same seed: median, lowest, highest) and
`curves.png`. Times are given by step and by sampled token, because completions of the arms grow apart in length.
"""

from __future__ import annotations

import argparse
import itertools
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from memory import count
from peak_memory import ROOT
from peers_table import OURS, TRL, by_token, read, report

from dash_exp.commands import cli
from dash_exp.settings.overrides import number_of_kl

SETTINGS = [
    "kl=0",
    "schedule.name=constant",
    "logger=csv",
    "data.tests.out_dist=null",
    "resume_every=null",
    "resume=false",
]
OF_DEFAULT = {"model": "model.lr=3e-4"}  # by group: for its default file alone, as another model has a learning rate of its own
# A group of its own, because options of a reward (`~reward.pattern`) are there only with the reward that has them.
ONLY_TIME = [f"hydra.searchpath=['file://{ROOT}/benchmarks/conf']", "reward=coin", "eval.every=1000000", "eval.limit=1"]
EVALUATION = ["eval.every=2", "eval.n=2", "eval.temperature=1", "eval.top_p=1"]
TRIED = ["steps=2", "eval.every=1000000", "eval.limit=1"]  # to choose a number type: a warm-up, and the step that counts


def main() -> None:
    options, settings = parsed()
    out = options.out.resolve()
    settings = complete(options, settings)
    ways = {arm: fastest(arm, out, options, settings) for arm in options.arms}
    todo = [(arm, seed) for seed in range(options.seeds) for arm in options.arms]
    for i, (arm, seed) in enumerate(todo, 1):
        seconds = finished(arm, seed, out / arm / str(seed), options, [*settings, *ways[arm]])
        if seconds is not None:
            print(f"[{i}/{len(todo)}] {arm}, seed {seed}: {seconds:.0f} s in total", flush=True)
    default = cli.composed(number_of_kl(settings)).model.compute_dtype
    computed = {arm: ", ".join(setting.partition("=")[2] for setting in way) or default for arm, way in ways.items()}
    report(out, options, count(number_of_kl(settings)), computed)


def parsed() -> tuple[argparse.Namespace, list[str]]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("outputs/peers"))
    parser.add_argument("--arms", type=names, default=["dash", "no_gf", "grpo", *TRL], help=f"of {', '.join([*OURS, *TRL])}")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=20, help="optimizer steps")
    parser.add_argument("--target", type=float, default=0.7, help="accuracy on the test problems, sampled at temperature 1")
    parser.add_argument("--dtypes", type=names, default=[], help="number types of matrix products that each arm tries")
    parser.add_argument("--trl-attention", type=names, default=[], help="attention of Transformers that TRL tries")
    parser.add_argument("--trl-batch", type=int, default=64, help="completions per micro-batch of the arm trl")
    parser.add_argument("--coupled-batch", type=int, default=16, help="completions per micro-batch of trl_coupled")
    parser.add_argument("--ranks", type=int, default=1, help="processes of each run; they share its completions")
    parser.add_argument(
        "--only-time", action="store_true", help="measure no accuracy and leave out the first step: for random weights"
    )
    options, settings = parser.parse_known_args()
    if unknown := set(options.arms) - {*OURS, *TRL}:
        parser.error(f"--arms: unknown: {', '.join(sorted(unknown))}; the choices are {', '.join([*OURS, *TRL])}")
    if unknown := set(options.dtypes) - {"float32", "bfloat16"}:
        parser.error(f"--dtypes: unknown: {', '.join(sorted(unknown))}; the choices are float32, bfloat16")
    if unknown := set(options.trl_attention) - {"sdpa", "eager", "flash_attention_2"}:
        parser.error(f"--trl-attention: unknown: {', '.join(sorted(unknown))}; the choices are sdpa, eager, flash_attention_2")
    if wrong := [name for name in ("trl_batch", "coupled_batch") if getattr(options, name) % options.ranks]:
        parser.error(
            f"--{wrong[0].replace('_', '-')}={getattr(options, wrong[0])} cannot be divided among {options.ranks} ranks"
        )
    if options.ranks > 1 and (wrong := [arm for arm in options.arms if arm.endswith("_vllm")]):
        parser.error(f"--arms: {wrong[0]} samples with one engine, which --ranks={options.ranks} cannot share")
    if options.only_time and options.steps < 2:
        parser.error(f"--steps={options.steps}: --only-time leaves the first step out; use at least 2")
    if wrong := [s for s in settings if "=" not in s and s[0] != "~"]:
        parser.error(f"{wrong[0]}: write settings of train.py as KEY=VALUE")
    return options, settings


def names(text: str) -> list[str]:
    return text.split(",")


def complete(options: argparse.Namespace, settings: Sequence[str]) -> list[str]:
    """The settings of all runs: those of this benchmark, then those that were given."""
    chosen = {setting.partition("=")[0] for setting in settings}
    of_default = [setting for group, setting in OF_DEFAULT.items() if group not in chosen]
    measured = ONLY_TIME if options.only_time else EVALUATION
    return [*SETTINGS, *of_default, *measured, f"steps={options.steps}", *settings]


def fastest(arm: str, out: Path, options: argparse.Namespace, settings: Sequence[str]) -> list[str]:
    """The settings by which the arm computes: the given ones, the fastest of several, or none."""
    attentions = options.trl_attention if arm in TRL else []
    of_setting = {"model.compute_dtype": options.dtypes, "model.attn_implementation": attentions}
    given = [[f"{name}={value}" for value in values] for name, values in of_setting.items() if values]
    ways = [list(way) for way in itertools.product(*given)]
    if len(ways) == 1:
        return ways[0]
    times = {}
    for way in ways:
        name = "-".join(setting.partition("=")[2] for setting in way)
        folder = out / "tried" / arm / name
        finished(arm, 0, folder, options, [*settings, *TRIED, *way])
        times[name] = by_token(read(folder)[1:])["step_ms_per_token"]
    print(f"{arm}: " + ", ".join(f"{name} {ms:.2f} ms a token" for name, ms in times.items()), flush=True)
    return ways[min(range(len(ways)), key=list(times.values()).__getitem__)]


def command_of(arm: str, seed: int, folder: Path, options: argparse.Namespace, settings: Sequence[str]) -> list[str]:
    """The command line of a run, without the interpreter."""
    if arm in OURS:
        return [
            "benchmarks/peak_memory.py",
            f"{folder}/memory.json",
            *OURS[arm],
            *([] if options.ranks == 1 else ["trainer=ddp", f"trainer.devices={options.ranks}"]),
            *settings,
            f"seed={seed}",
            f"hydra.run.dir='{folder}'",
        ]
    launcher = ["-m", "torch.distributed.run", f"--nproc-per-node={options.ranks}"] if options.ranks > 1 else []
    coupled = arm == "trl_coupled"
    batch = options.coupled_batch if coupled else options.trl_batch
    command = [*launcher, "benchmarks/peers_trl.py", f"--out={folder}", f"--ranks={options.ranks}", f"--batch={batch}"]
    return [*command, *["--coupled"] * coupled, *settings, f"seed={seed}"]


def done(folder: Path, command: list[str]) -> bool:
    """Whether the run is finished. If it has other settings, the benchmark stops: both cannot be in one table."""
    if not (folder / "peak.json").exists():
        return False
    if json.loads((folder / "peak.json").read_text())["command"] != command:
        sys.exit(f"error: {folder} contains a run with other settings. Use another --out, or delete it")
    return True


def finished(arm: str, seed: int, folder: Path, options: argparse.Namespace, settings: Sequence[str]) -> float | None:
    """Run it, unless it is finished. Returns its seconds."""
    command = command_of(arm, seed, folder, options, settings)
    return None if done(folder, command) else one_run(arm, command, folder)


def one_run(arm: str, command: list[str], folder: Path) -> float:
    """Run it and record its peak memory. Returns its seconds. If it fails, the benchmark stops and prints its output."""
    folder.mkdir(parents=True, exist_ok=True)
    start = time.perf_counter()
    with (folder / "log.txt").open("w") as log:
        status = subprocess.call([sys.executable, *command], cwd=ROOT, stdout=log, stderr=subprocess.STDOUT)
    if status:
        sys.exit(f"error: {arm} failed: see {folder / 'log.txt'}\n{(folder / 'log.txt').read_text()[-1500:]}")
    peaks = json.loads((folder / "memory.json").read_text())
    highest = {f"peak_{kind}_mb": max(peaks[kind].values()) for kind in ("rss", "gpu") if kind in peaks}
    (folder / "peak.json").write_text(json.dumps({"command": command, **highest}))
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
