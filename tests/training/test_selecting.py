"""Which prompts an outer step samples under each rule, and the gradient that it learns from them."""

import copy
from functools import partial
from itertools import product

import numpy as np
import pytest
import torch
from nano_runs import close, gradient, never_right, one_run

from dash_exp.algorithms import selection
from dash_exp.algorithms.advantages import group_centered
from dash_exp.core.errors import UserError
from dash_exp.core.types import Completion, Problem, Prompt
from dash_exp.models import log_probs
from dash_exp.models.batch import collate
from dash_exp.rewards.base import Scores
from dash_exp.training.selecting import Candidates, Graded, screened

PROMPTS = [Prompt(Problem(str(i), "?", "1"), (i,)) for i in range(4)]
STILL = partial(torch.optim.SGD, lr=0.0)


def names(prompts):
    return [p.problem.id for p in prompts]


# --- skipping, enumerated ------------------------------------------------------------------------------------------------

CHANCES = {"0": 0.25, "1": 0.5, "2": 1.0, "3": 0.25}


class Known(selection.Selection):
    """Gives each prompt the chance that it has above."""

    def chance(self, problem):
        return CHANCES[problem]


def test_prompts_are_sampled_by_their_chances():
    """All draws from the middle of each quarter, which fall below the chances exactly as often as they say."""
    order = names(Candidates(PROMPTS, 2, 0, selection.Uniform()).others([], 0))
    own = names(Candidates(PROMPTS, 2, 0, selection.Uniform()).chosen(0))
    order = own + [n for n in order if n not in own]
    expected = dict.fromkeys(CHANCES, 0.0)
    for keeps in product([False, True], repeat=4):
        probability = torch.tensor([CHANCES[n] if k else 1 - CHANCES[n] for n, k in zip(order, keeps, strict=True)]).prod()
        taken = [n for n, k in zip(order, keeps, strict=True) if k] + [n for n, k in zip(order, keeps, strict=True) if not k]
        for name in taken[:2]:
            expected[name] += float(probability)

    got, skipped = dict.fromkeys(CHANCES, 0.0), 0
    for draws in product([0.125, 0.375, 0.625, 0.875], repeat=4):
        candidates = Candidates(PROMPTS, 2, 0, Known())
        candidates._draws = lambda step, draws=draws: draws
        for name in names(candidates.chosen(0)):
            got[name] += 1 / 4**4
        assert not candidates.skipped.keys() & set(names(candidates.chosen(0)))
        skipped += len(candidates.skipped)
    assert got == pytest.approx(expected)
    assert skipped > 0


def test_draws_belong_to_seed_step_and_prompt():
    half = Known()
    half.chance = lambda problem: 0.5
    many = [Prompt(Problem(str(i), "?", "1"), (i,)) for i in range(64)]

    def skipped(seed, step, size=64):
        candidates = Candidates(many[:size], 16, seed, half)
        candidates.chosen(step)
        return set(candidates.skipped)

    assert skipped(0, 3) == skipped(0, 3) != set()
    assert skipped(0, 3) != skipped(0, 4)
    assert skipped(0, 3) != skipped(1, 3)


# --- screening, enumerated -----------------------------------------------------------------------------------------------

P_RIGHT = [0.1, 0.5, 0.8]
P_P1 = torch.tensor(P_RIGHT, dtype=torch.float64)[:, None]
# What a right and a wrong completion add to the gradient where A = 1.
V_RIGHT, V_WRONG = torch.tensor([1.0, 3.0], dtype=torch.float64), torch.tensor([-2.0, 0.5], dtype=torch.float64)


def weight(p, first, size):
    """The formula in the docstring of `Screen`."""
    q, n, m = 1 - p, first, size - first
    pairs = n * (n - 1) + n * m * (2 - p ** (n - 1) - q ** (n - 1)) + m * (m - 1) * (1 - p**n - q**n)
    return pairs / size**2


