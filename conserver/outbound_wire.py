"""One HTTP exchange within its time and size, to an address that was checked: the lower half of `outbound`.

`send` does the exchange, `_Backend` resolves, checks and connects. The address that was checked is the one that is
connected to, so a name that changes its mind in between (DNS rebinding) gains nothing.
"""

from __future__ import annotations

import atexit
import functools
import os
import ssl
import threading
import time
import urllib.request
import weakref
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from socket import SOCK_STREAM, getaddrinfo
from typing import Any, BinaryIO

import httpcore
import httpx

from conserver.deadline import thread_deadline
from conserver.errors import OutboundError, OutboundRefused, OutboundTooLarge
from conserver.outbound_policy import OutboundPolicy


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What one request may cost. `total_secs` is from the first connect to the last byte, redirects included.

    With no redirects allowed, one is an error status, whose OutboundStatus has the `location`.
    """

    connect_secs: float = 5.0
    read_secs: float = 30.0
    total_secs: float = 60.0
    max_bytes: int = 64 * 1024 * 1024
    max_redirects: int = 5

    @classmethod
    def within(cls, secs: float, *, max_bytes: int = max_bytes) -> Limits:
        """Return the limits of a request that may take so long, whatever takes the time."""
        return cls(connect_secs=min(cls.connect_secs, secs), read_secs=secs, total_secs=secs, max_bytes=max_bytes)


class Upload:
    """A body that is read while it is sent, and can be sent again: bytes, and whole files."""

    def __init__(self, *parts: bytes | BinaryIO) -> None:
        self._parts = parts

    def __len__(self) -> int:
        return sum(len(part) if isinstance(part, bytes) else part.seek(0, os.SEEK_END) for part in self._parts)

    def __iter__(self) -> Iterator[bytes]:
        for part in self._parts:
            if isinstance(part, bytes):
                yield part
                continue
            part.seek(0)
            while chunk := part.read(65536):
                yield chunk


def send(
    sent: httpx.Request,
    policy: OutboundPolicy | None,
    limits: Limits,
    deadline: float,
    where: str,
    into: BinaryIO | None = None,
    ca_file: str | None = None,
) -> httpx.Response:
    """Do one exchange: connect, send, and read the whole answer, within the limits.

    With *into* the body of a 2xx answer is written there, and the response has none. With *ca_file* the certificate
    has to be signed by an authority in that file.
    """
    url = sent.url
    if url.scheme not in ("http", "https") or not url.host:
        raise OutboundRefused(f"{where}: {url.scheme or 'no scheme'!r} is not http or https, or there is no host")
    if url.port is not None and not 0 < url.port < 65536:
        raise OutboundRefused(f"{where}: there is no port {url.port}")
    if policy is not None and url.scheme == "http" and not policy.allow_http:
        raise OutboundRefused(f"{where}: http is not allowed, only https (outbound.allow_http)")
    sent.headers["accept-encoding"] = "gzip"
    core = httpcore.Request(
        method=sent.method,
        url=httpcore.URL(scheme=url.raw_scheme, host=url.raw_host, port=url.port, target=url.raw_path),
        headers=sent.headers.raw,
        # What is bytes is sent as such; an Upload, or what an SDK builds from files, as it is read.
        content=sent.read() if isinstance(sent.stream, httpx.ByteStream) else sent.stream,
        extensions={
            "timeout": {
                "connect": limits.connect_secs,
                "pool": limits.connect_secs,
                "read": limits.read_secs,
                "write": limits.read_secs,
            }
        },
    )
    _time.deadline = min(deadline, thread_deadline())
    try:
        answer = _pool(policy, _proxy_for(url) if policy is None else None, ca_file).handle_request(core)
        try:
            headers = httpx.Headers(answer.headers)
            sink = into if 200 <= answer.status < 300 else None
            content = _read_body(answer, headers, limits, where, sink)
        finally:
            answer.close()
    except httpcore.LocalProtocolError:
        # Not chained: its text quotes the header or URL that it refuses, which may be secret.
        raise OutboundRefused(f"{where}: a header or the URL is not valid in HTTP") from None
    except _HTTPCORE_ERRORS as error:
        raise getattr(httpx, type(error).__name__)(str(error), request=sent) from error
    finally:
        _time.deadline = None
    for name in ("content-encoding", "content-length", "transfer-encoding"):
        headers.pop(name, None)  # they described the bytes on the wire
    return httpx.Response(answer.status, headers=headers, content=content, request=sent)


_HTTPCORE_ERRORS = (
    *(httpcore.TimeoutException, httpcore.NetworkError, httpcore.ProtocolError),
    *(httpcore.ProxyError, httpcore.UnsupportedProtocol),
)


def _read_body(
    answer: httpcore.Response, headers: httpx.Headers, limits: Limits, where: str, into: BinaryIO | None
) -> bytes:
    """Read and unpack an answer; what it unpacks to is bounded as well, chunk by chunk.

    Returns it, unless it is written *into* a file: then that has what came before an error, too.
    """
    encoding = headers.get("content-encoding", "identity").strip().lower()
    if encoding not in ("identity", "gzip", "x-gzip", ""):
        raise OutboundRefused(f"{where}: the answer is packed with {encoding!r}, which was not asked for")
    unpacker = zlib.decompressobj(31) if "gzip" in encoding else None
    received = unpacked = 0
    body = bytearray()
    for chunk in answer.iter_stream():
        received += len(chunk)
        try:
            data = chunk if unpacker is None else unpacker.decompress(chunk, limits.max_bytes + 1 - unpacked)
        except zlib.error as error:
            raise httpcore.RemoteProtocolError(f"the answer is not gzip: {error}") from error
        unpacked += len(data)
        if into is None:
            body += data
        else:
            into.write(data)
        if max(received, unpacked) > limits.max_bytes:
            raise OutboundTooLarge(f"{where}: the answer is larger than {limits.max_bytes} bytes")
    if unpacker is not None and received and not unpacker.eof:
        raise httpcore.RemoteProtocolError("the packed answer ends too early")
    return bytes(body)


def origin(url: httpx.URL) -> str:
    """Return scheme, host and port; a URL's `netloc` leaves its credentials out."""
    return f"{url.scheme}://{url.netloc.decode('ascii', 'replace')}"


