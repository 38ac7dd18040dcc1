"""A fake model service that speaks OpenAI's and Hugging Face's protocols, for tests and for trying without a network.

    python -m tests.fakes.model_server --port 9001

Its answers depend on the question alone: a sentence on its last paragraph, JSON where that is asked for, and "true"
or "false" where the question has these words. It misbehaves on order, one order a request, first come first served:

    with ModelServer() as models:
        models.order(status(429, retry_after="1"), cut, saying('{"labels": ["sale"]}'), ok)
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import threading
from collections import deque
from collections.abc import Callable
from typing import Any

from tests.fakes.http_server import Exchange, HttpServer, Request

Order = Callable[[Exchange], None]

# What a path ends with, or has in it, and whose protocol that is.
_CHAT, _RESPONSES, _EMBEDDINGS, _GENERATION = "/chat/completions", "/responses", "/embeddings", "/models/"


class ModelServer(HttpServer):
    """Answers chat completions, responses and embeddings as OpenAI and Azure do, and text generation at /models/NAME.

    Takes reports of usage at /usage.
    """

    def __init__(self, *, port: int = 0) -> None:
        super().__init__(self._respond, port=port)
        self._orders: deque[Order] = deque()

    @property
    def base_url(self) -> str:
        """What goes into the option `base_url`."""
        return f"{self.url}/v1"

    @property
    def calls(self) -> list[Request]:
        """The requests to a model so far."""
        return [request for request in self.requests if _protocol(request)]

    @property
    def reports(self) -> list[dict[str, Any]]:
        """The reports of usage so far."""
        return [json.loads(request.body) for request in self.requests if request.path == "/usage"]

    def order(self, *orders: Order) -> None:
        """Queue what is to happen to the next calls; after that, all is well again."""
        self._orders.extend(orders)

    def _respond(self, exchange: Exchange) -> None:
        path = exchange.request.path.partition("?")[0]
        if path == "/usage":
            exchange.answer(200, b"{}", content_type="application/json")
        elif _protocol(exchange.request):
            try:
                order = self._orders.popleft()
            except IndexError:
                order = ok
            order(exchange)
        else:
            _json(exchange, 404, {"error": {"message": f"no such path: {path}"}})


def answer_to(request: Request, text: str | None = None) -> Any:
    """Return the answer to a request in its own protocol; *text* is what the model says, by default something fit."""
    asked = json.loads(request.body)
    if _protocol(request) == _EMBEDDINGS:
        return _embeddings(asked)
    question = _question(asked)
    text = _fit(asked, question) if text is None else text
    if _protocol(request) == _GENERATION:
        return [{"generated_text": text}]
    spent, used = _words(asked), len(text.split())
    if _protocol(request) == _RESPONSES:
        content = [{"type": "output_text", "text": text, "annotations": []}]
        message = {"type": "message", "id": "msg-fake", "status": "completed", "role": "assistant", "content": content}
        return {
            **{"id": "resp-fake", "object": "response", "created_at": 0, "status": "completed"},
            **{"model": asked.get("model", "fake"), "output": [message]},
            "usage": {"input_tokens": spent, "output_tokens": used, "total_tokens": spent + used},
        }
    return {
        "id": "chatcmpl-fake",
        "object": "chat.completion",
        "created": 0,
        "model": asked.get("model", "fake"),
        "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": text}}],
        "usage": {"prompt_tokens": spent, "completion_tokens": used, "total_tokens": spent + used},
    }


def _protocol(request: Request) -> str:
    path = request.path.partition("?")[0]
    ends = [end for end in (_CHAT, _RESPONSES, _EMBEDDINGS) if path.endswith(end)]
    return (ends or [_GENERATION if request.method == "POST" and _GENERATION in path else ""])[0]


def _question(asked: dict[str, Any]) -> str:
    if "messages" in asked:
        return str(asked["messages"][-1]["content"])
    return str(asked.get("input", asked.get("inputs", "")))


def _words(asked: dict[str, Any]) -> int:
    if "messages" in asked:
        return sum(len(str(message["content"]).split()) for message in asked["messages"])
    return len(_question(asked).split())


def _fit(asked: dict[str, Any], question: str) -> str:
    words = question.rpartition("\n\n")[2].split()
    if asked.get("response_format", {}).get("type") == "json_object":
        everything = json.dumps(asked)
        if "'labels'" in everything:
            return json.dumps({"labels": list(dict.fromkeys(word.strip(".,:?!-").lower() for word in words[:3]))})
        if "'applies'" in everything:
            return json.dumps({"applies": len(words) > 1})
        return json.dumps({"words": len(words)})
    if "'true'" in question and "'false'" in question:
        return "true" if len(words) > 1 else "false"
    return f"{len(words)} words, beginning: {' '.join(words[:12])}"


def _embeddings(asked: dict[str, Any], dimensions: int = 8) -> dict[str, Any]:
    given = asked["input"] if isinstance(asked["input"], list) else [asked["input"]]
    rows = [list(hashlib.sha256(str(text).encode()).digest()[: asked.get("dimensions", dimensions)]) for text in given]
    data = [
        {"object": "embedding", "index": index, "embedding": [byte / 255 for byte in row]}
        for index, row in enumerate(rows)
    ]
    spent = sum(len(str(text).split()) for text in given)
    usage = {"prompt_tokens": spent, "total_tokens": spent}
    return {"object": "list", "model": asked.get("model", "fake"), "data": data, "usage": usage}


def ok(exchange: Exchange) -> None:
    """Answer as one should."""
    _json(exchange, 200, answer_to(exchange.request))


def saying(text: str) -> Order:
    """Answer well, in these words."""
    return lambda exchange: _json(exchange, 200, answer_to(exchange.request, text))


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
    body = json.dumps(answer_to(exchange.request)).encode()
    exchange.begin(200, len(body), content_type="application/json")
    for at in range(len(body)):
        exchange.write(body[at : at + 1])
        if not exchange.pause(0.05):
            return


def cut(exchange: Exchange) -> None:
    """Break off in the middle of the body."""
    body = json.dumps(answer_to(exchange.request)).encode()
    exchange.begin(200, len(body), content_type="application/json")
    exchange.write(body[: len(body) // 2])
    exchange.cut()


def invalid_json(exchange: Exchange) -> None:
    """Answer 200 with something that only begins like JSON."""
    exchange.answer(200, b'{"choices": [', content_type="application/json")


def empty_choices(exchange: Exchange) -> None:
    """Answer 200 with nothing in it: no choice, no output, no generation."""
    answer = answer_to(exchange.request)
    _json(exchange, 200, [] if isinstance(answer, list) else {**answer, "choices": [], "output": [], "data": []})


def no_text(exchange: Exchange) -> None:
    """Answer 200 with a choice that a content filter has emptied."""
    choice = {"index": 0, "finish_reason": "content_filter", "message": {"role": "assistant", "content": None}}
    _json(exchange, 200, {**answer_to(exchange.request), "choices": [choice], "output": [], "status": "incomplete"})


def no_usage(exchange: Exchange) -> None:
    """Answer well, but without a word on tokens."""
    _json(exchange, 200, {**answer_to(exchange.request), "usage": None})


def no_temperature(exchange: Exchange) -> None:
    """Refuse a temperature, as models do that accept only their own; answer well without one."""
    if "temperature" not in json.loads(exchange.request.body):
        return ok(exchange)
    message = "Unsupported value: 'temperature' does not support 0.2 with this model."
    error = {"message": message, "param": "temperature", "code": "unsupported_value"}
    return _json(exchange, 400, {"error": error})


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
