import itertools
import random

import pytest
from completions import sample_of

from dash_exp.models.batch import balanced, collate, cut, cut_packed, micro_batches, parts


def of_lengths(lengths):
    return [sample_of((5,) * c, (6,) * t) for c, t in lengths]


def test_cut_padded_by_hand():
    # longest first: (3,3) alone takes 6; with (1,4) it would be 2 x (3 + 4) = 14 > 12; (1,4) and (2,1): 2 x (2 + 4) = 12
    assert cut([(2, 1), (3, 3), (1, 4)], micro_tokens=12) == [[1], [2, 0]]


def test_cut_packed_by_hand():
    # prompts of 2 and 3 tokens; the group of the longest completion first: 3 + 4 + 1 = 8, then 2 + 2 + 1 = 5
    samples = [
        sample_of((5, 5), (6,)),
        sample_of((7,) * 3, (6,)),
        sample_of((5, 5), (6, 6)),
        sample_of((7,) * 3, (6,) * 4),
    ]
    assert cut_packed(samples, 8) == [[3, 1], [2, 0]]
    assert cut_packed(samples, 14) == [[3, 1, 2, 0]]
    assert cut_packed(samples, 13) == [[3, 1, 2], [0]]  # 4 rows of attention, 3 + 4 wide, are more than 2 x 13
    assert cut_packed(samples, 12) == [[3, 1, 2], [0]]


def test_a_sample_longer_than_the_budget_goes_alone():
    assert cut([(50, 50), (1, 1), (1, 1)], micro_tokens=4) == [[0], [1, 2]]
    assert cut_packed(of_lengths([(50, 50), (1, 1), (1, 1)]), micro_tokens=4) == [[0], [1, 2]]


def test_nothing_to_cut():
    assert cut([], micro_tokens=4) == cut_packed([], micro_tokens=4) == []


@pytest.mark.parametrize("packed", [False, True])
def test_every_sample_comes_once_and_the_budget_holds(packed):
    rng = random.Random(0)
    for _ in range(50):
        samples = of_lengths((rng.randint(1, 30), rng.randint(1, 60)) for _ in range(rng.randint(1, 40)))
        budget = rng.randint(90, 400)
        batches = list(micro_batches(samples, budget, 0, packed))
        assert sorted(i for rows, _ in batches for i in rows) == list(range(len(samples)))
        assert all(batch.tokens <= budget for _, batch in batches)


def test_packed_a_long_completion_does_not_widen_many_short_ones():
    samples = [sample_of((5,), (6,) * n) for n in (1000, *[20] * 48)]
    batches = cut_packed(samples, 2048)
    assert all(len(rows) * max(1 + len(samples[i].completion_ids) for i in rows) <= 2 * 2048 for rows in batches)
    assert [len(rows) for rows in batches] == [4, 45]


def test_packed_the_completions_of_a_prompt_stay_together():
    samples = [sample_of((prompt, 5), (6,) * n) for n in range(1, 9) for prompt in range(10, 30)]
    batches = cut_packed(samples, 100)
    prompts = [samples[i].prompt_ids for rows in batches for i in rows]
    assert len(list(itertools.groupby(prompts))) == 20


def test_collate_pads_prompts_left_and_completions_right():
    batch = collate([sample_of((5, 6), (7,), 0.5), sample_of((8,), (9, 9, 1), -0.5)], pad_id=0)
    assert batch.input_ids_BL.tolist() == [[5, 6, 7, 0, 0], [0, 8, 9, 9, 1]]
    assert batch.attention_mask_BL.tolist() == [[1, 1, 1, 0, 0], [0, 1, 1, 1, 1]]
    assert batch.completion_mask_BT.tolist() == [[1, 0, 0], [1, 1, 1]]
    assert batch.advantages_B.tolist() == [0.5, -0.5]


def test_micro_batches_hold_the_samples():
    samples = [sample_of((1,), (2,) * n, float(n)) for n in (1, 2, 3)]
    batches = list(micro_batches(samples, 8, 0, packed=False))
    assert len(batches) > 1
    for rows, batch in batches:
        assert batch.advantages_B.tolist() == [samples[i].advantage for i in rows]
    assert sorted(i for rows, _ in batches for i in rows) == [0, 1, 2]


def test_log_probs_of_the_sampling_policy_stand_under_their_tokens():
    batch = collate([sample_of((5, 6), (7,), 0.5, (-1.5,)), sample_of((8,), (9, 9), -0.5, (-0.25, -0.5))], pad_id=0)
    assert batch.old_logprobs_BT.tolist() == [[-1.5, 0.0], [-0.25, -0.5]]
    assert collate([sample_of((5, 6), (7,), 0.5)], pad_id=0).old_logprobs_BT is None


def test_parts_are_passes_and_slices():
    assert parts(4, 2, 1, [0, 0]) == [[0, 1, 2, 3]] * 2
    sliced = parts(10, 2, 3, [0, 0])
    assert [len(p) for p in sliced] == [4, 3, 3] * 2
    for one_pass in (sliced[:3], sliced[3:]):
        assert sorted(i for p in one_pass for i in p) == list(range(10))
    assert sliced[:3] != sliced[3:]  # each pass has its own order
    assert sliced == parts(10, 2, 3, [0, 0])
    assert sliced != parts(10, 2, 3, [0, 1])


def test_shares_are_of_like_size_and_whole():
    assert balanced([5, 1, 4], 2) == [[0], [1, 2]]
    assert balanced([7, 3, 3, 1], 2) == [[0], [1, 2, 3]]  # 7 tokens each
    assert balanced([3], 2) == [[0], []]
    assert balanced([2, 9, 4], 1) == [[0, 1, 2]]
