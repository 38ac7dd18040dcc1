"""Access: who calls, and what they may do.

Without any token the API listens on loopback only, and whoever reaches it there may do everything.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fastapi import Depends, Request

from conserver.api.problems import Problem
from conserver.tokens import ANYBODY, Caller, Tokens

#: What existing clients find in `detail`.
REFUSED = "Invalid API Key"
#: What a route declares that checks by itself whether vCons may be created for each of its lists.
FEEDERS = {"x-scope": "write, or ingress:<list> for each list"}


def caller_of(request: Request) -> Caller:
    """Return who calls; raise Problem for a token that is missing or wrong."""
    api = request.app.state.api
    tokens: Tokens = api.tokens
    if not tokens:
        caller: Caller | None = ANYBODY
    else:
        given = token_in(request, api.settings.api_header_name)
        caller = tokens.caller(given) if given else None
    if caller is None:
        raise Problem(403, "no-access", REFUSED)
    request.scope["caller"] = caller.name
    return caller


def token_in(request: Request, header_name: str) -> str:
    """Return the token that came with a request, in our header or as a bearer's; empty if there is none."""
    given = request.headers.get(header_name, "")
    if not given:
        kind, _, bearer = request.headers.get("authorization", "").partition(" ")
        given = bearer.strip() if kind.lower() == "bearer" else ""
    # Headers are read as Latin-1, while tokens are kept as the digests of their UTF-8.
    return given.encode("latin-1", "replace").decode("utf-8", "surrogateescape")


def needs(scope: str) -> dict[str, Any]:
    """Return what a route declares that *scope* may call: `@router.get(path, **needs("read"))`."""
    return {"dependencies": [Depends(_check(scope))], "openapi_extra": {"x-scope": scope}}


def allow(request: Request, scope: str) -> Caller:
    """Return who calls; raise Problem unless they may do what needs *scope*."""
    caller = caller_of(request)
    if not caller.may(scope):
        raise Problem(403, "no-access", f"token {caller.name!r} has no scope {scope!r}")
    return caller


def _check(scope: str) -> Callable[[Request], Any]:
    async def check(request: Request) -> None:
        allow(request, scope)

    return check
