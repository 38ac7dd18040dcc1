"""A TCP proxy in front of the real server that loses what it is told to lose."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit


class Proxy:
    """Forwards bytes between clients and the server; `url` is where clients connect."""

    def __init__(self, server_url: str) -> None:
        self._server = urlsplit(server_url)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"redis://127.0.0.1:{self._listener.getsockname()[1]}"
        self._lose_reply = threading.Event()
        self._lose_request = threading.Event()
        self._sockets: list[socket.socket] = []
        self._acceptor = threading.Thread(target=self._accept, daemon=True)
        self._acceptor.start()

    def lose_next_reply(self) -> None:
        """Let the next request through and cut the connection instead of bringing back its reply."""
        self._lose_reply.set()

    def lose_next_request(self) -> None:
        """Cut the connection at the next request, which the server never sees."""
        self._lose_request.set()

    def close(self) -> None:
        """End all connections and take no more."""
        _shut(self._listener)
        self._acceptor.join(10)
        for each in self._sockets:
            _shut(each)

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                server = socket.socket(socket.AF_UNIX if self._server.scheme == "unix" else socket.AF_INET)
                self._sockets += [client, server]
                unix = self._server.scheme == "unix"
                server.connect(self._server.path if unix else (self._server.hostname, self._server.port))
                for source, target, lose in (
                    (client, server, self._lose_request),
                    (server, client, self._lose_reply),
                ):
                    threading.Thread(target=_forward, args=(source, target, lose), daemon=True).start()


def _forward(source: socket.socket, target: socket.socket, lose: threading.Event) -> None:
    with contextlib.suppress(OSError):
        while (data := source.recv(65536)) and not lose.is_set():
            target.sendall(data)
    lose.clear()
    _shut(source)
    _shut(target)


def _shut(each: socket.socket) -> None:
    with contextlib.suppress(OSError):
        each.shutdown(socket.SHUT_RDWR)
    each.close()


@contextmanager
def proxied(server_url: str) -> Iterator[Proxy]:
    """A proxy in front of *server_url* while the block runs."""
    proxy = Proxy(server_url)
    try:
        yield proxy
    finally:
        proxy.close()
