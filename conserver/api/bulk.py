"""Bulk ingest: vCons as lines of JSON, in a body of any length, answered line by line while it is read.

Neither a long body nor a slow reader makes the process grow: so many lines are under way at once, and results that the
client has not read yet lie on disk, up to a size at which the body is not read on.
"""

from __future__ import annotations

import asyncio
import tempfile
import time
import zlib
from collections.abc import AsyncIterator
from typing import Annotated, Any

from fastapi import APIRouter, Request, Response
from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope, Send

from conserver.api import bodies
from conserver.api.access import FEEDERS
from conserver.api.describe import takes
from conserver.api.many import AT_ONCE, LISTS, RESULT, TURN_BYTES, Creating, lists_for, result_of, uuid_in
from conserver.api.problems import Problem, responses, unprocessable
from conserver.errors import NotAVcon
from conserver.vcon import dump

router = APIRouter(tags=["Ingest"])

NDJSON = "application/x-ndjson"
#: The bytes of lines that are under way at once; a longer line is alone.
UNDER_WAY_BYTES = 8 * 1024 * 1024
#: After the server has failed, lines are refused for so long before one is tried again.
REST_SECS = 1.0
_PIECE_BYTES = 64 * 1024
#: Results that the client has not read: in memory, and on disk.
_IN_MEMORY_BYTES = 1024 * 1024
MOST_UNREAD_BYTES = 64 * 1024 * 1024
_GZIP = b"\x1f\x8b"

_LINE_RESULT = {
    **RESULT,
    "required": ["line", "status"],
    "properties": {"line": {"type": "integer", "minimum": 1}, **RESULT["properties"]},
}
_BODY = {
    "required": True,
    "description": "A vCon a line. Blank lines are skipped, but counted. The body may be gzip (`Content-Encoding: "
    "gzip`), and as long as it likes; a line is as long as a vCon may be.",
    "content": {NDJSON: {"schema": {"type": "string", "format": "binary"}}},
}
_RESULTS: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "A result for each line that is not blank, in order, while the body is read. A client that "
        "sends more than some hundred thousand lines has to read while it sends. If the answer ends early, what has no "
        "result may or may not be stored, and can be sent again.",
        "content": {NDJSON: {"schema": {"type": "string"}, "x-line": _LINE_RESULT}},
    }
}


async def unpacked(pieces: AsyncIterator[bytes], packed: bool) -> AsyncIterator[bytes]:
    """Yield what *pieces* hold, in pieces that are no larger than usual; NotAVcon for gzip that is damaged."""
    unzip, begun = zlib.decompressobj(wbits=31), False
    async for piece in pieces:
        if not packed:
            yield piece
            continue
        while piece:
            begun = True
            try:
                part = unzip.decompress(piece, _PIECE_BYTES)
            except zlib.error as error:
                raise NotAVcon(f"gzip data is damaged: {error}") from error
            piece = unzip.unconsumed_tail
            if unzip.eof:
                piece, unzip, begun = unzip.unused_data, zlib.decompressobj(wbits=31), False
            yield part
    if begun:
        yield unzip.flush()
        raise NotAVcon("gzip data is cut off")


async def lines(pieces: AsyncIterator[bytes], most: int) -> AsyncIterator[tuple[int, bytes | None]]:
    """Yield the lines that are not blank, with their numbers; None for one of more than *most* bytes."""
    number, held, size = 1, bytearray(), 0
    async for piece in pieces:
        *ended, rest = piece.split(b"\n")
        for part in ended:
            size += len(part)
            if size > most:
                yield number, None
            elif line := (bytes(held) + part).strip() if held else part.strip():
                yield number, line
            if held:
                held = bytearray()
            size, number = 0, number + 1
        size += len(rest)
        if size > most:
            held = bytearray()
        else:
            held += rest
        # Blank lines cost time as well, and there may be millions.
        await asyncio.sleep(0)
    if size > most:
        yield number, None
    elif line := bytes(held).strip():
        yield number, line


class Unread:
    """Results that the client has not read yet."""

    def __init__(self) -> None:
        self._file = tempfile.SpooledTemporaryFile(_IN_MEMORY_BYTES)  # noqa: SIM115  closed by `close`
        self._written = self._read = 0
        self._ended = False
        self._news = asyncio.Event()
        self._room = asyncio.Event()

    def put(self, data: bytes) -> None:
        """Add *data*."""
        # A file of a few megabytes that was just written: it takes no time that anybody would notice.
        self._file.seek(self._written)
        self._file.write(data)
        self._written += len(data)
        self._news.set()

    def end(self) -> None:
        """Say that nothing comes any more."""
        self._ended = True
        self._news.set()

    async def room(self) -> None:
        """Wait until the client has read enough."""
        while self._written - self._read > MOST_UNREAD_BYTES:
            self._room.clear()
            await self._room.wait()

    async def pieces(self) -> AsyncIterator[bytes]:
        """Yield what was put, until the end."""
        while not (self._ended and self._read == self._written):
            if self._read == self._written:
                self._news.clear()
                await self._news.wait()
                continue
            self._file.seek(self._read)
            data = self._file.read(_PIECE_BYTES)
            self._read += len(data)
            if self._read == self._written:
                self._file.seek(0)
                self._file.truncate()
                self._read = self._written = 0
            self._room.set()
            yield data

    def close(self) -> None:
        """Forget it all."""
        self._file.close()


