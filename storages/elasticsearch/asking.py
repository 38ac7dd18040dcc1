"""Requests to the server, and answers that are what was asked for."""

from __future__ import annotations

from typing import Any

from conserver import outbound
from conserver.errors import OutboundError
from conserver.outbound import Answer, Limits

from .options import Options

JSON, LINES = "application/json", "application/x-ndjson"
#: A vCon has up to 64 MB, and its quotes are escaped once more.
_MOST_BYTES = 192 * 1024 * 1024


def ask(
    opts: Options, method: str, path: str, body: bytes = b"", *, kind: str = JSON, quote_answer: bool = True
) -> Answer:
    """Send a request, which may be sent again; without *quote_answer* what it says is in no error."""
    headers = {"Accept": JSON} | ({"Content-Type": kind} if body else {})
    if opts.authorization:
        headers["Authorization"] = opts.authorization
    return outbound.request(
        method,
        opts.address + path,
        trusted=True,
        headers=headers,
        body=body,
        limits=Limits.within(opts.timeout, max_bytes=_MOST_BYTES),
        repeatable=True,  # what came twice has an equal version, or is refused, and then all is begun anew
        quote_answer=quote_answer,
        ca_file=opts.ca_certs,
    )


def objects(answer: Answer, *names: str, count: int | None = None) -> list[dict[str, Any]]:
    """Return the list of objects under these names in the answer; there have to be so many of them."""
    found: Any = answer.json()
    for name in names:
        found = found.get(name) if isinstance(found, dict) else None
    if not isinstance(found, list) or not all(isinstance(one, dict) for one in found):
        raise strange(answer)
    if count is not None and len(found) != count:
        raise strange(answer)
    return found


def error_type(found: dict[str, Any]) -> str:
    """Return the kind of error that an object tells, '' if it tells none; its reason quotes what is in the vCon."""
    error = found.get("error")
    if error is None:
        return ""
    kind = error.get("type") if isinstance(error, dict) else None
    return kind[:80] if isinstance(kind, str) and kind.isascii() and kind.isprintable() else "an error"


def strange(answer: Answer) -> OutboundError:
    """Return the error for an answer that is not what was asked for."""
    return OutboundError(f"{answer.source}: the answer is none of Elasticsearch or OpenSearch; is url right?")
