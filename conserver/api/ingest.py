"""Ingest: vCons that partners send with keys of their own, and stored ones that go to a list again."""

from __future__ import annotations

import asyncio
import hmac
import time
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request, Response

from conserver import telemetry
from conserver.api import bodies, idempotency
from conserver.api.access import caller_of, token_in
from conserver.api.describe import takes, takes_vcon
from conserver.api.idempotency import Once, asked
from conserver.api.problems import Problem, responses
from conserver.api.state import Api
from conserver.api.vcons import hold_patiently
from conserver.errors import VconNotFound
from conserver.stored import vcon_key
from conserver.vcon import dump

router = APIRouter(tags=["Ingest"])

ENQUEUED = "conserver.api.count_vcons_enqueued"
#: So long a vCon stays in Redis that was to expire and is pushed: the chain decides anew when it has worked on it.
STAYS_SECS = 30 * 86400
#: How many are looked for in one round trip.
LOOK_AT_ONCE = 1000
#: How many storages are asked at the same time for one request, each for so many vCons, and for how long in all.
ASKING, ASK_AT_ONCE, ASK_SECS = 8, 20, 120.0

_LIST = Query(description="the ingress list", examples=["main_in"], min_length=1)
_OF_PARTNERS = {
    "openapi_extra": {
        "x-scope": "a key of ingress_auth, or ingress:<list>",
        "parameters": [idempotency.PARAMETER],
    }
}
_OF_FEEDERS = {"openapi_extra": {"x-scope": "write, or ingress:<list>", "parameters": [idempotency.PARAMETER]}}
_UUIDS_BODY = {
    "required": True,
    "description": f"UUIDs of stored vCons, at most {bodies.MAX_UUIDS:,}.",
    "content": {
        "application/json": {
            "schema": {"type": "array", "items": {"type": "string", "format": "uuid"}, "maxItems": bodies.MAX_UUIDS},
            "example": ["01928e10-193e-8231-b9a2-279e0d16bc46"],
        }
    },
}
_PUSHED: dict[str, Any] = {
    "description": "Some were missing, and were left out because of `missing=skip`.",
    "content": {
        "application/json": {
            "schema": {
                "type": "object",
                "required": ["pushed", "missing"],
                "properties": {
                    "pushed": {"type": "integer"},
                    "missing": {"type": "array", "items": {"type": "string", "format": "uuid"}},
                },
            }
        }
    },
}


@router.post(
    "/vcon/external-ingress",
    status_code=204,
    responses=responses(403, 409, 413, 415, 422, 502, 503, 507),
    **takes_vcon(_OF_PARTNERS),
)
async def take_from_partner(request: Request, ingress_list: Annotated[str, _LIST]) -> Response:
    """Create a vCon as a partner, and push it to the partner's list; one that is stored already is never replaced."""
    api: Api = request.app.state.api
    # Partners have keys that count nowhere else, so this checks access by itself.
    request.scope["caller"] = _partner(request, ingress_list)
    await api.ingress_list(ingress_list)
    vcon, text = await bodies.read_vcon(request)
    uuid = str(vcon.uuid).lower()
    request.scope["audit"] = {"vcon": uuid, "list": ingress_list[:200]}
    async with Once(request, text) as once:
        if once.done:
            return once.again()
        # What a storage holds is in Redis after this, and so it is not replaced either.
        await absent(api, [uuid], stay=False)
        pushes = once.pushes([ingress_list], [uuid], 204)
        stored = await hold_patiently(api, lambda: api.store.creating(vcon, text, then=pushes))
        if stored.outcome == "exists":
            raise Problem(409, "exists", f"another vCon is stored under {uuid}: it was not changed, and not pushed")
    telemetry.count(ENQUEUED, ingress_list=ingress_list, source="external")
    return Response(status_code=204)


def _partner(request: Request, name: str) -> str:
    """Return who sends a vCon to the list *name*; Problem that says what is wrong with the key."""
    api: Api = request.app.state.api
    given = token_in(request, api.settings.api_header_name)
    if not given:
        raise _refused(f"an API key is required, in the header {api.settings.api_header_name}")
    caller = api.tokens.caller(given)
    if caller is not None and caller.may(f"ingress:{name}"):
        return caller.name
    ingress_auth = api.config.ingress_auth
    if not ingress_auth:
        raise _refused("no ingress auth is configured")
    if name not in ingress_auth:
        raise _refused(f"ingress list {name[:200]!r} is not configured for external ingress")
    keys = ingress_auth[name]
    if not keys:
        raise _refused(f"the configuration of ingress list {name[:200]!r} is invalid: it has no key")
    # All of them, so that how long it takes does not tell which was nearly right.
    found = [hmac.compare_digest(_bytes(given), _bytes(key)) for key in keys]
    if not any(found):
        raise _refused(f"invalid API key for ingress list {name[:200]!r}")
    return f"ingress_auth:{name[:200]}:{found.index(True) + 1}"


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


