"""A sampler whose servers are stand-ins."""

import logging

import pytest
import torch

from dash_exp.models import adapter
from dash_exp.sampling import vllm_server
from dash_exp.sampling.engine import fingerprint
from dash_exp.sampling.vllm_server import VLLMServerSampler


@pytest.fixture
def stand_ins(policy, tokenizer, monkeypatch, caplog):
    """A sampler with stand-ins for its servers, and the stand-ins."""
    caplog.set_level(logging.WARNING)
    monkeypatch.setattr(vllm_server, "PROBE_EVERY_S", 0.1)
    made = []

    def make(*servers, trained=policy, dtype=torch.float32, urls=(), **settings):
        settings = {"max_sequences": 64, "timeout_s": 10.0, "give_up_s": 60.0} | settings
        sampler = VLLMServerSampler(trained, tokenizer, dtype, servers=urls or [s.url for s in servers], **settings)
        for s in servers:
            fits = {"model": "x", "fingerprint": fingerprint(trained.config, sampler.updates.shapes), "lora_rank": 8}
            fits |= {"dtype": str(dtype).removeprefix("torch."), "max_sequences": 64, "device": "cpu"}
            s.facts = fits | s.facts
        made.extend([sampler, *servers])
        sampler.load_weights(adapter.trained(trained), 1)
        return sampler

    yield make
    for each in made:
        each.close() if isinstance(each, VLLMServerSampler) else (each.shutdown(), each.server_close())
