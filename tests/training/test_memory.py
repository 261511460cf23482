"""Where memory runs out the update goes on in smaller pieces, with the same gradient; and what takes memory has a bound."""

import gc
import tracemalloc
import weakref
from dataclasses import replace
from typing import ClassVar

import numpy as np
import pytest
import torch
from conftest import SMALL, composed
from nano_runs import SLOW, close, gradient, one_run
from torch.nn.modules.module import register_module_forward_hook

from dash_exp.algorithms import filters, losses
from dash_exp.commands import run
from dash_exp.core.errors import UserError
from dash_exp.core.types import Completion, MicroBatch, Problem, Prompt, Rollouts
from dash_exp.models import log_probs
from dash_exp.sampling.hf import HFSampler
from dash_exp.training.accumulator import Accumulator
from dash_exp.training.module import PolicyModule
from dash_exp.training.rollout import BYTES_PER_COMPLETION, BYTES_PER_PROMPT_TOKEN, BYTES_PER_TOKEN
from dash_exp.training.scoring import joined

GPU = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")
CPU = RuntimeError(
    "[enforce fail at alloc_cpu.cpp:124] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate"
)
NANO_LOGITS = 258


@pytest.fixture
def full(monkeypatch):
    """Forward passes of more than so many tokens run out of memory, but for the first `spare` of them."""

    def set_limit(most, error=GPU, spare=0):
        calls = []

        def logprobs(model, batch, temperature):
            calls.append(batch.tokens)
            if batch.tokens > most and len(calls) > spare:
                raise error
            return log_probs.token_logprobs(model, batch, temperature)

        monkeypatch.setattr("dash_exp.models.passes.token_logprobs", logprobs)
        return calls

    return set_limit


class BreaksInBackward(HFSampler):
    """Not as a sampler: it has the policy, whose backward pass it breaks off in the second block, above a number of tokens."""

    most = 150
    left: ClassVar[list[int]] = []
    now = 0

    def __init__(self, policy, tokenizer, max_sequences):
        super().__init__(policy, tokenizer, max_sequences)
        policy.base_model.register_forward_pre_hook(self.note, with_kwargs=True)

        def break_off(parameter):
            if self.now > self.most:
                self.left.append(sum(p.grad is not None for p in policy.parameters()))
                raise torch.OutOfMemoryError(*GPU.args)  # a new one: an exception keeps the frames that it came through

        policy.model.layers[1].self_attn.q_proj.weight.register_post_accumulate_grad_hook(break_off)

    def note(self, policy, args, kwargs):
        BreaksInBackward.now = kwargs["input_ids"].numel() if torch.is_grad_enabled() else 0


def same(cut, start, whole, before):
    """As with the lower budget from the start, bit by bit, and up to rounding as where all fitted."""
    assert cut.micro_tokens == start.micro_tokens < whole.micro_tokens
    assert torch.equal(gradient(cut, before), gradient(start, before))
    close(gradient(cut, before), gradient(whole, before))
    rest = [{k: v for k, v in m.row.items() if not k.startswith("time/")} for m in (cut, start)]
    assert rest[0] == rest[1]


# --- the update --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [GPU, CPU], ids=["GPU", "CPU"])
def test_memory_that_runs_out_in_a_forward_pass(error, tokenizer, tmp_path, full, caplog):
    whole, _, before = one_run(tokenizer, tmp_path, micro_tokens=300)
    start, _, _ = one_run(tokenizer, tmp_path, micro_tokens=150)
    calls = full(150, error)
    cut, _, _ = one_run(tokenizer, tmp_path, micro_tokens=300)
    same(cut, start, whole, before)
    assert calls[0] > 150 and len(calls) > 2
    (warning,) = [r.getMessage() for r in caplog.records if r.name == "dash_exp.training.accumulator"]
    assert warning.startswith("outer step 1: memory ran out in a backward pass of ")
    assert warning.endswith("at most 150; write batch.micro_tokens=150 to start with that")
    assert cut.row["batch/micro_tokens"] == 150


def test_memory_that_runs_out_while_a_micro_batch_goes_to_the_device(tokenizer, tmp_path, monkeypatch):
    whole, _, before = one_run(tokenizer, tmp_path, micro_tokens=300)
    start, _, _ = one_run(tokenizer, tmp_path, micro_tokens=150)
    move = MicroBatch.to

    def moved(self, device):
        if self.tokens > 150:
            raise GPU
        return move(self, device)

    monkeypatch.setattr(MicroBatch, "to", moved)
    cut, _, _ = one_run(tokenizer, tmp_path, micro_tokens=300)
    same(cut, start, whole, before)


