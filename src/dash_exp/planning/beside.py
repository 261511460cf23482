"""Models that a run holds beside policy and reference: those that score completions, and a teacher that writes traces."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from omegaconf import DictConfig
from transformers import AutoConfig, AutoModelForSequenceClassification, PreTrainedConfig

from dash_exp.models.folders import check_folder
from dash_exp.models.pretrained import from_pretrained
from dash_exp.planning.architecture import built
from dash_exp.planning.empty_models import parameter_count
from dash_exp.rewards.cores import workers_for
from dash_exp.settings.reward import different


@dataclass(frozen=True)
class ScorerSizes:
    """A reward model, and its largest batch: `rows` texts of `tokens` tokens."""

    config: PreTrainedConfig
    dtype: torch.dtype
    parameters: int
    on_gpu: bool
    rows: int
    tokens: int

    @property
    def weight_bytes(self) -> int:
        return self.parameters * self.dtype.itemsize


@dataclass(frozen=True)
class TeacherSizes:
    """A teacher, and how many traces of how many tokens it writes at the same time."""

    config: PreTrainedConfig
    dtype: torch.dtype
    parameters: int
    traces: int
    tokens: int

    @property
    def weight_bytes(self) -> int:
        return self.parameters * self.dtype.itemsize


def scorers_of(cfg: DictConfig, completions: int, tokens: int, on_gpu: bool) -> tuple[ScorerSizes, ...]:
    """The reward models of a run that scores so many `completions` of at most so many `tokens` at a time, prompts included.

    `on_gpu`: this machine has GPUs, on which `reward.device=auto` puts them. Raises UserError for a model that cannot be read.
    """
    found = []
    for reward in (scorer for each in different(cfg).values() for scorer in _model_rewards(each)):
        check_folder(reward.path, setting="reward.path", weights=False)
        config = from_pretrained(AutoConfig, reward.path, setting="reward.path")
        with torch.device("meta"):
            parameters = parameter_count(AutoModelForSequenceClassification.from_config(config))
        longest = min(tokens, getattr(config.get_text_config(), "max_position_embeddings", None) or tokens)
        rows = max(1, min(completions, reward.get("max_tokens", 16384) // longest))
        dtype = getattr(torch, reward.get("dtype", "float32"))
        on_it = on_gpu and reward.get("device", "auto") != "cpu"
        found.append(ScorerSizes(config, dtype, parameters, on_it, rows, longest))
    return tuple(found)


def _model_rewards(reward: DictConfig) -> Iterator[DictConfig]:
    if str(reward.get("_target_")).endswith(".ModelReward"):
        yield reward
    for part in (reward.get("parts") or {}).values():
        yield from _model_rewards(part)


def teacher_of(cfg: DictConfig) -> TeacherSizes | None:
    """The teacher that writes missing traces; None for an algorithm without one. Raises UserError if it cannot be read."""
    sampler = cfg.algo.train_sampler
    if not sampler or "teacher" not in sampler:
        return None
    model = built(sampler.teacher.path)
    at_once = min(sampler.get("chunk", 256), sampler.sampler.max_sequences)
    dtype = getattr(torch, sampler.get("dtype", "float32"))
    return TeacherSizes(model.config, dtype, parameter_count(model), at_once, sampler.teacher.max_tokens)


def grading_bytes(cfg: DictConfig) -> float:
    """Bytes of the processes that grade on one rank: programs may take what `memory_mb` allows them, the others what they have
    loaded. Where `workers` is null there are as many as on this machine.
    """
    rewards = [reward for each in different(cfg).values() for reward in (each, *(each.get("parts") or {}).values())]
    return sum((reward.get("workers") or workers_for(cfg.trainer.devices)) * _grading(reward) for reward in rewards)


def _grading(reward: DictConfig) -> float:
    program = (reward.get("memory_mb", 512) * reward.get("processes", 1) + 16) * 2**20  # see `rewards.sandbox.Sandbox`
    mib = 2**20  # of a process that has graded, as measured
    return {"MathReward": 60 * mib, "ReasoningGymReward": 115 * mib, "CodeReward": program}.get(
        str(reward.get("_target_")).rpartition(".")[2], 0
    )
