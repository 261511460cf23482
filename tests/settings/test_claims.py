"""Claims of a sweep (`study.claims`): how they are written, and those that are refused."""

import math

import pytest
from conftest import composed
from refusals import assert_each_is_met, assert_refused, refusal_of

from dash_exp.settings import claims

GOOD = {"arm": ["algo=dash"], "against": ["algo=grpo"], "kind": "faster"}


def of(*changed):
    cfg = composed("eval.n=8", "eval.k=[1,8]")
    cfg.study.claims = [claim if isinstance(claim, str) else GOOD | claim for claim in changed]
    return cfg


BAD = [
    ([{}, {"kind": "fast"}], "study.claims[1].kind=fast: is not known. Use one of faster, shorter"),
    ([{"kind": None}], "study.claims[0].kind=None: is not known"),
    (["dash is faster"], "study.claims[0]: is not a claim. Write it as in {arm: [algo=dash]"),
    ([{"margin": 0.1}], "study.claims[0].margin: is not an option of kind=faster."),
    ([{"kind": "not_worse"}], "study.claims[0].margin: is not given, and kind=not_worse needs it."),
    ([{"kind": "equal", "margin": 0}], "study.claims[0].margin=0: is not a number above 0"),
    ([{"kind": "higher", "by": -0.1}], "study.claims[0].by=-0.1: is not a number of at least 0"),
    ([{"ratio": True}], "study.claims[0].ratio=True: is not a number above 0"),
    ([{"ratio": math.inf}], "study.claims[0].ratio=inf: is not a number above 0"),
    ([{"arm": "algo=dash"}], "study.claims[0].arm=algo=dash: does not name an arm. Write its overrides"),
    ([{"against": ["grpo"]}], "study.claims[0].against=['grpo']: does not name an arm"),
    ([{"against": None}], "study.claims[0].against=null: does not name an arm"),
    ([{"arm": []}], "study.claims[0].arm=[]: does not name an arm"),
    ([{"against": ["algo=dash"]}], "study.claims[0]: compares an arm with itself"),
    ([{"text": 3}], "study.claims[0].text=3: is not a text"),
    ([{"kind": "higher", "test": "math"}], "study.claims[0].test=math: there is no such test set. Use one of in_dist"),
    ([{"kind": "higher", "metric": "pass@4"}], "study.claims[0].metric=pass@4: is not measured. Use accuracy, length, pass@1"),
    ([{"kind": "higher", "metric": "accuracy/math"}], "study.claims[0].metric=accuracy/math: is not measured."),
    ([{"kind": "higher", "metric": "eval/math/pass@8"}], "study.claims[0].metric=eval/math/pass@8: is not measured."),
    ([{"kind": "higher", "metric": "eval/in_dist/pass@4"}], "study.claims[0].metric=eval/in_dist/pass@4: is not measured."),
    ([{"kind": "higher", "metric": "accuracy/in_dist/final"}], "study.claims[0].metric=accuracy/in_dist/final: is not"),
    ([{"kind": "faster", "metric": "accuracy"}], "study.claims[0].metric=accuracy: is not a metric of kind=faster"),
    ([{"against": "base"}], "study.claims[0].metric=time/elapsed_s: is not measured of the base model. Use accuracy"),
    ([{"against": "base", "kind": "more_variable"}], "study.claims[0].metric=reward/mean: is not measured of the base model"),
]  # fmt: skip


@pytest.mark.parametrize(("changed", "message"), BAD, ids=[message.split(":")[0] for _, message in BAD])
def test_bad_claims_are_refused_by_name(changed, message):
    assert_refused(refusal_of(of(*changed)), message)


def test_what_is_no_list_is_refused():
    cfg = composed()
    cfg.study.claims = "dash is faster"
    assert_refused(refusal_of(cfg), "study.claims=dash is faster: is not a list")
    assert_each_is_met(claims, [refusal_of(cfg), *(refusal_of(of(*changed)) for changed, _ in BAD)])


@pytest.mark.parametrize(
    ("claim", "metric", "region"),
    [
        ({}, "time/elapsed_s", (0, 1)),
        ({"ratio": 0.5, "metric": "time/update_s"}, "time/update_s", (0, 0.5)),
        ({"kind": "shorter"}, "length", (0, 1)),
        ({"kind": "more_variable", "ratio": 2}, "reward/mean", (2, math.inf)),
        ({"kind": "higher", "arm": "base"}, "accuracy", (0, math.inf)),
        ({"kind": "higher", "by": 0.05, "metric": "pass@${eval.n}"}, "pass@8", (0.05, math.inf)),
        ({"kind": "not_worse", "margin": 0.02, "test": "out_dist"}, "accuracy", (-0.02, math.inf)),
        ({"kind": "equal", "margin": 0.02, "metric": "reward/mean"}, "reward/mean", (-0.02, 0.02)),
        ({"kind": "higher", "metric": "accuracy/out_dist"}, "accuracy/out_dist", (0, math.inf)),
        ({"kind": "higher", "metric": "eval/in_dist/avg@8"}, "eval/in_dist/avg@8", (0, math.inf)),
        ({"kind": "higher", "metric": "eval/out_dist/length/mean_tokens"}, "eval/out_dist/length/mean_tokens", (0, math.inf)),
        ({"kind": "higher", "metric": "reward/format"}, "reward/format", (0, math.inf)),
    ],
)
def test_what_a_claim_allows(claim, metric, region):
    cfg = of(claim)
    assert refusal_of(cfg) is None
    (read,) = claims.of(cfg)
    assert (read.metric, read.region) == (metric, region)


def test_overrides_that_name_several_arms():
    assert claims.values_of("filter=pods, cppo") == ("filter", ["pods", "cppo"])
    assert claims.values_of("kl='0.04',linear") == ("kl", ["0.04", "linear"])
    assert claims.values_of("eval.k=[1,8]") == ("eval.k", ["[1,8]"])
