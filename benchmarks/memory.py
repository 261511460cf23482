"""Peak memory of an optimizer step of a model with the shape of Qwen2.5-0.5B, on the CPU: dash_exp and TRL's GRPOTrainer.

    pip install trl==1.16.0
    python benchmarks/memory.py                    # needs 12 to 20 GiB of memory and some minutes per process
    python benchmarks/memory.py --layers 2 --tokens 32 --arms ours

Both take two optimizer steps on 8 completions of 128 tokens of one prompt, with the same random float32 weights, AdamW, no KL
and no gradient checkpointing, each in its own process. Random weights get no reward, but both train on all completions. The
needed bytes are those of weights, gradients and the two moments of AdamW; activations, logits and other tensors come in
addition. Peaks are of resident memory, minus the memory that is resident after the imports. Linux only.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from peak_memory import ROOT, PeakMemory

COMPLETIONS, STEPS = 8, 2  # in the second step the moments exist
OVERRIDES = [
    "model=qwen2.5-0.5b-random",
    "model.compute_dtype=float32",
    "model.gradient_checkpointing=false",
    "algo=no_gf",
    "filter=none",
    "kl='0'",
    f"steps={STEPS}",
    "batch.prompts=1",
    f"batch.group_size={COMPLETIONS}",
    "batch.micro_tokens=1000000",  # all completions in one backward pass, as in TRL
    "eval.limit=1",
    "~data.tests.out_dist",  # evaluation is not measured
    "eval.every=1000000",
    "resume_every=null",
    "logger=csv",
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arms", default="ours,trl", help="comma-separated (default: %(default)s)")
    parser.add_argument("--layers", type=int, default=24, help="layers of the policy (default: %(default)s)")
    parser.add_argument("--tokens", type=int, default=128, help="tokens of a completion (default: %(default)s)")
    parser.add_argument("--in-this-process", type=Path, help=argparse.SUPPRESS)  # file for the peaks of TRL's process
    args = parser.parse_args()
    arms = args.arms.split(",")
    if set(arms) - {"ours", "trl"}:
        parser.error("--arms: the choices are ours and trl")
    overrides = [
        *OVERRIDES,
        f"model.architecture.num_hidden_layers={args.layers}",
        f"rollout.max_response_tokens={args.tokens}",
    ]
    if args.in_this_process:
        trl(args.in_this_process, overrides)
        return
    parameters = count(overrides)
    needed = 4 * 4 * parameters / 2**20
    available = available_mib()
    if available < 2 * needed:
        sys.exit(f"about {2 * needed / 1024:.0f} GiB of memory are needed, but only {available / 1024:.0f} GiB are available")
    print(f"{parameters:,} parameters, {COMPLETIONS} completions of {args.tokens} tokens, {STEPS} optimizer steps", flush=True)
    found = {arm: peaks_of(arm, overrides, args.layers, args.tokens) for arm in arms}
    print(table(found, needed))


def count(overrides: list[str]) -> int:
    """Number of parameters of the policy, from its architecture."""
    from omegaconf import OmegaConf

    from dash_exp.commands.cli import composed
    from dash_exp.models.loading import load_architecture

    cfg: Any = OmegaConf.to_object(composed(overrides).model)
    return sum(p.numel() for p in load_architecture(cfg["path"], cfg["architecture"]).parameters())


def available_mib() -> float:
    lines = Path("/proc/meminfo").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("MemAvailable"))


def peaks_of(arm: str, overrides: list[str], layers: int, tokens: int) -> dict[str, Any]:
    """Run one arm in its own process and return its peaks (see peak_memory.py)."""
    with tempfile.TemporaryDirectory() as folder:
        peaks = Path(folder) / "memory.json"
        if arm == "ours":
            arguments = ["peak_memory.py", str(peaks), *overrides, f"hydra.run.dir={folder}/run"]
        else:
            arguments = ["memory.py", "--in-this-process", str(peaks), f"--layers={layers}", f"--tokens={tokens}"]
        command = [sys.executable, str(ROOT / "benchmarks" / arguments[0]), *arguments[1:]]
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        if done.returncode != 0:
            sys.exit(f"{done.stdout}\n{arm} failed with exit status {done.returncode}")
        found: dict[str, Any] = json.loads(peaks.read_text())
    print(f"{arm}: peak {max(found['rss'].values()):,.0f} MiB", flush=True)
    return found


def trl(path: Path, overrides: list[str]) -> None:
    """The same optimizer steps with TRL, from the same configuration."""
    import torch
    from datasets import Dataset
    from hydra.utils import instantiate
    from omegaconf import OmegaConf
    from trl import GRPOTrainer
    from trl_config import grpo_config

    from dash_exp.commands.cli import composed
    from dash_exp.models import loading

    peak = PeakMemory()
    cfg = composed(overrides)
    torch.manual_seed(cfg.seed)
    architecture: Any = OmegaConf.to_object(cfg.model.architecture)
    policy = loading.load_policy(cfg.model.path, architecture=architecture)
    problems = instantiate(cfg.data.train)[:STEPS]

    def no_reward(completions: list[str], **_: Any) -> list[float | None]:
        return [0.0] * len(completions)

    class Phases(GRPOTrainer):
        def _generate_and_score_completions(self, *args: Any, **kwargs: Any) -> Any:
            with peak("sample"):
                return super()._generate_and_score_completions(*args, **kwargs)

    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(None):
        trainer = Phases(
            model=policy,
            reward_funcs=no_reward,
            args=grpo_config(cfg, Path(folder), COMPLETIONS, gradient_accumulation_steps=1),
            train_dataset=Dataset.from_list([{"prompt": p.prompt} for p in problems]),
            processing_class=loading.load_tokenizer(cfg.model.tokenizer),
            optimizers=(instantiate(cfg.optimizer)(policy.parameters()), None),
        )
        with peak("update"):
            trainer.train()
    peak.write(path)


def table(found: dict[str, dict[str, Any]], needed: float) -> str:
    """The table: MiB, and in brackets the multiple of `needed`."""

    def row(name: str, values: list[float], ratio: bool = True) -> str:
        cells = [f"{v:,.0f}" + (f" ({v / needed:.2f})" if ratio else "") for v in values]
        return f"{name:44}" + "".join(f"{cell:>18}" for cell in cells)

    above = {arm: {p: mib - f["imports"] for p, mib in f["rss"].items()} for arm, f in found.items()}
    return "\n".join(
        [
            f"{'MiB (multiple of the needed bytes)':44}" + "".join(f"{arm:>18}" for arm in found),
            row("needed: weights, gradients, two moments", [needed] * len(found)),
            row("resident after the imports", [f["imports"] for f in found.values()], ratio=False),
            row("peak of sampling, above the imports", [a["sample"] for a in above.values()]),
            row("peak of the update, above the imports", [a["update"] for a in above.values()]),
            row("peak of both, above the imports", [max(a["sample"], a["update"]) for a in above.values()]),
        ]
    )


if __name__ == "__main__":
    main()
