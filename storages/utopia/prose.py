"""What a vCon says, as dated sentences."""

import re
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

from conserver import Vcon

_KINDS = {
    "recording": "a recorded call",
    "text": "an exchange of text messages",
    "transfer": "a transfer of the call",
    "incomplete": "a call that did not come about",
}
_TRANSCRIPTS = ("transcript", "wtf_transcription")


def tell(vcon: Vcon) -> str:
    """Write the vCon as Markdown; its first line is its date, if it has one."""
    document = vcon.document
    starts = (entry.get("start") for entry in vcon.dialog)
    day = next((_day(when) for when in (vcon.created_at, *starts) if _day(when)), "")
    paragraphs = [
        [day],
        [f"# Conversation {vcon.uuid}"],
        [f"The subject is: {_line(document.get('subject'))}"] if document.get("subject") else [],
        [_party(party, index) for index, party in enumerate(vcon.parties)],
        [_dialog(entry, vcon.parties) for entry in vcon.dialog],
        *_analyses(vcon),
        [f"It is tagged {', '.join(_line(tag) for tag in vcon.tags)}."] if vcon.tags else [],
        [_basis(vcon)],
        [_source(vcon)],
    ]
    return "\n\n".join("\n".join(lines) for lines in paragraphs if any(lines)) + "\n"


def grants_analysis(vcon: Vcon, now: datetime | None = None) -> bool:
    """True if the lawful basis of the vCon grants the purpose `analysis`, and has not expired."""
    basis = _lawful_basis(vcon)
    return basis is not None and "analysis" in _granted(basis) and not _expired(basis, now or datetime.now(UTC))


def _line(value: Any) -> str:
    return " ".join(str(value).split())


def _day(when: Any) -> str:
    found = re.match(r"\d{4}-\d\d-\d\d", when) if isinstance(when, str) else None
    return found[0] if found else ""


def _moment(when: Any) -> str:
    found = re.match(r"(\d{4}-\d\d-\d\d)[Tt ](\d\d:\d\d)", when) if isinstance(when, str) else None
    return f"On {found[1]} at {found[2]}" if found else f"On {_day(when)}" if _day(when) else ""


def _who(party: Any, index: int) -> str:
    known = party if isinstance(party, dict) else {}
    return _line(next((known[key] for key in ("name", "tel", "mailto", "sip") if known.get(key)), f"party {index}"))


def _party(party: dict[str, Any], index: int) -> str:
    who = _who(party, index)
    role = f" as {_line(party['role'])}" if party.get("role") else ""
    ways = {"tel": "telephone", "mailto": "e-mail"}
    reach = [f"{way} {_line(party[key])}" for key, way in ways.items() if party.get(key) and _line(party[key]) != who]
    return f"{who} took part{role}{' (' + ', '.join(reach) + ')' if reach else ''}."


def _indexes(value: Any) -> Iterator[int]:
    # A list in the list holds those of one channel.
    for one in value if isinstance(value, list) else [value]:
        if isinstance(one, list):
            yield from _indexes(one)
        elif isinstance(one, int) and not isinstance(one, bool):
            yield one


def _dialog(entry: dict[str, Any], parties: list[dict[str, Any]]) -> str:
    kind = _KINDS.get(str(entry.get("type")), "a conversation")
    indexes = [index for index in dict.fromkeys(_indexes(entry.get("parties"))) if index >= 0]
    names = [_who(parties[index] if index < len(parties) else None, index) for index in indexes]
    seconds = entry.get("duration")
    length = f" of {seconds:.0f} seconds" if isinstance(seconds, int | float) and seconds > 0 else ""
    between = f" with {' and '.join(names)}" if names else ""
    moment = _moment(entry.get("start"))
    return f"{moment}, there was {kind}{length}{between}." if moment else f"There was {kind}{length}{between}."


def _analyses(vcon: Vcon) -> Iterator[list[str]]:
    for entry in vcon.analysis:
        text = _said(Vcon.decoded_body(entry)) if entry.get("type") == "summary" else []
        if text:
            yield [f"In summary: {' '.join(text)}"]
    for entry in vcon.analysis:
        text = _said(Vcon.decoded_body(entry)) if entry.get("type") in _TRANSCRIPTS else []
        if text:
            index = next(_indexes(entry.get("dialog")), -1)
            moment = _moment(vcon.dialog[index].get("start")) if 0 <= index < len(vcon.dialog) else ""
            yield [f"{moment}, this was said:" if moment else "This was said:"]
            yield text


def _said(body: Any) -> list[str]:
    """Return the lines of a transcript or summary, in whatever form its maker gave it."""
    if isinstance(body, dict):
        segments = body.get("segments")
        lines = [line for one in (segments if isinstance(segments, list) else []) if (line := _segment(one))]
        if lines:
            return lines
        inner = body.get("transcript") or body.get("text")
        body = inner.get("text") if isinstance(inner, dict) else inner
    return [body.strip()] if isinstance(body, str) and body.strip() else []


def _segment(segment: Any) -> str:
    text = _line(segment.get("text") or "") if isinstance(segment, dict) else ""
    speaker = segment.get("speaker") if text else None
    return f"Speaker {_line(speaker)}: {text}" if speaker is not None else text


def _lawful_basis(vcon: Vcon) -> dict[str, Any] | None:
    for entry in vcon.attachments:
        if "lawful_basis" in (entry.get("purpose"), entry.get("type")):
            body = Vcon.decoded_body(entry)
            if isinstance(body, dict):
                return body
    return None


def _granted(basis: dict[str, Any]) -> list[str]:
    grants = basis.get("purpose_grants")
    return [
        _line(one["purpose"])
        for one in (grants if isinstance(grants, list) else [])
        if isinstance(one, dict) and one.get("granted") is True and one.get("purpose")
    ]


def _expired(basis: dict[str, Any], now: datetime) -> bool:
    expiration = basis.get("expiration")
    if not expiration:
        return False
    try:
        end = datetime.fromisoformat(expiration)
    except (TypeError, ValueError):
        return True  # what cannot be read grants nothing
    return (end if end.tzinfo else end.replace(tzinfo=UTC)) <= now


def _basis(vcon: Vcon) -> str:
    # Whether it has expired is not told: then the same vCon would read differently on another day.
    basis = _lawful_basis(vcon)
    if basis is None:
        return "No lawful basis is recorded."
    purposes = f"grants {', '.join(_granted(basis))}" if _granted(basis) else "grants nothing"
    until = f" until {_day(basis.get('expiration')) or _line(basis['expiration'])}" if basis.get("expiration") else ""
    return f"The lawful basis is {_line(basis.get('lawful_basis') or 'not named')}; it {purposes}{until}."


def _source(vcon: Vcon) -> str:
    created = f", created at {_line(vcon.created_at)}" if vcon.created_at else ""
    others = {name: vcon.document.get(name) for name in ("amended", "redacted")}
    refs = [
        f", {name} from vCon {one['uuid']}" for name, one in others.items() if isinstance(one, dict) and one.get("uuid")
    ]
    return f"This is from vCon {vcon.uuid}{created}{''.join(refs)}."