class Import(Response):
    """The answer to a bulk ingest: reading the body and answering it go on at the same time."""

    def __init__(self, request: Request, creating: Creating, packed: bool) -> None:
        super().__init__(media_type=NDJSON)
        # How long it is, only the end tells.
        del self.headers["content-length"]
        self._request = request
        self._creating = creating
        self._packed = packed
        self._most = request.app.state.api.settings.max_vcon_bytes
        self._unread = Unread()
        self._under_way: asyncio.Queue[tuple[int, int, asyncio.Task[dict[str, Any]]] | None] = asyncio.Queue()
        self._free = asyncio.Semaphore(AT_ONCE)
        self._bytes = 0
        self._less = asyncio.Event()
        self._away: Problem | None = None
        self._rest_until = 0.0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer."""
        working = [asyncio.create_task(self._read()), asyncio.create_task(self._collect())]
        start = {"type": "http.response.start", "status": 200, "headers": self.raw_headers}
        try:
            # Begun only when there is something to say: until then a client may wait to be told to go on.
            async for piece in self._unread.pieces():
                if start:
                    await send(start)
                    start = {}
                await send({"type": "http.response.body", "body": piece, "more_body": True})
            await asyncio.gather(*working)
            if start:
                await send(start)
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        except ClientDisconnect:
            pass
        finally:
            for task in working:
                task.cancel()
            self._unread.close()
            scope["audit"] = {"created": str(self._creating.created)}

    async def _read(self) -> None:
        """Read lines, and have so many under way at once that the server never waits."""
        worked = number = 0
        stream = self._request.stream()
        try:
            async for number, line in lines(unpacked(stream, self._packed), self._most):
                size = len(line or b"")
                while self._bytes and self._bytes + size > UNDER_WAY_BYTES:
                    self._less.clear()
                    await self._less.wait()
                await self._unread.room()
                await self._free.acquire()
                self._bytes += size
                self._under_way.put_nowait((number, size, asyncio.create_task(self._take(line))))
                worked += size
                if worked > TURN_BYTES:
                    worked = 0
                    await asyncio.sleep(0)
        except NotAVcon as error:
            await self._free.acquire()
            self._under_way.put_nowait((number + 1, 0, asyncio.create_task(self._refuse(str(error)))))
            # What is left unread would have the connection reset before the client has read this.
            async for _ in stream:
                pass
        finally:
            # Also after an error: what is under way is still told.
            self._under_way.put_nowait(None)

    async def _refuse(self, why: str) -> dict[str, Any]:
        problem = unprocessable(f"the body cannot be read on: {why}")
        return result_of(None, problem)

    async def _collect(self) -> None:
        """Note the results in the order of their lines."""
        try:
            while (entry := await self._under_way.get()) is not None:
                number, size, task = entry
                result = await task
                self._free.release()
                self._bytes -= size
                self._less.set()
                self._unread.put(dump({"line": number, **result}) + b"\n")
        finally:
            self._unread.end()

    async def _take(self, line: bytes | None) -> dict[str, Any]:
        if line is None:
            return result_of(None, bodies.too_large(self._most, "the line"))
        if line.startswith(_GZIP):
            # What it unpacks to counts nowhere.
            return result_of(None, unprocessable("a line is JSON, not gzip"))
        if self._away is not None and time.monotonic() < self._rest_until:
            return result_of(uuid_in(line), self._away)
        read = await self._creating.read(line)
        if isinstance(read, Problem):
            return result_of(uuid_in(line), read)
        vcon, text = read
        uuid = str(vcon.uuid).lower()
        problem = await self._creating.create(vcon, text, [("RPUSH", name, uuid) for name in self._creating.lists])
        self._note(problem)
        return result_of(uuid, problem)

    def _note(self, problem: Problem | None) -> None:
        """Leave a server that does not answer alone for a while: else each line would wait for it."""
        self._away = problem if problem is not None and problem.status == 503 else None
        if self._away is not None:
            self._rest_until = time.monotonic() + REST_SECS


@router.post(
    "/vcons/import",
    responses={**_RESULTS, **responses(403, 415, 422)},
    **takes(_BODY, {"openapi_extra": FEEDERS}),
)
async def import_vcons(
    request: Request,
    ingress_lists: Annotated[list[str], LISTS] = [],  # noqa: B006
) -> Response:
    """Create vCons from lines of JSON, and push each that was created; every line has a result of its own."""
    creating = Creating(request, await lists_for(request, ingress_lists))
    return Import(request, creating, bodies.is_packed(request))
