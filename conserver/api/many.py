"""Many vCons in one request: each is created or refused by itself, with a result of its own."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Annotated, Any

import msgspec
from fastapi import APIRouter, Query, Request, Response
from redis.exceptions import ResponseError

from conserver import telemetry
from conserver.api import bodies, idempotency
from conserver.api.access import FEEDERS, caller_of
from conserver.api.describe import A_VCON, takes
from conserver.api.idempotency import Once
from conserver.api.ingest import ENQUEUED
from conserver.api.problems import Problem, of_error, responses, unprocessable
from conserver.api.state import Api
from conserver.api.vcons import hold_patiently, names_in
from conserver.connection import Command
from conserver.errors import ConserverError, NotAVcon
from conserver.vcon import Vcon, dump, load
from conserver.vcon_forms import uncompressed, uuid_of

router = APIRouter(tags=["Ingest"])

MOST = 1000
#: How many are on their way to the server at the same time.
AT_ONCE = 64
#: Of the findings of one vCon; there may be a thousand vCons.
MOST_ERRORS = 20
#: The work of the event loop after which others have a turn.
TURN_BYTES = 64 * 1024

LISTS = Query(description="where each created vCon is pushed; may be repeated, or joined with commas")
RESULT: dict[str, Any] = {
    "type": "object",
    "required": ["uuid", "status"],
    "properties": {
        "uuid": {"type": ["string", "null"], "description": "null if it could not be read"},
        "status": {
            "type": "integer",
            "description": "201 created, 409 another one is stored, 422 no vCon or an invalid one; "
            "503 and 507 not stored, since the server is away or full: send it again",
        },
        "problem": {"$ref": "#/components/schemas/Problem"},
    },
}
_BODY = {
    "required": True,
    "description": f"At most {MOST:,} vCons, as JSON or as gzip of it.",
    "content": {"application/json": {"schema": {"type": "array", "items": A_VCON, "maxItems": MOST}}},
}
_RESULTS: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "A result for each vCon, in order.",
        "content": {"application/json": {"schema": {"type": "array", "items": RESULT}}},
    }
}
_raws = msgspec.json.Decoder(list[msgspec.Raw])


async def lists_for(request: Request, ingress_lists: list[str]) -> list[str]:
    """Return the lists that the request names; Problem if the caller may not create for them, or one is unknown."""
    api: Api = request.app.state.api
    caller, lists = caller_of(request), names_in(ingress_lists)
    if not (caller.may("write") or (lists and all(map(caller.may_feed, lists)))):
        raise Problem(403, "no-access", f"token {caller.name!r} may not create vCons here")
    for name in lists:
        await api.ingress_list(name)
    return lists


class Creating:
    """What the vCons of one request have in common."""

    def __init__(self, request: Request, lists: list[str]) -> None:
        self._request = request
        self._api: Api = request.app.state.api
        self._replace = self._api.config.api.on_existing == "replace" and caller_of(request).may("write")
        self.lists = lists
        self.created = 0

    async def read(self, data: bytes) -> tuple[Vcon, bytes] | Problem:
        """Return the vCon in *data* and its text, or why it is refused."""
        try:
            if len(data) < bodies.LARGE_BYTES:
                return bodies.accept(data, self._request)
            return await self._api.run(bodies.accept, data, self._request)
        except Problem as problem:
            problem.errors = problem.errors[:MOST_ERRORS]
            return problem

    async def create(self, vcon: Vcon, text: bytes, pushes: Sequence[Command]) -> Problem | None:
        """Store, index and push; return why not, or None."""
        try:
            stored = await hold_patiently(
                self._api, lambda: self._api.store.creating(vcon, text, replace=self._replace, then=pushes)
            )
        except (ConserverError, ResponseError) as error:
            return of_error(error)
        if stored.outcome == "exists":
            return Problem(409, "exists", f"another vCon is stored under {vcon.uuid}")
        for name in self.lists:
            telemetry.count(ENQUEUED, ingress_list=name, source="new")
        self.created += 1
        return None


def result_of(uuid: str | None, problem: Problem | None) -> dict[str, Any]:
    """Return what is answered for one vCon."""
    if problem is None:
        return {"uuid": uuid, "status": 201}
    return {"uuid": uuid, "status": problem.status, "problem": problem.document()}


def uuid_in(data: bytes) -> str | None:
    """Return the UUID of what was refused, if it has one."""
    try:
        return uuid_of(load(data))
    except NotAVcon:
        return None


@router.post(
    "/vcons",
    responses={**_RESULTS, **responses(403, 409, 413, 415, 422, 503, 507)},
    **takes(_BODY, {"openapi_extra": {**FEEDERS, "parameters": [idempotency.PARAMETER]}}),
)
async def create_many(
    request: Request,
    ingress_lists: Annotated[list[str], LISTS] = [],  # noqa: B006
) -> Response:
    """Create up to a thousand vCons, and push each that was created; every one has a result of its own."""
    creating = Creating(request, await lists_for(request, ingress_lists))
    most = request.app.state.api.settings.max_vcon_bytes
    data = await bodies.read(request, most)
    entries = _entries(data, most)
    request.scope["audit"] = {"vcons": str(len(entries))}
    async with Once(request, data) as once:
        if once.done:
            return once.again()
        results: list[dict[str, Any]] = []
        failed: Problem | None = None
        for at in range(0, len(entries), AT_ONCE):
            some = entries[at : at + AT_ONCE]
            if failed is not None and failed.status == 503:
                results += [result_of(uuid_in(entry), failed) for entry in some]
                continue
            for uuid, problem in await _create_some(creating, some, once, at):
                results.append(result_of(uuid, problem))
                if problem is not None and problem.status >= 500:
                    failed = failed or problem
        request.scope["audit"]["created"] = str(creating.created)
        if failed is not None and not creating.created:
            raise failed
        text = dump(results)
        if failed is None:
            await once.note(200, text)
    return Response(text, 200, media_type="application/json")


async def _create_some(
    creating: Creating, entries: Sequence[bytes], once: Once, at: int
) -> list[tuple[str | None, Problem | None]]:
    async def create(entry: bytes, read: tuple[Vcon, bytes] | Problem, part: int) -> tuple[str | None, Problem | None]:
        if isinstance(read, Problem):
            return uuid_in(entry), read
        vcon, text = read
        uuid = str(vcon.uuid).lower()
        problem = await creating.create(vcon, text, once.pushes(creating.lists, [uuid], 201, part=part))
        if problem is not None and problem.status == 409 and await once.did(part):
            # An earlier run of this request has created it, and a link has changed it since.
            problem = None
        return uuid, problem

    read, worked = [], 0
    for entry in entries:
        read.append(await creating.read(entry))
        worked += len(entry)
        if worked > TURN_BYTES:
            worked = 0
            await asyncio.sleep(0)
    made = [create(entry, one, at + n) for n, (entry, one) in enumerate(zip(entries, read, strict=True))]
    return list(await asyncio.gather(*made))


def _entries(data: bytes, most: int) -> list[bytes]:
    """Return the entries of the array in *data*, each as it stands there."""
    try:
        text = uncompressed(data, most)
        try:
            entries = [bytes(raw) for raw in _raws.decode(text)]
        except (msgspec.MsgspecError, UnicodeError, RecursionError):
            # It may still be JSON that only the slow parser reads; else that one says what is wrong.
            value = load(text)
            if not isinstance(value, list):
                raise unprocessable("the body must be an array of vCons") from None
            entries = [dump(entry) for entry in value]
    except NotAVcon as error:
        raise unprocessable(f"the body is {error}") from error
    if len(entries) > MOST:
        raise Problem(413, "too-large", f"the body has {len(entries):,} vCons; {MOST:,} at once are possible")
    return entries
