"""Lists and chains: how much waits where, what it is, and who works on it."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Path, Query, Request, Response
from pydantic import BaseModel, ConfigDict, Field

from conserver.api import bodies, ingest
from conserver.api.access import needs
from conserver.api.describe import takes, takes_model
from conserver.api.entries import NAME, text_of
from conserver.api.pages import PAGED, as_json, page_from
from conserver.api.problems import Problem, responses
from conserver.api.state import Api
from conserver.api.vcons import api_of
from conserver.findings import did_you_mean
from conserver.outcomes import now
from conserver.records import Waiting

router = APIRouter(tags=["Lists and chains"])

ListName = Annotated[
    str, Path(description="a list that the config or a worker knows", min_length=1, max_length=200, pattern=NAME)
]
ChainName = Annotated[str, Path(description="a chain of the config", min_length=1, max_length=200, pattern=NAME)]
Limit = Annotated[int, Query(ge=1, le=1000, description="how many at the most")]


class ListInfo(BaseModel):
    """How many entries of a list are where."""

    list: str
    chain: str | None = Field(description="the chain that is worked on when something is in it")
    egress: bool = Field(description="whether chains push to it")
    waiting: int
    returned: int = Field(description="given back, and the next to be claimed")
    delayed: int = Field(description="to be tried again later")
    suspects: int = Field(description="what a process held that crashed; claimed one by one")
    held: int = Field(description="claimed by a worker")
    dead: int = Field(description="dead letters")
    parked: int = Field(description="records of a later version, which nobody claims")


class Entry(BaseModel):
    """An entry of a list, and what is known of it if it was claimed before."""

    entry: str = Field(description="what was pushed: a UUID, if whoever pushed it did it right")
    crashes: int
    returns: int
    attempts: int
    done: int = Field(description="links of the chain that are done")
    due_at: float | None = Field(description="for `delayed`: in seconds of the server's clock")


class Pause(BaseModel):
    """Why a chain claims nothing."""

    reason: str
    since: str | None
    retry_at: float | None = Field(
        description="when it is tried again, in seconds of the server's clock; null: when it is resumed"
    )


class ChainInfo(BaseModel):
    """A chain of the config."""

    name: str
    enabled: bool
    waits_for: str | None = Field(description="what it needs that this version lacks; nobody works on it then")
    links: list[str]
    storages: list[str]
    ingress_lists: list[str]
    egress_lists: list[str]
    paused: Pause | None
    hosts: list[str] = Field(description="the hosts that work on it")


class Reason(BaseModel):
    """What others are told."""

    model_config = ConfigDict(json_schema_extra={"example": {"reason": "the speech service moves"}})

    reason: Annotated[str, Field(max_length=200, pattern=NAME)] = "paused by an operator"


class Paused(BaseModel):
    """That the chain claims nothing until it is resumed; what runs goes on to its end."""

    chain: str
    reason: str
    since: str


class Resumed(BaseModel):
    """That the chain goes on; false if it was not paused."""

    resumed: bool


# Lists


@router.get("/lists", response_model=list[ListInfo], responses=responses(403, 409, 503), **needs("read"))
async def lists(request: Request) -> Response:
    """List every list of the config, and those that ever had a worker."""
    api = api_of(request)
    return as_json(await api.run(lambda: _rows(api, _names(api))))


async def _known(api: Api, name: str) -> str:
    """Return *name* if the config or a worker knows the list; else raise Problem."""
    for _ in range(2):
        names = await api.run(_names, api)
        if name in names:
            return name
        # It may have come with a change of the last second.
        await api.run(api.look)
    raise Problem(404, "no-such-list", f"no list {name!r} is known{did_you_mean(name, names)}")


def _names(api: Api) -> list[str]:
    read = [name for chain in api.config.chains.values() for name in chain.ingress_lists]
    return list(dict.fromkeys([*read, *sorted({*api.pushed_to(), *api.queue.lists()})]))


def _rows(api: Api, names: list[str]) -> list[dict[str, Any]]:
    chain_of, pushed_to = api.config.chain_of, api.pushed_to()
    depths = api.queue.depths(names)
    return [{"list": n, "chain": chain_of(n), "egress": n in pushed_to, **asdict(depths[n])} for n in names]


@router.get(
    "/lists/{name:path}/entries",
    response_model=list[Entry],
    responses={200: PAGED, **responses(403, 404, 409, 422, 503)},
    **needs("read"),
)
async def entries(
    request: Request,
    name: ListName,
    what: Annotated[
        Literal["waiting", "returned", "delayed", "suspects", "parked"],
        Query(description="which of its entries: those that wait, or those that are to be claimed again"),
    ] = "waiting",
    start: Annotated[int, Query(ge=0, le=2**40, description="how many of the first to pass over")] = 0,
    limit: Limit = 100,
) -> Response:
    """Look at entries of a list, the next one to be claimed first; they stay where they are."""
    api = api_of(request)
    await _known(api, name)
    if what == "waiting":
        waiting = [Waiting(entry, 0, 0, 0, 0) for entry in await api.run(api.queue.entries, name, start, limit)]
    else:
        waiting = await api.run(api.records.waiting_again, name, what, start, limit)
    rows = [{**asdict(row), "entry": text_of(row.entry)} for row in waiting]
    return page_from(request, rows, start, limit)


_UUIDS_BODY = {
    "required": True,
    "description": "UUIDs of stored vCons.",
    "content": {
        "application/json": {"schema": {"type": "array", "items": {"type": "string", "format": "uuid"}}},
    },
}


@router.post(
    "/lists/{name:path}/entries",
    status_code=204,
    response_class=Response,
    responses=responses(403, 404, 409, 413, 415, 422, 502, 503, 507),
    **takes(_UUIDS_BODY, needs("write")),
)
async def push(request: Request, name: ListName) -> Response:
    """Push stored vCons to an ingress list, as `POST /vcon/ingress` does."""
    return await ingest.push_stored(request, name)


@router.get(
    "/lists/{name:path}", response_model=ListInfo, responses=responses(403, 404, 409, 422, 503), **needs("read")
)
async def one_list(request: Request, name: ListName) -> Response:
    """Tell how many entries of a list are where."""
    api = api_of(request)
    await _known(api, name)
    return as_json((await api.run(_rows, api, [name]))[0])


# Chains


@router.get("/chains", response_model=list[ChainInfo], responses=responses(403, 409, 503), **needs("read"))
async def chains(request: Request) -> Response:
    """List the chains of the config."""
    api = api_of(request)
    return as_json(await api.run(_chains, api))


def _chains(api: Api) -> list[dict[str, Any]]:
    config, paused = api.config, api.queue.paused()
    hosts = [host for host in api.hosts.all() if host["alive"]]
    return [
        {
            "name": name,
            "enabled": chain.enabled,
            "waits_for": config.waiting.get(name),
            **{part: list(getattr(chain, part)) for part in ("links", "storages", "ingress_lists", "egress_lists")},
            "paused": _pause(paused[name]) if name in paused else None,
            "hosts": [host["host"] for host in hosts if name in _named(host.get("chains"))],
        }
        for name, chain in config.chains.items()
    ]


def _named(value: Any) -> list[Any]:
    # A host of another version may say it in other words.
    return value if isinstance(value, list) else []


def _pause(why: dict[str, Any]) -> dict[str, Any]:
    retry_at = why.get("retry_at")
    return {
        "reason": str(why.get("reason") or "no reason given"),
        "since": str(why["since"]) if why.get("since") else None,
        "retry_at": retry_at if isinstance(retry_at, int | float) else None,
    }


@router.post(
    "/chains/{name:path}/pause",
    response_model=Paused,
    responses=responses(403, 404, 409, 413, 415, 422, 503, 507),
    **takes_model(Reason, needs("admin"), optional=True),
)
async def pause(request: Request, name: ChainName) -> Response:
    """Keep a chain from claiming: what runs goes on to its end, what comes waits until it is resumed."""
    api = api_of(request)
    await _check_chain(api, name)
    why = {"reason": (await bodies.read_model(request, Reason, default=Reason())).reason, "since": now()}
    request.scope["audit"] = {"chain": name, "reason": why["reason"]}
    await api.run(api.queue.pause, name, why)
    return as_json({"chain": name, **why})


@router.post(
    "/chains/{name:path}/resume", response_model=Resumed, responses=responses(403, 404, 409, 422, 503), **needs("admin")
)
async def resume(request: Request, name: ChainName) -> Response:
    """Let a paused chain go on."""
    api = api_of(request)
    request.scope["audit"] = {"chain": name}
    # One that is gone from the config may be paused all the same.
    resumed = await api.run(api.queue.resume, name)
    if not resumed:
        request.scope["changes"] = False
        await _check_chain(api, name)
    return as_json({"resumed": resumed})


async def _check_chain(api: Api, name: str) -> None:
    if name not in api.config.chains:
        await api.run(api.look)
    if name not in api.config.chains:
        raise Problem(404, "no-such-chain", f"there is no chain {name!r}{did_you_mean(name, api.config.chains)}")
