"""Adapters: what is trained, what the reference is, and that samplers and folders hold the very same policy."""

import json
import re
from functools import partial

import peft
import pytest
import torch
from completions import ids_of
from conftest import NANO, NANO_MODEL, SMALL, composed, needs_vllm
from runs import broken_after, same
from tiny_models import LATENT, change, samples
from tiny_models import SMALL as FAMILY

from dash_exp.commands import run
from dash_exp.commands.evaluate.command import parse
from dash_exp.commands.evaluate.configuration import configured
from dash_exp.commands.evaluate.output import output_file
from dash_exp.commands.evaluate.running import run as evaluate
from dash_exp.core.errors import UserError
from dash_exp.core.metrics import read_metrics
from dash_exp.core.types import Prompt, Sample
from dash_exp.data import arithmetic
from dash_exp.models import adapter, loading, log_probs, packing
from dash_exp.models.batch import collate, micro_batches
from dash_exp.results import run_folder
from dash_exp.sampling.base import Sampling
from dash_exp.sampling.hf import HFSampler
from dash_exp.sampling.refresh import Refresh
from dash_exp.settings.validate import validate
from dash_exp.training import snapshot_file
from dash_exp.training.record import save_model

LORA = {"r": 4, "alpha": 8}
TINY = str(loading.ASSETS / "tiny")


