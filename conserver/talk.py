"""Exchanges with the server that are written once, for threads and for an event loop.

A talk is a generator: it yields the commands of one round trip, is sent their replies (a refused command's reply is
its error), and returns its result. It neither waits nor knows a connection, so `hold` serves it in a thread and
`hold_async` in an event loop.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Generator
from typing import Any, TypeVar

from redis.exceptions import NoScriptError, RedisError

from conserver import connection, scripts
from conserver.connection import Command
from conserver.errors import ServerError

T = TypeVar("T")
Talk = Generator[list[Command], list[Any], T]


def hold(talk: Talk[T], call: Callable[[list[Command]], list[Any]]) -> T:
    """Hold *talk* by way of *call*, which sends commands in one write and returns their replies."""
    try:
        commands = next(talk)
        while True:
            replies = call(commands)
            if again := _unknown(replies):
                _put(replies, again, call([scripts.in_full(commands[i]) for i in again]))
            commands = talk.send(replies)
    except StopIteration as end:
        result: T = end.value
        return result


async def hold_async(talk: Talk[T], call: Callable[[list[Command]], Awaitable[list[Any]]]) -> T:
    """Hold *talk* as `hold` does, in an event loop."""
    try:
        commands = next(talk)
        while True:
            replies = await call(commands)
            if again := _unknown(replies):
                _put(replies, again, await call([scripts.in_full(commands[i]) for i in again]))
            commands = talk.send(replies)
    except StopIteration as end:
        result: T = end.value
        return result


def reply_of(reply: Any) -> Any:
    """Return *reply*, or raise the error that it is; one that means "not now" as a ServerError."""
    if not isinstance(reply, Exception):
        return reply
    if isinstance(reply, RedisError) and connection.is_server_error(reply):
        raise ServerError(str(reply)) from reply
    raise reply


def _unknown(replies: list[Any]) -> list[int]:
    # The server was started anew, or somebody has flushed its scripts, and may do so again at any moment.
    return [i for i, reply in enumerate(replies) if isinstance(reply, NoScriptError)]


def _put(replies: list[Any], places: list[int], new: list[Any]) -> None:
    for place, reply in zip(places, new, strict=True):
        replies[place] = reply
