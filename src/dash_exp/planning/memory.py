"""How much memory the parts of an outer step take, found by running the real code on tensors without contents.

`FakeTensorMode` of torch keeps shapes and kinds of numbers and computes nothing, so a model of any size goes through its
forward and backward pass in seconds, in no memory. What is alive at each moment is added up, by kind.
What no tensor shows is not seen: the libraries, the pieces that an allocator cannot give out, the workspaces of kernels.
"""

from __future__ import annotations

import contextlib
import copy
import re
import weakref
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from dash_exp.algorithms.kl import k3
from dash_exp.core.errors import UserError
from dash_exp.core.types import MicroBatch, Sample
from dash_exp.models import packing
from dash_exp.models.batch import collate
from dash_exp.models.log_probs import autocast, token_logprobs
from dash_exp.sampling.cache import RoomyCache, RoomyLayer
from dash_exp.sampling.hf import OwnContext, choose, look_back, read

Parts = Mapping[str, float]  # bytes by kind
SHARDED = ("weights", "gradients", "optimizer", "reference")  # what FSDP divides among the devices
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Load:
    """What one device has to hold. `lora` names the linear layers with adapters; only these are trained then, in 32 bits.

    `moments`: bytes of the optimizer for each weight that is trained, without the master weights, which are in 32 bits where
    there are any (`masters`), with their gradient. `packed`: whether micro-batches have no padding.
    `in_32_bits`: attention and KV cache as on a CPU (`packing.IN_32_BITS`). `shards`: devices that share what is `SHARDED`.
    `update`: how many completions of how many tokens (the longest, and all together) of how many prompts stand in a backward
    pass. `decode`: what Transformers samples at a time, in training and in evaluation: prompts, completions, tokens of
    a completion and of a prompt; empty where another engine samples.
    """

    config: PreTrainedConfig
    dtype: torch.dtype
    compute_dtype: torch.dtype
    attention: str
    checkpointing: bool
    reference: bool
    lora_rank: int
    lora_targets: str | tuple[str, ...]
    moments: int
    masters: bool
    packed: bool
    in_32_bits: bool
    shards: int
    prompt_tokens: int
    update: tuple[int, int, int, int]
    decode: tuple[tuple[int, int, int, int], ...]


