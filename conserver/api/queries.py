"""jq and JSONPath over a stored vCon."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response

from conserver.api.access import needs
from conserver.api.problems import Problem, responses, unprocessable
from conserver.api.vcons import JSON, VconUuid, api_of, served, text_of, uuid_in
from conserver.extract import Language, NotExtracted, extract, is_installed

router = APIRouter(tags=["vCons"])

#: Each has a process of its own.
AT_ONCE = 4
_WAIT_SECS = 2.0
MOST_LETTERS = 4000
_RESULTS: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "All results, in their order",
        "content": {JSON: {"schema": {"type": "array", "items": {}}, "example": ["+15550100"]}},
    }
}
_ANSWERS = _RESULTS | responses(403, 404, 422, 501, 502, 503)
_running = asyncio.Semaphore(AT_ONCE)


@router.get("/vcon/{vcon_uuid}/jq", responses=_ANSWERS, **needs("read"))
async def query_by_jq(
    request: Request,
    vcon_uuid: VconUuid,
    filter: Annotated[  # the name that clients send
        str, Query(description="the jq program", examples=[".parties[].tel"], max_length=MOST_LETTERS)
    ] = "",
    jq_transform: Annotated[str, Query(description="another name of `filter`", max_length=MOST_LETTERS)] = "",
) -> Response:
    """Run a jq program on a vCon; the answer has all its outputs.

    It sees no environment, no files and no other input, and has 5 s. A signed vCon is seen as its envelope.
    """
    return await _answer(request, vcon_uuid, "jq", {"filter": filter, "jq_transform": jq_transform})


@router.get("/vcon/{vcon_uuid}/jsonpath", responses=_ANSWERS, **needs("read"))
async def query_by_jsonpath(
    request: Request,
    vcon_uuid: VconUuid,
    path: Annotated[
        str, Query(description="the JSONPath (RFC 9535)", examples=["$.parties[*].tel"], max_length=MOST_LETTERS)
    ] = "",
    path_string: Annotated[str, Query(description="another name of `path`", max_length=MOST_LETTERS)] = "",
) -> Response:
    """Find values in a vCon by a JSONPath; it has 5 s. A signed vCon is seen as its envelope."""
    return await _answer(request, vcon_uuid, "jsonpath", {"path": path, "path_string": path_string})


async def _answer(request: Request, vcon_uuid: str, language: Language, given: dict[str, str]) -> Response:
    api, uuid = api_of(request), uuid_in(vcon_uuid)
    parameter = next((name for name, value in given.items() if value), "")
    if not parameter:
        raise unprocessable(f"{' or '.join(given)} is missing", parameter=next(iter(given)))
    if not is_installed(language):
        detail = f"the server needs a package for this: pip install 'conserver[{language}]'"
        raise Problem(501, "not-installed", detail)
    text = served(await text_of(api, uuid), api.settings.egress_format_version)
    try:
        await asyncio.wait_for(_running.acquire(), _WAIT_SECS)
    except TimeoutError:
        detail = f"{AT_ONCE} filters are running, which is as many as may: try again"
        raise Problem(503, "busy", detail, headers={"Retry-After": "1"}) from None
    try:
        return Response(await api.run(extract, language, given[parameter], text), 200, None, JSON)
    except NotExtracted as error:
        name = "invalid-request" if error.reason == "invalid-filter" else error.reason
        detail = str(error)
        raise Problem(422, name, detail, errors=[{"parameter": parameter, "detail": detail}]) from error
    finally:
        _running.release()
