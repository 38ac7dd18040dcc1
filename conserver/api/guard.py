"""What stands around every request: its id, the headers of every answer, who may ask from a browser, the audit log."""

from __future__ import annotations

import logging
import re
import secrets
import time
from functools import cache
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlsplit

from starlette.datastructures import Headers
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from conserver import telemetry
from conserver.api.problems import Problem

if TYPE_CHECKING:
    from conserver.api.state import Api

log = logging.getLogger(__name__)
audit = logging.getLogger("conserver.audit")

_LOOPBACK = re.compile(r"localhost|127(\.\d{1,3}){3}|\[?::1\]?", re.IGNORECASE)
_REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,64}")
_CHANGES = {"POST", "PUT", "PATCH", "DELETE"}
#: What pages of other origins may read of an answer.
_EXPOSED = ("ETag", "Link", "Location", "Retry-After", "X-Request-ID")
#: What the log says of a request whose client has gone: nobody gets it.
_GONE = 499
_SAFE = (
    (b"x-content-type-options", b"nosniff"),
    (b"cache-control", b"no-store"),
    (b"content-security-policy", b"frame-ancestors 'none'"),
)


class Guard:
    """The outermost part of the app."""

    def __init__(self, app: ASGIApp, api: Api, version_headers: list[tuple[bytes, bytes]]) -> None:
        self._app = app
        self._api = api
        self._headers = [*_SAFE, *version_headers]
        self._root = api.settings.api_root_path
        self._cors: tuple[tuple[str, ...], ASGIApp] = ((), app)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began, status = time.monotonic(), 500
        headers = Headers(scope=scope)
        request_id = headers.get("x-request-id", "")
        if not _REQUEST_ID.fullmatch(request_id):
            request_id = secrets.token_hex(8)
        scope["request_id"] = request_id
        if self._root and scope["path"].startswith(f"{self._root}/"):
            scope["root_path"] = self._root
        begun = False

        async def answer(message: Message) -> None:
            nonlocal status, begun
            if message["type"] == "http.response.start":
                status, begun = message["status"], True
                message["headers"] = [
                    *message["headers"],
                    *self._headers,
                    (b"x-request-id", request_id.encode()),
                ]
            await send(message)

        try:
            refusal = self._refuse(headers)
            if refusal is not None:
                await refusal.response(request_id)(scope, receive, answer)
            else:
                await self._inner()(scope, receive, answer)
        except ClientDisconnect:
            status = _GONE
        except Exception:
            log.exception("%s could not be answered", telemetry.shorten(scope["path"], 100))
            if begun:
                raise
            problem = Problem(500, "internal", "an error of the conserver; its log says which, by this request_id")
            await problem.response(request_id)(scope, receive, answer)
        finally:
            self._note(scope, status, time.monotonic() - began)

    def _inner(self) -> ASGIApp:
        origins = self._api.config.api.cors_origins
        if origins != self._cors[0]:
            known = CORSMiddleware(
                self._app,
                allow_origins=origins,
                allow_methods=["*"],
                allow_headers=["*"],
                expose_headers=_EXPOSED,
                max_age=600,
            )
            self._cors = (origins, known if origins else self._app)
        return self._cors[1]

    def _refuse(self, headers: Headers) -> Problem | None:
        if "transfer-encoding" in headers and "content-length" in headers:
            # A proxy before us may have taken the other one for the end of the body.
            detail = "a request has Content-Length or Transfer-Encoding, not both"
            return Problem(400, "bad-request", detail, headers={"Connection": "close"})
        return None if self._api.tokens else self._refuse_pages(headers)

    def _refuse_pages(self, headers: Headers) -> Problem | None:
        """Without a token a page in a browser of this machine could call, or have a name of its own resolve to us."""
        host, origin = headers.get("host", ""), headers.get("origin")
        if not _LOOPBACK.fullmatch(_name(host)):
            return Problem(403, "no-access", "without a token the API answers to localhost only")
        if origin in self._api.config.api.cors_origins:
            return None
        # An image or a form of a page has no Origin, or one of its own.
        site = headers.get("sec-fetch-site", "none")
        if site not in ("none", "same-origin") or (origin and urlsplit(origin).netloc != host):
            return Problem(403, "no-access", "without a token the API does not answer to pages of other origins")
        return None

    def _note(self, scope: Scope, status: int, secs: float) -> None:
        route = getattr(scope.get("route"), "path_format", "none")
        count, time_of = _keys(route, status)
        telemetry.metrics.record([count], [(time_of, secs)])
        if scope.get("changes", scope["method"] in _CHANGES):
            self._audit(scope, status)

    @staticmethod
    def _audit(scope: Scope, status: int) -> None:
        client: Any = scope.get("client") or ("unix", 0)
        fields = {
            "who": _word(scope.get("caller", "nobody")),
            "from": client[0],
            "status": status,
            "request_id": scope["request_id"],
            **{name: _word(value) for name, value in scope.get("audit", {}).items()},
        }
        path = telemetry.shorten(quote(scope["path"], safe="/:", errors="replace"), 200)
        audit.info("%s %s", scope["method"], path, extra={"fields": fields})


@cache
def _keys(route: str, status: int) -> tuple[telemetry.Key, telemetry.Key]:
    return (
        telemetry.key("conserver.api.requests", route=route, status=str(status)),
        telemetry.key("conserver.api.request_time", route=route),
    )


def _word(value: Any) -> str:
    """Return what may come from a client as one word, so that no line or field of the log is the client's."""
    text = telemetry.shorten(str(value), 200)
    return repr(text) if re.search(r"[\s='\"]", text) else text


def _name(host: str) -> str:
    return host.rpartition(":")[0] if re.search(r":\d+$", host) else host