@pytest.mark.parametrize(("first", "size", "wanted"), [(2, 3, 1), (2, 3, 2), (2, 4, 1)])
def test_the_expected_gradient_of_screened_groups(first, size, wanted):
    """Every outcome of three prompts with its probability, through the program: who is trained on, and the mean of A v.

    A prompt has its group where its first completions differ and fewer than `wanted` before it do; the first prompt also where
    none does.
    """
    trained, expected = torch.zeros(3, dtype=torch.float64), torch.zeros(3, 2, dtype=torch.float64)
    for outcome in product([0.0, 1.0], repeat=3 * size):
        rewards_PG = torch.tensor(outcome, dtype=torch.float64).view(3, size)
        probability = torch.where(rewards_PG == 1, P_P1, 1 - P_P1).prod()
        groups, aside = screened(selection.Screen(first), iter(PROMPTS[:3]), wanted, size, partial(written, rewards_PG))
        there = [int(p.problem.id) for p in groups.prompts]
        assert groups.rewards.equal(rewards_PG[there])
        assert groups.texts == [f"{p}.{i}" for p in there for i in range(size)]
        left = [] if aside is None else [int(p.problem.id) for p in aside.prompts]
        assert not set(left) & set(there)
        if aside is not None:
            assert aside.rewards.equal(rewards_PG[left, :first])
        v_PGd = torch.where(rewards_PG[there][..., None] == 1, V_RIGHT, V_WRONG)
        mean_Pd = (group_centered(rewards_PG[there])[..., None] * v_PGd).mean(1)
        trained[there] += probability
        expected[there] += probability * mean_Pd

    a = [1 - p**first - (1 - p) ** first for p in P_RIGHT]
    before = [1.0, 1.0, 1 - a[0] * a[1]] if wanted == 2 else [1.0, 1 - a[0], (1 - a[0]) * (1 - a[1])]
    none = (1 - a[0]) * (1 - a[1]) * (1 - a[2])
    assert trained.tolist() == pytest.approx([a[i] * before[i] + none * (i == 0) for i in range(3)])
    whole = (size - 1) / size
    weights = [weight(p, first, size) * before[i] for i, p in enumerate(P_RIGHT)]
    weights[0] += (1 - a[1]) * (1 - a[2]) * (whole - weight(P_RIGHT[0], first, size))
    direction = V_RIGHT - V_WRONG
    torch.testing.assert_close(
        expected, torch.stack([w * p * (1 - p) * direction for w, p in zip(weights, P_RIGHT, strict=True)])
    )


def written(rewards_PG, prompts, start, count):
    """Completions `start` to `start + count` of each prompt, graded as this table has it."""
    places = [int(p.problem.id) for p in prompts]
    texts = [f"{p}.{i}" for p in places for i in range(start, start + count)]
    rewards = rewards_PG[places, start : start + count].flatten().tolist()
    return Graded(list(prompts), [Completion((1,), (0.0,), False) for _ in texts], texts, Scores(rewards, timeouts=1))


@pytest.mark.parametrize(
    ("p", "first", "size", "share"),
    # of uniform's (G - 1)/G: n/G for a prompt that is nearly always or never solved. At 1/2, by hand for n = 2, G = 8:
    # [2 + 12 (2 - 1/2 - 1/2) + 30 (1 - 1/2)] / 64 = 29/64, of 56/64
    [(1e-9, 2, 8, 2 / 8), (1 - 1e-9, 2, 8, 2 / 8), (0.5, 2, 8, 29 / 56), (0.3, 8, 8, 1.0), (1e-9, 4, 8, 4 / 8)],
)
def test_how_much_a_screened_prompt_counts(p, first, size, share):
    assert weight(p, first, size) / ((size - 1) / size) == pytest.approx(share)


def test_screening_stops_at_its_limits_and_counts_what_was_not_graded():
    never = torch.zeros(4, 3)
    rule = selection.Screen(wide=1, rounds=2)
    groups, aside = screened(rule, iter(PROMPTS), 2, 3, partial(written, never))
    assert (names(groups.prompts), names(aside.prompts)) == (["0"], ["1", "2", "3"])  # two calls of two, and one group
    assert (groups.scores.timeouts, aside.scores.timeouts) == (3, 0)
    both = torch.tensor([[0.0, 1, 1]] * 4)
    groups, aside = screened(selection.Screen(), iter(PROMPTS), 4, 3, partial(written, both))
    assert (names(groups.prompts), aside) == (["0", "1", "2", "3"], None)


# --- in a run ------------------------------------------------------------------------------------------------------------


def by_prompt(rollouts):
    """The completions of each prompt, of all sampling calls: token ids, in the order of the group."""
    return {
        p.problem.id: [list(c.ids) for c in r.completions[i * r.group_size : (i + 1) * r.group_size]]
        for r in rollouts
        for i, p in enumerate(r.prompts)
    }


