"""How much memory the parts of an outer step take, found by running the real code on tensors without contents.

torch's `FakeTensorMode` keeps shapes and dtypes and computes nothing, so the forward and backward pass of a model of any size
take seconds and no memory. `LiveBytes` adds up what is alive at each moment. What is not a tensor is not seen: libraries, gaps
of an allocator, workspaces of kernels (see `plan`).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import AutoModelForSequenceClassification, PreTrainedModel

from dash_exp.models import log_probs, packing
from dash_exp.planning.beside import ScorerSizes, TeacherSizes
from dash_exp.planning.empty_models import models_of, parameter_count, with_layers
from dash_exp.planning.live_bytes import LiveBytes
from dash_exp.planning.load import SHARDED, DecodingBatch, Load, Parts
from dash_exp.planning.sampling_pass import sample
from dash_exp.planning.update_pass import largest_batch, reference_logprobs, update


def peaks(load: Load) -> dict[str, dict[str, float]]:
    """Bytes on one device at the peak of each phase, by kind: of `update` where the model is trained, of `score` where a KL
    stands in the reward, of `sample` and `evaluate` where Transformers samples.
    """
    found: dict[str, dict[str, float]] = {}
    with _as_on_a_gpu(load.on_gpu), FakeTensorMode(allow_non_fake_inputs=True):
        live = LiveBytes(load.config.get_text_config().vocab_size, load.shares)
        with live:
            models = models_of(load, live)
            for batch in load.decode:
                live.reset_peak()
                sample(models.policy, load, live, batch)
                found[batch.phase] = max(found.get(batch.phase, {}), live.peak, key=lambda parts: sum(parts.values()))
            if load.update is not None and load.reference_in_reward:
                live.reset_peak()
                reference_logprobs(models, load, largest_batch(load.update, load.packed))
                found["score"] = live.peak
            if load.update is not None:
                live.reset_peak()
                update(models, load, live)
                found["update"] = live.peak
    if load.shards > 1:
        whole = parameter_count(models.policy)
        gathered = {"sample": whole, "evaluate": whole, "score": 0, "update": _gathered_in_update(models.policy)}
        found = {phase: {**parts, "gathered": gathered[phase] * load.dtype.itemsize} for phase, parts in found.items()}
    return found


def scoring_bytes(scorer: ScorerSizes) -> float:
    """Bytes at most, weights left out, while a reward model reads its largest batch. Without a gradient they are the same for
    every number of layers.
    """
    config = with_layers(scorer.config, 1)
    with FakeTensorMode(allow_non_fake_inputs=True):
        live = LiveBytes(config.get_text_config().vocab_size, {})
        with live, torch.no_grad():
            with live.creating("weights"):
                model = AutoModelForSequenceClassification.from_config(config, dtype=scorer.dtype)
            ids_BL = torch.ones(scorer.rows, scorer.tokens, dtype=torch.long)
            model.eval()(input_ids=ids_BL, attention_mask=torch.ones_like(ids_BL))
    return live.peak["activations"]


def peaks_of_teacher(teacher: TeacherSizes, load: Load, prompt_tokens: int, layers: int) -> Parts:
    """Bytes at most while a teacher writes traces on the device of `load`, its weights left out."""
    batch = DecodingBatch(teacher.traces, teacher.traces, teacher.tokens, prompt_tokens)
    frozen = {"reference": False, "adapters": None, "gradient_checkpointing": False, "master_weights": False}
    its = replace(load, config=teacher.config, dtype=teacher.dtype, compute_dtype=teacher.dtype, shards=1, decode=(batch,))
    parts = extrapolated_peaks(replace(its, moment_bytes=0, update=None, **frozen), layers)["sample"]  # type: ignore[arg-type]
    return {kind: size for kind, size in parts.items() if kind not in SHARDED}


def extrapolated_peaks(load: Load, layers: int) -> dict[str, dict[str, float]]:
    """`peaks`; for a model with more than `layers` layers, extrapolated from `layers // 2` and `layers` of them."""
    all_layers = load.config.num_hidden_layers
    if all_layers <= layers:
        return peaks(load)
    few, more = (peaks(replace(load, config=with_layers(load.config, n))) for n in (layers // 2, layers))
    further = (all_layers - layers) / (layers - layers // 2)
    found: dict[str, dict[str, float]] = {}
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
def _as_on_a_gpu(on: bool) -> Iterator[None]:
    """Tensors without contents are on the CPU; where `on` is true they stand for a GPU's."""
    limits = (log_probs.LOGITS, log_probs.SOFTMAX)
    in_32_bits, of_cpu = set(packing.IN_32_BITS), [limit["cpu"] for limit in limits]
    if on:
        packing.IN_32_BITS.discard("cpu")
        for limit in limits:
            limit["cpu"] = limit["cuda"]
    try:
        yield
    finally:
        packing.IN_32_BITS.update(in_32_bits)
        for limit, before in zip(limits, of_cpu, strict=True):
            limit["cpu"] = before
