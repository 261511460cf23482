"""One sampling server as a run sees it: its address, what is known of it, and the routes of `vllm serve` that are used.

Everything here is used by one event loop.
"""

from __future__ import annotations

import json
import resource
import uuid
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx

from dash_exp.core.addresses import host_and_port
from dash_exp.core.errors import UserError
from dash_exp.sampling import nccl as native
from dash_exp.sampling.server_weights import Weights
from dash_exp.sampling.upload import PATH as UPLOAD

PROBE_S = 3.0  # time to connect, and for a server to say what it is
SETTING = "rollout.sampler.servers"
PIECE = 2**22  # bytes
ROUTES = {
    "/v1/models": "GET",
    "/weight_info": "GET",
    "/metrics": "GET",
    "/get_world_size": "GET",
    "/pause": "POST",
    "/resume": "POST",
    "/update_weight_version": "POST",
    "/collective_rpc": "POST",
    "/reset_prefix_cache": "POST",
    "/weight_checker": "POST",
    "/v1/load_lora_adapter": "POST",
    "/v1/unload_lora_adapter": "POST",
    "/inference/v1/generate": "POST",
}


class LostError(Exception):
    """A server that cannot be used at the moment, and why."""


class Server:
    """An address, two HTTP clients for it, and what is known about the server there.

    Weights have a label, a text that vLLM keeps and writes into each completion. `id` is a part of all labels that this run
    gives here, so that no other server and no other run has the same.
    """

    def __init__(self, url: str, timeout_s: float) -> None:
        self.url = url
        self.id = uuid.uuid4().hex
        # A new connection for each request: an old one may have broken while the server was away. A client of its own for what
        # is no sampling, so that it waits behind nothing. A completion may take any time: `VLLMServerSampler._watch`.
        wait = httpx.Timeout(timeout_s, connect=min(PROBE_S, timeout_s))
        limits = httpx.Limits(max_keepalive_connections=0)
        self.control = httpx.AsyncClient(base_url=url, timeout=wait, limits=limits, trust_env=False)
        without_end = httpx.Timeout(timeout_s, connect=min(PROBE_S, timeout_s), read=None, pool=None)
        self.sampling = httpx.AsyncClient(base_url=url, timeout=without_end, limits=limits, trust_env=False)
        self.facts: dict[str, Any] = {}  # what it said it is at the last contact
        self.has: Weights | None = None  # the weights that were given to it last
        self.label: str | None = None  # their label
        self.has_base = False  # whether it has the weights below an adapter
        self.model = ""  # the name that requests ask for: its model, or an adapter
        self.given = 0  # how often it was given weights
        self.uploads = 0
        self.live = False
        self.tried = False  # whether it was contacted, successfully or not
        self.said = "not contacted yet"  # why it was lost the last time
        self.unfinished = 0  # requests that were given back then
        self.sender: native.Sender | None = None

    def forget(self) -> None:
        """What was known of its weights: it was started again, or someone else has changed them."""
        self.has_base, self.model, self.sender = False, self.facts["name"], None

    async def call(self, route: str, **request: Any) -> httpx.Response:
        """Call a route other than sampling. Raises LostError for any other status than 200."""
        response = await self.control.request(ROUTES[route], route, **request)
        if response.status_code != 200:
            raise LostError(f"{route}: {in_one_line(response.text) or f'status {response.status_code}'}")
        return response

    async def read_facts(self) -> dict[str, Any]:
        """What `python -m dash_exp.serve` has said about the server, in the name of a model, and `name` and `max_model_len`.

        Empty for another program.
        """
        response = await self.control.get("/v1/models", timeout=PROBE_S)
        if response.status_code >= 500:
            raise LostError(in_one_line(response.text) or f"status {response.status_code}")
        try:
            first, about = response.json()["data"][:2]
            return {**json.loads(about["id"]), "name": first["id"], "max_model_len": first["max_model_len"]}
        except (ValueError, KeyError, TypeError):
            return {}

    async def read_label(self) -> str:
        """The label of its weights. Its engine answers, between two steps, so that one that hangs does not."""
        return str((await self.call("/weight_info")).json()["weight_version"])

    async def set_label(self, label: str) -> None:
        await self.call("/update_weight_version", json={"new_version": label})

    async def tokens(self) -> float:
        """How many tokens it has decoded since it was started, for anyone."""
        lines = (await self.call("/metrics")).text.splitlines()
        return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith("vllm:generation_tokens_total"))

    async def gpus(self) -> int:
        """How many GPUs have its weights, or parts of them."""
        return int((await self.call("/get_world_size")).json()["world_size"])

    async def is_whole(self) -> bool:
        """Whether all of its weights are there. After an update that broke half-way some have no memory, and no checksum."""
        response = await self.control.post("/weight_checker", json={"action": "checksum"})
        return response.status_code == 200

    async def reload(self, folder: Path) -> None:
        """Load whole weights from a folder."""
        # It was started without weights, so it must be told that there are files.
        from_files = {"load_config": {"load_format": "safetensors"}}
        await self.call("/collective_rpc", json={"method": "update_config", "kwargs": {"overrides": from_files}})
        await self.call("/collective_rpc", json={"method": "reload_weights", "kwargs": {"weights_path": str(folder)}})

    async def load_adapter(self, folder: Path) -> None:
        """Load an adapter from a folder, under a new name, and forget the one before it."""
        if self.model != self.facts["name"]:
            earlier, self.model = self.model, self.facts["name"]
            await self.call("/v1/unload_lora_adapter", json={"lora_name": earlier})
        name = f"adapter {self.id} {self.given}"
        await self.call("/v1/load_lora_adapter", json={"lora_name": name, "lora_path": str(folder)})
        self.model = name

    async def upload(self, folder: Path) -> Path:
        """Send the files of a folder to another machine. Returns the folder that they are in there."""
        self.uploads += 1
        there = ""
        for file in sorted(folder.iterdir()):
            to = f"{UPLOAD}/{self.id}/{self.uploads}/{file.name}"
            length = {"content-length": str(file.stat().st_size)}
            response = await self.control.put(to, content=in_pieces(file), headers=length)
            if response.status_code != 200:
                raise LostError(in_one_line(response.text) or f"status {response.status_code}")
            there = response.json()["folder"]
        return Path(there)

    async def delete_upload(self) -> None:
        await self.control.delete(f"{UPLOAD}/{self.id}/{self.uploads}")

    async def sample(self, request: Mapping[str, Any]) -> Any:
        """The answer to a sampling request. Raises ValueError for one that is wrong, LostError for other errors."""
        response = await self.sampling.post("/inference/v1/generate", json=request)
        if response.status_code == 400:
            raise ValueError(f"the sampling server {self.url} answers: {in_one_line(response.text)}")
        if response.status_code != 200:
            raise LostError(in_one_line(response.text) or f"status {response.status_code}")
        return response.json()

    async def close(self) -> None:
        if self.sender is not None:
            self.sender.close()
        await self.control.aclose()
        await self.sampling.aclose()


async def in_pieces(file: Path) -> AsyncIterator[bytes]:
    """The contents of a file, a part at a time."""
    with file.open("rb") as opened:
        while piece := opened.read(PIECE):
            yield piece


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


def in_one_line(text: str) -> str:
    """A message on one line, cut to 300 characters."""
    return " ".join(text.split())[:300]


def files_that_may_be_open() -> int:
    """How many files, connections included, this process may have open, after asking for more."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = min(hard if hard != resource.RLIM_INFINITY else 2**16, 2**16)
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return wanted
    with suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        return wanted
    return soft
