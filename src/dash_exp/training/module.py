"""The lower half of an outer step: kept completions -> gradient -> new weights, published for the sampler."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import cast

import lightning as L
import torch
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor
from torch.optim.lr_scheduler import LRScheduler
from transformers import PreTrainedModel

from dash_exp.algorithms.kl import k3
from dash_exp.algorithms.weighting import StepCounts
from dash_exp.core.metrics import PHASES, SIDES, Clock, check_declared
from dash_exp.core.types import MicroBatch, Rollouts
from dash_exp.core.watch import Values, Watch, not_finite
from dash_exp.distributed.ranks import ALONE, Ranks
from dash_exp.evaluation.evaluator import Evaluation
from dash_exp.models import adapter
from dash_exp.models.batch import parts
from dash_exp.models.passes import Passes
from dash_exp.models.sharded import is_sharded, shard, whole
from dash_exp.sampling.refresh import Refresh
from dash_exp.training.accumulator import Accumulator
from dash_exp.training.measures import Row, kl_in_reward, rollout_metrics
from dash_exp.training.objective import Objective, Optimization
from dash_exp.training.sums import StepSums

FOR_CALLBACKS = ("reward/", "loss/", "accuracy/")  # metrics that Lightning's callbacks can stop or save by


class PolicyModule(L.LightningModule):
    """Policy and reference under manual optimization.

    `reference` is None where no KL stands in the loss: then nothing is computed for it. Of a policy with an adapter it may be
    the policy itself. `refresh` is told each new version of the policy. `watch` checks the completions, and each gradient
    before the optimizer step. Each of several `ranks` is given all completions and passes a share of the kept ones through the
    policy.

    After an outer step `row` holds its metrics, under the names of `metrics.METRICS` and `FAMILIES`, and `rollouts_of_step`
    all that was sampled, each `Rollouts.aside` as well. After an evaluation `accuracy` holds that of each test set, and `right`
    by test set and problem whether the greedy completion was correct.
    """

    def __init__(
        self,
        *,
        policy: PreTrainedModel,
        reference: PreTrainedModel | None,
        refresh: Refresh,
        objective: Objective,
        optimization: Optimization,
        passes: Passes,
        clock: Clock,
        test_names: Sequence[str],
        watch: Watch | None = None,
        ranks: Ranks = ALONE,
        sharded: bool = False,
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.policy = policy
        self.reference = reference
        self.refresh = refresh
        self.objective = objective
        self.optimization = optimization
        self.passes = passes
        self.clock = clock
        self.test_names = test_names
        self.watch = watch or Watch()
        self.ranks = ranks
        self.sharded = sharded
        self.gradient = Accumulator(
            policy,
            passes,
            ranks,
            loss=self._loss,
            empty_loss=self._empty_loss,
            backward=self.manual_backward,
            zero_grad=lambda: self._optimizer.zero_grad(),
        )
        self.policy_version = 0  # optimizer steps taken
        self.nonfinite_in_a_row = 0  # optimizer steps
        self.row: Row = {}
        self.accuracy: dict[str, float] = {}
        self.evaluation: dict[str, float | None] = {}
        self.right: dict[str, dict[str, bool]] = {}
        self.accuracy_version = -1
        self._evaluations: list[Evaluation] = []  # one of each test set
        self._start_outer_step()

    def _start_outer_step(self) -> None:
        self.rollouts_of_step: list[Rollouts] = []
        self._counts = StepCounts()
        self._sums = StepSums()
        self._rollout_row: Row = {}
        self._coef = 0.0  # of the KL
        self._lr = 0.0
        self._leave_out = False  # the optimizer steps of this outer step
        self._evaluated = False
        self.gradient.start()

    # --- one step: the algorithm -------------------------------------------------------------------------------------------

    def training_step(self, rollouts: Rollouts, batch_idx: int) -> None:
        """The completions of one sampling call, B of them. The last call of the outer step ends with the optimizer step(s).

        Raises UserError where a check of the watch ends the run, and where a single completion does not fit the memory.
        """
        last = self.trainer.is_last_batch
        samples_B, keep_B = rollouts.samples(), rollouts.keep_PG.view(-1).tolist()
        self._counts.add(samples_B, keep_B)
        self._receive(rollouts, last)
        how = self.optimization
        with self.clock("update"):
            for part in parts(len(samples_B), how.epochs, how.minibatches, [how.seed, self.current_epoch]):
                self.gradient.counts.add([samples_B[i] for i in part], [keep_B[i] for i in part])
                self.gradient.add([samples_B[i] for i in part if keep_B[i]], self._where)
                if last:
                    self._optimizer_step()
        if last:
            self._finish_update()

    def _loss(self, batch: MicroBatch, sums: StepSums) -> Tensor:
        """sum_bt weight_bt x (policy loss_bt + beta x KL_bt) of one micro-batch; what is measured goes into `sums`."""
        mask_BT = batch.completion_mask_BT
        logprobs_BT = self.passes.log_probs(self.policy, batch)
        loss_BT, clipped_BT = self.objective.token_loss(logprobs_BT, batch)
        if self.reference is not None and self._coef > 0:
            with torch.no_grad(), adapter.off(self.reference):
                ref_logprobs_BT = self.passes.log_probs(self.reference, batch)
            loss_BT = loss_BT + self._coef * self.objective.kl(logprobs_BT, ref_logprobs_BT)
            sums.kl += (k3(logprobs_BT.detach(), ref_logprobs_BT) * mask_BT).sum()
        sums.add_ratio(logprobs_BT.detach(), batch, clipped_BT, first_step=self._sums.taken == 0)
        weights_BT = self.objective.weighting(mask_BT)
        return (loss_BT * weights_BT).sum()

    def _optimizer_step(self) -> None:
        """Divide the summed gradient by the step's denominator, clip it and step, unless the watch leaves the step out.

        Before that, gradients and sums of all ranks are added up: from here on all have the same numbers, and decide the same.
        """
        sums = self.gradient.sums_of_all_ranks()
        denominator = max(self.objective.denominator(self.gradient.counts), 1)
        trained = [parameter for group in self._optimizer.param_groups for parameter in group["params"]]
        gradients = [gradient_of(parameter) for parameter in trained]
        if not is_sharded(self.policy):  # otherwise the backward passes have added them up
            self.ranks.add_up(gradients)
        for gradient in gradients:
            gradient.div_(denominator)
        sums.grad_norms = float(whole(torch.nn.utils.clip_grad_norm_(trained, self.optimization.clip_norm)))
        sums.loss = float(sums.loss) / denominator
        sums.denominators, sums.measured = denominator, 1
        self._lr = self._optimizer.param_groups[0]["lr"]
        if self._skip(sums):
            not_a_number = self.nonfinite_in_a_row > 0  # it would make every mean one
            skipped = StepSums(trained_tokens=sums.trained_tokens) if not_a_number else sums
            self._sums.add(replace(skipped, skipped=1))
        else:
            self._optimizer.step()
            self.policy_version += 1
            self._sums.add(replace(sums, taken=1))
        self._optimizer.zero_grad()
        self.gradient.start()

    # --- around it -----------------------------------------------------------------------------------------------------------

    def _receive(self, rollouts: Rollouts, last: bool) -> None:
        """Check the completions of a sampling call; after the last call, those of the whole outer step."""
        self.rollouts_of_step.append(rollouts)
        if rollouts.aside is not None:  # counted here, but not in the denominator of the loss
            self.rollouts_of_step.append(rollouts.aside)
            self._counts.add(rollouts.aside.samples(), [False] * len(rollouts.aside.completions))
        self._check({"rollouts/version": rollouts.policy_version, "rollouts/due": self.refresh.version(self.current_epoch)})
        if last:
            self._rollout_row = rollout_metrics(self.rollouts_of_step, self._counts, self.refresh.sampler)
            self._check(self._rollout_row)

    def _check(self, values: Values) -> None:
        """Ask the watch. What it finds in completions holds for all optimizer steps on them."""
        skip = self.watch.look(self._where, values)
        self._leave_out = self._leave_out or skip

    def _finish_update(self) -> None:
        """After the last optimizer step of an outer step: learning rate, KL coefficient, and the weights for the sampler."""
        cast(LRScheduler, self.lr_schedulers()).step()  # counts outer steps, so that all arms follow one schedule
        kl = self._mean_kl(self._sums)
        if kl is not None:
            self.objective.kl_coef.observe(kl)
        with self.clock("sync"):
            self.refresh.publish(self.policy_version)

    def _empty_loss(self, batch: MicroBatch) -> Tensor:
        """The same forward passes as `_loss`, with a gradient of 0."""
        loss = 0 * self.passes.log_probs(self.policy, batch).sum()
        if self.reference is not None and self._coef > 0:
            with torch.no_grad():
                self.passes.log_probs(self.reference, batch)
        return loss

    def _skip(self, sums: StepSums) -> bool:
        """Whether the optimizer step of these sums is to be left out.

        The KL is checked once, at the last optimizer step, as the mean of the outer step: a token that is far more likely under
        the reference adds exp(log-ratio), and on few completions the mean is that of one token.
        """
        so_far = replace(self._sums)
        so_far.add(sums)
        final = self._sums.taken + self._sums.skipped + 1 == self.optimization.steps
        values = self._means(sums) | {
            "kl/ref_nats_per_token": self._mean_kl(so_far) if final else None,
            "policy/lag": self._lag,
            "never_refreshed": self.refresh.every is None,
        }
        self.nonfinite_in_a_row = self.nonfinite_in_a_row + 1 if not_finite(values) else 0
        skip = self.watch.look(self._where, values | {"in_a_row": self.nonfinite_in_a_row})
        return skip or self._leave_out

    def configure_model(self) -> None:
        """Before `validate` and `fit`: leave this rank its part of policy and reference, where they are to be sharded."""
        if self.sharded and not is_sharded(self.policy):
            assert self.device_mesh is not None
            models = [self.policy, self.reference] if self.reference is not self.policy else [self.policy]  # with an adapter
            for model in models:
                if model is not None:
                    shard(model, self.device_mesh["data_parallel"])

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        optimizer = self.optimization.optimizer([p for p in self.policy.parameters() if p.requires_grad])
        return {"optimizer": optimizer, "lr_scheduler": self.optimization.schedule(optimizer=optimizer)}

    @property
    def _optimizer(self) -> LightningOptimizer:
        return cast(LightningOptimizer, self.optimizers())

    @property
    def micro_tokens(self) -> int:
        """The most tokens of a backward pass, as memory has allowed so far."""
        return self.gradient.micro_tokens

    @micro_tokens.setter
    def micro_tokens(self, value: int) -> None:
        self.gradient.micro_tokens = value

    @property
    def _where(self) -> str:
        return f"outer step {self.current_epoch + 1}"

    @property
    def _lag(self) -> int:
        """Outer steps between the weights that sampled and the policy's."""
        return self.current_epoch - self.refresh.due(self.current_epoch)

    # --- evaluation and metrics ----------------------------------------------------------------------------------------------

    def validation_step(self, done: Evaluation, batch_idx: int, dataloader_idx: int = 0) -> None:
        self._evaluations.append(done)

    def on_validation_epoch_end(self) -> None:
        done = dict(zip(self.test_names, self._evaluations, strict=True))
        self.accuracy = {name: evaluation.accuracy for name, evaluation in done.items()}
        self.evaluation = {f"eval/{name}/{key}": value for name, e in done.items() for key, value in e.summary().items()}
        self.right = {
            name: {p.id: bool(right) for p, right in zip(e.problems, e.greedy.correct, strict=True)} for name, e in done.items()
        }
        self.accuracy_version = self.policy_version
        self._evaluated = True
        self._evaluations = []

    def evaluation_row(self) -> Row:
        """Accuracy on each test set, and what else was measured there, without intervals."""
        accuracies = {f"accuracy/{name}": value for name, value in self.accuracy.items()}
        rest = {k: v for k, v in self.evaluation.items() if not k.endswith(("/low", "/high", "/accuracy"))}
        return accuracies | rest

    def on_train_epoch_start(self) -> None:
        self._start_outer_step()
        self._coef = self.objective.kl_coef(self.current_epoch)
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
            **{f"time/{name}_s": seconds for name, seconds in self.clock.new_snapshot_s().items()},
            **self.watch.end_step(float(self._rollout_row["reward/mean"] or 0)),
        }
        check_declared(self.row)
        return self.row

    def _update_metrics(self) -> Row:
        """What the optimizer steps of this outer step measured."""
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

    def _means(self, sums: StepSums) -> Row:
        return {**sums.means(), "kl/ref_nats_per_token": self._mean_kl(sums)}

    def _mean_kl(self, sums: StepSums) -> float | None:
        """k3 in nats per token: of the trained tokens where the KL stands in the loss, of the sampled ones in the reward."""
        in_reward = kl_in_reward(self.rollouts_of_step)
        if in_reward is not None:
            return in_reward
        if self.reference is None or self._coef == 0 or not sums.trained_completion_tokens:
            return None
        return float(sums.kl) / sums.trained_completion_tokens


def gradient_of(parameter: torch.nn.Parameter) -> Tensor:
    """Its gradient, 0 where no completion was kept."""
    if parameter.grad is None:
        parameter.grad = torch.zeros_like(parameter)
    return parameter.grad
