"""A fake of Dataverse's Web API and of Microsoft Entra ID: one environment with one table, one tenant, one application.

It answers over TLS, as MSAL insists on it, and is as strict as what it stands for: unknown tenants, applications,
secrets and scopes, tokens that have ended, sets, columns and query options that are not there, bodies that are no
JSON, values that are no text or date, and texts that are too long are refused with the codes of the real ones.
Characters that XML cannot say are refused as well, though the real one may take them. It misbehaves on order, one
order a request to the Web API, or to the sign-in service (see `orders`).
"""

from __future__ import annotations

import functools
import ipaddress
import itertools
import json
import re
import ssl
import tempfile
import threading
from collections import deque
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit
from uuid import UUID, uuid4

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from tests.fakes.http_server import Exchange, HttpServer, Request
from tests.fakes.orders import Answer, Order, ok

TENANT = "11111111-2222-4333-8444-555555555555"
CLIENT, SECRET = "22222222-3333-4444-8555-666666666666", "very~secret~value"
TOKEN = "very-secret-token-"
_JSON = {"content_type": "application/json; odata.metadata=minimal", "odata_version": "4.0"}
_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


class TlsServer(HttpServer):
    """A server with a certificate for 127.0.0.1; clients that use `trust()` believe it."""

    def __init__(self, respond: Callable[[Exchange], None]) -> None:
        super().__init__(respond)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "both.pem"
            file.write_bytes(b"".join(_certificate()))
            context.load_cert_chain(file)
        # Not while it is accepted: one client that says nothing would keep all others waiting.
        self._server.socket = context.wrap_socket(self._server.socket, server_side=True, do_handshake_on_connect=False)

    @property
    def url(self) -> str:
        """The URL of the server, without a slash at its end."""
        return f"https://127.0.0.1:{self.port}"


