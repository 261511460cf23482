"""An engine with an HTTP interface: `python -m dash_exp.serve` starts it and `rollout=vllm_server` uses it.

    GET  /health                       which model this is, and which weights it has
    PUT  /weights?version=N            body: the whole state dict as safetensors. Drops all unfinished work
    PUT  /adapter?version=N&base=LOAD  body: an adapter as safetensors, for the weights loaded as LOAD
    POST /transfer/STEP?version=N      body: JSON. Weights with vLLM's weight transfer, step by step (GPU)
    POST /sample                       body: JSON, see `Job`. Answers with one line of JSON for each finished group

Lines of /sample: {"index", "version", "completions": [{"ids", "logprobs", "stopped"}]} for a group; {"alive": steps} about
once a second while the engine makes progress; at the end {"done": groups}, or {"error": why} if the weights were replaced
during the request.

Only one thread, that of `EngineServer.run`, uses the engine. Requests reach it through a queue, so that several are decoded
together. There is no authentication: anyone who can reach the port can sample and replace the weights.
"""

from __future__ import annotations

import asyncio
import json
import queue
import secrets
import tempfile
from collections.abc import AsyncIterator, Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import safetensors.torch
import torch
from safetensors import SafetensorError

from dash_exp.core.types import Completion
from dash_exp.sampling.base import Sampling
from dash_exp.sampling.engine import Engine, check_complete

if TYPE_CHECKING:
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response

HEARTBEAT_S = 1.0
TRANSFER = ("init_weight_transfer_engine", "start_weight_update", "update_weights", "finish_weight_update")


class RefusedError(Exception):
    """A request that is refused: the HTTP status and the reason."""

    def __init__(self, status: int, why: str) -> None:
        super().__init__(why)
        self.status = status


