"""How a reward model learns, on completions whose rightness is in their text."""

import math

import pytest
import torch
from conftest import save_scorer
from problems import problem

from dash_exp.rewards.model import ModelReward
from dash_exp.training.reward_model import Graded, balanced, fit, measured


def graded(texts, right):
    return Graded([problem("7")] * len(texts), list(texts), list(right))


@pytest.fixture
def judge(tmp_path):
    judge = ModelReward(str(save_scorer(tmp_path, max_position_embeddings=32)), max_tokens=64, device="cpu")
    torch.nn.init.zeros_(judge.scorer.score.weight)
    judge.scorer.requires_grad_(True)
    return judge


SEVENS = graded([f"{a}{b}:{c}" for a in "+-*" for b in "123456789" for c in "78"], [c == "7" for _ in range(27) for c in "78"])
OTHERS = graded([f"{a}{b}:{c}" for a in "=" for b in "123456789" for c in "78"], [c == "7" for _ in range(9) for c in "78"])


def test_it_learns_to_tell_right_from_wrong(judge):
    assert measured(judge, OTHERS) == {"accuracy": 0.5, "auc": 0.5}  # all logits are 0
    losses = list(fit(judge, SEVENS, epochs=40, lr=1e-2, seed=0))
    assert losses[0] == pytest.approx(math.log(2), abs=0.2)
    assert losses[-1] < 0.1
    found = measured(judge, OTHERS)
    assert found["accuracy"] > 0.9
    assert found["auc"] > 0.95


def test_the_gradient_is_of_the_whole_batch_whatever_the_passes(judge, monkeypatch):
    """One step on 54 completions in passes of 64 tokens, and of all tokens, gives the same weights.

    By SGD: the first step of AdamW is the same for every multiple of a gradient.
    """
    monkeypatch.setattr(torch.optim, "AdamW", lambda parameters, lr, weight_decay: torch.optim.SGD(parameters, lr))
    torch.manual_seed(0)
    torch.nn.init.normal_(judge.scorer.score.weight, std=1e-3)  # so that all weights have a gradient, of a norm below 1
    before = {name: p.detach().clone() for name, p in judge.scorer.named_parameters()}
    after = []
    for max_tokens in (64, 10_000):
        judge.scorer.load_state_dict(before)
        judge.max_tokens = max_tokens
        list(fit(judge, SEVENS, epochs=1, lr=1e-1, seed=0))
        after.append({name: p.detach().clone() for name, p in judge.scorer.named_parameters()})
    for name, one in after[0].items():
        torch.testing.assert_close(one, after[1][name], atol=1e-6, rtol=1e-5)
    moved = [name for name in before if (before[name] - after[0][name]).abs().max() > 1e-5]
    assert len(moved) > 3


def test_the_order_is_keyed(judge):
    before = {name: p.detach().clone() for name, p in judge.scorer.named_parameters()}
    many = graded(SEVENS.texts * 3, SEVENS.right * 3)  # more than one batch

    def learnt(seed):
        judge.scorer.load_state_dict(before)
        return list(fit(judge, many, epochs=2, lr=1e-3, seed=seed))

    assert learnt(0) == learnt(0) != learnt(1)


def test_what_it_cannot_read_is_left_out_of_the_training(judge):
    unreadable = graded([*SEVENS.texts, "x" * 100, "\ud800"], [*SEVENS.right, True, True])
    before = {name: p.detach().clone() for name, p in judge.scorer.named_parameters()}
    learnt = list(fit(judge, unreadable, epochs=3, lr=1e-3, seed=0))
    judge.scorer.load_state_dict(before)
    assert learnt == list(fit(judge, SEVENS, epochs=3, lr=1e-3, seed=0))


def test_as_many_right_as_wrong_ones():
    many = graded([str(i) for i in range(100)], [i % 10 == 0 for i in range(100)])
    found = balanced(many, 0)
    assert (sum(found.right), len(found.right)) == (10, 20)
    assert [text for text, right in zip(found.texts, found.right, strict=True) if right] == [str(i) for i in range(0, 100, 10)]
    assert found == balanced(many, 0) != balanced(many, 1)
    mostly = graded([str(i) for i in range(9)], [i != 4 for i in range(9)])
    assert sorted(balanced(mostly, 0).right) == [False, True]
    assert "4" in balanced(mostly, 0).texts


def test_the_share_of_pairs_in_order(judge):
    """Ties count half; right ones among wrong ones, by hand: of 2 x 3 pairs 4 are in order and one is a tie."""

    class Judge:
        def __call__(self, problems, texts):
            return type("Scores", (), {"rewards": [float(text) for text in texts]})

    assert measured(Judge(), graded(["0.9", "0.4", "0.1", "0.4", "0.8"], [True, True, False, False, False])) == {
        "accuracy": pytest.approx(3 / 5),
        "auc": pytest.approx(4.5 / 6),
    }
