"""The rewards of a run: that of training, and those that test sets bring (`data.tests.NAME.reward`)."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from omegaconf import DictConfig, OmegaConf
from transformers import PreTrainedTokenizerBase

from dash_exp.commands import rehearsal
from dash_exp.commands.data_sets import naming_settings
from dash_exp.commands.parts import made, named
from dash_exp.core.errors import UserError
from dash_exp.core.metrics import METRICS
from dash_exp.core.types import Problem
from dash_exp.data.prompts import check_answers
from dash_exp.rewards.base import Reward, check_problems
from dash_exp.rewards.cores import workers_for
from dash_exp.settings import claims
from dash_exp.settings.data import response_limit
from dash_exp.settings.reward import key_of, with_parts


def rewards_of(
    cfg: DictConfig, sets: Mapping[str, Sequence[Problem]], tokenizer: PreTrainedTokenizerBase, ranks: int = 1
) -> dict[str, Reward]:
    """The reward of each set of problems, both by the setting that the problems are from, such as `data.tests.in_dist`.

    Equal settings are one object, with one set of processes. Each reward is tried on a problem of its first set, after all
    problems were checked with theirs.
    """
    keys = {where: _first_equal(cfg, [key_of(cfg, other) for other in sets], key_of(cfg, where)) for where in sets}
    rewards: dict[str, Reward] = {}
    for key in dict.fromkeys(keys.values()):
        with _of_setting(key):
            rewards[key] = made(_with_workers(cfg, key, ranks), key)
    for where, problems in sets.items():
        with naming_settings(cfg, where):
            check_problems(rewards[keys[where]], problems, where)
            limited_by, most = response_limit(cfg, where)
            check_answers(rewards[keys[where]], problems, tokenizer, most, where, limited_by)
    for key, reward in rewards.items():
        problem = next(p for where, problems in sets.items() if keys[where] == key for p in problems)
        with _of_setting(key):
            rehearsal.reward(reward, problem, cfg.algo.group_size, named(cfg, key))
    return {where: rewards[key] for where, key in keys.items()}


def check_claims(cfg: DictConfig, reward: Reward) -> None:
    """Raise UserError for a claim on a part of the training reward that it does not have."""
    parts = [f"reward/{name}" for name in getattr(reward, "components", ())]
    for i, claim in enumerate(claims.of(cfg)):
        if claim.metric.startswith("reward/") and claim.metric not in (*METRICS, *parts):
            right = f"Use {', '.join(['reward/mean', *parts])}"
            raise UserError(f"study.claims[{i}].metric={claim.metric}", "the reward has no such part", right)


def _with_workers(cfg: DictConfig, key: str, ranks: int) -> DictConfig:
    """The settings with a number for each null `workers` of the reward at `key` and its parts."""
    cfg = copy.deepcopy(cfg)
    for part in with_parts(cfg, key):
        reward = OmegaConf.select(cfg, part)  # behind a reference: the reward that it refers to
        if reward.get("workers", 0) is None:
            reward.workers = workers_for(ranks)
    return cfg


def _first_equal(cfg: DictConfig, keys: Sequence[str], key: str) -> str:
    return next(other for other in keys if OmegaConf.select(cfg, other) == OmegaConf.select(cfg, key))


@contextmanager
def _of_setting(key: str) -> Iterator[None]:
    """Rewards name their settings `reward.NAME` in messages; here they get the name of the section that they are in."""
    try:
        yield
    except UserError as error:
        said = (re.sub(r"(?<![\w.@])reward\.(?=\w)", f"{key}.", text) for text in (error.where, error.wrong, error.right))
        raise UserError(*said) from error.__cause__
