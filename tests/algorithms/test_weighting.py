import torch

from dash_exp.algorithms import weighting


def test_weightings():
    mask = torch.tensor([[1, 1, 0], [1, 0, 0]])
    assert weighting.sequence_mean(mask).tolist() == [[0.5, 0.5, 0], [1, 0, 0]]
    assert weighting.token_sum(mask).tolist() == [[1, 1, 0], [1, 0, 0]]


def test_denominators():
    counts = weighting.StepCounts(sampled=8, kept=3, sampled_tokens=100, kept_tokens=40)
    assert (weighting.per_sampled(counts), weighting.per_kept(counts), weighting.per_kept_token(counts)) == (8, 3, 40)
    assert weighting.per_sampled_length(counts, max_tokens=20) == 160