def _refused(detail: str) -> Problem:
    return Problem(403, "no-access", detail)


@router.post(
    "/vcon/ingress",
    status_code=204,
    responses={200: _PUSHED, **responses(403, 404, 409, 413, 415, 422, 502, 503, 507)},
    **takes(_UUIDS_BODY, _OF_FEEDERS),
)
async def push_stored(
    request: Request,
    ingress_list: Annotated[str, _LIST],
    missing: Annotated[
        Literal["refuse", "skip"],
        Query(description="what to do if some are not stored: push none and say which, or push the others"),
    ] = "refuse",
) -> Response:
    """Push stored vCons to an ingress list, in this order; all of them, or none if one is not stored."""
    api: Api = request.app.state.api
    caller = caller_of(request)
    if not caller.may_feed(ingress_list):
        raise Problem(403, "no-access", f"token {caller.name!r} may not push to this list")
    await api.ingress_list(ingress_list)
    uuids = await bodies.read_uuids(request)
    request.scope["audit"] = {"list": ingress_list[:200], "vcons": str(len(uuids))}
    async with Once(request, *map(str.encode, uuids)) as once:
        if once.done:
            return once.again()
        gone = await absent(api, uuids)
        if gone and missing == "refuse":
            raise _missing(gone, len(uuids))
        status, text = (200, dump({"pushed": 0, "missing": gone})) if gone else (204, b"")
        if gone:
            left_out = set(gone)
            uuids = [uuid for uuid in uuids if uuid not in left_out]
            text = dump({"pushed": len(uuids), "missing": gone})
        # All in one command: a connection that is cut in the middle leaves no part of them pushed.
        await api.hold(asked(once.pushes([ingress_list] if uuids else [], uuids, status, text)))
    telemetry.count(ENQUEUED, len(uuids), ingress_list=ingress_list, source="reingress")
    return Response(text or None, status, media_type="application/json" if text else None)


def _missing(gone: Sequence[str], asked_for: int) -> Problem:
    detail = (
        f"{len(gone)} of {asked_for} vCons are not stored, and none was pushed: leave them out, or use missing=skip"
    )
    errors = [{"detail": f"there is no vCon {uuid}"} for uuid in gone[:100]]
    return Problem(404, "no-such-vcon", detail, errors=errors, missing=list(gone))


async def absent(api: Api, uuids: Sequence[str], *, stay: bool = True) -> list[str]:
    """Return those that neither Redis nor a storage has, each once; what a storage has is in Redis afterwards.

    Those that are to *stay* do not expire for as long as they wait to be worked on. StorageError if a storage that
    may have one could not be asked.
    """
    distinct, away = list(dict.fromkeys(uuids)), []
    for at in range(0, len(distinct), LOOK_AT_ONCE):
        some = distinct[at : at + LOOK_AT_ONCE]
        keys = [vcon_key(uuid) for uuid in some]
        commands: list[Any] = [("EXISTS", key) for key in keys]
        if stay:
            commands += [("EXPIRE", key, STAYS_SECS, "GT") for key in keys]
        replies = await api.hold(asked(commands))
        away += [uuid for uuid, there in zip(some, replies, strict=False) if not there]
    return await _not_in_storages(api, away) if away else []


async def _not_in_storages(api: Api, uuids: list[str]) -> list[str]:
    storages, _ = await api.run(api.storages)
    if not api.settings.storage_fallback or all(storage.get is None for storage in storages):
        return uuids
    missing: set[str] = set()
    pieces = iter([uuids[at : at + ASK_AT_ONCE] for at in range(0, len(uuids), ASK_AT_ONCE)])
    until = time.monotonic() + ASK_SECS

    def ask(piece: list[str]) -> list[str]:
        return [uuid for uuid in piece if not _is_stored(api, uuid)]

    async def ask_on() -> None:
        for piece in pieces:
            if time.monotonic() > until:
                raise Problem(
                    503,
                    "storages-slow",
                    f"the storages did not find all {len(uuids)} vCons within {ASK_SECS:g} s, and none was pushed: "
                    "send fewer at once, or the same again (those that were found are found sooner then)",
                    headers={"Retry-After": "1"},
                )
            missing.update(await api.ask(ask, piece))

    asking = [asyncio.ensure_future(ask_on()) for _ in range(min(ASKING, len(uuids)))]
    try:
        await asyncio.gather(*asking)
    finally:
        for task in asking:
            task.cancel()
    return [uuid for uuid in uuids if uuid in missing]


def _is_stored(api: Api, uuid: str) -> bool:
    try:
        # The copy may expire: the storage that gave it still has it.
        api.store.read(uuid)
    except VconNotFound:
        return False
    return True
