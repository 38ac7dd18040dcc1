"""Pages: answers that are a part of something long, with a `Link` to the part that follows (RFC 8288)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from urllib.parse import parse_qsl, quote, urlencode

from fastapi import Request, Response

from conserver.vcon import dump

#: What a route declares that answers by pages: `responses={200: {"model": ..., **PAGED}}`.
PAGED: dict[str, Any] = {
    "headers": {
        "Link": {
            "description": '`<...>; rel="next"`: where the next page is; absent on the last one',
            "schema": {"type": "string"},
        }
    }
}


def as_json(value: Any, headers: Mapping[str, str] | None = None) -> Response:
    """Return plain values as JSON."""
    return Response(dump(value), 200, headers, "application/json")


def link_next(request: Request, **changes: object) -> dict[str, str]:
    """Return the header that leads to the same request with other parameters."""
    query = dict(parse_qsl(request.scope["query_string"].decode("latin-1"), keep_blank_values=True))
    query |= {name: str(value) for name, value in changes.items()}
    return {"Link": f'<{quote(request.scope["path"])}?{urlencode(query)}>; rel="next"'}


def page_from(request: Request, rows: list[Any], start: int, limit: int) -> Response:
    """Return the *rows* from *start* on; if they are as many as were asked for, others may follow."""
    return as_json(rows, link_next(request, start=start + limit) if len(rows) == limit else None)
