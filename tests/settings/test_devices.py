"""Settings of the trainer that are refused."""

import pytest
from refusals import assert_each_is_met, assert_refused, refusal

from dash_exp.settings import devices

BAD = [
    ("trainer.devices=2", "trainer.devices=2: needs to know how the devices share the work. Add trainer=ddp or fsdp"),
    ("trainer.devices=0", "trainer.devices=0: is not a whole number of at least 1"),
    ("trainer.devices=[0]", "trainer.devices=[0]: is not a whole number of at least 1"),
    ("trainer=ddp trainer.devices=auto", "trainer.devices=auto: is not a whole number of at least 1"),
    ("trainer.strategy=deepspeed", "trainer.strategy=deepspeed: is not known. Use one of auto, ddp, fsdp"),
    ("trainer.num_nodes=2", "trainer.devices=1 trainer.num_nodes=2: needs to know how the devices share the work"),
    (
        "trainer=fsdp rollout=vllm",
        "trainer.devices=2: does not work with rollout=vllm, whose engine is inside the one process of the run",
    ),
    (
        "trainer=fsdp model.dtype=bfloat16",
        "trainer.strategy=fsdp: keeps no 32-bit copies of weights that are trained in bfloat16",
    ),
    (
        "trainer=fsdp optimizer._target_=bitsandbytes.optim.AdamW8bit ~optimizer.fused",
        "optimizer._target_=bitsandbytes.optim.AdamW8bit: does not support sharded weights (trainer.strategy=fsdp)",
    ),
    ("trainer=fsdp model.adapter=lora kl.place=reward", "trainer.strategy=fsdp: with an adapter has the reference inside"),
    ("trainer.accelerator=tpu", "trainer.accelerator=tpu: is not known. Use one of cpu, gpu"),
    ("trainer.max_epochs=3", "trainer.max_epochs=3: must be 80 here"),
    ("+trainer.profiler=slow", "trainer.profiler=slow: is not known. Use one of simple, advanced, pytorch"),
    ("+trainer.deterministic=1", "trainer.deterministic=1: is not known. Use one of true, false, warn"),
    ("trainer.enable_checkpointing=true", "trainer.enable_checkpointing=true: must be false here"),
    (
        "+trainer.gradient_clip_val=1",
        "trainer.gradient_clip_val: cannot be used: this training loop steps, clips and evaluates by itself. Use clip_norm.",
    ),
    ("+trainer.accumulate_grad_batches=2", "Use batch.micro_tokens"),
    ("+trainer.precision=16-mixed", "Use model.compute_dtype"),
    (
        "+trainer.fast_dev_run=true",
        "trainer.fast_dev_run: cannot be used: this training loop steps, clips and evaluates by itself",
    ),
]


@pytest.mark.parametrize(("bad", "message"), BAD, ids=[bad for bad, _ in BAD])
def test_bad_settings_are_refused_by_name(bad, message):
    assert_refused(refusal(bad), message)


def test_every_refusal_has_a_case():
    assert_each_is_met(devices, [refusal(bad) for bad, _ in BAD])