class DataverseServer(TlsServer):
    """An environment and its tenant; `stop` and `start` make both go away, and come back with what they have.

    *lengths* says how long the text columns may be. With *has_key* there may be but one row of a UUID.
    """

    def __init__(
        self, *, entity: str = "vcon_storage", lengths: dict[str, int] | None = None, has_key: bool = False
    ) -> None:
        super().__init__(self._respond)
        self.rows: dict[str, dict[str, Any]] = {}
        self.tokens: set[str] = set()
        self.entity_set = entity
        self._texts = {"vcon_uuid": 100, "vcon_data": 1_048_576, "vcon_subject": 4000} | (lengths or {})
        self._has_key = has_key
        self._orders: deque[Order] = deque()
        self._sign_in_orders: deque[Order] = deque()
        self._lock = threading.Lock()
        self._ticks = itertools.count()
        self._down = False

    def options(self, **more: Any) -> dict[str, Any]:
        """Return options that lead to it, with *more* over them."""
        login = {"tenant_id": TENANT, "client_id": CLIENT, "client_secret": SECRET}
        return {"url": self.url, "authority": self.url, **login, **more}

    def forget(self) -> None:
        """Be as new."""
        for each in (self.rows, self.tokens, self.requests, self._orders, self._sign_in_orders):
            each.clear()

    def order(self, *orders: Order) -> None:
        """Queue what is to happen to the next requests to the Web API; after that, all is well again."""
        self._orders.extend(orders)

    def order_sign_in(self, *orders: Order) -> None:
        """Queue what is to happen to the next requests to the sign-in service."""
        self._sign_in_orders.extend(orders)

    def calls(self) -> list[str]:
        """The methods of the requests to the Web API so far."""
        return [request.method for request in self.requests if request.path.startswith("/api/")]

    def sign_ins(self) -> int:
        """How often a token was asked for."""
        return sum(request.path.endswith("/token") for request in self.requests)

    def put(self, uuid: str, data: str | None, row_id: str | None = None) -> str:
        """Make a row as another program would, and return its primary key."""
        row_id = row_id or str(uuid4())
        self.rows[row_id] = {"vcon_uuid": uuid, "vcon_data": data, **self._changed()}
        return row_id

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
        is_api = request.path.startswith("/api/")
        if is_api and request.headers.get("authorization", "").removeprefix("Bearer ") not in self.tokens:
            return exchange.answer(401, b"", www_authenticate="Bearer")
        orders, work = (self._orders, self._work) if is_api else (self._sign_in_orders, self._sign_in)
        return (orders.popleft() if orders else ok)(exchange, lambda: work(request))

    # Microsoft Entra ID

    def _sign_in(self, request: Request) -> Answer:
        tenant, _, path = request.path.removeprefix("/").partition("/")
        if tenant != TENANT:
            return _oauth(400, "invalid_tenant", f"AADSTS90002: Tenant '{tenant}' not found.")
        if (request.method, path) == ("GET", "v2.0/.well-known/openid-configuration"):
            root = f"{self.url}/{TENANT}/oauth2/v2.0"
            found = {"token_endpoint": f"{root}/token", "authorization_endpoint": f"{root}/authorize"}
            return Answer(200, json.dumps(found).encode(), {"content_type": "application/json"})
        if (request.method, path) != ("POST", "oauth2/v2.0/token"):
            return _oauth(404, "not_found", "AADSTS900561: The endpoint does not accept this request.")
        given = {name: values[0] for name, values in parse_qs(request.body.decode()).items()}
        if given.get("grant_type") != "client_credentials":
            return _oauth(400, "unsupported_grant_type", "AADSTS70003: The app requested an unsupported grant type.")
        if given.get("client_id") != CLIENT:
            said = f"AADSTS700016: Application with identifier '{given.get('client_id')}' was not found."
            return _oauth(400, "unauthorized_client", said)
        if given.get("client_secret") != SECRET:
            return _oauth(401, "invalid_client", "AADSTS7000215: Invalid client secret provided.")
        if given.get("scope") != f"{self.url}/.default":
            said = "AADSTS500011: The resource principal was not found in the tenant."
            return _oauth(400, "invalid_resource", said)
        with self._lock:
            token = f"{TOKEN}{self.sign_ins()}"
            self.tokens.add(token)
        found = {"token_type": "Bearer", "expires_in": 3599, "access_token": token}
        return Answer(200, json.dumps(found).encode(), {"content_type": "application/json"})

    # The Web API

    def _work(self, request: Request) -> Answer:
        asked = urlsplit(request.path)
        path = re.fullmatch(r"/api/data/v9\.2/(\w+)(?:\(([^)]*)\))?", unquote(asked.path))
        if path is None or path[1] != self.entity_set:
            return _error(404, "0x8006088a", f"Resource not found for the segment '{path and path[1]}'.")
        if path[2] is None:
            return self._query(asked.query) if request.method == "GET" else _error(405, "0x0", "Not allowed.")
        with self._lock:
            if request.method == "DELETE":
                return self._gone(path[2]) if self.rows.pop(path[2], None) is None else Answer(204)
            if request.method == "PATCH":
                return self._patch(str(UUID(path[2])), request)
        return _error(405, "0x0", "The requested resource does not support this method.")

    def _query(self, query: str) -> Answer:
        given = {name: values[0] for name, values in parse_qs(query, keep_blank_values=True).items()}
        if odd := given.keys() - {"$select", "$filter", "$orderby", "$top"}:
            return _error(400, "0x0", f"The query parameter {min(odd)} is not supported.")
        names = given["$select"].split(",")
        condition = re.fullmatch(r"(\w+) (?:(eq|gt) '((?:[^']|'')*)'|ne null)", given["$filter"])
        order = re.fullmatch(r"(\w+)(?: (asc|desc))?", given.get("$orderby", "modifiedon"))
        if condition is None or order is None:
            return _error(400, "0x80060888", "There is an unterminated literal or a syntax error in the filter.")
        for name in [*names, condition[1], order[1]]:
            if name not in {*self._texts, "vcon_created_at", "modifiedon"}:
                said = f"Could not find a property named '{name}' on type 'Microsoft.Dynamics.CRM.vcon_storage'."
                return _error(400, "0x0", said)
        column, operator, literal = condition.groups()
        # Its text has no case; null is found by no comparison, and comes before all else.
        wanted = (literal or "").replace("''", "'").lower()
        with self._lock:
            texts = [
                (key, row, str(row[column]).lower()) for key, row in self.rows.items() if row.get(column) is not None
            ]
        found = [(key, row) for key, row, text in texts if _is_found(text, operator, wanted)]
        if "$orderby" in given:
            found.sort(key=lambda one: str(one[1].get(order[1]) or "").lower(), reverse=order[2] == "desc")
        found = found[: int(given.get("$top", 5000))]
        rows = [
            {"@odata.etag": 'W/"1"', **{name: row.get(name) for name in names}, "vcon_storageid": key}
            for key, row in found
        ]
        return Answer(200, json.dumps({"@odata.context": "x", "value": rows}).encode(), _JSON)

    def _patch(self, key: str, request: Request) -> Answer:
        if not request.headers.get("content-type", "").startswith("application/json"):
            return _error(415, "0x0", "The content type is not supported.")
        if request.headers.get("if-match") == "*" and key not in self.rows:
            return self._gone(key)
        row = json.loads(request.body)
        for name, value in row.items():
            if refused := self._refuse(name, value):
                return refused
        if self._has_key and any(
            one["vcon_uuid"] == row["vcon_uuid"] for other, one in self.rows.items() if other != key
        ):
            return _error(412, "0x80060892", "A record that has the attribute values vCon UUID already exists.")
        self.rows[key] = self.rows.get(key, {}) | row | self._changed()
        return Answer(204, b"", {"odata_entityid": f"{self.url}/api/data/v9.2/{self.entity_set}({key})"})

    def _refuse(self, name: str, value: Any) -> Answer | None:
        if name == "vcon_created_at":
            is_date = re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", str(value)) and value > "1753"
            if value is None or is_date:
                return None
            return _error(400, "0x80048d19", f"Cannot convert the literal '{value}' to 'Edm.DateTimeOffset'.")
        if name not in self._texts:
            return _error(400, "0x80048d19", f"An undeclared property '{name}' was found in the payload.")
        if value is None:
            return None
        if not isinstance(value, str) or _XML.search(value):
            return _error(400, "0x80048d19", f"Cannot convert the literal '{value}' to 'Edm.String' of '{name}'.")
        if len(value.encode("utf-16-le")) // 2 > self._texts[name]:
            said = (
                f"A validation error occurred.  The length of the '{name}' attribute of the 'vcon_storage' entity "
                f"exceeded the maximum allowed length of '{self._texts[name]}'."
            )
            return _error(400, "0x80044331", said)
        return None

    def _gone(self, key: str) -> Answer:
        return _error(404, "0x80040217", f"Entity 'vcon_storage' With Id = {key} Does Not Exist")

    def _changed(self) -> dict[str, str]:
        # A second later each time: the real one has no finer clock.
        moment = datetime(2026, 1, 1, tzinfo=UTC) + timedelta(seconds=next(self._ticks))
        return {"modifiedon": f"{moment:%Y-%m-%dT%H:%M:%SZ}"}


