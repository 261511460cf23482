"""Sampling on servers started by `python -m dash_exp.serve`, here or on other machines. Needs no vLLM here (but see `nccl`).
Or on servers that the run has started on its own devices (`own_servers`), which sleep while it trains.

A thread in this process has an event loop with a task for each server, which gives it weights and prompts and checks that it
still answers. The unfinished prompts of a lost one go to the others, and it is used again when it answers and has the current
weights. Which server samples a group does not matter, because the seed depends on the problem only. A completion counts only if
vLLM wrote the label of the current weights on all of it.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

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
from dash_exp.sampling.engine import sleep_level
from dash_exp.sampling.own_servers import OwnServers
from dash_exp.sampling.server_call import TRIES, Call, Part
from dash_exp.sampling.server_link import LOADING, SETTING, AnswerError, LostError, Server, addresses, why
from dash_exp.sampling.server_patience import Patience
from dash_exp.sampling.server_update import Updates, unmet
from dash_exp.sampling.server_weights import Weights

PROBE_EVERY_S = 1.0  # between two contacts of a lost server, and two looks at one that samples
AHEAD = 2  # a server has requests for this many times the completions that it decodes at a time: the next ones wait there

log = logging.getLogger(__name__)


class VLLMServerSampler:
    """A sampler that distributes prompts over servers.

    `servers`: their addresses; or a function that gives those of now, for servers that are started again elsewhere. It is asked
    when one is lost. `max_sequences`: completions that an engine decodes at a time. `timeout_s`: a server that does not answer,
    or decodes nothing, for this long is lost. `give_up_s`: without any for this long, `sample` raises UserError; a server that
    loads weights for longer is lost. `transfer`: how weights are sent: `folder`, `nccl` (vLLM's weight transfer between GPUs),
    or `auto` (nccl if both sides have a GPU). `weights_dir`: see `Room`. `max_model_len`: see `Engine`; a server needs at least
    this much. `merge`: see `VLLMSampler`. `own`: where the servers are those that this run has started; they end with the
    sampler. All other settings are for the servers.

    `active_servers`: how many servers finished a group in the last sampling call. `resent_prompts`: how many prompts were given
    to another server because theirs was lost or did not answer as it should, over all calls.
    """

    continuous_batching = True

    def __init__(
        self,
        policy: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        compute_dtype: torch.dtype = torch.float32,
        *,
        servers: Sequence[str] | Callable[[], Sequence[str]],
        max_sequences: int,
        timeout_s: float = 60.0,
        give_up_s: float = 600.0,
        transfer: str = "auto",
        weights_dir: str | None = None,
        max_model_len: int | None = None,
        merge: bool = False,
        own: OwnServers | None = None,
        **engine: Any,
    ) -> None:
        self._where = servers if callable(servers) else None
        urls = addresses(servers() if callable(servers) else servers)
        self.servers = [Server(url, timeout_s, give_up_s, of=len(urls)) for url in urls]
        self.max_sequences = max_sequences
        self.max_model_len = max_model_len or int(policy.config.max_position_embeddings)
        self.timeout_s = timeout_s
        self.patience = Patience(give_up_s, timeout_s, own)
        self.eos_ids = eos_ids(policy, tokenizer)
        settings = None if merge else adapter.described(policy)
        self.own = own
        self.sleep_level = sleep_level(policy.config.model_type, settings is not None)
        transfer = transfer if own is None else "folder"  # NCCL does not go from a GPU to itself
        self.updates = Updates(policy, settings, compute_dtype, transfer, weights_dir, they_sleep=own is not None)
        self.version: int | None = None
        self.active_servers = 0
        self.resent_prompts = 0
        self._weights: Weights  # the current ones, from the first on
        self._call: Call | None = None
        self._last_live = time.monotonic()
        self._begun = False  # whether servers have had weights before
        self._resting = False  # servers of its own sleep, or are about to
        self._failure: Exception | None = None  # of a task, for who waits
        self._inside = Background("sampling servers")
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def live_servers(self) -> int:
        """How many servers answered last time and have the current weights."""
        return sum(self._ready(s) for s in self.servers)

    def load_weights(self, weights: Mapping[str, Tensor], version: int) -> None:
        """Give the weights to the servers. One that is not ready within `timeout_s` gets them while others sample.

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
        """Let servers of its own sleep: see `Sampler.rest`. Others do not use the memory of the policy."""
        if self.own is not None and self.version is not None:
            self.version = None
            self._inside.run(self._rest())

    def close(self) -> None:
        """Disconnect. Servers of its own end; others keep running, and drop unfinished work for this run."""
        self._inside.close(within_s=self.timeout_s)
        for server in self.servers:
            server.close()
        if self.own is not None:
            self.own.close()
        self.updates.room.close()

    # --- in the event loop: for the caller ----------------------------------------------------------------------------

    async def _bring(self, weights: Weights) -> None:
        """Let the servers have these weights from now on, and wait for those that answer."""
        self._weights, self._resting = weights, False
        if not self._tasks:
            self._tasks = [asyncio.create_task(self._look_after(s)) for s in self.servers]
        self._inside.notify()
        within_s = self.timeout_s if self._begun else None  # at the start what is wrong with a server ends the run
        await self._until(lambda: all(s.tried and (self._ready(s) or not s.live) for s in self.servers), within_s)
        if self._begun:
            return
        for server in [s for s in self.servers if s.facts]:  # of one that has two addresses, one has lost its label
            try:
                await self._check_label(server)
            except (LostError, httpx.HTTPError) as error:
                self._refuse(server, error)
        self._raise_failure()

    async def _rest(self) -> None:
        """Wait until all servers sleep or are lost, and the tasks do nothing with them any more."""
        self._resting = True
        self._inside.notify()
        await self._until(lambda: all(s.rests for s in self.servers), within_s=None)  # a task waits for no answer without end

    async def _finish(self, call: Call) -> None:
        self._call = call
        self._inside.notify()
        try:
            while not call.done:
                self.patience.check(call, self.servers, self._last_live)
                await self._until(lambda: call.done, within_s=0.5)
        finally:
            self._call = None
            self._inside.notify()

    async def _until(self, true: Callable[[], object], within_s: float | None) -> None:
        await self._inside.until(lambda: self._failure is not None or true(), within_s)
        self._raise_failure()

    def _raise_failure(self) -> None:
        failure, self._failure = self._failure, None
        if failure is not None:
            raise failure

    def _ready(self, server: Server) -> bool:
        return server.live and server.has == self._weights.number

    # --- in the event loop: the task of one server -------------------------------------------------------------------

    async def _look_after(self, server: Server) -> None:
        while True:
            try:
                await self._use(server)
                await self._let_rest(server)
                continue
            except (LostError, httpx.HTTPError, OSError) as error:
                self._lose(server, error)
            except Exception as error:  # a mistake of the user or a bug: the caller raises it
                self._failure = self._failure or error
                self._lose(server, error)
            await asyncio.sleep(PROBE_EVERY_S)

    async def _use(self, server: Server) -> None:
        """Until the servers are to sleep."""
        while not self._resting:
            if not server.live:
                await self._contact(server)
            elif not self._ready(server):
                await self.updates.give(server, self._weights)
                self._inside.notify()
            elif self._call is not None:
                await self._sample_on(server, self._call)
            else:
                await self._inside.until(lambda: self._resting or self._call is not None or not self._ready(server))

    async def _let_rest(self, server: Server) -> None:
        """Let a server sleep until weights are given again. Also one that is lost, which may have memory all the same."""
        server.has = None
        try:
            await server.sleep(self.sleep_level)
        except (LostError, httpx.HTTPError) as error:
            self._lose(server, LostError(f"it does not sleep, and may keep memory that the policy needs: {why(error)}"))
        server.rests = True
        self._inside.notify()
        await self._inside.until(lambda: not self._resting)
        server.rests = False

    async def _contact(self, server: Server) -> None:
        """Ask a server that is not in use what it is and what it has, and give it the current weights."""
        if self._where is not None:
            server.move(addresses(await asyncio.to_thread(self._where))[self.servers.index(server)])
        facts = await server.read_facts()
        wrong = unmet(facts, self.updates, max_model_len=self.max_model_len, max_sequences=self.max_sequences)
        if wrong is not None:
            raise LostError(*wrong)
        label = await server.read_label()
        back, server.facts = bool(server.facts), facts
        weights = self._weights
        if label == server.label and server.has == weights.number:
            await server.call("/resume")  # someone may have paused it
        else:
            if label.startswith(LOADING):
                await self.updates.wake(server, "weights")
                await server.check_whole(label)
            await self.updates.give(server, weights)
        if back:
            log.warning("sampling server %s is back, with weights of version %d", server.url, weights.version)
        server.live = server.tried = True
        self._last_live = time.monotonic()
        self._inside.notify()

    async def _check_label(self, server: Server) -> None:
        """Raise LostError if a server no longer has the weights that it was given."""
        if (label := await server.read_label()) == server.label:
            return
        if twin := next((s for s in self.servers if s is not server and s.id in label), None):
            raise LostError(f"is the same server as {twin.url}", "List each server once")
        raise LostError("it was started again" if label == "default" else "someone else gave it other weights")

    async def _sample_on(self, server: Server, call: Call) -> None:
        """Let a server sample what is left of a call, until the call is over. What it does not finish is given back."""
        most = max(1, AHEAD * self.max_sequences * server.facts["engines"] // call.parts[0].count)
        workers = [self._work(server, call, place) for place in range(min(most, len(call.parts)))]
        tasks = [asyncio.create_task(work) for work in (self._watch(server, call), *workers)]
        try:
            ended, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in ended:
                task.result()  # raises what went wrong
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _work(self, server: Server, call: Call, place: int) -> None:
        """One request after the other, while a server may have more than `place` others: an equal share of the call."""
        while True:
            await self._inside.until(lambda: self._call is not call or (call.todo and place < self._share(call)))
            if self._call is not call:
                return
            part = call.take(server.url)
            server.busy += 1
            try:
                await self._request(server, call, part)
            finally:
                server.busy -= 1
                if part not in call.found:
                    call.give_back(part)
                    self._inside.notify()
            if call.done:
                self._inside.notify()

    def _share(self, call: Call) -> int:
        return -(-len(call.parts) // max(1, self.live_servers))

    async def _request(self, server: Server, call: Call, part: Part) -> None:
        assert server.label is not None
        try:
            answer = await server.sample(call.request(part, server.model))
            call.finish(part, answer, server.model, server.label, server.url)
        except AnswerError as error:
            await self._check_label(server)  # or the server is lost
            call.failed[part] += 1
            if call.failed[part] == TRIES:
                wrong = f"a request was not answered as it should {TRIES} times, last: {error}"
                raise UserError(f"{SETTING}: {server.url}", wrong, "See what the servers have printed") from error

    async def _watch(self, server: Server, call: Call) -> None:
        """Raise an error when a server no longer answers, has other weights, or decodes nothing for `timeout_s`."""
        before, since = -1.0, time.monotonic()
        while self._call is call:
            await self._check_label(server)
            tokens, now = await server.tokens(), time.monotonic()
            if 0 <= before < tokens:
                server.heard = now
            if tokens != before or not server.busy:
                before, since = tokens, now
            elif now - since > self.timeout_s:
                raise LostError(f"it has decoded nothing for {self.timeout_s:g} s")
            await self._inside.until(lambda: self._call is not call, within_s=PROBE_EVERY_S)

    def _refuse(self, server: Server, error: Exception) -> None:
        """What a user must mend at a server ends a run that starts. Later the others go on without it.

        Where servers may move, it may be another program, which has taken the port.
        """
        if isinstance(error, LostError) and error.right and not self._begun and self._where is None:
            self._failure = self._failure or UserError(f"{SETTING}: {server.url}", str(error), error.right)

    def _lose(self, server: Server, error: Exception) -> None:
        """Do not use a server until it answers again."""
        if not isinstance(error, httpx.ReadTimeout):
            server.reads = None
        was_live, known = server.live, server.tried
        server.live, server.tried, server.said, server.heard = False, True, why(error), 0.0
        if was_live:
            self._last_live = time.monotonic()
        self._refuse(server, error)
        self._inside.notify()
        if was_live and self._failure is None:
            log.warning("sampling server %s is lost (%s); its prompts go to the others", server.url, server.said)
        elif not known and self._failure is None:
            log.warning("sampling server %s cannot be used (%s); it is used as soon as it can", server.url, server.said)
