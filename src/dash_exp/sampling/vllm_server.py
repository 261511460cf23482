"""Sampling on servers that `python -m dash_exp.serve` started, on this machine or others. Needs no vLLM here (but see `nccl`).

Each server has a thread here, which gives it the weights, then prompts, and finds out whether it still answers. A server that
is lost gives its unfinished prompts to the others, and takes part again when it answers and has the current weights. Which
server samples a group changes nothing: the seeds belong to the problem.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

import httpx
import safetensors.torch
import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from dash_exp.core.errors import UserError
from dash_exp.core.types import Completion, Prompt
from dash_exp.models import adapter
from dash_exp.models.loading import eos_ids
from dash_exp.sampling import nccl as native
from dash_exp.sampling.base import Sampling
from dash_exp.sampling.engine import described, fingerprint, group_seed

PROBE_S = 3.0  # for a server to say how it is
PROBE_EVERY_S = 1.0
SAY_EVERY_S = 30.0  # that there is no server
SETTING = "rollout.sampler.servers"

log = logging.getLogger(__name__)


class LostError(Exception):
    """A server that cannot be used for now, and why."""


class Weights:
    """A copy of the policy's weights in the dtype of sampling, for as long as they are the current ones.

    `tensors` lie on the device of the policy if they may be sent from there, else there are none: `body` is all that is sent.
    `settings`: where the weights are an adapter, those of `adapter.described`.
    """

    def __init__(
        self,
        weights: Mapping[str, Tensor],
        dtype: torch.dtype,
        version: int,
        may_be_native: bool,
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        self.version = version
        self.metadata = None if settings is None else {"adapter": json.dumps(settings)}
        self.device = next(iter(weights.values())).device  # older weights lie on the CPU (`refresh.copied`)
        on_device = may_be_native and self.device.type == "cuda"
        self._lock = threading.Lock()
        self._body: bytes | None = None
        device = None if on_device else "cpu"
        self.tensors = {
            name: tensor.detach().to(device=device, dtype=dtype, copy=True, memory_format=torch.contiguous_format)
            for name, tensor in weights.items()
        }
        if on_device:
            torch.accelerator.synchronize()  # NCCL reads them in streams of its own
        else:
            self.body()
            self.tensors = {}

    def body(self) -> bytes:
        """As safetensors, made once."""
        with self._lock:
            if self._body is None:
                tensors = {name: tensor.cpu() for name, tensor in self.tensors.items()}
                self._body = safetensors.torch.save(tensors, self.metadata)
            return self._body


class Call:
    """One call of `sample`: which groups are still to be sampled, and what has come back. Guarded by the sampler's lock."""

    def __init__(
        self, prompts: Sequence[Prompt], group_size: int, sampling: Sampling, key: tuple[int, ...], version: int
    ) -> None:
        self.version = version
        self.prompts = [{"ids": list(p.ids), "seed": group_seed(key, p)} for p in prompts]
        self.group_size = group_size
        self.sampling = sampling
        self.todo = deque(range(len(prompts)))
        self.groups: dict[int, list[Completion]] = {}
        self.active: set[str] = set()  # servers that finished a group
        self.given_back: dict[int, str] = {}  # prompt -> server that lost it
        self.said = 0  # how often it was said that there is no server
        self.started = self.heard = time.monotonic()  # when a server last made a step

    @property
    def done(self) -> bool:
        return len(self.groups) == len(self.prompts)


class Server:
    """What is known of one server."""

    def __init__(self, url: str, timeout_s: float) -> None:
        self.url = url
        # a connection of its own for each request: none that went stale while the server was away
        limits = httpx.Limits(max_keepalive_connections=0)
        timeout = httpx.Timeout(timeout_s, connect=min(PROBE_S, timeout_s))
        self.http = httpx.Client(base_url=url, timeout=timeout, limits=limits, trust_env=False)
        self.about: dict[str, Any] = {}  # its /health at the last contact
        self.has: Weights | None = None  # the weights that it was given last
        self.load: str | None = None  # its own name for them
        self.base: str | None = None  # and for the weights below an adapter
        self.live = False
        self.tried = False  # whether there was a contact, or an attempt at one
        self.probe_at = 0.0
        self.said = "nothing yet"  # why it was lost last
        self.unfinished = 0  # prompts that it gave back then
        self.sender: native.Sender | None = None


