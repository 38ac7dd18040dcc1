"""Conditions of a request: `If-Match` and `If-None-Match`, compared with the version that is stored (RFC 9110, 13)."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from fastapi import Request

from conserver.api.problems import Problem
from conserver.stored import digest

#: What a route declares that knows these headers.
IF_MATCH: dict[str, Any] = {
    "name": "If-Match",
    "in": "header",
    "description": "versions, as they came as `ETag`, or `*`: 412 if none of them is stored",
    "schema": {"type": "string"},
    "example": '"4e1243bd22c66e76c2ba9eddc1f91394e57f9f83"',
}
IF_NONE_MATCH: dict[str, Any] = {
    "name": "If-None-Match",
    "in": "header",
    "description": "the same the other way round; `*`: only if nothing is stored. A read answers 304",
    "schema": {"type": "string"},
    "example": "*",
}
_TAG = re.compile(r'(W/)?"([^"]*)"')


def etag(text: bytes) -> str:
    """Return the entity tag of a stored text: a strong one."""
    return f'"{digest(text)}"'


@dataclass(frozen=True, slots=True)
class Condition:
    """What must be stored for a request to be done; false if the request does not mind."""

    if_match: str | None
    if_none_match: str | None

    def __bool__(self) -> bool:
        return self.if_match is not None or self.if_none_match is not None

    def holds(self, text: bytes | None) -> bool:
        """Say whether a change may be made to *text*, None if nothing is stored; a weak tag never matches."""
        if self.if_match is not None and not (text is not None and _has(self.if_match, text)):
            return False
        return self.if_none_match is None or text is None or not _has(self.if_none_match, text)

    def is_known(self, text: bytes) -> bool:
        """Say whether a reader has this version; proxies that compress answers make its tag a weak one."""
        return self.if_none_match is not None and _has(self.if_none_match, text, weak=True)

    def failed(self, uuid: str, text: bytes | None) -> Problem:
        """Return the problem of a condition that does not hold for *text*."""
        if text is None:
            return Problem(412, "other-version", f"there is no vCon {uuid} any more, so no version of it matches")
        detail = f"vCon {uuid} is at another version now, {etag(text)}: read it again, and change that"
        if self.if_match is None:
            detail = f"there is a vCon {uuid} already, at version {etag(text)}"
        elif self.if_match != "*" and not _TAG.search(self.if_match):
            detail = 'If-Match holds no version: write what came as ETag, with its quotes, as in "0a1b2c"'
        return Problem(412, "other-version", detail, headers={"ETag": etag(text)})


def condition_of(request: Request) -> Condition:
    """Return what a request demands of the version that is stored."""

    def given(name: str) -> str | None:
        values = request.headers.getlist(name)
        return ",".join(values).strip() if values else None

    return Condition(given("if-match"), given("if-none-match"))


def _has(tags: str, text: bytes, *, weak: bool = False) -> bool:
    if tags == "*":
        return True
    wanted = digest(text)
    return any(tag == wanted and (weak or not is_weak) for is_weak, tag in _TAG.findall(tags))
