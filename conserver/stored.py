"""How one vCon lies in Redis: its keys, the names of its versions, how it is saved, and what a refusal means."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

from conserver import scripts
from conserver.connection import Command
from conserver.errors import ClaimLost, NotAVcon, ServerError, VconConflict, VconNotFound
from conserver.vcon import Vcon

Fence = tuple[str, int]
"""The key that holds a worker's claims, and the seq of the one that a writer works for."""


@dataclass(frozen=True, slots=True)
class Stored:
    """What came of a vCon from outside: `created`, `replaced`, or the name of what kept it out.

    `text` is what is stored now; None if nothing is.
    """

    outcome: str
    text: bytes | None


def vcon_key(uuid: str) -> str:
    """Return the key that holds the vCon."""
    return f"vcon:{uuid}"


def deleted_key(uuid: str) -> str:
    """Return the key whose presence says that the vCon was deleted."""
    return f"conserver:{{vcon:{uuid}}}:deleted"


def lock_key(uuid: str) -> str:
    """Return the key that holds the token of the one who may save the vCon for now."""
    return f"conserver:{{vcon:{uuid}}}:lock"


def digest(text: bytes) -> str:
    """Return the SHA-1 of a stored text: the name of a version, not a protection."""
    return hashlib.sha1(text, usedforsecurity=False).hexdigest()


def uuid_in(vcon: Vcon) -> str:
    """Return the UUID of a vCon that is to be stored; NotAVcon if it has none."""
    uuid = vcon.uuid
    if not isinstance(uuid, str) or not uuid:
        raise NotAVcon("this vCon has no uuid, so it cannot be stored")
    return uuid


def save_command(
    uuid: str,
    expected: str,
    text: bytes,
    *,
    redis_format: str,
    revive: bool = False,
    token: str = "",
    fence: Fence | None = None,
) -> Command:
    """Return the command that saves *text* in place of the version *expected*; lua/save.lua says what they mean."""
    keys = [vcon_key(uuid), deleted_key(uuid), lock_key(uuid), *([fence[0]] if fence else [])]
    args = [expected, text, token, redis_format, int(revive), fence[1] if fence else ""]
    return scripts.SAVE.command(keys, args)


def refused(uuid: str, outcome: str, rest: list[Any]) -> Exception:
    """Return the error for what lua/save.lua has answered, unless that was "ok"."""
    if outcome == "lost":
        return ClaimLost(f"vCon {uuid} was not saved: this worker does not hold its claim any more")
    if outcome == "deleted":
        return VconNotFound(f"vCon {uuid} was deleted")
    if outcome == "locked":
        return VconConflict(f"vCon {uuid} is being changed by somebody else all the time")
    if outcome == "conflict":
        return VconConflict(f"another vCon is stored under {uuid}")
    if outcome == "type":
        return NotAVcon(f"key {vcon_key(uuid)!r} holds a {rest[0].decode()}, not a vCon")
    if outcome == "gone":
        return VconConflict(f"vCon {uuid} has expired meanwhile: read it again")
    return ServerError(f"vCon {uuid} was not saved: {outcome}")
