"""Train a reward model: it learns to tell right completions of a model from wrong ones.

    python -m dash_exp.reward_model MODEL out=FOLDER [name=value ...]

MODEL          a Transformers folder or hub name, or a run folder. It writes the completions, and the reward model starts from
               its weights
out=FOLDER     where the reward model is written, for reward=reward_model reward.path=FOLDER; a new or an empty folder
problems=2048  training problems, drawn by seed; a fifth of them is kept to measure how good the reward model is. A run should
               train on others, as with data.train.seed=2 here
n=4            completions of each, sampled at rollout.temperature
epochs=2       passes over the completions that it learns from: all right ones or all wrong ones, whichever are fewer, and as
               many of the others
lr=1e-5        learning rate of AdamW; default: model.lr
seed=0         of the problems, of the completions and of their order

The reward of the data says which completions are right. Any other setting of train.py can be given: data=sums
reward.timeout_s=2 model.compute_dtype=bfloat16 trainer=gpu.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import numpy as np
from omegaconf import DictConfig

from dash_exp.commands import cli
from dash_exp.commands.command_line import positive, taken_apart, whole
from dash_exp.commands.evaluate.command import Command as Evaluation
from dash_exp.commands.evaluate.configuration import configured
from dash_exp.core.errors import UserError
from dash_exp.core.process import importing

if TYPE_CHECKING:  # they load torch, which is needed only after the command was found good
    from dash_exp.rewards.model import ModelReward
    from dash_exp.training.reward_model import Graded

OWN = ("out", "problems", "n", "epochs", "lr")
CHUNK = 64  # problems sampled and graded at a time
KEPT = 5  # one of so many problems is kept to measure


@dataclass(frozen=True)
class Command:
    """The command line: the model, where to write, how to train, and overrides of the configuration."""

    target: str
    out: Path
    problems: int
    n: int
    epochs: int
    lr: float | None
    overrides: list[str]


def main() -> None:
    command = parse(cli.help_or_arguments(__doc__))
    cfg = configured(Evaluation(command.target, command.overrides))
    if cfg.data.train is None:
        raise UserError("data.train", f"is null: data={cfg.data.name} has no training problems", "Choose another data set")
    with importing():
        import torch

        from dash_exp.commands.run import quiet
        from dash_exp.training.reward_model import balanced, fit, measured
    quiet()
    make_folder(command.out)
    with TemporaryDirectory() as folder:
        judge = start(cfg, folder)
    learnt, kept = completions(cfg, command)
    learnt = balanced(learnt, cfg.seed)
    print(f"learning from {len(learnt.texts)} completions, half of them right", flush=True)
    dtype = getattr(torch, cfg.model.compute_dtype)
    epochs = []
    for loss in fit(judge, learnt, command.epochs, command.lr or cfg.model.lr, cfg.seed, dtype):
        epochs.append({"loss": loss, **measured(judge, kept)})
        print(f"epoch {len(epochs)}/{command.epochs}: {told(epochs[-1])}", flush=True)
    judge.scorer.save_pretrained(command.out)
    judge.tokenizer.save_pretrained(command.out)
    result = {"completions": len(learnt.texts), "right": sum(learnt.right), "kept": len(kept.texts), "epochs": epochs}
    (command.out / "reward_model.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(f"reward model: reward=reward_model reward.path={command.out}", flush=True)


def parse(arguments: Sequence[str]) -> Command:
    """Read and check the command line. The first argument is the model."""
    target, given, overrides = taken_apart(arguments, OWN)
    if not given.get("out"):
        raise UserError("out", "is missing", "Write out=FOLDER, for the reward model")
    return Command(
        target=target,
        out=Path(given["out"]).expanduser(),
        problems=whole("problems", given.get("problems", "2048"), 2 * KEPT),
        n=whole("n", given.get("n", "4"), 1),
        epochs=whole("epochs", given.get("epochs", "2"), 1),
        lr=positive("lr", given["lr"], "Write lr=1e-5") if "lr" in given else None,
        overrides=overrides,
    )


def make_folder(out: Path) -> None:
    """Make the folder, so that a place that cannot be written is known at once. Raises UserError, also where it has files."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=out):
            pass
    except OSError as error:
        raise UserError(f"out={out}", f"cannot be written: {error.strerror}", "Write out=OTHER") from error
    if any(out.iterdir()):
        raise UserError(f"out={out}", "exists already and is not empty", "Remove it, or write out=OTHER")


