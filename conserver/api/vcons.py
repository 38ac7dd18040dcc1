"""One vCon: create, read, replace, patch, delete."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from typing import Annotated, TypeVar

from fastapi import APIRouter, Path, Request, Response
from starlette.convertors import Convertor, register_url_convertor

from conserver import telemetry
from conserver.api import bodies, idempotency, patches
from conserver.api.access import FEEDERS, allow, caller_of, needs
from conserver.api.conditions import IF_MATCH, IF_NONE_MATCH, Condition, condition_of, etag
from conserver.api.describe import VCON_EXAMPLE, gives_vcon, not_modified, reads_headers, takes_patch, takes_vcon
from conserver.api.direct import DirectRoute
from conserver.api.idempotency import Once
from conserver.api.problems import Problem, responses, unprocessable
from conserver.api.state import Api
from conserver.erasure import Erased, erase
from conserver.errors import VconConflict, VconNotFound
from conserver.stored import digest
from conserver.talk import Talk
from conserver.vcon import Vcon, dump, migrate, to_version
from conserver.vcon_forms import is_uuid


class _Uuid(Convertor[str]):
    regex = "[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}"

    def convert(self, value: str) -> str:
        return value

    def to_string(self, value: str) -> str:
        return value


register_url_convertor("vcon", _Uuid())

#: What most requests ask for. It comes first: routes are tried one after the other, and each costs a microsecond.
first = APIRouter(tags=["vCons"], route_class=DirectRoute)
router = APIRouter(tags=["vCons"])

JSON = "application/json"
PATCHES = ("application/merge-patch+json", JSON, "")
#: How often a request that meets somebody who has the vCon for himself, or changes it at this moment, is tried.
_MOST_TRIES = 50
_PAUSE_SECS = 0.1

T = TypeVar("T")

_UUID = {
    "name": "vcon_uuid",
    "in": "path",
    "required": True,
    "description": "the UUID of the vCon",
    "schema": {"type": "string", "format": "uuid"},
    "example": VCON_EXAMPLE["uuid"],
}
_LISTS = {
    "name": "ingress_lists",
    "in": "query",
    "description": "where it is pushed; may be repeated, or joined with commas",
    "schema": {"type": "array", "items": {"type": "string"}, "default": []},
}
VconUuid = Annotated[str, Path(description="the UUID of the vCon", examples=[VCON_EXAMPLE["uuid"]])]


def api_of(request: Request) -> Api:
    """Return what the handlers share."""
    api: Api = request.app.state.api
    return api


def names_in(values: list[str]) -> list[str]:
    """Return the names of a parameter that may be repeated, or joined with commas, each once."""
    return list(dict.fromkeys(name for value in values for part in value.split(",") if (name := part.strip())))


def uuid_in(text: str) -> str:
    """Return a UUID of the path or of a parameter as it stands in keys."""
    if not is_uuid(text):
        raise unprocessable(f"{text[:60]!r} is no UUID", parameter="vcon_uuid")
    return text.lower()


def served(text: bytes, version: str | None) -> bytes:
    """Return a stored text as clients get it: migrated, or in the version of `EGRESS_FORMAT_VERSION`."""
    document = Vcon.parse(text, migrate=False).document
    if not migrate(document) and version is None and text[:1] == b"{":
        return text
    return dump(to_version(document, version) if version else document)


async def text_of(api: Api, uuid: str) -> bytes:
    """Return the stored text, from Redis or a storage; VconNotFound."""
    text = await api.hold(api.store.reading(uuid))
    return text if text is not None else await api.ask(api.store.read, uuid)


async def text_for(api: Api, uuid: str, condition: Condition) -> bytes | None:
    """Return the stored text that *condition* is held against, None if there is none; Problem if it does not hold."""
    text = None
    with suppress(VconNotFound):
        text = await text_of(api, uuid)
    if not condition.holds(text):
        raise condition.failed(uuid, text)
    return text


async def hold_patiently(api: Api, talk: Callable[[], Talk[T]]) -> T:
    """Return what the talk returns; while somebody else has the vCon for himself, it is held again."""
    for _ in range(_MOST_TRIES):
        with suppress(VconConflict):
            return await api.hold(talk())
        await asyncio.sleep(_PAUSE_SECS)
    return await api.hold(talk())


def place_of(request: Request, uuid: str) -> str:
    """Return the path of a vCon, as this client reaches it."""
    return f"{request.scope['root_path']}/vcon/{uuid}"


def answer(text: bytes, status: int, findings: int = 0, **headers: str) -> Response:
    """Return the answer with a vCon that was stored just now."""
    more = {"Conserver-Findings": str(findings)} if findings else {}
    return Response(text, status, {"ETag": etag(text), **more, **headers}, JSON)


@first.post(
    "/vcon",
    status_code=201,
    responses=gives_vcon(201, "the vCon as it is stored", "Conserver-Findings")
    | responses(403, 409, 413, 415, 422, 503, 507),
    **takes_vcon({"openapi_extra": {**FEEDERS, "parameters": [_LISTS, idempotency.PARAMETER]}}),
)
async def create_vcon(request: Request) -> Response:
    """Create a vCon, and push it to ingress lists."""
    api, caller = api_of(request), caller_of(request)
    lists = names_in(request.query_params.getlist("ingress_lists"))
    if not (caller.may("write") or (lists and all(map(caller.may_feed, lists)))):
        raise Problem(403, "no-access", f"token {caller.name!r} may not create vCons here")
    for name in lists:
        await api.ingress_list(name)
    vcon, text = await bodies.read_vcon(request)
    uuid = str(vcon.uuid).lower()
    request.scope["audit"] = {"vcon": uuid}
    replace = api.config.api.on_existing == "replace" and caller.may("write")
    async with Once(request, text) as once:
        if once.done:
            return once.again(answer(text, 201, request.scope["findings"]))
        pushes = once.pushes(lists, [uuid], 201)
        stored = await hold_patiently(api, lambda: api.store.creating(vcon, text, replace=replace, then=pushes))
        assert stored.text is not None  # noqa: S101  for the type checker: something is stored now
        if stored.outcome == "exists":
            detail = f"another vCon is stored under {uuid}: change it by PUT or PATCH"
            headers = {"Location": place_of(request, uuid), "ETag": etag(stored.text)}
            raise Problem(409, "exists", detail, headers=headers)
    for name in lists:
        telemetry.count("conserver.api.count_vcons_enqueued", ingress_list=name, source="new")
    return answer(stored.text, 201, request.scope["findings"])


@first.get(
    "/vcon/{vcon_uuid:vcon}",
    responses=gives_vcon(200, "the vCon") | not_modified() | responses(403, 404, 422, 502, 503, 507),
    **reads_headers(needs("read"), _UUID, IF_NONE_MATCH),
)
async def read_vcon(request: Request) -> Response:
    """Read a vCon, from Redis or else from the first storage that has it."""
    allow(request, "read")
    api = api_of(request)
    text = await text_of(api, request.path_params["vcon_uuid"].lower())
    if condition_of(request).is_known(text):
        return Response(None, 304, {"ETag": etag(text)})
    version = api.settings.egress_format_version
    if len(text) < bodies.LARGE_BYTES:
        return Response(served(text, version), 200, {"ETag": etag(text)}, JSON)
    return Response(await api.run(served, text, version), 200, {"ETag": etag(text)}, JSON)


@router.get("/vcon/{vcon_uuid}", include_in_schema=False, **needs("read"))
async def refuse_vcon(vcon_uuid: str) -> Response:
    """Refuse what is no UUID, and no other path."""
    raise unprocessable(f"{vcon_uuid[:60]!r} is no UUID", parameter="vcon_uuid")


@router.put(
    "/vcon/{vcon_uuid}",
    responses=gives_vcon(200, "the vCon that has replaced another version", "Conserver-Findings")
    | gives_vcon(201, "the vCon, of which Redis held no version", "Conserver-Findings", "Location")
    | responses(403, 409, 412, 413, 415, 422, 502, 503, 507),
    **reads_headers(takes_vcon(needs("write")), IF_MATCH, IF_NONE_MATCH),
)
async def replace_vcon(request: Request, vcon_uuid: VconUuid) -> Response:
    """Replace a vCon, or create it; with `If-Match` or `If-None-Match` only if that holds.

    It is stored as it is sent, `updated_at` included.
    """
    api, uuid, condition = api_of(request), uuid_in(vcon_uuid), condition_of(request)
    request.scope["audit"] = {"vcon": uuid}
    vcon, text = await bodies.read_vcon(request)
    if str(vcon.uuid).lower() != uuid:
        raise unprocessable(f"the body is vCon {vcon.uuid}, the path says {uuid}", pointer="/uuid")
    if condition:
        await text_for(api, uuid, condition)
    may_replace = condition.holds if condition else None
    stored = await hold_patiently(api, lambda: api.store.replacing(vcon, text, may_replace))
    if stored.text is None or stored.outcome == "kept":
        raise condition.failed(uuid, stored.text)
    if stored.outcome == "created":
        return answer(stored.text, 201, request.scope["findings"], Location=place_of(request, uuid))
    return answer(stored.text, 200, request.scope["findings"])


@router.patch(
    "/vcon/{vcon_uuid}",
    responses=gives_vcon(200, "the changed vCon", "Conserver-Findings")
    | responses(403, 404, 409, 412, 413, 415, 422, 502, 503, 507),
    **reads_headers(takes_patch(needs("write")), IF_MATCH, IF_NONE_MATCH),
)
async def patch_vcon(request: Request, vcon_uuid: VconUuid) -> Response:
    """Change a vCon by a merge patch (RFC 7396): with `If-Match` that version, else the newest.

    Without a condition it is merged with what others change at the same time. `updated_at` becomes the time of now.
    """
    api, uuid, condition = api_of(request), uuid_in(vcon_uuid), condition_of(request)
    request.scope["audit"] = {"vcon": uuid}
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind not in PATCHES:
        detail = f"a patch of type {kind[:80]!r} is not known: send {PATCHES[0]}"
        raise Problem(415, "unsupported-patch", detail, headers={"Accept-Patch": PATCHES[0]})
    patch = await bodies.read_json(request, api.settings.max_vcon_bytes)
    if not isinstance(patch, dict):
        raise unprocessable("a merge patch of a vCon is a JSON object")
    text, findings = await api.ask(patches.change, api, uuid, patch, condition)
    return answer(text, 200, findings)


@router.delete(
    "/vcon/{vcon_uuid}",
    status_code=204,
    response_class=Response,
    responses=responses(403, 404, 409, 412, 422, 502, 503, 507),
    **reads_headers(needs("write"), IF_MATCH, IF_NONE_MATCH),
)
async def delete_vcon(request: Request, vcon_uuid: VconUuid) -> Response:
    """Delete a vCon from Redis, the index and every storage; 502 names storages that may still hold it.

    Dead letters and entries of lists keep its UUID. To repeat finishes what a storage could not do.
    """
    api, uuid, condition = api_of(request), uuid_in(vcon_uuid), condition_of(request)
    request.scope["audit"] = {"vcon": uuid}
    erased = await _erased(api, uuid, condition)
    if erased.left:
        errors = [{"storage": name, "detail": why} for name, why in erased.left.items()]
        names = ", ".join(map(repr, erased.left))
        detail = f"vCon {uuid} is gone from everywhere but, perhaps, {names}: see errors, and delete again"
        raise Problem(502, "not-deleted-everywhere", detail, errors=errors)
    if not erased.found:
        raise VconNotFound(f"there is no vCon {uuid}: neither in Redis nor in a storage")
    return Response(status_code=204)


async def _erased(api: Api, uuid: str, condition: Condition) -> Erased:
    def work(expected: str) -> Erased:
        good, bad = api.storages()
        return erase(api.store, good, bad, uuid, api.settings.storage_timeout_secs, expected=expected)

    for tries_left in range(_MOST_TRIES, -1, -1):
        text = await text_for(api, uuid, condition) if condition else None
        try:
            return await api.ask(work, digest(text) if text is not None else "")
        except VconConflict:
            # It has changed since it was compared.
            if not tries_left:
                raise
    raise AssertionError("the last try returns or raises")
