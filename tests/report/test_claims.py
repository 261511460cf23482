"""Verdicts on the claims of a sweep: every kind on synthetic cells, by hand; and what the report says of them."""

import json

import numpy as np
import pandas as pd
import pytest
from claimed import FASTER, PAIR, judged, right, solving, write_sweep
from conftest import ROOT
from reports import document_of, rows, texts
from synthetic import write_cell

from dash_exp import report
from dash_exp.report import comparison
from dash_exp.report.__main__ import brief
from dash_exp.report.document import to_html, to_markdown
from dash_exp.results.cells import Results, load
from dash_exp.results.summary import verdict_lines

pytestmark = pytest.mark.usefixtures("no_drawing")

# Each with the estimate and the interval by hand. t(0.95) is 6.3138 with 1 degree of freedom, 2.9200 with 2.
BY_HAND = [
    # logs of 0.4, 0.42, 0.44: mean ln 0.41968, sd 0.04767, half-width 2.92 x 0.04767 / sqrt(3) = 0.08036
    (
        FASTER,
        {"dash": [{"seconds": s} for s in (40, 42, 44)]},
        ("supported", 0.41968, 0.41968 * np.exp(-0.08036), 0.41968 * np.exp(0.08036), "seeds"),
        "dash takes 0.42 times the training time of grpo (0.39 to 0.45, 3 seeds)",
    ),
    (
        FASTER | {"ratio": 0.3},
        {"dash": [{"seconds": s} for s in (40, 42, 44)]},
        ("contradicted", 0.41968, 0.38727, 0.45479, "seeds"),
        "dash takes 0.42 times the training time of grpo (0.39 to 0.45, 3 seeds)",
    ),
    # +0.1, +0.2, +0.3: mean 0.2, sd 0.1, half-width 2.92 x 0.1 / sqrt(3) = 0.16859
    (
        PAIR | {"kind": "higher"},
        {"dash": solving(0.6, 0.7, 0.8), "grpo": solving(0.5, 0.5, 0.5)},
        ("supported", 0.2, 0.03141, 0.36859, "seeds"),
        "accuracy in distribution of dash is 20.0 points above that of grpo (+3.1 to +36.9, 3 seeds)",
    ),
    # 0, 0.05: mean 0.025, sd 0.03536, half-width 6.3138 x 0.03536 / sqrt(2) = 0.15784
    (
        PAIR | {"kind": "not_worse", "margin": 0.15},
        {"dash": solving(0.5, 0.55), "grpo": solving(0.5, 0.5)},
        ("supported", 0.025, -0.13284, 0.18284, "seeds"),
        "accuracy in distribution of dash is 2.5 points above that of grpo (−13.3 to +18.3, 2 seeds)",
    ),
    (
        PAIR | {"kind": "equal", "margin": 0.15},
        {"dash": solving(0.5, 0.55), "grpo": solving(0.5, 0.5)},
        ("undecided", 0.025, -0.13284, 0.18284, "seeds"),
        "accuracy in distribution of dash is 2.5 points above that of grpo (−13.3 to +18.3, 2 seeds)",
    ),
    # the base model solves 5 of 20, the others 4, 5, 3: -0.05, 0, -0.1 to it; mean 0.05, sd 0.05, half-width 0.08429
    (
        {"arm": "base", "against": ["algo=dash"], "kind": "higher"},
        {"dash": solving(0.2, 0.25, 0.15), "grpo": solving(0.5, 0.5, 0.5)},
        ("undecided", 0.05, -0.03429, 0.13429, "seeds"),
        "accuracy in distribution of the base model is 5.0 points above that of dash (−3.4 to +13.4, 3 seeds)",
    ),
    # The next three differ more between seeds than between arms. A pair of other seeds, or an interval that is not of pairs,
    # decides none of them. Times 50, 100, 200 of grpo: the same three ratios as in the first case
    (
        FASTER,
        {"dash": [{"seconds": s} for s in (20, 42, 88)], "grpo": [{"seconds": s} for s in (50, 100, 200)]},
        ("supported", 0.41968, 0.38727, 0.45479, "seeds"),
        "dash takes 0.42 times the training time of grpo (0.39 to 0.45, 3 seeds)",
    ),
    # +0.1, +0.15, +0.05: mean 0.1, sd 0.05, half-width 2.92 x 0.05 / sqrt(3) = 0.08429
    (
        PAIR | {"kind": "higher"},
        {"dash": solving(0.3, 0.65, 0.85), "grpo": solving(0.2, 0.5, 0.8)},
        ("supported", 0.1, 0.01571, 0.18429, "seeds"),
        "accuracy in distribution of dash is 10.0 points above that of grpo (+1.6 to +18.4, 3 seeds)",
    ),
    # the same, of the base model's 0.2, 0.5, 0.8 (it is another one for each seed)
    (
        {"arm": "base", "against": ["algo=dash"], "kind": "higher"},
        {"dash": [d | {"base": right(b)} for d, b in zip(solving(0.3, 0.65, 0.85), (0.2, 0.5, 0.8), strict=True)]},
        ("contradicted", -0.1, -0.18429, -0.01571, "seeds"),
        "accuracy in distribution of the base model is 10.0 points below that of dash (−18.4 to −1.6, 3 seeds)",
    ),
    # greedy length 16, 18 against 20: logs -0.22314, -0.10536, mean ln 0.84853, sd 0.08328, half-width 0.37182
    (
        PAIR | {"kind": "shorter"},
        {"dash": [{"result": {"eval/in_dist/length/mean_tokens/final": n}} for n in (16, 18)], "seeds": 2},
        ("undecided", 0.84853, 0.58504, 1.23067, "seeds"),
        "dash has 0.85 times the completion length in distribution of grpo (0.59 to 1.23, 2 seeds)",
    ),
    # mean rewards over the three steps 0.6, 0.7, 0.8 against 0.5 (row 0 does not count): as with accuracy
    (
        PAIR | {"kind": "higher", "metric": "reward/mean", "by": 0.01},
        {"dash": [{"curve": (0, r - 0.1, r, r + 0.1)} for r in (0.6, 0.7, 0.8)], "grpo": [{"curve": (0, 0.5, 0.5, 0.5)}] * 3},
        ("supported", 0.2, 0.03141, 0.36859, "seeds"),
        "mean reward of dash is 0.2 above that of grpo (+0.0314 to +0.369, 3 seeds)",
    ),
    # rewards 0, 0.1, 0, 0.1: each inner point is 0.1 from the middle of its neighbours; 0, 0.2, 0, 0.2: 0.2; 0, 0.3, ...: 0.3.
    # 2 and 3 times as much: mean ln 2.44949, sd 0.28671, half-width 6.3138 x 0.28671 / sqrt(2) = 1.28003
    (
        PAIR | {"kind": "more_variable", "ratio": 1.5},
        {"dash": [{"curve": (0, 0, x, 0, x)} for x in (0.2, 0.3)], "grpo": [{"curve": (0, 0, 0.1, 0, 0.1)}] * 2},
        ("undecided", 2.44949, 0.68104, 8.81005, "seeds"),
        "from step to step, mean reward varies 2.45 times as much in dash as in grpo (0.68 to 8.81, 2 seeds)",
    ),
]


