"""Completions that go to another rank come there as they were, in few bytes."""

import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch

from dash_exp.core.types import Completion, Problem, Prompt, Rollouts
from dash_exp.training import travel


def plain(completion):
    logprobs = None if completion.logprobs is None else completion.logprobs.tolist()
    return completion.ids.tolist(), logprobs, completion.truncated, completion.stopped


@pytest.mark.parametrize(
    "completions",
    [
        [],
        [Completion([5, 6, 1], [-0.1, -1 / 3, -2e-7], truncated=False)],
        [Completion([7], None, True), Completion([], [], False), Completion([1, 2], [-1, -2], False, True)],
    ],
)
def test_completions_come_as_they_were(completions):
    sent = pickle.loads(pickle.dumps(travel.packed(completions)))
    assert list(map(plain, travel.unpacked(sent))) == list(map(plain, completions))
    assert all(c.ids.dtype == np.int32 for c in travel.unpacked(sent))


def test_rollouts_come_with_the_prompts_that_are_there():
    prompts = [Prompt(Problem(name, name, "1"), (1, 2)) for name in "ab"]
    of_b = Rollouts(
        [prompts[1]], [Completion([3], [-1.0], False)], ["x"], *(torch.ones(1, 1) for _ in range(3)), torch.ones(1, 1).bool(), 4
    )
    rollouts = replace(of_b, prompts=[prompts[0]], aside=of_b, kl_nats=0.5, components={"c": [1.0]})
    found = travel.received(pickle.loads(pickle.dumps(travel.sent(rollouts))), {p.problem.id: p for p in prompts})
    assert found.prompts[0] is prompts[0]
    assert found.aside is not None
    assert found.aside.prompts[0] is prompts[1]
    assert list(map(plain, found.completions + found.aside.completions)) == 2 * [([3], [-1.0], False, False)]
    assert (found.kl_nats, found.components, found.policy_version) == (0.5, {"c": [1.0]}, 4)


def test_a_token_takes_eight_bytes():
    """Its id and its log-probability, and 13 bytes more for each completion."""
    completions = [Completion(range(1000), [-1.0] * 1000, False) for _ in range(100)]
    assert len(pickle.dumps(travel.packed(completions), protocol=5)) < 100 * 1000 * 8 + 100 * 13 + 1000
