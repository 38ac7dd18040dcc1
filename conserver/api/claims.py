"""Claims and hosts: what is being worked on over all hosts, and what is left of hosts that are gone."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import asdict
from typing import Annotated, Any

from fastapi import APIRouter, Path, Query, Request, Response
from pydantic import BaseModel, ConfigDict, Field

from conserver import overview
from conserver.api import bodies
from conserver.api.access import needs
from conserver.api.describe import takes_model
from conserver.api.entries import NAME, Name, text_of
from conserver.api.pages import PAGED, as_json, link_next
from conserver.api.problems import Problem, responses
from conserver.api.state import Api
from conserver.api.vcons import api_of
from conserver.board import board_name
from conserver.embedded import EmbeddedServer
from conserver.hosts import HostLives
from conserver.records import Held
from conserver.server import Server

router = APIRouter(tags=["Claims and hosts"])


class Running(BaseModel):
    """What a worker does with a claim at this moment."""

    what: str = Field(description="the link or the storage; empty at the beginning")
    seconds_left: float | None = Field(description="until its deadline; null without one")


class ClaimInfo(BaseModel):
    """What a worker holds: nobody else gets it until the worker settles it, or its host is gone."""

    list: str
    seq: int = Field(description="its name within the list")
    worker: str
    host: str
    entry: str = Field(description="what was pushed: a UUID, if whoever pushed it did it right")
    crashes: int
    returns: int
    attempts: int
    done: int = Field(description="links of the chain that are done")
    running: Running | None = Field(description="null if its host does not tell, or it waits for a thread")


class ClaimName(BaseModel):
    """Which claim is meant, as `GET /claims` names it."""

    model_config = ConfigDict(json_schema_extra={"example": {"list": "main_in", "worker": "desk-25935:1", "seq": 41}})

    list: Name
    worker: Annotated[str, Field(min_length=1, max_length=300, pattern=NAME)]
    seq: int = Field(ge=0, lt=2**53)


class ReturnedClaim(BaseModel):
    """That it is the next of its list to be claimed."""

    returned: bool


class DroppedClaim(BaseModel):
    """That it is forgotten."""

    dropped: bool


class HostInfo(BaseModel):
    """What a host says of itself; more members may come."""

    model_config = ConfigDict(extra="allow")

    host: str
    alive: bool = Field(description="whether it has given a sign of life within its lease")


class ForgottenHost(BaseModel):
    """What its workers held."""

    returned: int = Field(description="claims that others work on now")
    dead: int = Field(description="claims that came back too often")


# Claims


@router.get(
    "/claims",
    response_model=list[ClaimInfo],
    responses={200: PAGED, **responses(403, 409, 422, 503)},
    **needs("read"),
)
async def claims(
    request: Request,
    list_name: Annotated[str | None, Query(alias="list", description="of this list only", max_length=200)] = None,
    limit: Annotated[int, Query(ge=1, le=1000, description="how many at the most")] = 100,
    after: Annotated[
        str | None,
        Query(description="where the page before ended; `Link` has it", pattern=r"^\d{1,15}:", max_length=220),
    ] = None,
) -> Response:
    """List what workers hold on all hosts, by list and seq; go on until there is no `Link`."""
    api = api_of(request)
    seq, _, name = (after or "").partition(":")
    last = (name, int(seq)) if after else None
    rows = await api.run(_claims, api, list_name, last, limit)
    # Others are settled meanwhile: a page that is not full says nothing of the next one.
    more = link_next(request, after=f"{rows[-1]['seq']}:{rows[-1]['list']}") if rows else None
    return as_json(rows, more)


def _claims(api: Api, name: str | None, after: tuple[str, int] | None, count: int) -> list[dict[str, Any]]:
    names = api.queue.lists() if name is None else [name]
    held = api.records.claims(names, after=after, count=count)
    doing = dict(_doing(api.hosts.all())) if held else {}
    return [{**asdict(claim), "entry": text_of(claim.entry), "running": doing.get(_place(claim))} for claim in held]


def _place(claim: Held) -> tuple[str, str, str]:
    return claim.worker, board_name(claim.list), text_of(claim.entry)[:64]


def _doing(hosts: Iterable[dict[str, Any]]) -> Iterator[tuple[tuple[str, str, str], dict[str, Any]]]:
    for host in hosts:
        # One of another version may say it in other words.
        with suppress(KeyError, TypeError, AttributeError):
            for worker in host.get("workers", ()):
                for run in worker["running"]:
                    place = (worker["name"], run["list"], run["vcon"])
                    yield place, {"what": run["what"], "seconds_left": run.get("seconds_left")}


_WITHDRAWING: dict[str, Any] = {
    "responses": responses(403, 404, 409, 413, 415, 422, 503, 507),
    **takes_model(ClaimName, needs("admin")),
}


@router.post("/claims/return", response_model=ReturnedClaim, **_WITHDRAWING)
async def return_claim(request: Request) -> Response:
    """Take a claim from its worker, and make it the next to be claimed.

    The worker can neither save nor settle it any more, and finds out when its run ends.
    """
    await _withdraw(request, "return_claim")
    return as_json({"returned": True})


@router.post("/claims/drop", response_model=DroppedClaim, **_WITHDRAWING)
async def drop_claim(request: Request) -> Response:
    """Take a claim from its worker, and forget it: nobody works on it any more. The vCon stays."""
    await _withdraw(request, "drop_claim")
    return as_json({"dropped": True})


async def _withdraw(request: Request, how: str) -> None:
    api, claim = api_of(request), await bodies.read_model(request, ClaimName)
    request.scope["audit"] = {"list": claim.list, "worker": claim.worker, "seq": str(claim.seq)}
    if not await api.run(getattr(api.records, how), claim.list, claim.worker, claim.seq):
        raise Problem(
            404, "no-such-claim", f"worker {claim.worker!r} holds no claim {claim.seq} of list {claim.list!r}"
        )


# Hosts


@router.get("/hosts", response_model=list[HostInfo], responses=responses(403, 409, 503), **needs("read"))
async def hosts(request: Request) -> Response:
    """List the hosts, each with its workers and what they do."""
    api = api_of(request)
    return as_json(await api.run(api.hosts.all))


@router.delete(
    "/hosts/{host}",
    response_model=ForgottenHost,
    responses=responses(403, 404, 409, 422, 503, 507),
    **needs("admin"),
)
async def forget_host(
    request: Request,
    host: Annotated[
        str, Path(description="its name, as `GET /hosts` tells it", min_length=1, max_length=300, pattern=NAME)
    ],
) -> Response:
    """Recover what the workers of a host hold that is gone, and forget it; other hosts do so by themselves."""
    api = api_of(request)
    request.scope["audit"] = {"host": host}
    try:
        recovered = await api.run(api.hosts.forget, host)
    except HostLives as error:
        raise Problem(409, "host-lives", str(error)) from error
    if recovered is None:
        raise Problem(404, "no-such-host", f"there is no host {host!r}")
    return as_json(asdict(recovered))


@router.get(
    "/status",
    responses={
        200: {
            "description": "what `conserver status --format json` prints",
            "content": {"application/json": {"schema": {"type": "object"}}},
        },
        **responses(403, 409, 503),
    },
    response_class=Response,
    **needs("read"),
)
async def status(request: Request) -> Response:
    """Tell everything at once: server, config, hosts, lists, storages, pauses."""
    api = api_of(request)
    embedded = None if api.settings.redis_url else EmbeddedServer(api.settings.data_dir)
    return as_json(await api.run(overview.collect, Server(api.url, embedded), api.settings))
