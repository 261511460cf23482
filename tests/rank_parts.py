"""Parts that a run of two ranks is given by name, in each of its processes (`_target_=rank_parts.CopySampler`)."""

import copy

import torch
import torch.distributed as dist

from dash_exp.algorithms import losses
from dash_exp.models import adapter
from dash_exp.sampling.hf import HFSampler


class CopySampler(HFSampler):
    """A sampler with weights of its own, as a server's; the ranks beside the first have none."""

    def __init__(self, policy, **kwargs):
        super().__init__(copy.deepcopy(policy).eval(), **kwargs)

    def load_weights(self, weights, version):
        self.policy.load_state_dict(weights)
        self.version = version


class AdapterSampler(CopySampler):
    """As `vllm_server` with an adapter, it takes A and B, and asks for the policy's own weights and for both merged."""

    def __init__(self, policy, **kwargs):
        super().__init__(policy, **kwargs)
        self.original, self.base = policy, {k: t.clone() for k, t in adapter.base(policy).items()}

    def load_weights(self, weights, version):
        base, merged = adapter.base(self.original), adapter.whole(self.original, weights)
        assert base.keys() == self.base.keys() == merged.keys()
        assert all(torch.equal(base[name], tensor) for name, tensor in self.base.items())
        adapter.put_back(self.policy, weights)
        theirs = adapter.whole(self.policy, adapter.trained(self.policy))
        for name, tensor in merged.items():
            torch.testing.assert_close(tensor, theirs[name])
        self.version = version


def hungry(logprobs_BT, *arguments):
    """On the second rank memory runs out where a micro-batch has more than 4 completions."""
    if len(logprobs_BT) > 4 and dist.get_rank() == 1:
        raise torch.OutOfMemoryError
    return losses.policy_gradient(logprobs_BT, *arguments)