class Live(TorchDispatchMode):
    """Bytes that are alive, by kind: what they are now and what they were at the peak. A tensor counts where it is made.

    `vocabulary`: tensors with so many columns are logits. `share`: what of a kind counts, 1 where none is given.
    """

    def __init__(self, vocabulary: int, share: Mapping[str, float]) -> None:
        super().__init__()
        self.vocabulary, self.share = vocabulary, share
        self.kind = "activations"  # of what is made
        self.now: Counter[str] = Counter()
        self.peak: dict[str, float] = {}
        self._kinds: dict[int, tuple[str, float]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor):
                self._note(tensor)
        return out

    def _note(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        if storage._cdata in self._kinds:
            return
        logits = self.kind == "activations" and tensor.ndim > 1 and tensor.shape[-1] == self.vocabulary
        self._put(storage, "logits" if logits else self.kind)
        weakref.finalize(storage, self._drop, storage._cdata)
        if self.now.total() > sum(self.peak.values()):
            self.peak = dict(self.now)

    def _put(self, storage: torch.UntypedStorage, kind: str) -> None:
        size = storage.nbytes() * self.share.get(kind, 1.0)
        self._kinds[storage._cdata] = (kind, size)
        self.now[kind] += size  # type: ignore[assignment]

    def _drop(self, key: int) -> None:
        kind, size = self._kinds.pop(key)
        self.now[kind] -= size  # type: ignore[assignment]

    def call(self, tensor: Tensor, kind: str) -> None:
        """From now on this tensor is of that kind."""
        self._drop(tensor.untyped_storage()._cdata)
        self._put(tensor.untyped_storage(), kind)

    @contextlib.contextmanager
    def making(self, kind: str) -> Iterator[None]:
        before, self.kind = self.kind, kind
        try:
            yield
        finally:
            self.kind = before

    def begin(self) -> None:
        """The peak begins anew."""
        self.peak = dict(self.now)


def static(load: Load, parameters: int, trained: int) -> float:
    """Bytes of weights, gradients, optimizer and reference, which stay: the least that a device must hold."""
    copies = 2 if load.reference and not load.lora_rank else 1
    of_trained = of_optimizer(load) + gradient_bytes(load)
    return (copies * parameters * load.dtype.itemsize + trained * of_trained) / load.shards


def of_optimizer(load: Load) -> int:
    """Bytes for each weight that is trained."""
    return load.moments + 4 * load.masters


def gradient_bytes(load: Load) -> int:
    """Of a number in a gradient: those of adapters and of master weights are in 32 bits."""
    return 4 if load.lora_rank or load.masters else load.dtype.itemsize


def peaks(load: Load) -> dict[str, Parts]:
    """Bytes on one device at the peak of each phase: `sample` (where Transformers samples) and `update`, by kind."""
    share = dict.fromkeys(SHARDED, 1 / load.shards)
    found: dict[str, Parts] = {}
    with _attention_in_32_bits(load.in_32_bits), FakeTensorMode(allow_non_fake_inputs=True):
        live = Live(load.config.get_text_config().vocab_size, share)
        with live:
            policy, reference, trained = _models(load, live)
            for batch in load.decode:
                live.begin()
                _sample(policy, load, live, batch)
                found["sample"] = max(found.get("sample", {}), live.peak, key=lambda parts: sum(parts.values()))
            live.begin()
            _update(policy, reference, trained, load, live)
            found["update"] = live.peak
    if load.shards > 1:
        whole = {"sample": _count(policy), "update": _gathered(policy)}
        found = {phase: {**parts, "gathered": whole[phase] * load.dtype.itemsize} for phase, parts in found.items()}
    return found


def _gathered(policy: PreTrainedModel) -> int:
    """Weights and gradients that FSDP has whole at a time: what is around the layers, two layers, the gradient of one."""
    layer = max(_count(layer) for m in policy.modules() if isinstance(m, nn.ModuleList) for layer in m)
    layers = sum(_count(layer) for m in policy.modules() if isinstance(m, nn.ModuleList) for layer in m)
    return _count(policy) - layers + 2 * layer + max(layer, _count(policy) - layers)


def deep(load: Load, layers: int) -> dict[str, Parts]:
    """`peaks`, and for a model of more layers than so many what those of half as many and of so many let expect."""
    all_layers = load.config.num_hidden_layers
    if all_layers <= layers:
        return peaks(load)
    few, more = (peaks(replace(load, config=of_layers(load.config, n))) for n in (layers // 2, layers))
    further = (all_layers - layers) / (layers - layers // 2)
    found: dict[str, Parts] = {}
    for phase, parts in more.items():
        kinds = {*parts, *few[phase]}
        found[phase] = {k: max(0.0, parts.get(k, 0) + further * (parts.get(k, 0) - few[phase].get(k, 0))) for k in kinds}
    return found


def make(config: PreTrainedConfig, dtype: torch.dtype, attention: str) -> PreTrainedModel:
    """The model without contents, as `loading.load_policy` makes it. To be called under a mode that keeps no contents."""
    model = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation=attention)
    if packing.possible(model):
        model.set_attn_implementation(packing.ATTENTION)
    return model


def batch_of(load: Load) -> MicroBatch:
    """The largest backward pass: one completion as long as allowed, the others as long as the budget of tokens lets them be."""
    rows, longest, total, prompts = load.update
    lengths = [longest] + [max(1, (total - longest) // max(1, rows - 1))] * (rows - 1)
    samples = [
        Sample((i * prompts // rows,) * load.prompt_tokens, (1,) * min(n, longest), 1.0, (0.0,) * min(n, longest))
        for i, n in enumerate(lengths)
    ]
    return collate(samples, 0, packed=load.packed)


def packs(config: PreTrainedConfig, attention: str) -> bool:
    """Whether the model is expected to read packed micro-batches. Loading finds out whether it does."""
    with torch.device("meta"):
        return packing.possible(AutoModelForCausalLM.from_config(of_layers(config, 1), attn_implementation=attention))


def of_layers(config: PreTrainedConfig, layers: int) -> PreTrainedConfig:
    """The same with another number of layers."""
    other = copy.deepcopy(config)
    other.num_hidden_layers = layers
    if getattr(other, "layer_types", None):
        other.layer_types = other.layer_types[:layers]
    return other


def _models(load: Load, live: Live) -> tuple[PreTrainedModel, PreTrainedModel | None, list[nn.Parameter]]:
    """Policy, reference and what is trained, with the moments of the optimizer."""
    with live.making("weights"):
        policy = make(load.config, load.dtype, load.attention)
        trained = list(policy.parameters())
        if load.lora_rank:
            policy.requires_grad_(False)
            trained = add_adapters(policy, load.lora_rank, load.lora_targets)
        if load.checkpointing:
            policy.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
            if load.lora_rank:
                policy.enable_input_require_grads()
    reference = None
    if load.reference and not load.lora_rank:  # with adapters the policy without them is the reference
        with live.making("reference"):
            reference = make(load.config, load.dtype, load.attention).eval().requires_grad_(False)
    with live.making("optimizer"):
        # they live as long as the model
        policy.moments = [torch.empty(p.numel() * of_optimizer(load), dtype=torch.uint8) for p in trained]  # type: ignore[assignment]
    return policy.train(), reference, trained


def adapted(policy: PreTrainedModel, targets: str | Sequence[str]) -> list[nn.Linear]:
    """The layers that have adapters: linear ones that are `named`. UserError where none is."""
    linear = [(name, layer) for name, layer in policy.named_modules() if isinstance(layer, nn.Linear)]
    found = [layer for name, layer in linear if layer is not policy.get_output_embeddings() and named(name, targets)]
    if not found:
        shown = targets if isinstance(targets, str) else f"[{','.join(targets)}]"
        raise UserError(
            f"model.lora.target_modules={shown}", "fits no linear layer", "Write all-linear, or names as in [q_proj,v_proj]"
        )
    return found


def add_adapters(policy: PreTrainedModel, rank: int, targets: str | Sequence[str]) -> list[nn.Parameter]:
    """Two thin matrices beside each of these layers, in 32 bits as PEFT's."""
    found: list[nn.Parameter] = []
    for layer in adapted(policy, targets):
        down = nn.Parameter(torch.empty(rank, layer.in_features))
        up = nn.Parameter(torch.empty(layer.out_features, rank))

        def add(layer: nn.Module, inputs: Any, output: Tensor, down: Tensor = down, up: Tensor = up) -> Tensor:
            small = nn.functional.linear(inputs[0].to(down.dtype), down)
            return output + nn.functional.linear(small, up).to(output.dtype)

        layer.register_forward_hook(add)
        found += [down, up]
    return found


def named(layer: str, targets: str | Sequence[str]) -> bool:
    """Whether PEFT gives this layer an adapter: a text is `all-linear` or a regular expression, names are ends of paths."""
    if not isinstance(targets, str):
        return any(layer == target or layer.endswith(f".{target}") for target in targets)
    try:
        return targets.lower() == "all-linear" or re.fullmatch(targets, layer) is not None
    except re.error as error:
        wrong = f"is no regular expression ({error})"
        raise UserError(
            f"model.lora.target_modules={targets}", wrong, "Write all-linear, or names as in [q_proj,v_proj]"
        ) from error


def _update(
    policy: PreTrainedModel, reference: PreTrainedModel | None, trained: Sequence[nn.Parameter], load: Load, live: Live
) -> None:
    """A forward and a backward pass, as `PolicyModule` makes them."""

    def made(parameter: Tensor) -> None:
        assert parameter.grad is not None
        if load.masters:  # master weights have the gradient, in 32 bits
            parameter.in_32_bits, parameter.grad = parameter.grad.float(), None  # type: ignore[attr-defined]
        live.call(parameter.in_32_bits if load.masters else parameter.grad, "gradients")  # type: ignore

    hooks = [p.register_post_accumulate_grad_hook(made) for p in trained]
    batch = batch_of(load).to(CPU)
    with autocast(CPU, load.compute_dtype):
        logprobs_BT = token_logprobs(policy, batch, 1.0)
        loss_BT = logprobs_BT * batch.advantages_B[:, None]
        if load.reference:
            with torch.no_grad():
                ref_logprobs_BT = token_logprobs(reference or policy, batch, 1.0)
            loss_BT = loss_BT + k3(logprobs_BT, ref_logprobs_BT)
        loss = (loss_BT * batch.completion_mask_BT).sum()
    loss.backward()
    for hook in hooks:
        hook.remove()


@torch.no_grad()
def _sample(policy: PreTrainedModel, load: Load, live: Live, batch: tuple[int, int, int, int]) -> None:
    """The prompts are read; then the last token of the longest completions, none of which has ended (see `HFSampler`)."""
    prompts, rows, length, shown = batch
    policy.eval()
    with autocast(CPU, load.compute_dtype):
        mask_PL = torch.ones(prompts, shown, dtype=torch.long)
        in_32_bits = load.in_32_bits and policy.config._attn_implementation == packing.ATTENTION
        cache = RoomyCache(policy.config, in_32_bits)
        ids_PL = torch.zeros_like(mask_PL)
        with live.making("activations"):
            logits = read(policy, ids_PL, mask_PL, cache).logits[:, -1]
        _call_cache(cache, live)
        with live.making("KV cache"):
            prompt_of = [row * prompts // rows for row in range(rows)]
            context = look_back(policy, cache, mask_PL, prompt_of, in_32_bits, padded=True)
        del cache
        tokens_B = torch.zeros(rows, dtype=torch.long)
        if length > 1:  # the last token is not read
            logits = context.next_logits(tokens_B)
            _call_cache(context.cache, live)
        if length > 2:
            end = context.cache.get_seq_length() + length - 3
            with live.making("KV cache"):
                _grow(context.cache, end)
            if isinstance(context, OwnContext):
                context.mask_BL = mask_PL.new_ones(rows, end)
            logits = context.next_logits(tokens_B)
        choose(logits, 1.0, torch.zeros(len(logits)))
    policy.train()


def _call_cache(cache: RoomyCache, live: Live) -> None:
    for layer in _full(cache):
        for room in layer._room or ():
            live.call(room, "KV cache")


def _grow(cache: RoomyCache, end: int) -> None:
    """Fill the cache up to `end` tokens, with the room that it takes on the way."""
    for layer in _full(cache):
        assert layer.keys is not None and layer._room is not None
        buffers = layer._room
        at = room = buffers[0].shape[-2]
        while at < end:  # as `RoomyLayer.update` grows, a token at a time
            room = at + 1 + max(64, (at + 1) // 2)
            at = min(room, end)
        if room > buffers[0].shape[-2]:
            layer._room = buffers = tuple(x.new_empty(*x.shape[:-2], room, x.shape[-1]) for x in buffers)  # type: ignore
        layer.keys, layer.values = (x[: len(layer.keys), :, :end] for x in buffers)


def _full(cache: RoomyCache) -> list[RoomyLayer]:
    return [layer for layer in cache.layers if isinstance(layer, RoomyLayer)]


def _count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


@contextlib.contextmanager
def _attention_in_32_bits(on: bool) -> Iterator[None]:
    """What runs here without contents stands for a GPU where `on` is false."""
    before = set(packing.IN_32_BITS)
    if not on:
        packing.IN_32_BITS.discard("cpu")
    try:
        yield
    finally:
        packing.IN_32_BITS.update(before)
