"""Dead letters of lists and of storages: look at them, queue or save them again, drop them."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response
from pydantic import BaseModel, Field

from conserver.api.access import needs
from conserver.api.entries import entries_of, text_of
from conserver.api.pages import PAGED, as_json, page_from
from conserver.api.problems import Problem, responses, unprocessable
from conserver.api.state import Api
from conserver.api.vcons import api_of
from conserver.claims import dead_list
from conserver.findings import did_you_mean
from conserver.names import dead_letters_of
from conserver.replay import Replay, Replayed, ReplayRuns
from conserver.telemetry import shorten

router = APIRouter(tags=["Dead letters"])

FAILED = "Conserver-Replay-Failed"
_MOST = 100_000

List = Annotated[
    str,
    Query(
        description="an ingress list, `follower:<follower>`, or an older list that has dead letters",
        min_length=1,
        max_length=200,
    ),
]
StorageName = Annotated[str, Query(description="a storage of the config", min_length=1, max_length=200)]
Start = Annotated[int, Query(ge=0, le=2**40, description="how many of the oldest to pass over")]
Limit = Annotated[int, Query(ge=1, le=10_000, description="how many at the most")]
Count = Annotated[int, Query(ge=1, le=_MOST, description="how many at the most, oldest first")]
Details = Annotated[bool, Query(description="tell of each why it is dead")]
Uuid = Annotated[str | None, Query(description="the one to drop")]
Oldest = Annotated[int | None, Query(ge=1, le=_MOST, description="how many of the oldest to drop")]


class DeadLetter(BaseModel):
    """A dead letter, and why it is one; what another program has made has no reason."""

    entry: str = Field(description="what was pushed")
    uuid: str = Field(description="the vCon that it had led to; mostly the entry itself")
    reason: str
    link: str
    chain: str
    at: str = Field(description="when, UTC")
    worker: str
    crashes: int = Field(description="how often it crashed alone in its process")


class Dropped(BaseModel):
    """How many are forgotten; their vCons stay."""

    dropped: int


class ReplayInfo(BaseModel):
    """What came of a replay."""

    saved: int
    failed: str = Field(description="why it stopped; empty if it did not have to")
    missing: list[str] = Field(description="entries whose vCon is nowhere any more; they stay until they are dropped")
    left: int = Field(description="dead letters that are still there, the missing ones included")


_LETTERS: dict[int | str, dict[str, Any]] = {
    200: {"model": list[str] | list[DeadLetter], "description": "UUIDs; with `details` objects", **PAGED}
}


async def _list_of(request: Request, name: str) -> str:
    """Return whose dead letters are meant; Problem if no chain reads the list and it has none."""
    api, name = api_of(request), dead_letters_of(name)
    if name.startswith("storage:"):
        detail = "what a storage could not save is under /dlq/storage"
        raise unprocessable(detail, parameter="ingress_list")
    request.scope["audit"] = {"list": name}
    of_follower = name.startswith("follower:") and name.removeprefix("follower:") in api.config.followers
    if not of_follower and not await api.run(api.queue.dead_count, name):
        await api.ingress_list(name)
    return name


async def _storage_of(request: Request, name: str) -> str:
    """Return the storage as the queue names it; Problem if the config does not have it, and it has no dead letters."""
    api = api_of(request)
    request.scope["audit"] = {"storage": name}
    if name not in api.config.storages:
        await api.run(api.look)
    if name not in api.config.storages and not await api.run(api.queue.dead_count, f"storage:{name}"):
        raise _no_storage(api, name)
    return f"storage:{name}"


def _no_storage(api: Api, name: str) -> Problem:
    hint = did_you_mean(name, api.config.storages)
    return Problem(404, "no-such-storage", f"there is no storage {name[:200]!r}{hint}")


async def _page(request: Request, name: str, start: int, limit: int, details: bool) -> Response:
    api = api_of(request)
    if not details:
        entries = await api.run(api.queue.entries, dead_list(name), start, limit)
        return page_from(request, [text_of(entry) for entry in entries], start, limit)
    letters = await api.run(api.queue.dead, name, start, limit)
    return page_from(request, [_letter(text_of(entry), why) for entry, why in letters], start, limit)


def _letter(entry: str, why: dict[str, Any]) -> dict[str, Any]:
    # Other programs may write what they like there.
    crashes = why.get("crashes")
    return {
        "entry": entry,
        "uuid": str(why.get("uuid") or entry),
        "reason": str(why.get("error", "")),
        **{member: str(why.get(member, "")) for member in ("link", "chain", "at", "worker")},
        "crashes": crashes if isinstance(crashes, int) else 0,
    }


async def _drop(request: Request, name: str, uuid: str | None, count: int | None) -> Response:
    api = api_of(request)
    if (uuid is None) == (count is None):
        raise unprocessable("name the one to drop by uuid, or by count how many of the oldest", parameter="uuid")

    def drop() -> int:
        if count is not None:
            return api.queue.drop_oldest(name, count)
        return int(any(api.queue.drop(name, entry) for entry in entries_of([uuid or ""])))

    dropped = await api.run(drop)
    request.scope["audit"] |= {"dropped": str(dropped), **({"vcon": uuid} if uuid else {})}
    return as_json({"dropped": dropped})


# Of lists


@router.get("/dlq", responses={**_LETTERS, **responses(403, 409, 422, 503)}, response_class=Response, **needs("read"))
async def dead_letters(
    request: Request, ingress_list: List, start: Start = 0, limit: Limit = 1000, details: Details = False
) -> Response:
    """List the dead letters of an ingress list, oldest first."""
    return await _page(request, await _list_of(request, ingress_list), start, limit, details)


@router.post("/dlq/reprocess", response_model=int, responses=responses(403, 409, 422, 503, 507), **needs("write"))
async def reprocess(
    request: Request,
    ingress_list: List,
    count: Count = 1000,
    from_start: Annotated[
        bool, Query(description="run links again that are noted as done; else it goes on from the one that failed")
    ] = False,
) -> Response:
    """Queue dead letters of a list again, oldest first; the answer is how many. The server is not held meanwhile."""
    api, name = api_of(request), await _list_of(request, ingress_list)
    moved = await api.run(api.queue.retry, name, count, from_start=from_start)
    request.scope["audit"]["moved"] = str(moved)
    return as_json(moved)


@router.delete("/dlq", response_model=Dropped, responses=responses(403, 409, 422, 503), **needs("admin"))
async def drop(request: Request, ingress_list: List, uuid: Uuid = None, count: Oldest = None) -> Response:
    """Forget one dead letter of a list, or the oldest ones."""
    return await _drop(request, await _list_of(request, ingress_list), uuid, count)


# Of storages


@router.get(
    "/dlq/storage",
    responses={**_LETTERS, **responses(403, 404, 409, 422, 503)},
    response_class=Response,
    **needs("read"),
)
async def dead_saves(
    request: Request, storage_name: StorageName, start: Start = 0, limit: Limit = 1000, details: Details = False
) -> Response:
    """List what a storage could not save, oldest first."""
    return await _page(request, await _storage_of(request, storage_name), start, limit, details)


@router.post(
    "/dlq/storage/reprocess",
    responses={
        200: {
            "model": int | ReplayInfo,
            "description": "how many were saved; with `details` an object",
            "headers": {
                FAILED: {"description": "why it stopped early, if it did", "schema": {"type": "string"}},
            },
        },
        **responses(403, 404, 409, 422, 502, 503, 507),
    },
    response_class=Response,
    **needs("write"),
)
async def replay_storage(
    request: Request,
    storage_name: StorageName,
    count: Count = 1000,
    details: Annotated[bool, Query(description="answer with an object that says what came of it")] = False,
) -> Response:
    """Save again what a storage could not save, oldest first, each vCon as it is now; its first failure ends it."""
    api = api_of(request)
    await _storage_of(request, storage_name)
    done = await api.ask(_replayed, api, storage_name, count)
    request.scope["audit"] |= {"saved": str(done.saved), "failed": str(bool(done.failed)).lower()}
    headers = {FAILED: _header(done.failed)} if done.failed else None
    info = {"saved": done.saved, "failed": done.failed, "missing": done.missing, "left": done.left}
    return as_json(info if details else done.saved, headers)


def _replayed(api: Api, name: str, count: int) -> Replayed:
    good, bad = api.storages()
    if name in bad:
        raise Problem(409, "storage-unusable", f"storage {name!r} cannot be used: {bad[name]}")
    storage = next((storage for storage in good if storage.name == name), None)
    if storage is None:
        raise _no_storage(api, name)
    try:
        return Replay(api.queue, api.store, storage, api.settings, good, bad).run(most=count)
    except ReplayRuns as error:
        raise Problem(409, "replay-runs", str(error)) from error


def _header(text: str) -> str:
    return "".join(c if " " <= c <= "~" else "?" for c in shorten(text, 200))


@router.delete("/dlq/storage", response_model=Dropped, responses=responses(403, 404, 409, 422, 503), **needs("admin"))
async def drop_saves(request: Request, storage_name: StorageName, uuid: Uuid = None, count: Oldest = None) -> Response:
    """Forget one dead letter of a storage, or the oldest ones."""
    return await _drop(request, await _storage_of(request, storage_name), uuid, count)
