import torch
import torch.nn.functional as F
from completions import sample_of

from dash_exp.models import log_probs
from dash_exp.models.batch import collate


def test_positions_count_from_the_first_real_token():
    assert log_probs.positions(torch.tensor([[0, 0, 1, 1], [1, 1, 1, 0]])).tolist() == [[0, 0, 0, 1], [0, 1, 2, 2]]


def test_token_logprobs_equal_those_of_each_row_alone(policy):
    """Padding on both sides must not show: row by row, unpadded, with the softmax written out."""
    samples = [sample_of((5, 6, 7), (8, 9)), sample_of((10,), (11, 12, 13, 1))]
    got = log_probs.token_logprobs(policy, collate(samples, pad_id=0), temperature=0.7)
    for row, sample in enumerate(samples):
        ids = torch.tensor([[*sample.prompt_ids, *sample.completion_ids]])
        logprobs = F.log_softmax(policy(ids).logits[0] / 0.7, dim=-1)
        n = len(sample.prompt_ids)
        for t, token in enumerate(sample.completion_ids):
            torch.testing.assert_close(got[row, t], logprobs[n + t - 1, token])
        assert (got[row, len(sample.completion_ids) :] == 0).all()
