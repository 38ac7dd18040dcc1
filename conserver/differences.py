"""Where two vCons differ, and whether what a storage holds is the vCon that it was given."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from conserver.vcon import migrate, to_version
from conserver.vcon_json import copied


def difference(one: Any, other: Any, pointer: str = "") -> str:
    """Say where two JSON values first differ, as `/analysis/1: added`; "" if they do not."""
    if isinstance(one, dict) and isinstance(other, dict):
        keys: Sequence[Any] = [*one, *(key for key in other if key not in one)]
        pairs = [(one.get(key, _NOTHING), other.get(key, _NOTHING)) for key in keys]
    elif isinstance(one, list) and isinstance(other, list):
        keys = range(max(len(one), len(other)))
        pairs = [(one[i] if i < len(one) else _NOTHING, other[i] if i < len(other) else _NOTHING) for i in keys]
    else:
        same = type(one) is type(other) and one == other
        if one is _NOTHING or other is _NOTHING:
            return f"{pointer}: {'added' if one is _NOTHING else 'removed'}"
        return "" if same else f"{pointer}: {short(one)} became {short(other)}"
    return next(
        (found for key, pair in zip(keys, pairs, strict=True) if (found := difference(*pair, f"{pointer}/{key}"))), ""
    )


_NOTHING = object()


def short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:59]}…"


def where_differs(document: dict[str, Any], found: dict[str, Any]) -> str:
    """Return the JSON pointer of the first place where *found* is not what a storage makes of *document*; "" if none.

    A storage may hold a vCon in another version of the draft: one that it was set to write, or that was saved there.
    """
    first = difference(document, found)
    if first and document.get("vcon") != found.get("vcon"):
        ours = _current(document)
        if not difference(ours, _current(found)):
            return ""
        try:
            first = difference(to_version(ours, str(found.get("vcon"))), found)
        except ValueError:
            first = difference(ours, _current(found))
    return (first.partition(": ")[0] or "/") if first else ""


def _current(document: dict[str, Any]) -> dict[str, Any]:
    document = copied(document)
    migrate(document)
    return document


def is_newer(document: dict[str, Any], than: dict[str, Any]) -> bool:
    """Say whether *document* was changed later *than* the other, as far as both say when they were changed."""
    try:
        changed = [datetime.fromisoformat(str(one.get("updated_at") or one["created_at"])) for one in (document, than)]
        return changed[0] > changed[1]
    except (KeyError, ValueError, TypeError):
        return False