class _Pools:
    """The connections of one thread; they end with it.

    Threads that share a pool of httpcore close each other's connections: one that has just been given to a request
    still counts as idle, and whoever tidies up at that moment closes it under that request's hands.
    """

    def __init__(self) -> None:
        self._pools: dict[tuple[OutboundPolicy | None, str | None, str | None], httpcore.ConnectionPool] = {}

    def get(self, policy: OutboundPolicy | None, proxy: str | None, ca_file: str | None) -> httpcore.ConnectionPool:
        # One pool a policy: a connection that a laxer one opened must not serve a stricter one.
        if (policy, proxy, ca_file) not in self._pools:
            self._pools[policy, proxy, ca_file] = _new_pool(policy, proxy, ca_file)
        return self._pools[policy, proxy, ca_file]

    def close(self) -> None:
        while self._pools:
            self._pools.popitem()[1].close()

    __del__ = close


_mine = threading.local()
_everybodys: weakref.WeakSet[_Pools] = weakref.WeakSet()
_everybodys_lock = threading.Lock()


def _pool(policy: OutboundPolicy | None, proxy: str | None, ca_file: str | None) -> httpcore.ConnectionPool:
    if getattr(_mine, "pid", None) != os.getpid():
        # Not those that came along with a fork: over them, each process could get the answers to the other.
        _mine.pid, _mine.pools = os.getpid(), _Pools()
        with _everybodys_lock:
            _everybodys.add(_mine.pools)
    pool: httpcore.ConnectionPool = _mine.pools.get(policy, proxy, ca_file)
    return pool


def _new_pool(policy: OutboundPolicy | None, proxy: str | None, ca_file: str | None) -> httpcore.ConnectionPool:
    shared: dict[str, Any] = {
        "ssl_context": _tls() if ca_file is None else _tls_of(ca_file),
        "max_connections": None,
        "max_keepalive_connections": 8,
        "keepalive_expiry": 30.0,
        "network_backend": _Backend(policy),
    }
    if proxy is None:
        return httpcore.ConnectionPool(**shared)
    url = httpx.URL(proxy if "://" in proxy else f"http://{proxy}")
    if url.scheme not in ("http", "https"):
        raise OutboundError(f"the proxy of the environment is a {url.scheme} one; only http and https are supported")
    login = (url.username, url.password) if url.userinfo else None
    tls = _tls() if url.scheme == "https" else None
    return httpcore.HTTPProxy(proxy_url=origin(url), proxy_auth=login, proxy_ssl_context=tls, **shared)


