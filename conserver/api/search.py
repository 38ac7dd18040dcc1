"""Finding vCons: the list, the search, many of them by their UUIDs, and the index that all of it reads."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Annotated, Any
from urllib.parse import parse_qsl, quote, urlencode

from fastapi import APIRouter, Query, Request, Response
from pydantic import BeforeValidator

from conserver.api.access import needs
from conserver.api.describe import A_STORED_VCON
from conserver.api.problems import Problem, responses, unprocessable
from conserver.api.state import Api
from conserver.api.vcons import JSON, api_of, names_in, served, text_of
from conserver.errors import NotAVcon, VconNotFound
from conserver.index import BadCursor, Page
from conserver.reindex import reindex
from conserver.stored import vcon_key
from conserver.talk import Talk
from conserver.terms import BadTerm
from conserver.vcon import dump
from conserver.vcon_forms import is_uuid

router = APIRouter(tags=["Search"])

#: Of one answer.
MOST_UUIDS = 10_000
MOST_VCONS = 1000
MOST_BYTES = 64 * 1024 * 1024
#: How many vCons one request reads at the same time, and how many of them from storages.
_AT_ONCE = 50
_FROM_STORAGES = 8
#: In a query a plus that is not escaped is a blank.
_LOST_PLUS = re.compile(r"(\d\d:\d\d(?::\d\d(?:\.\d+)?)?) (\d\d:?\d\d)")
#: Else a number would be seconds since 1970.
_DATE = re.compile(r"\d{4}-\d\d-\d\d")
_rebuilding = asyncio.Lock()


def _time(value: Any) -> Any:
    if isinstance(value, str) and not _DATE.match(value):
        raise ValueError("it must be a time like 2026-01-31T12:00:00Z")
    return _LOST_PLUS.sub(r"\1+\2", value) if isinstance(value, str) else value


Time = Annotated[datetime | None, BeforeValidator(_time)]
SINCE = Query(description="created at this time or later (RFC 3339; without a zone it is UTC), to the second")
UNTIL = Query(description="created at this time or earlier (RFC 3339; without a zone it is UTC), to the second")
AFTER = Query(description="where to go on: from the `Link` of the answer before")
_PAGE: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "UUIDs, newest first. A page may be shorter than `size` though there is a next one",
        "content": {JSON: {"schema": {"type": "array", "items": {"type": "string", "format": "uuid"}}}},
        "headers": {
            "Link": {
                "description": 'the next page, `rel="next"`; absent on the last one. A vCon that is there all the time '
                "comes just once",
                "schema": {"type": "string"},
            }
        },
    }
}
_MANY: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "The vCons in the order of the request, null for each that there is not",
        "content": {JSON: {"schema": {"type": "array", "items": {"anyOf": [A_STORED_VCON, {"type": "null"}]}}}},
    }
}


@router.get("/vcon", responses=_PAGE | responses(403, 409, 422, 503), **needs("read"))
async def list_vcons(
    request: Request,
    page: Annotated[int, Query(ge=1, le=10**9, description="cheap for the first ones; else follow `Link`")] = 1,
    size: Annotated[int, Query(ge=1, le=1000, description="how many UUIDs at the most")] = 50,
    since: Annotated[Time, SINCE] = None,
    until: Annotated[Time, UNTIL] = None,
    after: Annotated[str, AFTER] = "",
) -> Response:
    """List the UUIDs of vCons, newest first."""
    api = api_of(request)
    skip = 0 if after else (page - 1) * size
    try:
        found = await api.run(
            api.store.index.page, since=_secs(since), until=_secs(until), after=after, skip=skip, size=size
        )
    except BadCursor as error:
        raise unprocessable(str(error), parameter="after") from error
    return _answer(request, found)


@router.get("/vcons/search", responses=_PAGE | responses(400, 403, 409, 422, 503), **needs("read"))
async def search_vcons(
    request: Request,
    tel: Annotated[str, Query(description="number of a party, with or without `tel:`")] = "",
    mailto: Annotated[str, Query(description="address of a party, with or without `mailto:`")] = "",
    name: Annotated[str, Query(description="name of a party")] = "",
    tag: Annotated[list[str], Query(description="`name:value`; may be repeated: all of them")] = [],  # noqa: B006
    subject: Annotated[str, Query(description="words of the subject, in any order and case: all of them")] = "",
    since: Annotated[Time, SINCE] = None,
    until: Annotated[Time, UNTIL] = None,
    size: Annotated[int, Query(ge=1, le=MOST_UUIDS, description="how many UUIDs at the most")] = 1000,
    after: Annotated[str, AFTER] = "",
) -> Response:
    """Find vCons by a party, tags or words of the subject; several terms mean all of them."""
    api = api_of(request)
    given: dict[str, str | Sequence[str]] = {
        **{"tel": tel, "mailto": mailto, "name": name},
        **{"tag": [one for one in tag if one], "subject": subject},
    }
    terms = {kind: value for kind, value in given.items() if value}
    if not terms:
        raise Problem(400, "no-term", f"say what to look for: {', '.join(given)}")
    try:
        found = await api.run(
            api.store.index.search, terms, since=_secs(since), until=_secs(until), after=after, size=size
        )
    except BadCursor as error:
        raise unprocessable(str(error), parameter="after") from error
    except BadTerm as error:
        raise unprocessable(str(error), parameter="subject") from error
    return _answer(request, found)


def _secs(time: datetime | None) -> float | None:
    if time is None:
        return None
    return (time if time.tzinfo else time.replace(tzinfo=UTC)).timestamp()


def _answer(request: Request, page: Page) -> Response:
    headers = {}
    if page.after:
        kept = parse_qsl(request.scope["query_string"].decode("latin-1"), keep_blank_values=True)
        query = [*((name, value) for name, value in kept if name not in ("after", "page")), ("after", page.after)]
        # The path as it was asked for, below a root path or not.
        path = quote(request.scope["path"])
        headers["Link"] = f'<{path}?{urlencode(query, errors="replace", quote_via=quote)}>; rel="next"'
    return Response(dump(page.uuids), 200, headers, JSON)


@router.get("/vcons", responses=_MANY | responses(403, 413, 422, 502, 503), **needs("read"))
async def read_vcons(
    request: Request,
    vcon_uuids: Annotated[
        list[str], Query(description=f"up to {MOST_VCONS:,} UUIDs; may be repeated, or joined with commas")
    ],
) -> Response:
    """Read many vCons."""
    api = api_of(request)
    wanted = [uuid.lower() for value in vcon_uuids for uuid in value.split(",")]
    _check(wanted)
    texts: dict[str, bytes | None] = {}
    times = {uuid: wanted.count(uuid) for uuid in names_in(wanted)}
    most = max(MOST_BYTES, api.settings.max_vcon_bytes)
    # Before anything is read: most are in Redis as a text.
    _bound(sum(size * n for size, n in zip(await api.hold(_sizes(list(times))), times.values(), strict=True)), most)
    total, uuids, asking = 0, list(times), asyncio.Semaphore(_FROM_STORAGES)
    for at in range(0, len(uuids), _AT_ONCE):
        some = uuids[at : at + _AT_ONCE]
        found = await asyncio.gather(*(_text(api, uuid, asking) for uuid in some))
        texts |= zip(some, await api.run(_served_each, found, api.settings.egress_format_version), strict=True)
        total += sum(len(texts[uuid] or b"") * times[uuid] for uuid in some)
        _bound(total, most)
    return Response(b"[" + b",".join(texts[uuid] or b"null" for uuid in wanted) + b"]", 200, None, JSON)


def _check(uuids: list[str]) -> None:
    wrong = [uuid for uuid in uuids if not is_uuid(uuid)]
    if wrong:
        errors = [{"parameter": "vcon_uuids", "detail": f"{uuid[:60]!r} is no UUID"} for uuid in wrong[:100]]
        raise Problem(422, "invalid-request", f"{len(wrong)} of {len(uuids)} are no UUIDs", errors=errors)
    if len(uuids) > MOST_VCONS:
        detail = f"{len(uuids):,} UUIDs: ask for {MOST_VCONS:,} at the most"
        raise unprocessable(detail, parameter="vcon_uuids")


def _sizes(uuids: list[str]) -> Talk[list[int]]:
    """Return how many bytes each has in Redis; 0 for what is not there, or not as a text."""
    replies = yield [("STRLEN", vcon_key(uuid)) for uuid in uuids]
    return [reply if isinstance(reply, int) else 0 for reply in replies]


def _bound(size: int, most: int) -> None:
    if size > most:
        detail = f"these vCons have more than {most:,} bytes together: ask for fewer at once"
        raise Problem(413, "too-large", detail)


async def _text(api: Api, uuid: str, asking: asyncio.Semaphore) -> bytes | None:
    try:
        text = await api.hold(api.store.reading(uuid))
        if text is not None:
            return text
        async with asking:
            return await text_of(api, uuid)
    except (VconNotFound, NotAVcon):
        return None


def _served_each(texts: list[bytes | None], version: str | None) -> list[bytes | None]:
    return [_served(text, version) if text is not None else None for text in texts]


def _served(text: bytes, version: str | None) -> bytes | None:
    try:
        return served(text, version)
    except NotAVcon:
        # What lies there is no vCon, and must not hide the others.
        return None


@router.get("/index_vcons", response_model=int, responses=responses(403, 409, 503, 507), **needs("write"))
async def index_vcons(request: Request) -> Response:
    """Enter every vCon that is in Redis into the index; answer how many there are.

    Needed only after other programs have written vCons, or deleted keys of the index.
    """
    api = api_of(request)
    if _rebuilding.locked():
        raise Problem(409, "busy", "the index is being rebuilt already: wait for that")
    async with _rebuilding:
        request.scope["changes"] = True
        return Response(dump(await api.run(reindex, api.store.client, api.settings)), 200, None, JSON)
