"""One sampling server as a run sees it: its address, what is known of it, and the weights that are sent to it."""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

import httpx
import safetensors.torch
import torch
from torch import Tensor

from dash_exp.core.addresses import host_and_port
from dash_exp.core.errors import UserError
from dash_exp.sampling import nccl as native

PROBE_S = 3.0  # time for a server to answer /health


SETTING = "rollout.sampler.servers"


class LostError(Exception):
    """A server that cannot be used at the moment, and why."""


class Weights:
    """A copy of the policy's weights in the dtype of sampling, kept while these weights are current.

    If weights can be sent over NCCL, `tensors` are on the device of the policy. Otherwise `tensors` is empty and only `body` is
    sent. `settings`: for an adapter, its settings (`adapter.described`).
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
        self.device = next(iter(weights.values())).device  # stale weights are on the CPU (`refresh.copied`)
        on_device = may_be_native and self.device.type == "cuda"
        self._lock = threading.Lock()
        self._body: bytes | None = None
        device = None if on_device else "cpu"
        self.tensors = {
            name: tensor.detach().to(device=device, dtype=dtype, copy=True, memory_format=torch.contiguous_format)
            for name, tensor in weights.items()
        }
        if on_device:
            torch.accelerator.synchronize()  # NCCL reads them in its own streams
        else:
            self.body()
            self.tensors = {}

    def body(self) -> bytes:
        """The weights as safetensors, computed once."""
        with self._lock:
            if self._body is None:
                tensors = {name: tensor.cpu() for name, tensor in self.tensors.items()}
                self._body = safetensors.torch.save(tensors, self.metadata)
            return self._body


class Server:
    """What is known about one server, and the HTTP client for it."""

    def __init__(self, url: str, timeout_s: float) -> None:
        self.url = url
        # a new connection for each request: an old one may have broken while the server was away
        limits = httpx.Limits(max_keepalive_connections=0)
        timeout = httpx.Timeout(timeout_s, connect=min(PROBE_S, timeout_s))
        self.http = httpx.Client(base_url=url, timeout=timeout, limits=limits, trust_env=False)
        self.about: dict[str, Any] = {}  # its answer to /health at the last contact
        self.has: Weights | None = None  # the weights that were sent to it last
        self.load: str | None = None  # its own name for these weights
        self.base: str | None = None  # its name for the base weights under an adapter
        self.live = False
        self.tried = False  # whether it was contacted, successfully or not
        self.probe_at = 0.0
        self.said = "not contacted yet"  # why it was lost the last time
        self.unfinished = 0  # prompts that were given back then
        self.sender: native.Sender | None = None


def addresses(servers: Sequence[str]) -> list[str]:
    """The addresses in a standard form. Raises UserError for an invalid or duplicate address."""
    found: list[str] = []
    for given in [servers] if isinstance(servers, str) else servers:
        parts = urlsplit(str(given))
        try:
            host_and_port(str(given), "http", "https")
            good = parts.path in ("", "/")
        except ValueError:
            good = False
        if not good:
            raise UserError(f"{SETTING}: {given}", "is not the address of a server", "Write http://HOST:PORT")
        address = f"{parts.scheme}://{parts.netloc.lower()}"
        if address in found:
            raise UserError(f"{SETTING}: {given}", "is listed twice", "List each server once")
        found.append(address)
    if not found:
        raise UserError(SETTING, "is empty", "Give at least one address, such as [http://127.0.0.1:8001]")
    return found


def good(response: httpx.Response) -> httpx.Response:
    """The response, if its status is 200. Raises ValueError for a request that is wrong, LostError for other errors."""
    if response.status_code == 400:
        raise ValueError(f"the sampling server {response.url} answers: {response.text}")
    if response.status_code != 200:
        raise LostError(in_one_line(response.text) or f"status {response.status_code}")
    return response


def in_one_line(text: str) -> str:
    """A message on one line, cut to 300 characters."""
    return " ".join(text.split())[:300]
