"""The tokens of a completion are arrays of its own, whatever they come from."""

import pickle

import numpy as np
import pytest
import torch
from completions import plain

from dash_exp.core.types import Completion

ROW = (
    torch.tensor([[9, 9, 9, 9], [7, 150_000, 1, 0]])[1, :3].numpy(),
    torch.tensor([[0.1] * 4, [-0.1, -2.3, -0.7, 0.0]])[1, :3].numpy(),
)


@pytest.mark.parametrize(
    ("ids", "logprobs"),
    [
        ([7, 150_000, 1], [float(p) for p in ROW[1]]),  # as JSON and vLLM have them: numbers of 32 bits, in Python's type
        ((7, 150_000, 1), None),
        ROW,
        ([], []),
    ],
    ids=["lists", "without a policy", "row", "empty"],
)
def test_eight_bytes_a_token(ids, logprobs):
    made = Completion(ids, logprobs, truncated=True)
    assert made.ids.dtype == np.int32 and made.ids.base is None and made.ids.tolist() == list(ids)
    if logprobs is None:
        assert made.logprobs is None
    else:
        assert made.logprobs.dtype == np.float32 and made.logprobs.base is None
        assert made.logprobs.tolist() == [float(p) for p in logprobs]  # to the last bit
        assert made.ids.nbytes + made.logprobs.nbytes == 8 * len(ids)


def test_ranks_exchange_no_object_per_token():
    """An id of a large vocabulary takes 5 bytes as a pickled integer, a log-probability 9."""
    ids, logprobs = np.random.default_rng(0).integers(70_000, 150_000, 5_000), torch.rand(5_000).numpy()
    sent = pickle.dumps([Completion(ids, logprobs, truncated=False)])
    assert len(sent) < 8 * 5_000 + 1_000
    assert plain(pickle.loads(sent)) == plain([Completion(ids, logprobs, truncated=False)])
