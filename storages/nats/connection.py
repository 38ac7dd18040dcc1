"""The connections of a process to NATS.

nats-py speaks from within an event loop alone, so one runs on a thread of its own, and saves hand it what they ask.
"""

import asyncio
import atexit
import contextlib
import os
import random
import re
import ssl
import threading
from functools import cache
from pathlib import Path
from typing import Any

from conserver import StorageError
from nats import errors
from nats.aio.client import Client, RawCredentials

from .server import Away, NoStream, Server

_MOST_CONNECT_SECS = 10.0
_JWT = re.compile(r"BEGIN NATS USER JWT-*\s+(\S+)\s")
_SEED = re.compile(r"BEGIN USER NKEY SEED-*\s+(SU[A-Z2-7]{56})\s")


class Connection:
    """A connection for all threads of this process; it is made when it is needed, and made anew when it has ended."""

    def __init__(self, server: Server, loop: asyncio.AbstractEventLoop) -> None:
        self._server = server
        self._loop = loop
        self._client: _Client | None = None
        self._connecting: asyncio.Task[_Client] | None = None
        self.has_stream = False
        """For the caller: whether the stream need not be looked for any more."""

    def ask(self, subject: str, body: bytes, headers: dict[str, str] | None) -> bytes:
        """Send a request and return its answer.

        Away if there is none, NoStream if nobody listens to the subject, StorageError if it is of no use to ask again.
        """
        asked = asyncio.run_coroutine_threadsafe(self._ask(subject, body, headers), self._loop)
        try:
            # Both parts of it have a limit of their own; this is for a loop that hangs.
            return asked.result(2 * self._server.timeout + 5)
        except TimeoutError:
            asked.cancel()
            raise Away("the event loop does not answer") from None

    async def close(self) -> None:
        """End the connection, if there is one."""
        if self._client is not None:
            await self._client.close()
            await asyncio.sleep(0)  # in which its tasks see that they are cancelled

    async def _ask(self, subject: str, body: bytes, headers: dict[str, str] | None) -> bytes:
        client = await self._connected()
        size = len(body) + sum(len(f"{name}: {value}\r\n".encode()) for name, value in (headers or {}).items()) + 12
        if size > client.max_payload:
            raise StorageError(
                f"the message has {size:,} bytes, and the server allows {client.max_payload:,}; raise its max_payload, "
                "or set payload to uuid"
            )
        try:
            return await client.ask(subject, body, headers, self._server.timeout)
        except TimeoutError:
            # It may be dead, and what is still to be sent over it must not arrive at some later time.
            await client.close()
            raise Away(f"no answer within {self._server.timeout:g} s") from None
        except errors.NoRespondersError:
            raise NoStream(f"nobody takes subject {subject}; is there a stream for it, and has it a leader?") from None
        except _Denied as error:
            raise StorageError(f"{_words(error)}; let the user do that") from error
        except (errors.Error, OSError) as error:
            raise Away(f"the connection has ended ({_words(error)})") from error

    async def _connected(self) -> "_Client":
        if self._client is not None and not self._client.is_closed:
            return self._client
        if self._connecting is None:
            # One for all who wait for it: to a server that says nothing they would wait one after the other.
            self._connecting = asyncio.create_task(_connect(self._server))
            self._connecting.add_done_callback(self._has_connected)
        try:
            return await asyncio.shield(self._connecting)
        except StorageError as error:
            raise StorageError(str(error)) from error.__cause__
        except Away as error:
            raise Away(str(error)) from error.__cause__

    def _has_connected(self, task: "asyncio.Task[_Client]") -> None:
        self._connecting = None
        if not task.cancelled() and task.exception() is None:
            self._client = task.result()


class _Denied(errors.Error):
    """The user has no right to ask this, or to listen for an answer."""


