"""Sampling on servers started by `python -m dash_exp.serve`, here or on other machines. Needs no vLLM here (but see `nccl`).

A thread in this process has an event loop with a task for each server, which gives it weights and prompts and checks that it
still answers. Nothing waits for all servers: a lost one holds up no other. Its unfinished prompts go to the others, and it is
used again when it answers and has the current weights. Which server samples a group does not matter, because the seed depends
on the problem only. A completion counts only if vLLM wrote the label of the current weights on all of it.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any, NoReturn

import httpx
import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from dash_exp.core.background import Background
from dash_exp.core.errors import UserError
from dash_exp.core.types import Completion, Prompt
from dash_exp.models import adapter
from dash_exp.models.loading import eos_ids
from dash_exp.sampling.base import Sampling
from dash_exp.sampling.server_call import Call, Part
from dash_exp.sampling.server_link import SETTING, LostError, Server, addresses, files_that_may_be_open, in_one_line
from dash_exp.sampling.server_update import BROKEN, LOADING, Needs, Updates
from dash_exp.sampling.server_weights import Weights

PROBE_EVERY_S = 1.0  # between two contacts of a lost server, and two looks at one that samples
WARN_EVERY_S = 30.0  # while there is no server
AHEAD = 2  # a server has this many times the completions that it decodes at a time, so that its batch stays full

log = logging.getLogger(__name__)


class VLLMServerSampler:
    """A sampler that distributes prompts over servers.

    `servers`: their addresses. `max_sequences`: completions that a server decodes at a time. `timeout_s`: a server that does
    not answer, or decodes nothing, for this long is lost. `give_up_s`: without any for this long, `sample` raises UserError.
    `transfer`: how weights are sent: `folder`, `nccl` (vLLM's weight transfer between GPUs), or `auto` (nccl if both sides have
    a GPU). `weights_dir`: see `Room`. `max_model_len`: see `Engine`; a server needs at least this much. `merge`: see
    `VLLMSampler`. All other settings are for the servers.

    `active_servers`: how many servers finished a group in the last sampling call. `resent_prompts`: how many prompts were given
    to another server because theirs was lost, over all calls.
    """

    continuous_batching = True

    def __init__(
        self,
        policy: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        compute_dtype: torch.dtype = torch.float32,
        *,
        servers: Sequence[str],
        max_sequences: int,
        timeout_s: float = 60.0,
        give_up_s: float = 600.0,
        transfer: str = "auto",
        weights_dir: str | None = None,
        max_model_len: int | None = None,
        merge: bool = False,
        **engine: Any,
    ) -> None:
        self.servers = [Server(url, timeout_s) for url in addresses(servers)]
        self.max_sequences = max_sequences
        self.max_model_len = max_model_len or int(policy.config.max_position_embeddings)
        self.timeout_s = timeout_s
        self.give_up_s = give_up_s
        self.eos_ids = eos_ids(policy, tokenizer)
        settings = None if merge else adapter.described(policy)
        self.updates = Updates(policy, settings, compute_dtype, transfer=transfer, weights_dir=weights_dir, timeout_s=timeout_s)
        self.needs = Needs(self.updates, self.max_model_len, max_sequences)
        self.version: int | None = None
        self.active_servers = 0
        self.resent_prompts = 0
        self._requests_each = files_that_may_be_open() // 2 // len(self.servers)  # a request is a connection
        self._weights: Weights | None = None
        self._call: Call | None = None
        self._last_live = time.monotonic()
        self._begun = False  # whether servers have had weights before
        self._inside = Background("sampling servers")
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def live_servers(self) -> int:
        """How many servers answered last time and have the current weights."""
        return sum(self._ready(s) for s in self.servers)

    def load_weights(self, weights: Mapping[str, Tensor], version: int) -> None:
        """Give the weights to the servers. A server that does not answer gets them later, when it does.

        Raises UserError for a server that does not fit this run.
        """
        self.version = None
        self._inside.run(self._bring(self.updates.copied(weights, version)))
        self.version, self._begun = version, True

    def sample(self, prompts: Sequence[Prompt], group_size: int, sampling: Sampling, key: tuple[int, ...]) -> list[Completion]:
        assert self.version is not None, "the servers have no weights yet"
        if (longest := max((len(p.ids) for p in prompts), default=0)) + sampling.max_tokens > self.max_model_len:
            raise ValueError(
                f"a prompt of {longest} tokens and a completion of up to {sampling.max_tokens} do not fit "
                f"max_model_len={self.max_model_len}"
            )
        call = Call(prompts, group_size, sampling, key, self.eos_ids, self.max_sequences)
        self._inside.run(self._finish(call))
        self.active_servers = len(call.active)
        self.resent_prompts += call.resent
        return call.completions()

    def rest(self) -> None:
        """Nothing to do: the servers do not use the memory of the policy."""

    def close(self) -> None:
        """Disconnect. The servers keep running; unfinished work for this run is dropped."""
        self._inside.close(self._disconnect, within_s=self.timeout_s)
        self.updates.room.close()

    # --- in the event loop: for the caller ----------------------------------------------------------------------------

    async def _bring(self, weights: Weights) -> None:
        """Let the servers have these weights from now on, and wait for those that answer."""
        earlier, self._weights = self._weights, weights
        if earlier is not None:
            earlier.drop()
        if not self._tasks:
            self._tasks = [asyncio.create_task(self._look_after(s)) for s in self.servers]
        self._inside.notify()
        await self._inside.until(lambda: all(s.tried and (self._ready(s) or not s.live) for s in self.servers))
        if not self._begun:  # under two addresses the second time that a server got weights has changed the label of the first
            for server in [s for s in self.servers if self._ready(s)]:
                with suppress(LostError, httpx.HTTPError):
                    await self._check_label(server)

    async def _finish(self, call: Call) -> None:
        self._call = call
        self._inside.notify()
        try:
            while not call.done:
                self._check_patience(call)
                await self._inside.until(lambda: call.done, within_s=0.5)
        finally:
            self._call = None
            self._inside.notify()

    async def _disconnect(self) -> None:
        await asyncio.gather(*(server.close() for server in self.servers), return_exceptions=True)

    def _ready(self, server: Server) -> bool:
        return server.live and server.has is self._weights

    def _check_patience(self, call: Call) -> None:
        """Raise UserError if there has been no server, or no progress on any server, for too long."""
        now = time.monotonic()
        alone_s = 0.0 if any(s.live for s in self.servers) else now - max(call.started, self._last_live)
        if alone_s > WARN_EVERY_S * (call.said + 1):
            call.said += 1
            log.warning(
                "no sampling server has answered for %.0f s; the run ends after %.0f s without a server",
                alone_s,
                self.give_up_s,
            )
        if alone_s > self.give_up_s or now - call.heard > self.give_up_s + self.timeout_s:
            each = "; ".join(f"{s.url}: {s.said}" for s in self.servers)
            raise UserError(
                SETTING,
                f"no server was available for {self.give_up_s:g} s ({each})",
                "Start them with `python -m dash_exp.serve port=...` and check what they print",
            )

    # --- in the event loop: the task of one server -------------------------------------------------------------------

    async def _look_after(self, server: Server) -> None:
        while True:
            try:
                await self._contact(server)
                while True:
                    if server.has is not self._weights:
                        await self._give_weights(server)
                    elif self._call is not None and not self._call.done:
                        await self._sample_on(server, self._call)
                    else:
                        await self._inside.change()
            except (LostError, httpx.HTTPError, OSError, json.JSONDecodeError) as error:
                self._lose(server, error)
            except Exception as error:  # a mistake of the user or a bug: the caller raises it
                self._inside.failure = self._inside.failure or error
                self._lose(server, error)
            await asyncio.sleep(PROBE_EVERY_S)

    async def _contact(self, server: Server) -> None:
        """Ask a server that is not in use what it is and what it has, and give it the current weights."""
        facts = await server.read_facts()
        back = bool(server.facts)
        if (unmet := self.needs.unmet(facts)) is not None:
            self._refuse(server, *unmet)
        label = await server.read_label()
        server.facts = facts
        if label == server.label and server.has is self._weights:
            await server.call("/resume")  # the last step of an update
        else:
            self._check_twin(server, label)
            if label.startswith(LOADING) and not await server.is_whole():
                raise LostError(BROKEN)
            await self._give_weights(server)
        server.live = server.tried = True
        self._last_live = time.monotonic()
        self._inside.notify()
        if back:
            assert server.has is not None
            log.warning("sampling server %s is back, with weights of version %d", server.url, server.has.version)

    def _refuse(self, server: Server, wrong: str, right: str) -> NoReturn:
        """UserError while the run starts. Later the others continue without this server."""
        raise LostError(wrong) if self._begun or server.facts else UserError(f"{SETTING}: {server.url}", wrong, right)

    async def _give_weights(self, server: Server) -> None:
        assert self._weights is not None
        try:
            await self.updates.give(server, self._weights)
        except LostError as error:
            if not self._begun:
                self._check_twin(server, await server.read_label())
            if str(error).startswith(BROKEN) and not self._begun:
                see = "Start it again. Where it is on another machine, it must see the folder rollout.sampler.weights_dir"
                raise UserError(f"{SETTING}: {server.url}", f"could not load the weights ({error})", see) from error
            raise
        self._inside.notify()

    async def _check_label(self, server: Server) -> None:
        """Raise an error if a server no longer has the weights that it was given."""
        label = await server.read_label()
        if label != server.label:
            self._check_twin(server, label)
            raise LostError("it was started again" if label == "default" else "someone else gave it other weights")

    def _check_twin(self, server: Server, label: str) -> None:
        if twin := next((s for s in self.servers if s is not server and s.id in label), None):
            error = f"is the same server as {twin.url}"
            raise LostError(error) if self._begun else UserError(f"{SETTING}: {server.url}", error, "List each server once")

    async def _sample_on(self, server: Server, call: Call) -> None:
        """Let a server sample what is left of a call, some requests at a time, until the call is done.

        What it does not finish is given back.
        """
        running: dict[asyncio.Task[None], Part] = {}
        watch = asyncio.create_task(self._watch(server, call, running))
        try:
            while not call.done and call is self._call:
                while call.todo and len(running) < self._at_a_time(call):
                    part = call.take(server.url)
                    running[asyncio.create_task(self._request(server, call, part))] = part
                changed = asyncio.create_task(self._inside.change())
                ended, _ = await asyncio.wait([watch, changed, *running], return_when=asyncio.FIRST_COMPLETED)
                changed.cancel()
                for task in ended - {changed}:
                    task.result()  # raises what went wrong; the watch ends in no other way
                    del running[task]
        finally:
            for task in (watch, *running):
                task.cancel()
            await asyncio.gather(watch, *running, return_exceptions=True)
            left = [part for part in running.values() if part not in call.found]
            server.unfinished = len(left)
            for part in reversed(left):
                call.give_back(part, server.url)
            self._inside.notify()

    def _at_a_time(self, call: Call) -> int:
        """Requests for a server: at most an equal share of all, and at most `AHEAD` times what it has room for."""
        share = -(-len(call.parts) // max(1, self.live_servers))
        room = AHEAD * self.max_sequences // call.parts[0].count
        return max(1, min(share, room, self._requests_each))

    async def _request(self, server: Server, call: Call, part: Part) -> None:
        assert server.label is not None
        answer = await server.sample(call.request(part, server.model))
        call.finish(part, answer, server.model, server.label, server.url)
        self._inside.notify()

    async def _watch(self, server: Server, call: Call, running: Mapping[Any, Part]) -> NoReturn:
        """Raise an error when a server no longer answers, has other weights, or decodes nothing for `timeout_s`."""
        before, since = -1.0, time.monotonic()
        while True:
            await self._check_label(server)
            tokens = await server.tokens()
            if tokens != before:
                call.heard = time.monotonic()
            if tokens != before or not running:
                before, since = tokens, time.monotonic()
            elif time.monotonic() - since > self.timeout_s:
                raise LostError(f"it has decoded nothing for {self.timeout_s:g} s")
            await asyncio.sleep(PROBE_EVERY_S)

    def _lose(self, server: Server, error: Exception) -> None:
        """Do not use a server until it answers again."""
        why = f"no answer for {self.timeout_s:g} s" if isinstance(error, httpx.ReadTimeout) else in_one_line(str(error))
        was_live, known = server.live, server.tried
        lost, server.unfinished = server.unfinished, 0
        server.live, server.tried, server.said = False, True, why or type(error).__name__
        if was_live:
            self._last_live = time.monotonic()
        self._inside.notify()
        if isinstance(error, UserError):
            return
        if was_live:
            log.warning("sampling server %s is lost (%s); %d of its prompts go to the others", server.url, server.said, lost)
        elif not known:
            log.warning("sampling server %s cannot be used (%s); it is used as soon as it can", server.url, server.said)
