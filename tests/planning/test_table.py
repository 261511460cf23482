from conftest import composed
from plans import few_layers

from dash_exp.planning.table import table


def test_the_table_names_adapters_devices_and_the_total():
    overrides = ["model=llama-3-8b", "trainer=fsdp", "trainer.accelerator=gpu", "trainer.devices=2", "rollout=vllm_server"]
    plan = few_layers(*overrides, "model.adapter=lora")
    lines = table(composed(*overrides, "model.adapter=lora"), plan).splitlines()
    # rank 16; of 32 layers: q and o 4096 + 4096, k and v 4096 + 1024, gate, up and down 4096 + 14336 inputs and outputs
    trained = 16 * 32 * (2 * 8192 + 2 * 5120 + 3 * 18432)
    assert f"(8,030,261,248 parameters; LoRA adds {trained:,} and trains only these), 2 x H200 141 GB (fsdp)" in lines[0]
    (total,) = [line.split() for line in lines if line.startswith("  total")]
    assert float(total[2]) == round(sum(plan.memory["update"].values()) / 2**30, 3)
    assert any(line.startswith("CPU memory, in addition, GiB: rollouts ") for line in lines)
