"""Sampling on servers started by `python -m dash_exp.serve`, here or on other machines. Needs no vLLM here (but see `nccl`).

Each server has a thread in this process, which sends it weights and prompts and checks that it still answers. If a server is
lost, its unfinished prompts go to the other servers. It is used again when it answers and has the current weights. Which server
samples a group does not matter, because the seed depends on the problem only.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import httpx
import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from dash_exp.core.errors import UserError
from dash_exp.core.types import Completion, Prompt
from dash_exp.models import adapter
from dash_exp.models.loading import eos_ids
from dash_exp.sampling import nccl as native
from dash_exp.sampling.base import Sampling
from dash_exp.sampling.engine import described, fingerprint
from dash_exp.sampling.server_call import Call
from dash_exp.sampling.server_link import PROBE_S, SETTING, LostError, Server, Weights, addresses, good, in_one_line

PROBE_EVERY_S = 1.0
WARN_EVERY_S = 30.0  # while there is no server
AHEAD = 2  # a server has this many times the completions that it decodes at a time, so that its batch stays full

log = logging.getLogger(__name__)


class VLLMServerSampler:
    """A sampler that distributes prompts over servers.

    `servers`: their addresses. `max_sequences`: completions that a server decodes at a time. `timeout_s`: a server that
    does not answer for this long is lost. `give_up_s`: without any server for this long, `sample` raises UserError. `transfer`:
    how weights are sent: `http`, `nccl` (vLLM's weight transfer between GPUs), or `auto` (nccl if both sides have a GPU).
    `max_model_len`: see `Engine`; a server needs at least this much. `merge`: see `VLLMSampler`. All other settings are for
    the servers.

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
        max_model_len: int | None = None,
        merge: bool = False,
        **engine: Any,
    ) -> None:
        self.servers = [Server(url, timeout_s) for url in addresses(servers)]
        self.policy = policy
        self.adapter = None if merge else adapter.described(policy)
        self.dtype = compute_dtype
        self.max_sequences = max_sequences
        self.give_up_s = give_up_s
        self.timeout_s = timeout_s
        self.transfer = transfer
        self.eos_ids = eos_ids(policy, tokenizer)
        shapes = {name: tuple(tensor.shape) for name, tensor in adapter.base(policy).items()}
        self.model = described(policy.config, shapes)
        self.expects = {
            "fingerprint": fingerprint(policy.config, shapes),
            "dtype": str(compute_dtype).removeprefix("torch."),
            "eos_ids": sorted(self.eos_ids),
        }
        self.max_model_len = max_model_len or int(policy.config.max_position_embeddings)
        self.version: int | None = None
        self.active_servers = 0
        self.resent_prompts = 0
        self._weights: Weights | None = None
        self._call: Call | None = None
        self._failure: Exception | None = None  # in a thread; raised for the caller
        self._last_live = time.monotonic()
        self._changed = threading.Condition()  # guards everything above, and the servers
        self._threads: list[threading.Thread] = []
        self._begun = False  # whether servers have had weights before
        self._closed = False

    @property
    def live_servers(self) -> int:
        """How many servers answered last time and have the current weights."""
        with self._changed:
            return sum(self._ready(s) for s in self.servers)

    def load_weights(self, weights: Mapping[str, Tensor], version: int) -> None:
        """Send the weights to the servers. A server that does not answer gets them later, when it does.

        Raises UserError for a server that does not fit this run.
        """
        self.version = None
        if self.adapter is not None:
            copied = Weights(weights, self.dtype, version, may_be_native=False, settings=self.adapter)
        else:
            copied = Weights(adapter.whole(self.policy, weights), self.dtype, version, may_be_native=self.transfer != "http")
        with self._changed:
            self._weights = copied
            self._start()
            self._changed.notify_all()
            while not all(s.tried and (self._ready(s) or not s.live) for s in self.servers):
                if self._closed:
                    raise RuntimeError("the sampler was closed while weights were sent to the servers")
                self._raise_failure()
                self._changed.wait(1.0)
            self._raise_failure()
        self.version, self._begun = version, True

    def sample(self, prompts: Sequence[Prompt], group_size: int, sampling: Sampling, key: tuple[int, ...]) -> list[Completion]:
        assert self.version is not None, "the servers have no weights yet"
        call = Call(prompts, group_size, sampling, key, self.version)
        with self._changed:
            self._call = call
            self._changed.notify_all()
            try:
                while not call.done:
                    if self._closed:
                        raise RuntimeError("the sampler was closed during a sampling call")
                    self._raise_failure()
                    self._check_patience(call)
                    self._changed.wait(0.5)
            finally:
                self._call = None
            self.active_servers = len(call.active)
        return [completion for i in range(len(prompts)) for completion in call.groups[i]]

    def rest(self) -> None:
        """Nothing to do: the servers do not use the memory of the policy."""

    def close(self) -> None:
        """Disconnect. The servers keep running; unfinished work for this run is dropped."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join(timeout=1.0)  # a thread that waits for a server ends when the wait ends, or with the process

    def _ready(self, server: Server) -> bool:
        return server.live and server.has is self._weights

    def _raise_failure(self) -> None:
        if self._failure is not None:
            failure, self._failure = self._failure, None
            raise failure

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

    # --- the thread of one server ------------------------------------------------------------------------------------

    def _start(self) -> None:
        if not self._threads:
            self._threads = [
                threading.Thread(target=self._look_after, args=(s,), daemon=True, name=f"sampling server {s.url}")
                for s in self.servers
            ]
            for thread in self._threads:
                thread.start()

    def _look_after(self, server: Server) -> None:
        while (task := self._next_task(server)) is not None:
            try:
                task()
            except (LostError, httpx.HTTPError, OSError) as error:
                self._lose(server, error)
            except Exception as error:  # a mistake of the user or a bug: the caller raises it
                with self._changed:  # together, so that a caller who sees that the server was tried also sees the failure
                    self._failure = self._failure or error
                    self._lose(server, error)
        if server.sender is not None:
            server.sender.close()
        server.http.close()

    def _next_task(self, server: Server) -> Callable[[], None] | None:
        """Wait for the next thing to do with this server. None when the sampler is closed."""
        with self._changed:
            while not self._closed:
                wait_s = None
                if not server.live:
                    wait_s = server.probe_at - time.monotonic()
                    if wait_s <= 0:
                        return lambda: self._contact(server)
                elif server.has is not self._weights:
                    return lambda: self._give_weights(server)
                elif self._call is not None and self._call.todo:
                    call, share = self._call, self._share(self._call, server)
                    return lambda: self._sample_on(server, call, share)
                self._changed.wait(wait_s)
        return None

    def _contact(self, server: Server) -> None:
        """Ask a server that is not in use for its state, and send it the current weights."""
        response = server.http.get("/health", timeout=PROBE_S)
        try:
            about = response.json() if response.status_code == 200 else {}
        except ValueError:
            about = {}
        if response.status_code >= 500:
            raise LostError(in_one_line(response.text) or f"status {response.status_code}")
        back = bool(server.about)
        with self._changed:
            self._check_fit(server, about)
            if server.about.get("boot") != about["boot"]:
                server.sender = None  # the other end was restarted
            server.about = about
            has_them = server.has is self._weights and server.load == about["load"] is not None
        if not has_them:
            self._give_weights(server)
        with self._changed:
            server.live = server.tried = True
            self._last_live = time.monotonic()
            self._changed.notify_all()
        if back:
            assert server.has is not None
            log.warning("sampling server %s is back, with weights of version %d", server.url, server.has.version)

    def _check_fit(self, server: Server, about: Mapping[str, Any]) -> None:
        """Raise an error if this server does not fit the run: UserError while the run starts, LostError later."""
        wrong = None
        if not isinstance(about, dict) or "fingerprint" not in about:
            wrong = "is not a sampling server of dash_exp"
        elif about["fingerprint"] != self.expects["fingerprint"]:
            wrong = f"has another model: {about['model']}, where this run trains {self.model}"
        elif different := [k for k in ("dtype", "eos_ids") if about[k] != self.expects[k]]:
            wrong = "; ".join(f"has {k} {about[k]}, where this run has {self.expects[k]}" for k in different)
        elif about["max_model_len"] < self.max_model_len:
            wrong = f"has max_model_len {about['max_model_len']}, where this run has {self.max_model_len}"
        elif self.adapter is not None and (about.get("lora_rank") or 0) < self.adapter["r"]:
            wrong = f"was not started with model.adapter=lora model.lora.r={self.adapter['r']}"
        elif self.transfer == "nccl" and about["device"] != "cuda":
            wrong = "has no GPU, which transfer=nccl needs"
        elif twin := next((s for s in self.servers if s is not server and s.about.get("boot") == about["boot"]), None):
            wrong = f"is the same server as {twin.url}"
        if wrong is None:
            return
        if server.about or self._begun:  # the others continue without it
            raise LostError(wrong)
        right = "Start each server with the settings of the run: python -m dash_exp.serve port=... model=..."
        raise UserError(f"{SETTING}: {server.url}", wrong, right)

    def _give_weights(self, server: Server) -> None:
        """Send the current weights. For an adapter: A and B, and first the base weights if the server does not have them."""
        with self._changed:
            weights = self._weights
        assert weights is not None
        server.has = None  # an interrupted transfer leaves no valid version
        if self.adapter is None:
            self._send(server, weights)
        else:
            response = self._put_adapter(server, weights)
            if response.status_code == 409:
                base = Weights(adapter.base(self.policy), self.dtype, 0, may_be_native=self.transfer != "http")
                server.base = self._send(server, base)
                response = self._put_adapter(server, weights)
            server.load = good(response).json()["load"]
        with self._changed:
            server.has = weights
            self._changed.notify_all()

    def _put_adapter(self, server: Server, weights: Weights) -> httpx.Response:
        parameters: dict[str, str | int] = {"version": weights.version, "base": server.base or ""}
        return server.http.put("/adapter", params=parameters, content=weights.body())

    def _send(self, server: Server, weights: Weights) -> str:
        """Send a whole state dict, over NCCL if that is chosen, else over HTTP. Returns the server's name for it."""
        if native.chosen(self.transfer, weights.device.type, server.about["device"]):
            try:
                server.sender = server.sender or native.Sender(server.http, weights.device, self.timeout_s)
                server.load = server.sender.send(weights.tensors, weights.version)["load"]
            except Exception as error:  # a server that waits in NCCL answers nothing else
                raise UserError(
                    f"{SETTING}: {server.url}",
                    f"weights could not be sent over NCCL ({in_one_line(str(error))})",
                    "Restart the servers and use rollout.sampler.transfer=http",
                ) from error
        else:
            response = server.http.put("/weights", params={"version": weights.version}, content=weights.body())
            server.load = good(response).json()["load"]
        assert server.load is not None
        return server.load

    def _share(self, call: Call, server: Server) -> list[int]:
        """Take prompts for a server: at most an equal share of all prompts, and at most `AHEAD` times what it has room for."""
        ready = sum(self._ready(s) for s in self.servers)
        room = max(1, AHEAD * min(self.max_sequences, server.about["max_sequences"]) // call.group_size)
        share, resent = call.take(min(-(-len(call.prompts) // ready), room), server.url)
        self.resent_prompts += resent
        return share

    def _sample_on(self, server: Server, call: Call, share: list[int]) -> None:
        """Let a server sample some prompts. Prompts that it does not finish are given back."""
        left = set(share)
        try:
            with server.http.stream("POST", "/sample", json=call.request(share, server.load)) as response:
                if response.status_code != 200:
                    response.read()
                    good(response)
                for line in response.iter_lines():
                    if self._closed or call is not self._call:
                        return  # the caller no longer waits
                    self._take(server, call, left, line)
                    if not left:
                        return
            raise LostError("its answer ended early")
        finally:
            with self._changed:
                server.unfinished = len(left)
                call.give_back(left, server.url)
                self._changed.notify_all()

    def _take(self, server: Server, call: Call, left: set[int], text: str) -> None:
        """Take one line of a server's answer. Each group counts once, and only with the weights it was requested for."""
        line = call.parsed(text, self.eos_ids)
        with self._changed:
            if "done" not in line:
                call.heard = time.monotonic()
            if "index" in line and line["index"] in left:
                left.discard(line["index"])
                call.groups.setdefault(line["index"], line["completions"])
                call.active.add(server.url)
                self._changed.notify_all()

    def _lose(self, server: Server, error: Exception) -> None:
        """Do not use a server until it answers again."""
        why = f"no answer for {self.timeout_s:g} s" if isinstance(error, httpx.ReadTimeout) else in_one_line(str(error))
        with self._changed:
            was_live, known = server.live, server.tried
            lost, server.unfinished = server.unfinished, 0
            server.live, server.tried, server.said = False, True, why or type(error).__name__
            server.probe_at = time.monotonic() + PROBE_EVERY_S
            if was_live:
                self._last_live = time.monotonic()
            self._changed.notify_all()
        if self._closed or isinstance(error, UserError):
            return
        if was_live:
            log.warning("sampling server %s is lost (%s); %d of its prompts go to the others", server.url, server.said, lost)
        elif not known:
            log.warning("sampling server %s does not answer (%s); it is used as soon as it does", server.url, server.said)
