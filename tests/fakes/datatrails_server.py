"""A fake DataTrails: tokens, assets, events with an asset and without, and the search for them by attributes.

It misbehaves on order, by route (token, assets, search, asset_event, event):

    with DatatrailsServer() as trails:
        trails.order(status(429, retry_after="1"), cut, ok, to="asset_event")
"""

from __future__ import annotations

import json
import threading
from collections import defaultdict, deque
from typing import Any
from urllib.parse import parse_qs, parse_qsl, urlsplit

from tests.fakes.http_server import Exchange, HttpServer, Request
from tests.fakes.orders import Answer, Order, ok

CLIENT, SECRET = "client-1", "c1ient-s3cr3t"


class DatatrailsServer(HttpServer):
    """Keeps `assets`, `asset_events` and `events`; `expires_in` is what it says of new tokens."""

    def __init__(self) -> None:
        super().__init__(self._respond)
        self.assets: list[dict[str, Any]] = []
        self.asset_events: list[dict[str, Any]] = []
        self.events: list[dict[str, Any]] = []
        self.expires_in: Any = 3600
        self.tokens: list[str] = []
        self._valid: set[str] = set()
        self._orders: dict[str, deque[Order]] = defaultdict(deque)
        self._lock = threading.Lock()

    @property
    def api_url(self) -> str:
        """What goes into the option `api_url`."""
        return f"{self.url}/archivist"

    @property
    def auth(self) -> dict[str, str]:
        """What goes into the option `auth`."""
        return {
            "type": "oidc-client-credentials",
            "token_endpoint": f"{self.api_url}/iam/v1/appidp/token",
            "client_id": CLIENT,
            "client_secret": SECRET,
        }

    def withdraw_tokens(self) -> None:
        """Let no token that was given so far be good any more."""
        self._valid.clear()

    def order(self, *orders: Order, to: str) -> None:
        """Queue what is to happen to the next requests to a route."""
        self._orders[to].extend(orders)

    def calls(self, method: str, path: str) -> list[Request]:
        """The requests so far to a path below `api_url` that begins so."""
        return [r for r in self.requests if r.method == method and r.path.startswith(f"/archivist{path}")]

    def _respond(self, exchange: Exchange) -> None:
        request = exchange.request
        url = urlsplit(request.path)
        path = url.path.removeprefix("/archivist")
        query = dict(parse_qsl(url.query))
        if (request.method, path) == ("POST", "/iam/v1/appidp/token"):
            route, work = "token", lambda: self._token(request)
        elif request.headers.get("authorization", "").removeprefix("Bearer ") not in self._valid:
            exchange.answer(401, b'{"message": "token expired"}', content_type="application/json")
            return
        elif (request.method, path) == ("GET", "/v2/assets/-/events"):
            route, work = "search", lambda: _json({"events": _matching(self.asset_events, "event_attributes", query)})
        elif (request.method, path) == ("GET", "/v2/assets"):
            route, work = "assets", lambda: _json({"assets": _matching(self.assets, "attributes", query)})
        elif (request.method, path) == ("POST", "/v2/assets"):
            route, work = "assets", lambda: self._add(self.assets, "assets/asset", request)
        elif request.method == "POST" and path.startswith("/v2/assets/") and path.endswith("/events"):
            asset = path.removeprefix("/v2/").removesuffix("/events")
            if asset not in [one["identity"] for one in self.assets]:
                exchange.answer(404)
                return
            route, work = "asset_event", lambda: self._add(self.asset_events, f"{asset}/events/event", request)
        elif (request.method, path) == ("POST", "/v1/events"):
            route, work = "event", lambda: self._add(self.events, "events/event", request)
        else:
            exchange.answer(404)
            return
        queue = self._orders[route]
        (queue.popleft() if queue else ok)(exchange, work)

    def _token(self, request: Request) -> Answer:
        asked = {name: values[0] for name, values in parse_qs(request.body.decode()).items()}
        if asked != {"grant_type": "client_credentials", "client_id": CLIENT, "client_secret": SECRET}:
            return _json({"error": "invalid_client", "asked": asked}, 401)
        token = f"t0ken-{len(self.tokens) + 1}"
        self.tokens.append(token)
        self._valid.add(token)
        return _json({"access_token": token, "token_type": "Bearer", "expires_in": self.expires_in})

    def _add(self, to: list[dict[str, Any]], prefix: str, request: Request) -> Answer:
        with self._lock:
            entry = {"identity": f"{prefix}-{len(to) + 1}", **json.loads(request.body)}
            to.append(entry)
        return _json(entry, 200)


def _matching(entries: list[dict[str, Any]], prefix: str, query: dict[str, str]) -> list[dict[str, Any]]:
    wanted = {name.removeprefix(f"{prefix}."): value for name, value in query.items() if name.startswith(prefix)}
    return [one for one in entries if all(str(one[prefix].get(name)) == value for name, value in wanted.items())]


def _json(body: Any, code: int = 200) -> Answer:
    return Answer(code, json.dumps(body).encode(), {"content_type": "application/json"})
