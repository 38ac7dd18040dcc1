"""Merge patches (RFC 7396) of stored vCons."""

from __future__ import annotations

from typing import Any

from conserver.api import bodies
from conserver.api.conditions import Condition
from conserver.api.problems import unprocessable
from conserver.api.state import Api
from conserver.errors import VconConflict, VconNotFound
from conserver.vcon import Vcon, migrate, validate
from conserver.vcon_forms import form_of
from conserver.vcon_json import copied

#: How often a patch is applied to the newest copy before the conflict is the client's.
_MOST_TRIES = 5


def change(api: Api, uuid: str, patch: dict[str, Any], condition: Condition) -> tuple[bytes, int]:
    """Apply *patch* to the stored vCon; return the new text, and how many errors it has that are tolerated.

    Without a condition it is merged with what others write meanwhile. Problem if the condition does not hold or the
    result is refused; VconNotFound, VconSealed, VconConflict. On a thread: it may ask storages.
    """
    for tries_left in range(_MOST_TRIES - 1, -1, -1):
        writer = api.store.writer()
        try:
            with writer.edit(uuid, exact=bool(condition)) as vcon:
                if condition and not condition.holds(vcon.base):
                    raise condition.failed(uuid, vcon.base)
                findings = _apply(api, vcon, patch)
            return writer.text(uuid), findings
        except VconConflict:
            if not tries_left:
                raise
        except VconNotFound:
            if condition and not condition.holds(None):
                raise condition.failed(uuid, None) from None
            raise
    raise AssertionError("the last try returns or raises")


def _apply(api: Api, vcon: Vcon, patch: dict[str, Any]) -> int:
    known = validate(vcon.document)
    changed = merged(copied(vcon.document), patch)
    if str(changed.get("uuid")).lower() != str(vcon.uuid).lower():
        raise unprocessable("the uuid of a vCon cannot change: create another one", pointer="/uuid")
    if form_of(changed) != "unsigned":
        raise unprocessable("a patch cannot make a signed or encrypted vCon: replace it by PUT")
    changed["uuid"] = vcon.document["uuid"]
    migrate(changed)
    vcon.document = changed
    findings = bodies.check(vcon, strict=api.config.api.validation == "strict", known=known)
    if len(vcon.to_bytes()) > api.settings.max_vcon_bytes:
        raise bodies.too_large(api.settings.max_vcon_bytes, "the changed vCon")
    return findings


def merged(target: Any, patch: dict[str, Any]) -> dict[str, Any]:
    """Return *target* with *patch* merged into it, as RFC 7396 says."""
    result: dict[str, Any] = target if isinstance(target, dict) else {}
    for name, value in patch.items():
        if value is None:
            result.pop(name, None)
        elif isinstance(value, dict):
            result[name] = merged(result.get(name), value)
        else:
            result[name] = value
    return result
