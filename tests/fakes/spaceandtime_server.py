"""A fake of the gateway of Space and Time: API keys, biscuits, and one table that is a table of SQLite.

It takes one path and the statements that a row needs, refuses all else, and repeats the statement in what it says of
an error. Its columns are as wide as they are declared. It misbehaves on order, one order a request.

    with SpaceAndTimeServer() as service:
        service.order(status(429, retry_after="1"), cut, ok)
"""

from __future__ import annotations

import json
import re
import sqlite3
import threading
from collections import deque
from typing import Any

from tests.fakes.http_server import Exchange, HttpServer, Request
from tests.fakes.orders import Answer, Order, ok

KEY, WRITE, READ = "sxt_very-secret-key", "very-secret-write-biscuit", "very-secret-read-biscuit"
TABLE = "CALLS.VCONS"
_RIGHTS = {WRITE: {"SELECT", "INSERT", "UPDATE", "DELETE"}, READ: {"SELECT"}}
_STATEMENT = re.compile(r"(?:(SELECT) .+? FROM|(INSERT) INTO|(UPDATE)|(DELETE) FROM) ([\w.]+) ", re.IGNORECASE)


class SpaceAndTimeServer(HttpServer):
    """The gateway, with a table whose VCON_JSON holds *width* characters."""

    def __init__(self, *, width: int = 65_536) -> None:
        super().__init__(self._respond)
        self._orders: deque[Order] = deque()
        self._down = False
        self._lock = threading.Lock()
        self._database = sqlite3.connect(":memory:", check_same_thread=False, isolation_level=None)
        self._database.row_factory = sqlite3.Row
        self._database.execute(
            "CREATE TABLE VCONS (UUID VARCHAR PRIMARY KEY NOT NULL, VCON VARCHAR,"
            " CREATED_AT TIMESTAMP CHECK (CREATED_AT = datetime(CREATED_AT)), SUBJECT VARCHAR,"
            f" VCON_JSON VARCHAR CHECK (length(VCON_JSON) <= {width}))"
        )

    def order(self, *orders: Order) -> None:
        """Queue what is to happen to the next requests; after that, all is well again."""
        self._orders.extend(orders)

    def calls(self) -> list[str]:
        """The kinds of the statements so far."""
        return [json.loads(request.body)["sqlText"].split()[0] for request in self.requests]

    def rows(self) -> list[dict[str, Any]]:
        """What is in the table."""
        return self.run("SELECT * FROM VCONS")

    def run(self, statement: str) -> list[dict[str, Any]]:
        """Run a statement as another program would, and return its rows, or how many it has changed."""
        with self._lock:
            cursor = self._database.execute(statement)
            rows = [dict(row) for row in cursor.fetchall()]
        return rows if cursor.description else [{"UPDATED": cursor.rowcount}]

    def stop(self) -> None:
        """Cut every connection instead of answering."""
        self._down = True

    def start(self) -> None:
        """Answer again."""
        self._down = False

    def __exit__(self, *raised: object) -> None:
        super().__exit__(*raised)
        with self._lock:
            self._database.close()

    def _respond(self, exchange: Exchange) -> None:
        request = exchange.request
        if self._down:
            return exchange.cut()
        if (request.method, request.path) != ("POST", "/v1/sql"):
            return _refusal(404, "Not Found", request.path).send(exchange)
        if request.headers.get("apikey") != KEY:
            return _refusal(401, "Unauthorized", f"no such key: {request.headers.get('apikey')}").send(exchange)
        return (self._orders.popleft() if self._orders else ok)(exchange, lambda: self._work(request))

    def _work(self, request: Request) -> Answer:
        if request.headers.get("content-type") != "application/json":
            return _refusal(415, "Unsupported Media Type", "")
        asked = json.loads(request.body)
        text, biscuits = asked.pop("sqlText", None), asked.pop("biscuits", [])
        if asked or not isinstance(text, str) or not isinstance(biscuits, list):
            return _refusal(400, "Bad Request", f"cannot read {request.body!r}")
        statement = _STATEMENT.match(text)
        if statement is None or statement[5].upper() != TABLE:
            return _refusal(400, "Bad Request", f"no such statement or table: {text}")
        kind = next(filter(None, statement.groups())).upper()
        if not any(kind in _RIGHTS.get(biscuit, ()) for biscuit in biscuits):
            return _refusal(403, "Forbidden", f"no biscuit of {biscuits} allows {text}")
        try:
            rows = self.run(text[: statement.start(5)] + "VCONS" + text[statement.end(5) :])
        except sqlite3.Error as error:  # a second row with this key, a value that is too wide, two statements
            return _refusal(400, "Bad Request", f"{error} in {text}")
        return Answer(200, json.dumps(rows).encode(), {"content_type": "application/json"})


def _refusal(code: int, title: str, detail: str) -> Answer:
    body = {"type": "about:blank", "title": title, "status": code, "detail": detail}
    return Answer(code, json.dumps(body).encode(), {"content_type": "application/json"})
