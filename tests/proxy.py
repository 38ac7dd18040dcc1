"""A TCP proxy in front of the real server: it loses, delays, resets, swallows or holds what it is told to."""

from __future__ import annotations

import contextlib
import random
import selectors
import socket
import struct
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import unquote, urlsplit

#: Closing with this sends an RST, and the other side loses what it has not read yet.
_ABORT = struct.pack("ii", 1, 0)
_POLL_SECS = 0.02


class Proxy:
    """Forwards bytes between clients and the server; `url` is where clients connect."""

    def __init__(self, server_url: str) -> None:
        self.point_at(server_url)
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=512)
        self.url = f"redis://127.0.0.1:{self._listener.getsockname()[1]}"
        self.delay_secs = 0.0
        """How long each chunk is under way, in either direction."""
        self.resets = 0
        """How many connections were reset."""
        self._chance = 0.0
        self._random = random.Random()
        self._lose_reply = threading.Event()
        self._lose_request = threading.Event()
        self._swallowing = False
        self._holding = False
        self._open: dict[threading.Thread, list[socket.socket]] = {}
        self._acceptor = threading.Thread(target=self._accept, daemon=True)
        self._acceptor.start()

    def point_at(self, server_url: str) -> None:
        """Bring connections that are made from now on to another server."""
        parts = urlsplit(server_url)
        unix = parts.scheme == "unix"
        self._family = socket.AF_UNIX if unix else socket.AF_INET
        self._server = unquote(parts.path) if unix else (parts.hostname, parts.port)

    def lose_next_reply(self) -> None:
        """Let the next request through and cut the connection instead of bringing back its reply."""
        self._lose_reply.set()

    def lose_next_request(self) -> None:
        """Cut the connection at the next request, which the server never sees."""
        self._lose_request.set()

    def cut(self) -> None:
        """End every connection that there is; new ones may come."""
        for sockets in list(self._open.values()):
            for each in sockets:
                with contextlib.suppress(OSError):
                    each.shutdown(socket.SHUT_RDWR)

    @contextmanager
    def resetting(self, chance: float, seed: int) -> Iterator[None]:
        """Reset a connection (RST) in place of a chunk, in either direction, each with this chance."""
        self._random.seed(seed)
        self._chance = chance
        try:
            yield
        finally:
            self._chance = 0.0

    @contextmanager
    def blackhole(self) -> Iterator[None]:
        """Accept and swallow, answer nothing; a connection that has lost something so stays silent for ever."""
        self._swallowing = True
        try:
            yield
        finally:
            self._swallowing = False

    @contextmanager
    def holding(self) -> Iterator[None]:
        """Keep everything under way; it arrives when the block ends, even if its sender has given up by then."""
        self._holding = True
        try:
            yield
        finally:
            self._holding = False

    def close(self) -> None:
        """End all connections and take no more."""
        self._holding = False
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._acceptor.join(10)
        for thread in list(self._open):
            self.cut()
            thread.join(10)

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                sockets = [client]
                thread = threading.Thread(target=self._serve, args=(client, sockets), daemon=True)
                self._open[thread] = sockets
                thread.start()

    def _serve(self, client: socket.socket, sockets: list[socket.socket]) -> None:
        server = socket.socket(self._family)
        try:
            # Nobody but this thread touches the sockets, so that a close takes effect at once.
            if self._swallowing:
                while _received(client):
                    pass
                return
            server.connect(self._server)
            sockets.append(server)
            self._forward(client, server)
        except OSError:
            pass
        finally:
            for each in (client, server):
                each.close()
            self._open.pop(threading.current_thread(), None)

    def _forward(self, client: socket.socket, server: socket.socket) -> None:
        under_way: deque[tuple[float, socket.socket, bytes]] = deque()
        lost = False
        with selectors.DefaultSelector() as selector:
            selector.register(client, selectors.EVENT_READ, (server, self._lose_request))
            selector.register(server, selectors.EVENT_READ, (client, self._lose_reply))
            while True:
                for key, _ in selector.select(_POLL_SECS if under_way else None):
                    target, lose = key.data
                    data = _received(key.fileobj)
                    if not data:
                        selector.unregister(key.fileobj)
                    elif lose.is_set():
                        lose.clear()
                        return
                    elif self._chance and self._random.random() < self._chance:
                        self.resets += 1
                        for each in (client, server):
                            each.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _ABORT)
                        return
                    lost = lost or (self._swallowing and bool(data))
                    if not lost or not data:
                        under_way.append((time.monotonic() + self.delay_secs, target, data))
                while under_way and not self._holding and under_way[0][0] <= time.monotonic():
                    _, target, data = under_way.popleft()
                    if not data:
                        return
                    # One side may be gone while what it has sent last still has to arrive at the other.
                    with contextlib.suppress(OSError):
                        target.sendall(data)


def _received(source: socket.socket) -> bytes:
    try:
        return source.recv(65536)
    except OSError:
        return b""


@contextmanager
def proxied(server_url: str) -> Iterator[Proxy]:
    """A proxy in front of *server_url* while the block runs."""
    proxy = Proxy(server_url)
    try:
        yield proxy
    finally:
        proxy.close()
