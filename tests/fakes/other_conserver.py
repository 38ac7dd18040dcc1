"""Another conserver to follow: one egress list behind a real HTTP server, with the safe egress or the old one only.

It is as strict as a real one about its token, keeps what it was asked, and misbehaves on order.
"""

from __future__ import annotations

import json
import threading
import time
import uuid as uuids
from collections.abc import Callable
from typing import Any, Self
from urllib.parse import parse_qs, urlsplit

from tests.fakes.http_server import Exchange, HttpServer, Request

TOKEN = "hush-hush-token"
LIST = "out"

Mood = Callable[[Exchange], None]


class OtherConserver:
    """A server that can be told to misbehave, by what is asked and for how many times; see `behave`."""

    def __init__(self, *, safe: bool = True, header: str = "x-conserver-api-token") -> None:
        self.safe = safe
        self.waiting: list[Any] = []
        self.vcons: dict[str, bytes] = {}
        self.leases: dict[str, tuple[float, list[Any]]] = {}
        self.acknowledged: list[str] = []
        self._header = header
        self._lock = threading.RLock()
        self._moods: list[list[Any]] = []
        self._http = HttpServer(self._respond)
        self.url = self._http.url

    def __enter__(self) -> Self:
        self._http.__enter__()
        return self

    def __exit__(self, *raised: object) -> None:
        self._http.__exit__(*raised)

    @property
    def requests(self) -> list[Request]:
        """What it was asked so far."""
        return list(self._http.requests)

    def asked(self, part: str) -> list[Request]:
        """What it was asked so far that has *part* in its "METHOD /path"."""
        return [request for request in self.requests if part in f"{request.method} {request.path}"]

    def add(self, subject: str = "call", uuid: str | None = None, *, waits: bool = True) -> str:
        """Store a vCon, and put it on the egress list if it *waits*."""
        uuid = uuid or str(uuids.uuid4())
        document = {"vcon": "0.4.0", "uuid": uuid, "created_at": "2026-01-01T00:00:00Z", "subject": subject}
        self.vcons[uuid] = json.dumps(document | {"parties": [{"tel": "+12025550143"}]}).encode()
        if waits:
            self.waiting.append(uuid)
        return uuid

    def behave(self, part: str, mood: Mood, times: int = 1_000_000) -> None:
        """Let *mood* answer the next requests that have *part* in their "METHOD /path"."""
        with self._lock:
            self._moods.append([part, mood, times])

    def be_good(self) -> None:
        """Answer everything again as it should be."""
        with self._lock:
            self._moods.clear()

    def lapse(self) -> None:
        """Let all leases lapse: what is left of them goes back to the head of the list."""
        with self._lock:
            for _, entries in self.leases.values():
                self.waiting[:0] = entries
            self.leases.clear()

    def leased(self) -> list[Any]:
        """What is leased to somebody at this moment."""
        with self._lock:
            return [entry for _, entries in self.leases.values() for entry in entries]

    def _respond(self, exchange: Exchange) -> None:
        request = exchange.request
        mood = self._mood(f"{request.method} {request.path}")
        if mood is not None:
            return mood(exchange)
        if request.headers.get(self._header) != TOKEN:
            return answer(exchange, 403, {"detail": "Invalid API Key"})
        parts = urlsplit(request.path)
        query = {name: values[0] for name, values in parse_qs(parts.query).items()}
        with self._lock:
            answer(exchange, *self._answer(request, parts.path, query))

    def _mood(self, asked: str) -> Mood | None:
        with self._lock:
            for row in self._moods:
                if row[0] in asked and row[2] > 0:
                    row[2] -= 1
                    return row[1]  # type: ignore[no-any-return]
        return None

    def _answer(self, request: Request, path: str, query: dict[str, str]) -> tuple[int, Any]:
        if request.method == "GET" and path == "/vcon/egress":
            # As the existing conserver has it: from the tail.
            taken = [self.waiting.pop() for _ in range(min(int(query["limit"]), len(self.waiting)))]
            return 200, taken
        if request.method == "GET" and path.startswith("/vcon/"):
            body = self.vcons.get(path.removeprefix("/vcon/"))
            return (200, body) if body is not None else (404, {"detail": "vCon not found"})
        if self.safe and request.method == "POST" and path == "/egress/lease":
            return 200, self._lease(int(query["limit"]), float(query["secs"]))
        if self.safe and request.method == "POST" and path in ("/egress/acknowledge", "/egress/return"):
            return self._unlease(path.rpartition("/")[2], json.loads(request.body))
        return 404, {"detail": "Not Found"}

    def _lease(self, limit: int, secs: float) -> dict[str, Any]:
        now = time.monotonic()
        for lease in [lease for lease, (until, _) in self.leases.items() if until < now]:
            self.waiting[:0] = self.leases.pop(lease)[1]
        entries, self.waiting = self.waiting[:limit], self.waiting[limit:]
        lease = uuids.uuid4().hex
        if entries:
            self.leases[lease] = now + secs, list(entries)
        return {"lease": lease, "vcons": entries, "secs": secs}

    def _unlease(self, how: str, body: dict[str, Any]) -> tuple[int, Any]:
        if body["egress_list"] != LIST or body["lease"] not in self.leases:
            return 409, {"detail": "there is no such lease"}
        entries = self.leases[body["lease"]][1]
        ended = [entry for entry in body["vcons"] if entry in entries]
        for entry in ended:
            entries.remove(entry)
        if how == "acknowledge":
            self.acknowledged += ended
        else:
            self.waiting[:0] = ended
        if not entries:
            del self.leases[body["lease"]]
        return 200, {"acknowledged" if how == "acknowledge" else "returned": len(ended)}


def answer(exchange: Exchange, status: int, value: Any) -> None:
    """Answer with JSON; bytes are JSON already."""
    body = value if isinstance(value, bytes) else json.dumps(value).encode()
    exchange.answer(status, body, content_type="application/json")


def says(status: int, value: Any, **headers: str) -> Mood:
    """A mood that always answers the same JSON."""
    return lambda exchange: exchange.answer(
        status, json.dumps(value).encode(), content_type="application/json", **headers
    )


def html(exchange: Exchange) -> None:
    """A page for people, as proxies have it."""
    exchange.answer(200, b"<html>Please log in</html>", content_type="text/html")


def cut(exchange: Exchange) -> None:
    """Half an answer, and the connection is gone."""
    exchange.begin(200, 1000, content_type="application/json")
    exchange.write(b'["')
    exchange.cut()


def drip(exchange: Exchange) -> None:
    """An answer that never ends, byte by byte."""
    exchange.begin(200, 1_000_000, content_type="application/json")
    while exchange.pause(0.02):
        exchange.write(b" ")


def hang(exchange: Exchange) -> None:
    """No answer at all."""
    while exchange.pause(1):
        continue
