"""The lower half of an outer step: kept completions -> gradient -> new weights, published for the sampler."""

from __future__ import annotations

import logging
import math
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import reduce
from typing import cast

import lightning as L
import torch
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from transformers import PreTrainedModel

from dash_exp.algo import TokenLoss, importance_weighted
from dash_exp.batch import micro_batches, parts
from dash_exp.evaluation import Evaluation
from dash_exp.kl import Estimator, Schedule, k3
from dash_exp.metrics import PHASES, SIDES, Clock, check_declared
from dash_exp.ops import StepCounts, autocast, token_logprobs
from dash_exp.sampler.refresh import Refresh
from dash_exp.types import MicroBatch, Rollouts, Sample

log = logging.getLogger(__name__)

Loss = Callable[[Tensor, Tensor | None, Tensor, Tensor], TokenLoss]


@dataclass
class _Sums:
    """Running sums over one outer step. Sums over tokens count a token as often as it was trained on."""

    rollouts: list[Rollouts] = field(default_factory=list)
    counts: StepCounts = field(default_factory=StepCounts)
    optimizer_steps: int = 0
    denominators: int = 0
    grad_norms: float = 0.0
    loss: float = 0.0
    trained_tokens: int = 0
    trained_completion_tokens: int = 0
    kl: float | Tensor = 0.0
    ratio: float | Tensor = 0.0
    ratio_k3: float | Tensor = 0.0
    max_log_ratio: float | Tensor = 0.0
    mismatch: float | Tensor = 0.0
    max_mismatch: float | Tensor = 0.0
    mismatch_tokens: int = 0
    clipped: float | Tensor | None = None
    has_ratio: bool = False


@dataclass
class _Update:
    """What has been summed towards the next optimizer step."""

    counts: StepCounts = field(default_factory=StepCounts)
    loss: float | Tensor = 0.0