def moved(policy, seed=0):
    """An adapter that does something: PEFT begins with B = 0."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, parameter in policy.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1)
    return policy


@pytest.fixture
def adapted():
    torch.manual_seed(0)
    return moved(loading.load_policy("", architecture=NANO, lora=LORA))


def plain_of(policy, weights=None):
    """A model without adapter layers that has the merged weights."""
    plain = loading.load_policy("", architecture=NANO)
    plain.load_state_dict(dict(adapter.whole(policy, weights or adapter.trained(policy))))
    return plain


def logprobs(policy, packed=False, temperature=0.7):
    with torch.no_grad():
        return log_probs.token_logprobs(policy, collate(samples(), 0, packed), temperature)


def test_only_a_and_b_are_trained_in_32_bits(adapted):
    trained = {name: p for name, p in adapted.named_parameters() if p.requires_grad}
    assert trained.keys() == adapter.trained(adapted).keys()
    assert all(".lora_A." in name or ".lora_B." in name for name in trained)
    assert len(trained) == 2 * 7 * NANO["num_hidden_layers"]  # q k v o gate up down
    halves = loading.load_policy("", "bfloat16", NANO, lora=LORA)
    assert {p.dtype for p in halves.parameters() if p.requires_grad} == {torch.float32}
    assert {p.dtype for p in halves.parameters() if not p.requires_grad} == {torch.bfloat16}
    halves(torch.tensor([[5, 6]])).logits.sum().backward()
    whole = loading.load_policy("", architecture=NANO)
    assert adapter.trained(whole).keys() == whole.state_dict().keys()


def test_the_reference_is_the_policy_without_its_adapter():
    """In training as in evaluation: with dropout of the adapter, and of the model itself."""
    shape = NANO | {"attention_dropout": 0.5}
    torch.manual_seed(0)
    before = loading.load_policy("", architecture=shape).eval()
    torch.manual_seed(0)
    policy = moved(loading.load_policy("", architecture=shape, lora=LORA | {"dropout": 0.5})).train()
    reference = loading.frozen_copy(policy)
    assert reference is policy
    assert not torch.allclose(logprobs(policy), logprobs(before))
    assert not torch.equal(logprobs(policy), logprobs(policy))  # dropout
    with adapter.off(reference):
        assert torch.equal(logprobs(reference), logprobs(before))
    assert policy.training
    assert [p.requires_grad for _, p in policy.named_parameters()] == [".lora_" in n for n, _ in policy.named_parameters()]


@pytest.mark.parametrize("family", ["qwen2", "llama"])
@pytest.mark.parametrize("gradient_checkpointing", [False, True])
def test_packed_rows_give_the_gradients_of_padded_ones(family, gradient_checkpointing):
    """In the loss with a KL to the reference, which the same model computes between forward and backward pass."""
    torch.manual_seed(0)
    shape = {"model_type": family, **FAMILY}
    policy = moved(loading.load_policy("", architecture=shape, lora=LORA, gradient_checkpointing=gradient_checkpointing))
    assert packing.enabled(policy)
    assert policy.is_gradient_checkpointing == gradient_checkpointing

    def gradients(batches):
        policy.zero_grad()
        for batch in batches:
            logprobs_BT = log_probs.token_logprobs(policy, batch, 0.7)
            with torch.no_grad(), adapter.off(policy):
                ref_logprobs_BT = log_probs.token_logprobs(policy, batch, 0.7)
            ((logprobs_BT - ref_logprobs_BT) ** 2 * batch.advantages_B[:, None]).sum().backward()
        return {name: p.grad for name, p in policy.named_parameters() if p.grad is not None}

    packed = gradients([batch for _, batch in micro_batches(samples(), 40, 0, packed=True)])
    policy.set_attn_implementation("sdpa")
    policy.gradient_checkpointing_disable()
    padded = gradients([collate([sample], 0) for sample in samples()])
    assert packed.keys() == padded.keys() == adapter.trained(policy).keys()
    assert all(g.abs().max() > 0 for g in padded.values())
    torch.testing.assert_close(packed, padded, rtol=1e-4, atol=1e-5)


def test_merged_weights_are_those_of_a_model_without_adapter_layers(adapted):
    torch.testing.assert_close(logprobs(plain_of(adapted)), logprobs(adapted))
    older = {name: tensor.clone() for name, tensor in adapter.trained(adapted).items()}
    before = logprobs(adapted)
    moved(adapted, seed=1)
    assert not torch.allclose(logprobs(adapted), before)
    torch.testing.assert_close(logprobs(plain_of(adapted, older)), before)


def test_merged_weights_of_layers_that_are_stored_the_other_way_round():
    shape = {"model_type": "gpt2", "n_embd": 32, "n_layer": 2, "n_head": 2, "vocab_size": 64, "initializer_range": 0.3}
    torch.manual_seed(0)
    policy = moved(loading.load_policy("", architecture=shape, lora=LORA)).eval()
    plain = loading.load_policy("", architecture=shape).eval()
    plain.load_state_dict(dict(adapter.whole(policy, adapter.trained(policy))))
    torch.testing.assert_close(logprobs(plain), logprobs(policy))


def test_the_sampler_samples_with_the_adapter(adapted, tokenizer, prompts):
    def sample(policy):
        return HFSampler(policy, tokenizer, 8).sample(prompts, 2, Sampling(12), (0, 0))

    completions = sample(adapted)
    assert ids_of(completions) == ids_of(sample(plain_of(adapted)))
    assert ids_of(completions) != ids_of(sample(plain_of(adapted, zeros(adapted))))
    batch = collate([Sample(prompts[i // 2].ids, c.ids, 0.0, c.logprobs) for i, c in enumerate(completions)], 0, packed=True)
    with torch.no_grad():
        torch.testing.assert_close(log_probs.token_logprobs(adapted, batch, 1.0), batch.old_logprobs_BT, rtol=0, atol=1e-4)


def zeros(policy):
    return {name: torch.zeros_like(tensor) for name, tensor in adapter.trained(policy).items()}


def test_older_weights_are_copies_of_the_adapter_alone(adapted, tokenizer):
    refresh = Refresh(adapted, HFSampler(adapted, tokenizer, 8), staleness=1)
    assert refresh.copies[0].keys() == adapter.trained(adapted).keys()


def test_a_run_trains_the_adapter_and_leaves_a_folder_that_peft_loads(tmp_path, capsys):
    cfg = composed(*SMALL, "steps=3", "model.adapter=lora", "data.tests.in_dist.size=40")
    result = run.run(cfg, tmp_path / "run")
    row = read_metrics(tmp_path / "run" / "metrics.csv")[-1]
    assert row["mismatch/max_nats"] < 1e-4
    assert row["kl/ref_nats_per_token"] > 0
    assert row["optimizer/lr"] == pytest.approx(1e-3 / 3)  # of the adapter, a third left
    assert result["accuracy/in_dist/final"] != result["accuracy/in_dist/base"]

    folder = tmp_path / "run" / "checkpoints" / "last"
    assert {f.suffix for f in folder.iterdir()} == {".json", ".safetensors"} and not (folder / "config.json").exists()
    assert json.loads((folder / "adapter_config.json").read_text())["base_model_name_or_path"] == TINY
    ours = loading.load_policy(str(folder)).eval()
    theirs = peft.AutoPeftModelForCausalLM.from_pretrained(folder).eval()
    by_hand = peft.PeftModel.from_pretrained(loading.load_policy(TINY), folder).eval()
    tokenizer = loading.load_tokenizer(str(folder))
    for problem in arithmetic.generate("test", "symbols", 8):
        ids = torch.tensor([tokenizer(problem.prompt).input_ids])
        greedy = [m.generate(ids, max_new_tokens=40, do_sample=False).tolist() for m in (ours, theirs, by_hand)]
        assert greedy[0] == greedy[1] == greedy[2]

    command = parse([str(tmp_path / "run")])
    again = evaluate(configured(command), command, output_file(command))
    assert again["tests"]["in_dist"]["accuracy"] == result["accuracy/in_dist/final"]
    trained_further = composed(*SMALL, f"model.path={folder}", "steps=1")
    assert run.run(trained_further, tmp_path / "further")["accuracy/in_dist/base"] >= 0
    with pytest.raises(UserError, match="is an adapter, and a second adapter on top of it"):
        validate(composed(*SMALL, f"model.path={folder}", "model.adapter=lora"))


def test_a_snapshot_holds_the_adapter_alone_and_a_run_goes_on_from_it(tmp_path, monkeypatch):
    settings = ["model=tiny_random", *NANO_MODEL, "model.adapter=lora", "steps=4", "eval.every=2"]
    cfg = composed(*SMALL, *settings)
    run.run(cfg, tmp_path / "alone")
    broken_after(tmp_path / "broken", cfg, 2, monkeypatch)
    state = snapshot_file.read(run_folder.snapshots(tmp_path / "broken")[0])
    assert all(".lora_" in name for name in state["policy"])
    assert len(state["optimizer"]["state"]) == len(state["policy"]) == 2 * 7 * 2
    run.run(cfg, tmp_path / "broken")
    same(tmp_path / "broken", tmp_path / "alone")
    saved = tmp_path / "alone" / "checkpoints" / "last"
    with pytest.raises(UserError, match="names no base model: it was trained on random weights, which were not saved"):
        loading.load_policy(str(saved))
    with pytest.raises(RuntimeError, match="these are not the weights that are trained here"):
        adapter.put_back(loading.load_policy("", architecture=NANO), state["policy"])


def agrees(sampler, policy, prompts, version):
    """After a refresh, what it samples has the log-probabilities that the policy gives it."""
    sampler.load_weights(adapter.trained(policy), version)
    completions = sampler.sample(prompts, 4, Sampling(30), (0, version))
    batch = collate([Sample(prompts[i // 4].ids, c.ids, 0.0, c.logprobs) for i, c in enumerate(completions)], 0)
    with torch.no_grad():
        logprobs_BT = log_probs.token_logprobs(policy, batch, 1.0)
    torch.testing.assert_close(logprobs_BT, batch.old_logprobs_BT, rtol=0, atol=1e-4)


@needs_vllm
@pytest.mark.parametrize("merge", [False, True], ids=["the adapter alone", "merged"])
def test_vllm_samples_from_the_adapted_policy_after_each_refresh(merge, tokenizer):
    from dash_exp.sampling.vllm import VLLMSampler

    policy = moved(loading.load_policy(TINY, lora={"r": 5}))  # no rank that vLLM has
    problems = arithmetic.generate("train", "symbols", 8)
    prompts = [Prompt(p, tuple(tokenizer(p.prompt).input_ids)) for p in problems]
    sampler = VLLMSampler(policy, tokenizer, max_sequences=64, max_model_len=128, merge=merge)
    try:
        for version in (0, 1):
            moved(policy, seed=version)
            agrees(sampler, policy, prompts, version)
    finally:
        sampler.close()


@pytest.fixture
def folder(tmp_path, adapted, tokenizer):
    """An adapter and its base, both in folders."""
    save_model(plain_of(adapted, zeros(adapted)), tokenizer, tmp_path / "base")
    save_model(moved(loading.load_policy(str(tmp_path / "base"), lora=LORA)), tokenizer, tmp_path / "adapter")
    return tmp_path / "adapter"


def test_an_adapters_fingerprint_is_that_of_both(folder):
    one = loading.fingerprint(str(folder))
    save_model(moved(loading.load_policy("", architecture=NANO)), loading.load_tokenizer(TINY), folder.parent / "base")
    assert loading.fingerprint(str(folder)) != one != loading.fingerprint(str(folder.parent / "base"))


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda f: (f / "adapter_config.json").write_text("{"), "adapter_config.json has no peft_type"),
        (lambda f: change(f / "adapter_config.json", peft_type="IA3"), "is an adapter of kind IA3"),
        (
            lambda f: change(f / "adapter_config.json", base_model_name_or_path="/no"),
            "its base=/no: there is no such folder",
        ),
        (lambda f: change(f / "adapter_config.json", base_model_name_or_path=str(f)), "is an adapter too"),
        (lambda f: change(f / "adapter_config.json", base_model_name_or_path=TINY), "the adapter does not fit its base"),
        (
            lambda f: (f / "adapter_model.safetensors").write_bytes(b"{torn"),
            "safetensors .5 bytes. is damaged",
        ),
        (lambda f: (f / "adapter_model.safetensors").unlink(), "the folder has no adapter_model.safetensors"),
    ],
)
def test_adapters_that_cannot_be_used_are_named(folder, spoil, said):
    assert loading.load_policy(str(folder)) is not None
    assert loading.load_architecture(str(folder)).config.hidden_size == NANO["hidden_size"]
    spoil(folder)
    with pytest.raises(UserError, match=said):
        loading.load_policy(str(folder))


def test_layers_that_get_no_adapter_are_named():
    for modules, said in ((["nothing"], "allows no adapter"), (["lm_head"], "is not a linear layer inside the model")):
        with pytest.raises(UserError, match=said):
            loading.load_policy("", architecture=NANO, lora={"target_modules": modules})


MIXTURES = {
    "qwen3_moe": {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "decoder_sparse_step": 1},
    "mixtral": {"num_local_experts": 4},
    "olmoe": {"num_experts": 4, "num_experts_per_tok": 2},
    "deepseek_v3": LATENT
    | {"first_k_dense_replace": 1, "n_routed_experts": 8, "n_group": 1, "topk_group": 1}
    | {"num_experts_per_tok": 2, "moe_intermediate_size": 16},
}


@pytest.mark.parametrize("family", MIXTURES)
@pytest.mark.parametrize("modules", ["all-linear", ["gate"], ["q_proj", "nothing"], "nothing"])
def test_what_is_advised_instead_works(family, modules):
    """Experts and router of a mixture of experts are no linear layers, though PEFT counts them among `all-linear`."""
    architecture = {"model_type": family, **FAMILY, **MIXTURES[family]}
    try:
        policy = loading.load_policy("", architecture=architecture, lora=LORA | {"target_modules": modules})
    except UserError as error:
        advised = re.search(r"Write model\.lora\.target_modules=\[(.+)\]\.$", str(error))[1].split(",")
        policy = loading.load_policy("", architecture=architecture, lora=LORA | {"target_modules": advised})
        assert set(advised) == {name.rpartition(".lora_A")[0].rpartition(".")[2] for name in adapter.trained(policy)} - {""}
    assert any(adapter.trained(policy))


def test_without_peft_the_extra_is_named(monkeypatch, folder):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    for use in (partial(loading.load_policy, "", architecture=NANO, lora=LORA), partial(loading.load_policy, str(folder))):
        with pytest.raises(UserError, match=r"needs PEFT, which is not installed. Run pip install -e '.\[lora\]'"):
            use()
