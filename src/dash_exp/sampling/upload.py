"""A route that `vllm serve` does not have: it takes files with weights, from runs on machines without a common disk.

    PUT    /dash_exp/weights/SENDER/NUMBER/FILE   stores a file, and deletes those of earlier numbers of this sender
    DELETE /dash_exp/weights/SENDER/NUMBER        deletes the files

PUT answers with the folder in which the file is, a path on the server's machine. This is a piece of ASGI middleware around the
application of `vllm serve` (`--middleware`).
"""

from __future__ import annotations

import atexit
import json
import re
import shutil
from collections.abc import Awaitable, Callable, MutableMapping
from pathlib import Path
from typing import Any

from dash_exp.core.errors import UserError
from dash_exp.sampling.server_room import Room

PATH = "/dash_exp/weights"
PARTS = re.compile(rf"{PATH}/(?P<sender>[0-9a-f]+)/(?P<number>[0-9]+)(?:/(?P<file>\w+\.\w+))?")

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]


class Upload:
    """See above. Files are in the memory of the machine, until the server ends."""

    def __init__(self, app: Callable[[Message, Receive, Send], Awaitable[None]]) -> None:
        self.app = app
        self.room = Room(None)
        self.folders: dict[str, tuple[str, Path]] = {}  # by sender: the number and the folder of its files
        atexit.register(self.room.close)

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        asked = PARTS.fullmatch(scope["path"]) if scope["type"] == "http" else None
        if asked is None or scope["method"] != ("PUT" if asked["file"] else "DELETE"):
            await self.app(scope, receive, send)
        elif scope["method"] == "DELETE":
            self._delete(asked["sender"])
            await answer(send, 200, {})
        else:
            await self._put(scope, receive, send, *asked.groups())

    async def _put(self, scope: Message, receive: Receive, send: Send, sender: str, number: str, file: str) -> None:
        size = int(dict(scope["headers"]).get(b"content-length", 0))
        try:
            folder = self._folder(sender, number, size)
        except UserError as error:
            await answer(send, 507, {"error": str(error)})
            return
        if await store(folder / file, receive):
            await answer(send, 200, {"folder": str(folder)})

    def _folder(self, sender: str, number: str, size: int) -> Path:
        if sender not in self.folders or self.folders[sender][0] != number:
            self._delete(sender)
            self.folders[sender] = (number, self.room.folder(size))
        return self.folders[sender][1]

    def _delete(self, sender: str) -> None:
        if sender in self.folders:
            shutil.rmtree(self.folders.pop(sender)[1], ignore_errors=True)


async def store(file: Path, receive: Receive) -> bool:
    """Write the body of a request into a file. False if the sender went away before its end."""
    with file.open("wb") as out:
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                return False
            out.write(message.get("body", b""))
            if not message.get("more_body", False):
                return True


async def answer(send: Send, status: int, body: dict[str, str]) -> None:
    await send({"type": "http.response.start", "status": status, "headers": [(b"content-type", b"application/json")]})
    await send({"type": "http.response.body", "body": json.dumps(body).encode()})
