"""Sampling as `HFSampler` does it, on a policy without contents: reading the prompts, then the last token of completions."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from transformers import PreTrainedModel

from dash_exp.models.casting import cast
from dash_exp.models.log_probs import autocast
from dash_exp.planning.live_bytes import LiveBytes
from dash_exp.planning.load import DecodingBatch, Load
from dash_exp.sampling.cache import RoomyCache, RoomyLayer
from dash_exp.sampling.hf import OwnContext, cache_dtype, choose, look_back, read

CPU = torch.device("cpu")


@torch.no_grad()
def sample(policy: PreTrainedModel, load: Load, live: LiveBytes, batch: DecodingBatch) -> None:
    """Read the prompts, then the last token of the longest completions, none of which has ended. Ends in training mode."""
    policy.eval()
    with contextlib.ExitStack() as stack:
        with live.creating("cast weights"):  # with FSDP of the gathered model
            stack.enter_context(cast(policy, load.compute_dtype))
        stack.enter_context(autocast(CPU, load.compute_dtype))
        stack.enter_context(_no_cast_is_kept())
        mask_PL = torch.ones(batch.prompts, batch.prompt_tokens, dtype=torch.long)
        cache = RoomyCache(policy.config, cache_dtype(policy, load.compute_dtype, "cuda" if load.on_gpu else "cpu"))
        ids_PL = torch.zeros_like(mask_PL)
        with live.creating("activations"):
            logits = read(policy, ids_PL, mask_PL, cache).logits[:, -1]
        _relabel_cache(cache, live)
        with live.creating("KV cache"):
            prompt_of = [row * batch.prompts // batch.completions for row in range(batch.completions)]
            context = look_back(policy, cache, mask_PL, prompt_of, padded=True)
        del cache
        tokens_B = torch.zeros(batch.completions, dtype=torch.long)
        if batch.tokens > 1:  # the last token of a completion is not read
            logits = context.next_logits(tokens_B)
            _relabel_cache(context.cache, live)
        if batch.tokens > 2:
            end = context.cache.get_seq_length() + batch.tokens - 3
            with live.creating("KV cache"):
                _fill(context.cache, end)
            if isinstance(context, OwnContext):
                context.mask_BL = mask_PL.new_ones(batch.completions, end)
            logits = context.next_logits(tokens_B)
        choose(logits, 1.0, torch.zeros(len(logits)))
    policy.train()


@contextlib.contextmanager
def _no_cast_is_kept() -> Iterator[None]:
    """Autocast keeps no weights that it has cast, as in the `torch.inference_mode` of the sampler (where the passes inside an
    operation could not be seen).
    """
    before = torch.is_autocast_cache_enabled()
    torch.set_autocast_cache_enabled(False)
    try:
        yield
    finally:
        torch.set_autocast_cache_enabled(before)


def _relabel_cache(cache: RoomyCache, live: LiveBytes) -> None:
    for layer in _full_attention_layers(cache):
        for room in layer._room or ():
            live.relabel(room, "KV cache")


def _fill(cache: RoomyCache, end: int) -> None:
    """Fill the cache up to `end` tokens, with the spare room that it gets when it grows a token at a time."""
    for layer in _full_attention_layers(cache):
        assert layer.keys is not None and layer._room is not None
        buffers = layer._room
        at = room = buffers[0].shape[-2]
        while at < end:  # as `RoomyLayer.update` grows
            room = at + 1 + max(64, (at + 1) // 2)
            at = min(room, end)
        if room > buffers[0].shape[-2]:
            layer._room = buffers = tuple(x.new_empty(*x.shape[:-2], room, x.shape[-1]) for x in buffers)  # type: ignore
        layer.keys, layer.values = (x[: len(layer.keys), :, :end] for x in buffers)


def _full_attention_layers(cache: RoomyCache) -> list[RoomyLayer]:
    return [layer for layer in cache.layers if isinstance(layer, RoomyLayer)]
