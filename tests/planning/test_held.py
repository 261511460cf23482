"""What a run holds besides the tensors of its passes."""

import pytest
import torch
from conftest import NANO_MODEL, SMALL, composed, save_scorer
from plans import HERE
from torch import nn

from dash_exp.planning import held
from dash_exp.planning.job import job_of
from dash_exp.planning.machine import KNOWN
from dash_exp.planning.plan import cpu_memory
from dash_exp.rewards import cores
from dash_exp.sampling import refresh
from dash_exp.training.rollout import rollout_bytes

N = 8_030_261_248  # of Llama-3-8B
LLAMA = "model=llama-3-8b model.dtype=float32 trainer=gpu rollout=vllm_server"
ENGINE = "model=llama-3-8b trainer=gpu rollout=vllm"
TWO = "trainer.devices=2 trainer.accelerator=gpu"
ADAPTER = 16 * 32 * (2 * 8192 + 2 * 5120 + 3 * 18432)  # numbers: rank 16, 32 layers (see test_table)


OWN = f"{LLAMA} rollout.sampler.colocate=true"


def job(words, device=KNOWN["h200"]):
    return job_of(composed(*words.split()), device)


@pytest.mark.parametrize(
    ("words", "phase", "part", "size"),
    [
        # read into CPU memory, then copied: 64 GB; and after training Lightning moves both back, with two moments
        (LLAMA, "load", "policy", 4 * N),
        (LLAMA, "load", "reference", 4 * N),
        (LLAMA, "end", "moments", 8 * N),
        (f"{LLAMA} kl='0'", "load", "reference", None),
        (f"{LLAMA} model.adapter=lora", "load", "reference", None),
        # each rank reads all of it, whether it then keeps all or a part
        (f"{LLAMA} trainer=ddp {TWO}", "load", "policy", 2 * 4 * N),
        (f"{LLAMA} trainer=fsdp {TWO}", "load", "reference", 2 * 4 * N),
        (f"{LLAMA} trainer=fsdp {TWO}", "end", "policy", None),
        # weights, two moments: the first rank reads the snapshot; the other gets the weights, then each its moments
        (f"{LLAMA} trainer=ddp {TWO}", "load", "snapshot", (12 + 8) * N),
        (f"{LLAMA} trainer=ddp {TWO} optimizer._target_=torch.optim.SGD", "load", "snapshot", (4 + 4) * N),
        # in parts, each from the file to the device
        (f"{LLAMA} trainer=fsdp {TWO}", "load", "snapshot", None),
        (f"{LLAMA} resume=false", "load", "snapshot", None),
        (f"{LLAMA} trainer=fsdp {TWO}", "save", "gathered to save", 4 * N),
        # a thread of the first rank writes a copy of weights and moments, at any time
        (LLAMA, "save", "snapshot beside", 12 * N),
        (f"{LLAMA} trainer=ddp {TWO}", "update", "snapshot beside", 12 * N),
        (f"{LLAMA} trainer=fsdp {TWO}", "sample", "snapshot beside", 12 * N),  # each rank its half
        (f"{LLAMA} model.adapter=lora", "update", "snapshot beside", 12 * ADAPTER),
        (f"{LLAMA} resume_every=null", "update", "snapshot beside", None),
        (LLAMA, "save", "gathered to save", 4 * N),
        # 16-bit weights with 32-bit copies: 2 + 8 + 4
        (f"{LLAMA} model.dtype=bfloat16", "load", "snapshot", 14 * N),
        (f"{LLAMA} model.dtype=bfloat16 trainer=ddp {TWO}", "load", "snapshot", (14 + 12) * N),
        # every rank has all completions
        (f"{LLAMA} trainer=ddp {TWO} batch.prompts=64", "sample", "rollouts", 2 * rollout_bytes(64 * 8, 64 * 8 * 64)),
        (f"{LLAMA} batch.prompts=64 rollout.staleness=1", "update", "rollouts", rollout_bytes(1024, 1024 * 64)),
        (f"{LLAMA} algo=dapo filter.refill_rounds=2", "update", "rollouts", None),
        # 64 groups of 8, and 3 x 4 x 64 prompts screened by 2
        (f"{LLAMA} batch.prompts=64 select=screen", "update", "rollouts", rollout_bytes(512 + 1536, 2048 * 64)),
        # servers: NCCL sends from the GPU, a folder has a copy in 16 bits, beside which a new one is made
        (LLAMA, "update", "sent", None),
        (f"{LLAMA} rollout.sampler.transfer=folder", "update", "sent", 2 * N),
        (f"{LLAMA} rollout.sampler.transfer=folder", "sync", "sent", 3 * 2 * N),
        (f"{LLAMA} model.adapter=lora", "update", "sent", 2 * ADAPTER),
        # of weights one step old: those of this step, of the one before, and the new ones while they are copied
        (f"{LLAMA} rollout.staleness=1", "update", "earlier weights", 3 * 4 * N),
        (f"{LLAMA} rollout.staleness=1 model.adapter=lora", "update", "earlier weights", 3 * 4 * ADAPTER),
        # sharded: the first has them, the other a half; which both write, beside weights and moments, the first from a copy
        (f"{LLAMA} trainer=fsdp {TWO} rollout.staleness=1", "update", "earlier weights", 3 * (4 + 2) * N),
        (f"{LLAMA} trainer=fsdp {TWO} rollout.staleness=1", "update", "snapshot beside", (12 + 2 * 2) * N),
        # on-policy: the newest, and the one before it while it is copied
        (f"{LLAMA} trainer=fsdp {TWO}", "update", "earlier weights", 2 * 4 * N),
        # an engine: asleep it has no weights; under an adapter, which is all that it gets, they wait in CPU memory
        (ENGINE, "update", "vLLM asleep", None),
        (f"{ENGINE} model.adapter=lora", "update", "vLLM asleep", 2 * N),
        (OWN, "update", "vLLM asleep", None),
        (f"{OWN} model.adapter=lora trainer=ddp {TWO}", "update", "vLLM asleep", 2 * 2 * N),  # a server for each GPU
        (OWN, "update", "sent", 2 * N),  # in a folder
        (
            f"{ENGINE} model.adapter=lora rollout.sampler.sleep=false",
            "update",
            "vLLM asleep",
            None,
        ),
    ],
)
def test_cpu_memory_beside_gpus(words, phase, part, size):
    found = cpu_memory(job(words))[phase].get(part)
    if words.endswith("refill_rounds=2"):
        once = cpu_memory(job(words.replace("=2", "=0")))[phase][part]
        assert found == pytest.approx(3 * once)
    else:
        assert found == (size if size is None else pytest.approx(size))


