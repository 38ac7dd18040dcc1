"""A fake of Utopia's REST API: logins, one knowledge base, uploads that know their content, and deletions.

It misbehaves on order, one order a request but for logins (see `orders`).
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import deque
from typing import Any
from urllib.parse import parse_qs, urlsplit

from tests.fakes.http_server import Exchange, HttpServer, Request
from tests.fakes.orders import Answer, Order, ok

EMAIL, PASSWORD, KB = "conserver@example.com", "very-secret-password", "11111111-2222-4333-8444-555555555555"
_ROOT = "/api/v1"


class UtopiaServer(HttpServer):
    """Utopia; *tells_digests* says whether its lists have the SHA-256 of each document."""

    def __init__(self, *, tells_digests: bool = True) -> None:
        super().__init__(self._respond)
        self.documents: list[dict[str, str]] = []
        self.tokens: set[str] = set()
        self.logins = 0
        self._tells_digests = tells_digests
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
        """The methods of the requests so far, without logins."""
        return [request.method for request in self.requests if "/auth/" not in request.path]

    def texts(self, uuid: str) -> list[str]:
        """The documents of a vCon."""
        return [one["text"] for one in self.documents if one["filename"] == f"{uuid}.md"]

    def put(self, uuid: str, text: str) -> None:
        """Keep a document as another program would upload it."""
        number = len(self.documents) + sum(1 for one in self.requests if one.method == "POST")
        digest = hashlib.sha256(text.encode()).hexdigest()
        self.documents.append({"id": f"doc-{number}", "filename": f"{uuid}.md", "sha256": digest, "text": text})

    def stop(self) -> None:
        """Cut every connection instead of answering."""
        self._down = True

    def start(self) -> None:
        """Answer again."""
        self._down = False

    def _respond(self, exchange: Exchange) -> None:
        if self._down:
            return exchange.cut()
        request = exchange.request
        if request.path == f"{_ROOT}/auth/login":
            return self._log_in(json.loads(request.body)).send(exchange)
        if request.headers.get("authorization", "").removeprefix("Bearer ") not in self.tokens:
            return _answer(401, {"error": "unauthorized"}).send(exchange)
        return (self._orders.popleft() if self._orders else ok)(exchange, lambda: self._work(request))

    def _log_in(self, given: dict[str, Any]) -> Answer:
        if given != {"email": EMAIL, "password": PASSWORD}:
            return _answer(401, {"error": f"wrong password {given.get('password')}"})
        self.logins += 1
        self.tokens.add(f"very-secret-token-{self.logins}")
        return _answer(200, {"token": f"very-secret-token-{self.logins}"})

    def _work(self, request: Request) -> Answer:
        asked = urlsplit(request.path)
        path = asked.path.removeprefix(_ROOT)
        if (request.method, path) == ("GET", f"/kbs/{KB}/documents"):
            wanted = parse_qs(asked.query).get("q", [""])[0]
            shown = ("id", "filename", "sha256") if self._tells_digests else ("id", "filename")
            found = [{name: one[name] for name in shown} for one in self.documents if wanted in one["filename"]]
            return _answer(200, {"docs": found[: int(parse_qs(asked.query)["limit"][0])]})
        if (request.method, path) == ("POST", f"/kbs/{KB}/documents"):
            return self._upload(request)
        if request.method == "DELETE" and any(path == f"/documents/{one['id']}" for one in self.documents):
            self.documents = [one for one in self.documents if path != f"/documents/{one['id']}"]
            return _answer(200, {"ok": True})
        return _answer(404, {"error": "not found"})

    def _upload(self, request: Request) -> Answer:
        boundary = request.headers["content-type"].partition("boundary=")[2].encode()
        head, _, rest = request.body.partition(b"\r\n\r\n")
        text = rest.removesuffix(b"\r\n--" + boundary + b"--\r\n")
        name = re.search(rb'name="file"; filename="([^"]+)\.md"', head)
        assert name is not None
        assert len(text) < len(rest)
        if any(one["text"] == text.decode() for one in self.documents):
            return _answer(200, {"created": [], "skipped": [{"reason": "duplicate content"}]})
        self.put(name[1].decode(), text.decode())
        return _answer(200, {"created": [self.documents[-1]], "skipped": []})


def _answer(code: int, value: object) -> Answer:
    return Answer(code, json.dumps(value).encode(), {"content_type": "application/json"})
