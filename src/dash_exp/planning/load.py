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
    """The largest backward pass: `completions` of `prompts`, one completion `longest` tokens long, `tokens` in all of them."""

    completions: int
    longest: int
    tokens: int
    prompts: int
    prompt_tokens: int  # of each prompt


@dataclass(frozen=True)
class DecodingBatch:
    """What Transformers decodes at the same time: `completions` of `prompts`, each as long as allowed."""

    prompts: int
    completions: int
    tokens: int  # of each completion
    prompt_tokens: int  # of each prompt


@dataclass(frozen=True)
class Adapters:
    """LoRA adapters of a rank, on the layers that `targets` names (see `adapters.is_target`)."""

    rank: int
    targets: str | tuple[str, ...]


@dataclass(frozen=True)
class Load:
    """What one device has to hold.

    With `adapters` only these are trained, in 32 bits, and the policy without them is the reference. `attention_in_32_bits`:
    attention and KV cache as on a CPU (see `packing.IN_32_BITS`). `decode`: the batches that Transformers decodes in training
    and in evaluation; empty where another engine samples.
    """

    config: PreTrainedConfig
    dtype: torch.dtype
    compute_dtype: torch.dtype
    attention: str  # name of the implementation in Transformers
    gradient_checkpointing: bool
    reference: bool  # whether the loss or the reward has a KL to it
    adapters: Adapters | None
    moment_bytes: int  # of the optimizer for each trained weight, without master weights
    master_weights: bool  # 32-bit copies of trained weights in 16 bits
    packed: bool  # micro-batches without padding
    attention_in_32_bits: bool
    shards: int  # devices that share what is `SHARDED`
    update: BackwardPass
    decode: tuple[DecodingBatch, ...]

    @property
    def reference_copy(self) -> bool:
        """Whether the reference has weights of its own."""
        return self.reference and self.adapters is None

    @property
    def optimizer_bytes(self) -> int:
        """Bytes of the optimizer for each trained weight: moments and master weight."""
        return self.moment_bytes + 4 * self.master_weights

    @property
    def gradient_bytes(self) -> int:
        """Bytes of a number in a gradient: adapters and master weights have theirs in 32 bits."""
        return 4 if self.adapters or self.master_weights else self.dtype.itemsize

    def lasting_bytes(self, parameters: int, trained: int) -> float:
        """Bytes of weights, gradients, optimizer and reference on one device: the least that it must hold.

        `parameters`: numbers in the model without adapters; `trained`: numbers that are trained.
        """
        copies = 2 if self.reference_copy else 1
        of_trained = self.optimizer_bytes + self.gradient_bytes
        return (copies * parameters * self.dtype.itemsize + trained * of_trained) / self.shards
