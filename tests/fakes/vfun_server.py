"""A fake vfun: takes audio as a multipart form, and answers with a transcript in the World Transcription Format.

Its transcript depends on the audio alone. It misbehaves on order, one order a request, first come first served:

    with VfunServer() as vfun:
        vfun.order(status(503), double_encoded, ok)
"""

from __future__ import annotations

import email.policy
import json
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from email.parser import BytesParser
from typing import Any

from tests.fakes.http_server import Exchange, HttpServer, Request

Order = Callable[[Exchange], None]


@dataclass(frozen=True)
class Form:
    """What a request holds: its fields, and the file with its name and media type."""

    fields: dict[str, str]
    content: bytes
    filename: str
    mediatype: str


class VfunServer(HttpServer):
    """Answers POST /wtf."""

    def __init__(self) -> None:
        super().__init__(self._respond)
        self._orders: deque[Order] = deque()

    @property
    def wtf_url(self) -> str:
        """What goes into the option `vfun-server-url`."""
        return f"{self.url}/wtf"

    @property
    def forms(self) -> list[Form]:
        """The forms of all requests so far."""
        return [form_of(request) for request in self.requests]

    def order(self, *orders: Order) -> None:
        """Queue what is to happen to the next requests; after that, all is well again."""
        self._orders.extend(orders)

    def _respond(self, exchange: Exchange) -> None:
        (self._orders.popleft() if self._orders else ok)(exchange)


def form_of(request: Request) -> Form:
    """Take a multipart form apart."""
    head = f"content-type: {request.headers['content-type']}\r\n\r\n".encode()
    parts = BytesParser(policy=email.policy.HTTP).parsebytes(head + request.body)
    fields: dict[str, str] = {}
    file: Any = None
    for part in parts.iter_parts():
        name = part.get_param("name", header="content-disposition")
        if name == "file-binary":
            file = part
        else:
            fields[str(name)] = part.get_content().strip()
    return Form(fields, file.get_payload(decode=True), file.get_filename(), file.get_content_type())


def transcript(request: Request) -> dict[str, Any]:
    """Return the transcript for a request: how much audio there was."""
    form = form_of(request)
    text = f"{len(form.content)} bytes were said"
    return {
        "transcript": {"text": text, "language": "en", "duration": 1.0, "confidence": 0.9},
        "segments": [{"id": 0, "start": 0.0, "end": 1.0, "text": text, "confidence": 0.9}],
        "metadata": {"provider": "vfun", "model": "fake"},
    }


def ok(exchange: Exchange) -> None:
    """Answer as one should."""
    _json(exchange, transcript(exchange.request))


def double_encoded(exchange: Exchange) -> None:
    """Answer with a JSON string that holds the JSON."""
    _json(exchange, json.dumps(transcript(exchange.request)))


def says(value: object) -> Order:
    """Answer 200 with this as JSON."""
    return lambda exchange: _json(exchange, value)


def status(code: int, message: str = "on order", **headers: str) -> Order:
    """Answer with an error status."""
    return lambda exchange: _json(exchange, {"error": message}, code, **headers)


def invalid_json(exchange: Exchange) -> None:
    """Answer 200 with something that only begins like JSON."""
    exchange.answer(200, b'{"transcript": {', content_type="application/json")


def empty(exchange: Exchange) -> None:
    """Answer 200 with nothing."""
    exchange.answer(200)


def cut(exchange: Exchange) -> None:
    """Break off in the middle of the body."""
    body = json.dumps(transcript(exchange.request)).encode()
    exchange.begin(200, len(body), content_type="application/json")
    exchange.write(body[: len(body) // 2])
    exchange.cut()


def slow(secs: float) -> Order:
    """Answer well, but late."""

    def late(exchange: Exchange) -> None:
        if exchange.pause(secs):
            ok(exchange)

    return late


def _json(exchange: Exchange, value: object, code: int = 200, **headers: str) -> None:
    exchange.answer(code, json.dumps(value).encode(), content_type="application/json", **headers)