@atexit.register
def close_connections() -> None:
    """Close the connections that are kept for further requests."""
    with _everybodys_lock:
        everybodys = list(_everybodys)
    for pools in everybodys:
        pools.close()


@functools.lru_cache(maxsize=1)
def _tls() -> ssl.SSLContext:
    return httpx.create_ssl_context()


def _tls_of(ca_file: str) -> ssl.SSLContext:
    try:
        return _new_tls_of(ca_file, os.stat(ca_file).st_mtime_ns)
    except OSError as error:
        reason = error.strerror or "it holds no certificate"
        raise OutboundRefused(f"the file with authorities {ca_file} cannot be used: {reason}") from error


@functools.lru_cache(maxsize=16)
def _new_tls_of(ca_file: str, _changed_ns: int) -> ssl.SSLContext:
    # Of the time of its last change as well, so that a new file counts without a new process.
    return ssl.create_default_context(cafile=ca_file)


def _proxy_for(url: httpx.URL) -> str | None:
    """Return the proxy that the environment names for a trusted URL.

    Untrusted URLs go without: behind a proxy, somebody else would resolve the name that we have to check.
    """
    if url.host == "localhost" or url.host.startswith("127.") or url.host == "::1":
        return None
    proxies = urllib.request.getproxies()
    proxy = proxies.get(url.scheme) or proxies.get("all")
    return proxy if proxy and not urllib.request.proxy_bypass(url.host) else None


class _Time(threading.local):
    deadline: float | None = None

    def left(self, secs: float | None, too_late: type[Exception]) -> float | None:
        if self.deadline is None:
            return secs
        left = self.deadline - time.monotonic()
        if left <= 0:
            raise too_late("the time for the whole request is over")
        return left if secs is None else min(secs, left)


# Of the exchange that this thread is in. httpcore has time-outs for each step, but a server that sends a byte now and
# then never meets one of them; so every step is also told how much is left of the whole.
_time = _Time()


class _Backend(httpcore.NetworkBackend):
    """Resolves a name, keeps the addresses that the policy admits, and connects to exactly those."""

    def __init__(self, policy: OutboundPolicy | None) -> None:
        self._policy = policy
        self._sockets = httpcore.SyncBackend()

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.NetworkStream:
        addresses = resolve(host, port)
        if self._policy is not None:
            addresses = [address for address in addresses if self._policy.admits(host, address)]
            if not addresses:
                raise OutboundRefused(
                    f"{host}: this host has no public address, and the URL comes from outside; "
                    "if it may be reached, list it under outbound.allow_private"
                )
        failure: Exception | None = None
        for address in addresses:
            try:
                left = _time.left(timeout, httpcore.ConnectTimeout)
                return _Stream(self._sockets.connect_tcp(address, port, left, local_address, socket_options))
            except (httpcore.ConnectError, httpcore.ConnectTimeout) as error:
                failure = error
        raise failure or httpcore.ConnectError(f"{host} has no address")


class _Stream(httpcore.NetworkStream):
    """A connection whose every step ends when the time of the whole exchange does."""

    def __init__(self, stream: httpcore.NetworkStream) -> None:
        self._stream = stream

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return self._stream.read(max_bytes, _time.left(timeout, httpcore.ReadTimeout))

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        for start in range(0, len(buffer), 16384):  # in pieces, so that a slow reader is noticed in between
            self._stream.write(buffer[start : start + 16384], _time.left(timeout, httpcore.WriteTimeout))

    def close(self) -> None:
        self._stream.close()

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.NetworkStream:
        left = _time.left(timeout, httpcore.ConnectTimeout)
        return _Stream(self._stream.start_tls(ssl_context, server_hostname, left))

    def get_extra_info(self, info: str) -> Any:
        return self._stream.get_extra_info(info)


def resolve(host: str, port: int) -> list[str]:
    """Return the addresses of a host, in the order in which to try them."""
    try:
        found = getaddrinfo(host, port, type=SOCK_STREAM)
    except (OSError, ValueError) as error:
        raise httpcore.ConnectError(f"cannot resolve {host}: {error}") from error
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))
