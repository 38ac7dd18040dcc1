"""A real HTTP server on a free port of this machine, for tests that need another side to talk to."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self


@dataclass(frozen=True)
class Request:
    """One request as the server has read it; the names of headers are in lower case."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes


class Exchange:
    """One request and the means to answer it, well or badly."""

    def __init__(self, handler: BaseHTTPRequestHandler, closing: threading.Event, request: Request) -> None:
        self._handler = handler
        self._closing = closing
        self.request = request

    def answer(self, status: int = 200, body: bytes = b"", **headers: str) -> None:
        """Send a whole answer; `content_type="x"` is the header content-type."""
        self.begin(status, len(body), **headers)
        self.write(body)

    def begin(self, status: int, length: int, **headers: str) -> None:
        """Send the head of an answer that announces a body of this length."""
        self._handler.send_response(status)
        for name, value in headers.items():
            self._handler.send_header(name.replace("_", "-"), value)
        self._handler.send_header("content-length", str(length))
        self._handler.end_headers()

    def write(self, data: bytes) -> None:
        """Send bytes as they are."""
        self._handler.wfile.write(data)
        self._handler.wfile.flush()

    def pause(self, secs: float) -> bool:
        """Wait; False when the server closes meanwhile, and waiting makes no sense any more."""
        return not self._closing.wait(secs)

    def cut(self) -> None:
        """Close the connection, whatever was promised."""
        self._handler.close_connection = True


class HttpServer:
    """Calls `respond(exchange)` for every request, and keeps the requests for the test to look at.

    with HttpServer(lambda exchange: exchange.answer(204)) as server:
        call(server.url)
    """

    def __init__(self, respond: Callable[[Exchange], None], *, port: int = 0) -> None:
        self.requests: list[Request] = []
        self._closing = threading.Event()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            timeout = 30
            disable_nagle_algorithm = True  # head and body are two writes, and the second would wait 40 ms

            def _any(self) -> None:
                body = self.rfile.read(int(self.headers.get("content-length") or 0))
                headers = {name.lower(): value for name, value in self.headers.items()}
                request = Request(self.command, self.path, headers, body)
                outer.requests.append(request)
                try:
                    respond(Exchange(self, outer._closing, request))
                except (BrokenPipeError, ConnectionResetError):
                    self.close_connection = True  # the caller has gone, as callers with a time limit do

            do_GET = do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = _any

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self._server.daemon_threads = True
        self._server.block_on_close = False
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)

    @property
    def port(self) -> int:
        """The port that the server listens on."""
        return int(self._server.server_address[1])

    @property
    def url(self) -> str:
        """The URL of the server, without a slash at its end."""
        return f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closing.set()
        self._server.shutdown()
        self._server.server_close()


def say_nothing(exchange: Exchange) -> None:
    """Take the request, and let whoever has sent it wait."""
    exchange.pause(30)
    exchange.cut()
