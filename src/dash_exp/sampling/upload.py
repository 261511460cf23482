"""Routes that `vllm serve` does not have: they take files with weights, from runs on machines without a common disk.

    GET    /dash_exp/weights?folder=PATH          answers 200 if the server sees this folder, else 404
    PUT    /dash_exp/weights/SENDER/NUMBER/FILE   stores a file, and answers with the path of its folder
    DELETE /dash_exp/weights/SENDER/NUMBER        deletes the files

There is one folder: the first file of another sender or number deletes what is in it. This is a piece of ASGI middleware around
the application of `vllm serve` (`--middleware`).
"""

from __future__ import annotations

import atexit
import re
import shutil
from contextlib import suppress
from pathlib import Path

from starlette.requests import ClientDisconnect, Request
from starlette.responses import PlainTextResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from dash_exp.core.errors import UserError
from dash_exp.sampling.server_room import UPLOAD, Room

PARTS = re.compile(rf"{UPLOAD}/(?P<sender>[0-9a-f]+/[0-9]+)(?:/(?P<file>\w+\.\w+))?")


class Upload:
    """See above. Files are in the memory of the machine, until the server ends."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app
        self.room = Room(None)
        self.sender = ""  # and number, of the files in the folder
        self.folder: Path | None = None
        atexit.register(self.room.close)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"].startswith(UPLOAD):
            answer = await self.answer(Request(scope, receive))
            await answer(scope, receive, send)
        else:
            await self.app(scope, receive, send)

    async def answer(self, request: Request) -> Response:
        asked = PARTS.fullmatch(request.url.path)
        if request.method == "GET" and asked is None:
            return Response(status_code=200 if Path(request.query_params.get("folder", "")).is_dir() else 404)
        if request.method == "PUT" and asked and asked["file"]:
            return await self.put(request, asked["sender"], asked["file"])
        if request.method == "DELETE" and asked and not asked["file"]:
            if asked["sender"] == self.sender:
                self.delete()
            return Response()
        return Response(status_code=404)

    async def put(self, request: Request, sender: str, file: str) -> Response:
        size = int(request.headers.get("content-length", 0))
        folder: Path | None = None
        try:
            if self.folder is None or sender != self.sender:
                self.delete()
                self.folder, self.sender = self.room.folder(size), sender
            else:
                self.room.check(size)
            folder = self.folder
            with suppress(ClientDisconnect), (folder / file).open("wb") as out:
                async for piece in request.stream():
                    out.write(piece)
        except (UserError, OSError) as error:  # there is no room, or less than was free
            if folder in (None, self.folder):  # else newer weights have come meanwhile
                self.delete()
            return PlainTextResponse(str(error), 507)
        return PlainTextResponse(str(folder))

    def delete(self) -> None:
        if self.folder is not None:
            shutil.rmtree(self.folder, ignore_errors=True)
        self.folder = None
