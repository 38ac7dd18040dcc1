"""How many entries wait in a list."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Request, Response
from pydantic import BaseModel

from conserver.api.access import needs
from conserver.api.problems import responses, unprocessable
from conserver.api.state import Api
from conserver.api.vcons import JSON, api_of
from conserver.findings import did_you_mean
from conserver.talk import Talk, reply_of
from conserver.vcon import dump

router = APIRouter(tags=["Lists and chains"])


class QueueDepth(BaseModel):
    """How many entries a list has."""

    list_name: str
    depth: int


@router.get("/vcon/count", response_model=int, responses=responses(403, 409, 422, 503), **needs("read"))
async def count_egress(
    request: Request, egress_list: Annotated[str, Query(description="a list that chains push to")]
) -> Response:
    """Count the entries of an egress list."""
    api = api_of(request)
    return Response(dump(await api.hold(_depth(await api.egress_list(egress_list)))), 200, None, JSON)


@router.get("/stats/queue", response_model=QueueDepth, responses=responses(403, 409, 422, 503), **needs("read"))
async def queue_depth(
    request: Request,
    list_name: Annotated[str, Query(description="an ingress or egress list of the config, or its `DLQ:` list")],
) -> Response:
    """Count the entries of a list that the config names, or of its dead letters."""
    api = api_of(request)
    if list_name not in _lists(api):
        # It may have come with a change of the last second.
        await api.run(api.look)
    if list_name not in (known := _lists(api)):
        detail = f"the config has no list {list_name[:200]!r}{did_you_mean(list_name, known)}"
        raise unprocessable(detail, parameter="list_name")
    depth = await api.hold(_depth(list_name))
    return Response(dump({"list_name": list_name, "depth": depth}), 200, None, JSON)


def _lists(api: Api) -> set[str]:
    config = api.config
    ingress = {name for chain in config.chains.values() for name in chain.ingress_lists}
    dead = {f"DLQ:{name}" for name in ingress} | {f"DLQ:storage:{name}" for name in config.storages}
    return ingress | dead | api.egress_lists()


def _depth(name: str) -> Talk[int]:
    [reply] = yield [("LLEN", name)]
    return int(reply_of(reply))