def test_twice_in_a_row(tokenizer, tmp_path, full):
    whole, _, before = one_run(tokenizer, tmp_path, micro_tokens=300)
    start, _, _ = one_run(tokenizer, tmp_path, micro_tokens=75)
    full(75)
    cut, _, _ = one_run(tokenizer, tmp_path, micro_tokens=300)
    same(cut, start, whole, before)


def test_memory_that_runs_out_in_the_middle_of_a_backward_pass(tokenizer, tmp_path, monkeypatch):
    """What the broken pass has added to some gradients is not counted twice; nor are the micro-batches before it."""
    whole, _, before = one_run(tokenizer, tmp_path, micro_tokens=300, coef=0.1)
    start, _, _ = one_run(tokenizer, tmp_path, micro_tokens=150, coef=0.1)
    cut, _, _ = one_run(tokenizer, tmp_path, micro_tokens=300, coef=0.1, sampler=BreaksInBackward)
    same(cut, start, whole, before)
    parameters = len(list(cut.policy.parameters()))
    assert 0 < BreaksInBackward.left.pop() < parameters


@pytest.mark.parametrize("spare", [1, 2])
def test_memory_that_runs_out_in_a_later_sampling_call_of_the_optimizer_step(spare, tokenizer, tmp_path, full):
    """The calls before it are done again as well, in the lower budget."""
    whole, _, before = one_run(tokenizer, tmp_path, micro_tokens=300, sample_prompts=2)
    start, _, _ = one_run(tokenizer, tmp_path, micro_tokens=75, sample_prompts=2)
    calls = full(75, spare=spare)
    cut, _, _ = one_run(tokenizer, tmp_path, micro_tokens=300, sample_prompts=2)
    same(cut, start, whole, before)
    assert calls[0] > 75


@pytest.mark.parametrize("spare", [0, 1, 3])
def test_memory_that_runs_out_in_a_part_of_ppo(spare, tokenizer, tmp_path, full):
    """The optimizer steps before it were taken with larger passes: where there are some, rounding differs."""
    ppo = {"loss": losses.ppo_clip, "minibatches": 3, "epochs": 2, "optimizer": SLOW}
    whole, _, before = one_run(tokenizer, tmp_path, micro_tokens=120, **ppo)
    start, _, _ = one_run(tokenizer, tmp_path, micro_tokens=60, **ppo)
    full(60, spare=spare)
    cut, _, _ = one_run(tokenizer, tmp_path, micro_tokens=120, **ppo)
    assert (cut.micro_tokens, cut.policy_version) == (60, 6)
    assert torch.equal(gradient(cut, before), gradient(start, before)) == (spare == 0)
    close(gradient(cut, before), gradient(whole, before))
    assert cut.row["tokens/trained"] == start.row["tokens/trained"] == whole.row["tokens/trained"]


def test_the_lower_budget_stays(tokenizer, tmp_path, full):
    full(150)
    cut, _, _ = one_run(tokenizer, tmp_path, micro_tokens=300, steps=3, optimizer=SLOW)
    assert cut.micro_tokens == 150


def test_what_the_failed_pass_held_is_free_before_the_next(tokenizer, tmp_path, monkeypatch):
    held, make, lower, move = [], PolicyModule._loss, Accumulator._lower_budget, MicroBatch.to

    def loss(self, batch, sums):
        made = make(self, batch, sums)
        held.append(weakref.ref(made))  # its graph lives as long as it does
        return made

    def moved(self, device):
        copy = replace(move(self, device))
        held.append(weakref.ref(copy))
        return copy

    def freed(self, failed, where):
        assert held and all(ref() is None for ref in held)
        lower(self, failed, where)

    monkeypatch.setattr(PolicyModule, "_loss", loss)
    monkeypatch.setattr(MicroBatch, "to", moved)
    monkeypatch.setattr(Accumulator, "_lower_budget", freed)
    gc.disable()  # without help: what is in a cycle would wait for it
    try:
        one_run(tokenizer, tmp_path, micro_tokens=300, sampler=BreaksInBackward)
    finally:
        gc.enable()
    assert BreaksInBackward.left.pop()


def test_one_completion_that_does_not_fit_ends_the_run(tokenizer, tmp_path, full, monkeypatch):
    full(10)
    with pytest.raises(UserError) as error:
        one_run(tokenizer, tmp_path, micro_tokens=300)
    assert str(error.value).startswith("outer step 1: memory ran out in the backward pass of a single completion, of 1")
    assert "rollout.max_response_tokens" in str(error.value) and "model.gradient_checkpointing=true" in str(error.value)
    monkeypatch.setattr("transformers.PreTrainedModel.is_gradient_checkpointing", True)
    with pytest.raises(UserError, match=r"Lower rollout\.max_response_tokens, or use a smaller model\.$"):  # it is on already
        one_run(tokenizer, tmp_path, micro_tokens=300)