@dataclass(frozen=True)
class Job:
    """One sampling request: a group for each (index, token ids, seed), with weights of version `version`.

    `load`: the name that the server gave to these weights when it loaded them; None for any weights of that version.
    """

    version: int
    load: str | None
    groups: list[tuple[int, list[int], int]]
    group_size: int
    sampling: Sampling

    @classmethod
    def parse(cls, body: Any) -> Job:
        """The job in the body of a request. Raises RefusedError if it is malformed."""
        try:
            return cls(
                version=int(body["version"]),
                load=body.get("load"),
                groups=[(int(p["index"]), [int(i) for i in p["ids"]], int(p["seed"])) for p in body["prompts"]],
                group_size=int(body["group_size"]),
                sampling=Sampling(
                    int(body["max_tokens"]),
                    float(body["temperature"]),
                    float(body["top_p"]),
                    tuple(str(text) for text in body.get("stop", ())),
                ),
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise RefusedError(400, f"not a sampling request: {type(error).__name__} {error}") from error


def as_json(completion: Completion) -> dict[str, Any]:
    """A completion in a line of /sample. `server_call.completion` reads it, with the same log-probabilities to the last bit."""
    logprobs = None if completion.logprobs is None else completion.logprobs.tolist()
    return {"ids": completion.ids.tolist(), "logprobs": logprobs, "stopped": completion.stopped}


class EngineServer:
    """The engine, its unfinished groups, and the thread that uses it."""

    def __init__(self, engine: Engine, device: str, about: Mapping[str, Any]) -> None:
        self.engine = engine
        self.about = {**about, "device": device, "boot": secrets.token_hex(8)}
        self.version: int | None = None
        self.load: str | None = None  # a name for the loaded weights: two runs may both have a version 3
        self.base: str | None = None  # the `load` of the base weights, under an adapter
        self.steps = 0
        self._work: queue.SimpleQueue[tuple[Callable[[], Any], Future]] = queue.SimpleQueue()
        self._waiting: dict[str, tuple[int, Callable[[dict], None]]] = {}  # group id -> index, function that sends its line

    def run(self) -> NoReturn:
        """Decode while there are unfinished groups, and do submitted work between two steps. Ends only with an exception."""
        while True:
            while not self._waiting or not self._work.empty():
                work, future = self._work.get()
                if future.set_running_or_notify_cancel():
                    try:
                        future.set_result(work())
                    except Exception as error:
                        future.set_exception(error)
            for group, completions in self.engine.step():
                if group not in self._waiting:
                    continue
                index, put = self._waiting.pop(group)
                line = [as_json(completion) for completion in completions]
                put({"index": index, "version": self.version, "completions": line})
            self.steps += 1

    def submit(self, work: Callable[[], Any]) -> Future:
        """Let the thread of the engine do `work` between two steps."""
        future: Future = Future()
        self._work.put((work, future))
        return future

    # --- only for the thread of the engine -------------------------------------------------------------------------------

    def health(self) -> dict[str, Any]:
        """The answer to /health."""
        return {**self.about, "version": self.version, "load": self.load, "base": self.base, "unfinished": len(self._waiting)}

    def add(self, job: Job, put: Callable[[dict], None]) -> list[str]:
        """Queue a job; `put` receives its lines. Returns the ids of its groups."""
        if job.version != self.version or job.load not in (None, self.load):
            of = "" if job.version != self.version else ", loaded by another client"
            raise RefusedError(409, f"has weights of version {self.version}{of}, not of version {job.version}")
        added: list[str] = []
        try:
            for index, ids, seed in job.groups:
                added.append(self.engine.add(ids, job.group_size, job.sampling, seed))
                self._waiting[added[-1]] = (index, put)
        except ValueError as error:
            self.abort(added)
            raise RefusedError(400, str(error)) from error
        return added

    def abort(self, groups: list[str]) -> None:
        """Drop these groups."""
        self.engine.abort(groups)
        for group in groups:
            self._waiting.pop(group, None)

    def take_weights(self, file: Path, version: int) -> dict[str, Any]:
        """Load a whole state dict. Returns `health`."""
        self._drop("the weights were replaced")
        try:
            self.engine.load(safetensors.torch.load_file(file))
        except (ValueError, SafetensorError) as error:
            raise RefusedError(400, str(error)) from error
        return self._took(version)

    def take_adapter(self, file: Path, version: int, base: str | None) -> dict[str, Any]:
        """Load an adapter for the weights that were loaded as `base`. Returns `health`."""
        if self.base is None or base != self.base:
            raise RefusedError(409, "does not have the weights that this adapter belongs to")
        self._drop("the weights were replaced")
        try:
            with safetensors.safe_open(file, "pt") as contents:
                settings = json.loads(contents.metadata()["adapter"])
            self.engine.load_adapter(settings, safetensors.torch.load_file(file))
        except (ValueError, LookupError, TypeError, SafetensorError) as error:
            raise RefusedError(400, f"not an adapter: {error}") from error
        self.version, self.load = version, secrets.token_hex(8)
        return self.health()

    def transfer(self, step: str, argument: Any, version: int) -> dict[str, Any]:
        """One step of vLLM's weight transfer. After the last step the weights have this `version`."""
        if step == "start_weight_update":
            self._drop("the weights were replaced")
        if step == "update_weights":
            shapes = zip(argument["names"], argument["shapes"], strict=True)
            try:
                check_complete({name: torch.empty(shape, device="meta") for name, shape in shapes}, self.engine.expected)
            except ValueError as error:
                raise RefusedError(400, str(error)) from error
        self.engine.llm.collective_rpc(step, args=() if argument is None else (argument,))
        if step == "finish_weight_update":
            self.engine.drop_adapter()
            self.engine.forget()
            return self._took(version)
        return self.health()

    def _drop(self, why: str) -> None:
        self.version = self.load = None
        for put in {id(put): put for _, put in self._waiting.values()}.values():
            put({"error": why})
        self._waiting.clear()
        self.engine.abort_all()

    def _took(self, version: int) -> dict[str, Any]:
        self.version = version
        self.load = self.base = secrets.token_hex(8)
        return self.health()


def application(server: EngineServer) -> Starlette:
    """The HTTP interface of the server, as a Starlette application."""
    from starlette.applications import Starlette
    from starlette.responses import JSONResponse, PlainTextResponse, StreamingResponse
    from starlette.routing import Route

    def version(request: Request) -> int:
        text = request.query_params.get("version", "")
        if not text.isdigit():
            raise RefusedError(400, f"version={text} is not a whole number")
        return int(text)

    async def health(request: Request) -> Response:
        # through the thread of the engine, so that an engine that hangs does not answer
        return JSONResponse(await asyncio.wrap_future(server.submit(server.health)))

    async def weights(request: Request) -> Response:
        number = version(request)
        return await taken(request, lambda file: server.take_weights(file, number))

    async def an_adapter(request: Request) -> Response:
        number, base = version(request), request.query_params.get("base")
        return await taken(request, lambda file: server.take_adapter(file, number, base))

    async def taken(request: Request, take: Callable[[Path], dict[str, Any]]) -> Response:
        with tempfile.NamedTemporaryFile(suffix=".safetensors") as file:
            async for chunk in request.stream():
                file.write(chunk)
            file.flush()
            took = server.submit(lambda: take(Path(file.name)))
            return JSONResponse(await asyncio.wrap_future(took))

    async def transfer(request: Request) -> Response:
        step, number = request.path_params["step"], version(request)
        if step not in TRANSFER:
            raise RefusedError(404, f"{step} is not a step of the weight transfer")
        argument = json.loads(await request.body() or b"null")
        return JSONResponse(await asyncio.wrap_future(server.submit(lambda: server.transfer(step, argument, number))))

    async def sample(request: Request) -> Response:
        try:
            job = Job.parse(await request.json())
        except json.JSONDecodeError as error:
            raise RefusedError(400, f"not JSON: {error}") from error
        lines: asyncio.Queue[dict] = asyncio.Queue()
        loop = asyncio.get_running_loop()

        def put(line: dict) -> None:
            loop.call_soon_threadsafe(lines.put_nowait, line)

        groups = await asyncio.wrap_future(server.submit(lambda: server.add(job, put)))
        return StreamingResponse(answer(groups, lines), media_type="application/x-ndjson")

    async def answer(groups: list[str], lines: asyncio.Queue[dict]) -> AsyncIterator[str]:
        left, steps = len(groups), server.steps
        try:
            while left:
                try:
                    line = await asyncio.wait_for(lines.get(), HEARTBEAT_S)
                except TimeoutError:
                    if server.steps > steps:
                        steps = server.steps
                        yield json.dumps({"alive": steps}) + "\n"
                    continue
                yield json.dumps(line) + "\n"
                if "error" in line:
                    return
                left -= 1
            yield json.dumps({"done": len(groups)}) + "\n"
        finally:
            if left:  # the client has disconnected
                server.submit(lambda: server.abort(groups))

    def refused(request: Request, error: Exception) -> Response:
        assert isinstance(error, RefusedError)
        return PlainTextResponse(str(error), status_code=error.status)

    def failed(request: Request, error: Exception) -> Response:
        return PlainTextResponse(f"{type(error).__name__}: {' '.join(str(error).split())[:400]}", status_code=500)

    return Starlette(
        routes=[
            Route("/health", health),
            Route("/weights", weights, methods=["PUT"]),
            Route("/adapter", an_adapter, methods=["PUT"]),
            Route("/transfer/{step}", transfer, methods=["POST"]),
            Route("/sample", sample, methods=["POST"]),
        ],
        exception_handlers={RefusedError: refused, Exception: failed},
    )