@pytest.mark.parametrize(
    ("words", "phase", "part", "size"),
    [
        (LLAMA, "update", "sent", 2 * N),
        (LLAMA, "sync", "sent", 2 * 2 * N),
        (f"{LLAMA} rollout.sampler.transfer=folder", "sync", "sent", None),
        (f"{LLAMA} rollout.staleness=1", "sync", "sent", None),  # from CPU memory
        (f"{LLAMA} model.adapter=lora rollout.sampler.merge=true", "update", "sent", 2 * N),
        # the largest tensor is copied to be added up: the embedding, in 32 bits
        (f"{LLAMA} trainer=ddp {TWO}", "step", "exchange", 4 * 128256 * 4096),
        (f"{LLAMA} trainer=fsdp {TWO}", "step", "exchange", None),
        (f"{LLAMA} ~optimizer.fused", "step", "temporaries", 4 * N),
        # Qwen2.5-7B in 32 bits
        ("algo=sft_m teacher=qwen2.5-7b-instruct trainer=gpu", "update", "teacher", 4 * 7_615_616_512),
        ("algo=sft_h trainer=gpu", "update", "teacher", None),
    ],
)
def test_what_is_on_a_gpu(words, phase, part, size):
    found = held.added_up(held.on_device(job(words)), phase).get(part)
    assert found == (size if size is None else pytest.approx(size))