def _is_found(text: str, operator: str | None, wanted: str) -> bool:
    if operator is None:
        return True
    return text == wanted if operator == "eq" else text > wanted


def refused(code: int, error: str, message: str) -> Order:
    """Refuse as Dataverse does; nothing is done."""
    return lambda exchange, _: _error(code, error, message).send(exchange)


def lost(exchange: Exchange, work: Callable[[], Answer]) -> None:
    """Do what is asked, and say nothing; answers without a body cannot be cut in the middle."""
    work()
    exchange.cut()


def trust() -> ssl.SSLContext:
    """Return what a client needs to believe the certificate."""
    return ssl.create_default_context(cadata=_certificate()[0].decode())


@functools.cache
def _certificate() -> tuple[bytes, bytes]:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "a fake of Dataverse")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=2))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    form = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    pem = serialization.Encoding.PEM
    return certificate.public_bytes(pem), key.private_bytes(pem, *form)


def _oauth(code: int, error: str, said: str) -> Answer:
    trace = "Trace ID: 0190c0de Correlation ID: 0190c0de Timestamp: 2026-01-01 00:00:00Z"
    value = {"error": error, "error_description": f"{said} {trace}"}
    return Answer(code, json.dumps(value).encode(), {"content_type": "application/json"})


def _error(code: int, error: str, message: str) -> Answer:
    return Answer(code, json.dumps({"error": {"code": error, "message": message}}).encode(), _JSON)