@pytest.mark.parametrize(("claim", "cells", "expected", "said"), BY_HAND)
def test_every_kind_by_hand(tmp_path, claim, cells, expected, said):
    v, text = judged(write_sweep(tmp_path, [claim], **cells))
    word, value, low, high, over = expected
    assert (v.word, v.over) == (word, over)
    assert (v.estimate.value, v.estimate.low, v.estimate.high) == pytest.approx((value, low, high), rel=1e-3)
    assert text == said


@pytest.mark.parametrize(
    ("cells", "word", "said"),
    [
        # 20 of 20 against 10 of 20, over the problems
        ({"dash": solving(1.0), "grpo": solving(0.5)}, "supported", "over 20 problems, one seed: about these runs only)"),
        ({"dash": solving(0.7) * 2, "grpo": solving(0.5) * 2}, "supported", "problems, all 2 seeds gave the same: about these"),
        # all equal: a share of 1 - 0.05^(1/20) = 13.9% of problems may differ
        ({"dash": solving(0.5) * 3, "grpo": solving(0.5) * 3}, "undecided", "is 0.0 points above that of grpo (−13.9 to +13.9"),
    ],
)
def test_without_a_spread_over_seeds_a_verdict_is_about_these_runs(tmp_path, cells, word, said):
    v, text = judged(write_sweep(tmp_path, [PAIR | {"kind": "higher"}], **cells))
    assert (v.word, v.over, v.more_seeds) == (word, "problems", None)
    assert said in text
    document = document_of(tmp_path)
    assert rows(document, "verdicts")[word][-1] == ("–" if word != "undecided" else "unknown")
    assert "An interval over problems, also of 90%" in texts(document, "verdicts")
    assert "over seeds" not in texts(document, "verdicts")  # nothing is said of intervals that are not there


