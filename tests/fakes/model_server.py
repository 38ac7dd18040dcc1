"""A fake model service that speaks OpenAI's protocol, for tests and for trying things without a network.

    python -m tests.fakes.model_server --port 9001

Its answers depend on the question alone. It misbehaves on order, one order a request, first come first served:

    with ModelServer() as models:
        models.order(status(429, retry_after="1"), cut, ok)
"""

from __future__ import annotations

import argparse
import json
import sys
import threading
from collections import deque
from collections.abc import Callable
from typing import Any

from tests.fakes.http_server import Exchange, HttpServer, Request

Order = Callable[[Exchange], None]


class ModelServer(HttpServer):
    """Answers POST .../chat/completions, with or without Azure's prefix; takes reports of usage at /usage."""

    def __init__(self, *, port: int = 0) -> None:
        super().__init__(self._respond, port=port)
        self._orders: deque[Order] = deque()

    @property
    def base_url(self) -> str:
        """What goes into the option `base_url`."""
        return f"{self.url}/v1"

    @property
    def calls(self) -> list[Request]:
        """The requests for a chat completion so far."""
        return [request for request in self.requests if "/chat/completions" in request.path]

    @property
    def reports(self) -> list[dict[str, Any]]:
        """The reports of usage so far."""
        return [json.loads(request.body) for request in self.requests if request.path == "/usage"]

    def order(self, *orders: Order) -> None:
        """Queue what is to happen to the next chat completions; after that, all is well again."""
        self._orders.extend(orders)

    def _respond(self, exchange: Exchange) -> None:
        path = exchange.request.path.partition("?")[0]
        if path == "/usage":
            exchange.answer(200, b"{}", content_type="application/json")
        elif path.endswith("/chat/completions"):
            try:
                order = self._orders.popleft()
            except IndexError:
                order = ok
            order(exchange)
        else:
            _json(exchange, 404, {"error": {"message": f"no such path: {path}"}})


def completion(request: Request) -> dict[str, Any]:
    """Return the completion for a request: the first words of the last message's last paragraph, counted."""
    asked = json.loads(request.body)
    question = str(asked["messages"][-1]["content"])
    words = question.rpartition("\n\n")[2].split()
    text = f"{len(words)} words, beginning: {' '.join(words[:12])}"
    spent = sum(len(str(message["content"]).split()) for message in asked["messages"])
    used = len(text.split())
    return {
        "id": "chatcmpl-fake",
        "object": "chat.completion",
        "created": 0,
        "model": asked.get("model", "fake"),
        "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": text}}],
        "usage": {"prompt_tokens": spent, "completion_tokens": used, "total_tokens": spent + used},
    }


def ok(exchange: Exchange) -> None:
    """Answer as one should."""
    _json(exchange, 200, completion(exchange.request))


def status(code: int, message: str = "on order", **headers: str) -> Order:
    """Answer with an error status."""
    return lambda exchange: _json(exchange, code, {"error": {"message": message}}, **headers)


def slow(secs: float) -> Order:
    """Answer well, but late."""

    def late(exchange: Exchange) -> None:
        if exchange.pause(secs):
            ok(exchange)

    return late


def drip(exchange: Exchange) -> None:
    """Send a good answer, one byte every twentieth of a second."""
    body = json.dumps(completion(exchange.request)).encode()
    exchange.begin(200, len(body), content_type="application/json")
    for at in range(len(body)):
        exchange.write(body[at : at + 1])
        if not exchange.pause(0.05):
            return


def cut(exchange: Exchange) -> None:
    """Break off in the middle of the body."""
    body = json.dumps(completion(exchange.request)).encode()
    exchange.begin(200, len(body), content_type="application/json")
    exchange.write(body[: len(body) // 2])
    exchange.cut()


def invalid_json(exchange: Exchange) -> None:
    """Answer 200 with something that only begins like JSON."""
    exchange.answer(200, b'{"choices": [', content_type="application/json")


def empty_choices(exchange: Exchange) -> None:
    """Answer 200 with no choice at all."""
    _json(exchange, 200, {**completion(exchange.request), "choices": []})


def no_text(exchange: Exchange) -> None:
    """Answer 200 with a choice that a content filter has emptied."""
    choice = {"index": 0, "finish_reason": "content_filter", "message": {"role": "assistant", "content": None}}
    _json(exchange, 200, {**completion(exchange.request), "choices": [choice]})


def no_usage(exchange: Exchange) -> None:
    """Answer well, but without a word on tokens."""
    _json(exchange, 200, {**completion(exchange.request), "usage": None})


def _json(exchange: Exchange, code: int, value: object, **headers: str) -> None:
    exchange.answer(code, json.dumps(value).encode(), content_type="application/json", **headers)


def main() -> None:
    """Serve until interrupted."""
    parser = argparse.ArgumentParser(description="a fake model service on 127.0.0.1")
    parser.add_argument("--port", type=int, default=9001)
    with ModelServer(port=parser.parse_args().port) as server:
        sys.stdout.write(f"listening: base_url {server.base_url}\n")
        sys.stdout.flush()
        try:
            threading.Event().wait()
        except KeyboardInterrupt:
            sys.stdout.write("bye\n")


if __name__ == "__main__":
    main()
