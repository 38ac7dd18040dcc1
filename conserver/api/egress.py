"""Egress: what chains have delivered, taken for good, or leased until the reader acknowledges what it has."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response
from pydantic import BaseModel, ConfigDict, Field

from conserver.api import bodies
from conserver.api.access import needs
from conserver.api.describe import takes_model
from conserver.api.entries import Name, entries_of, text_of
from conserver.api.pages import as_json
from conserver.api.problems import Problem, responses, unprocessable
from conserver.api.vcons import api_of
from conserver.egress import MOST_ENTRIES, LeaseLapsed

router = APIRouter(tags=["Egress"])

MOST_SECS = 3600.0
_ID = r"^[A-Za-z0-9._:-]{1,200}$"

List = Annotated[str, Query(description="an egress list of the config that no chain reads", examples=["main_out"])]
LeaseId = Annotated[str, Field(description="the id that came with the lease", min_length=1, max_length=200)]


class Lease(BaseModel):
    """Entries that nobody else is given until the lease lapses; without any there is no lease."""

    lease: str = Field(description="its id, to acknowledge, return or extend it; empty without entries")
    vcons: list[str] = Field(description="UUIDs, oldest first")
    secs: float = Field(description="how long it stands from now on")
    expires_at: datetime = Field(description="when it lapses by the server's clock; then its entries go back")


class EndOfLease(BaseModel):
    """What is to be ended of a lease."""

    model_config = ConfigDict(json_schema_extra={"example": {"egress_list": "main_out", "lease": "reader-1"}})

    egress_list: Name
    lease: LeaseId
    vcons: list[str] | None = Field(
        default=None, description="those that are meant; absent: all that is left", max_length=MOST_ENTRIES
    )


class Extension(BaseModel):
    """For how long a lease is to stand from now on."""

    model_config = ConfigDict(
        json_schema_extra={"example": {"egress_list": "main_out", "lease": "reader-1", "secs": 120}}
    )

    egress_list: Name
    lease: LeaseId
    secs: float = Field(default=60.0, ge=1, le=MOST_SECS, allow_inf_nan=False)


class OpenLease(BaseModel):
    """A lease of which something is left."""

    lease: str
    vcons: int = Field(description="how many are left of it")
    secs_left: float


class Acknowledged(BaseModel):
    """How many entries of the lease are done with."""

    acknowledged: int


class Returned(BaseModel):
    """How many entries of the lease are back at the head of the list."""

    returned: int


class Extended(BaseModel):
    """That the lease stands for as long as was asked for."""

    extended: bool


@router.get("/vcon/egress", response_model=list[str], responses=responses(403, 409, 422, 503), **needs("write"))
async def take(
    request: Request,
    egress_list: List,
    limit: Annotated[int, Query(description="how many at the most", ge=1, le=MOST_ENTRIES)] = 1,
) -> Response:
    """Take UUIDs off an egress list, oldest first, for good.

    What is lost on the way to the client is lost: `POST /egress/lease` is the safe way.
    """
    api = api_of(request)
    name = await api.egress_list(egress_list)
    taken = await api.run(api.egress.take, name, limit)
    request.scope["changes"] = bool(taken)
    request.scope["audit"] = {"list": name, "vcons": str(len(taken))}
    return as_json([text_of(entry) for entry in taken])


@router.post("/egress/lease", response_model=Lease, responses=responses(403, 409, 422, 503, 507), **needs("write"))
async def lease(
    request: Request,
    egress_list: List,
    limit: Annotated[int, Query(description="how many at the most", ge=1, le=MOST_ENTRIES)] = 100,
    secs: Annotated[float, Query(description="for how long", ge=1, le=MOST_SECS, allow_inf_nan=False)] = 60.0,
    lease: Annotated[
        str | None,
        Query(
            description="an id of the client's choice: a repeat with it gives what is left of that lease again, so "
            "that nothing is out of reach when an answer was lost",
            pattern=_ID,
        ),
    ] = None,
) -> Response:
    """Lease UUIDs of an egress list, oldest first; what is not acknowledged in time goes back to its head."""
    api = api_of(request)
    name = await api.egress_list(egress_list)
    leased = await api.run(api.egress.lease, name, limit, secs, lease)
    request.scope["changes"] = bool(leased.entries)
    request.scope["audit"] = {"list": name, "lease": leased.id, "vcons": str(len(leased.entries))}
    if lease is not None and leased.entries:
        secs = max(0.0, round(leased.expires_at - await api.run(api.queue.server_time), 3))
    return as_json(
        {
            "lease": leased.id if leased.entries else "",
            "vcons": [text_of(entry) for entry in leased.entries],
            "secs": secs,
            "expires_at": datetime.fromtimestamp(leased.expires_at, UTC)
            .isoformat(timespec="milliseconds")
            .replace("+00:00", "Z"),
        }
    )


_ENDING: dict[str, Any] = {
    "responses": responses(403, 404, 409, 413, 415, 422, 503, 507),
    **takes_model(EndOfLease, needs("write")),
}


@router.post("/egress/acknowledge", response_model=Acknowledged, **_ENDING)
async def acknowledge(request: Request) -> Response:
    """Be done with entries of a lease, or with all of it; entries that it does not have are not counted."""
    return as_json({"acknowledged": await _end(request, api_of(request).egress.acknowledge)})


@router.post("/egress/return", response_model=Returned, **_ENDING)
async def give_back(request: Request) -> Response:
    """Give entries of a lease, or all of it, back to the head of the list at once."""
    return as_json({"returned": await _end(request, api_of(request).egress.give_back)})


async def _end(request: Request, end: Callable[[str, str, list[bytes] | None], int]) -> int:
    api, asked = api_of(request), await bodies.read_model(request, EndOfLease)
    entries = None if asked.vcons is None else list(entries_of(asked.vcons))
    if entries and len(entries) > MOST_ENTRIES:
        raise unprocessable(f"too many entries that are no text: send {MOST_ENTRIES // 2:,} at once", pointer="/vcons")
    request.scope["audit"] = {"list": asked.egress_list, "lease": asked.lease}
    try:
        # Whatever the config says of the list by now: the reader has had its entries.
        ended = await api.run(end, asked.egress_list, asked.lease, entries)
    except LeaseLapsed as error:
        await api.egress_list(asked.egress_list)
        raise Problem(404, "lease-lapsed", str(error)) from error
    request.scope["audit"]["vcons"] = str(ended)
    return ended


@router.post(
    "/egress/extend",
    response_model=Extended,
    responses=responses(403, 404, 409, 413, 415, 422, 503),
    **takes_model(Extension, needs("write")),
)
async def extend(request: Request) -> Response:
    """Let a lease stand for longer."""
    api, asked = api_of(request), await bodies.read_model(request, Extension)
    name = asked.egress_list
    request.scope["audit"] = {"list": name, "lease": asked.lease}
    if not await api.run(api.egress.extend, name, asked.lease, asked.secs):
        await api.egress_list(name)
        detail = (
            f"list {name!r} has no lease {asked.lease[:60]!r}, or nothing is left of it: there is nothing to extend"
        )
        raise Problem(404, "lease-lapsed", detail)
    return as_json({"extended": True})


@router.get("/egress/leases", response_model=list[OpenLease], responses=responses(403, 409, 422, 503), **needs("write"))
async def leases(request: Request, egress_list: List) -> Response:
    """List the leases of an egress list, the first to lapse first; at most 1,000."""
    api = api_of(request)
    name = await api.egress_list(egress_list)
    rows = await api.run(api.egress.leases, name)
    return as_json([{"lease": row.id, "vcons": row.count, "secs_left": round(row.secs_left, 1)} for row in rows])
