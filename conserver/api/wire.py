"""One connection to the server for an event loop: whatever is asked at the same time goes in one write.

Requests that wait do not cost threads, and their commands and replies share system calls. Nothing is sent twice: when
the connection is cut, those that wait are told, and the next one opens a new connection.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Any

import hiredis
from redis import asyncio as redis_asyncio
from redis import connection as redis_connection
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from conserver import connection, crashpoints
from conserver.connection import Command
from conserver.errors import ServerError

_KINDS: dict[Any, Any] = {
    redis_connection.Connection: redis_asyncio.Connection,
    redis_connection.SSLConnection: redis_asyncio.SSLConnection,
    redis_connection.UnixDomainSocketConnection: redis_asyncio.UnixDomainSocketConnection,
}


class AsyncWire:
    """The connection; every method belongs to the loop that it is used in."""

    def __init__(self, url: str, name: str, *, timeout_secs: float = connection.REPLY_TIMEOUT_SECS) -> None:
        self._url = url
        self._name = name
        self._timeout_secs = timeout_secs
        self._connecting: asyncio.Task[None] | None = None
        self._writer: asyncio.StreamWriter | None = None
        self._waiting: deque[tuple[asyncio.Future[list[Any]], int, list[Any]]] = deque()
        self._reading: asyncio.Task[None] | None = None
        self._unsent: list[bytes] = []

    async def call(self, commands: list[Command]) -> list[Any]:
        """Send *commands* and return one reply each; a refused command's reply is its error.

        Raises ServerError if the connection fails or is silent; then any of them may or may not have been executed.
        """
        if not commands:
            return []
        packed = b"".join([hiredis.pack_command(tuple(command)) for command in commands])
        while self._writer is None:
            await self._connected()
        loop = asyncio.get_running_loop()
        future: asyncio.Future[list[Any]] = loop.create_future()
        self._waiting.append((future, len(commands), []))
        if not self._unsent:
            loop.call_soon(self._flush)
        self._unsent.append(packed)
        timer = loop.call_later(self._timeout_secs, self._silent, future)
        if crashpoints.ARMED:
            self._flush()
            crashpoints.reach_each(commands, "sent")
        try:
            replies = await future
        finally:
            timer.cancel()
        if crashpoints.ARMED:
            crashpoints.reach_each(commands, "replied")
        return replies

    def _flush(self) -> None:
        data, self._unsent = b"".join(self._unsent), []
        if self._writer is None:
            return
        try:
            self._writer.write(data)
        except (RuntimeError, OSError) as error:
            # uvloop refuses to write to what the other side has just closed, which the reader hears later.
            self._cut(str(error))

    def _silent(self, future: asyncio.Future[list[Any]]) -> None:
        if not future.done():
            self._cut(f"no answer within {self._timeout_secs:g} s")

    async def _connected(self) -> None:
        # All who wait share one attempt: one after the other they would wait for as many timeouts.
        if self._connecting is None or self._connecting.done():
            self._connecting = asyncio.create_task(self._connect())
            # Those who wait may have gone by the time that it fails.
            self._connecting.add_done_callback(lambda task: task.cancelled() or task.exception())
        await asyncio.shield(self._connecting)

    async def _connect(self) -> None:
        made = await self._made()
        try:
            await made.connect()
        except (RedisError, OSError, TimeoutError) as error:
            raise ServerError(f"server at {connection.address(self._url)}: {error}") from error
        # From here on they are ours: redis-py would close them with its object.
        reader, self._writer = made._reader, made._writer
        made._reader = made._writer = None
        self._reading = asyncio.create_task(self._read(reader))

    async def _made(self) -> Any:
        kind, options = await asyncio.to_thread(connection.place, self._url, self._name)
        options |= {"socket_timeout": self._timeout_secs, "retry": Retry(NoBackoff(), 0), "protocol": 2}
        return _KINDS[kind](**options, health_check_interval=0)

    async def _read(self, reader: asyncio.StreamReader) -> None:
        parser = connection.reply_reader()
        try:
            while data := await reader.read(1 << 18):
                parser.feed(data)
                while (reply := parser.gets()) is not False:
                    if not self._waiting:
                        self._cut(f"it said {reply!r:.200}, which nobody had asked for")
                        return
                    self._take(reply)
            self._cut("the connection was closed")
        except (OSError, hiredis.HiredisError) as error:
            self._cut(str(error))

    def _take(self, reply: Any) -> None:
        future, wanted, replies = self._waiting[0]
        replies.append(reply)
        if len(replies) == wanted:
            self._waiting.popleft()
            if not future.done():
                future.set_result(replies)

    def _cut(self, why: str) -> None:
        """Tell all who wait that the connection has failed, and forget it."""
        writer, self._writer, self._unsent = self._writer, None, []
        reading, self._reading = self._reading, None
        if writer is not None:
            writer.transport.abort()
        if reading is not None and reading is not asyncio.current_task():
            reading.cancel()
        waiting, self._waiting = self._waiting, deque()
        for future, _, _ in waiting:
            if not future.done():
                future.set_exception(ServerError(f"server at {connection.address(self._url)}: {why}"))

    def close(self) -> None:
        """Close the connection."""
        if self._connecting is not None:
            self._connecting.cancel()
        self._cut("the API ends")
