"""How much memory the parts of an outer step take, found by running the real code on tensors without contents.

torch's `FakeTensorMode` keeps shapes and dtypes and computes nothing, so the forward and backward pass of a model of any size
take seconds and no memory. `LiveBytes` adds up what is alive at each moment. What is not a tensor is not seen: libraries, gaps
of an allocator, workspaces of kernels (see `plan`).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import replace

from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import PreTrainedModel

from dash_exp.models import packing
from dash_exp.planning.empty_models import models_of, parameter_count, with_layers
from dash_exp.planning.live_bytes import LiveBytes
from dash_exp.planning.load import SHARDED, Load, Parts
from dash_exp.planning.sampling_pass import sample
from dash_exp.planning.update_pass import update


def peaks(load: Load) -> dict[str, Parts]:
    """Bytes on one device at the peak of each phase, by kind: of `update`, and of `sample` where Transformers samples."""
    found: dict[str, Parts] = {}
    with _attention_in_32_bits(load.attention_in_32_bits), FakeTensorMode(allow_non_fake_inputs=True):
        live = LiveBytes(load.config.get_text_config().vocab_size, dict.fromkeys(SHARDED, 1 / load.shards))
        with live:
            models = models_of(load, live)
            for batch in load.decode:
                live.reset_peak()
                sample(models.policy, load, live, batch)
                found["sample"] = max(found.get("sample", {}), live.peak, key=lambda parts: sum(parts.values()))
            live.reset_peak()
            update(models, load, live)
            found["update"] = live.peak
    if load.shards > 1:
        gathered = {"sample": parameter_count(models.policy), "update": _gathered_in_update(models.policy)}
        found = {phase: {**parts, "gathered": gathered[phase] * load.dtype.itemsize} for phase, parts in found.items()}
    return found


def extrapolated_peaks(load: Load, layers: int) -> dict[str, Parts]:
    """`peaks`; for a model with more than `layers` layers, extrapolated from `layers // 2` and `layers` of them."""
    all_layers = load.config.num_hidden_layers
    if all_layers <= layers:
        return peaks(load)
    few, more = (peaks(replace(load, config=with_layers(load.config, n))) for n in (layers // 2, layers))
    further = (all_layers - layers) / (layers - layers // 2)
    found: dict[str, Parts] = {}
    for phase, parts in more.items():
        kinds = {*parts, *few[phase]}
        found[phase] = {k: max(0.0, parts.get(k, 0) + further * (parts.get(k, 0) - few[phase].get(k, 0))) for k in kinds}
    return found


def _gathered_in_update(policy: PreTrainedModel) -> int:
    """How many numbers FSDP holds whole at the same time: what is outside the layers, two layers, and the larger gradient."""
    sizes = [parameter_count(layer) for m in policy.modules() if isinstance(m, nn.ModuleList) for layer in m]
    outside = parameter_count(policy) - sum(sizes)
    return outside + 2 * max(sizes) + max(max(sizes), outside)


@contextlib.contextmanager
def _attention_in_32_bits(on: bool) -> Iterator[None]:
    """Tensors without contents are on the CPU; where `on` is false they stand for a GPU's."""
    before = set(packing.IN_32_BITS)
    if not on:
        packing.IN_32_BITS.discard("cpu")
    try:
        yield
    finally:
        packing.IN_32_BITS.update(before)
