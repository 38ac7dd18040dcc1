"""`Idempotency-Key`: a request that is repeated is done once, and answered as it was answered the first time.

What is known of a request lies in `conserver:idempotency:<digest>`: first the mark of the run that works on it, which
lapses if that run dies, then the answer. Whatever a run pushes goes along with the note that it is done, in one
script, and only while the run has its mark. So a repeat never pushes a second time, whenever the first one died.
"""

from __future__ import annotations

import asyncio
import hashlib
import secrets
import zlib
from collections.abc import Sequence
from contextlib import suppress
from types import TracebackType
from typing import Any, NoReturn

from fastapi import Request, Response
from redis.exceptions import ResponseError

from conserver import scripts
from conserver.api.problems import Problem, unprocessable
from conserver.connection import Command
from conserver.errors import ServerError
from conserver.talk import Talk, reply_of

HEADER = "Idempotency-Key"
REPLAYED = "Idempotency-Replayed"
#: For how long a run that says nothing any more counts as running.
RUNNING_SECS = 60
#: For how long an answer is known.
KNOWN_SECS = 24 * 3600
#: How soon to ask again while the first one runs.
RETRY_AFTER_SECS = 2
#: For how long a server that has just failed is given to take a mark away.
_RELEASE_SECS = 1.0
_RUNS, _DONE = b"runs", b"done"

#: What a route declares that knows the header.
PARAMETER: dict[str, Any] = {
    "name": HEADER,
    "in": "header",
    "description": "1 to 255 printable characters of the client's choice. The same request with the same key again, "
    f"within 24 hours, is not done again: it gets the answer of the first, with `{REPLAYED}: true`. The key with "
    "another request is 422; while the first one still runs, 409.",
    "schema": {"type": "string", "minLength": 1, "maxLength": 255},
    "example": "5f2b9c1e-import-2026-01-31",
}


class Once:
    """One run of a request, which the client may have sent before; without the header it does nothing.

    `async with Once(request, body) as once`: if `once.done`, answer `once.again()`. Else do it, and what
    `once.pushes` returns last. An error leaves nothing behind, so that the request can be repeated.
    """

    __slots__ = ("_api", "_fingerprint", "_mark", "_name", "_noted", "_renewing", "_status", "_text", "done")

    def __init__(self, request: Request, *body: bytes) -> None:
        """Raise Problem for a key that is none; *body* is what was asked for, beside method, path and query."""
        self.done = False
        self._name = ""
        key = request.headers.get(HEADER)
        if key is None:
            return
        if not (1 <= len(key) <= 255 and key.isprintable()):
            raise unprocessable(f"{HEADER}: it must be 1 to 255 printable characters", parameter=HEADER)
        self._api = request.app.state.api
        scope = request.scope
        # No name of a caller holds a line feed.
        owner = f"{scope['caller']}\n{key}".encode("utf-8", "replace")
        self._name = f"conserver:idempotency:{_sha256(owner)}"
        path = scope["path"].removeprefix(scope.get("root_path", ""))
        asked = f"{scope['method']} {path}?".encode("utf-8", "replace") + scope["query_string"] + b"\n"
        self._fingerprint = _sha256(asked, *body).encode()
        self._mark = b" ".join((_RUNS, self._fingerprint, secrets.token_hex(8).encode()))
        self._noted = False
        self._status, self._text = 0, b""
        self._renewing: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Once:
        if self._name:
            await self._begin()
        return self

    async def _begin(self) -> None:
        command = ("SET", self._name, self._mark, "NX", "GET", "EX", RUNNING_SECS)
        [reply] = await self._api.wire.call([command])
        known = reply_of(reply)
        if known is None:
            self._renewing = asyncio.create_task(self._renew())
            return
        state, fingerprint, rest = known.split(b" ", 2)
        if fingerprint != self._fingerprint:
            raise Problem(
                422,
                "idempotency-key-reused",
                f"this {HEADER} came with another request before: take a new one for each request",
                errors=[{"parameter": HEADER, "detail": "it belongs to another request"}],
            )
        if state == _RUNS:
            _refuse_running()
        status, _, packed = rest.partition(b" ")
        self.done, self._status, self._text = True, int(status), zlib.decompress(packed)

    async def _renew(self) -> None:
        while not self._noted:
            await asyncio.sleep(RUNNING_SECS / 4)
            # What is noted by now is known for longer than a mark.
            if not self._noted:
                with suppress(ServerError):
                    await self._api.wire.call([("EXPIRE", self._name, RUNNING_SECS)])

    def again(self, made: Response | None = None) -> Response:
        """Return the answer of the first time: *made*, if it follows from the request, or what was noted."""
        kind = "application/json" if self._text else None
        answer = made or Response(self._text or None, self._status, media_type=kind)
        answer.headers[REPLAYED] = "true"
        return answer

    def pushes(
        self, lists: Sequence[str], entries: Sequence[str], status: int, text: bytes = b"", *, part: int | None = None
    ) -> list[Command]:
        """Return the commands that push *entries* to each list, and note the answer that is given if they succeed.

        A *part* of a request is noted by itself: the next run leaves it out. The whole one has to be noted as well.
        """
        if not self._name:
            return [("RPUSH", name, *entries) for name in lists]
        if part is None:
            self._noted = True
        name, mark = (self._name, self._mark) if part is None else (f"{self._name}:{part}", b"")
        answer = b" ".join((_DONE, self._fingerprint, str(status).encode(), zlib.compress(text, 1)))
        return [scripts.ONCE.command([name, *lists], [mark, answer, KNOWN_SECS, *entries])]

    async def did(self, part: int) -> bool:
        """Say whether an earlier run of this request has done a *part* of it."""
        if not self._name:
            return False
        [known] = await self._api.wire.call([("GET", f"{self._name}:{part}")])
        return isinstance(known, bytes) and known.split(b" ", 2)[1] == self._fingerprint

    async def note(self, status: int, text: bytes = b"") -> None:
        """Note the answer of a request that has nothing left to push."""
        if self._name:
            await self._api.hold(asked(self.pushes((), (), status, text)))

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._name or self.done:
            return
        if self._renewing is not None:
            self._renewing.cancel()
        if isinstance(error, ResponseError) and str(error).startswith("TAKEN"):
            _refuse_running(error)
        if error is not None or not self._noted:
            # If the server does not answer, the mark lapses.
            with suppress(ServerError, ResponseError, TimeoutError):
                async with asyncio.timeout(_RELEASE_SECS):
                    await self._release()

    async def _release(self) -> None:
        """Take the mark away; an answer that is noted stays: what was asked for is done, though nobody was told."""
        [known] = await self._api.wire.call([("GET", self._name)])
        if known == self._mark:
            await self._api.wire.call([("DEL", self._name)])


def asked(commands: Sequence[Command]) -> Talk[list[Any]]:
    """Return the replies to *commands*, as a talk; the first that is an error is raised."""
    replies = yield list(commands)
    return [reply_of(reply) for reply in replies]


def _refuse_running(error: Exception | None = None) -> NoReturn:
    detail = f"a request with this {HEADER} is being worked on: ask again later"
    raise Problem(409, "idempotency-key-in-use", detail, headers={"Retry-After": str(RETRY_AFTER_SECS)}) from error


def _sha256(*parts: bytes) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return digest.hexdigest()
