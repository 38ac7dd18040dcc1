"""The system: whether it lives and is ready, its version, its numbers, its config, and what the API is."""

from __future__ import annotations

import os
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.openapi.docs import get_swagger_ui_html
from pydantic import BaseModel, Field

import conserver
from conserver import config, configfile, telemetry
from conserver.api import bodies
from conserver.api.access import needs
from conserver.api.describe import takes
from conserver.api.problems import Problem, responses
from conserver.api.state import Api
from conserver.api.vcons import JSON, api_of
from conserver.backups import ConfigBusy
from conserver.errors import ConfigError, ConserverError
from conserver.findings import ConfigRefused
from conserver.hosts import Hosts
from conserver.vcon import dump

router = APIRouter(tags=["System"])


class VersionInfo(BaseModel):
    """What is known of this build."""

    version: str
    git_commit: str
    build_time: str


class Health(BaseModel):
    """That the API answers."""

    status: str
    version: VersionInfo


class Alive(BaseModel):
    """That the process lives."""

    status: str


class Ready(BaseModel):
    """Whether requests can be served."""

    ready: bool
    problems: list[str] = Field(description="why not")
    config_error: str = Field(description="what is wrong with the config file; the config before stays in force")
    hosts: int = Field(description="hosts that give a sign of life and work on chains")


def version_info() -> dict[str, str]:
    """Return what is known of this build, as the existing conserver names it."""
    return {
        "version": os.environ.get("VCON_SERVER_VERSION") or conserver.__version__,
        "git_commit": os.environ.get("VCON_SERVER_GIT_COMMIT") or "unknown",
        "build_time": os.environ.get("VCON_SERVER_BUILD_TIME") or "unknown",
    }


# These four are for everybody: balancers and probes have no token.


@router.get("/livez", response_model=Alive)
async def livez() -> dict[str, str]:
    """Say that the process lives."""
    return {"status": "alive"}


@router.get("/readyz", response_model=Ready, responses={503: {"model": Ready, "description": "Not ready"}})
async def readyz(request: Request) -> Response:
    """Say whether requests can be served: the server takes writes."""
    api = api_of(request)
    ready = await api.run(_readiness, api)
    return Response(dump(ready), 200 if ready["ready"] else 503, media_type=JSON)


def _readiness(api: Api) -> dict[str, Any]:
    problems, hosts = [], 0
    try:
        api.queue.probe()
        hosts = sum(1 for host in Hosts(api.url).all() if host["alive"])
    except ConserverError:
        # The words of the server may name hosts, and this is for everybody.
        problems.append("the Redis-compatible server does not take writes")
    error = "config or tokens cannot be used as they are now: the log says why" if api.config_error else ""
    return {"ready": not problems, "problems": problems, "config_error": error, "hosts": hosts}


@router.get("/health", response_model=Health)
async def health() -> dict[str, Any]:
    """Say that the API answers; `/readyz` says whether it works."""
    return {"status": "healthy", "version": version_info()}


@router.get("/version", response_model=VersionInfo)
async def version() -> dict[str, str]:
    """Say which build this is."""
    return version_info()


@router.get(
    "/metrics",
    responses={
        200: {"description": "Prometheus' text format", "content": {"text/plain": {"schema": {"type": "string"}}}},
        **responses(403),
    },
    response_class=Response,
    **needs("read"),
)
async def metrics(request: Request) -> Response:
    """Give the numbers of this API process; those of the workers are on the port of their host."""
    api = api_of(request)
    gauges = [(telemetry.key("conserver.api.config_broken"), float(bool(api.config_error)))]
    text = await api.run(telemetry.exposition, [telemetry.metrics.snapshot()], gauges)
    return Response(text, 200, media_type="text/plain; version=0.0.4; charset=utf-8")


# The config

_CONFIG: dict[str, Any] = {
    "type": "object",
    "description": "config.yml as JSON; a secret is shown as a mask, and a mask that is sent back keeps the secret",
    "example": {"links": {}, "storages": {}, "chains": {"main": {"links": [], "ingress_lists": ["default"]}}},
}
_CONFIG_BODY = {"required": True, "content": {JSON: {"schema": _CONFIG}}}


@router.get(
    "/config",
    responses={
        200: {"description": "the file, with masks", "content": {JSON: {"schema": _CONFIG}}},
        **responses(403, 409),
    },
    response_class=Response,
    **needs("read"),
)
async def read_config(request: Request) -> Response:
    """Read the config file."""
    api = api_of(request)
    return Response(dump(await api.run(configfile.read_masked, api.settings.config_file)), 200, media_type=JSON)


@router.post(
    "/config",
    status_code=204,
    responses=responses(403, 409, 413, 415, 422, 503),
    response_class=Response,
    **takes(_CONFIG_BODY, needs("admin")),
)
async def replace_config(request: Request) -> Response:
    """Replace the config file, if that is allowed; the file before stays beside it."""
    api = api_of(request)
    if not api.settings.api_config_write:
        raise Problem(403, "config-write-off", "the config cannot be replaced here: CONSERVER_API_CONFIG_WRITE is off")
    posted = await bodies.read_json(request, config.MAX_BYTES)
    try:
        replaced = await api.run(configfile.replace, api.settings.config_file, posted)
    except ConfigRefused as error:
        errors = [{"pointer": r.pointer, "detail": r.message, "rule": r.rule, "level": r.level} for r in error.remarks]
        raise Problem(422, "invalid-config", str(error)[:2000], errors=errors) from error
    except ConfigBusy as error:
        raise Problem(503, "config-busy", str(error), headers={"Retry-After": "2"}) from error
    except ConfigError as error:
        raise Problem(409, "config", str(error)) from error
    request.scope["audit"] = {"backup": replaced.backup.name if replaced.backup else ""}
    await api.run(api.look)
    return Response(status_code=204)


# What the API is


@router.get(
    "/openapi.json",
    responses={
        200: {"description": "this document", "content": {JSON: {"schema": {"type": "object"}}}},
        **responses(403),
    },
    response_class=Response,
    **needs("read"),
)
async def openapi(request: Request) -> Response:
    """Describe this API, as OpenAPI 3.1."""
    return Response(dump(request.app.openapi()), 200, media_type=JSON)


@router.get("/docs", include_in_schema=False, **needs("read"))
async def docs(request: Request) -> Response:
    """Show the document in a browser; the page takes its scripts from a public network."""
    root = request.scope["root_path"]
    return get_swagger_ui_html(openapi_url=f"{root}/openapi.json", title="Conserver")