class PolicyModule(L.LightningModule):
    """Policy and reference under manual optimization.

    An outer step takes `epochs` x `minibatches` optimizer steps (1 unless it is PPO): see `batch.parts`. More than one needs
    all completions of the step in one sampling call. `reference` is None where no KL stands in the loss: then nothing is
    computed for it. `kl_coef` gives the coefficient of each outer step. `weighting` and `denominator` say how token losses
    become one number (see `ops`). `optimizer` takes parameters, `schedule` an optimizer; it counts outer steps. `pad_id` fills
    padded places. `importance_cap` weighs tokens by their truncated ratio to the policy that sampled. `mismatch_limit` (nats)
    is the mean difference to the sampler's log-probabilities beyond which a warning says that its weights are wrong. After a
    step `row` holds its metrics, under the names of `metrics.METRICS` and `FAMILIES`. After an evaluation `accuracy` holds
    that of each test set, and `right` by test set and problem whether the greedy completion was correct.
    """

    def __init__(
        self,
        *,
        policy: PreTrainedModel,
        reference: PreTrainedModel | None,
        refresh: Refresh,
        loss: Loss,
        weighting: Callable[[Tensor], Tensor],
        denominator: Callable[[StepCounts], int],
        kl: Estimator,
        kl_coef: Schedule,
        optimizer: Callable[..., Optimizer],
        schedule: Callable[..., LRScheduler],
        clip_norm: float,
        micro_tokens: int,
        temperature: float,
        pad_id: int,
        clock: Clock,
        test_names: list[str],
        epochs: int = 1,
        minibatches: int = 1,
        seed: int = 0,
        importance_cap: float | None = None,
        mismatch_limit: float = 1e-4,
        compute_dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.policy = policy
        self.reference = reference
        self.refresh = refresh
        self.loss = loss
        self.weighting = weighting
        self.denominator = denominator
        self.kl = kl
        self.kl_coef = kl_coef
        self.make_optimizer = optimizer
        self.make_schedule = schedule
        self.clip_norm = clip_norm
        self.micro_tokens = micro_tokens
        self.temperature = temperature
        self.pad_id = pad_id
        self.clock = clock
        self.test_names = test_names
        self.epochs = epochs
        self.minibatches = minibatches
        self.seed = seed
        self.importance_cap = importance_cap
        self.mismatch_limit = mismatch_limit
        self._warned_at = 0.0  # nats
        self.compute_dtype = compute_dtype
        self.policy_version = 0
        self._coef = 0.0
        self._lr = 0.0
        self.row: dict[str, float | int | None] = {}
        self.accuracy: dict[str, float] = {}
        self.evaluation: dict[str, float | None] = {}
        self.right: dict[str, dict[str, bool]] = {}
        self.accuracy_version = -1
        self._sums = _Sums()
        self._update = _Update()
        self._parts: list[list[Evaluation]] = [[] for _ in test_names]

    # --- training ------------------------------------------------------------------------------------------------------

    def training_step(self, rollouts: Rollouts, batch_idx: int) -> None:
        """The completions of one sampling call. The last call of the outer step ends with the optimizer step(s)."""
        due = self.refresh.version(self.current_epoch)
        assert rollouts.policy_version in (None, due), f"completions of version {rollouts.policy_version}, not {due}"
        with self.clock("update"):
            self._sums.rollouts.append(rollouts)
            samples, keep_B = rollouts.samples(), rollouts.keep_PG.view(-1).tolist()
            _count(self._sums.counts, samples, keep_B)
            for part in parts(len(samples), self.epochs, self.minibatches, [self.seed, self.current_epoch]):
                _count(self._update.counts, [samples[i] for i in part], [keep_B[i] for i in part])
                self._backward([samples[i] for i in part if keep_B[i]])
                if self.trainer.is_last_batch:
                    self._optimizer_step()
        if self.trainer.is_last_batch:
            cast(LRScheduler, self.lr_schedulers()).step()  # counts outer steps, so that all arms follow one schedule
            kl = self._mean_kl()
            if kl is not None:
                self.kl_coef.observe(kl)
            with self.clock("sync"):
                self.refresh.publish(self.policy_version)
            self._check_mismatch()

    def _backward(self, samples: Sequence[Sample]) -> None:
        """Add the gradient of these completions, summed and not yet divided."""
        for _, batch in micro_batches(samples, self.micro_tokens, self.pad_id):
            with autocast(self.device, self.compute_dtype):
                loss = self._loss(batch.to(self.device))
            self.manual_backward(loss)
            self._update.loss += loss.detach()
            self._sums.trained_tokens += int(batch.attention_mask_BL.sum())
            self._sums.trained_completion_tokens += int(batch.completion_mask_BT.sum())

    def _loss(self, batch: MicroBatch) -> Tensor:
        """Weighted sum of the token losses of one micro-batch."""
        mask_BT = batch.completion_mask_BT
        logprobs_BT = token_logprobs(self.policy, batch, self.temperature)
        losses = self.loss(logprobs_BT, batch.old_logprobs_BT, batch.advantages_B, mask_BT)
        if self.importance_cap is not None:
            losses = importance_weighted(losses, logprobs_BT, batch.old_logprobs_BT, mask_BT, self.importance_cap)
        loss_BT, clipped_BT = losses
        if self.reference is not None and self._coef > 0:
            with torch.no_grad():
                ref_logprobs_BT = token_logprobs(self.reference, batch, self.temperature)
            loss_BT = loss_BT + self._coef * self.kl(logprobs_BT, ref_logprobs_BT)
            self._sums.kl += (k3(logprobs_BT.detach(), ref_logprobs_BT) * mask_BT).sum()
        self._watch_ratio(logprobs_BT.detach(), batch, clipped_BT)
        return (loss_BT * self.weighting(mask_BT)).sum()

    def _watch_ratio(self, logprobs_BT: Tensor, batch: MicroBatch, clipped_BT: Tensor | None) -> None:
        """How far the policy has moved from the one that sampled."""
        sums, mask_BT = self._sums, batch.completion_mask_BT
        if batch.old_logprobs_BT is not None:
            log_ratio_BT = (logprobs_BT - batch.old_logprobs_BT) * mask_BT
            sums.has_ratio = True
            sums.ratio += (log_ratio_BT.exp() * mask_BT).sum()
            sums.ratio_k3 += (torch.expm1(log_ratio_BT) - log_ratio_BT).sum()  # 0 where masked
            sums.max_log_ratio = log_ratio_BT.abs().max().clamp(min=sums.max_log_ratio)
            if sums.optimizer_steps == 0:
                sums.mismatch += log_ratio_BT.abs().sum()
                sums.max_mismatch = sums.max_log_ratio
                sums.mismatch_tokens += int(mask_BT.sum())
        if clipped_BT is not None:
            sums.clipped = (0.0 if sums.clipped is None else sums.clipped) + (clipped_BT * mask_BT).sum()

    def _check_mismatch(self) -> None:
        """Warn where the completions are not those of the weights that they should be of.

        Where weights are old on purpose, evaluation looks (`RolloutDataModule.evaluate`): it samples with the newest.
        """
        sums, lag = self._sums, self.current_epoch - self.refresh.due(self.current_epoch)
        mean = float(sums.mismatch) / max(sums.mismatch_tokens, 1)
        wrong = None
        if lag == 0 and not mean <= self.mismatch_limit:  # not a number is no match either
            wrong = (
                f"the sampler says that it has the policy's weights, but its log-probabilities differ by {mean:.2g} nats a "
                f"token on average, at most by {float(sums.max_mismatch):.2g} (limit of the mean: {self.mismatch_limit:g}). "
                "Its weights are stale or incomplete, or it computes in another way; rollout.mismatch_limit sets the limit"
            )
        elif self.refresh.every is None and lag > 0 and sums.has_ratio:
            wrong = (
                f"the completions come from weights that are {lag} outer step(s) old and are never refreshed "
                f"(log-probabilities differ by {mean:.2g} nats a token). Write rollout.refresh_every=1"
            )
        if wrong and not mean <= self._warned_at:
            self._warned_at = 10 * mean  # once, and again when it has become much worse
            log.warning("outer step %d: %s", self.current_epoch + 1, wrong)

    def _optimizer_step(self) -> None:
        """Divide the summed gradient by the step's denominator, clip it and step."""
        optimizer = cast(LightningOptimizer, self.optimizers())
        denominator = max(self.denominator(self._update.counts), 1)
        for parameter in self.policy.parameters():
            if parameter.grad is None:  # nothing was kept: the gradient is 0, as if all had been unfiltered
                parameter.grad = torch.zeros_like(parameter)
            parameter.grad /= denominator
        self._sums.grad_norms += float(torch.nn.utils.clip_grad_norm_(self.policy.parameters(), self.clip_norm))
        self._sums.loss += float(self._update.loss) / denominator
        self._sums.denominators += denominator
        self._sums.optimizer_steps += 1
        self._lr = optimizer.param_groups[0]["lr"]
        optimizer.step()
        optimizer.zero_grad()
        self.policy_version += 1
        self._update = _Update()

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        optimizer = self.make_optimizer(self.policy.parameters())
        return {"optimizer": optimizer, "lr_scheduler": self.make_schedule(optimizer=optimizer)}

    # --- evaluation and metrics ----------------------------------------------------------------------------------------

    def validation_step(self, part: Evaluation, batch_idx: int, dataloader_idx: int = 0) -> None:
        self._parts[dataloader_idx].append(part)

    def on_validation_epoch_end(self) -> None:
        done = {name: reduce(operator.add, parts) for name, parts in zip(self.test_names, self._parts, strict=True)}
        self.accuracy = {name: evaluation.accuracy for name, evaluation in done.items()}
        self.evaluation = {f"eval/{name}/{key}": value for name, e in done.items() for key, value in e.summary().items()}
        self.right = {
            name: {p.id: bool(right) for p, right in zip(e.problems, e.greedy.correct, strict=True)} for name, e in done.items()
        }
        self.accuracy_version = self.policy_version
        self._parts = [[] for _ in self.test_names]

    def evaluation_row(self) -> dict[str, float | int | None]:
        """Accuracy on each test set, and what else was measured there, without intervals."""
        accuracies = {f"accuracy/{name}": value for name, value in self.accuracy.items()}
        rest = {k: v for k, v in self.evaluation.items() if not k.endswith(("/low", "/high", "/accuracy"))}
        return accuracies | rest

    def on_train_epoch_start(self) -> None:
        self._sums, self._update = _Sums(), _Update()
        self._coef = self.kl_coef(self.current_epoch)
        self._clock_start = (dict(self.clock.seconds), dict(self.clock.idle))

    def on_train_epoch_end(self) -> None:
        """Hand the step's metrics to Lightning, so that its callbacks (early stopping, say) can watch any of them."""
        self.log_dict({k: float(v) for k, v in self.row.items() if v is not None}, logger=False)

    def finish_row(self) -> dict[str, float | int | None]:
        """The metrics of the outer step that has just ended, its evaluation included."""
        evaluated = self.accuracy_version == self.policy_version
        self.row = {
            "step": self.current_epoch + 1,
            **self._rollout_metrics(),
            **self._update_metrics(),
            **(self.evaluation_row() if evaluated else {}),
            **{f"time/{phase}_s": self.clock.seconds[phase] - self._clock_start[0][phase] for phase in PHASES},
            **{f"time/{side}_idle_s": self.clock.idle[side] - self._clock_start[1][side] for side in SIDES},
        }
        check_declared(self.row)
        return self.row

    def _update_metrics(self) -> dict[str, float | int | None]:
        """What the optimizer steps of this outer step say, each a mean over them or over the tokens they saw."""
        sums = self._sums
        tokens = max(sums.trained_completion_tokens, 1)
        clipped = None if sums.clipped is None else float(sums.clipped) / tokens
        return {
            "loss/total": sums.loss / sums.optimizer_steps,
            "loss/denominator": sums.denominators / sums.optimizer_steps,
            "grad/norm": sums.grad_norms / sums.optimizer_steps,
            "optimizer/lr": self._lr,
            "optimizer/steps": sums.optimizer_steps,
            "kl/coef": self._coef,
            "kl/ref_nats_per_token": self._mean_kl(),
            "policy/ratio_mean": float(sums.ratio) / tokens if sums.has_ratio else None,
            "policy/ratio_max_log": float(sums.max_log_ratio) if sums.has_ratio else None,
            "policy/approx_kl_nats_per_token": float(sums.ratio_k3) / tokens if sums.has_ratio else None,
            "policy/clip_fraction": clipped,
            "policy/lag": self.current_epoch - self.refresh.due(self.current_epoch) if sums.has_ratio else None,
            "mismatch/mean_nats": float(sums.mismatch) / max(sums.mismatch_tokens, 1) if sums.has_ratio else None,
            "mismatch/max_nats": float(sums.max_mismatch) if sums.has_ratio else None,
            "policy/version": self.policy_version,
            "tokens/trained": sums.trained_tokens,
        }

    def _rollout_metrics(self) -> dict[str, float | int | None]:
        """What the completions of this outer step say, each a mean over all that were sampled."""
        counts, rollouts = self._sums.counts, self._sums.rollouts
        rewards_PG = torch.cat([r.rewards_PG for r in rollouts])
        before_PG = torch.cat([r.before_filter_PG for r in rollouts])
        advantages_PG = torch.cat([r.advantages_PG for r in rollouts])
        keep_PG = torch.cat([r.keep_PG for r in rollouts])
        completions = [c for r in rollouts for c in r.completions]
        nll = [-sum(c.logprobs) for c in completions if c.logprobs is not None]
        return {
            "reward/mean": float(rewards_PG.mean()),
            **{f"reward/{n}": _mean([v for r in rollouts for v in r.components[n]]) for n in rollouts[0].components},
            "advantage/abs_mean": float(before_PG.abs().mean()),
            "advantage/kept_abs_mean": float(advantages_PG[keep_PG].abs().mean()) if keep_PG.any() else None,
            "filter/kept_fraction": counts.kept / counts.sampled,
            "filter/refill_rounds": sum(r.refill_rounds for r in rollouts),
            "groups/signal_fraction": float((rewards_PG.amax(1) != rewards_PG.amin(1)).float().mean()),
            "length/mean_tokens": counts.sampled_tokens / counts.sampled,
            "length/truncated_fraction": sum(c.truncated for c in completions) / counts.sampled,
            "policy/nll_nats_per_token": math.fsum(nll) / counts.sampled_tokens if nll else None,
            "sampler/servers": getattr(self.refresh.sampler, "active_servers", None),
            "sampler/resent_prompts": getattr(self.refresh.sampler, "resent_prompts", None),
            "score/timeouts": sum(r.grader_timeouts for r in rollouts),
            "score/errors": sum(r.grader_errors for r in rollouts),
            "completions/sampled": counts.sampled,
            "completions/kept": counts.kept,
            "tokens/sampled": counts.sampled_tokens,
        }

    def _mean_kl(self) -> float | None:
        """k3 in nats per token: of the trained tokens where the KL stands in the loss, of the sampled ones in the reward."""
        sums = self._sums
        in_reward = [r.kl_nats for r in sums.rollouts if r.kl_nats is not None]
        if in_reward:
            return math.fsum(in_reward) / sums.counts.sampled_tokens
        if self.reference is None or self._coef == 0 or not sums.trained_completion_tokens:
            return None
        return float(sums.kl) / sums.trained_completion_tokens

    @property
    def rollouts_of_step(self) -> list[Rollouts]:
        """The rollouts that the last outer step learned from."""
        return self._sums.rollouts


def _count(counts: StepCounts, samples: Sequence[Sample], keep: Sequence[bool]) -> None:
    lengths = [len(s.completion_ids) for s in samples]
    counts.sampled += len(samples)
    counts.kept += sum(keep)
    counts.sampled_tokens += sum(lengths)
    counts.kept_tokens += sum(n for n, kept in zip(lengths, keep, strict=True) if kept)


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)