@pytest.mark.parametrize(
    ("seeds", "said"), [(1, "(1 seed, no interval: one seed)"), (3, "3 seeds, no interval: every seed gave the same")]
)
def test_times_without_a_spread_have_no_verdict(tmp_path, seeds, said):
    v, text = judged(write_sweep(tmp_path, [FASTER], dash=[{"seconds": 20}] * seeds, seeds=seeds))
    assert "90%" not in texts(document_of(tmp_path), "verdicts")
    assert (v.word, v.estimate.value, v.estimate.low) == ("undecided", pytest.approx(0.2), None)
    assert said in text


@pytest.mark.parametrize(
    ("claim", "said"),
    [
        (PAIR | {"against": ["algo=rloo"], "kind": "faster"}, "not judged: no cell has algo=rloo"),
        (PAIR | {"kind": "higher", "metric": "pass@8"}, "not judged: not measured in dash and grpo with seeds 0, 1, 2"),
        (PAIR | {"kind": "higher", "test": "math"}, "not judged: not measured in dash and grpo with seeds 0, 1, 2"),
        ({"arm": ["algo=dash,grpo"], "against": ["kl.coef=0"], "kind": "higher"}, "not judged: no cell has kl.coef=0"),
    ],
)
def test_a_claim_on_what_was_not_run_is_undecided(tmp_path, claim, said):
    v, text = judged(write_sweep(tmp_path, [claim]))
    assert (v.word, text) == ("undecided", said)
    assert said in to_markdown(document_of(tmp_path)).replace("\\", "")


def test_an_arm_is_compared_with_the_one_that_differs_in_what_is_named(tmp_path):
    """A claim on one setting of two that are swept has a verdict for each value of the other; one on both has one."""
    for algo in ("dash", "grpo", "rloo"):
        for kl in ("0", "0.04"):
            for seed in (0, 1):
                overrides = [f"algo={algo}", f"kl.coef={kl}", f"seed={seed}"]
                write_cell(tmp_path / ",".join(overrides), overrides, seconds=30 + seed + 10 * (kl == "0"))
    (tmp_path / "sweep.json").write_text(json.dumps({"claims": []}))
    results = load([tmp_path])

    def pairs(**claim):
        found = comparison.verdicts(Results(results.cells, [{"kind": "higher"} | claim]))
        return [(v.arm, v.against) for v in found]

    with_kl = [(f"dash, kl.coef={kl}", f"grpo, kl.coef={kl}") for kl in ("0", "0.04")]
    assert pairs(**PAIR) == with_kl
    assert pairs(arm=["algo=dash,rloo"], against=["algo=grpo"]) == with_kl + [
        (a.replace("dash", "rloo"), b) for a, b in with_kl
    ]
    assert pairs(arm=["algo=dash", "kl.coef=0"], against=["algo=grpo"]) == with_kl[:1]
    assert pairs(arm=["algo=dash", "kl.coef=0"], against=["kl.coef=0.04"]) == [("dash, kl.coef=0", "dash, kl.coef=0.04")]
    assert pairs(arm="base", against=["algo=rloo"]) == [("base", f"rloo, kl.coef={kl}") for kl in ("0", "0.04")]
    assert pairs(arm=["kl.coef=0"], against="base") == [(f"{algo}, kl.coef=0", "base") for algo in ("dash", "grpo", "rloo")]


# --- in the report -----------------------------------------------------------------------------------------------------


