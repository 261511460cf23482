"""What a sweep claims (`study.claims`): one arm against another, in one number. The form and its checks; `report/` judges."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from omegaconf import DictConfig, OmegaConf

from dash_exp.core.errors import UserError
from dash_exp.core.metrics import METRICS

BASE = "base"  # in place of overrides: the model before training
OF_TEST = ("accuracy", "length")  # measured on a test set, before and after training; pass@k, avg@n and maj@n as well
ANY = ("arm", "against", "kind", "metric", "test", "text")
EXAMPLE = "Write it as in {arm: [algo=dash], against: [algo=grpo], kind: faster}"


@dataclass(frozen=True)
class Kind:
    """What a claim of this kind compares. `limit`: its option that moves the bound, and `default`, where it has one.

    `start`: how the name of its metric must start.
    """

    metric: str
    limit: str
    default: float | None = None
    start: str = ""


KINDS = {
    "faster": Kind("time/elapsed_s", "ratio", 1.0, "time/"),
    "shorter": Kind("length", "ratio", 1.0, "length"),
    "more_variable": Kind("reward/mean", "ratio", 1.0),
    "higher": Kind("accuracy", "by", 0.0),
    "not_worse": Kind("accuracy", "margin"),
    "equal": Kind("accuracy", "margin"),
}


@dataclass(frozen=True)
class Claim:
    """`arm` and `against` are overrides, or `(BASE,)`. `limit` is in the unit of the metric, or a ratio."""

    arm: tuple[str, ...]
    against: tuple[str, ...]
    kind: str
    limit: float
    metric: str
    test: str = "in_dist"
    text: str = ""

    @property
    def is_ratio(self) -> bool:
        """Whether the two numbers of a pair are divided, and not subtracted."""
        return KINDS[self.kind].limit == "ratio"

    @property
    def is_of_test(self) -> bool:
        """Whether the metric is a short name, such as `pass@8`, of what is measured on `test` before and after training."""
        return self.metric in OF_TEST or ("@" in self.metric and "/" not in self.metric)

    @property
    def measured_on(self) -> str:
        """The test set of the metric: `test`, or the one in a name of `metrics.csv`. Empty for what training measures."""
        if self.is_of_test:
            return self.test
        head, _, rest = self.metric.partition("/")
        return rest.partition("/")[0] if head in ("accuracy", "eval") else ""

    @property
    def region(self) -> tuple[float, float]:
        """The values that the claim allows, ends excluded: of the ratio arm / against, or of the difference arm - against."""
        match self.kind:
            case "faster" | "shorter":
                return (0.0, self.limit)
            case "not_worse":
                return (-self.limit, math.inf)
            case "equal":
                return (-self.limit, self.limit)
            case _:  # higher, more_variable
                return (self.limit, math.inf)


def read(claims: Any) -> list[Claim]:
    """The claims of a study, as the configuration has them. Raises UserError for the first that cannot be read."""
    if claims is None:
        return []
    if not isinstance(claims, Sequence) or isinstance(claims, str):
        raise UserError(f"study.claims={claims}", "is not a list", "Write null, or a list of claims")
    return [_claim(f"study.claims[{i}]", item) for i, item in enumerate(claims)]


def _claim(where: str, item: Any) -> Claim:
    if not isinstance(item, Mapping):
        raise UserError(where, "is not a claim", EXAMPLE)
    if item.get("kind") not in KINDS:
        raise UserError(f"{where}.kind={item.get('kind')}", "is not known", f"Use one of {', '.join(KINDS)}")
    kind = KINDS[item["kind"]]
    for name in item:
        if name not in (*ANY, kind.limit):
            raise UserError(
                f"{where}.{name}", f"is not an option of kind={item['kind']}", f"Use {', '.join((*ANY, kind.limit))}"
            )
    texts = {"metric": kind.metric, "test": "in_dist", "text": ""} | {
        k: item[k] for k in ("metric", "test", "text") if k in item
    }
    for name, text in texts.items():
        if not isinstance(text, str):
            raise UserError(f"{where}.{name}={text}", "is not a text", "Write one line of text")
    arm, against = _overrides(where, item, "arm"), _overrides(where, item, "against")
    if arm == against:
        raise UserError(where, "compares an arm with itself", "Name another arm in against")
    return Claim(arm, against, item["kind"], _limit(where, item, kind), **texts)


def _overrides(where: str, item: Mapping[str, Any], side: str) -> tuple[str, ...]:
    value = item.get(side)
    if value == BASE:
        return (BASE,)
    listed = isinstance(value, Sequence) and not isinstance(value, str) and len(value) > 0
    if not listed or not all(isinstance(override, str) and "=" in override for override in value or ()):
        shown = "null" if value is None else value
        raise UserError(f"{where}.{side}={shown}", "does not name an arm", f"Write its overrides, as in [algo=grpo], or {BASE}")
    return tuple(value or ())


def _limit(where: str, item: Mapping[str, Any], kind: Kind) -> float:
    value = item.get(kind.limit, kind.default)
    if value is None:
        right = "Write the largest difference that does not matter, as in margin: 0.02"
        raise UserError(f"{where}.{kind.limit}", f"is not given, and kind={item['kind']} needs it", right)
    good = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if not good or value < 0 or (value == 0 and kind.limit != "by"):
        wanted = "a number of at least 0" if kind.limit == "by" else "a number above 0"
        raise UserError(f"{where}.{kind.limit}={value}", f"is not {wanted}", f"Write {wanted}")
    return float(value)


def of(cfg: DictConfig) -> list[Claim]:
    """The claims of a configuration, with references resolved."""
    claims = OmegaConf.select(cfg, "study.claims")  # which settings of an earlier version do not have
    return read(OmegaConf.to_container(claims, resolve=True) if OmegaConf.is_config(claims) else claims)


def check(cfg: DictConfig) -> None:
    """Raise UserError for a claim on a test set or a metric that no run of these settings measures.

    Which parts the reward has, only the reward knows: see `commands.rewards.check_claims`.
    """
    tests = [name for name, test in cfg.data.tests.items() if test is not None]
    for i, claim in enumerate(of(cfg)):
        where, of_test = f"study.claims[{i}]", _of_test(cfg)
        if claim.test not in tests:
            raise UserError(f"{where}.test={claim.test}", "there is no such test set", f"Use one of {', '.join(tests)}")
        of_csv = [name for test in tests for name in (f"accuracy/{test}", *(f"eval/{test}/{short}" for short in _of_csv(cfg)))]
        if not (claim.metric in (*of_test, *METRICS, *of_csv) or claim.metric.startswith("reward/")):
            raise UserError(
                f"{where}.metric={claim.metric}", "is not measured", f"Use {', '.join(of_test)}, or a name of metrics.csv"
            )
        if not claim.metric.startswith(start := KINDS[claim.kind].start):
            right = f"Use a name that starts with {start}, or another kind"
            raise UserError(f"{where}.metric={claim.metric}", f"is not a metric of kind={claim.kind}", right)
        if BASE in claim.arm + claim.against and (claim.metric not in of_test or claim.kind == "more_variable"):
            raise UserError(f"{where}.metric={claim.metric}", "is not measured of the base model", f"Use {', '.join(of_test)}")


def _of_test(cfg: DictConfig) -> list[str]:
    """The metrics of a test set with these settings of evaluation."""
    n = cfg.eval.n
    return [*OF_TEST, *(f"pass@{k}" for k in cfg.eval.k), *([f"avg@{n}", f"maj@{n}"] if n else [])]


def _of_csv(cfg: DictConfig) -> list[str]:
    """NAME of each column `eval/TEST/NAME` of `metrics.csv` with these settings of evaluation."""
    lengths = ["length/mean_tokens", "length/truncated_fraction"]
    return [*lengths, *(f"sampled/{name}" for name in lengths if cfg.eval.n), *(set(_of_test(cfg)) - set(OF_TEST))]


def values_of(override: str) -> tuple[str, list[str]]:
    """The key of an override of `arm` and the values that it may have: `filter=pods,cppo` names two arms. `"'0'" -> "0"`."""
    key, _, value = override.partition("=")
    several = not re.search(r"[\[({]", value)
    return key, [v.strip(" '\"") for v in (value.split(",") if several else [value])]
