"""One run of `peers.py` with TRL's GRPOTrainer, from settings of train.py. Writes `metrics.csv` and `memory.json` into `--out`.

    python benchmarks/peers_trl.py --out DIR --batch 64 steps=20    # --coupled: sample before each backward pass

Problems, prompts, rewards and evaluation are those of train.py, so that only sampling, update and accounting are TRL's. Prompts
are given as text, with the chat template where the model has one. Written for the version of `pip install -e '.[peers]'`.
"""

from __future__ import annotations

import argparse
import csv
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from hydra.utils import instantiate
from omegaconf import DictConfig
from peak_memory import PeakMemory
from peers_table import COLUMNS, GREEDY, PHASES, SAMPLED
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, TrainerCallback

from dash_exp.commands import build, cli, data_sets, prompting
from dash_exp.commands.rewards import rewards_of
from dash_exp.core.types import Prompt
from dash_exp.data import order
from dash_exp.models.loading import load_tokenizer
from dash_exp.rewards.base import close_rewards
from dash_exp.sampling.hf import HFSampler
from dash_exp.settings.overrides import number_of_kl

TEST = "in_dist"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--batch", type=int, default=64, help="completions per micro-batch, of all ranks")
    parser.add_argument("--coupled", action="store_true", help="sample only the completions of the next backward pass")
    parser.add_argument("--ranks", type=int, default=1)
    options, settings = parser.parse_known_args()
    run(options, cli.composed(number_of_kl(["algo=no_gf", *settings])))