def test_the_report_opens_with_the_verdicts(tmp_path):
    claims = [FASTER | {"text": "DASH halves the <time>"}, PAIR | {"kind": "not_worse", "margin": 0.02}]
    dash = [{"seconds": s, **accuracy} for s, accuracy in zip((40, 42, 44), solving(0.5, 0.55, 0.5), strict=True)]
    write_sweep(tmp_path, claims, dash=dash, grpo=solving(0.5, 0.5, 0.5))
    document = document_of(tmp_path)
    assert [s.name for s in document.sections][:2] == ["verdicts", "summary"]
    shown = rows(document, "verdicts")
    assert shown["supported"] == [
        "DASH halves the <time>",
        "dash takes 0.42 times the training time of grpo (0.39 to 0.45, 3 seeds)",
        "3",
        "–",
    ]
    assert shown["undecided"][0] == "accuracy in distribution of dash is not 2.0 points or more below that of grpo"
    # mean 0.01667, sd 0.02887: -0.02 is 0.0367 = 1.27 sd away, for which the one-sided test takes 6 seeds
    assert shown["undecided"][-1] == "about 3"
    assert "Each of the 2 verdicts with one is wrong in at most 5%" in texts(document, "verdicts")
    assert (tmp_path / "report" / "figures" / "claims-ratio.svg").is_file()
    page, markdown = to_html(document, tmp_path / "report" / "figures"), to_markdown(document)
    assert page.index("Verdicts on the claims") < page.index("training time of grpo") < page.index("<h2>Summary")
    assert "DASH halves the &lt;time&gt;" in page
    assert "| supported | DASH halves the &lt;time&gt; (training time of dash is below 0.50 times that of grpo) |" in markdown


def test_only_verdicts_with_an_interval_over_seeds_are_wrong_in_five_percent(tmp_path):
    """Times of one ratio have no interval, and accuracies that are all the same one over problems."""
    dash = [{"seconds": 20} | accuracy for accuracy in solving(0.5, 0.6, 0.5)]
    claims = [FASTER, PAIR | {"kind": "higher"}, PAIR | {"kind": "higher", "test": "out_dist"}]
    text = texts(document_of(write_sweep(tmp_path, claims, dash=dash, grpo=solving(0.5, 0.5, 0.5))), "verdicts")
    assert "The verdict with one is wrong in at most 5% of such studies." in text
    assert "An interval over problems" in text


def test_the_verdicts_as_a_file(tmp_path):
    write_sweep(tmp_path, [FASTER], dash=[{"seconds": s} for s in (40, 42, 44)])
    report.write(load([tmp_path]), tmp_path / "report")
    file = tmp_path / "report" / "claims.csv"
    (row,) = pd.read_csv(file).to_dict("records")
    assert (row["verdict"], row["arm"], row["against"], row["claimed_below"], row["seeds"]) == (
        "supported",
        "dash",
        "grpo",
        0.5,
        3,
    )
    assert (row["estimate"], row["low"]) == pytest.approx((0.41968, 0.38727), rel=1e-4)
    assert verdict_lines(file) == [
        "supported: training time of dash is below 0.50 times that of grpo",
        "  dash takes 0.42 times the training time of grpo (0.39 to 0.45, 3 seeds)",
    ]
    for_wandb = brief((tmp_path / "report" / "report.md").read_text())
    assert for_wandb.startswith("### Verdicts")
    assert "### Differences from grpo" in for_wandb
    without = Results([c for c in load([tmp_path]).cells if c.config["study"].update(claims=None) is None])
    report.write(without, tmp_path / "report")
    assert verdict_lines(file) == []
    assert "Verdicts" not in (tmp_path / "report" / "report.md").read_text()


def test_claims_of_the_list_of_cells_replace_those_of_cells_that_are_done(tmp_path):
    """A claim that is added or reworded needs no new run: the next start of the sweep writes it into `sweep.json`."""
    write_sweep(tmp_path, [FASTER], dash=[{"seconds": s} for s in (40, 42, 44)])
    cells = [{"folder": p.name, "overrides": p.name.split(",")} for p in sorted(tmp_path.iterdir())]
    (tmp_path / "sweep.json").write_text(json.dumps({"claims": [FASTER | {"ratio": 0.3}], "cells": cells}))
    assert judged(tmp_path)[0].word == "contradicted"
    (tmp_path / "sweep.json").write_text(json.dumps({"claims": None, "cells": cells}))
    assert comparison.verdicts(load([tmp_path])) == []


@pytest.mark.parametrize("sweep", sorted(p.stem for p in (ROOT / "sweeps").glob("*.yaml")))
def test_only_the_search_claims_nothing(sweep):
    assert ("claims:" in (ROOT / "sweeps" / f"{sweep}.yaml").read_text()) == (sweep != "learning_rate")
