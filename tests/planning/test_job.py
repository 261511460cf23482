from conftest import composed
from plans import HERE

from dash_exp.planning.job import Lengths, OuterStep, job_of, largest_pass
from dash_exp.planning.load import BackwardPass


def test_coupled_sampling_makes_as_many_calls_on_several_devices():
    """64 prompts, 16 at a time: 4 calls; 4 devices have 4 prompts of each."""
    coupled = ["batch.prompts=64", "batch.sample_prompts=16", "trainer=ddp", "trainer.devices=4"]
    job = job_of(composed(*coupled), HERE)
    assert (job.step.calls, job.step.prompts_per_call, job.step.prompts) == (4, 4, 16)


def test_the_largest_backward_pass_by_hand():
    """Sequences of 10 + 30 tokens, groups of 4, two prompts in a sampling call, 100 tokens in a pass."""
    step = OuterStep(prompts=2, group=4, calls=1, prompts_per_call=2, epochs=1, optimizer_steps=1, micro_tokens=100)
    lengths = Lengths(prompt=10, completion=30, longest=30)
    # 100 // 40
    assert largest_pass(step, lengths, packed=False) == BackwardPass(2, 30, 60, 1, 10)
    # 200 // 40 rows of attention, of two prompts, which leave 80 tokens to the completions
    assert largest_pass(step, lengths, packed=True) == BackwardPass(5, 30, 80, 2, 10)
