"""A fake of Slack's Web API: posting, the list of channels, and their histories.

It keeps what was posted in `messages`, knows the channels that it was told of, and misbehaves on order, one order a
call of `chat.postMessage`:

    with SlackServer("alerts") as slack:
        slack.order(status(429, retry_after="1"), lost, ok)
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable
from typing import Any
from urllib.parse import parse_qs

from tests.fakes.http_server import Exchange, HttpServer, Request

Order = Callable[["SlackServer", Exchange], None]
TOKEN = "xoxb-very-secret-token"


class SlackServer(HttpServer):
    """Slack with these channels; `scopes` are what the token may do."""

    def __init__(self, *channels: str) -> None:
        super().__init__(self._respond)
        self.ids = {name: f"C{number:09}" for number, name in enumerate(channels)}
        self.scopes = {"chat:write", "channels:read", "channels:history"}
        self.messages: list[dict[str, Any]] = []
        self.page_size = 200
        self._orders: deque[Order] = deque()

    @property
    def api_url(self) -> str:
        """What goes into the option `api_url`."""
        return f"{self.url}/api"

    @property
    def posts(self) -> list[Request]:
        """The calls of chat.postMessage so far."""
        return self.calls("chat.postMessage")

    def calls(self, method: str) -> list[Request]:
        """The calls of one method so far."""
        return [request for request in self.requests if request.path == f"/api/{method}"]

    def texts(self, channel: str) -> list[str]:
        """The texts in a channel, the oldest first."""
        return [message["text"] for message in self.messages if message["channel"] == channel]

    def order(self, *orders: Order) -> None:
        """Queue what is to happen to the next messages; after that, all is well again."""
        self._orders.extend(orders)

    def _respond(self, exchange: Exchange) -> None:
        method = exchange.request.path.removeprefix("/api/")
        if exchange.request.headers.get("authorization") != f"Bearer {TOKEN}":
            return refuse("invalid_auth")(self, exchange)
        if method == "chat.postMessage":
            return (self._orders.popleft() if self._orders else ok)(self, exchange)
        # These two read no JSON.
        asked = {name: values[0] for name, values in parse_qs(exchange.request.body.decode()).items()}
        if method == "conversations.list" and "channels:read" in self.scopes:
            found = [{"id": id_, "name": name} for name, id_ in self.ids.items()]
            return self._page(exchange, "channels", found, asked)
        if method == "conversations.history" and "channels:history" in self.scopes:
            name = self.name_of(asked["channel"])
            found = [m for m in self.messages if m["channel"] == name and float(m["ts"]) >= float(asked["oldest"])]
            return self._page(exchange, "messages", found[::-1], asked)
        return refuse("missing_scope" if method.startswith("conversations.") else "unknown_method")(self, exchange)

    def _page(self, exchange: Exchange, name: str, found: list[dict[str, Any]], asked: dict[str, str]) -> None:
        start = int(asked.get("cursor", 0))
        end = start + min(self.page_size, int(asked["limit"]))
        cursor = str(end) if end < len(found) else ""
        answer(exchange, {"ok": True, name: found[start:end], "response_metadata": {"next_cursor": cursor}})

    def name_of(self, channel: str) -> str:
        """Return the name of a channel that is given by name or ID."""
        return next((name for name, id_ in self.ids.items() if id_ == channel), channel.removeprefix("#"))

    def keep(self, exchange: Exchange) -> dict[str, Any]:
        """Post the message of a request, and return Slack's answer."""
        message = json.loads(exchange.request.body)
        name = self.name_of(message["channel"])
        if name not in self.ids:
            return {"ok": False, "error": "channel_not_found"}
        posted = {**message, "channel": name, "ts": f"{4_000_000_000 + len(self.messages)}.000100"}
        self.messages.append(posted)
        return {"ok": True, "channel": self.ids[name], "ts": posted["ts"], "message": {"text": message["text"]}}


def answer(exchange: Exchange, value: object, code: int = 200, **headers: str) -> None:
    """Answer with JSON."""
    exchange.answer(code, json.dumps(value).encode(), content_type="application/json", **headers)


def ok(slack: SlackServer, exchange: Exchange) -> None:
    """Post as one should."""
    answer(exchange, slack.keep(exchange))


def refuse(error: str, **headers: str) -> Order:
    """Answer 200 with an error, as Slack does."""
    return lambda _, exchange: answer(exchange, {"ok": False, "error": error}, **headers)


def status(code: int, **headers: str) -> Order:
    """Answer with an error status, without posting."""
    return lambda _, exchange: answer(exchange, {"ok": False, "error": "on_order"}, code, **headers)


def lost(slack: SlackServer, exchange: Exchange) -> None:
    """Post, and break off in the middle of the answer."""
    body = json.dumps(slack.keep(exchange)).encode()
    exchange.begin(200, len(body), content_type="application/json")
    exchange.write(body[: len(body) // 2])
    exchange.cut()


def dropped(_: SlackServer, exchange: Exchange) -> None:
    """Break off without posting and without an answer."""
    exchange.cut()


def slow(secs: float) -> Order:
    """Post at once, and answer late."""

    def late(slack: SlackServer, exchange: Exchange) -> None:
        said = slack.keep(exchange)
        if exchange.pause(secs):
            answer(exchange, said)

    return late


def nonsense(_: SlackServer, exchange: Exchange) -> None:
    """Answer 200 with something that is not Slack's."""
    exchange.answer(200, b"<html>welcome to this hotel</html>", content_type="text/html")
