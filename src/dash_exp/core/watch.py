"""The watch over a run: checks of its metrics that find faults which would not end it, and what is done when one fires.

A check reads metrics by their names (`metrics.METRICS`), so it sees the number that is logged. It is called before an optimizer
step, as soon as its metrics are known, and does not fire where they were not measured.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from dash_exp.core.errors import UserError

log = logging.getLogger(__name__)

NONFINITE_ADVICE = "Lower optimizer.lr, or use model.compute_dtype=float32 where it is another"
POLICIES = ("off", "warn", "skip_step", "stop")

Values = Mapping[str, float | int | None]
Settings = Mapping[str, Any]
Finding = tuple[str, str] | None  # what was seen, and what to try; None: the check does not fire


@dataclass(frozen=True)
class Limit:
    """A setting of a check: its default and the values that are allowed.

    `whole`: a whole number; `least`: at least that; `above` and `under`: more and less than that; `optional`: or null.
    """

    default: float | int | None
    whole: bool = False
    least: float | None = None
    above: float | None = None
    under: float | None = None
    optional: bool = False


@dataclass(frozen=True)
class Check:
    """A check of the watch. `meaning` says when it fires.

    `sees` gets the values, the check's settings and the mean rewards of the earlier outer steps. `can_skip` is false where
    skipping optimizer steps would keep the policy in the state that the check reports.
    """

    meaning: str
    sees: Callable[[Values, Settings, Sequence[float]], Finding]
    limits: Mapping[str, Limit] = field(default_factory=dict)
    policy: str = "warn"
    can_skip: bool = True


class Watch:
    """The checks of one run.

    `settings`: by check, its `policy` and its limits; what is not given has the default in `CHECKS`. `mismatch_limit`, in nats,
    is the limit of `mismatch`. `counts`: outer steps in which each check has fired, the present one included. `stopped_by`: the
    check that ended the run.
    """

    def __init__(self, settings: Mapping[str, Settings] | None = None, mismatch_limit: float = 1e-4) -> None:
        given = settings or {}
        self.settings: dict[str, dict[str, Any]] = {
            name: {"policy": check.policy, **{k: limit.default for k, limit in check.limits.items()}, **given.get(name, {})}
            for name, check in CHECKS.items()
        }
        self.settings["mismatch"]["above"] = mismatch_limit
        self.counts = dict.fromkeys(CHECKS, 0)
        self.stopped_by: str | None = None
        self._fired: set[str] = set()  # in this outer step
        self._rewards: list[float] = []

    def look(self, where: str, values: Values) -> bool:
        """Run every check on these values. Returns whether to skip the optimizer step that they belong to.

        Logs a warning in the 1st, 2nd, 4th, 8th... outer step in which a check fires. Raises UserError, for the place `where`,
        if a check with the policy `stop` fires.
        """
        skip = False
        for name, check in CHECKS.items():
            policy = self._policy(name, values)
            finding = None if policy == "off" else check.sees(values, self.settings[name], self._rewards)
            if finding is None:
                continue
            first = name not in self._fired
            self._fired.add(name)
            self.counts[name] += first
            if policy == "stop":
                self.stopped_by = name
                raise UserError(
                    f"{where}, watch.{name}", finding[0], f"{finding[1]}; {self._to_continue(name)} lets the run continue"
                )
            skip = skip or policy == "skip_step"
            if first and self.counts[name].bit_count() == 1:
                log.warning(
                    "%s: %s. %s (watch.%s.policy=%s; outer steps so far: %d)", where, *finding, name, policy, self.counts[name]
                )
        return skip

    def end_step(self, mean_reward: float) -> dict[str, int]:
        """End the outer step. Returns its columns `watch/NAME`: 1 where the check fired, else 0."""
        self._rewards += [mean_reward] if math.isfinite(mean_reward) else []
        fired, self._fired = self._fired, set()
        return {f"watch/{name}": int(name in fired) for name in CHECKS}

    def restore(self, rows: Iterable[Values]) -> None:
        """Continue after the outer steps of these rows of metrics."""
        for row in rows:
            reward = row.get("reward/mean")
            self._rewards += [] if reward is None or not math.isfinite(reward) else [reward]
            for name in CHECKS:
                self.counts[name] += int(row.get(f"watch/{name}") or 0)

    def _policy(self, name: str, values: Values) -> str:
        policy, most = self.settings[name]["policy"] or "off", self.settings[name].get("in_a_row")  # YAML reads off as false
        too_many = most is not None and (values.get("in_a_row") or 0) >= most
        return "stop" if policy == "skip_step" and too_many else policy

    def _to_continue(self, name: str) -> str:
        more = self.settings[name]["policy"] == "skip_step"  # it has skipped too many steps
        return f"watch.{name}.in_a_row=null" if more else f"watch.{name}.policy=warn"


def check_trained(rows: Iterable[Values]) -> None:
    """At the end of a run with these rows of metrics: raise UserError where most of its optimizer steps were left out because
    a number was not finite. It has not done what its settings say.
    """
    left_out = total = 0
    for row in rows:
        taken, skipped = (int(row.get(f"optimizer/{name}") or 0) for name in ("steps", "skipped_steps"))
        total += taken + skipped
        left_out += skipped if row.get("watch/nonfinite") else 0
    if 2 * left_out > total:
        raise UserError(
            "watch.nonfinite",
            f"{left_out} of {total} optimizer steps were left out, because loss or gradient was NaN or infinite",
            f"{NONFINITE_ADVICE}; then add resume=false",
        )


# --- the checks --------------------------------------------------------------------------------------------------------


def not_finite(values: Values) -> list[str]:
    """Says which of loss and gradient is NaN or infinite. Rewards are always finite (see `rewards.base.Scores`)."""
    names = {"loss/total": "the loss", "grad/norm": "the norm of the gradient"}
    found = ((what, values.get(key)) for key, what in names.items())
    return [f"{what} is {value}" for what, value in found if value is not None and not math.isfinite(value)]


def _nonfinite(values: Values, settings: Settings, rewards: Sequence[float]) -> Finding:
    found, times = not_finite(values), values.get("in_a_row") or 0
    if not found:
        return None
    again = f", in {times} optimizer steps in a row" if times > 1 else ""
    return f"{' and '.join(found)}{again}", NONFINITE_ADVICE


def _beyond(metric: str, limit: str, seen: str, advice: str) -> Callable[[Values, Settings, Sequence[float]], Finding]:
    """A check of one metric against its setting `above` or `below`. `seen`: a format string with `value` and `limit`."""

    def sees(values: Values, settings: Settings, rewards: Sequence[float]) -> Finding:
        value, bound = values.get(metric), settings[limit]
        if value is None or not (value > bound if limit == "above" else value < bound):
            return None
        return seen.format(value=value, limit=bound), advice

    return sees


_entropy_collapse = _beyond(
    "policy/nll_nats_per_token",
    "below",
    "the sampled tokens have {value:.2g} nats each on average (limit: {limit:g}): the policy is nearly deterministic",
    "Raise kl.coef or rollout.temperature, or lower optimizer.lr",
)
_kl_blowup = _beyond(
    "kl/ref_nats_per_token",
    "above",
    "the KL to the reference is {value:.3g} nats per token (limit: {limit:g})",
    "Raise kl.coef, or lower optimizer.lr",
)
_clipped = _beyond(
    "policy/clip_fraction",
    "above",
    "a clip or a cap acts on {value:.0%} of the tokens of an optimizer step (limit: {limit:.0%})",
    "Lower optimizer.lr, batch.epochs or batch.minibatches, or widen the clip",
)
_truncated = _beyond(
    "length/truncated_fraction",
    "above",
    "the token limit cuts off {value:.0%} of the completions (limit: {limit:.0%})",
    "Raise rollout.max_response_tokens; rollout.truncated says what is done with such completions",
)


def _reward_collapse(values: Values, settings: Settings, rewards: Sequence[float]) -> Finding:
    """Compares the last `window` outer steps with the best `window` in a row before them.

    Every one of the last must be below every one of the best: otherwise one lucky step would count as a level. The fall is
    relative to the size of the best mean, which may be negative.
    """
    now, n = values.get("reward/mean"), settings["window"]
    if now is None or not math.isfinite(now) or len(rewards) + 1 < 2 * n:
        return None
    all_ = [*rewards, now]
    before, last = all_[:-n], all_[-n:]
    best = max((before[i : i + n] for i in range(len(before) - n + 1)), key=math.fsum)
    best_mean, mean = math.fsum(best) / n, math.fsum(last) / n
    if not (best_mean - mean > (1 - settings["below"]) * abs(best_mean) and max(last) < min(best)):
        return None
    return (
        f"the mean reward of the last {n} outer steps is {mean:.3g}; over {n} earlier ones it was {best_mean:.3g}",
        "Lower optimizer.lr, raise kl.coef, or end the run earlier with steps or a budget",
    )


def _no_signal(values: Values, settings: Settings, rewards: Sequence[float]) -> Finding:
    kept, size = values.get("completions/kept"), values.get("advantage/kept_abs_mean")
    if kept is None or (kept > 0 and size != 0):
        return None
    return (
        "no completion was kept" if kept == 0 else "the advantages of all completions are 0",
        "Look at reward/mean, then use easier or harder problems, a larger batch.group_size, or a weaker filter",
    )


def _stale_weights(values: Values, settings: Settings, rewards: Sequence[float]) -> Finding:
    version, due = values.get("rollouts/version"), values.get("rollouts/due")
    if version is None or version == due:
        return None
    return (
        f"the completions have policy version {version} instead of {due}",
        "The sampler did not load the weights that it was given: this is an error in its code",
    )


def _mismatch(values: Values, settings: Settings, rewards: Sequence[float]) -> Finding:
    """With stale weights the lag hides a mismatch in training; there evaluation checks it."""
    mean, most, lag = (values.get(key) for key in ("mismatch/mean_nats", "mismatch/max_nats", "policy/lag"))
    if mean is None:
        return None
    if lag == 0 and not mean <= settings["above"]:  # NaN is a mismatch too
        return (
            f"the sampler reports the policy's weights, but its log-probabilities differ by {mean:.2g} nats per token "
            f"on average, at most by {most:.2g} (limit of the mean: {settings['above']:g}): its weights are stale or "
            "incomplete, or it computes differently",
            "Compare its weights with the policy's; rollout.mismatch_limit sets the limit",
        )
    if lag and values.get("never_refreshed"):
        return (
            f"the completions were sampled with weights that are {lag} outer step(s) old and are never refreshed "
            f"(log-probabilities differ by {mean:.2g} nats per token)",
            "Write rollout.refresh_every=1",
        )
    return None


CHECKS: dict[str, Check] = {
    "nonfinite": Check(
        "loss or gradient is NaN or infinite",
        _nonfinite,
        {"in_a_row": Limit(3, whole=True, least=1, optional=True)},
        policy="skip_step",
    ),
    "reward_collapse": Check(
        "the mean reward has fallen far below its best level so far",
        _reward_collapse,
        {"window": Limit(5, whole=True, least=2), "below": Limit(0.5, above=0, under=1)},
        can_skip=False,
    ),
    "entropy_collapse": Check(
        "policy/nll_nats_per_token is below a limit", _entropy_collapse, {"below": Limit(0.005, above=0)}, can_skip=False
    ),
    "kl_blowup": Check("kl/ref_nats_per_token is above a limit", _kl_blowup, {"above": Limit(5.0, above=0)}),
    "no_signal": Check("no completion is kept, or all advantages are 0", _no_signal),
    "clipped": Check(
        "policy/clip_fraction of an optimizer step is above a limit", _clipped, {"above": Limit(0.9, above=0, under=1)}
    ),
    "truncated": Check("length/truncated_fraction is above a limit", _truncated, {"above": Limit(0.9, above=0, under=1)}),
    "stale_weights": Check("completions have another policy version than they should have", _stale_weights, policy="stop"),
    "mismatch": Check("the sampler's log-probabilities differ from the policy's", _mismatch),
}
