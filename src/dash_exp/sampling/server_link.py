"""One sampling server as a run sees it: its address, what is known of it, and the routes of `vllm serve` that are used.

Everything here is used by one event loop.
"""

from __future__ import annotations

import json
import resource
import threading
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
from dash_exp.sampling.server_room import UPLOAD
from dash_exp.sampling.server_weights import Weights

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
    "/sleep": "POST",
    "/wake_up": "POST",
    "/update_weight_version": "POST",
    "/collective_rpc": "POST",
    "/reset_prefix_cache": "POST",
    "/weight_checker": "POST",
    "/v1/load_lora_adapter": "POST",
    "/v1/unload_lora_adapter": "POST",
    "/inference/v1/generate": "POST",
}
LOADING = "loading "  # how the label of a server begins while it gets weights
BROKEN = "an update of its weights broke half-way"


class LostError(Exception):
    """A server that cannot be used at the moment, and why. With `right`, what to do, it ends a run that starts."""

    def __init__(self, why: str, right: str = "") -> None:
        super().__init__(why)
        self.right = right


class AnswerError(Exception):
    """An answer to a sampling request that cannot be used, and why. The server may be well."""


class Server:
    """An address, two HTTP clients for it, and what is known about the server there.

    `give_up_s`: the longest wait for it to load weights, `timeout_s` for other answers. `of`: how many servers there are.

    Weights have a label, a text that vLLM keeps and writes into each completion. `id` is a part of all labels that this run
    gives here, so that no other server and no other run has the same.
    """

    def __init__(self, url: str, timeout_s: float, give_up_s: float, of: int) -> None:
        self.url = url
        self.give_up_s = give_up_s
        self.id = uuid.uuid4().hex
        # A new connection for each request: an old one may have broken while the server was away. A client of its own for what
        # is no sampling, so that it waits behind nothing. A completion may take any time: `VLLMServerSampler._watch`.
        wait = httpx.Timeout(timeout_s, connect=min(PROBE_S, timeout_s))
        limits = httpx.Limits(max_keepalive_connections=0)
        self.control = httpx.AsyncClient(base_url=url, timeout=wait, limits=limits, trust_env=False)
        without_end = httpx.Timeout(timeout_s, connect=min(PROBE_S, timeout_s), read=None, pool=None)
        limits = httpx.Limits(max_connections=max(1, most_connections() // of), max_keepalive_connections=0)
        self.sampling = httpx.AsyncClient(base_url=url, timeout=without_end, limits=limits, trust_env=False)
        self.facts: dict[str, Any] = {}  # what it said it is at the last contact
        self.has: int | None = None  # number of the weights that were given to it last
        self.label: str | None = None  # their label
        self.has_base = False  # whether it has the weights below an adapter
        self.reads: Weights | None = None  # what it was told to load: kept, as one that hangs may still do it
        self.model = ""  # the name that requests ask for: its model, or an adapter
        self.given = 0  # how often it was given weights
        self.uploads = 0
        self.broken = ("", "")  # label and reason of an update that broke half-way
        self.live = False
        self.rests = False  # it sleeps or is lost, and nothing is asked of it until weights are given again
        self.tried = False  # whether it was contacted, successfully or not
        self.said = "not contacted yet"  # why it was lost the last time
        self.busy = 0  # requests under way
        self.heard = 0.0  # when it last decoded a token for this run, since it was lost
        self.sender: native.Sender | None = None

    def move(self, url: str) -> None:
        """It may have been started again at this address."""
        if url != self.url:
            self.url = url
            self.control.base_url = self.sampling.base_url = httpx.URL(url)

    async def forget(self) -> None:
        """What was known of its weights: it was started again, or someone else has changed them."""
        self.has_base, self.model = False, self.facts["name"]
        self.close()
        # It was started without weights, so it must be told that there are files.
        from_files = {"load_config": {"load_format": "safetensors"}}
        await self.call("/collective_rpc", json={"method": "update_config", "kwargs": {"overrides": from_files}})

    async def call(self, route: str, key: str = "", **request: Any) -> Any:
        """Call a route other than sampling. Returns what its answer has under this key, or its text.

        Raises LostError for any other status than 200, and for an answer that cannot be read.
        """
        response = await self.control.request(ROUTES[route], route, **request)
        if response.status_code != 200:
            raise LostError(f"{route}: {said(response)}")
        try:
            return response.json()[key] if key else response.text
        except (ValueError, LookupError, TypeError) as error:
            raise LostError(f"{route}: its answer cannot be read ({in_one_line(response.text)})") from error

    async def read_facts(self) -> dict[str, Any]:
        """What `python -m dash_exp.serve` has said about the server, in the name of a model; and `name`, `max_model_len`, and
        `engines`, the number of engines in it (data parallelism).

        Empty for another program.
        """
        response = await self.control.get("/v1/models", timeout=PROBE_S)
        if response.status_code >= 500:
            raise LostError(said(response))
        try:
            first, about = response.json()["data"][:2]
            facts = {**json.loads(about["id"]), "name": first["id"], "max_model_len": first["max_model_len"]}
        except (ValueError, LookupError, TypeError):
            return {}
        return facts | {"engines": await self.gpus() // await self.gpus(include_dp=False)}

    async def read_label(self) -> str:
        """The label of its weights. Its engine answers, between two steps, so that one that hangs does not."""
        return str(await self.call("/weight_info", "weight_version"))

    async def set_label(self, label: str) -> None:
        await self.call("/update_weight_version", json={"new_version": label})

    async def tokens(self) -> float:
        """How many tokens it has decoded since it was started, for anyone."""
        lines = (await self.call("/metrics")).splitlines()
        return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith("vllm:generation_tokens_total"))

    async def gpus(self, include_dp: bool = True) -> int:
        """How many GPUs have its weights, or parts of them; without `include_dp` those of one engine."""
        return int(await self.call("/get_world_size", "world_size", params={"include_dp": include_dp}))

    async def check_whole(self, label: str, why: str = "") -> None:
        """Raise LostError if the update with this label broke half-way: some weights have no memory then, and no checksum."""
        if self.broken[0] != label:
            checksum = {"action": "checksum"}
            response = await self.control.post("/weight_checker", json=checksum, timeout=self.give_up_s)
            if response.status_code == 200:
                return
            self.broken = label, f"{BROKEN}: start it again{why}"
        raise LostError(self.broken[1], "See what that server has printed")

    async def reload(self, folder: Path) -> None:
        """Load whole weights from a folder."""
        reload = {"method": "reload_weights", "kwargs": {"weights_path": str(folder)}}
        await self.call("/collective_rpc", json=reload, timeout=self.give_up_s)

    async def load_adapter(self, folder: Path) -> None:
        """Load an adapter from a folder, under a new name, and forget the one before it."""
        if self.model != self.facts["name"]:
            earlier, self.model = self.model, self.facts["name"]
            await self.call("/v1/unload_lora_adapter", json={"lora_name": earlier})
        name = f"adapter {self.id} {self.given}"
        new = {"lora_name": name, "lora_path": str(folder)}
        await self.call("/v1/load_lora_adapter", json=new, timeout=self.give_up_s)
        self.model = name

    async def sleep(self, level: int) -> None:
        """Give up GPU memory: see `engine.sleep_level`. Without a GPU vLLM does nothing. One that is lost is not waited for."""
        wait = httpx.USE_CLIENT_DEFAULT if self.live else PROBE_S
        await self.call("/sleep", params={"level": level}, timeout=wait)

    async def wake(self, part: str) -> None:
        """Take memory for a part again, `weights` or `kv_cache`: what was in it may be lost. Nothing where that is awake."""
        await self.call("/wake_up", params={"tags": part}, timeout=self.give_up_s)

    async def sees(self, folder: Path) -> bool:
        """Whether this folder is on its machine, or on a disk that it has too."""
        return (await self.control.get(UPLOAD, params={"folder": str(folder)})).status_code == 200

    async def upload(self, folder: Path) -> Path:
        """Send the files of a folder into its memory. Returns the folder that they are in there."""
        self.uploads += 1
        there = folder
        for file in sorted(folder.iterdir()):
            to = f"{UPLOAD}/{self.id}/{self.uploads}/{file.name}"
            length = {"content-length": str(file.stat().st_size)}
            response = await self.control.put(to, content=in_pieces(file), headers=length)
            if response.status_code != 200:
                raise LostError(f"it takes no weights: {said(response)}")
            there = Path(response.text)
        return there

    async def delete_upload(self) -> None:
        await self.control.delete(f"{UPLOAD}/{self.id}/{self.uploads}")

    async def sample(self, request: Mapping[str, Any]) -> Any:
        """The answer to a sampling request. Raises AnswerError for one that says what is wrong."""
        response = await self.sampling.post("/inference/v1/generate", json=request)
        if response.status_code != 200:
            raise AnswerError(said(response))
        try:
            return response.json()
        except ValueError as error:
            raise AnswerError(f"it is no JSON ({in_one_line(response.text)})") from error

    def close(self) -> None:
        """End the connection for weights, if there is one, without waiting for the server."""
        if self.sender is not None:
            threading.Thread(target=self.sender.close, daemon=True).start()
            self.sender = None


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


def why(error: Exception) -> str:
    """What went wrong with a server, on one line."""
    if isinstance(error, httpx.ReadTimeout):
        return f"no answer for {error.request.extensions['timeout']['read']:g} s"
    return in_one_line(str(error)) or type(error).__name__


def said(response: httpx.Response) -> str:
    """What an answer says that is an error, in the form of vLLM or in another."""
    text = response.text
    with suppress(ValueError, LookupError, TypeError):
        error = response.json()["error"]
        text = str(error["message"] if isinstance(error, dict) else error)
    return in_one_line(text) or f"status {response.status_code}"


def most_connections() -> int:
    """How many this process may have, after asking for as many open files as it may: half of them."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = 2**16 if hard == resource.RLIM_INFINITY else min(hard, 2**16)
    if soft != resource.RLIM_INFINITY and soft < most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
    return most // 2
