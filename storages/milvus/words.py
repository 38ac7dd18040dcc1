"""What a vCon says, as the fields of a row."""

import base64
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

from conserver import Vcon

# How many bytes the fields of the collection may have.
_MOST_TEXT, _MOST_PARTY, _MOST_LINE, _MOST_MODEL = 65535, 100, 255, 50
_TRANSCRIPTS = ("transcript", "wtf_transcription")
_PARTY_IDS = ("partyId", "PartyId", "party_id", "id", "userID", "userId")


def row_of(vcon: Vcon, model: str) -> dict[str, Any]:
    """Return all fields but UUID, embedding and time of the save; `text` is empty if the vCon says nothing."""
    types = {entry.get("type") for entry in vcon.analysis}
    return {
        "party_id": _cut(_party_id(vcon), _MOST_PARTY),
        "text": _cut(" ".join(_sayings(vcon)).strip(), _MOST_TEXT),
        "created_at": _moment(vcon.created_at),
        "subject": _cut(_text(vcon.document.get("subject")), _MOST_LINE),
        "metadata_title": _cut(_text(_metadata(vcon).get("title")), _MOST_LINE),
        "has_transcript": not types.isdisjoint(_TRANSCRIPTS),
        "has_summary": "summary" in types,
        "party_count": min(len(vcon.parties), 2**15 - 1),
        "embedding_model": _cut(model, _MOST_MODEL),
        "embedding_version": "1.0",
    }


def _cut(text: str, most_bytes: int) -> str:
    # Half of a pair of surrogates has no bytes in UTF-8.
    return text.encode("utf-8", "replace")[:most_bytes].decode("utf-8", "ignore")


def _text(value: Any) -> str:
    return "" if value is None or isinstance(value, dict | list) else str(value)


def _metadata(vcon: Vcon) -> dict[str, Any]:
    # No draft knows it, but the existing conserver does.
    found = vcon.document.get("metadata")
    return found if isinstance(found, dict) else {}


def _moment(when: Any) -> str:
    """Return a date in UTC, so that dates can be compared as texts; empty if it is none."""
    try:
        found = datetime.fromisoformat(when)
        found = found.astimezone(UTC) if found.tzinfo else found.replace(tzinfo=UTC)
    except (TypeError, ValueError, OverflowError):
        return ""
    return found.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _sayings(vcon: Vcon) -> Iterator[str]:
    """Give the texts in the order of the existing conserver, so that its embeddings are those of the same text."""
    for types in (_TRANSCRIPTS, ("summary",)):
        for entry in vcon.analysis:
            if entry.get("type") in types and (said := _said(Vcon.decoded_body(entry))):
                yield said
    for party in vcon.parties:
        parts = [_text(party.get("role")), _text(party.get("name") or party.get("partyId"))]
        if any(parts):
            yield f"Party: {' '.join(part for part in parts if part)}."
    for name in ("title", "description", "created"):
        if told := _text(_metadata(vcon).get(name)):
            yield f"{name.capitalize()}: {told}."
    for entry in vcon.dialog:
        if entry.get("type") == "text" and (said := _written(entry)):
            yield said


def _said(body: Any) -> str:
    """Return the text of a transcript or summary, in whatever form its maker gave it."""
    if isinstance(body, dict):
        places = ("text", "transcript", "paragraphs", "segments")
        return next((text for place in places if (text := _said(body.get(place)))), "")
    if isinstance(body, list):
        return " ".join(text for one in body if isinstance(one, dict) and (text := _said(one.get("text"))))
    return body if isinstance(body, str) and body.strip() else ""


def _written(entry: dict[str, Any]) -> str:
    body = entry.get("body")
    if not isinstance(body, str) or entry.get("encoding") != "base64url":
        return body if isinstance(body, str) and body.strip() else ""
    try:
        return base64.urlsafe_b64decode(body + "=" * (-len(body) % 4)).decode()
    except ValueError:
        return ""  # no text, whatever its type says


def _party_id(vcon: Vcon) -> str:
    """Return what names the first party that has a name of any kind, in the words of the existing conserver."""
    for party in vcon.parties:
        ways = {name: _text(party.get(name)) for name in ("uuid", "tel", "mailto", "name", "role", *_PARTY_IDS)}
        both = f"{ways['role']}:{ways['name']}" if ways["role"] and ways["name"] else ""
        numbers = [f"{way}:{ways[way]}" for way in ("tel", "mailto") if ways[way]]
        others = [ways[name] for name in ("name", "role", *_PARTY_IDS)]
        if found := next(filter(None, [ways["uuid"], *numbers, both, *others]), ""):
            return found
    return "party_index:0" if vcon.parties else _text(_metadata(vcon).get("creator")) or "no_party_info"
