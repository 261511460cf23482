"""Names that the parts of a configuration (`_target_`) had in earlier versions.

A run folder keeps its configuration, which an evaluation, a report and a resumed run read again. Each of them passes the text
through `in_text`.
"""

from __future__ import annotations

import re

NAMES = {
    "dash_exp.algo.group_normalized": "dash_exp.algorithms.advantages.group_normalized",
    "dash_exp.algo.group_centered": "dash_exp.algorithms.advantages.group_centered",
    "dash_exp.algo.group_leave_one_out": "dash_exp.algorithms.advantages.group_leave_one_out",
    "dash_exp.algo.raw": "dash_exp.algorithms.advantages.raw",
    "dash_exp.algo.right": "dash_exp.algorithms.advantages.right",
    "dash_exp.algo.constant": "dash_exp.algorithms.advantages.constant",
    "dash_exp.algo.policy_gradient": "dash_exp.algorithms.losses.policy_gradient",
    "dash_exp.algo.ppo_clip": "dash_exp.algorithms.losses.ppo_clip",
    "dash_exp.algo.gspo": "dash_exp.algorithms.losses.gspo",
    "dash_exp.algo.cispo": "dash_exp.algorithms.losses.cispo",
    "dash_exp.ops.sequence_mean": "dash_exp.algorithms.weighting.sequence_mean",
    "dash_exp.ops.token_sum": "dash_exp.algorithms.weighting.token_sum",
    "dash_exp.ops.per_sampled": "dash_exp.algorithms.weighting.per_sampled",
    "dash_exp.ops.per_kept": "dash_exp.algorithms.weighting.per_kept",
    "dash_exp.ops.per_kept_token": "dash_exp.algorithms.weighting.per_kept_token",
    "dash_exp.ops.per_sampled_length": "dash_exp.algorithms.weighting.per_sampled_length",
    "dash_exp.filter.KeepAll": "dash_exp.algorithms.filters.KeepAll",
    "dash_exp.filter.AdvantageAbove": "dash_exp.algorithms.filters.AdvantageAbove",
    "dash_exp.filter.Quantile": "dash_exp.algorithms.filters.Quantile",
    "dash_exp.filter.PODS": "dash_exp.algorithms.filters.PODS",
    "dash_exp.filter.CPPO": "dash_exp.algorithms.filters.CPPO",
    "dash_exp.filter.ZeroVariance": "dash_exp.algorithms.filters.ZeroVariance",
    "dash_exp.kl.Constant": "dash_exp.algorithms.kl.Constant",
    "dash_exp.kl.Linear": "dash_exp.algorithms.kl.Linear",
    "dash_exp.kl.Cosine": "dash_exp.algorithms.kl.Cosine",
    "dash_exp.kl.Adaptive": "dash_exp.algorithms.kl.Adaptive",
    "dash_exp.data.arithmetic": "dash_exp.data.arithmetic.generate",
    "dash_exp.data.gsm8k": "dash_exp.data.gsm8k.load",
    "dash_exp.data.math": "dash_exp.data.math.load",
    "dash_exp.data.jsonl": "dash_exp.data.jsonl.load",
    "dash_exp.data.mbpp": "dash_exp.data.mbpp.load",
    "dash_exp.data.mbpp_plus": "dash_exp.data.mbpp_plus.load",
    "dash_exp.reward.ExactReward": "dash_exp.rewards.exact.ExactReward",
    "dash_exp.reward.MathReward": "dash_exp.rewards.math.MathReward",
    "dash_exp.reward.CodeReward": "dash_exp.rewards.code.CodeReward",
    "dash_exp.reward.FormatReward": "dash_exp.rewards.format.FormatReward",
    "dash_exp.reward.ModelReward": "dash_exp.rewards.model.ModelReward",
    "dash_exp.reward.SumReward": "dash_exp.rewards.sums.SumReward",
    "dash_exp.sampler.hf.HFSampler": "dash_exp.sampling.hf.HFSampler",
    "dash_exp.sampler.vllm.VLLMSampler": "dash_exp.sampling.vllm.VLLMSampler",
    "dash_exp.sampler.vllm_server.VLLMServerSampler": "dash_exp.sampling.vllm_server.VLLMServerSampler",
    "dash_exp.sampler.teacher.Teacher": "dash_exp.sampling.teacher.Teacher",
    "dash_exp.sampler.teacher.TeacherSampler": "dash_exp.sampling.teacher.TeacherSampler",
    "dash_exp.sampler.traces.TraceSampler": "dash_exp.sampling.traces.TraceSampler",
    "dash_exp.logger.wandb_logger": "dash_exp.results.wandb_logger.wandb_logger",
    "dash_exp.sweep.Ledger": "dash_exp.commands.sweep.ledger.Ledger",
    "dash_exp.cli.show_plan": "dash_exp.commands.cli.show_plan",
}
# Whole names only: `dash_exp.data.math` was a function, and is now a module, as in `dash_exp.data.math.load`.
_OLD = re.compile(rf"(?<![\w.])({'|'.join(map(re.escape, NAMES))})(?![\w.])")
_TRANSFER = re.compile(r"(?<!\w)(transfer(?:: *|=))http(?!\w)")  # to sampling servers, which read a folder now


def in_text(text: str) -> str:
    """The text of a configuration or of overrides, with today's names in place of the old ones."""
    return _TRANSFER.sub(r"\1folder", _OLD.sub(lambda found: NAMES[found[1]], text))
