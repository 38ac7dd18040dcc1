"""/livez, /readyz and /metrics of a supervisor, on a loopback port of their own."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import msgspec

log = logging.getLogger(__name__)

HOST = "127.0.0.1"


class Health:
    """A small HTTP server; *ready* says whether this host works and why not, *metrics* gives Prometheus' text."""

    def __init__(
        self, port: int, ready: Callable[[], tuple[bool, dict[str, Any]]], metrics: Callable[[], bytes]
    ) -> None:
        answers: dict[str, Callable[[], tuple[int, str, bytes]]] = {
            "/livez": lambda: (200, "application/json", b'{"status":"alive"}'),
            "/readyz": lambda: _ready(*ready()),
            "/metrics": lambda: (200, "text/plain; version=0.0.4; charset=utf-8", metrics()),
        }

        class Handler(BaseHTTPRequestHandler):
            timeout = 10

            def do_GET(self) -> None:
                answer = answers.get(self.path.split("?")[0])
                if answer is None:
                    status, kind, body = 404, "application/json", b'{"detail":"there are /livez, /readyz and /metrics"}'
                else:
                    status, kind, body = self.answer(answer)
                self.send_response(status)
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def answer(self, answer: Callable[[], tuple[int, str, bytes]]) -> tuple[int, str, bytes]:
                try:
                    return answer()
                except Exception:
                    log.exception("%s could not be answered", self.path)
                    return 500, "application/json", b'{"detail":"an error; the log says which"}'

            def log_message(self, format: str, *args: Any) -> None:
                log.debug(format, *args)

        try:
            self._server = ThreadingHTTPServer((HOST, port), Handler)
        except OSError as error:
            # Work matters more than its numbers; the port that is used instead stands in the log and in `status`.
            log.warning("port %d for /metrics is taken (%s): a free one is used instead", port, error.strerror)
            self._server = ThreadingHTTPServer((HOST, 0), Handler)
        self._server.daemon_threads = True
        self.port: int = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, name="health", daemon=True).start()

    def close(self) -> None:
        """Stop answering."""
        self._server.shutdown()
        self._server.server_close()


def _ready(ready: bool, details: dict[str, Any]) -> tuple[int, str, bytes]:
    return 200 if ready else 503, "application/json", msgspec.json.encode({"ready": ready, **details})