def run(options: argparse.Namespace, cfg: DictConfig) -> None:
    measured = Measured()
    tokenizer, model = load_tokenizer(cfg.model.tokenizer), load_model(cfg)
    train, tests, _ = data_sets.problems(cfg)
    rewards = rewards_of(cfg, {"data.train": train, f"data.tests.{TEST}": tests[TEST]}, tokenizer)
    prompts, test_prompts = prompting.prompts(cfg, train, {TEST: tests[TEST]}, tokenizer, model)
    evaluator = build.evaluator_of(
        cfg,
        HFSampler(model, tokenizer, cfg.rollout.sampler.max_sequences, getattr(torch, cfg.model.compute_dtype)),
        {TEST: rewards[f"data.tests.{TEST}"]},
        tokenizer,
    )

    def evaluated() -> dict[str, float]:
        found = evaluator(TEST, test_prompts[TEST])
        return {GREEDY: found.accuracy, SAMPLED: float(found.summary()[f"avg@{cfg.eval.n}"] or 0.0)}

    rows = in_order(prompts, cfg)
    record = Record(measured, cfg.eval.every, evaluated, options.ranks)
    trainer = trainer_class(measured)(
        model=model,
        reward_funcs=graded(rewards["data.train"], rows, measured),
        args=arguments(cfg, options),
        train_dataset=Dataset.from_list(as_text(rows, tokenizer, cfg)),
        processing_class=tokenizer,
        callbacks=[record],
    )
    try:
        with measured.peak("update"):
            trainer.train()
    finally:
        close_rewards(rewards.values())
    if trainer.accelerator.process_index > 0:
        return
    measured.peak.write(options.out / "memory.json")
    with (options.out / "metrics.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(record.rows)


def load_model(cfg: DictConfig) -> PreTrainedModel:
    """The policy as Transformers has it, without our attention."""
    attention = "sdpa" if cfg.model.attn_implementation == "varlen" else cfg.model.attn_implementation
    kwargs = {"dtype": getattr(torch, cfg.model.dtype), "attn_implementation": attention}
    if not cfg.model.architecture:
        return AutoModelForCausalLM.from_pretrained(cfg.model.path, **kwargs)
    torch.manual_seed(cfg.seed)
    config = AutoConfig.for_model(**instantiate(cfg.model.architecture, _convert_="all"))
    return AutoModelForCausalLM.from_config(config, **kwargs)


def in_order(prompts: Sequence[Prompt], cfg: DictConfig) -> list[Prompt]:
    """The prompts of all steps, as train.py takes them."""
    count = cfg.batch.prompts
    steps = [order.indices_of_step(step, count, len(prompts), cfg.seed) for step in range(cfg.steps)]
    return [prompts[i] for indices in steps for i in indices]


def as_text(prompts: Sequence[Prompt], tokenizer: Any, cfg: DictConfig) -> list[dict[str, str]]:
    """Rows of TRL's data set. Ends the program where TRL would read other tokens than train.py does."""
    if cfg.prompt.stop:
        sys.exit("error: prompt.stop: TRL has no texts that end a completion. Use prompt.stop=[]")
    texts = [tokenizer.decode(list(p.ids), skip_special_tokens=False, clean_up_tokenization_spaces=False) for p in prompts]
    for text, prompt in zip(texts, prompts, strict=True):
        if list(tokenizer(text).input_ids) != list(prompt.ids):
            sys.exit(f"error: TRL reads other tokens than train.py in the prompt of problem {prompt.problem.id}: {text!r}")
    return [{"prompt": text, "problem_id": prompt.problem.id} for text, prompt in zip(texts, prompts, strict=True)]


def graded(reward: Any, prompts: Sequence[Prompt], measured: Measured) -> Callable[..., list[float]]:
    """The reward of train.py as TRL calls it. Counts tokens on the way."""
    by_id = {prompt.problem.id: prompt for prompt in prompts}

    def rewards(completions: list[str], problem_id: list[str], **more: Any) -> list[float]:
        of_prompts = [by_id[i] for i in problem_id]
        sampled = sum(map(len, more["completion_ids"]))
        measured.tokens["sampled"] += sampled
        measured.tokens["trained"] += sampled + sum(len(prompt.ids) for prompt in of_prompts)
        texts = [prompt.prefill + text for prompt, text in zip(of_prompts, completions, strict=True)]
        return list(reward([prompt.problem for prompt in of_prompts], texts).rewards)

    return rewards


def arguments(cfg: DictConfig, options: argparse.Namespace) -> Any:
    """TRL's settings: accumulation over micro-batches, optimizer and schedule of train.py."""
    from trl_config import grpo_config

    completions, size = cfg.batch.prompts * cfg.algo.group_size, options.batch // options.ranks
    accumulation, rest = divmod(completions, size * options.ranks)
    if rest:
        sys.exit(f"error: {completions} completions cannot be divided into micro-batches of {size * options.ranks}")
    return grpo_config(
        cfg,
        options.out / "trl",
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


class Measured:
    """Seconds by phase and tokens since the last optimizer step; peak memory. `apart`: all seconds that do not count."""

    def __init__(self) -> None:
        self.peak = PeakMemory()
        self.apart = 0.0
        self.start_step()

    def start_step(self) -> None:
        self.seconds = dict.fromkeys(PHASES, 0.0)
        self.tokens = {"sampled": 0, "trained": 0}

    def timed(self, phase: str, work: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        start = now()
        with self.peak(phase):
            result = work(*args, **kwargs)
        self.seconds[phase] += now() - start
        return result


def now() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def trainer_class(measured: Measured) -> type:
    """GRPOTrainer, which measures the seconds of sampling and of grading."""
    from trl import GRPOTrainer

    class Trainer(GRPOTrainer):
        def _generate(self, *args: Any, **kwargs: Any) -> Any:
            return measured.timed("sample", super()._generate, *args, **kwargs)

        def _prepare_inputs(self, *args: Any, **kwargs: Any) -> Any:
            before = measured.seconds["sample"]
            result = measured.timed("score", super()._prepare_inputs, *args, **kwargs)
            measured.seconds["score"] -= measured.seconds["sample"] - before
            return result

    return Trainer


class Record(TrainerCallback):
    """A row of `metrics.csv` after each optimizer step, with the accuracy from our evaluation every `every` steps."""

    def __init__(self, measured: Measured, every: int, evaluated: Callable[[], dict[str, float]], ranks: int) -> None:
        self.measured, self.every, self.evaluated, self.ranks = measured, every, evaluated, ranks
        self.start = self.before = 0.0
        self.rows: list[dict[str, float]] = []

    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        self.start = now()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        seconds, tokens = self.measured.seconds, self.measured.tokens
        elapsed = now() - self.start - self.measured.apart
        seconds["update"] = elapsed - self.before - seconds["sample"] - seconds["score"]
        row = {"step": state.global_step, "time/elapsed_s": elapsed}
        row |= {f"time/{phase}_s": seconds[phase] for phase in PHASES}
        row |= {f"tokens/{name}": count * self.ranks for name, count in tokens.items()}  # approximately
        self.before = elapsed
        self.measured.start_step()
        start = now()
        if state.global_step % self.every == 0:
            row |= self.evaluated()
        self.rows.append(row)
        print(row, flush=True)
        self.measured.apart += now() - start


if __name__ == "__main__":
    main()
