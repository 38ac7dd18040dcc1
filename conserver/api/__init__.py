"""The HTTP API: `create_app` makes it, `conserver.api.serve` runs it.

Handlers are thin: parse, one call into store or queue, shape. What waits for storages runs on threads.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI
from starlette.types import ASGIApp

import conserver
from conserver.api import (
    bulk,
    checking,
    claims,
    depths,
    describe,
    dlq,
    egress,
    ingest,
    lists,
    many,
    problems,
    queries,
    runs,
    search,
    system,
    vcons,
)
from conserver.api.guard import Guard
from conserver.api.state import Api
from conserver.settings import Settings

__all__ = ["create_app"]

ROUTERS = (
    vcons.first,
    ingest.router,
    many.router,
    bulk.router,
    checking.router,
    search.router,
    depths.router,
    queries.router,
    egress.router,
    vcons.router,
    lists.router,
    claims.router,
    dlq.router,
    runs.router,
    system.router,
)


def create_app(settings: Settings, url: str) -> ASGIApp:
    """Return the app on the server at *url*; ConfigError or SettingsError if config or tokens cannot be used."""
    api = Api(settings, url)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        await api.begin()
        yield
        await api.end()

    app = FastAPI(
        title="Conserver",
        version=conserver.__version__,
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
        redirect_slashes=False,
    )
    app.state.api = api
    problems.install(app)
    for router in ROUTERS:
        # Not by include_router, which looks at every route of every router twice for each request.
        app.router.routes.extend(router.routes)
    app.openapi = lambda: describe.document(app, settings)  # type: ignore[method-assign]
    info = system.version_info()
    headers = [
        (b"x-vcon-server-version", _header(info["version"])),
        (b"x-vcon-server-commit", _header(info["git_commit"])),
    ]
    return Guard(app, api, headers)


def _header(text: Any) -> bytes:
    return "".join(c if 32 <= ord(c) < 127 else "?" for c in str(text)).encode()
