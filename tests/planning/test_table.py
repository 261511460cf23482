from conftest import NANO_MODEL, SMALL, composed
from plans import HERE, few_layers

from dash_exp.planning.machine import KNOWN
from dash_exp.planning.table import WORDS, table


def test_the_table_names_adapters_devices_and_the_total():
    overrides = ["model=llama-3-8b", "trainer=fsdp", "trainer.accelerator=gpu", "trainer.devices=2", "rollout=vllm_server"]
    plan = few_layers(*overrides, "model.adapter=lora")
    lines = table(composed(*overrides, "model.adapter=lora"), plan).splitlines()
    # rank 16; of 32 layers: q and o 4096 + 4096, k and v 4096 + 1024, gate, up and down 4096 + 14336 inputs and outputs
    trained = 16 * 32 * (2 * 8192 + 2 * 5120 + 3 * 18432)
    assert f"(8,030,261,248 parameters; LoRA adds {trained:,} and trains only these), 2 x H200 141 GB (fsdp)" in lines[0]
    of_gpu, of_cpu = [line.split()[1:] for line in lines if line.startswith("  total")]
    for totals, memory in ((of_gpu, plan.memory), (of_cpu, plan.cpu)):
        assert [float(total) for total in totals] == [round(sum(parts.values()) / 2**30, 3) for parts in memory.values()]
    assert any(line.startswith("CPU memory of 2 rank(s), GiB ") for line in lines)


def test_every_part_of_a_plan_has_a_row():
    """Whatever is held is printed, and added up to the total that is printed."""
    overrides = ["algo=sft_m", "trainer=ddp", "trainer.accelerator=gpu", "trainer.devices=2", "reward=math", "~optimizer.fused"]
    nano = [*SMALL, "model=tiny_random", *NANO_MODEL]
    for words in (overrides, ["model.adapter=lora", "rollout=vllm_server", "trainer=fsdp", "trainer.devices=2"]):
        for device in (KNOWN["h200"], HERE):
            plan = few_layers(*nano, *words, device=device)
            parts = {part for memory in (plan.memory, plan.cpu) for phase in memory.values() for part in phase}
            assert parts <= set(WORDS)