def test_a_screened_group_is_the_group_that_uniform_samples(tokenizer, tmp_path):
    rule = selection.Screen()
    uniform, screen = (one_run(tokenizer, tmp_path, selection=r)[0].rollouts_of_step for r in (None, rule))
    groups, aside = screen
    whole, trained, begun = by_prompt(uniform), by_prompt([groups]), by_prompt([aside])
    assert whole.keys() <= trained.keys() | begun.keys()  # its prompts are screened before others
    assert len(whole.keys() & trained.keys()) > 0 < len(whole.keys() & begun.keys())
    assert all(trained[name] == whole[name] for name in whole.keys() & trained.keys())
    assert all(begun[name] == whole[name][:2] for name in whole.keys() & begun.keys())


def test_what_a_screened_step_learns_and_counts(tokenizer, tmp_path):
    module, _, before = one_run(tokenizer, tmp_path, selection=selection.Screen())
    groups, aside = module.rollouts_of_step
    policy, loss = copy.deepcopy(before), 0
    for sample in groups.samples():
        loss = loss - sample.advantage * log_probs.token_logprobs(policy, collate([sample], 0), 1.0)[0].mean()
    (loss / len(groups.completions)).backward()
    close(gradient(module, before), torch.cat([p.grad.flatten() for p in policy.parameters()]))

    every = [*groups.completions, *aside.completions]
    rewards = [*groups.rewards_PG.flatten().tolist(), *aside.rewards_PG.flatten().tolist()]
    found = {name: module.row[name] for name in ("completions/sampled", "tokens/sampled", "completions/kept")}
    assert found == {
        "completions/sampled": len(every),
        "tokens/sampled": sum(len(c.ids) for c in every),
        "completions/kept": len(groups.completions),
    }
    assert module.row["select/screened_out_prompts"] == len(aside.prompts) > 0
    assert module.row["reward/mean"] == pytest.approx(sum(rewards) / len(rewards))
    assert module.row["loss/denominator"] == len(groups.completions)
    assert not (aside.keep_PG.any() or aside.advantages_PG.any())


def test_coupled_and_preemptive_arms_skip_the_same_prompts(tokenizer, tmp_path):
    """With a policy that stays as it is, so that rounding cannot tell them apart."""
    runs = [
        one_run(
            tokenizer,
            tmp_path,
            selection=selection.GRESO(),
            reward=never_right,
            steps=4,
            optimizer=STILL,
            sample_prompts=cut,
        )[0]
        for cut in (None, 2)
    ]
    first, second = runs
    assert first.row["select/skipped_prompts"] == second.row["select/skipped_prompts"] > 0
    assert list(by_prompt(first.rollouts_of_step).items()) == list(by_prompt(second.rollouts_of_step).items())


@pytest.mark.parametrize("seed", [0, 7])
@pytest.mark.parametrize("step", [0, 1, 2, 5])
def test_uniform_takes_the_prompts_of_the_step_and_others_in_the_order_of_earlier_versions(step, seed):
    candidates = Candidates(PROMPTS, 2, seed, selection.Uniform())
    data_pass, part = divmod(step, 2)
    own = [str(i) for i in np.random.default_rng([seed, data_pass]).permutation(4)[2 * part : 2 * part + 2]]
    assert names(candidates.chosen(step)) == own and not candidates.skipped
    shuffled = [str(i) for i in np.random.default_rng([seed, step, 1]).permutation(4)]
    assert names(candidates.others(candidates.own(step), step)) == [n for n in shuffled if n not in own]


def test_uniform_leaves_no_prompt_out(tokenizer, tmp_path):
    module, *_ = one_run(tokenizer, tmp_path, steps=2, selection=selection.Uniform())
    assert module.row["select/skipped_prompts"] == module.row["select/screened_out_prompts"] == 0


def test_screening_counts_in_the_memory_of_rollouts(tokenizer, tmp_path):
    with pytest.raises(UserError, match=r"that 168 completions with all screening calls of up to 10 tokens can take"):
        one_run(tokenizer, tmp_path, selection=selection.Screen(), memory_gb=1e-6)  # 6 x 4 + 3 x 4 x 6 x 2
