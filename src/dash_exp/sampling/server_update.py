"""New weights for sampling servers, for each on its own, in an order in which no completion can be from a mixture.

What takes long comes first: the folder, or a copy of it on another machine. Then pause (what is decoded is dropped), a label
that says that the server is loading, the weights, reset of the prefix cache, the label of the weights, resume. What goes wrong
on the way leaves the label of loading, so nothing counts that the server samples.

Servers on the devices of the policy sleep while it trains. They get memory for weights before anything touches these (vLLM
crashes where weights are loaded while it sleeps), and for the KV cache when the weights are there, before they resume.
"""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import torch
from torch import Tensor
from transformers import PreTrainedModel

from dash_exp.models import adapter
from dash_exp.sampling import nccl as native
from dash_exp.sampling.engine import described, fingerprint
from dash_exp.sampling.server_link import LOADING, LostError, Server, in_one_line
from dash_exp.sampling.server_room import Room
from dash_exp.sampling.server_weights import Weights


@dataclass(eq=False)
class Updates:
    """What is sent to servers, and how. `settings`: those of an adapter, where only A and B are sent. `they_sleep`: before."""

    policy: PreTrainedModel
    settings: Mapping[str, Any] | None
    dtype: torch.dtype
    transfer: str
    weights_dir: str | None
    they_sleep: bool = False

    def __post_init__(self) -> None:
        self.shapes = {name: tuple(tensor.shape) for name, tensor in adapter.base(self.policy).items()}
        self.room = Room(self.weights_dir)
        self._base: Callable[[], Weights | None] = lambda: None  # a weak reference to the weights below an adapter
        self._base_lock = asyncio.Lock()

    def copied(self, weights: Mapping[str, Tensor], version: int) -> Weights:
        """A copy of weights that `adapter.trained` gave, on their way."""
        if self.settings is not None:
            return Weights(weights, self.dtype, version, self.room, settings=self.settings)
        return self._whole(adapter.whole(self.policy, weights), version)

    def _whole(self, weights: Mapping[str, Tensor], version: int, by_folder: bool = False) -> Weights:
        on_device = self.transfer != "folder" and not by_folder
        return Weights(weights, self.dtype, version, self.room, expected=self.shapes, may_be_native=on_device)

    async def give(self, server: Server, weights: Weights) -> None:
        """Give a server these weights. Raises LostError, or an error of `httpx`, if it does not have them afterwards."""
        server.has = None
        await self.wake(server, "weights")
        if server.label is None or await server.read_label() != server.label:
            await server.forget()
        if weights.settings is not None and not server.has_base:
            await self._update(server, await self._below())
            server.has_base = True
        await self._update(server, weights)
        server.has = weights.number

    async def wake(self, server: Server, part: str) -> None:
        """See `Server.wake`."""
        if self.they_sleep:
            await server.wake(part)

    async def _below(self) -> Weights:
        """The weights below the adapter. Servers that need them at the same time read one copy."""
        async with self._base_lock:
            if (base := self._base()) is None:
                base = await asyncio.to_thread(self._whole, adapter.base(self.policy), 0, by_folder=True)
                self._base = weakref.ref(base)
            return base

    async def _update(self, server: Server, weights: Weights) -> None:
        server.label = None
        server.given += 1
        label = f"{server.id} {server.given} version {weights.version}"
        folder = await self._folder(server, weights)
        await server.call("/pause", params={"mode": "abort"})
        await server.set_label(LOADING + label)
        await self._check_alone(server, LOADING + label, folder)  # where another run has begun meanwhile, this one gives way
        server.reads = weights
        if folder is None:
            await self._send(server, weights)
        else:
            await self._load(server, weights, folder, LOADING + label)
        server.reads = None
        await self.wake(server, "kv_cache")
        if not await server.call("/reset_prefix_cache", "success"):
            raise LostError("it still has cached prompts of the earlier weights")
        await self._check_alone(server, LOADING + label)
        await server.set_label(label)
        await server.call("/resume")
        server.label = label

    async def _check_alone(self, server: Server, label: str, folder: Path | None = None) -> None:
        if (folder is not None and not await server.sees(folder)) or await server.read_label() != label:
            raise LostError("someone else gives it weights")

    async def _folder(self, server: Server, weights: Weights) -> Path | None:
        """The folder with the weights, as the server sees it: a copy on its machine if that is another one. None for NCCL."""
        if weights.settings is None and native.chosen(self.transfer, weights.device.type, server.facts["device"]):
            return None
        folder = await asyncio.to_thread(weights.folder)
        return folder if await server.sees(folder) else await server.upload(folder)

    async def _load(self, server: Server, weights: Weights, folder: Path, label: str) -> None:
        try:
            await (server.reload(folder) if weights.settings is None else server.load_adapter(folder))
        except LostError as error:
            await server.check_whole(label, f" ({error})")
            raise
        if folder != weights.folder():
            with suppress(httpx.HTTPError):
                await server.delete_upload()

    async def _send(self, server: Server, weights: Weights) -> None:
        """Send a whole state dict over NCCL. Where that fails, the server may wait in NCCL and answer nothing."""
        if server.sender is None:
            server.sender = native.Sender(server.url, await server.gpus(), weights.device, server.give_up_s)
        try:
            await asyncio.to_thread(server.sender.send, weights.tensors)
        except Exception as error:  # those of NCCL and of vLLM's client have no common base class
            server.close()
            why = f"weights could not be sent over NCCL ({in_one_line(str(error))})"
            raise LostError(why, "Start the servers again and use rollout.sampler.transfer=folder") from error


def unmet(facts: Mapping[str, Any], updates: Updates, *, max_model_len: int, max_sequences: int) -> tuple[str, str] | None:
    """What is wrong with a server that says these `facts` of itself, and what to do. None if it fits."""
    config = updates.policy.config
    right = "Start each server with the settings of the run: python -m dash_exp.serve port=... model=..."
    if "fingerprint" not in facts:
        return "is not a sampling server of dash_exp", right
    if facts["fingerprint"] != fingerprint(config, updates.shapes):
        of_run = described(config, updates.shapes)
        return f"has another model: {facts['model']}, where this run trains {of_run}", right
    if facts["dtype"] != (dtype := str(updates.dtype).removeprefix("torch.")):
        return f"has dtype {facts['dtype']}, where this run has {dtype}", right
    for name, least in (("max_model_len", max_model_len), ("max_sequences", max_sequences)):
        if facts[name] < least:
            return f"has {name} {facts[name]}, where this run has {least}", right
    if updates.settings is not None and (facts["lora_rank"] or 0) < updates.settings["r"]:
        return f"was not started with model.adapter=lora model.lora.r={updates.settings['r']}", right
    if updates.transfer == "nccl" and facts["device"] != "cuda":
        return "has no GPU, which transfer=nccl needs", right
    return None