@pytest.mark.parametrize("device", ["auto", "cpu"])
def test_a_reward_model_is_where_its_setting_puts_it(tmp_path, device):
    folder = save_scorer(tmp_path)
    words = [*SMALL, "reward=reward_model", f"reward.path={folder}", f"reward.device={device}", "reward.dtype=bfloat16"]
    planned = job_of(composed(*words, "trainer=ddp", *TWO.split()), KNOWN["h200"])
    (scorer,) = planned.scorers
    on_gpu = held.added_up(held.on_device(planned), "update").get("reward model")
    (load, update) = (cpu_memory(planned)[phase].get("reward model") for phase in ("load", "update"))
    size = 2 * scorer.parameters
    assert (on_gpu, load, update) == ((size, 2 * size, None) if device == "auto" else (None, 2 * size, 2 * size))


def test_graders_of_test_sets_count_where_they_differ_from_those_of_the_run(monkeypatch):
    def grading(*words):
        return job_of(composed("data=gsm8k", *words), KNOWN["h200"]).grading

    monkeypatch.setattr(cores, "cores", lambda: 6)
    worker = 60 * 2**20  # of reward=math, which has one for each core of a rank
    more = "+test@data.tests.more=math500"
    assert grading() == grading(more) == 6 * worker
    assert grading(*TWO.split(), "trainer=ddp") == 3 * worker
    assert grading(more, "data.tests.more.reward.workers=3") == (6 + 3) * worker


class Sampler:
    """Takes weights and samples nothing."""

    version = None

    def load_weights(self, weights, version):
        self.version = version


@pytest.mark.parametrize("sharded", [False, True])
@pytest.mark.parametrize(("staleness", "every"), [(0, 1), (1, 1), (2, 1), (0, 4), (3, 2), (0, None)])
def test_as_many_versions_are_kept_as_planned(monkeypatch, staleness, every, sharded):
    """Those that are there at most in 24 outer steps of `Refresh`, the one that is just copied included."""
    most = 0

    def copied(weights=None):
        nonlocal most
        most = max(most, len(found.copies) + 1) if found else 1
        return {}

    found = None
    monkeypatch.setattr(refresh, "copied", copied)
    found = refresh.Refresh(nn.Linear(1, 1), Sampler(), staleness, every, copied if sharded else None)
    for step in range(24):
        found.bring(step)
        found.publish(step + 1)
        found.bring_newest()
    words = [*SMALL, "model=tiny_random", *NANO_MODEL, "rollout=vllm_server", f"rollout.staleness={staleness}"]
    words += [f"rollout.refresh_every={'null' if every is None else every}"]
    words += ["trainer=fsdp", "trainer.devices=2"] if sharded else []
    assert held.kept_versions(job_of(composed(*words), HERE)) == most


def test_on_a_cpu_device_and_process_are_one_memory():
    planned = job("model=tiny_random rollout=hf", HERE)
    assert cpu_memory(planned) == {}
    parts = held.added_up(held.in_cpu_memory(planned), "load")
    assert parts["snapshot"] == 12 * planned.parameters and "policy" not in parts
    assert torch.float32 == planned.load.dtype


@pytest.mark.parametrize(("words", "beside"), [("model=tiny_random", True), ("model=qwen2.5-0.5b-random", False)])
def test_on_a_cpu_only_small_snapshots_are_written_from_a_copy(words, beside):
    planned = job(f"{words} rollout=hf", HERE)
    parts = held.added_up(held.in_cpu_memory(planned), "update")
    assert parts.get("snapshot beside") == (12 * planned.parameters if beside else None)


def test_of_a_sharded_policy_each_rank_has_a_copy_of_its_share():
    planned = job("model=tiny_random rollout=hf trainer=fsdp trainer.devices=4", HERE)
    parts = held.added_up(held.in_cpu_memory(planned), "update")
    assert parts["snapshot beside"] == 12 * planned.parameters / 4
    assert "snapshot" not in held.added_up(held.in_cpu_memory(planned), "load")
