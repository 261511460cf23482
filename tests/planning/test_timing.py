import pytest
from conftest import NANO_MODEL, SMALL, composed
from plans import HERE, few_layers

from dash_exp.planning import timing
from dash_exp.planning.job import job_of
from dash_exp.planning.machine import KNOWN


def test_ranks_on_a_cpu_share_one_machine():
    """8 ranks: an eighth of the work each, on an eighth of the machine; and a process each."""
    nano = [*SMALL, "model=tiny_random", *NANO_MODEL]
    one, eight = few_layers(*nano, device=HERE), few_layers(*nano, "trainer=ddp", "trainer.devices=8", device=HERE)
    assert eight.usable == one.usable / 8
    assert eight.seconds["update"] >= one.seconds["update"]
    assert eight.seconds["sample"] >= one.seconds["sample"]


def test_what_goes_between_devices():
    """2 devices, so half of what is moved leaves one; a backward pass gathers twice, and the sharded reference once."""
    sizes = ["model=tiny_random", *NANO_MODEL, "batch.prompts=8", "rollout=vllm_server", "trainer=fsdp"]
    without, with_ = (job_of(composed(*sizes, f"kl='{kl}'"), HERE) for kl in (0, 0.04))
    once = without.parameters * 4
    passes = timing.between_s(without, HERE) * HERE.links[0] / (0.5 * 3 * once)  # twice the weights, once the gradients
    assert passes == pytest.approx(round(passes)) and passes >= 1
    assert timing.between_s(with_, HERE) == pytest.approx(4 / 3 * timing.between_s(without, HERE))
    half = [*sizes, "model.dtype=bfloat16", "kl='0'"]
    gradients = job_of(composed(*half, "trainer=ddp"), HERE)  # master weights: 4 bytes
    steps = gradients.step.optimizer_steps
    assert timing.between_s(gradients, HERE) == pytest.approx(steps * 4 * gradients.parameters / HERE.links[0])


def test_servers_read_one_folder_at_the_same_time_and_nccl_has_one_sender():
    def sync_s(device, servers, *more):
        urls = ",".join(f"http://a:{8001 + i}" for i in range(servers))
        words = ["model=qwen2.5-0.5b", "rollout=vllm_server", f"rollout.sampler.servers=[{urls}]", *more]
        return timing.sync_s(job_of(composed(*words), device), device)

    assert sync_s(HERE, 4) == sync_s(HERE, 1) > 0
    h200 = KNOWN["h200"]
    assert sync_s(h200, 4, "trainer=gpu") == pytest.approx(4 * sync_s(h200, 1, "trainer=gpu"))
    assert sync_s(h200, 4, "trainer=gpu", "rollout.staleness=1") == sync_s(h200, 1, "trainer=gpu", "rollout.staleness=1")


def test_servers_of_the_run_are_as_many_as_its_gpus_and_read_a_folder():
    words = ["model=qwen2.5-0.5b", "rollout=vllm_server", "rollout.sampler.colocate=true", "trainer=ddp", "trainer.devices=2"]
    gpus = job_of(composed(*words, "trainer.accelerator=gpu"), KNOWN["h200"])
    assert (gpus.sampler.servers, job_of(composed(*words), HERE).sampler.servers) == (2, 1)
    assert timing.sync_s(gpus, KNOWN["h200"]) == pytest.approx(gpus.engine_weight_bytes / timing.FOLDER)


def test_only_weights_that_an_engine_keeps_go_to_cpu_memory_and_back():
    words = ["model=qwen2.5-0.5b", "trainer=gpu", "rollout=vllm"]
    drops, keeps = (job_of(composed(*words, *more), KNOWN["h200"]) for more in ([], ["model.adapter=lora"]))
    whole, rate = drops.engine_weight_bytes, KNOWN["h200"].bandwidth
    assert timing.sync_s(drops, KNOWN["h200"]) == pytest.approx(2 * whole / rate)
    assert timing.sync_s(keeps, KNOWN["h200"]) == pytest.approx(2 * 4 * keeps.trained / rate + 2 * whole / timing.PCIE)
