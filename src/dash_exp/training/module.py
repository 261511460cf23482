"""The lower half of an outer step: kept completions -> gradient -> new weights, published for the sampler."""

from __future__ import annotations

import logging
import math
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import reduce
from typing import Self, cast

import lightning as L
import numpy as np
import torch
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from transformers import PreTrainedModel

from dash_exp.algorithms.kl import Estimator, Schedule, k3
from dash_exp.algorithms.losses import TokenLoss, importance_weighted
from dash_exp.algorithms.weighting import StepCounts
from dash_exp.core.errors import UserError
from dash_exp.core.metrics import PHASES, SIDES, Clock, check_declared
from dash_exp.core.types import MicroBatch, Rollouts, Sample
from dash_exp.core.watch import Values, Watch, not_finite
from dash_exp.distributed.ranks import ALONE, Ranks
from dash_exp.evaluation.evaluator import Evaluation
from dash_exp.models import adapter, packing
from dash_exp.models.batch import balanced, collate, cuts, micro_batches, parts
from dash_exp.models.log_probs import autocast, token_logprobs
from dash_exp.models.sharded import is_sharded, whole
from dash_exp.sampling.refresh import Refresh

log = logging.getLogger(__name__)

Row = dict[str, float | int | None]
FOR_CALLBACKS = ("reward/", "loss/", "accuracy/")  # metrics that Lightning's callbacks can look at
Loss = Callable[[Tensor, Tensor | None, Tensor, Tensor], TokenLoss]


@dataclass
class _Sums:
    """Running sums of optimizer steps: of one, or of an outer step. Over tokens, one counts as often as it was trained on.

    `measured` optimizer steps are in the means: all but those left out because a number in them was not finite.
    """

    taken: int = 0
    skipped: int = 0
    measured: int = 0
    denominators: int = 0
    grad_norms: float = 0.0
    loss: float | Tensor = 0.0
    trained_tokens: int = 0
    trained_completion_tokens: int = 0
    kl: float | Tensor = 0.0
    ratio: float | Tensor = 0.0
    ratio_k3: float | Tensor = 0.0
    max_log_ratio: float | Tensor = 0.0
    mismatch: float | Tensor = 0.0
    max_mismatch: float | Tensor = 0.0
    mismatch_tokens: int = 0
    clipped: float | Tensor = 0.0
    has_ratio: bool = False
    has_clip: bool = False

    def add(self, step: _Sums) -> None:
        """One optimizer step more. What is not a number stays so."""
        for name in (f.name for f in fields(self)):
            ours, theirs = float(getattr(self, name)), float(getattr(step, name))
            total = np.maximum(ours, theirs) if name.startswith(("max_", "has_")) else ours + theirs
            setattr(self, name, type(getattr(_Sums, name))(total))


@dataclass
class _Update:
    """What has been gathered towards the next optimizer step. `calls`: the kept completions of each sampling call."""

    counts: StepCounts = field(default_factory=StepCounts)
    calls: list[Sequence[Sample]] = field(default_factory=list)
    sums: _Sums = field(default_factory=_Sums)


