"""A vCon taken apart: which document of which index each part becomes, and what new indexes are like."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from conserver import Vcon

#: What the server forbids in names of indexes, and what has no place in any name.
_FORBIDDEN = re.compile(r'[\\/*?"<>|,#:\s\x00-\x1f\x7f\ud800-\udfff]')
_MOST_NAME_BYTES = 255
#: Servers read strings of 20 to 50 million characters at the most.
_MOST_CHARACTERS = 8_000_000

# Both names: of the existing conserver's own indexes the second is the one that finds whole values.
_KEYWORD = {"type": "keyword", "fields": {"keyword": {"type": "keyword", "ignore_above": 256}}}
_DATE = {"type": "date", "ignore_malformed": True}
_NUMBER = {"type": "double", "ignore_malformed": True}
_TEXT = {"type": "text", "fields": {"keyword": {"type": "keyword", "ignore_above": 256}}}
_TEMPLATES = {"string": _TEXT, "long": _NUMBER, "double": _NUMBER, "boolean": {"type": "keyword", "ignore_above": 256}}

#: As the server would make it by itself, but that the first value of a member does not decide what later ones may be.
PARTS_INDEX = {
    "mappings": {
        "date_detection": False,
        "dynamic_templates": [
            {f"any_{kind}": {"match_mapping_type": kind, "mapping": mapping}} for kind, mapping in _TEMPLATES.items()
        ],
        "properties": {
            "vcon_id": _KEYWORD,
            "tenant_id": _KEYWORD,
            "started_at": _DATE,
            "start": _DATE,
            "body_text": {"type": "text"},
            "part_text": {"type": "text"},
        },
    }
}
#: Whole vCons: found by their id alone, whatever is in them.
DOCUMENTS_INDEX = {"mappings": {"dynamic": False, "properties": {"vcon_id": _KEYWORD}}}


@dataclass(frozen=True, order=True)
class Place:
    """Where a part lies; its id is made of the vCon's and the position."""

    index: str
    position: int


@dataclass(frozen=True)
class Part:
    """One party, dialog, analysis or attachment."""

    place: Place
    members: dict[str, Any]
    common: dict[str, Any]

    def documents(self) -> Iterator[bytes]:
        """Yield the document of the part, then those for an index that refuses it: each leaves less to be refused.

        An index whose `body` is an object takes no text there, and one that has learned a date takes nothing else.
        """
        yield _bytes(self.members | self.common)
        if "body" in self.members:
            others = {name: value for name, value in self.members.items() if name != "body"}
            yield _bytes(others | self.common | {"body_text": pieces(_text(self.members["body"]))})
        yield _bytes({"vcon_id": self.common["vcon_id"], "part_text": pieces(_text(self.members))})


def documents_index(prefix: str) -> str:
    """Return the name of the index of whole vCons."""
    return f"{prefix}vcon_documents"


def patterns(prefix: str) -> list[str]:
    """Return what the names of the indexes of parts are like, and no others."""
    families = ("parties", "parties_*", "attachments_*", "analysis_*", "dialog")
    return [f"{prefix}vcon_{family}" for family in families]


def taken_apart(vcon_uuid: str, vcon: Vcon, prefix: str) -> list[Part]:
    """Return the parts of a vCon; a signed or encrypted one has none that could be seen."""
    if vcon.sealed:
        return []
    common = _common(vcon_uuid, vcon)
    found: list[tuple[str, int, dict[str, Any]]] = []
    for position, party in enumerate(vcon.parties):
        role = _kind(party.get("role"))
        found.append((f"parties_{role}" if role else "parties", position, party))
    for position, attachment in enumerate(vcon.attachments):
        kind = _kind(attachment.get("type")) or _kind(attachment.get("purpose")) or "unknown"
        found.append((f"attachments_{kind}", position, Vcon.with_decoded_body(attachment)))
    for position, analysis in enumerate(vcon.analysis):
        kind = _kind(analysis.get("type")) or "unknown"
        found.append((f"analysis_{kind}", position, Vcon.with_decoded_body(analysis)))
    found += [("dialog", position, dialog) for position, dialog in enumerate(vcon.dialog)]
    return [
        Part(Place(_index_name(f"{prefix}vcon_{family}"), position), members, common)
        for family, position, members in found
    ]


def listed(places: Iterable[Place]) -> list[dict[str, Any]]:
    """Return the places as they stand in the document of a vCon."""
    by_index: dict[str, list[int]] = {}
    for place in sorted(places):
        by_index.setdefault(place.index, []).append(place.position)
    return [{"index": index, "positions": positions} for index, positions in by_index.items()]


def named(listed: Any, prefix: str) -> frozenset[Place]:
    """Return the places that stand in a document; others can write there, so nothing but indexes of parts."""
    found = set()
    for one in listed if isinstance(listed, list) else []:
        index, positions = (one.get("index"), one.get("positions")) if isinstance(one, dict) else (None, None)
        if isinstance(index, str) and isinstance(positions, list) and _is_of_parts(index, prefix):
            found |= {Place(index, position) for position in positions if isinstance(position, int)}
    return frozenset(found)


def pieces(text: str) -> list[str]:
    """Return the text in pieces that a server reads."""
    return [text[start : start + _MOST_CHARACTERS] for start in range(0, len(text), _MOST_CHARACTERS)] or [""]


def _is_of_parts(index: str, prefix: str) -> bool:
    return any(
        index.startswith(pattern[:-1]) if pattern.endswith("*") else index == pattern for pattern in patterns(prefix)
    )


def _common(vcon_uuid: str, vcon: Vcon) -> dict[str, Any]:
    """Return what all parts say of their vCon."""
    common: dict[str, Any] = {"vcon_id": vcon_uuid}
    start = vcon.dialog[0].get("start") if vcon.dialog else None
    if isinstance(start, str):
        common["started_at"] = start
    tenant = vcon.find_attachment_by_purpose("tenant")
    said = Vcon.decoded_body(tenant) if tenant else None
    tenant_id = said.get("id") if isinstance(said, dict) else None
    if isinstance(tenant_id, str | int) and not isinstance(tenant_id, bool):
        common["tenant_id"] = tenant_id
    return common


def _kind(value: Any) -> str:
    return value if isinstance(value, str) else ""


def _index_name(name: str) -> str:
    """Return a name that the server takes: what is in a vCon must not be able to name an index of somebody else's."""
    name = _FORBIDDEN.sub("_", name.lower())
    encoded = name.encode()
    if len(encoded) <= _MOST_NAME_BYTES:
        return name
    mark = hashlib.sha256(encoded).hexdigest()[:16]
    return f"{encoded[: _MOST_NAME_BYTES - len(mark) - 1].decode('utf-8', 'ignore')}_{mark}"


def _bytes(document: dict[str, Any]) -> bytes:
    return Vcon(document).to_bytes()


def _text(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    # To be searched, and not to be had back: halves of pairs are no UTF-8.
    return text.encode("utf-8", "replace").decode()
