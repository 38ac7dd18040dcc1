"""Bodies: read within limits, and turned into what handlers work with; what is wrong is a Problem."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Collection
from typing import Any, TypeVar

from fastapi import Request
from pydantic import BaseModel, ValidationError
from starlette.requests import ClientDisconnect

from conserver.api.problems import Problem, of_findings, unprocessable
from conserver.errors import NotAVcon
from conserver.vcon import Vcon, VconFinding, load, migrate, validate
from conserver.vcon_forms import is_uuid
from conserver.vcon_json import dump_loaded

M = TypeVar("M", bound=BaseModel)

#: Of what is no vCon: lists of UUIDs, options, patches.
MAX_BYTES = 8 * 1024 * 1024
MAX_UUIDS = 100_000
#: Rules whose errors make a vCon unusable. What breaks another rule of the draft is stored as it is: most programs that
#: write vCons break one.
FATAL = frozenset({"E0", "E1", "E5", "E22", "E23", "E24"})
#: A body that takes longer than others to be looked at: not on the event loop.
LARGE_BYTES = 500_000
#: For how long a client may send nothing, and how many bytes give it another second.
PATIENCE_SECS, SLOWEST = 30.0, 4096
_GZIP = ("gzip", "x-gzip")
_WHO_SPEAKS = re.compile(r"/dialog/\d+/parties(/|$)")


async def read(request: Request, most: int) -> bytes:
    """Return the body of at most *most* bytes, still packed if it is gzip."""
    is_packed(request)
    declared = request.headers.get("content-length", "")
    if declared.isdigit() and int(declared) > most:
        raise too_large(most)
    parts, size = [], 0
    async for part in chunks(request):
        size += len(part)
        if size > most:
            raise too_large(most)
        parts.append(part)
    return parts[0] if len(parts) == 1 else b"".join(parts)


async def chunks(request: Request) -> AsyncIterator[bytes]:
    """Yield the body as it comes; Problem if it hardly comes at all."""
    patience, more = PATIENCE_SECS, True
    clock = asyncio.get_running_loop().time
    while more:
        if _has_come(request):
            message = await request.receive()
        else:
            began = clock()
            try:
                # Only the client's time counts, not what is done with what it has sent.
                async with asyncio.timeout(patience):
                    message = await request.receive()
            except TimeoutError:
                detail = f"the body must not pause for {PATIENCE_SECS:g} s; {SLOWEST:,} bytes give another second"
                raise Problem(408, "slow-body", detail, headers={"Connection": "close"}) from None
            patience -= clock() - began
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        part, more = message.get("body", b""), message.get("more_body", False)
        patience = min(PATIENCE_SECS, patience + len(part) / SLOWEST)
        if part:
            yield part


def _has_come(request: Request) -> bool:
    """Say whether nobody has to wait for the body, as for most: a timer costs more than all else here."""
    # uvicorn's own method is what we are given to receive by, and its object knows.
    return getattr(getattr(request.receive, "__self__", None), "more_body", True) is False


def is_packed(request: Request) -> bool:
    """Say whether the body is gzip, by its header; Problem for what we cannot unpack."""
    encoding = request.headers.get("content-encoding", "identity").lower()
    if encoding != "identity" and encoding not in _GZIP:
        raise Problem(
            415, "unsupported-encoding", f"Content-Encoding {encoding[:40]!r} is not known: send gzip or none"
        )
    return encoding in _GZIP


def too_large(most: int, what: str = "the body") -> Problem:
    """Return the problem of a body that has more than *most* bytes."""
    return Problem(413, "too-large", f"{what} has more than {most:,} bytes", headers={"Connection": "close"})


async def read_json(request: Request, most: int = MAX_BYTES) -> Any:
    """Return the JSON value of the body."""
    data = await read(request, most)
    if request.headers.get("content-encoding", "").lower() in _GZIP:
        raise Problem(415, "unsupported-encoding", "only vCons may be packed by gzip")
    try:
        return load(data)
    except NotAVcon as error:
        raise unprocessable(f"the body is {error}") from error


async def read_uuids(request: Request) -> list[str]:
    """Return the UUIDs of a body that is an array of them."""
    value = await read_json(request)
    if not isinstance(value, list):
        raise unprocessable("the body must be an array of UUIDs")
    if len(value) > MAX_UUIDS:
        raise Problem(413, "too-large", f"the body has {len(value):,} UUIDs; {MAX_UUIDS:,} at once are possible")
    wrong = [(n, v) for n, v in enumerate(value) if not (isinstance(v, str) and is_uuid(v))]
    if wrong:
        errors = [{"pointer": f"/{n}", "detail": f"{str(v)[:60]!r} is no UUID"} for n, v in wrong[:100]]
        raise Problem(422, "invalid-request", f"{len(wrong)} of {len(value)} are no UUIDs", errors=errors)
    return [v.lower() for v in value]


async def read_model(request: Request, model: type[M], *, default: M | None = None) -> M:
    """Return the body as *model*; an empty one is the *default*, if there is one."""
    if default is not None and not _has_body(request):
        return default
    try:
        return model.model_validate(await read_json(request), strict=True)
    except ValidationError as error:
        errors = [
            {"pointer": "".join(f"/{part}" for part in problem["loc"]), "detail": problem["msg"]}
            for problem in error.errors(include_url=False, include_input=False, include_context=False)[:100]
        ]
        said = "; ".join(f"{e['pointer'] or 'the body'}: {e['detail']}" for e in errors)
        raise Problem(422, "invalid-request", said[:1000], errors=errors) from error


def _has_body(request: Request) -> bool:
    return request.headers.get("content-length", "0") != "0" or "transfer-encoding" in request.headers


async def read_vcon(request: Request) -> tuple[Vcon, bytes]:
    """Return the vCon of the body, checked and migrated, and the text that is to be stored."""
    settings = request.app.state.api.settings
    data = await read(request, settings.max_vcon_bytes)
    if len(data) < LARGE_BYTES:
        return accept(data, request)
    return await request.app.state.api.run(accept, data, request)  # type: ignore[no-any-return]


def accept(data: bytes, request: Request) -> tuple[Vcon, bytes]:
    """Return the vCon in *data*, checked and migrated, and the text that is to be stored; all findings are told.

    How many errors are tolerated is in the scope, as `findings`.
    """
    api = request.app.state.api
    try:
        vcon = Vcon.parse(data, max_bytes=api.settings.max_vcon_bytes)
    except NotAVcon as error:
        raise of_findings(
            _all_findings(data, str(error)), f"this is no vCon: {str(error).removeprefix('no vCon: ')}"
        ) from error
    request.scope["findings"] = check(vcon, strict=api.config.api.validation == "strict")
    if not vcon.sealed:
        # A UUID may be written in either case, and is one key.
        vcon.document["uuid"] = str(vcon.uuid).lower()
    try:
        return vcon, dump_loaded(vcon.document)
    except NotAVcon as error:
        raise unprocessable(str(error)) from error


def check(vcon: Vcon, *, strict: bool, known: Collection[VconFinding] = ()) -> int:
    """Return how many errors the vCon has that are tolerated; Problem with all findings if one of them refuses it.

    What is *known* was found before, and refuses nothing.
    """
    found = validate(vcon.document)
    findings = [f for f in found if f not in known]
    fatal = [f for f in findings if f.level == "error" and (strict or is_fatal(f))]
    if fatal:
        first = fatal[0]
        more = f" (and {len(fatal) - 1} more)" if len(fatal) > 1 else ""
        raise of_findings(findings, f"{first.pointer or '/'} {first.message}{more}")
    return sum(f.level == "error" for f in found)


def is_fatal(finding: VconFinding) -> bool:
    """Say whether a finding makes the vCon unusable, rather than unlike the draft."""
    rule = finding.rule
    if rule == "E21":
        # Keys may be known by other ways than a certificate.
        return not finding.pointer.endswith("/header")
    return rule in FATAL or (rule in ("E15", "E16") and _WHO_SPEAKS.search(finding.pointer) is not None)


def _all_findings(data: bytes, why: str) -> list[VconFinding]:
    try:
        document = load(data)
    except NotAVcon:
        document = None
    migrate(document)
    found = validate(document) if isinstance(document, dict) else []
    return [f for f in found if f.level == "error"] or [VconFinding("E0", "error", "", why)]