def test_another_error_is_not_taken_for_it(tokenizer, tmp_path, full):
    full(150, RuntimeError("shapes (3, 4) and (5, 6) cannot be multiplied"))
    with pytest.raises(RuntimeError, match="cannot be multiplied"):
        one_run(tokenizer, tmp_path, micro_tokens=300)


# --- completions in CPU memory -----------------------------------------------------------------------------------------


def test_rollouts_take_no_more_than_is_reckoned_with():
    """Rows of what a sampler has decoded, which it then forgets, with eight letters a token."""
    count, length = 16, 500
    prompts = [Prompt(Problem(str(i), "p", "1"), (1, 2)) for i in range(8)]
    gc.collect()
    tracemalloc.start()
    start = tracemalloc.get_traced_memory()[0]
    ids, logprobs = np.ones((count, 4 * length), np.int64), np.ones((count, 4 * length), np.float32)
    completions = [Completion(i[:length], p[:length], False) for i, p in zip(ids, logprobs, strict=True)]
    numbers = torch.zeros(8, 8)
    texts = ["".join(["abcdefgh"] * length) for _ in range(count)]
    rollouts = Rollouts(prompts, completions, texts, numbers, numbers, numbers, numbers > 0, 0, components={"a": [0.0] * count})
    del ids, logprobs
    gc.collect()
    taken = tracemalloc.get_traced_memory()[0] - start
    kept = joined(rollouts, rollouts)  # a refill copies no token
    gc.collect()
    assert tracemalloc.get_traced_memory()[0] - start < 1.05 * taken
    tracemalloc.stop()
    reckoned = count * (length * BYTES_PER_TOKEN + BYTES_PER_COMPLETION)
    assert 0.6 * reckoned < taken < reckoned
    assert len(kept.completions) == 2 * count


def test_more_than_the_memory_allowed_is_refused_before_anything_is_sampled(tokenizer, tmp_path):
    """6 prompts x 4 x 10 tokens; three refills more of it, of two outer steps."""
    sampled = []

    class Samples(HFSampler):
        def sample(self, *arguments):
            sampled.append(1)
            return super().sample(*arguments)

    prompt_tokens = sum(len(f"{i}+{i}=" + "1" * (i % 5)) for i in range(12))

    def need_gb(completions):
        sampled = completions * (10 * BYTES_PER_TOKEN + BYTES_PER_COMPLETION)
        return (sampled + prompt_tokens * BYTES_PER_PROMPT_TOKEN) / 1e9

    one_run(tokenizer, tmp_path, memory_gb=need_gb(24))
    sampled.clear()
    settings = {"keep": filters.ZeroVariance(3), "staleness": 1, "sampler": Samples}
    with pytest.raises(UserError) as error:
        one_run(tokenizer, tmp_path, memory_gb=0.999 * need_gb(24 * 4 * 2), **settings)
    assert "192 completions of 2 outer steps and up to 3 refills of up to 10 tokens can take" in str(error.value)
    assert not sampled


def test_the_run_refuses_it(tmp_path):
    with pytest.raises(UserError, match=r"^rollout\.memory_gb=5e-05: is less than the \S+ GB .* 32 completions of up to 40"):
        run.build(composed(*SMALL, "rollout.memory_gb=0.00005", "data.train.size=64"))


# --- logits ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("micro_tokens", [40, 10])
def test_logits_are_never_of_more_tokens_than_a_micro_batch(micro_tokens, tokenizer, tmp_path):
    """The largest logits, rows x columns, by who asks for them. A completion that exceeds the budget goes alone."""
    largest = {}

    def note(layer, inputs, output):
        if isinstance(layer, torch.nn.Linear) and output.shape[-1] == NANO_LOGITS:
            trained = any(p.requires_grad for p in layer.parameters())
            who = "sampling" if torch.is_inference_mode_enabled() else "update" if torch.is_grad_enabled() else "check"
            who = who if trained else "reference"
            largest[who] = max(largest.get(who, 0), output.numel() // NANO_LOGITS)

    hook = register_module_forward_hook(note)
    try:  # staleness: evaluation compares the log-probabilities
        _, data, _ = one_run(tokenizer, tmp_path, micro_tokens=micro_tokens, coef=0.1, staleness=1, eval_problems=8)
    finally:
        hook.remove()
    alone = max(len(p.ids) for p in data.train_prompts) + data.plan.sampling.max_tokens
    bound = max(micro_tokens, alone, 20)  # 20: 4 rows of 5, by which loading finds out whether packing is right
    assert set(largest) == {"sampling", "update", "reference", "check"}
    assert {who: n for who, n in largest.items() if who != "sampling" and n > bound} == {}
    assert largest["sampling"] <= 24  # one token of each
