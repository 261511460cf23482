"""What one device has to hold: the settings that its memory follows from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from transformers import PreTrainedConfig

Parts = Mapping[str, float]  # bytes by kind: weights, activations, ...
SHARDED = ("weights", "gradients", "optimizer", "reference")  # the kinds that FSDP divides among the devices


@dataclass(frozen=True)
class BackwardPass:
    """The largest backward pass: `completions` of `prompts`, one completion `longest` tokens long, `tokens` in all of them.

    `several`: an optimizer step makes more than one, so that the gradients of the earlier ones are there.
    """

    completions: int
    longest: int
    tokens: int
    prompts: int
    prompt_tokens: int  # of each prompt
    several: bool = False


@dataclass(frozen=True)
class DecodingBatch:
    """What Transformers decodes at the same time, in the phase `sample` or `evaluate`: `completions` of `prompts`, each as long
    as allowed.
    """

    prompts: int
    completions: int
    tokens: int  # of each completion
    prompt_tokens: int  # of each prompt
    phase: str = "sample"


@dataclass(frozen=True)
class Adapters:
    """LoRA adapters of a rank, on the layers that `targets` names (see `adapters.is_target`)."""

    rank: int
    targets: str | tuple[str, ...]


@dataclass(frozen=True)
class Load:
    """What one device has to hold.

    With `adapters` only these are trained, in 32 bits, and the policy without them is the reference. `decode`: the batches that
    Transformers decodes in training and in evaluation; empty where another engine samples. `update`: None for a model that is
    not trained.
    """

    config: PreTrainedConfig
    dtype: torch.dtype
    compute_dtype: torch.dtype
    attention: str  # name of the implementation in Transformers
    gradient_checkpointing: bool
    reference: bool  # whether the loss or the reward has a KL to it
    reference_in_reward: bool  # it scores all completions, before the update; and FSDP does not divide it
    adapters: Adapters | None
    moment_bytes: int  # of the optimizer for each trained weight, without master weights
    master_weights: bool  # 32-bit copies of trained weights in 16 bits
    packed: bool  # micro-batches without padding
    on_gpu: bool  # on a CPU attention and KV cache are in 32 bits (see `packing.IN_32_BITS`), pieces of logits smaller
    shards: int  # devices that share what is `SHARDED`
    update: BackwardPass | None
    decode: tuple[DecodingBatch, ...]

    @property
    def reference_copy(self) -> bool:
        """Whether the reference has weights of its own."""
        return self.reference and self.adapters is None

    @property
    def reference_dtype(self) -> torch.dtype:
        """Of the reference's linear layers, which are nearly all of it (see `casting.keep_cast`)."""
        as_loaded = self.compute_dtype == torch.float32 or (self.shards > 1 and not self.reference_in_reward)
        return self.dtype if as_loaded else self.compute_dtype

    @property
    def optimizer_bytes(self) -> int:
        """Bytes of the optimizer for each trained weight: moments and master weight."""
        return self.moment_bytes + 4 * self.master_weights

    @property
    def gradient_bytes(self) -> int:
        """Bytes of a number in a gradient: adapters and master weights have theirs in 32 bits."""
        return 4 if self.adapters or self.master_weights else self.dtype.itemsize

    @property
    def shares(self) -> dict[str, float]:
        """The part of each kind that one device has, where it is not all."""
        whole = ("reference",) if self.reference_in_reward else ()
        return {kind: 1 / self.shards for kind in SHARDED if kind not in whole}

    def lasting_bytes(self, parameters: int, trained: int) -> float:
        """Bytes of weights, gradients, optimizer and reference on one device: the least that it must hold.

        `parameters`: numbers in the model without adapters; `trained`: numbers that are trained.
        """
        of_weight = self.dtype.itemsize + self.reference_copy * self.reference_dtype.itemsize
        of_trained = self.optimizer_bytes + self.gradient_bytes
        return (parameters * of_weight + trained * of_trained) / self.shards
