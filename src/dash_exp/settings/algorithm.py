"""The algorithm: loss and advantage, filter, KL penalty, and the batches that they work on."""

from __future__ import annotations

from omegaconf import DictConfig, OmegaConf

from dash_exp.core.errors import UserError
from dash_exp.settings.checks import known, number, numbers, part, texts

SECTIONS = "algo algo.advantage algo.loss algo.weighting algo.denominator filter kl kl.schedule batch"


def values(cfg: DictConfig) -> None:
    texts(cfg, "algo.name")
    part(cfg, "algo.train_sampler", "_target_")
    numbers(cfg, "algo.loss.clip_low algo.loss.clip_high", above=0, why="every ratio would be clipped")
    numbers(cfg, "batch.prompts batch.micro_tokens batch.group_size batch.epochs batch.minibatches", whole=True, least=1)
    numbers(cfg, "algo.group_size algo.denominator.max_tokens", whole=True, least=1)
    number(cfg, "batch.sample_prompts", whole=True, least=1, optional=True)

    number(cfg, "filter.threshold", least=0)
    numbers(cfg, "filter.drop filter.prune", least=0, below=1, why="it is a share, and 1 would drop everything")
    number(cfg, "filter.per_group", whole=True, least=2, why="one completion has nothing to be compared with")
    number(cfg, "filter.refill_rounds", whole=True, least=0)

    known(cfg, "kl.estimator", ["k1", "k2", "k3"])
    known(cfg, "kl.place", ["loss", "reward"])
    numbers(cfg, "kl.coef kl.schedule.final", least=0)
    number(cfg, "kl.schedule.target", above=0, why="the KL is divided by it")
    number(cfg, "kl.schedule.rate", above=0, below=5, why="from 5 on one step can take the coefficient to 0, where it stays")


def relations(cfg: DictConfig) -> None:
    _batch(cfg)
    _filter(cfg)
    _kl(cfg)
    _off_policy(cfg)


def has_ratio(cfg: DictConfig) -> bool:
    """Whether the loss has a ratio to the policy that sampled."""
    return not str(cfg.algo.loss._target_).endswith(".policy_gradient")


def in_several_calls(cfg: DictConfig) -> bool:
    """Whether an outer step is cut into several sampling calls."""
    return cfg.batch.sample_prompts not in (None, cfg.batch.prompts)


def kl_in_reward(cfg: DictConfig) -> bool:
    """Whether a KL term is a part of the reward."""
    return bool(_has_kl(cfg) and cfg.kl.place == "reward")


def _has_kl(cfg: DictConfig) -> bool:
    return bool(cfg.kl.coef > 0 or cfg.kl.schedule.get("final"))


def _group_size(cfg: DictConfig) -> str:
    """The setting that gives the size of a group: `algo.group_size`, which is `batch.group_size` unless it is set itself."""
    return "batch.group_size" if cfg.algo.group_size == cfg.batch.group_size else "algo.group_size"


def _batch(cfg: DictConfig) -> None:
    relative = "group_" in str(OmegaConf.select(cfg, "algo.advantage._target_"))
    if (relative or (kl_in_reward(cfg) and not cfg.algo.train_sampler)) and cfg.algo.group_size < 2:
        what = "group-relative advantages need" if relative else "the baseline of a KL in the reward (kl.place=reward) needs"
        raise UserError(
            f"{_group_size(cfg)}={cfg.algo.group_size}",
            f"leaves nothing to compare a completion with, which {what}",
            f"Use {_group_size(cfg)}=2 or more",
        )
    if (cfg.batch.sample_prompts or 0) > cfg.batch.prompts:
        raise UserError(
            f"batch.sample_prompts={cfg.batch.sample_prompts}",
            f"is more than the {cfg.batch.prompts} prompts of an outer step",
            "Lower it to batch.prompts, or write null to sample all at once",
        )


def _filter(cfg: DictConfig) -> None:
    if (cfg.filter.get("per_group") or 0) > cfg.algo.group_size:
        raise UserError(
            f"filter.per_group={cfg.filter.per_group}",
            f"is more than the {cfg.algo.group_size} completions of a group",
            f"Lower it, or raise {_group_size(cfg)}",
        )
    if str(cfg.filter._target_).endswith(".ZeroVariance") and (cfg.algo.group_size < 2 or cfg.algo.train_sampler):
        raise UserError(
            "filter=zero_variance",
            "keeps nothing: the rewards of a group of one, or of copies of a written trace, never differ",
            f"Use another filter, or {_group_size(cfg)} of 2 or more with an algorithm that samples",
        )
    if cfg.filter.get("refill_rounds") and in_several_calls(cfg):
        raise UserError(
            f"filter.refill_rounds={cfg.filter.refill_rounds}",
            f"refills a whole outer step, but batch.sample_prompts={cfg.batch.sample_prompts} cuts it into sampling calls",
            "Use batch=preemptive, or filter.refill_rounds=0",
        )


def _kl(cfg: DictConfig) -> None:
    if _has_kl(cfg) and cfg.kl.estimator == "k1" and cfg.kl.place == "loss":
        raise UserError(
            "kl.estimator=k1",
            "has a gradient that is 0 on average when it is part of the loss",
            "Use k2 or k3, or kl.place=reward",
        )
    if kl_in_reward(cfg) and cfg.algo.train_sampler:
        raise UserError(
            "kl.place=reward", "needs completions of the policy, and SFT learns from written traces", "Use kl.place=loss"
        )
    if cfg.kl.schedule.get("target") and cfg.kl.coef == 0:
        raise UserError("kl.coef=0", "can never grow: an adaptive schedule multiplies it", "Start from a coefficient above 0")


def _off_policy(cfg: DictConfig) -> None:
    """Several optimizer steps from one sampling call, and losses with a ratio to the policy that sampled."""
    written = cfg.algo.train_sampler
    if cfg.batch.epochs * cfg.batch.minibatches > 1:
        where = f"batch.epochs={cfg.batch.epochs}, batch.minibatches={cfg.batch.minibatches}"
        if in_several_calls(cfg):
            raise UserError(
                where,
                f"use the completions of a whole outer step, but batch.sample_prompts={cfg.batch.sample_prompts} cuts it into "
                "sampling calls",
                "Use batch.sample_prompts=null",
            )
        if not has_ratio(cfg) and not written:
            raise UserError(
                where,
                f"make all but the first optimizer step off-policy, and algo={cfg.algo.name} has no ratio to correct for it",
                "Use algo=ppo_multi or ppo_mini, or 1 for both",
            )
    if cfg.batch.minibatches > cfg.batch.prompts * cfg.algo.group_size:
        raise UserError(
            f"batch.minibatches={cfg.batch.minibatches}",
            f"is more than the {cfg.batch.prompts * cfg.algo.group_size} completions of an outer step",
            "Lower it",
        )
    if cfg.rollout.truncated == "penalize" and written:
        raise UserError(
            "rollout.truncated=penalize", "would unlearn written traces that the token limit cuts off", "Use mask or score"
        )
    if has_ratio(cfg) and written:
        raise UserError(
            f"algo.loss._target_={cfg.algo.loss._target_}",
            "needs the log-probabilities of the policy that sampled, and written traces have none",
            "Use dash_exp.algorithms.losses.policy_gradient",
        )
