"""Sweeps that claim something, of cells with numbers that a test chooses."""

from synthetic import write_cell

from dash_exp.report import comparison
from dash_exp.report.sections import verdicts
from dash_exp.results.cells import load

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
    """The only verdict of a sweep, and what the report says of it."""
    (v,) = comparison.verdicts(load([folder]))
    text = verdicts.sentence(v)
    return v, text


def right(share, of=20):
    """1 for this share of the problems, then 0."""
    return [1] * round(share * of) + [0] * (of - round(share * of))


def solving(*shares):
    """The options of `write_cell` by seed: the share of 20 problems that each solves in distribution."""
    return [{"in_dist": right(s), "out_dist": right(0.5), "base": right(0.25)} for s in shares]
