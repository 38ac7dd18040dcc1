"""A fake of vcon-mcp's REST API: it keeps vCons, and misbehaves on order (see `orders`).

As the real one may, it adds the parts of a vCon that is posted again to those that it has. Other than the real one, it
gives back what it was given.
"""

from __future__ import annotations

import json
from collections import deque
from typing import Any

from tests.fakes.http_server import Exchange, HttpServer, Request
from tests.fakes.orders import Answer, Order, ok

KEY = "mcp-very-secret-key"
_ROOT = "/api/v1"
_PARTS = ("parties", "dialog", "analysis", "attachments")


class VconMcpServer(HttpServer):
    """vcon-mcp with one API key; `stop` and `start` make it go away, and come back with what it has."""

    def __init__(self) -> None:
        super().__init__(self._respond)
        self.vcons: dict[str, dict[str, Any]] = {}
        self._orders: deque[Order] = deque()
        self._down = False

    @property
    def base_url(self) -> str:
        """What goes into the option `base_url`."""
        return self.url + _ROOT

    def order(self, *orders: Order) -> None:
        """Queue what is to happen to the next requests; after that, all is well again."""
        self._orders.extend(orders)

    def calls(self) -> list[str]:
        """The methods of the requests so far."""
        return [request.method for request in self.requests]

    def stop(self) -> None:
        """Cut every connection instead of answering."""
        self._down = True

    def start(self) -> None:
        """Answer again."""
        self._down = False

    def _respond(self, exchange: Exchange) -> None:
        if self._down:
            return exchange.cut()
        if exchange.request.headers.get("authorization") != f"Bearer {KEY}":
            return _answer(401, {"error": "Unauthorized", "message": "Invalid API key"}).send(exchange)
        return (self._orders.popleft() if self._orders else ok)(exchange, lambda: self._work(exchange.request))

    def _work(self, request: Request) -> Answer:
        path = request.path.removeprefix(_ROOT).partition("?")[0]
        uuid = path.removeprefix("/vcons").removeprefix("/")
        if (request.method, path) == ("GET", "/vcons"):
            return _answer(200, {"success": True, "vcons": []})
        if (request.method, path) == ("POST", "/vcons"):
            return self._post(json.loads(request.body))
        if not path.startswith("/vcons/") or uuid not in self.vcons:
            return _answer(404, {"error": "Not Found", "message": f"vCon with UUID {uuid} not found"})
        if request.method == "DELETE":
            self.vcons.pop(uuid, None)
            return _answer(200, {"success": True})
        return _answer(200, {"success": True, "vcon": self.vcons[uuid]})

    def _post(self, vcon: dict[str, Any]) -> Answer:
        uuid = vcon.get("uuid") or vcon["signatures"][0]["header"]["uuid"]
        before = self.vcons.get(uuid, {})
        parts = {name: before[name] + vcon.get(name, []) for name in _PARTS if name in before}
        self.vcons[uuid] = vcon | parts
        return _answer(201, {"success": True, "uuid": uuid})


def _answer(code: int, value: object) -> Answer:
    return Answer(code, json.dumps(value).encode(), {"content_type": "application/json"})
