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
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import hiredis
import redis
from redis._parsers.base import BaseParser
from redis.backoff import ExponentialWithJitterBackoff, NoBackoff
from redis.exceptions import (
    AuthenticationError,
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
from redis.sentinel import (
    MasterNotFoundError,
    Sentinel,
    SentinelConnectionPool,
    SentinelManagedConnection,
    SentinelManagedSSLConnection,
)

from conserver import addresses, crashpoints
from conserver.errors import ServerError

CONNECT_TIMEOUT_SECS = 3.0
REPLY_TIMEOUT_SECS = 10.0
#: A sentinel has nothing else to do, and there are others to ask.
SENTINEL_TIMEOUT_SECS = 1.0

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

#: What redis-py, which has the patience, is to try again.
_AGAIN = (ServerError, ConnectionError, TimeoutError, TryAgainError)

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


def _pool(url: str, name: str, **options: Any) -> redis.ConnectionPool:
    """Return the pool of connections to the server at *url*; with sentinels, to the one that they name just then."""
    address = addresses.parse(url)
    client_name = f"conserver:{name}:{socket.gethostname()}:{os.getpid()}".replace(" ", "_")
    # A socket file has no network that could go away silently, and redis-py refuses the option there.
    keepalive = {} if url.startswith("unix:") else {"socket_keepalive": True}
    shared = {"client_name": client_name, "decode_responses": False, **keepalive}
    options = {"socket_connect_timeout": CONNECT_TIMEOUT_SECS, **shared, **options, **address.options}
    if not address.service:
        return redis.ConnectionPool(**options)
    once = {"retry": Retry(NoBackoff(), 0), "socket_timeout": SENTINEL_TIMEOUT_SECS}
    theirs = {**shared, **once, "socket_connect_timeout": SENTINEL_TIMEOUT_SECS, **address.sentinel_options}
    kind = _FollowingTls if address.tls else _Following
    sentinels = _Sentinels(address.sentinels, sentinel_kwargs=theirs)  # type: ignore[no-untyped-call]
    return SentinelConnectionPool(address.service, sentinels, connection_class=kind, **options)  # type: ignore[no-untyped-call]


def place(url: str, name: str) -> tuple[type[Any], dict[str, Any]]:
    """Return the kind of connection (of redis.connection) that *url* wants, and its options; it asks the sentinels."""
    pool: Any = _pool(url, name)
    kind, options = pool.connection_class, dict(pool.connection_kwargs)
    if issubclass(kind, SentinelManagedConnection):
        with _translated():
            options["host"], options["port"] = pool.get_master_address()
        options.pop("connection_pool", None)
        kind = redis.SSLConnection if issubclass(kind, SentinelManagedSSLConnection) else redis.Connection
    return kind, options


def reply_reader() -> hiredis.Reader:
    """Return a reader of replies whose errors are those of redis-py."""
    return hiredis.Reader(replyError=BaseParser.parse_error)


class _Sentinels(Sentinel):
    def discover_master(self, service_name: str) -> tuple[str, int]:
        """Return where the server is; redis-py's own words for a failure leave out what each sentinel says."""
        told = []
        for n, sentinel in enumerate(self.sentinels):
            at = "{host}:{port}".format_map(sentinel.connection_pool.connection_kwargs)
            try:
                watched: Any = sentinel.sentinel_masters()
            except AuthenticationError:
                told.append(f"sentinel {at} wants another sentinel_password")
                continue
            except RedisError as error:
                told.append(f"sentinel {at}: {error}".rstrip("."))
                continue
            state = watched.get(service_name)
            if state is None:
                told.append(f"sentinel {at} watches {', '.join(map(repr, watched)) or 'nothing'}")
            elif not self.check_master_state(state, service_name):  # type: ignore[no-untyped-call]
                told.append(f"sentinel {at} takes the server at {state['ip']}:{state['port']} for dead")
            else:
                # The next question goes to one that answers.
                self.sentinels[0], self.sentinels[n] = sentinel, self.sentinels[0]
                return state["ip"], state["port"]
        raise MasterNotFoundError(f"no server {service_name!r} is known: {'; '.join(told)}")


class _Following(SentinelManagedConnection):
    def send_packed_command(self, command: Any, check_health: bool = True) -> None:
        """Ask the sentinels before each new connection: redis-py 8 goes back to where the server was."""
        self.connect()  # type: ignore[no-untyped-call]
        super().send_packed_command(command, check_health)  # type: ignore[no-untyped-call]


class _FollowingTls(_Following, SentinelManagedSSLConnection):
    pass


class _Pipeline(redis.client.Pipeline):
    def execute(self, raise_on_error: bool = True) -> list[Any]:
        with _translated():
            return super().execute(raise_on_error)


class Client(redis.Redis):
    """A redis client whose "not now" is a ServerError, so that it is told from trouble of a link's own."""

    #: Connections of its own, for commands that may be repeated: a round trip by one costs half as much as by redis-py.
    new_wire: Callable[[], Wire] | None = None

    def execute_command(self, *args: Any, **options: Any) -> Any:
        """Send one command; see redis.Redis."""
        with _translated():
            if self.new_wire is not None and " " not in args[0] and options.keys() <= {"keys"}:
                [reply] = self._batch(self.new_wire, [args]) or [ServerError()]
                if not isinstance(reply, _AGAIN):
                    if isinstance(reply, Exception):
                        raise reply
                    callback = self.response_callbacks.get(args[0])  # type: ignore[no-untyped-call]
                    return callback(reply) if callback else reply
            return super().execute_command(*args, **options)  # type: ignore[no-untyped-call]

    def _batch(self, new_wire: Callable[[], Wire], commands: Sequence[Command]) -> list[Any] | None:
        """Return the replies of the short way, or None if its connection has failed."""
        spare: deque[Wire] = self.__dict__.setdefault("_spare", deque())
        try:
            wire = spare.pop()
        except IndexError:
            wire = new_wire()
        try:
            return wire.call(commands)
        except ServerError:
            return None
        finally:
            # Also one that was cut: it connects anew when it is used again.
            spare.append(wire)

    def call(self, commands: Sequence[Command]) -> list[Any]:
        """Send *commands* in one write and return one reply each; a refused command's reply is its error."""
        if self.new_wire is not None:
            quick = self._batch(self.new_wire, commands)
            if quick is not None:
                return quick
        pipe = self.pipeline(transaction=False)
        for command in commands:
            pipe.execute_command(*command)
        replies: list[Any] = pipe.execute(raise_on_error=False)
        return replies

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


def client(
    url: str, name: str, *, max_connections: int = 256, timeout_secs: float = REPLY_TIMEOUT_SECS, retries: int = 5
) -> Any:
    """Return a Client for commands that may be repeated; replies are bytes.

    A cut connection is repaired and the command sent again, for a few seconds, with jitter; *timeout_secs* is for each
    time. (It is typed as Any, since redis-py's types speak of its blocking and its asynchronous client at once.)
    """
    pool = _pool(
        url,
        name,
        socket_timeout=timeout_secs,
        max_connections=max_connections,
        health_check_interval=30,
        protocol=2,
        retry=Retry(ExponentialWithJitterBackoff(cap=1, base=0.02), retries),
        retry_on_error=[TryAgainError],
    )
    made: Any = Client.from_pool(pool)
    made.new_wire = lambda: Wire(url, name, timeout_secs=timeout_secs)
    return made


def once(
    url: str, name: str, *, timeout_secs: float | None = REPLY_TIMEOUT_SECS, kind: type[Client] = Client, **more: Any
) -> Any:
    """Return a Client that sends each command once: for pushes, probes and locks; *more* are options of redis-py."""
    return kind.from_pool(_pool(url, name, socket_timeout=timeout_secs, retry=Retry(NoBackoff(), 0), **more))


class Wire:
    """One connection that sends batches of commands and hands back their replies, errors as values.

    Nothing is ever sent twice: after a cut connection the caller decides what to ask again.
    """

    def __init__(self, url: str, name: str, *, resp3: bool = False, timeout_secs: float = REPLY_TIMEOUT_SECS) -> None:
        # No health check: a PING before each batch would be a round trip, and a dead
        # connection shows in the batch itself.
        pool = _pool(
            url,
            name,
            socket_timeout=timeout_secs,
            health_check_interval=0,
            protocol=3 if resp3 else 2,
            retry=Retry(NoBackoff(), 0),
        )
        self._connection: Any = pool.make_connection()
        self.address = address(url)

    def call(self, commands: Sequence[Command], meanwhile: Callable[[], None] | None = None) -> list[Any]:
        """Send *commands* in one write and return one reply each; a refused command's reply is its error.

        *meanwhile* is done while the server works.

        Raises ServerError if the connection fails; then any of the commands may or may not have been executed.
        """
        connection = self._connection
        # What cannot be packed is the caller's mistake, not the server's trouble.
        packed = [hiredis.pack_command(tuple(command)) for command in commands]
        try:
            connection.send_packed_command(packed if len(packed) == 1 else [b"".join(packed)], check_health=False)
            if crashpoints.ARMED:
                crashpoints.reach_each(commands, "sent")
            if meanwhile is not None:
                meanwhile()
            replies = [self._reply() for _ in commands]
            if crashpoints.ARMED:
                crashpoints.reach_each(commands, "replied")
            return replies
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


def check(url: str) -> None:
    """Raise NotAnAddress, a ValueError, if *url* is not the URL of a server; its words hold no secret."""
    addresses.parse(url)


def address(url: str) -> str:
    """Return *url* without user, password and options, for messages."""
    return addresses.shown(url)
