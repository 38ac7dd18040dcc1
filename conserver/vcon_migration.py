"""Older vCons to the current draft, and back to 0.0.1 for consumers that know nothing newer.

No value is lost: what the current draft cannot express stays where it is, and where an old and a new name are both
there with different values, both stay and the new one counts.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

from conserver.errors import NotAVcon
from conserver.vcon_forms import form_of
from conserver.vcon_json import canonical, copied, load

VERSION = "0.4.0"
"""What the deprecated member `vcon` says in the current draft."""

_SAME_FOR_ALL = {"mimetype": "mediatype", "schema_version": "schema", "must_support": "critical"}
_TOP = {"appended": "amended", "must_support": "critical"}
_ENTRY = {
    "dialog": {**_SAME_FOR_ALL, "transfer-target": "transfer_target", "target-dialog": "target_dialog"},
    "analysis": _SAME_FOR_ALL,
    "attachments": {**_SAME_FOR_ALL, "type": "purpose"},
}
_PARTY_EVENTS = {"dtmfdown": "keydown", "dtmfup": "keyup"}
# Members whose presence means that an entry needs a closer look; most entries of a current vCon have none of them.
_SIGNS = {name: frozenset(renames) | {"alg", "party_history", "session_id"} for name, renames in _ENTRY.items()}
_SIGNS["analysis"] |= {"vendor_schema", "vendor_product", "transcript"}

_RFC3339 = re.compile(r"\d{4}-\d\d-\d\d[Tt]\d\d:\d\d:\d\d(?:\.\d+)?(?:[Zz]|[+-]\d\d:\d\d)", re.ASCII)
_ISO_LIKE = re.compile(
    r"(\d{4}-\d\d-\d\d)(?:[Tt ](\d\d:\d\d)(:\d\d)?(?:[.,](\d+))?)?\s*(?:([Zz])|([+-]\d\d)(?::?(\d\d))?)?", re.ASCII
)
_OLD_VERSION = re.compile(r"0\.[0-3](?:\.\d+)?")
_BASE64URL = re.compile(r"[A-Za-z0-9_-]*={0,2}")
_TEXT_MEDIATYPE = re.compile(r"\s*(?:text|multipart)/|\s*application/(?:[\w.+-]*\+)?(?:json|xml)\b", re.IGNORECASE)

_is_rfc3339 = _RFC3339.fullmatch


def migrate(document: Any) -> list[str]:
    """Bring an unsigned vCon to the current draft, in place; return what was changed, a phrase each.

    Doing it twice changes nothing more. Signed and encrypted ones are left alone: a change would break them.
    """
    if not isinstance(document, dict) or form_of(document) != "unsigned":
        return []
    done: list[str] = []
    version = document.get("vcon")
    old = isinstance(version, str) and version != VERSION and _OLD_VERSION.fullmatch(version) is not None
    for name in ("redacted", "amended", "appended", "group"):
        if name in document and not document[name] and document[name] in ({}, [], None):
            del document[name]
            done.append(f"/{name}: dropped, it was empty")
    # After that: what is empty does not stand in the way of another name for the same.
    if not _TOP.keys().isdisjoint(document):
        _rename(document, _TOP, "", done)
    for name in ("created_at", "updated_at"):
        if name in document:
            _date(document, name, "", done)
    for name in ("dialog", "analysis", "attachments"):
        entries = document.get(name)
        if isinstance(entries, list):
            _entries(name, entries, done)
    if old:
        _point_to_only_dialog(document, done)
        document["vcon"] = VERSION
        done.append(f"/vcon: {version} is now {VERSION}")
    return done


def _entries(name: str, entries: list[Any], done: list[str]) -> None:
    signs = _SIGNS[name]
    for index, entry in enumerate(entries):
        if not isinstance(entry, dict):
            continue
        if not signs.isdisjoint(entry):
            _entry(name, entry, f"/{name}/{index}", done)
        if "body" in entry:
            encoding = entry.get("encoding")
            if encoding is None or (encoding == "none" and not isinstance(entry["body"], str)):
                _encoding(entry, f"/{name}/{index}", done)
        if "start" in entry:
            start = entry["start"]
            if not (isinstance(start, str) and _is_rfc3339(start)):
                _date(entry, "start", f"/{name}/{index}", done)


def _entry(name: str, entry: dict[str, Any], pointer: str, done: list[str]) -> None:
    _rename(entry, _ENTRY[name], pointer, done)
    if "alg" in entry:
        _content_hash(entry, pointer, done)
    if name == "analysis":
        # Links of the existing conserver keep an object in vendor_schema; the draft's schema is a name.
        names = {"vendor_schema": "schema", "vendor_product": "product"}
        _rename(entry, {old: new for old, new in names.items() if isinstance(entry.get(old), str)}, pointer, done)
        if "body" not in entry and "url" not in entry:
            _rename(entry, {"transcript": "body"}, pointer, done)
    if name == "dialog":
        if isinstance(entry.get("session_id"), str):
            entry["session_id"] = {"local": entry["session_id"]}
            done.append(f"{pointer}/session_id: the text became its local part")
        history = entry.get("party_history")
        for index, item in enumerate(history if isinstance(history, list) else []):
            if isinstance(item, dict):
                _party_history(item, f"{pointer}/party_history/{index}", done)


def _party_history(item: dict[str, Any], pointer: str, done: list[str]) -> None:
    event = item.get("event")
    if isinstance(event, str) and event in _PARTY_EVENTS:
        item["event"] = _PARTY_EVENTS[event]
        done.append(f"{pointer}/event: {event} is now {item['event']}")
    if "dtmf" in item:
        _rename(item, {"dtmf": "button"}, pointer, done)
    if "time" in item:
        _date(item, "time", pointer, done)


def _rename(holder: dict[str, Any], names: dict[str, str], pointer: str, done: list[str]) -> None:
    for old, new in names.items():
        if old not in holder:
            continue
        if holder.get(new) is None:
            holder[new] = holder.pop(old)
            done.append(f"{pointer}/{old}: renamed to {new}")
        elif canonical(holder[new]) == canonical(holder[old]):
            del holder[old]
            done.append(f"{pointer}/{old}: dropped, {new} says the same")


def _content_hash(entry: dict[str, Any], pointer: str, done: list[str]) -> None:
    algorithm, signature = entry["alg"], entry.get("signature")
    if not (isinstance(algorithm, str) and isinstance(signature, str) and algorithm.upper() in ("SHA-512", "SHA512")):
        return  # a signature of another kind has no place in the current draft
    found = "sha512-" + signature.rstrip("=").replace("+", "-").replace("/", "_")
    given = entry.get("content_hash")
    if given is not None and found != given and not (isinstance(given, list) and found in given):
        return
    del entry["alg"], entry["signature"]
    if given is None:
        entry["content_hash"] = found
    done.append(f"{pointer}/signature: is now content_hash")


def _encoding(entry: dict[str, Any], pointer: str, done: list[str]) -> None:
    """Name the encoding that is missing, or that says none although the body is no text."""
    body, said = entry["body"], entry.get("encoding") or "missing"
    mediatype = entry.get("mediatype")
    if body is None or body == "":
        return
    if not isinstance(body, str):
        entry["encoding"] = "json"
    elif isinstance(mediatype, str):
        if _TEXT_MEDIATYPE.match(mediatype):
            entry["encoding"] = "none"
        elif _BASE64URL.fullmatch(body):
            entry["encoding"] = "base64url"
    elif entry.get("type") != "recording":  # audio of an unknown kind: nothing tells how it was encoded
        entry["encoding"] = "none"
    if (entry.get("encoding") or "missing") != said:
        done.append(f"{pointer}/encoding: {said} is now {entry['encoding']}")


def _point_to_only_dialog(document: dict[str, Any], done: list[str]) -> None:
    dialogs, attachments = document.get("dialog"), document.get("attachments")
    if not (isinstance(dialogs, list) and len(dialogs) == 1 and isinstance(attachments, list)):
        return
    for index, attachment in enumerate(attachments):
        if isinstance(attachment, dict) and attachment and "dialog" not in attachment:
            attachment["dialog"] = 0
            done.append(f"/attachments/{index}/dialog: set to 0, the only dialog")


def _date(holder: dict[str, Any], name: str, pointer: str, done: list[str]) -> None:
    value = holder[name]
    if isinstance(value, str) and _is_rfc3339(value):
        return
    date = _rfc3339(value)
    if date is not None:
        holder[name] = date
        done.append(f"{pointer}/{name}: {str(value)[:40]!r} is now {date}")


def _rfc3339(value: Any) -> str | None:
    """Return the instant as RFC 3339; a zone that is not named is taken as UTC. None when it is no date."""
    if isinstance(value, str):
        text = value.strip()
        if re.fullmatch(r"\d{10}|\d{13}", text, re.ASCII):
            return _epoch(int(text))
        match = _ISO_LIKE.fullmatch(text)
        if match:
            day, minutes, seconds, fraction, zulu, hours, rest = match.groups()
            zone = "Z" if zulu else f"{hours}:{rest or '00'}" if hours else "+00:00"
            return f"{day}T{minutes or '00:00'}{seconds or ':00'}{'.' + fraction if fraction else ''}{zone}"
        try:
            date = parsedate_to_datetime(text)
        except (ValueError, TypeError, IndexError, OverflowError):
            return None
        return (date if date.tzinfo else date.replace(tzinfo=UTC)).isoformat()
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return _epoch(value)
    return None


def _epoch(value: float) -> str | None:
    # From 1973 on a count of milliseconds is larger than any count of seconds before the year 5138; what is smaller
    # than both is no time stamp, but perhaps an offset into the conversation.
    if abs(value) < 1e8:
        return None
    try:
        return datetime.fromtimestamp(value / 1000 if abs(value) >= 1e11 else value, UTC).isoformat()
    except (ValueError, OverflowError, OSError):
        return None


def decoded_body(entry: dict[str, Any]) -> Any:
    """Return the body of an entry, parsed when it is the text of JSON; else as it is.

    Since draft -03 a body with the encoding json is the JSON value itself; before, it was often its text.
    """
    body = entry.get("body")
    if not (isinstance(body, str) and entry.get("encoding") == "json"):
        return body
    try:
        return load(body)
    except NotAVcon:
        return body  # a JSON value that is a string


def to_version(document: dict[str, Any], version: str) -> dict[str, Any]:
    """Return a copy of an unsigned vCon as an older consumer expects it; the only older version is 0.0.1.

    Signed and encrypted ones are copied as they are.
    """
    if version not in _WRITERS:
        raise ValueError(f"cannot write vCons of version {version!r}: known are {', '.join(_WRITERS)}")
    older: dict[str, Any] = copied(document)
    if form_of(older) == "unsigned":
        _WRITERS[version](older)
    return older


def _to_0_0_1(document: dict[str, Any]) -> None:
    _rename(document, _reversed(_TOP), "", [])
    for name, renames in _ENTRY.items():
        entries = document.get(name)
        for entry in entries if isinstance(entries, list) else []:
            if isinstance(entry, dict):
                _rename(entry, _reversed(renames), "", [])
                _signature(entry)
                _native_body(entry)
    for name, empty in (("group", []), ("redacted", {}), ("appended", None)):
        document.setdefault(name, empty)
    document["vcon"] = "0.0.1"


def _reversed(names: dict[str, str]) -> dict[str, str]:
    return {new: old for old, new in names.items()}


def _signature(entry: dict[str, Any]) -> None:
    given = entry.get("content_hash")
    hashes = given if isinstance(given, list) else [given]
    found = next((each for each in hashes if isinstance(each, str) and each.startswith("sha512-")), None)
    if found is None or "alg" in entry or "signature" in entry:
        return
    digest = found.removeprefix("sha512-")
    entry["alg"], entry["signature"] = "SHA-512", digest + "=" * (-len(digest) % 4)
    if not isinstance(given, list):
        del entry["content_hash"]


def _native_body(entry: dict[str, Any]) -> None:
    if entry.get("encoding") == "json":
        entry["body"], entry["encoding"] = decoded_body(entry), "none"


_WRITERS: dict[str, Callable[[dict[str, Any]], None]] = {"0.0.1": _to_0_0_1}
