"""Verdicts on the claims of a sweep: every kind on synthetic cells whose truth is known, by hand and over repeated draws."""

import json
import shutil

import numpy as np
import pandas as pd
import pytest
from conftest import ROOT
from reports import document_of, rows, texts
from scipy import stats as scipy_stats
from synthetic import in_memory, write_cell

from dash_exp import report
from dash_exp.report import comparison
from dash_exp.report.__main__ import brief
from dash_exp.report.comparison.claims import roughness
from dash_exp.report.document import to_html, to_markdown
from dash_exp.results.cells import Results, load
from dash_exp.results.summary import verdict_lines

pytestmark = pytest.mark.usefixtures("no_drawing")

PAIR = {"arm": ["algo=dash"], "against": ["algo=grpo"]}
FASTER = PAIR | {"kind": "faster", "ratio": 0.5}


def write_sweep(folder, claims, dash=(), grpo=(), seeds=3, **options):
    """Cells of grpo and dash; `dash` and `grpo` give the options of `write_cell` by seed, the others are those of both."""
    for algo, by_seed in (("grpo", grpo), ("dash", dash)):
        for seed in range(len(by_seed) or seeds):
            given = options | (dict(by_seed[seed]) if by_seed else {})
            settings = {"study": {"question": "Which?", "baseline": ["algo=grpo"], "claims": claims}}
            write_cell(folder / f"algo={algo},seed={seed}", [f"algo={algo}", f"seed={seed}"], settings=settings, **given)
    return folder


def judged(folder):
    """The only verdict, and what the report says of it."""
    (v,) = comparison.verdicts(load([folder]))
    text = report.sections.verdicts.sentence(v)
    return v, text


def right(share, of=20):
    return [1] * round(share * of) + [0] * (of - round(share * of))


def solving(*shares):
    return [{"in_dist": right(s), "out_dist": right(0.5), "base": right(0.25)} for s in shares]


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
    assert "It is about these runs only" in texts(document, "verdicts")


@pytest.mark.parametrize(
    ("seeds", "said"), [(1, "(1 seed, no interval: one seed)"), (3, "3 seeds, no interval: every seed gave the same")]
)
def test_times_without_a_spread_have_no_verdict(tmp_path, seeds, said):
    v, text = judged(write_sweep(tmp_path, [FASTER], dash=[{"seconds": 20}] * seeds, seeds=seeds))
    assert (v.word, v.estimate.value, v.estimate.low) == ("undecided", pytest.approx(0.2), None)
    assert said in text


def test_seeds_that_are_not_done_in_both_do_not_count(tmp_path):
    folder = write_sweep(tmp_path, [FASTER], dash=[{"seconds": s} for s in (40, 42, 44, 90)], seeds=3)
    (folder / "algo=grpo,seed=1" / "result.json").write_text(json.dumps({"status": "failed", "error": "OutOfMemoryError"}))
    v, _ = judged(folder)
    assert (v.n, v.estimate.value) == (2, pytest.approx(np.sqrt(0.4 * 0.44)))
    for seed in (0, 2):
        shutil.rmtree(folder / f"algo=grpo,seed={seed}")
    v, text = judged(folder)
    assert (v.word, v.estimate, text) == ("undecided", None, "not judged: no seed is done in both")
    assert rows(document_of(folder), "verdicts")["undecided"][-2:] == ["0", "–"]


