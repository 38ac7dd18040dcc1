"""Checking: what the conserver thinks of a vCon, without keeping it."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any, Literal

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, Field

from conserver.api import bodies
from conserver.api.access import needs
from conserver.api.describe import takes_vcon
from conserver.api.problems import responses
from conserver.api.state import Api
from conserver.api.vcons import VconUuid, text_of, uuid_in
from conserver.errors import NotAVcon
from conserver.vcon import VconFinding, dump, load, migrate, validate
from conserver.vcon_forms import check_shape, uncompressed

router = APIRouter(tags=["vCons"])


class Finding(BaseModel):
    """One rule of the draft that a vCon breaks."""

    rule: str = Field(examples=["E10"])
    level: Literal["error", "warning"]
    pointer: str = Field(description="where, as a JSON pointer; empty for the whole", examples=["/dialog/0"])
    message: str


class Verdict(BaseModel):
    """What the conserver thinks of a vCon."""

    valid: bool = Field(description="whether it breaks no rule of the draft, once it is brought to the current version")
    accepted: bool = Field(description="whether a create takes it: most rules may be broken")
    migrated: list[str] = Field(description="what was changed to bring it to the current version")
    findings: list[Finding]


def judge(data: bytes, *, max_bytes: int, strict: bool) -> bytes:
    """Return the verdict on *data*, whatever that is, as JSON."""
    migrated: list[str] = []
    findings: list[VconFinding] = []
    usable = False
    try:
        document = load(uncompressed(data, max_bytes))
        why = _why_unusable(document)
        usable = not why
        migrated = migrate(document) if usable else []
        findings = validate(document)
        dump(document)
    except NotAVcon as error:
        usable, why = False, str(error)
    errors = [finding for finding in findings if finding.level == "error"]
    if not usable and not errors:
        errors = [VconFinding("E0", "error", "", why)]
        findings = [*errors, *findings]
    verdict = {
        "valid": not errors,
        "accepted": usable and not any(strict or bodies.is_fatal(finding) for finding in errors),
        "migrated": migrated,
        "findings": [asdict(finding) for finding in findings],
    }
    return dump(verdict)


def _why_unusable(document: Any) -> str:
    try:
        check_shape(document)
    except NotAVcon as error:
        return str(error)
    return ""


async def _answer(request: Request, data: bytes) -> Response:
    api: Api = request.app.state.api
    # A vCon may have many megabytes, and the rules look at all of it.
    text = await api.run(
        judge, data, max_bytes=api.settings.max_vcon_bytes, strict=api.config.api.validation == "strict"
    )
    return Response(text, 200, media_type="application/json")


@router.post("/vcon/validate", response_model=Verdict, responses=responses(403, 413, 415), **takes_vcon(needs("read")))
async def validate_vcon(request: Request) -> Response:
    """Say what the conserver thinks of a vCon; nothing is stored. What is no vCon at all has a finding that says so."""
    request.scope["changes"] = False
    return await _answer(request, await bodies.read(request, request.app.state.api.settings.max_vcon_bytes))


@router.get(
    "/vcon/{vcon_uuid}/findings",
    response_model=Verdict,
    responses=responses(403, 404, 422, 502, 503),
    **needs("read"),
)
async def read_findings(request: Request, vcon_uuid: VconUuid) -> Response:
    """Say what the conserver thinks of a stored vCon."""
    return await _answer(request, await text_of(request.app.state.api, uuid_in(vcon_uuid)))