def completions(cfg: DictConfig, command: Command) -> tuple[Graded, Graded]:
    """Those that the reward model learns from, and those of other problems that are kept to measure it.

    Raises UserError where all completions are right or all are wrong.
    """
    from dash_exp.commands import data_sets, prompting
    from dash_exp.commands.evaluate.running import loaded, tokenizer_of
    from dash_exp.commands.rewards import rewards_of
    from dash_exp.models.texts import decoded
    from dash_exp.rewards.base import close_rewards, correct
    from dash_exp.sampling.base import Sampling
    from dash_exp.training.reward_model import Graded

    tokenizer = tokenizer_of(cfg)
    train = data_sets.problems(cfg)[0]
    drawn = np.random.default_rng((cfg.seed, len(train))).permutation(len(train))[: command.problems]
    problems = [train[i] for i in drawn.tolist()]
    if len(problems) < 2 * KEPT:
        wrong = f"leaves {len(problems)} problems, of which one in {KEPT} is kept to measure"
        raise UserError(f"data={cfg.data.name}", wrong, f"Give at least {2 * KEPT}")
    reward = rewards_of(cfg, {"data.train": problems}, tokenizer)["data.train"]
    policy, sampler = loaded(cfg, tokenizer, command.out)
    learnt, kept = Graded(), Graded()
    try:
        read = prompting.reader(cfg, train, tokenizer, policy)
        prompts = read(problems, where="data.train", limit=cfg.data.max_prompt_tokens)
        print(prompting.shown(tokenizer, prompts[0]), flush=True)
        sampling = Sampling(cfg.rollout.max_response_tokens, cfg.rollout.temperature, stop=prompting.stop(cfg))
        for first in range(0, len(prompts), CHUNK):
            asked = [prompt for prompt in prompts[first : first + CHUNK] for _ in range(command.n)]
            written = sampler.sample(prompts[first : first + CHUNK], command.n, sampling, (cfg.seed, first))
            texts = [p.prefill + text for p, text in zip(asked, decoded(tokenizer, written), strict=True)]
            scores = reward([p.problem for p in asked], texts)
            for i, (prompt, text, right) in enumerate(zip(asked, texts, correct(scores, reward), strict=True)):
                of = kept if (first + i // command.n) % KEPT == 0 else learnt
                of.problems.append(prompt.problem)
                of.texts.append(text)
                of.right.append(right)
            done = len(learnt.texts) + len(kept.texts)
            print(f"completions {done} of {len(prompts) * command.n}, {sum(learnt.right) + sum(kept.right)} right", flush=True)
    finally:
        sampler.close()
        close_rewards([reward])
    for part in (learnt, kept):
        if len(set(part.right)) < 2:
            which = "right" if part.right[0] else "wrong"
            wrong = f"all {len(part.texts)} completions are {which}: there is nothing to tell apart"
            raise UserError(f"data={cfg.data.name}", wrong, "Choose easier or harder problems, or raise problems= or n=")
    return learnt, kept


def start(cfg: DictConfig, folder: str) -> ModelReward:
    """The model with one logit in place of its output layer, 0 everywhere: written to `folder` and read as a reward model."""
    import torch
    from transformers import AutoModelForSequenceClassification

    from dash_exp.commands.evaluate.running import tokenizer_of
    from dash_exp.models import loading
    from dash_exp.rewards.model import ModelReward

    tokenizer = tokenizer_of(cfg)
    policy = loading.load_policy(cfg.model.path, "float32")
    config = copy.deepcopy(policy.config)
    config.num_labels, config.pad_token_id = 1, tokenizer.pad_token_id
    scorer = AutoModelForSequenceClassification.from_config(config, attn_implementation="sdpa")
    scorer.base_model.load_state_dict(policy.base_model.state_dict())
    torch.nn.init.zeros_(scorer.score.weight)  # nothing is right or wrong at the start
    scorer.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    device = "cpu" if cfg.trainer.accelerator == "cpu" else "auto"
    judge = ModelReward(folder, max_tokens=cfg.batch.micro_tokens, device=device)
    judge.scorer.requires_grad_(True)
    return judge


def told(found: dict[str, float]) -> str:
    """The measures of an epoch as text."""
    return (
        f"loss {found['loss']:.3f}; of the completions kept {100 * found['accuracy']:.1f}% judged as the reward does, "
        f"a right one before a wrong one in {100 * found['auc']:.1f}% of pairs"
    )
