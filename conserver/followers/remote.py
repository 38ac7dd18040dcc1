"""The other conserver, as a follower sees it: by its HTTP API, of which nothing is taken on trust."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, urlencode

import httpx
import msgspec

from conserver import outbound
from conserver.configmodel import FollowerConfig
from conserver.errors import NotAVcon, OutboundError, OutboundStatus, OutboundTooLarge
from conserver.outbound import ONCE, Answer, Backoff, Limits
from conserver.settings import Settings
from conserver.vcon import Vcon, load

#: How long the other side may take to give UUIDs, and to give a vCon.
UUIDS_SECS = 20.0
VCON_SECS = 60.0
#: For how long a conserver that has no safe egress is not asked for it again.
ASK_AGAIN_SECS = 600.0
#: The most UUIDs that are asked for at once; a conserver of this kind gives no more.
MOST_UUIDS = 10_000
_UUIDS_BYTES = 16 * 1024 * 1024
_HICCUP = Backoff(attempts=3, wait_secs=0.2, max_wait_secs=2.0, total_secs=10.0)
#: There is no such endpoint: a conserver without the safe egress.
_NO_ENDPOINT = frozenset({404, 405})
_NO_VCON = frozenset({404, 410})
_NO_LEASE = frozenset({404, 409, 410})
#: What is wrong for every vCon alike: the token, or the other side as a whole.
_FOR_ALL = frozenset({401, 403, 407, 429, 503})
_encode = msgspec.json.Encoder().encode


@dataclass(frozen=True)
class Lease:
    """Entries that the other side keeps for us for `secs`, oldest first; without any there is no lease."""

    id: str
    entries: list[str]
    secs: float


class Remote:
    """One egress list of another conserver. For one thread."""

    def __init__(self, config: FollowerConfig, settings: Settings) -> None:
        self._url = config.url.rstrip("/")
        self._list = config.egress_list
        self._max_bytes = settings.max_vcon_bytes
        self._headers = {settings.api_header_name: config.auth_token} if config.auth_token else {}
        # An answer may repeat what was sent, and only a header that looks like a secret is hidden in messages.
        self._quote = outbound.is_sensitive(settings.api_header_name)
        self._without_lease_until = 0.0

    def lease(self, most: int, secs: float) -> Lease | None:
        """Lease up to *most* entries for *secs* seconds; None if the other side has no safe egress."""
        if time.monotonic() < self._without_lease_until:
            return None
        query = urlencode({"egress_list": self._list, "limit": min(most, MOST_UUIDS), "secs": f"{secs:g}"})
        try:
            answer = self._uuids("POST", f"/egress/lease?{query}")
        except OutboundStatus as error:
            if error.status in _NO_ENDPOINT:
                return None
            raise
        value = _json(answer)
        given = value.get("vcons") if isinstance(value, dict) else None
        if not isinstance(value, dict) or not isinstance(given, list):
            raise OutboundError(f"{answer.source}: answered something else than a lease: {_shown(value)}")
        if not given:
            return Lease("", [], secs)
        lease, stands = value.get("lease"), value.get("secs")
        if not isinstance(lease, str) or not lease.isprintable() or not 0 < len(lease) <= 200:
            raise OutboundError(f"{answer.source}: answered a lease without a usable id: {_shown(value)}")
        if not isinstance(stands, int | float) or isinstance(stands, bool) or stands <= 0:
            stands = secs
        return Lease(lease, [_text(entry) for entry in given], float(stands))

    def take(self, most: int) -> list[str]:
        """Take up to *most* entries for good, oldest first: whatever becomes of the answer, no list has them any more.

        A list that somebody pushes to meanwhile is not read from its oldest on: that is how the old egress works.
        """
        query = urlencode({"egress_list": self._list, "limit": most})
        answer = self._uuids("GET", f"/vcon/egress?{query}", repeatable=False)
        value = _json(answer)
        if not isinstance(value, list):
            raise OutboundError(f"{answer.source}: answered something else than a list of UUIDs: {_shown(value)}")
        self._without_lease_until = time.monotonic() + ASK_AGAIN_SECS
        # It gives the newest first.
        return [_text(entry) for entry in reversed(value)]

    def vcon(self, uuid: str) -> Vcon | None:
        """Fetch a vCon; None if the other side has none of this UUID.

        Raises NotAVcon if what it has is no vCon, another one, or too large.
        """
        limits = Limits(read_secs=min(30.0, VCON_SECS), total_secs=VCON_SECS, max_bytes=self._max_bytes)
        try:
            answer = self._ask("GET", f"/vcon/{quote(uuid, safe='')}", limits=limits, backoff=_HICCUP)
        except OutboundTooLarge as error:
            raise NotAVcon(str(error)) from error
        except OutboundStatus as error:
            if error.status in _NO_VCON:
                return None
            raise
        _check_kind(answer)
        try:
            vcon = Vcon.parse(answer.body, max_bytes=self._max_bytes)
        except NotAVcon as error:
            raise NotAVcon(f"{answer.source}: {error}") from error
        if str(vcon.uuid).lower() != uuid.lower():
            raise NotAVcon(f"{answer.source}: answered with vCon {vcon.uuid}, which is another one")
        return vcon

    def acknowledge(self, lease: str, entries: Sequence[str]) -> bool:
        """Say that *entries* of a lease are done; False if there is no such lease any more."""
        return self._end("acknowledge", lease, entries)

    def give_back(self, lease: str, entries: Sequence[str]) -> bool:
        """Let others have *entries* of a lease at once; False if there is no such lease any more."""
        return self._end("return", lease, entries)

    def _end(self, how: str, lease: str, entries: Sequence[str]) -> bool:
        body = _encode({"egress_list": self._list, "lease": lease, "vcons": list(entries)})
        try:
            self._uuids("POST", f"/egress/{how}", body=body, repeatable=True)
        except OutboundStatus as error:
            if error.status in _NO_LEASE:
                return False
            raise
        return True

    def _uuids(self, method: str, path: str, *, body: bytes = b"", repeatable: bool | None = None) -> Answer:
        limits = Limits(read_secs=min(15.0, UUIDS_SECS), total_secs=UUIDS_SECS, max_bytes=_UUIDS_BYTES)
        return self._ask(method, path, body=body, limits=limits, backoff=_HICCUP if repeatable else ONCE)

    def _ask(self, method: str, path: str, *, limits: Limits, backoff: Backoff, body: bytes = b"") -> Answer:
        headers = {"accept": "application/json", **({"content-type": "application/json"} if body else {})}
        return outbound.request(
            method,
            self._url + path,
            trusted=True,
            headers={**headers, **self._headers},
            body=body,
            limits=limits,
            backoff=backoff,
            repeatable=backoff is not ONCE,
            quote_answer=self._quote,
        )


def is_for_all(error: Exception) -> bool:
    """Say whether what went wrong with one vCon would go wrong with every other."""
    return isinstance(error, OutboundError) and (
        error.retry_after_secs is not None or (isinstance(error, OutboundStatus) and error.status in _FOR_ALL)
    )


def may_have_taken(error: OutboundError) -> bool:
    """Say whether a `take` that failed so may have taken entries, which nobody has then."""
    if isinstance(error, OutboundStatus):
        return error.status >= 500
    cause = error.__cause__
    return (
        isinstance(error, OutboundTooLarge)
        or isinstance(cause, NotAVcon)
        or (
            isinstance(cause, httpx.TransportError) and not isinstance(cause, httpx.ConnectError | httpx.ConnectTimeout)
        )
    )


def _check_kind(answer: Answer) -> None:
    kind = answer.headers.get("content-type", "")
    if kind and "json" not in kind.lower():
        raise OutboundError(f"{answer.source}: answered with {kind[:60]!r} instead of JSON")


def _json(answer: Answer) -> Any:
    _check_kind(answer)
    try:
        return load(answer.body)
    except NotAVcon as error:
        raise OutboundError(f"{answer.source}: the answer cannot be used: {error}") from error


def _text(entry: Any) -> str:
    text = entry if isinstance(entry, str) else _encode(entry).decode()
    return text.encode("utf-8", "backslashreplace").decode()


def _shown(value: Any) -> str:
    return {dict: "an object", list: "an array", str: "a string", type(None): "null"}.get(type(value), "a number")