@pytest.mark.parametrize(
    ("claim", "said"),
    [
        (PAIR | {"against": ["algo=rloo"], "kind": "faster"}, "not judged: no cell has algo=rloo"),
        (PAIR | {"kind": "higher", "metric": "pass@8"}, "not judged: not measured with the same seed in both"),
        (PAIR | {"kind": "higher", "test": "math"}, "not judged: not measured with the same seed in both"),
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


def test_an_arm_that_learns_from_traces_has_no_reward_of_its_own(tmp_path):
    claim = {"arm": ["algo=sft_h"], "against": ["algo=dash"], "kind": "higher", "metric": "reward/mean"}
    for algo in ("dash", "sft_h"):
        write_cell(tmp_path / algo, [f"algo={algo}"], settings={"study": {"claims": [claim]}})
    assert judged(tmp_path)[1] == "not judged: not measured with the same seed in both"


def test_roughness_by_hand():
    assert roughness(np.array([0.1, 0.2, 0.3, 0.4])) == pytest.approx(0.0, abs=1e-12)  # a steady rise
    # 1 - (0 + 0) / 2 = 1, 0 - (1 + 2) / 2 = -1.5, 2 - (0 + 2) / 2 = 1: sqrt((1 + 2.25 + 1) / 3)
    assert roughness(np.array([0.0, 1.0, 0.0, 2.0, 2.0])) == pytest.approx(np.sqrt(4.25 / 3))
    assert roughness(np.array([0.0, 1.0])) is None


# --- repeated draws ----------------------------------------------------------------------------------------------------

STUDIES = 200


def within(count, rate):
    low, high = scipy_stats.binom.interval(0.999, STUDIES, rate)
    return low <= count <= high


def drawn(rng, claim, effect, seeds=4, problems=100, steps=30):
    """A study in memory: cells of two arms. `effect`: of dash, on the scale of the claim. Each run has its own luck."""
    of_accuracy = claim["kind"] in ("higher", "not_worse", "equal")
    shifts = {"grpo": rng.normal(0, 0.05, (seeds, 1)), "dash": rng.normal(effect if of_accuracy else 0, 0.05, (seeds, 1))}
    ease_P = rng.uniform(0.3, 0.6, problems)
    results = in_memory({arm: (rng.random((seeds, problems)) < ease_P + shift).astype(int) for arm, shift in shifts.items()})
    for cell in results.cells:
        is_dash = cell.overrides["algo"] == "dash"
        factor = effect if is_dash and not of_accuracy else 1.0
        cell.result["time/elapsed_s"] = 100 * factor * rng.lognormal(0, 0.1)
        cell.result["eval/in_dist/length/mean_tokens/final"] = 100 * factor * rng.lognormal(0, 0.1)
        noise = factor * rng.lognormal(0, 0.1) * rng.normal(0, 0.02, steps)
        reward = np.concatenate([[np.nan], 0.9 - 0.4 * np.exp(-np.arange(steps) / 10) + noise])
        vars(cell)["metrics"] = pd.DataFrame({"step": np.arange(steps + 1), "reward/mean": reward})
    return Results(results.cells, [claim])


@pytest.mark.parametrize(
    ("kind", "on_the_bound", "true", "false"),
    [
        ({"kind": "faster", "ratio": 0.5}, 0.5, 0.3, 0.8),
        ({"kind": "shorter"}, 1.0, 0.6, 1.6),
        ({"kind": "more_variable", "ratio": 1.5}, 1.5, 4.0, 0.6),
        ({"kind": "higher"}, 0.0, 0.3, -0.2),
        ({"kind": "not_worse", "margin": 0.05}, -0.05, 0.2, -0.3),
        ({"kind": "equal", "margin": 0.2}, 0.2, 0.0, 0.4),
    ],
    ids=lambda value: value["kind"] if isinstance(value, dict) else str(value),
)
def test_how_often_the_verdicts_are_right(kind, on_the_bound, true, false):
    """On the bound each wrong verdict is found in 5% of studies, and the 90% interval covers; far from it the right one is."""
    rng = np.random.default_rng(7)
    claim = PAIR | kind
    found = [comparison.verdicts(drawn(rng, claim, on_the_bound))[0] for _ in range(STUDIES)]
    assert within(sum(v.word == "supported" for v in found), 0.05)
    assert within(sum(v.word == "contradicted" for v in found), 0.05)
    assert within(sum(v.estimate.low <= on_the_bound <= v.estimate.high for v in found), 0.9)
    for effect, word in ((true, "supported"), (false, "contradicted")):
        said = [comparison.verdicts(drawn(rng, claim, effect))[0].word for _ in range(20)]
        assert said.count(word) >= 17, said


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
    assert "Each of the 2 verdicts is wrong in at most 5%" in texts(document, "verdicts")
    assert (tmp_path / "report" / "figures" / "claims-ratio.svg").is_file()
    page, markdown = to_html(document, tmp_path / "report" / "figures"), to_markdown(document)
    assert page.index("Verdicts on the claims") < page.index("training time of grpo") < page.index("<h2>Summary")
    assert "DASH halves the &lt;time&gt;" in page
    assert "| supported | DASH halves the &lt;time&gt; (training time of dash is below 0.50 times that of grpo) |" in markdown


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