class PolicyModule(L.LightningModule):
    """Policy and reference under manual optimization. Of a policy with an adapter the reference may be the policy itself.

    An outer step takes `epochs` x `minibatches` optimizer steps (1 unless it is PPO): see `batch.parts`. More than one needs
    all completions of the step in one sampling call. `reference` is None where no KL stands in the loss: then nothing is
    computed for it. `kl_coef` gives the coefficient of each outer step. `weighting` and `denominator` say how token losses
    become one number (see `algorithms.weighting`). `optimizer` takes parameters, `schedule` an optimizer; it counts outer
    steps. `pad_id` fills padded places.
    `importance_cap` weighs tokens by their truncated ratio to the policy that sampled. `watch` is asked about
    the completions and about each gradient before the optimizer step. Each of several `ranks` is given all completions and
    passes a share of the kept ones through the policy. Where memory runs out in a forward or backward pass,
    `micro_tokens` is halved for good and the gradient of the optimizer step computed anew. After a step `row` holds its
    metrics, under the names of `metrics.METRICS` and `FAMILIES`. After an evaluation `accuracy` holds that of each test set,
    and `right` by test set and problem whether the greedy completion was correct.
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
        watch: Watch | None = None,
        compute_dtype: torch.dtype = torch.float32,
        ranks: Ranks = ALONE,
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
        self.watch = watch or Watch()
        self.nonfinite_in_a_row = 0  # optimizer steps
        self._leave_out = False  # the optimizer steps of this outer step
        self._evaluated = False  # in this outer step
        self.compute_dtype = compute_dtype
        self.ranks = ranks
        self.policy_version = 0
        self._coef = 0.0
        self._lr = 0.0
        self.row: Row = {}
        self.accuracy: dict[str, float] = {}
        self.evaluation: dict[str, float | None] = {}
        self.right: dict[str, dict[str, bool]] = {}
        self.accuracy_version = -1
        self._rollouts: list[Rollouts] = []
        self._counts = StepCounts()
        self._sums = _Sums()
        self._update = _Update()
        self._rollout_row: Row = {}
        self._parts: list[list[Evaluation]] = [[] for _ in test_names]

    # --- training ------------------------------------------------------------------------------------------------------

    def training_step(self, rollouts: Rollouts, batch_idx: int) -> None:
        """The completions of one sampling call. The last call of the outer step ends with the optimizer step(s).

        Raises UserError where a check of the watch ends the run, and where a single completion does not fit the memory.
        """
        last = self.trainer.is_last_batch
        self._rollouts.append(rollouts)
        samples, keep_B = rollouts.samples(), rollouts.keep_PG.view(-1).tolist()
        _count(self._counts, samples, keep_B)
        self._look({"rollouts/version": rollouts.policy_version, "rollouts/due": self.refresh.version(self.current_epoch)})
        if last:
            self._rollout_row = self._rollout_metrics()
            self._look(self._rollout_row)
        with self.clock("update"):
            for part in parts(len(samples), self.epochs, self.minibatches, [self.seed, self.current_epoch]):
                _count(self._update.counts, [samples[i] for i in part], [keep_B[i] for i in part])
                self._add_gradient(self._share([samples[i] for i in part if keep_B[i]]))
                if last:
                    self._optimizer_step()
        if last:
            cast(LRScheduler, self.lr_schedulers()).step()  # counts outer steps, so that all arms follow one schedule
            kl = self._mean_kl(self._sums)
            if kl is not None:
                self.kl_coef.observe(kl)
            with self.clock("sync"):
                self.refresh.publish(self.policy_version)

    def _share(self, samples: Sequence[Sample]) -> Sequence[Sample]:
        """This rank's part of them, of about as many tokens as the others'. Groups stay together: a prompt is computed once."""
        groups: dict[tuple[int, ...], list[int]] = {}
        for i, sample in enumerate(samples):
            groups.setdefault(sample.prompt_ids, []).append(i)
        units = list(groups.values()) if len(groups) >= 4 * self.ranks.size else [[i] for i in range(len(samples))]
        tokens = [sum(len(samples[i].completion_ids) for i in unit) + len(samples[unit[0]].prompt_ids) for unit in units]
        return [samples[i] for share in balanced(tokens, self.ranks.size)[self.ranks.index] for i in units[share]]

    def _look(self, values: Values) -> bool:
        """Ask the watch. What it says of completions holds for all optimizer steps on them."""
        skip = self.watch.look(self._where, values)
        self._leave_out = self._leave_out or skip
        return skip

    def _add_gradient(self, samples: Sequence[Sample]) -> None:
        """Add the gradient of these completions, summed and not yet divided, to that of the optimizer step.

        Where memory runs out, all that the step has seen is done again under half the token budget: a backward pass that broke
        off has left a part of its gradient.
        """
        self._update.calls.append(samples)
        todo = [samples]
        while (failed := self._backward(todo)) is not None:
            self._lower_budget(failed)
            todo = self._update.calls

    def _backward(self, calls: Sequence[Sequence[Sample]]) -> MicroBatch | None:
        """Add the gradient of these completions. Returns the micro-batch that did not fit the memory, None where all did."""
        packed = packing.enabled(self.policy)
        for samples in calls:
            more = self._more_passes(len(cuts(samples, self.micro_tokens, packed))) if is_sharded(self.policy) else 0
            for _, batch in micro_batches(samples, self.micro_tokens, self.pad_id, packed):
                if not self._fits(batch):
                    return batch
            for _ in range(more):
                self._empty_pass(packed)
        return None

    def _more_passes(self, mine: int) -> int:
        """How many passes this rank makes fewer than another. Where the policy is sharded, all have to take part in each."""
        return max(self.ranks.gather(mine)) - mine

    def _empty_pass(self, packed: bool) -> None:
        """Forward and backward passes like those of a micro-batch, with a gradient of 0."""
        batch = collate([Sample((self.pad_id,), (self.pad_id,), 0.0)], self.pad_id, packed).to(self.device)
        with autocast(self.device, self.compute_dtype):
            loss = 0 * token_logprobs(self.policy, batch, self.temperature).sum()
            if self.reference is not None and self._coef > 0:
                with torch.no_grad():
                    token_logprobs(self.reference, batch, self.temperature)
        self.manual_backward(loss)

    def _fits(self, batch: MicroBatch) -> bool:
        """Add the gradient of a micro-batch. False where memory ran out; what it took is free again then."""
        sums = self._update.sums
        try:
            with autocast(self.device, self.compute_dtype):
                loss = self._loss(batch.to(self.device))
            self.manual_backward(loss)
        except RuntimeError as error:
            if not out_of_memory(error):
                raise
            if is_sharded(self.policy):
                raise UserError(
                    self._where,
                    f"memory ran out in a backward pass of {batch.tokens} tokens, which the other ranks are in the middle of",
                    "Lower batch.micro_tokens; the same command goes on after the last snapshot",
                ) from error
            return False
        sums.loss += loss.detach()
        sums.trained_tokens += int(batch.attention_mask_BL.sum())
        sums.trained_completion_tokens += int(batch.completion_mask_BT.sum())
        return True

    def _lower_budget(self, failed: MicroBatch) -> None:
        """Halve the token budget, and begin the gradient of the optimizer step anew. UserError for a completion alone."""
        if len(failed.input_ids_BL) == 1:
            raise UserError(
                self._where,
                f"memory ran out in the backward pass of a single completion, of {failed.tokens} tokens with its prompt",
                "Lower rollout.max_response_tokens, write model.gradient_checkpointing=true, or use a smaller model",
            )
        cast(LightningOptimizer, self.optimizers()).zero_grad()
        self._update.sums = _Sums()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        self.micro_tokens = max(1, self.micro_tokens // 2)
        log.warning(
            "%s: memory ran out in a backward pass of %d tokens. From here on a pass has at most %d; write "
            "batch.micro_tokens=%d to have it from the start",
            self._where,
            failed.tokens,
            self.micro_tokens,
            self.micro_tokens,
        )

    def _loss(self, batch: MicroBatch) -> Tensor:
        """Weighted sum of the token losses of one micro-batch."""
        mask_BT = batch.completion_mask_BT
        logprobs_BT = token_logprobs(self.policy, batch, self.temperature)
        losses = self.loss(logprobs_BT, batch.old_logprobs_BT, batch.advantages_B, mask_BT)
        if self.importance_cap is not None:
            losses = importance_weighted(losses, logprobs_BT, batch.old_logprobs_BT, mask_BT, self.importance_cap)
        loss_BT, clipped_BT = losses
        if self.reference is not None and self._coef > 0:
            with torch.no_grad(), adapter.off(self.reference):
                ref_logprobs_BT = token_logprobs(self.reference, batch, self.temperature)
            loss_BT = loss_BT + self._coef * self.kl(logprobs_BT, ref_logprobs_BT)
            self._update.sums.kl += (k3(logprobs_BT.detach(), ref_logprobs_BT) * mask_BT).sum()
        self._sum_ratio(logprobs_BT.detach(), batch, clipped_BT)
        return (loss_BT * self.weighting(mask_BT)).sum()

    def _sum_ratio(self, logprobs_BT: Tensor, batch: MicroBatch, clipped_BT: Tensor | None) -> None:
        """How far the policy has moved from the one that sampled."""
        sums, mask_BT = self._update.sums, batch.completion_mask_BT
        if batch.old_logprobs_BT is not None:
            log_ratio_BT = (logprobs_BT - batch.old_logprobs_BT) * mask_BT
            sums.has_ratio = True
            sums.ratio += (log_ratio_BT.exp() * mask_BT).sum()
            sums.ratio_k3 += (torch.expm1(log_ratio_BT) - log_ratio_BT).sum()  # 0 where masked
            sums.max_log_ratio = log_ratio_BT.abs().max().clamp(min=sums.max_log_ratio)
            if self._sums.taken == 0:
                sums.mismatch += log_ratio_BT.abs().sum()
                sums.max_mismatch = sums.max_log_ratio
                sums.mismatch_tokens += int(mask_BT.sum())
        if clipped_BT is not None:
            sums.has_clip = True
            sums.clipped += (clipped_BT * mask_BT).sum()

    def _optimizer_step(self) -> None:
        """Divide the summed gradient by the step's denominator, clip it and step, unless the watch has it left out.

        Before that, gradients and sums of the ranks are added up: from here on all have the same numbers, and decide the same.
        """
        optimizer = cast(LightningOptimizer, self.optimizers())
        sums = self._of_all_ranks(self._update.sums)
        denominator = max(self.denominator(self._update.counts), 1)
        trained = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        gradients = [self._gradient(parameter) for parameter in trained]
        if not is_sharded(self.policy):  # then backward passes have added them up
            self.ranks.add_up(gradients)
        for gradient in gradients:
            gradient.div_(denominator)
        sums.grad_norms = float(whole(torch.nn.utils.clip_grad_norm_(trained, self.clip_norm)))
        sums.loss = float(sums.loss) / denominator
        sums.denominators = denominator
        sums.measured = 1
        self._lr = optimizer.param_groups[0]["lr"]
        if self._skip(sums):
            unusable = self.nonfinite_in_a_row > 0  # no mean would be a number
            self._sums.add(_Sums(skipped=1, trained_tokens=sums.trained_tokens) if unusable else replace(sums, skipped=1))
        else:
            optimizer.step()
            self.policy_version += 1
            self._sums.add(replace(sums, taken=1))
        optimizer.zero_grad()
        self._update = _Update()

    def _gradient(self, parameter: torch.nn.Parameter) -> Tensor:
        if parameter.grad is None:  # nothing was kept: the gradient is 0, as if all had been unfiltered
            parameter.grad = torch.zeros_like(parameter)
        return parameter.grad

    def _of_all_ranks(self, mine: _Sums) -> _Sums:
        """The sums of an optimizer step over all ranks. Where memory ran out on one, all have its token budget from now on."""
        plain = _Sums()
        plain.add(mine)  # as numbers of Python's
        found = self.ranks.gather((plain, self.micro_tokens))
        self.micro_tokens = min(micro_tokens for _, micro_tokens in found)
        total = _Sums()
        for sums, _ in found:
            total.add(sums)
        return total

    def _skip(self, sums: _Sums) -> bool:
        """Whether the optimizer step of these sums is to be left out.

        The KL is asked about once, at the last optimizer step, as the mean of the outer step: a token that the reference likes
        far better adds exp(log-ratio), and on few completions the mean is that of one token.
        """
        whole = replace(self._sums)
        whole.add(sums)
        final = self._sums.taken + self._sums.skipped + 1 == self.epochs * self.minibatches
        values = self._means(sums) | {
            "kl/ref_nats_per_token": self._mean_kl(whole) if final else None,
            "policy/lag": self._lag,
            "never_refreshed": self.refresh.every is None,
        }
        self.nonfinite_in_a_row = self.nonfinite_in_a_row + 1 if not_finite(values) else 0
        skip = self.watch.look(self._where, values | {"in_a_row": self.nonfinite_in_a_row})
        return skip or self._leave_out

    def cpu(self) -> Self:
        """Lightning moves the module there after each `validate` and `fit`; a sharded policy stays where its ranks have it."""
        return self if is_sharded(self.policy) else super().cpu()

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        optimizer = self.make_optimizer([p for p in self.policy.parameters() if p.requires_grad])
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
        self._evaluated = True
        self._parts = [[] for _ in self.test_names]

    def evaluation_row(self) -> Row:
        """Accuracy on each test set, and what else was measured there, without intervals."""
        accuracies = {f"accuracy/{name}": value for name, value in self.accuracy.items()}
        rest = {k: v for k, v in self.evaluation.items() if not k.endswith(("/low", "/high", "/accuracy"))}
        return accuracies | rest

    def on_train_epoch_start(self) -> None:
        self._rollouts, self._counts = [], StepCounts()
        self._sums, self._update = _Sums(), _Update()
        self._leave_out = self._evaluated = False
        self._coef = self.kl_coef(self.current_epoch)
        self._clock_start = (dict(self.clock.seconds), dict(self.clock.idle))

    def on_train_epoch_end(self) -> None:
        """Hand Lightning what its callbacks stop or save by (`callback_metrics`). The whole of `row` would take 20 ms."""
        watched = {k: v for k, v in self.row.items() if k.startswith(FOR_CALLBACKS)}
        self.log_dict({k: float(v) for k, v in watched.items() if v is not None}, logger=False)

    def finish_row(self) -> Row:
        """The metrics of the outer step that has just ended, its evaluation included."""
        self.row = {
            "step": self.current_epoch + 1,
            **self._rollout_row,
            **self._update_metrics(),
            **(self.evaluation_row() if self._evaluated else {}),
            **{f"time/{phase}_s": self.clock.seconds[phase] - self._clock_start[0][phase] for phase in PHASES},
            **{f"time/{side}_idle_s": self.clock.idle[side] - self._clock_start[1][side] for side in SIDES},
            **self.watch.end_step(float(self._rollout_row["reward/mean"] or 0)),
        }
        check_declared(self.row)
        return self.row

    def _update_metrics(self) -> Row:
        """What the optimizer steps of this outer step say."""
        return {
            **self._means(self._sums),
            "optimizer/lr": self._lr,
            "optimizer/steps": self._sums.taken,
            "optimizer/skipped_steps": self._sums.skipped,
            "kl/coef": self._coef,
            "policy/lag": self._lag if self._sums.has_ratio else None,
            "policy/version": self.policy_version,
            "tokens/trained": self._sums.trained_tokens,
            "batch/micro_tokens": self.micro_tokens,
        }

    def _means(self, sums: _Sums) -> Row:
        """Means over these optimizer steps, or over the tokens they saw."""
        steps, tokens = sums.measured, max(sums.trained_completion_tokens, 1)
        return {
            "loss/total": float(sums.loss) / steps if steps else None,
            "loss/denominator": sums.denominators / steps if steps else None,
            "grad/norm": sums.grad_norms / steps if steps else None,
            "kl/ref_nats_per_token": self._mean_kl(sums),
            "policy/ratio_mean": float(sums.ratio) / tokens if sums.has_ratio else None,
            "policy/ratio_max_log": float(sums.max_log_ratio) if sums.has_ratio else None,
            "policy/approx_kl_nats_per_token": float(sums.ratio_k3) / tokens if sums.has_ratio else None,
            "policy/clip_fraction": float(sums.clipped) / tokens if sums.has_clip else None,
            "mismatch/mean_nats": float(sums.mismatch) / sums.mismatch_tokens if sums.mismatch_tokens else None,
            "mismatch/max_nats": float(sums.max_mismatch) if sums.mismatch_tokens else None,
        }

    def _rollout_metrics(self) -> Row:
        """What the completions of this outer step say, each a mean over all that were sampled."""
        counts, rollouts = self._counts, self._rollouts
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

    def _mean_kl(self, sums: _Sums) -> float | None:
        """k3 in nats per token: of the trained tokens where the KL stands in the loss, of the sampled ones in the reward."""
        in_reward = [r.kl_nats for r in self._rollouts if r.kl_nats is not None]
        if in_reward:
            return math.fsum(in_reward) / self._counts.sampled_tokens
        if self.reference is None or self._coef == 0 or not sums.trained_completion_tokens:
            return None
        return float(sums.kl) / sums.trained_completion_tokens

    @property
    def rollouts_of_step(self) -> list[Rollouts]:
        """The rollouts that the last outer step learned from."""
        return self._rollouts

    @property
    def _where(self) -> str:
        return f"outer step {self.current_epoch + 1}"

    @property
    def _lag(self) -> int:
        """Outer steps between the weights that sampled and the policy's."""
        return self.current_epoch - self.refresh.due(self.current_epoch)


def _count(counts: StepCounts, samples: Sequence[Sample], keep: Sequence[bool]) -> None:
    lengths = [len(s.completion_ids) for s in samples]
    counts.sampled += len(samples)
    counts.kept += sum(keep)
    counts.sampled_tokens += sum(lengths)
    counts.kept_tokens += sum(n for n, kept in zip(lengths, keep, strict=True) if kept)


def out_of_memory(error: RuntimeError) -> bool:
    """Whether torch ran out of memory: an exception of its own on a GPU, words of its allocators elsewhere."""
    words = ("can't allocate memory", "not enough memory", "out of memory")
    return isinstance(error, torch.OutOfMemoryError) or any(w in str(error) for w in words)


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)
