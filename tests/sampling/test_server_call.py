"""A completion that goes over HTTP is the same to the last bit."""

import json

import pytest
import torch
from completions import plain

from dash_exp.core.types import Completion
from dash_exp.sampling.server import as_json
from dash_exp.sampling.server_call import completion

EOS = 1


@pytest.mark.parametrize(("last", "stopped"), [(EOS, False), (7, True), (7, False)], ids=["ended", "stopped", "truncated"])
@pytest.mark.parametrize("sampled", [True, False])
def test_over_http(last, stopped, sampled):
    torch.manual_seed(0)
    logprobs = torch.log_softmax(torch.randn(1000), -1).numpy() if sampled else None
    ids = [*torch.randint(2, 150_000, (999,)).tolist(), last]
    sent = Completion(ids, logprobs, truncated=last != EOS and not stopped, stopped=stopped)
    received = completion(json.loads(json.dumps(as_json(sent))), frozenset({EOS}))
    assert plain([received]) == plain([sent])
