"""The lower half of an outer step: kept completions -> gradient -> new weights -> sampler."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import cast

import lightning as L
import torch
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from transformers import PreTrainedModel

from dash_exp.batch import micro_batches
from dash_exp.metrics import PHASES, Clock, check_declared
from dash_exp.ops import StepCounts, autocast, token_logprobs
from dash_exp.sampler import Sampler
from dash_exp.types import MicroBatch, Rollouts

Loss = Callable[[Tensor, Tensor], Tensor]
Estimator = Callable[[Tensor, Tensor], Tensor]


@dataclass
class _Sums:
    """Running sums over one outer step."""

    rollouts: list[Rollouts] = field(default_factory=list)
    counts: StepCounts = field(default_factory=StepCounts)
    trained_tokens: int = 0
    loss: float | Tensor = 0.0
    kl: float | Tensor = 0.0


class PolicyModule(L.LightningModule):
    """Policy and reference under manual optimization; one optimizer step per outer step.

    `reference` is None exactly where the KL coefficient is 0: then nothing is loaded and nothing is computed for it.
    `weighting` and `denominator` say how token losses become one number (see `ops`). `optimizer` takes parameters, `schedule`
    an optimizer. `pad_id` fills padded places. After a step `row` holds its metrics, under the names of `METRICS`.
    """

    def __init__(
        self,
        *,
        policy: PreTrainedModel,
        reference: PreTrainedModel | None,
        sampler: Sampler,
        loss: Loss,
        weighting: Callable[[Tensor], Tensor],
        denominator: Callable[[StepCounts], int],
        kl: Estimator,
        kl_coef: float,
        optimizer: Callable[..., Optimizer],
        schedule: Callable[..., LRScheduler],
        clip_norm: float,
        micro_tokens: int,
        temperature: float,
        pad_id: int,
        clock: Clock,
        test_names: list[str],
        compute_dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.policy = policy
        self.reference = reference
        self.sampler = sampler
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
        self.compute_dtype = compute_dtype
        self.policy_version = 0
        self.row: dict[str, float | int | None] = {}
        self.accuracy: dict[str, float] = {}
        self.accuracy_version = -1
        self._sums = _Sums()
        self._greedy: list[list[Tensor]] = [[] for _ in test_names]

    # --- training ------------------------------------------------------------------------------------------------------

    def training_step(self, rollouts: Rollouts, batch_idx: int) -> None:
        """The completions of one sampling call; the last call of the outer step ends with the optimizer step."""
        assert rollouts.policy_version in (None, self.policy_version), "completions of another policy version"
        optimizer, schedule = cast(LightningOptimizer, self.optimizers()), cast(LRScheduler, self.lr_schedulers())
        with self.clock("update"):
            samples = rollouts.kept()
            for batch in micro_batches(samples, self.micro_tokens, self.pad_id):
                with autocast(self.device, self.compute_dtype):
                    loss = self._loss(self._to_device(batch))
                self.manual_backward(loss)
                self._sums.loss += loss.detach()
            self._count(rollouts)
            if not self.trainer.is_last_batch:
                return
            self._divide_gradient(self.denominator(self._sums.counts))
            self.row = {
                "grad/norm": float(torch.nn.utils.clip_grad_norm_(self.policy.parameters(), self.clip_norm)),
                "optimizer/lr": optimizer.param_groups[0]["lr"],
            }
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
            self.policy_version += 1
        with self.clock("sync"):
            self.sampler.load_weights(self.policy, self.policy_version)

    def _loss(self, batch: MicroBatch) -> Tensor:
        """Weighted sum of the token losses of one micro-batch, not yet divided by the step's denominator."""
        logprobs_BT = token_logprobs(self.policy, batch, self.temperature)
        loss_BT = self.loss(logprobs_BT, batch.advantages_B)
        if self.reference is not None:
            with torch.no_grad():
                ref_logprobs_BT = token_logprobs(self.reference, batch, self.temperature)
            kl_BT = self.kl(logprobs_BT, ref_logprobs_BT) * batch.completion_mask_BT
            loss_BT = loss_BT + self.kl_coef * kl_BT
            self._sums.kl += kl_BT.detach().sum()
        return (loss_BT * self.weighting(batch.completion_mask_BT)).sum()

    def _divide_gradient(self, denominator: int) -> None:
        """Turn the summed gradient into the step's gradient. Where nothing was kept it is 0, as if all had been unfiltered."""
        for parameter in self.policy.parameters():
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            parameter.grad /= max(denominator, 1)
        self._sums.loss = float(self._sums.loss) / max(denominator, 1)

    def _count(self, rollouts: Rollouts) -> None:
        sums, counts = self._sums, self._sums.counts
        keep_B = rollouts.keep_PG.view(-1).tolist()
        lengths_B = [len(c.ids) for c in rollouts.completions]
        sums.rollouts.append(rollouts)
        counts.sampled += len(keep_B)
        counts.kept += sum(keep_B)
        counts.sampled_tokens += sum(lengths_B)
        counts.kept_tokens += sum(n for n, keep in zip(lengths_B, keep_B, strict=True) if keep)
        sums.trained_tokens += sum(len(s.prompt_ids) + len(s.completion_ids) for s in rollouts.kept())

    def _to_device(self, batch: MicroBatch) -> MicroBatch:
        return MicroBatch(**{name: value.to(self.device) for name, value in vars(batch).items()})

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        optimizer = self.make_optimizer(self.policy.parameters())
        return {"optimizer": optimizer, "lr_scheduler": self.make_schedule(optimizer=optimizer)}

    # --- evaluation and metrics ----------------------------------------------------------------------------------------

    def validation_step(self, rewards_P: Tensor, batch_idx: int, dataloader_idx: int = 0) -> None:
        self._greedy[dataloader_idx].append(rewards_P)

    def on_validation_epoch_end(self) -> None:
        self.accuracy = {
            name: float((torch.cat(rewards) == 1).double().mean())
            for name, rewards in zip(self.test_names, self._greedy, strict=True)
        }
        self.accuracy_version = self.policy_version
        self._greedy = [[] for _ in self.test_names]

    def on_train_epoch_start(self) -> None:
        self._sums = _Sums()
        self._clock_start = dict(self.clock.seconds)

    def on_train_epoch_end(self) -> None:
        """Hand the step's metrics to Lightning, so that its callbacks (early stopping, say) can watch any of them."""
        self.log_dict({k: float(v) for k, v in self.row.items() if v is not None}, logger=False)

    def finish_row(self) -> dict[str, float | int | None]:
        """The metrics of the outer step that has just ended, its evaluation included."""
        self.row = {"step": self.current_epoch + 1, **self.row, **self._rollout_metrics(), **self._step_metrics()}
        check_declared(self.row)
        return self.row

    def _step_metrics(self) -> dict[str, float | int | None]:
        evaluated = self.accuracy_version == self.policy_version
        seconds = {p: self.clock.seconds[p] - self._clock_start[p] for p in PHASES}
        return {
            "loss/total": float(self._sums.loss),
            "kl/coef": self.kl_coef,
            "policy/version": self.policy_version,
            **{f"accuracy/{name}": self.accuracy[name] if evaluated else None for name in self.test_names},
            **{f"time/{phase}_s": seconds[phase] for phase in PHASES},
        }

    def _rollout_metrics(self) -> dict[str, float | int | None]:
        """What the completions of this outer step say, each a mean over all that were sampled."""
        sums, counts, rollouts = self._sums, self._sums.counts, self._sums.rollouts
        rewards_PG = torch.cat([r.rewards_PG for r in rollouts])
        completions = [c for r in rollouts for c in r.completions]
        nll = [-sum(c.logprobs) for c in completions if c.logprobs is not None]
        return {
            "reward/mean": float(rewards_PG.mean()),
            "advantage/abs_mean": float(torch.cat([r.advantages_PG for r in rollouts]).abs().mean()),
            "filter/kept_fraction": counts.kept / counts.sampled,
            "groups/signal_fraction": float((rewards_PG.amax(1) != rewards_PG.amin(1)).float().mean()),
            "length/mean_tokens": counts.sampled_tokens / counts.sampled,
            "length/truncated_fraction": sum(c.truncated for c in completions) / counts.sampled,
            "policy/nll_nats_per_token": math.fsum(nll) / counts.sampled_tokens if nll else None,
            "kl/ref_nats_per_token": self._mean_kl(),
            "score/timeouts": sum(r.grader_timeouts for r in rollouts),
            "score/errors": sum(r.grader_errors for r in rollouts),
            "completions/sampled": counts.sampled,
            "completions/kept": counts.kept,
            "tokens/sampled": counts.sampled_tokens,
            "tokens/trained": sums.trained_tokens,
        }

    def _mean_kl(self) -> float | None:
        if self.reference is None or not self._sums.counts.kept_tokens:
            return None
        return float(self._sums.kl) / self._sums.counts.kept_tokens

    @property
    def rollouts_of_step(self) -> list[Rollouts]:
        """The rollouts that the last outer step learned from."""
        return self._sums.rollouts
