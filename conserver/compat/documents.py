"""A vCon's document as links of the existing conserver expect it, and back.

There the body of an analysis or an attachment is text: an object is stored as the text of its JSON. Here it is the
object itself, with the same encoding. Links see text, and what they leave as it was is stored as it was.
"""

from __future__ import annotations

from typing import Any

from conserver.vcon import ARRAYS, VERSION, dump, load, migrate
from conserver.vcon_forms import form_of
from conserver.vcon_json import copied


class Document(dict[str, Any]):
    """A document for a link that wants no object around it; it knows the stored text that it came from."""

    base: bytes | None = None


_WITH_TEXT = ("analysis", "attachments")


def as_old(document: dict[str, Any]) -> dict[str, Any]:
    """Return a copy with all four arrays, and with text for bodies; a signed or encrypted one as it is."""
    old: dict[str, Any] = copied(document)
    if form_of(old) != "unsigned":
        return old
    for name in ARRAYS:
        if old.get(name) is None:
            old[name] = []
    for name in _WITH_TEXT:
        for entry in old[name]:
            stringify(entry)
    return old


def stringify(entry: dict[str, Any]) -> None:
    """Make a body that is an object or an array the text of its JSON, in place."""
    if isinstance(entry, dict) and isinstance(entry.get("body"), (dict, list)):
        entry["body"], entry["encoding"] = dump(entry["body"]).decode(), "json"


def as_ours(document: dict[str, Any], base: dict[str, Any] | None) -> dict[str, Any]:
    """Return what to store of a link's document, which came from *base*; None for one that was built."""
    ours: dict[str, Any] = copied(document)
    if form_of(ours) != "unsigned":
        return ours
    migrate(ours)
    ours["vcon"] = VERSION
    before = base or {}
    for name in ARRAYS:
        if ours.get(name) == [] and base is not None and before.get(name) is None:
            del ours[name]
    if base is not None and "vcon" not in base:
        del ours["vcon"]
    for name in _WITH_TEXT:
        entries = ours.get(name)
        was = before.get(name) or []
        for index, entry in enumerate(entries if isinstance(entries, list) else []):
            # What stood there as text stays text.
            if not (index < len(was) and isinstance(was[index].get("body"), str)):
                _parse(entry)
    return ours


def _parse(entry: Any) -> None:
    if not (isinstance(entry, dict) and entry.get("encoding") == "json" and isinstance(entry.get("body"), str)):
        return
    try:
        body = load(entry["body"])
    except ValueError:
        return
    if isinstance(body, (dict, list)):
        entry["body"] = body
