"""How we talk to the Redis-compatible server: every timeout and retry is set here, on purpose.

The defaults of redis-py suit a cache, not a queue: it repeats commands that must not be repeated, ten times,
and its socket timeout is shorter than what we wait for. So there are two ways in:

* `client(url)` for commands that may be repeated (reads, and scripts that recognise their own repetition);
* `Wire(url)` for the queue protocol: one connection, no repetition, errors as values.
"""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

import redis
from redis.backoff import ExponentialWithJitterBackoff, NoBackoff
from redis.exceptions import (
    BusyLoadingError,
    ClusterDownError,
    ConnectionError,
    MasterDownError,
    NoPermissionError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisError,
    ResponseError,
    TimeoutError,
    TryAgainError,
)
from redis.retry import Retry

from conserver.errors import ServerError

CONNECT_TIMEOUT_SECS = 3.0
REPLY_TIMEOUT_SECS = 10.0

#: Codes by which a server says "not now" rather than "not this": nobody's dead letter.
#: MISCONF: it cannot write its disk. NOREPLICAS, MASTERDOWN, CLUSTERDOWN: its neighbours are gone.
#: NOPERM, or "ACL failure" in a script: a command is denied, for everybody alike, until an operator allows it.
_NOT_NOW = re.compile(
    r"\b(BUSY|MISCONF|NOREPLICAS|MASTERDOWN|CLUSTERDOWN|LOADING|READONLY|OOM|NOAUTH|NOPERM|ACL failure)\b"
)
_QUOTED = re.compile(r"'[^']*'")
_COMMAND = re.compile(r"(?s)^Command # \d+ \(.*\) of pipeline caused error: ")
#: A key that an ACL forbids is "not this": others may go on.
_KEY_DENIED = re.compile(r"permissions to access (a|one of the) key")
#: What redis-py has made a type of, cutting the code off the words.
_TYPES = (
    *(ConnectionError, TimeoutError, OutOfMemoryError, ReadOnlyError, BusyLoadingError, TryAgainError),
    *(ClusterDownError, MasterDownError, NoPermissionError),
)

Command = Sequence[Any]


def is_server_error(error: BaseException) -> bool:
    """Say whether *error* is the server's own trouble (no connection, full, read-only, loading)."""
    if isinstance(error, ServerError):
        return True
    if key_is_denied(str(error)):
        return False
    return isinstance(error, _TYPES) or (isinstance(error, ResponseError) and is_not_now(str(error)))


def is_not_now(words: str) -> bool:
    """Say whether a server's refusal means that it refuses everybody for now."""
    # Inside a script the code may stand in the middle. Names of keys are quoted, and may be any word.
    return not key_is_denied(words) and _NOT_NOW.search(_QUOTED.sub("", words[:300])) is not None


def key_is_denied(words: str) -> bool:
    """Say whether a server's refusal is about one key that an ACL does not allow."""
    return _KEY_DENIED.search(words) is not None


def _options(url: str, name: str) -> dict[str, Any]:
    # A socket file has no network that could go away silently, and redis-py refuses the option there.
    keepalive = {} if url.startswith("unix:") else {"socket_keepalive": True}
    return keepalive | {
        "socket_connect_timeout": CONNECT_TIMEOUT_SECS,
        "client_name": f"conserver:{name}:{socket.gethostname()}:{os.getpid()}".replace(" ", "_"),
        "decode_responses": False,
    }


class _Pipeline(redis.client.Pipeline):
    def execute(self, raise_on_error: bool = True) -> list[Any]:
        with _translated():
            return super().execute(raise_on_error)


class Client(redis.Redis):
    """A redis client whose "not now" is a ServerError, so that it is told from trouble of a link's own."""

    def execute_command(self, *args: Any, **options: Any) -> Any:
        """Send one command; see redis.Redis."""
        with _translated():
            return super().execute_command(*args, **options)  # type: ignore[no-untyped-call]

    def pipeline(self, transaction: bool = True, shard_hint: Any = None) -> Any:
        """Return a pipeline; see redis.Redis."""
        return _Pipeline(self.connection_pool, self.response_callbacks, transaction, shard_hint)


@contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except RedisError as error:
        # In a pipeline redis-py adds the command, and with it what was to be stored.
        error.args = tuple(_COMMAND.sub("", arg) if isinstance(arg, str) else arg for arg in error.args)
        if not is_server_error(error):
            raise
        raise ServerError(str(error)) from error


def client(url: str, name: str, *, max_connections: int = 256) -> Any:
    """Return a Client for commands that may be repeated; replies are bytes.

    A cut connection is repaired and the command sent again, for a few seconds, with jitter. (It is typed as Any, since
    redis-py's types speak of its blocking and its asynchronous client at once.)
    """
    return Client.from_url(
        url,
        **_options(url, name),
        socket_timeout=REPLY_TIMEOUT_SECS,
        max_connections=max_connections,
        health_check_interval=30,
        retry=Retry(ExponentialWithJitterBackoff(cap=1, base=0.02), 5),
        retry_on_error=[TryAgainError],
    )


def once(url: str, name: str, *, timeout_secs: float = REPLY_TIMEOUT_SECS) -> Any:
    """Return a Client that sends each command once: for pushes, probes and locks."""
    return Client.from_url(
        url,
        **_options(url, name),
        socket_timeout=timeout_secs,
        retry=Retry(NoBackoff(), 0),
    )


class Wire:
    """One connection that sends batches of commands and hands back their replies, errors as values.

    Nothing is ever sent twice: after a cut connection the caller decides what to ask again.
    """

    def __init__(self, url: str, name: str, *, resp3: bool = False, timeout_secs: float = REPLY_TIMEOUT_SECS) -> None:
        # No health check: a PING before each batch would be a round trip, and a dead
        # connection shows in the batch itself.
        pool = redis.ConnectionPool.from_url(
            url,
            **_options(url, name),
            socket_timeout=timeout_secs,
            health_check_interval=0,
            protocol=3 if resp3 else 2,
            retry=Retry(NoBackoff(), 0),
        )
        self._connection: Any = pool.make_connection()
        self.address = address(url)

    def call(self, commands: Sequence[Command]) -> list[Any]:
        """Send *commands* in one write and return one reply each; a refused command's reply is its error.

        Raises ServerError if the connection fails; then any of the commands may or may not have been executed.
        """
        connection = self._connection
        # What cannot be packed is the caller's mistake, not the server's trouble.
        packed = connection.pack_commands(commands)
        try:
            connection.send_packed_command(packed, check_health=False)
            return [self._reply() for _ in commands]
        except (RedisError, OSError) as error:
            connection.disconnect()
            raise ServerError(f"server at {self.address}: {error}") from error
        except BaseException:
            # An interrupted read leaves replies on the wire that would answer the next question.
            connection.disconnect()
            raise

    def _reply(self) -> Any:
        try:
            return self._connection.read_response()
        except (ConnectionError, TimeoutError):
            raise
        except RedisError as error:
            return error

    def wait_for_push(self, timeout_secs: float) -> list[str] | None:
        """Wait until the server says that keys have changed which this connection has read (RESP3).

        Return the keys, or an empty list if it does not say which; None if nothing came within the time.
        """
        connection = self._connection
        try:
            if not connection.can_read(timeout_secs):
                return None
            connection._parser.set_invalidation_push_handler(lambda message: message)
            message = connection.read_response(push_request=True)
        except (RedisError, OSError) as error:
            connection.disconnect()
            raise ServerError(f"server at {self.address}: {error}") from error
        keys = message[1] if isinstance(message, list) and len(message) > 1 else None
        return [key.decode("utf-8", "surrogateescape") for key in keys or ()]

    def close(self) -> None:
        """Close the connection; the next call opens a new one."""
        self._connection.disconnect()


def address(url: str) -> str:
    """Return *url* without user, password and query, for messages."""
    parts = urlsplit(url)
    if parts.scheme == "unix":
        return f"unix://{parts.path}"
    port = f":{parts.port}" if parts.port else ""
    return f"{parts.scheme}://{parts.hostname or 'localhost'}{port}{parts.path}"
