"""Run now: a link or a chain on one vCon, at once, and what each link changed."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Path, Request, Response
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from conserver import run_now
from conserver.api import bodies
from conserver.api.access import caller_of, needs
from conserver.api.describe import VCON_EXAMPLE, takes
from conserver.api.problems import Problem, responses, unprocessable
from conserver.api.state import Api
from conserver.api.vcons import JSON, api_of, uuid_in
from conserver.errors import ConfigError
from conserver.vcon import Vcon, dump, load

router = APIRouter(tags=["Run now"])

LONGEST_SECS = 600.0


class RunRequest(BaseModel):
    """What is to be run, and what becomes of it."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"example": {"vcon": VCON_EXAMPLE, "save": False}})

    vcon_uuid: str | None = Field(None, description="a stored vCon; this or `vcon`")
    vcon: dict[str, Any] | None = Field(None, description="a vCon that need not be stored")
    options: dict[str, Any] = Field(
        {}, description="in place of some in the config: of a link, or of a chain by link; for an admin"
    )
    save: bool = Field(False, description="save what comes out, merged with what others have changed meanwhile")
    deliver: bool = Field(False, description="with `save`: push to the egress lists of the chain, too")
    storages: bool = Field(False, description="save to the storages of the chain, for good")
    limit_secs: float = Field(60.0, gt=0, le=LONGEST_SECS, description="how long it may take")


class RunStep(BaseModel):
    """What one link did."""

    link: str
    secs: float
    result: str | None = Field(description="the UUID that it returned")
    error: str
    changed: list[str] = Field(description="UUIDs of the vCons that it has made, changed or deleted")
    changes: list[str] = Field(description="lines of a unified diff of these, as indented JSON")


class RunResult(BaseModel):
    """What came of it."""

    ending: str = Field(description="delivered, stopped, delayed, dead or returned")
    error: str
    uuid: str = Field(description="of the vCon that it ended with")
    steps: list[RunStep]
    skipped: list[str] = Field(description="links whose `when` the vCon does not meet")
    migrated: list[str] = Field(description="what migration changed before the first link")
    storage_errors: dict[str, str]
    pushes: list[tuple[str, str]] = Field(description="list and UUID: what a run in a chain would push")
    pushed: list[tuple[str, str]] = Field(description="what was pushed now")
    saved: dict[str, str] = Field(description="UUID: created, changed or deleted")
    vcons: dict[str, Any] = Field(description="UUID: the vCon, of all that it began with, made or changed")


_BODY = {"required": True, "content": {JSON: {"schema": RunRequest.model_json_schema()}}}
_ANSWERS: dict[int | str, dict[str, Any]] = {
    200: {"model": RunResult, "description": "It was run; `ending` says how that went."},
    **responses(403, 404, 409, 413, 415, 422, 502, 503, 507),
}


@router.post("/links/{name}/run", responses=_ANSWERS, **takes(_BODY, needs("write")))
async def run_link(request: Request, name: Annotated[str, Path(description="a link of the config")]) -> Response:
    """Run a link on a vCon now, apart from the queue."""
    return await _run(request, "link", name)


@router.post("/chains/{name}/run", responses=_ANSWERS, **takes(_BODY, needs("write")))
async def run_chain(request: Request, name: Annotated[str, Path(description="a chain of the config")]) -> Response:
    """Run a chain on a vCon now, apart from the queue."""
    return await _run(request, "chain", name)


async def _run(request: Request, kind: Literal["link", "chain"], name: str) -> Response:
    api, caller = api_of(request), caller_of(request)
    known: Any = api.config.links if kind == "link" else api.config.chains
    if name not in known:
        raise Problem(404, f"no-such-{kind}", f"the config has no {kind} {name[:80]!r}")
    asked = await _asked(request)
    request.scope["audit"] = {kind: name, "vcon": asked.vcon_uuid or "", "save": str(asked.save).lower()}
    base, document = await _document(api, asked)
    try:
        trial = await api.run(
            run_now.run_now,
            api.settings,
            api.config,
            (kind, name),
            document,
            options=asked.options,
            may_override=caller.may("admin"),
            storages=asked.storages,
            limit_secs=asked.limit_secs,
        )
    except run_now.TooManyRuns as error:
        raise Problem(503, "too-many-runs", str(error), headers={"Retry-After": "5"}) from error
    except run_now.OptionsRefused as error:
        raise Problem(403, "no-access", str(error)) from error
    except ConfigError as error:
        raise unprocessable(str(error), pointer="/options") from error
    kept = run_now.Kept({}, [])
    if asked.save:
        kept = await api.run(run_now.keep, api.store, base, trial, deliver=asked.deliver)
        for list_name, uuid in kept.pushes:
            await api.run(api.queue.push, list_name, [uuid])
    result = {name: value for name, value in asdict(trial).items() if name in RunResult.model_fields}
    result |= {
        "steps": [{field: step[field] for field in RunStep.model_fields} for step in result["steps"]],
        "saved": kept.saved,
        "pushed": kept.pushes,
        "vcons": {uuid: load(text.encode()) for uuid, text in trial.vcons.items()},
    }
    return Response(dump(result), 200, media_type=JSON)


async def _asked(request: Request) -> RunRequest:
    value = await bodies.read_json(request, api_of(request).settings.max_vcon_bytes)
    try:
        asked = RunRequest.model_validate(value)
    except ValidationError as error:
        errors = [
            {"pointer": "".join(f"/{part}" for part in e["loc"]), "detail": e["msg"]}
            for e in error.errors(include_url=False)
        ]
        said = "; ".join(f"{e['pointer'] or '/'}: {e['detail']}" for e in errors)
        raise Problem(422, "invalid-request", said[:1000], errors=errors) from error
    if (asked.vcon is None) == (asked.vcon_uuid is None):
        raise unprocessable("the body must have either vcon_uuid or vcon", pointer="/vcon")
    return asked


async def _document(api: Api, asked: RunRequest) -> tuple[bytes | None, bytes]:
    """Return the stored text, if there is one, and the text to begin with."""
    if asked.vcon_uuid is not None:
        text = await api.run(api.store.read, uuid_in(asked.vcon_uuid))
        return text, text
    vcon = Vcon.parse(dump(asked.vcon), max_bytes=api.settings.max_vcon_bytes)
    bodies.check(vcon, strict=api.config.api.validation == "strict")
    return None, vcon.to_bytes()