class VLLMServerSampler:
    """`servers` are their addresses. A server that gives no sign of life for `timeout_s` seconds is lost; with none at all for
    `give_up_s` seconds `sample` raises UserError. Each has at most `max_sequences` completions under way. `transfer` of the
    weights: `http`, `nccl` (vLLM's own, between GPUs), or `auto`: nccl where both sides have a GPU. `max_model_len`: see
    `Engine`; a server must have at least as much. `merge`: see `VLLMSampler`. Other settings are the servers' own.

    `active_servers` finished a group in the last sampling call; `resent_prompts` counts the prompts that went to another server
    than the first, over all calls.
    """

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
        self.servers = [Server(url, timeout_s) for url in _addresses(servers)]
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
        self._failure: Exception | None = None  # of a thread, for the caller
        self._last_live = time.monotonic()
        self._changed = threading.Condition()  # guards everything above, and the servers
        self._threads: list[threading.Thread] = []
        self._begun = False  # whether the servers were given weights once
        self._closed = False

    @property
    def live_servers(self) -> int:
        """How many have the current weights, and answered last time."""
        with self._changed:
            return sum(self._ready(s) for s in self.servers)

    def load_weights(self, weights: Mapping[str, Tensor], version: int) -> None:
        """Give the servers the weights; those that do not answer get them when they do.

        Raises UserError for a server that is of another run.
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
                    raise RuntimeError("the sampler was closed while the servers got weights")
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
                        raise RuntimeError("the sampler was closed in the middle of a sampling call")
                    self._raise_failure()
                    self._check_patience(call)
                    self._changed.wait(0.5)
            finally:
                self._call = None
            self.active_servers = len(call.active)
        return [completion for i in range(len(prompts)) for completion in call.groups[i]]

    def rest(self) -> None:
        """The servers' memory is not the policy's."""

    def close(self) -> None:
        """The servers stay; what they are doing for this run is dropped."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join(timeout=1.0)  # one that waits for a server ends when it stops waiting, or with the process

    def _ready(self, server: Server) -> bool:
        return server.live and server.has is self._weights

    def _raise_failure(self) -> None:
        if self._failure is not None:
            failure, self._failure = self._failure, None
            raise failure

    def _check_patience(self, call: Call) -> None:
        """Raise UserError where no server is left, or none that ever makes a step."""
        now = time.monotonic()
        alone_s = 0.0 if any(s.live for s in self.servers) else now - max(call.started, self._last_live)
        if alone_s > SAY_EVERY_S * (call.said + 1):
            call.said += 1
            log.warning("no sampling server for %.0f s; the run ends after %.0f s without one", alone_s, self.give_up_s)
        if alone_s > self.give_up_s or now - call.heard > self.give_up_s + self.timeout_s:
            each = "; ".join(f"{s.url}: {s.said}" for s in self.servers)
            raise UserError(
                SETTING,
                f"for {self.give_up_s:g} s there was no server to sample ({each})",
                "Start them with `python -m dash_exp.serve port=...`, and look at what they print",
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
            except Exception as error:  # of the user or of this program: the caller shall know
                with self._changed:  # at once: whoever sees that the server was tried sees why it failed
                    self._failure = self._failure or error
                    self._lose(server, error)
        if server.sender is not None:
            server.sender.close()
        server.http.close()

    def _next_task(self, server: Server) -> Callable[[], None] | None:
        """Wait until there is something to do with this server; None at the end."""
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
        """Ask a server that does not take part how it is, and bring it up to date."""
        response = server.http.get("/health", timeout=PROBE_S)
        try:
            about = response.json() if response.status_code == 200 else {}
        except ValueError:
            about = {}
        if response.status_code >= 500:
            raise LostError(_words(response.text) or f"status {response.status_code}")
        back = bool(server.about)
        with self._changed:
            self._check_fit(server, about)
            if server.about.get("boot") != about["boot"]:
                server.sender = None  # its other end is gone
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
            log.warning("sampling server %s takes part again, with weights of version %d", server.url, server.has.version)

    def _check_fit(self, server: Server, about: Mapping[str, Any]) -> None:
        """Raise where this is no server for this run: UserError while the run starts, LostError later."""
        wrong = None
        if not isinstance(about, dict) or "fingerprint" not in about:
            wrong = "is no sampling server of this program"
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
        if server.about or self._begun:  # the others go on without it
            raise LostError(wrong)
        right = "Start each server with the settings of the run: python -m dash_exp.serve port=... model=..."
        raise UserError(f"{SETTING}: {server.url}", wrong, right)

    def _give_weights(self, server: Server) -> None:
        """The current weights, or of an adapter A and B, and the policy's own weights where the server does not have them."""
        with self._changed:
            weights = self._weights
        assert weights is not None
        server.has = None  # what an interrupted transfer leaves is no version
        if self.adapter is None:
            self._send(server, weights)
        else:
            response = self._put_adapter(server, weights)
            if response.status_code == 409:
                base = Weights(adapter.base(self.policy), self.dtype, 0, may_be_native=self.transfer != "http")
                server.base = self._send(server, base)
                response = self._put_adapter(server, weights)
            server.load = _good(response).json()["load"]
        with self._changed:
            server.has = weights
            self._changed.notify_all()

    def _put_adapter(self, server: Server, weights: Weights) -> httpx.Response:
        parameters: dict[str, str | int] = {"version": weights.version, "base": server.base or ""}
        return server.http.put("/adapter", params=parameters, content=weights.body())

    def _send(self, server: Server, weights: Weights) -> str:
        """A whole state dict, over NCCL where that is chosen, else over HTTP. Returns the server's name for it."""
        if native.chosen(self.transfer, weights.device.type, server.about["device"]):
            try:
                server.sender = server.sender or native.Sender(server.http, weights.device, self.timeout_s)
                server.load = server.sender.send(weights.tensors, weights.version)["load"]
            except Exception as error:  # a server that waits in NCCL takes nothing else
                raise UserError(
                    f"{SETTING}: {server.url}",
                    f"could not be given weights over NCCL ({_words(str(error))})",
                    "Start the servers again and write rollout.sampler.transfer=http",
                ) from error
        else:
            response = server.http.put("/weights", params={"version": weights.version}, content=weights.body())
            server.load = _good(response).json()["load"]
        assert server.load is not None
        return server.load

    def _share(self, call: Call, server: Server) -> list[int]:
        """Prompts for a server: an equal share of all, as far as it has room, of those that are still to be sampled."""
        ready = sum(self._ready(s) for s in self.servers)
        room = max(1, min(self.max_sequences, server.about["max_sequences"]) // call.group_size)
        share = [call.todo.popleft() for _ in range(min(-(-len(call.prompts) // ready), room, len(call.todo)))]
        self.resent_prompts += sum(call.given_back.pop(i, server.url) != server.url for i in share)
        return share

    def _sample_on(self, server: Server, call: Call, share: list[int]) -> None:
        """Have a server sample some prompts. What it does not finish goes back to the others."""
        left = set(share)
        request = {
            "version": call.version,
            "load": server.load,
            "prompts": [{"index": i, **call.prompts[i]} for i in share],
            "group_size": call.group_size,
            "max_tokens": call.sampling.max_tokens,
            "temperature": call.sampling.temperature,
            "top_p": call.sampling.top_p,
        }
        try:
            with server.http.stream("POST", "/sample", json=request) as response:
                if response.status_code != 200:
                    response.read()
                    _good(response)
                for line in response.iter_lines():
                    if self._closed or call is not self._call:
                        return  # nobody waits for it any more
                    self._take(server, call, left, line)
                    if not left:
                        return
            raise LostError("its answer ended early")
        finally:
            with self._changed:
                server.unfinished = len(left)
                call.todo.extendleft(sorted(left, reverse=True))  # first in line: they have waited longest
                call.given_back.update(dict.fromkeys(left, server.url))
                self._changed.notify_all()

    def _take(self, server: Server, call: Call, left: set[int], text: str) -> None:
        """One line of a server's answer. A group counts once, and only by the weights that it was asked for."""
        try:
            line = json.loads(text)
            if "error" in line:
                raise LostError(str(line["error"]))
            group = None
            if "index" in line:
                if line["version"] != call.version:
                    raise LostError(f"it sampled with version {line['version']} instead of {call.version}")
                group = [self._completion(c) for c in line["completions"]]
                if len(group) != call.group_size:
                    raise LostError(f"it sent {len(group)} completions of a prompt instead of {call.group_size}")
        except (ValueError, KeyError, TypeError, IndexError) as error:
            raise LostError(f"it sent a line that cannot be read: {_words(text)[:80]}") from error
        with self._changed:
            if "done" not in line:
                call.heard = time.monotonic()
            if group is not None and line["index"] in left:
                left.discard(line["index"])
                call.groups.setdefault(line["index"], group)
                call.active.add(server.url)
                self._changed.notify_all()

    def _completion(self, sent: Mapping[str, Any]) -> Completion:
        ids, logprobs = tuple(sent["ids"]), sent["logprobs"]
        return Completion(ids, None if logprobs is None else tuple(logprobs), truncated=ids[-1] not in self.eos_ids)

    def _lose(self, server: Server, error: Exception) -> None:
        """A server does not take part until it answers again."""
        why = f"no sign of life for {self.timeout_s:g} s" if isinstance(error, httpx.ReadTimeout) else _words(str(error))
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
            log.warning("sampling server %s does not answer (%s); it takes part as soon as it does", server.url, server.said)


def _addresses(servers: Sequence[str]) -> list[str]:
    """The addresses in one form. Raises UserError for what is none, and for one that is there twice."""
    found: list[str] = []
    for given in [servers] if isinstance(servers, str) else servers:
        try:
            parts = urlsplit(str(given))
            good = parts.scheme in ("http", "https") and parts.hostname and parts.path in ("", "/") and parts.port != 0
        except ValueError:  # a port that is none
            good = False
        if not good:
            raise UserError(f"{SETTING}: {given}", "is not the address of a server", "Write http://HOST:PORT")
        address = f"{parts.scheme}://{parts.netloc.lower()}"
        if address in found:
            raise UserError(f"{SETTING}: {given}", "is there twice", "Give each server once")
        found.append(address)
    if not found:
        raise UserError(SETTING, "is empty", "Give at least one address, such as [http://127.0.0.1:8001]")
    return found


def _good(response: httpx.Response) -> httpx.Response:
    """An answer of status 200. What a server cannot take at all raises ValueError, what it could another time LostError."""
    if response.status_code == 400:
        raise ValueError(f"the sampling server {response.url} answers: {response.text}")
    if response.status_code != 200:
        raise LostError(_words(response.text) or f"status {response.status_code}")
    return response


def _words(text: str) -> str:
    """A message in one line, cut short."""
    return " ".join(text.split())[:300]
