"""The verdicts on what the sweep claims, with which the report opens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pandas as pd

from dash_exp.core.metrics import METRICS
from dash_exp.report import comparison, figures, warnings
from dash_exp.report.comparison import BASE, Verdict
from dash_exp.report.document import Block, Cell, Figure, Figures, Paragraph, Section, Table
from dash_exp.report.sections.context import Context
from dash_exp.report.words import Show, points, signed, span, test_label, times
from dash_exp.results import stats
from dash_exp.settings.claims import Claim

NAMES = {
    "time/elapsed_s": "training time",
    "time/sample_s": "sampling time",
    "time/update_s": "update time",
    "reward/mean": "mean reward",
    "length": "completion length",
}
UNITS = {"points": "percentage points", "length": "tokens", "reward/mean": "reward"}


def section(c: Context) -> Section | None:
    """A row for each verdict, figures, and how to read them. None if the sweep claims nothing."""
    found = comparison.verdicts(c.results)
    if not found:
        return None
    blocks: list[Block] = []
    if warnings.warnings(c.results):
        blocks.append(Paragraph("The warnings under Summary may change what a verdict means. Read them first."))
    rows = [
        [
            Cell(v.word, colour=figures.VERDICTS[v.word]),
            Cell(v.claim.text or claimed(v), claimed(v) if v.claim.text else ""),
            Cell(sentence(v)),
            Cell(str(v.n)),
            Cell(more(v)),
        ]
        for v in found
    ]
    header = ["verdict", "claim", "found", "seeds", "more seeds to decide"]
    blocks += [Table(header, rows, words=3), *pictures(c, found), *(Paragraph(text) for text in how_to_read(found))]
    return Section("verdicts", "Verdicts", "Verdicts on the claims", blocks)


def how_to_read(found: Sequence[Verdict]) -> list[str]:
    """What the words and the intervals mean, of those that are there."""
    said = [
        "Supported: the whole interval is inside of what is claimed. Contradicted: it is outside. Undecided: neither, so these "
        "runs show neither that the claim is true nor that it is false."
    ]
    if n := sum(v.over == "seeds" for v in found):
        each = "The verdict with one is" if n == 1 else f"Each of the {n} verdicts with one is"
        several = ", and the more claims there are, the more likely is one wrong verdict" if n > 1 else ""
        said.append(
            "An interval over seeds is a 90% interval over pairs, on these test problems: each end is a one-sided 95% bound. "
            f"{each} wrong in at most 5% of such studies{several}."
        )
    if any(v.over == "problems" for v in found):
        said.append(
            "An interval over problems, also of 90%, stands where the seeds show no spread, as with one seed. It is about "
            "these runs only: other seeds may give another verdict."
        )
    return said


def quantity(claim: Claim) -> str:
    """What is compared, in words: `accuracy in distribution`, `training time`."""
    name = NAMES.get(claim.metric, claim.metric)
    return f"{name} {test_label(claim.test)}" if claim.is_of_test else name


def amount(claim: Claim) -> tuple[Show, str]:
    """How a value of the claim is written, and its unit: a factor, percentage points, or the unit of the metric."""
    if claim.is_ratio:
        return times, ""
    if is_fraction(claim):
        return points, " points"
    unit = METRICS[claim.metric].unit if claim.metric in METRICS else "tokens" if is_length(claim) else ""
    return signed, f" {unit}" if unit and unit not in ("1", "reward") else ""


def is_length(claim: Claim) -> bool:
    return claim.metric == "length" or claim.metric.endswith("length/mean_tokens")


def is_fraction(claim: Claim) -> bool:
    name = claim.metric
    of_test = name.startswith("accuracy") or "@" in name or name.endswith("truncated_fraction")
    return not claim.is_ratio and (of_test or (name in METRICS and METRICS[name].unit == "fraction"))


def named(v: Verdict) -> tuple[str, str]:
    """The two arms. A claim whose arms were not run has only their overrides."""
    names = (v.arm or ", ".join(v.claim.arm), v.against or ", ".join(v.claim.against))
    one, other = ("the base model" if name == BASE else name for name in names)
    return one, other


def claimed(v: Verdict) -> str:
    """The claim in exact words."""
    (a, b), what, claim = named(v), quantity(v.claim), v.claim
    show, unit = amount(claim)
    limit = f"{show(claim.limit).lstrip('+')}{unit}"
    match claim.kind:
        case "faster" | "shorter":
            factor = "" if claim.limit == 1 else f"{limit} times "
            return f"{what} of {a} is below {factor}that of {b}"
        case "more_variable":
            more_than = "more" if claim.limit == 1 else f"more than {limit} times as much"
            return f"from step to step, {what} varies {more_than} in {a} {'than' if claim.limit == 1 else 'as'} in {b}"
        case "not_worse":
            return f"{what} of {a} is not {limit} or more below that of {b}"
        case "equal":
            return f"{what} of {a} and {b} differ by less than {limit}"
        case _:
            return f"{what} of {a} is {f'more than {limit} ' if claim.limit else ''}above that of {b}"


def sentence(v: Verdict) -> str:
    """`dash takes 0.41 times the training time of grpo (0.38 to 0.44, 3 seeds)`"""
    if v.estimate is None:
        return f"not judged: {v.missing}"
    (a, b), what, e = named(v), quantity(v.claim), v.estimate
    show, unit = amount(v.claim)
    if v.over == "problems":
        why = "one seed" if v.n == 1 else f"all {v.n} seeds gave the same"
        basis = f"{span(e, show)} over {e.n} problems, {why}: about these runs only"
    else:
        seeds = f"{v.n} seed{'s' * (v.n > 1)}"
        basis = f"{span(e, show)}, {seeds}" if v.over else f"{seeds}, no interval: {v.missing}"
    basis += f"; left out: {v.left_out}" if v.left_out else ""
    match v.claim.kind:
        case "faster":
            said = f"{a} takes {times(e.value)} times the {what} of {b}"
        case "shorter":
            said = f"{a} has {times(e.value)} times the {what} of {b}"
        case "more_variable":
            said = f"from step to step, {what} varies {times(e.value)} times as much in {a} as in {b}"
        case _:
            size, side = show(abs(e.value)).lstrip("+"), "above" if e.value >= 0 else "below"
            said = f"{what} of {a} is {size}{unit} {side} that of {b}"
    return f"{said} ({basis})"


def more(v: Verdict) -> str:
    """`about 4`; a dash for a claim that is decided or was not run, and `unknown` without an interval over seeds."""
    if v.word != "undecided" or v.estimate is None:
        return "–"
    if v.over != "seeds":
        return "unknown"
    return f"more than {stats.MOST_SEEDS}" if v.more_seeds is None else f"about {v.more_seeds}"


def as_table(found: Sequence[Verdict]) -> pd.DataFrame:
    """One row per verdict, with the numbers as they are: fractions are not in percent. The report writes it as `claims.csv`."""
    rows = []
    for v in found:
        e, (low, high) = v.estimate, v.claim.region
        rows.append(
            {"verdict": v.word, "claim": v.claim.text or claimed(v), "found": sentence(v), "kind": v.claim.kind}
            | {"arm": v.arm or " ".join(v.claim.arm), "against": v.against or " ".join(v.claim.against)}
            | {"metric": v.claim.metric, "test": v.claim.measured_on, "claimed_above": low, "claimed_below": high}
            | {"estimate": e and e.value, "low": e and e.low, "high": e and e.high, "interval_over": v.over}
            | {"seeds": v.n, "further_seeds": more(v)}
        )
    return pd.DataFrame(rows)


def pictures(c: Context, found: Sequence[Verdict]) -> list[Block]:
    """A figure for each unit: the estimates with their intervals, and what is claimed."""
    groups: dict[str, list[Verdict]] = {}
    for v in found:
        if v.estimate is not None:
            unit = "ratio" if v.claim.is_ratio else "points" if is_fraction(v.claim) else v.claim.metric
            groups.setdefault(unit, []).append(v)
    drawn = []
    for unit, group in groups.items():
        name = f"claims-{unit.replace('/', '-').replace('@', '-')}"
        xlabel = "arm / other arm" if unit == "ratio" else f"{UNITS.get(unit, unit)}, arm − other arm"
        rows = [_row(v, 100 if unit == "points" else 1) for v in group]
        figures.claims(rows, xlabel, unit == "ratio", c.folder / name)
        drawn.append(Figure(name, "What the claims allow, and what was found with its interval; the table has the numbers"))
    return [Figures(drawn)] if drawn else []


def _row(v: Verdict, scale: int) -> figures.Claimed:
    e = v.estimate
    assert e is not None
    low, high = (None if end is None else scale * end for end in (e.low, e.high))
    e = replace(e, value=scale * e.value, low=low, high=high)
    a, b = named(v)
    return figures.Claimed(
        f"{a} / {b}" if v.claim.is_ratio else f"{a} − {b}",
        quantity(v.claim),
        e,
        (scale * v.claim.region[0], scale * v.claim.region[1]),
        v.word,
    )
