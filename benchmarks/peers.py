r"""Time to an accuracy, compared with TRL: same base model, order of problems, number of completions, optimizer and test.

    python benchmarks/peers.py                              # needs pip install -e '.[peers]'
    python benchmarks/peers.py --arms dash,trl --seeds 1    # a part of it
    python benchmarks/peers.py --ranks 2 --coupled-batch 8 --steps 40 batch.prompts=32 schedule.name=linear  # the paper's sizes
    python benchmarks/peers.py --ranks 2 --coupled-batch 8 --steps 80 --target 0.9 batch.prompts=32 schedule.name=linear \
        'data.train.operands=[3,3]' data.train.size=4000 '+data.tests.in_dist.operands=[3,3]'    # to 90%: chains of 3 numbers
    python benchmarks/peers.py --only-time model=... trainer=gpu    # settings of train.py for all arms; random rewards

TRL's GRPOTrainer is run in two ways: `trl_coupled` samples `--coupled-batch` completions just before each backward pass (the
paper's baseline), and `trl` samples once for each optimizer step, as TRL does today. If TRL's defaults would make it slow
here (gradient checkpointing, micro-batches of 8), it gets better settings. Every run has its own process. Only one process
runs at a time; the arms of one seed run one after the other. Finished runs are kept in `--out` and not repeated.

Accuracy is measured on two completions of each test problem at temperature 1, every second step, with the same code for all
arms, and does not count as time. Greedy accuracy says little here: it is near 90% after two steps and then falls.

Writes `runs.csv`, `ratios.csv` (each run divided by the run of TRL with the same seed: median, lowest, highest) and
`curves.png`.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from memory import count
from peak_memory import ROOT, PeakMemory

from dash_exp.settings.overrides import number_of_kl

OURS = {
    f"{algo}{'' if rollout == 'hf' else '_vllm'}": [f"algo={algo}", f"rollout={rollout}"]
    for rollout in ("hf", "vllm")
    for algo in ("dash", "no_gf", "grpo")
}
TRL = ["trl", "trl_coupled"]
PHASES = ["sample", "score", "update"]  # the phases that TRL also has
COLUMNS = ["step", "time/elapsed_s", *(f"time/{phase}_s" for phase in PHASES), "tokens/sampled", "tokens/trained"]
SAMPLED, GREEDY = "eval/in_dist/avg@2", "accuracy/in_dist"
COLUMNS += [SAMPLED, GREEDY]
SETTINGS = [
    "kl=0",
    "model.lr=3e-4",
    "schedule.name=constant",
    "logger=csv",
    "data.tests.out_dist=null",
    "resume_every=null",
    "resume=false",
]
ONLY_TIME = ["eval.every=1000000", "eval.limit=1", "reward._target_=coin.Coin", "~reward.pattern", "~reward.timeout_s"]
EVALUATION = ["eval.every=2", "eval.n=2", "eval.temperature=1", "eval.top_p=1"]


def main() -> None:
    options, settings = parsed()
    out = options.out.resolve()
    if options.arms == ["trl-run"]:  # in its own process
        run_trl(options, out, settings)
        return
    settings = [*SETTINGS, *(ONLY_TIME if options.only_time else EVALUATION), f"steps={options.steps}", *settings]
    todo = [(arm, seed) for seed in range(options.seeds) for arm in options.arms]
    for i, (arm, seed) in enumerate(todo, 1):
        folder = out / arm / str(seed)
        command = command_of(arm, seed, folder, options, settings)
        if not done(folder, command):
            seconds = one_run(arm, command, folder)
            print(f"[{i}/{len(todo)}] {arm}, seed {seed}: {seconds:.0f} s in total", flush=True)
    report(out, options, count(number_of_kl(settings)))


def parsed() -> tuple[argparse.Namespace, list[str]]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("outputs/peers"))
    parser.add_argument("--arms", type=lambda text: text.split(","), default=[*OURS, *TRL])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=20, help="optimizer steps")
    parser.add_argument("--target", type=float, default=0.7, help="accuracy on the test problems, sampled at temperature 1")
    parser.add_argument("--trl-batch", type=int, default=64, help="completions per micro-batch of the arm trl")
    parser.add_argument("--coupled-batch", type=int, default=16, help="completions per micro-batch of trl_coupled")
    parser.add_argument("--ranks", type=int, default=1, help="processes of each run; they share its completions")
    parser.add_argument(
        "--only-time", action="store_true", help="measure no accuracy and leave out the first step: for random weights"
    )
    parser.add_argument("--coupled", action="store_true", help=argparse.SUPPRESS)
    options, settings = parser.parse_known_args()
    if unknown := set(options.arms) - {*OURS, *TRL, "trl-run"}:
        parser.error(f"--arms: unknown: {', '.join(sorted(unknown))}; the choices are {', '.join([*OURS, *TRL])}")
    if wrong := [name for name in ("trl_batch", "coupled_batch") if getattr(options, name) % options.ranks]:
        parser.error(
            f"--{wrong[0].replace('_', '-')}={getattr(options, wrong[0])} cannot be divided among {options.ranks} ranks"
        )
    if wrong := [s for s in settings if "=" not in s and s[0] != "~"]:
        parser.error(f"{wrong[0]}: write settings of train.py as KEY=VALUE")
    return options, settings


def command_of(arm: str, seed: int, folder: Path, options: argparse.Namespace, settings: list[str]) -> list[str]:
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
    command = [*launcher, "benchmarks/peers.py", "--arms=trl-run", f"--out={folder}", f"--ranks={options.ranks}"]
    command += [f"--trl-batch={options.trl_batch}", f"--coupled-batch={options.coupled_batch}"]
    command += ["--coupled"] * (arm == "trl_coupled")
    return [*command, *settings, f"seed={seed}"]


def done(folder: Path, command: list[str]) -> bool:
    """Whether the run is finished. If it has other settings, the benchmark stops: both cannot be in one table."""
    if not (folder / "peak.json").exists():
        return False
    if json.loads((folder / "peak.json").read_text())["command"] != command:
        sys.exit(f"error: {folder} contains a run with other settings. Use another --out, or delete it")
    return True


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


# --- TRL -----------------------------------------------------------------------------------------------------------------


def run_trl(options: argparse.Namespace, folder: Path, settings: list[str]) -> None:
    """GRPOTrainer with the settings of train.py. Writes `metrics.csv` with the same columns."""
    import torch
    from datasets import Dataset
    from hydra.utils import instantiate
    from transformers import AutoConfig, AutoModelForCausalLM, TrainerCallback
    from trl import GRPOTrainer
    from trl_config import grpo_config

    from dash_exp.commands import cli
    from dash_exp.core.types import Prompt
    from dash_exp.data import order
    from dash_exp.models.loading import load_tokenizer
    from dash_exp.sampling.base import Sampling
    from dash_exp.sampling.hf import HFSampler

    peak = PeakMemory()
    cfg = cli.composed(number_of_kl(["algo=no_gf", *settings]))
    tokenizer, grade = load_tokenizer(cfg.model.tokenizer), instantiate(cfg.reward)
    prompts, group_size = cfg.batch.prompts, cfg.algo.group_size
    tests = instantiate(cfg.data.tests.in_dist)
    train = order.without(instantiate(cfg.data.train), tests)
    problems = [train[i] for s in range(cfg.steps) for i in order.indices_of_step(s, prompts, len(train), cfg.seed)]
    test_prompts = [Prompt(problem, tuple(tokenizer(problem.prompt).input_ids)) for problem in tests[: cfg.eval.limit]]
    by_id = {problem.id: problem for problem in problems}
    kwargs = {"dtype": getattr(torch, cfg.model.dtype), "attn_implementation": "sdpa"}
    if cfg.model.architecture:
        torch.manual_seed(cfg.seed)
        model = AutoModelForCausalLM.from_config(
            AutoConfig.for_model(**instantiate(cfg.model.architecture, _convert_="all")), **kwargs
        )
    else:
        model = AutoModelForCausalLM.from_pretrained(cfg.model.path, **kwargs)
    seconds = dict.fromkeys([*PHASES, "apart"], 0.0)
    tokens = {"sampled": 0, "trained": 0}

    def now() -> float:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return time.perf_counter()

    def reward(prompts: list[str], completions: list[str], problem_id: list[str], **more: Any) -> list[float]:
        sampled = sum(map(len, more["completion_ids"]))
        tokens["sampled"] += sampled
        tokens["trained"] += sampled + sum(len(ids) for ids in tokenizer(prompts).input_ids)
        return list(grade([by_id[i] for i in problem_id], completions).rewards)

    class Trainer(GRPOTrainer):
        """Measures the seconds of each phase."""

        def _generate(self, *args: Any, **kwargs: Any) -> Any:
            return timed("sample", super()._generate, *args, **kwargs)

        def _prepare_inputs(self, *args: Any, **kwargs: Any) -> Any:
            before = seconds["sample"]
            result = timed("score", super()._prepare_inputs, *args, **kwargs)
            seconds["score"] -= seconds["sample"] - before
            return result

    def timed(phase: str, work: Any, *args: Any, **kwargs: Any) -> Any:
        start = now()
        with peak(phase):
            result = work(*args, **kwargs)
        seconds[phase] += now() - start
        return result

    class Record(TrainerCallback):
        """Records a row of `metrics.csv` after each optimizer step, with the accuracy from our evaluation."""

        def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
            self.start, self.before, self.rows = now(), 0.0, []

        def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
            elapsed = now() - self.start - seconds["apart"]
            row = {"step": state.global_step, "time/elapsed_s": elapsed}
            seconds["update"] = elapsed - self.before - seconds["sample"] - seconds["score"]
            row |= {f"time/{phase}_s": seconds[phase] for phase in PHASES}
            row |= {f"tokens/{name}": count * options.ranks for name, count in tokens.items()}  # approximately
            self.before = elapsed
            seconds.update(dict.fromkeys(PHASES, 0.0))
            tokens.update(dict.fromkeys(tokens, 0))
            start = now()
            if state.global_step % cfg.eval.every == 0:
                sampler = HFSampler(model, tokenizer, cfg.rollout.sampler.max_sequences)
                for name, n, temperature in ((GREEDY, 1, 0.0), (SAMPLED, cfg.eval.n, cfg.eval.temperature)):
                    sampling = Sampling(cfg.rollout.max_response_tokens, temperature)
                    completions = sampler.sample(test_prompts, n, sampling, (cfg.seed, state.global_step))
                    texts = tokenizer.batch_decode([c.ids.tolist() for c in completions], skip_special_tokens=True)
                    rewards = grade([p.problem for p in test_prompts for _ in range(n)], texts).rewards
                    row[name] = sum(rewards) / len(rewards)
            self.rows.append(row)
            print(row, flush=True)
            seconds["apart"] += now() - start

    record = Record()
    size = (
        options.coupled_batch if options.coupled else options.trl_batch
    ) // options.ranks  # completions of a micro-batch in one process
    accumulation, rest = divmod(prompts * group_size, size * options.ranks)
    if rest:
        sys.exit(f"error: {prompts} x {group_size} completions cannot be divided into micro-batches of {size * options.ranks}")
    arguments = grpo_config(
        cfg,
        folder / "trl",
        size,
        gradient_accumulation_steps=accumulation,
        steps_per_generation=1 if options.coupled else accumulation,
        shuffle_dataset=False,
        learning_rate=cfg.optimizer.lr,
        lr_scheduler_type=cfg.schedule.name,
        adam_beta1=cfg.optimizer.betas[0],
        adam_beta2=cfg.optimizer.betas[1],
        weight_decay=cfg.optimizer.weight_decay,
        dataloader_pin_memory=False,
        logging_steps=10**6,
    )
    trainer = Trainer(
        model=model,
        reward_funcs=reward,
        args=arguments,
        train_dataset=Dataset.from_list([{"prompt": p.prompt, "problem_id": p.id} for p in problems]),
        processing_class=tokenizer,
        callbacks=[record],
    )
    with peak("update"):
        trainer.train()
    if trainer.accelerator.process_index > 0:
        return
    peak.write(folder / "memory.json")
    with (folder / "metrics.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(record.rows)


# --- the comparison --------------------------------------------------------------------------------------------------------


def summary(folder: Path, options: argparse.Namespace, parameters: int) -> dict[str, float]:
    """The results of a finished run: seconds and steps to the target (infinite if not reached), per step, and peak memory."""
    with (folder / "metrics.csv").open() as file:
        rows = [{k: float(v) for k, v in row.items() if v and k in COLUMNS} for row in csv.DictReader(file)]
    rows = [row for row in rows if row["step"] > 0]
    before, result = 0.0, {}
    if options.only_time:
        before = rows.pop(0)["time/elapsed_s"]  # the first step is a warm-up
    else:
        reached = [row for row in rows if row.get(SAMPLED, 0.0) >= options.target]
        result["seconds_to_target"] = reached[0]["time/elapsed_s"] if reached else float("inf")
        result["steps_to_target"] = reached[0]["step"] if reached else float("inf")
        result["final_accuracy"] = rows[-1].get(SAMPLED, float("nan"))
        result["final_greedy_accuracy"] = rows[-1].get(GREEDY, float("nan"))
    result["seconds_per_step"] = (rows[-1]["time/elapsed_s"] - before) / len(rows)
    for phase in PHASES:
        result[f"{phase}_s_per_step"] = sum(row[f"time/{phase}_s"] for row in rows) / len(rows)
    result["sampled_tokens_per_s"] = sum(row["tokens/sampled"] for row in rows) / sum(row["time/sample_s"] for row in rows)
    result["trained_tokens_per_s"] = sum(row["tokens/trained"] for row in rows) / sum(row["time/update_s"] for row in rows)
    result["trained_tflops"] = (
        6 * parameters * result["trained_tokens_per_s"] / 1e12
    )  # backward takes twice the operations of forward
    peaks = json.loads((folder / "peak.json").read_text())
    return result | {name: mb for name, mb in peaks.items() if name.startswith("peak_")}


def report(out: Path, options: argparse.Namespace, parameters: int) -> None:
    """Print the tables and write them and the figure. `parameters`: number of parameters of the policy."""
    seeds = range(options.seeds)
    runs = {(arm, seed): summary(out / arm / str(seed), options, parameters) for arm in options.arms for seed in seeds}
    names = list(next(iter(runs.values())))
    with (out / "runs.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["arm", "seed", *names], *([*key, *run.values()] for key, run in runs.items())])
    print(f"\nmedians of {options.seeds} seed(s)" + ("" if options.only_time else f"; target {options.target:.0%}"))
    print(f"{'':24}" + "".join(f"{arm:>13}" for arm in options.arms))
    for name in names:
        values = (statistics.median(runs[arm, seed][name] for seed in seeds) for arm in options.arms)
        print(f"{name:24}" + "".join(f"{value:13,.3f}" for value in values))
    name = "seconds_per_step" if options.only_time else "seconds_to_target"
    rows = []
    print("\nSeconds and peak memory divided by those of TRL: median (lowest to highest)")
    for peer in [arm for arm in TRL if arm in options.arms]:
        for arm in [arm for arm in options.arms if arm in OURS]:
            for what in dict.fromkeys([name, "seconds_per_step", *(n for n in names if n.startswith("peak_"))]):
                ratios = [ratio(runs[arm, seed][what], runs[peer, seed][what]) for seed in seeds]
                reached = not any(map(math.isnan, ratios))
                spread = [statistics.median(ratios), min(ratios), max(ratios)] if reached else [math.nan] * 3
                rows.append([arm, peer, what, *spread])
                said = "{:7.3f} ({:.3f} to {:.3f})".format(*spread) if reached else "not reached by every seed"
                print(f"  {arm:12} / {peer:12} {what:18} {said}")
    with (out / "ratios.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["arm", "against", "what", "median", "lowest", "highest"], *rows])
    if not options.only_time:
        draw(out, options)


def ratio(ours: float, theirs: float) -> float:
    """NaN if one of them did not reach the target; the median is then NaN as well."""
    return float("nan") if math.inf in (ours, theirs) else ours / theirs


def draw(out: Path, options: argparse.Namespace) -> None:
    """Accuracy over seconds of training: a line for each run."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7.5, 4.2), layout="constrained")
    for i, arm in enumerate(options.arms):
        for seed in range(options.seeds):
            with (out / arm / str(seed) / "metrics.csv").open() as file:
                rows = [row for row in csv.DictReader(file) if row[SAMPLED] and float(row["step"]) > 0]
            points = [(float(row["time/elapsed_s"]), float(row[SAMPLED])) for row in rows]
            style = {"color": f"C{i}", "lw": 1.3, "ls": "--" if arm in TRL else "-"}
            axes.plot(*zip(*points, strict=True), label=None if seed else arm, **style)
    axes.axhline(options.target, color="0.6", lw=0.8)
    axes.set(xscale="log", xlabel="seconds of training (without evaluation)", ylabel="accuracy on the test problems, sampled")
    axes.legend(frameon=False, fontsize=8)
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter(lambda x, _: f"{x:g}" if f"{x:g}"[0] in "25" else "")
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(out / "curves.png", dpi=150)


if __name__ == "__main__":
    main()