class _Client(Client):
    """A client that keeps nothing for later: what waits when its connection ends is told so at once."""

    def __init__(self, *, must_be_encrypted: bool) -> None:
        super().__init__()
        self._must_be_encrypted = must_be_encrypted
        self._asking: dict[asyncio.Future[Exception], str] = {}
        self.problem: Exception | None = None
        """The last one that was noted."""

    async def ask(self, subject: str, body: bytes, headers: dict[str, str] | None, timeout: float) -> bytes:
        """Send a request and return its answer; an exception of nats-py, or TimeoutError, if there is none."""
        trouble: asyncio.Future[Exception] = asyncio.get_running_loop().create_future()
        self._asking[trouble] = subject
        request = asyncio.create_task(self.request(subject, body, timeout=timeout, headers=headers))
        request.add_done_callback(lambda task: task.cancelled() or task.exception())
        waiting: set[asyncio.Future[Any]] = {request, trouble}
        try:
            await asyncio.wait(waiting, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
        finally:
            del self._asking[trouble]
            request.cancel()
        if request.done():
            return request.result().data
        raise trouble.result() if trouble.done() else TimeoutError

    async def note(self, error: Exception) -> None:
        """Take note of what nats-py cannot tell to anybody else: the server's answer to one who may not ask."""
        self.problem = error
        text = str(error)  # the server's, in small letters
        # Who may not listen for answers gets none, and is told so only once.
        is_deaf = 'permissions violation for subscription to "' in text
        for trouble, subject in self._asking.items():
            if is_deaf or f'permissions violation for publish to "{subject.lower()}"' in text:
                _set(trouble, _Denied(text))
        if is_deaf:
            await self.close()

    # These two belong to nats-py. The first makes sure that nothing is said to a server that was to encrypt and does
    # not: nats-py does what the server says. The second is the way on which all connections end: nats-py would send
    # what is left before, for ever if nobody takes it, and those who wait for an answer would go on waiting.

    def _connect_command(self) -> bytes:
        if self._must_be_encrypted and not self._server_info.get("tls_required"):
            raise errors.SecureConnWantedError
        return super()._connect_command()

    async def _close(self, status: int, do_cbs: bool = True) -> None:
        self._pending, self._pending_data_size = [], 0
        writer = getattr(self._transport, "_io_writer", None)
        if writer is not None:
            writer.transport.abort()
        self._transport = None  # nobody waits for its end, which after a TLS handshake that failed never comes
        for trouble in self._asking:
            _set(trouble, self.last_error or errors.ConnectionClosedError())
        await super()._close(status, do_cbs)


def _set(trouble: "asyncio.Future[Exception]", error: Exception) -> None:
    if not trouble.done():
        trouble.set_result(error)


async def _connect(server: Server) -> _Client:
    """Return a client of one of the servers."""
    login = await asyncio.to_thread(_login, server)
    secs = min(_MOST_CONNECT_SECS, server.timeout / len(server.servers))
    problems = []
    # In any order, so that processes do not all go to the first one.
    for url in random.sample(server.servers, len(server.servers)):
        client = _Client(must_be_encrypted=server.must_be_encrypted)
        try:
            async with asyncio.timeout(secs):
                await client.connect(
                    [url],
                    name="conserver",
                    error_cb=client.note,
                    inbox_prefix=server.inbox_prefix,
                    connect_timeout=secs,  # type: ignore[arg-type]
                    ping_interval=20,
                    # A new connection is made here, and by those who wait for it.
                    allow_reconnect=False,
                    max_reconnect_attempts=1,
                    reconnect_time_wait=0,
                    **login,
                )
            return client
        except (errors.Error, OSError, ValueError) as error:  # TimeoutError is an OSError
            problems.append((url, client.problem if isinstance(error, errors.NoServersError) else error))
            await client.close()
        except BaseException:
            await client.close()
            raise
    raise _unconnected(problems)


def _unconnected(problems: list[tuple[str, Exception | None]]) -> Exception:
    """Return what to raise when no server has taken us: an Away if one of them may do so later."""
    advice = [_advice(error) for _, error in problems]
    told = "; ".join(
        f"{url}: {_words(error)}{f'; {cure}' if cure else ''}"
        for (url, error), cure in zip(problems, advice, strict=True)
    )
    problem = StorageError(told) if all(advice) else Away(told)
    problem.__cause__ = problems[-1][1]
    return problem


def _advice(error: Exception | None) -> str:
    """Say what to do where it is of no use to try again."""
    if isinstance(error, errors.SecureConnWantedError):
        return "let the server require TLS, or give its address as nats:// without tls_ca and tls_cert"
    if isinstance(error, ssl.SSLCertVerificationError):
        return "check tls_ca, and whether the server is called so in its certificate"
    if isinstance(error, errors.Error) and "authorization violation" in str(error).lower():
        return "check user, password, token, NKey or credentials"
    return ""


def _words(error: Exception | None) -> str:
    if isinstance(error, TimeoutError):
        return "no answer in time"
    return " ".join(str(error).removeprefix("nats: ").split())[:300] or type(error).__name__


def _login(server: Server) -> dict[str, Any]:
    """Return what nats-py needs to log in."""
    login: dict[str, Any] = {"tls": _tls(server)}
    if server.user and server.password:
        login |= {"user": server.user, "password": server.password.get_secret_value()}
    elif server.token:
        login["token"] = server.token.get_secret_value()
    elif server.nkey_seed:
        login["nkeys_seed_str"] = server.nkey_seed.get_secret_value().strip()
    elif server.credentials:
        login["user_credentials"] = _credentials("credentials", server.credentials.get_secret_value())
    elif server.credentials_path:
        try:
            text = Path(server.credentials_path).expanduser().read_text("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is no text"
            raise StorageError(f"credentials_path: cannot read {server.credentials_path}: {reason}") from None
        login["user_credentials"] = _credentials("credentials_path", text)
    return login


def _credentials(option: str, text: str) -> RawCredentials:
    # As nats-py reads them: it looks for ever in those that have no JWT, and wants no other line endings.
    jwt, seed = _JWT.search(f"{text}\n"), _SEED.search(f"{text}\n")
    if not jwt or not seed:
        raise StorageError(f"{option}: there is no JWT of a user with its seed; it should be as `nsc` writes it")
    return RawCredentials(f"-----BEGIN NATS USER JWT-----\n{jwt[1]}\n-----BEGIN USER NKEY SEED-----\n{seed[1]}\n")


def _tls(server: Server) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=server.tls_ca)
        if server.tls_cert:
            context.load_cert_chain(server.tls_cert, server.tls_key)
    except OSError as error:  # SSLError is one
        files = ", ".join(file for file in (server.tls_ca, server.tls_cert, server.tls_key) if file)
        raise StorageError(f"the files for TLS ({files}) cannot be used: {error.strerror or error}") from None
    return context


# One for each process and its options


_making = threading.Lock()
# A fork while another thread holds it would leave the child without a way in.
os.register_at_fork(before=_making.acquire, after_in_parent=_making.release, after_in_child=_making.release)


def connection(server: Server) -> Connection:
    """Return the connection of this process for these options; one that came along with a fork is left alone."""
    with _making:
        return _new_connection(server, os.getpid())


@cache
def _new_connection(server: Server, pid: int) -> Connection:
    loop = _loop(pid)
    made = Connection(server, loop)
    atexit.register(_close, made, loop, pid)
    return made


@cache
def _loop(pid: int) -> asyncio.AbstractEventLoop:
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="storage-nats", daemon=True)
    thread.start()
    atexit.register(_stop, loop, thread, pid)  # first, so it is called after the connections are closed
    return loop


def _close(made: Connection, loop: asyncio.AbstractEventLoop, pid: int) -> None:
    if os.getpid() == pid:
        with contextlib.suppress(Exception):
            asyncio.run_coroutine_threadsafe(made.close(), loop).result(2)


def _stop(loop: asyncio.AbstractEventLoop, thread: threading.Thread, pid: int) -> None:
    if os.getpid() == pid:
        loop.call_soon_threadsafe(loop.stop)
        thread.join(2)
        if not loop.is_running():
            loop.close()
