"""Which weights a step is sampled with. The policy's weight is a number that tells how many outer steps it has seen."""

import pytest
import torch

from dash_exp.sampling.refresh import Refresh, copied


class Policy(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.steps = torch.nn.Parameter(torch.zeros(1))


class Recorder:
    """Remembers (value of the weight, version) of each load; keeps the tensor itself, so a later change would show."""

    version = None

    def __init__(self):
        self.loads = []

    def load_weights(self, weights, version):
        self.version = version
        self.loads.append((weights["steps"], version))


def refresh(staleness, every):
    policy = Policy()
    return policy, Refresh(policy, Recorder(), staleness, every)


def step(policy, refresh, version):
    with torch.no_grad():
        policy.steps += 1
    refresh.publish(version)


@pytest.mark.parametrize(
    ("staleness", "every", "due"),
    [
        (0, 1, [0, 1, 2, 3, 4, 5]),
        (1, 1, [0, 0, 1, 2, 3, 4]),
        (2, 1, [0, 0, 0, 1, 2, 3]),
        (0, 2, [0, 0, 2, 2, 4, 4]),
        (1, 3, [0, 0, 0, 0, 3, 3]),
        (0, None, [0, 0, 0, 0, 0, 0]),
    ],
)
def test_each_step_gets_the_weights_that_are_due(staleness, every, due):
    policy, both = refresh(staleness, every)
    assert [both.due(s) for s in range(6)] == due
    for s in range(6):
        both.bring(s)
        weight, version = both.sampler.loads[-1]
        assert weight.item() == due[s]
        assert version == both.version(s) == 10 * due[s]  # ten optimizer steps an outer step
        step(policy, both, 10 * (s + 1))
    assert len(both.sampler.loads) == len(set(due))  # nothing is loaded twice


def test_a_step_ahead_gets_its_weights_while_the_policy_changes():
    policy, both = refresh(1, 1)
    step(policy, both, 1)
    both.bring(2)  # sampled while step 1 is trained on, by the weights after one step
    with torch.no_grad():
        policy.steps += 1
    assert both.sampler.loads == [(torch.ones(1), 1)]


def test_evaluation_gets_the_newest_and_sampling_the_older_ones_again():
    policy, both = refresh(1, 1)
    step(policy, both, 1)
    both.bring(1)
    both.bring_newest()
    both.bring(1)
    assert [(w.item(), v) for w, v in both.sampler.loads] == [(0, 0), (1, 1), (0, 0)]


def test_on_policy_nothing_is_copied_and_otherwise_no_more_than_needed():
    policy, both = refresh(0, 1)
    for s in range(5):
        step(policy, both, s + 1)
    assert both._copies == {}
    policy, both = refresh(2, 1)
    for s in range(5):
        step(policy, both, s + 1)
    assert sorted(both._copies) == [3, 4, 5]


def test_a_snapshot_needs_the_older_weights_and_the_policy():
    """The others are copied again from the policy when the run resumes, before it changes."""
    policy, left = refresh(1, 1)
    for s in range(3):
        step(policy, left, s + 1)
    assert set(left.older) == {2}
    resumed = Refresh(policy, Recorder(), 1, 1)
    resumed.restore(left.versions, left.older)
    with torch.no_grad():
        policy.steps += 1
    assert {s: float(weights["steps"]) for s, weights in resumed.copies.items()} == {2: 2, 3: 3}


def test_tied_tensors_are_copied_once(policy):
    copies = copied(policy.state_dict())
    head, embedding = copies["lm_head.weight"], copies["model.embed_tokens.weight"]
    assert head.data_ptr() == embedding.data_ptr() != policy.lm_head.weight.data_ptr()
    assert torch.equal(head, policy.lm_head.weight)


@pytest.mark.parametrize("every", [None, 4])
def test_gathered_weights_that_no_step_is_sampled_with_are_dropped(every):
    """Those of a sharded policy are gathered after each step, for evaluation: only the newest, and those that are due, stay."""
    found = Refresh(torch.nn.Linear(1, 1), Recorder(), every=every, weights=dict)
    for step in range(1, 12):
        found.publish(step)
        assert set(found.copies) == {found.due(step), step}
