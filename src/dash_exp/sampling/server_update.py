"""New weights for sampling servers, one server at a time, in an order in which no completion can be from a mixture.

Pause (what is decoded is dropped), a label that says that the server is loading, the weights, reset of the prefix cache, the
label of the weights, resume. What goes wrong on the way leaves the label of loading, so nothing counts that the server samples.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import ExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import torch
from torch import Tensor
from transformers import PreTrainedModel

from dash_exp.core.errors import UserError
from dash_exp.models import adapter
from dash_exp.sampling import nccl as native
from dash_exp.sampling.engine import described, fingerprint
from dash_exp.sampling.server_link import SETTING, LostError, Server, in_one_line
from dash_exp.sampling.server_room import Room, machine
from dash_exp.sampling.server_weights import Weights

LOADING = "loading "  # how the label of a server begins while it gets weights
BROKEN = "an update of its weights broke half-way: start it again"


class Updates:
    """What is sent to servers, and how. `settings`: those of an adapter, where only A and B are sent."""

    def __init__(
        self,
        policy: PreTrainedModel,
        settings: Mapping[str, Any] | None,
        dtype: torch.dtype,
        *,
        transfer: str,
        weights_dir: str | None,
        timeout_s: float,
    ) -> None:
        self.policy = policy
        self.settings = settings
        self.dtype = dtype
        self.transfer = transfer
        self.timeout_s = timeout_s
        self.shapes = {name: tuple(tensor.shape) for name, tensor in adapter.base(policy).items()}
        self.room = Room(weights_dir)
        self._base: Weights | None = None  # below an adapter, while servers read them
        self._base_lock = asyncio.Lock()

    def copied(self, weights: Mapping[str, Tensor], version: int) -> Weights:
        """A copy of weights that `adapter.trained` gave, on their way."""
        if self.settings is not None:
            return Weights(weights, self.dtype, version, self.room, settings=self.settings)
        return self._whole(adapter.whole(self.policy, weights), version)

    def _whole(self, weights: Mapping[str, Tensor], version: int) -> Weights:
        on_device = self.transfer != "folder"
        return Weights(weights, self.dtype, version, self.room, expected=self.shapes, may_be_native=on_device)

    async def give(self, server: Server, weights: Weights) -> None:
        """Give a server these weights. Raises LostError, or an error of `httpx`, if it does not have them afterwards."""
        if server.label is None or await server.read_label() != server.label:
            server.forget()
        server.has = server.label = None
        server.given += 1
        label = f"{server.id} {server.given} version {weights.version}"
        await server.call("/pause", params={"mode": "abort"})
        await server.set_label(LOADING + label)
        try:
            with weights.in_use():
                await self._transfer(server, weights)
        except LostError as error:
            if await server.is_whole():
                raise
            raise LostError(f"{BROKEN} ({error})") from error
        if not (await server.call("/reset_prefix_cache")).json()["success"]:
            raise LostError("it still has cached prompts of the earlier weights")
        if await server.read_label() != LOADING + label:
            raise LostError("someone else gives it weights")
        await server.set_label(label)
        await server.call("/resume")
        server.has, server.label = weights, label

    async def _transfer(self, server: Server, weights: Weights) -> None:
        if weights.settings is None:
            await self._send(server, weights)
            return
        if not server.has_base:
            await self._send_base(server)
        async with self._folder(server, weights) as folder:
            await server.load_adapter(folder)

    async def _send_base(self, server: Server) -> None:
        """Send the weights below the adapter. Servers that need them at the same time read one copy."""
        with ExitStack() as stack:
            async with self._base_lock:
                if self._base is None or self._base.is_gone:
                    self._base = await asyncio.to_thread(self._whole, adapter.base(self.policy), 0)
                base = stack.enter_context(self._base.in_use())
                base.drop()
            await self._send(server, base)
        server.has_base = True

    @asynccontextmanager
    async def _folder(self, server: Server, weights: Weights) -> AsyncIterator[Path]:
        """The folder with these weights, as the server sees it: a copy on its machine if that is another one."""
        folder = await asyncio.to_thread(weights.folder)
        if not self.room.is_shared_memory or server.facts["machine"] == machine():
            yield folder
            return
        try:
            yield await server.upload(folder)
        finally:
            with suppress(httpx.HTTPError):
                await server.delete_upload()

    async def _send(self, server: Server, weights: Weights) -> None:
        """Send a whole state dict, over NCCL if that is chosen, else in a folder."""
        if not native.chosen(self.transfer, weights.device.type, server.facts["device"]):
            async with self._folder(server, weights) as folder:
                await server.reload(folder)
            return
        if server.sender is None:
            server.sender = native.Sender(server.url, await server.gpus(), weights.device, self.timeout_s)
        try:
            await asyncio.to_thread(server.sender.send, weights.tensors)
        except Exception as error:  # a server that waits in NCCL answers nothing else
            raise UserError(
                f"{SETTING}: {server.url}",
                f"weights could not be sent over NCCL ({in_one_line(str(error))})",
                "Start the servers again and use rollout.sampler.transfer=folder",
            ) from error


@dataclass(frozen=True)
class Needs:
    """What a server must be like."""

    updates: Updates
    max_model_len: int
    max_sequences: int

    def unmet(self, facts: Mapping[str, Any]) -> tuple[str, str] | None:
        """What is wrong with a server that says these `facts` of itself, and what to do. None if it fits."""
        updates, config = self.updates, self.updates.policy.config
        right = "Start each server with the settings of the run: python -m dash_exp.serve port=... model=..."
        if "fingerprint" not in facts:
            return "is not a sampling server of dash_exp", right
        if facts["fingerprint"] != fingerprint(config, updates.shapes):
            of_run = described(config, updates.shapes)
            return f"has another model: {facts['model']}, where this run trains {of_run}", right
        if facts["dtype"] != (dtype := str(updates.dtype).removeprefix("torch.")):
            return f"has dtype {facts['dtype']}, where this run has {dtype}", right
        for name, least in (("max_model_len", self.max_model_len), ("max_sequences", self.max_sequences)):
            if facts[name] < least:
                return f"has {name} {facts[name]}, where this run has {least}", right
        if updates.settings is not None and (facts["lora_rank"] or 0) < updates.settings["r"]:
            return f"was not started with model.adapter=lora model.lora.r={updates.settings['r']}", right
        if updates.transfer == "nccl" and facts["device"] != "cuda":
            return "has no GPU, which transfer=nccl needs", right
        return None
