"""What the current draft demands of a vCon and a program can check, each rule with an id.

A vCon that breaks rules is kept and worked on; the findings say what other programs may stumble over.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

from conserver.errors import NotAVcon
from conserver.vcon_forms import ARRAYS, MAX_SIGNATURES_DEEP, form_of, is_uuid, payload_of, uuid_of
from conserver.vcon_migration import VERSION, migrate

RULES: dict[str, str] = {
    "E0": "the vCon is an object; parties, dialog, analysis and attachments are arrays of objects",
    "E1": "`uuid` is there and is a UUID",
    "E2": "`created_at` is there; it, `updated_at`, `start` and `time` are RFC 3339 dates with a zone",
    "E3": f"`vcon` is absent or {VERSION}",
    "E4": "a vCon is not redacted and amended at once",
    "E5": "every extension in `critical` is supported",
    "E6": "a `url` is https and comes with a `content_hash`",
    "E7": "a `content_hash` is `<algorithm>-<base64url digest>` or a list of these; sha512 has 86 characters",
    "E8": "a `body` has an `encoding` of base64url, json or none, and is what that says",
    "E9": "a dialog with a `body` has a `mediatype`",
    "E10": "a dialog has a known `type` and a `start`, unless it is empty",
    "E11": "an incomplete dialog, and no other, has a known `disposition`, and no content",
    "E12": "a transfer has no parties, originator, mediatype, filename or content",
    "E13": "transferee, transferor, transfer_target, original, consultation, target_dialog are in transfers only",
    "E14": "a recording-set lists its `recordings`, which are recordings, and has no content",
    "E15": "every index points into its array",
    "E16": "an index is an integer: no boolean, no 1.0",
    "E17": "an entry of `party_history` has a known `event`, and a `button` with keydown and keyup",
    "E18": "`session_id` is an object, or mirrors `parties`",
    "E19": "an analysis has `type` and `vendor`; an attachment has `start`, `party` and `dialog`",
    "E20": "`redacted` says its `type`",
    "E21": "a signed vCon has a decodable `payload` and signatures with protected, signature and x5c or x5u (https)",
    "E22": "`header.uuid` of a signature is the UUID of the payload",
    "E23": "an encrypted vCon has recipients, iv, ciphertext and tag",
    "E24": "`unprotected.uuid` of an encrypted vCon is a UUID",
    "W1": "`uuid` is of version 8",
    "W2": "`updated_at` is not before `created_at`",
    "W3": "what is in `critical` is in `extensions` as well",
    "W4": "members that the draft does not know come with an entry in `extensions`",
    "W5": "content is inline or external, not both",
    "W6": "a transfer names transferee, transferor, transfer_target, original and target_dialog",
    "W7": "the recordings of a recording-set point back with `recording_set`",
    "W8": "`did` is a DID",
    "W9": "a party with a `name` says how it was validated",
    "W10": "no two dialogs have the same `message_id`",
    "W11": "the `mediatype` of a dialog is one that the draft lists",
    "W12": "also the attachment that holds the tags has `start`, `party` and `dialog`",
}
"""Every rule, with what it demands. E is an error, W a warning."""

_DIALOG_TYPES = ("recording", "recording-set", "text", "transfer", "incomplete")
_DISPOSITIONS = ("no-answer", "congestion", "failed", "busy", "hung-up", "voicemail-no-message")
_EVENTS = ("join", "drop", "hold", "unhold", "mute", "unmute", "keydown", "keyup")
_MEDIATYPES = (
    *("text/plain", "audio/x-wav", "audio/x-mp3", "audio/x-mp4", "audio/ogg"),
    *("video/x-mp4", "video/ogg", "multipart/mixed"),
)
_CONTENT = ("body", "encoding", "url", "content_hash")
_TO_PARTIES = ("transferee", "transferor", "transfer_target")
_TO_DIALOG = ("original", "consultation", "target_dialog")
_TRANSFER = (*_TO_PARTIES, *_TO_DIALOG)

_UNCOMMON = frozenset({"disposition", "session_id", "party_history", "recordings", "recording_set", *_TRANSFER})

_MEDIA = {"mediatype", "filename", *_CONTENT}
_KNOWN = {
    "": {"vcon", "uuid", "created_at", "updated_at", "subject", "extensions", "critical", "redacted", "amended"}
    | {"group", *ARRAYS},
    "parties": {"tel", "sip", "stir", "mailto", "name", "did", "validation", "gmlpos", "civicaddress", "uuid"}
    | {"type", "org", "dept"},
    "dialog": {"type", "start", "duration", "parties", "originator", "disposition", "session_id", "party_history"}
    | {"application", "message_id", "recordings", "recording_set", *_TRANSFER, *_MEDIA},
    "analysis": {"type", "vendor", "product", "schema", "dialog", "attachment", *_MEDIA},
    "attachments": {"purpose", "start", "party", "dialog", *_MEDIA},
}

_DATE = re.compile(r"\d{4}-\d\d-\d\d[Tt]\d\d:\d\d:(\d\d)(\.\d+)?([Zz]|[+-]\d\d:\d\d)", re.ASCII)
_HASH = re.compile(r"([a-z0-9]+)-([A-Za-z0-9_-]+)")
_BASE64URL = re.compile(r"[A-Za-z0-9_-]*={0,2}")


@dataclass(frozen=True, slots=True)
class VconFinding:
    """One rule that a vCon breaks: where (a JSON pointer), and what to do about it."""

    rule: str
    level: Literal["error", "warning"]
    pointer: str
    message: str

    def __str__(self) -> str:
        return f"{self.pointer or '/'}: {self.level}[{self.rule}] {self.message}"


_Report = Callable[[str, str, str], None]


def validate(document: Any, *, supported: Collection[str] = ()) -> list[VconFinding]:
    """Check a vCon in any form against the rules; it never raises, whatever it is given.

    `supported` are the extensions that may stand in `critical`. Of a signed vCon the payload is checked as well, in a
    migrated copy; pointers into it begin with /payload. What an encrypted one holds cannot be seen.
    """
    found: list[VconFinding] = []
    prefix = ""

    def report(rule: str, pointer: str, message: str) -> None:
        found.append(VconFinding(rule, "error" if rule[0] == "E" else "warning", prefix + pointer, message))

    for _ in range(MAX_SIGNATURES_DEEP):
        if not isinstance(document, dict):
            report("E0", "", f"a vCon is a JSON object, not {_show(document)}")
            return found
        form = form_of(document)
        if form != "signed":
            if form == "encrypted":
                _encrypted(document, report)
            else:
                _unsigned(document, supported, report)
            return found
        document = _signed(document, report)
        if document is None:
            return found
        prefix += "/payload"
    report("E21", "", f"signed more than {MAX_SIGNATURES_DEEP} times over")
    return found


def _signed(document: dict[str, Any], report: _Report) -> Any:
    """Check the outer form; return the payload, migrated, or None when there is none to check."""
    payload = None
    uuid = None
    try:
        payload = payload_of(document)
        uuid = uuid_of(payload)
        migrate(payload)
    except NotAVcon as error:
        report("E21", "/payload", str(error))
    signatures = document["signatures"]
    if not isinstance(signatures, list) or not signatures:
        report("E21", "/signatures", "must be an array with at least one signature")
        return payload
    for index, entry in enumerate(signatures):
        pointer = f"/signatures/{index}"
        if not isinstance(entry, dict):
            report("E21", pointer, f"must be an object, not {_show(entry)}")
            continue
        for name in ("protected", "signature"):
            if not isinstance(entry.get(name), str):
                report("E21", f"{pointer}/{name}", "is missing, or is no string")
        given = entry.get("header")
        header = given if isinstance(given, dict) else {}
        url = header.get("x5u")
        if not header.get("x5c") and not (isinstance(url, str) and url.lower().startswith("https://")):
            report("E21", f"{pointer}/header", "needs the certificates in x5c, or where they are (https) in x5u")
        if uuid is not None and header.get("uuid") not in (None, uuid):
            report("E22", f"{pointer}/header/uuid", f"is {_show(header['uuid'])}, but the payload is vCon {uuid}")
    return payload


def _encrypted(document: dict[str, Any], report: _Report) -> None:
    if not isinstance(document["recipients"], list) or not document["recipients"]:
        report("E23", "/recipients", "must be an array with at least one recipient")
    for name in ("iv", "ciphertext", "tag"):
        if not isinstance(document.get(name), str):
            report("E23", f"/{name}", "is missing, or is no string")
    header = document.get("unprotected")
    uuid = header.get("uuid") if isinstance(header, dict) else None
    if not is_uuid(uuid):
        report("E24", "/unprotected/uuid", f"is {_show(uuid)}; without it nobody can tell which vCon this is")


def _unsigned(document: dict[str, Any], supported: Collection[str], report: _Report) -> None:
    _top(document, supported, report)
    arrays = {name: _objects(document, name, report) for name in ARRAYS}
    _Entries(arrays, report).check()
    if not document.get("extensions"):
        _unknown(document, "", "", report)
        for kind in ARRAYS:
            for index, entry in arrays[kind]:
                if not entry.keys() <= _KNOWN[kind]:
                    _unknown(entry, kind, f"/{kind}/{index}", report)


def _unknown(entry: dict[str, Any], kind: str, pointer: str, report: _Report) -> None:
    unknown = [name for name in entry if name not in _KNOWN[kind]]
    if unknown:
        report("W4", pointer, f"{_show(', '.join(unknown))} is not in the draft; name the extension in /extensions")


def _objects(document: dict[str, Any], name: str, report: _Report) -> list[tuple[int, dict[str, Any]]]:
    entries = document.get(name)
    if entries is None:
        return []
    if not isinstance(entries, list):
        report("E0", f"/{name}", f"must be an array, not {_show(entries)}")
        return []
    for index, entry in enumerate(entries):
        if not isinstance(entry, dict):
            report("E0", f"/{name}/{index}", f"must be an object, not {_show(entry)}")
    return [(index, entry if isinstance(entry, dict) else {}) for index, entry in enumerate(entries)]


def _top(document: dict[str, Any], supported: Collection[str], report: _Report) -> None:
    uuid = document.get("uuid")
    if not (isinstance(uuid, str) and is_uuid(uuid)):
        report("E1", "/uuid", f"is {_show(uuid)}; it must be a UUID such as 01928e10-193e-8231-b9a2-279e0d16bc46")
    elif uuid[14] != "8":
        report("W1", "/uuid", f"is a UUID of version {uuid[14]}; the draft asks for version 8")
    created = _date(document, "created_at", "", report, required=True)
    updated = _date(document, "updated_at", "", report)
    if created and updated and updated < created:
        report("W2", "/updated_at", f"{document['updated_at']} is before created_at {document['created_at']}")
    if document.get("vcon") not in (None, VERSION):
        report("E3", "/vcon", f"is {_show(document['vcon'])}; leave it out, or migrate the vCon and write {VERSION}")
    if document.get("redacted") and document.get("amended"):
        report("E4", "/amended", "stands beside /redacted; a vCon is one or the other")
    critical, extensions = document.get("critical"), document.get("extensions")
    known = extensions if isinstance(extensions, list) else []
    for index, name in enumerate(critical if isinstance(critical, list) else []):
        if not (isinstance(name, str) and name in supported):
            report("E5", f"/critical/{index}", f"{_show(name)} is not supported here: do not process this vCon")
        if name not in known:
            report("W3", f"/critical/{index}", f"{_show(name)} is missing in /extensions")
    for name in ("redacted", "amended"):
        origin = document.get(name)
        if isinstance(origin, dict) and origin:
            _content(origin, f"/{name}", report)
            if name == "redacted" and not isinstance(origin.get("type"), str):
                report("E20", "/redacted/type", f"is {_show(origin.get('type'))}; say what kind of redaction it is")


class _Entries:
    """The checks of the four arrays, which point into each other."""

    def __init__(self, arrays: dict[str, list[tuple[int, dict[str, Any]]]], report: _Report) -> None:
        self.arrays = arrays
        self.report = report
        self.counts = {name: range(len(entries)) for name, entries in arrays.items()}
        self.types = [entry.get("type") for _, entry in arrays["dialog"]]

    def check(self) -> None:
        seen: dict[str, str] = {}
        for index, party in self.arrays["parties"]:
            self._party(party, f"/parties/{index}")
        for index, dialog in self.arrays["dialog"]:
            pointer = f"/dialog/{index}"
            if dialog:
                self._dialog(dialog, index, pointer)
            message_id = dialog.get("message_id")
            if isinstance(message_id, str):
                if message_id in seen:
                    self.report("W10", f"{pointer}/message_id", f"{_show(message_id)} is also in {seen[message_id]}")
                seen.setdefault(message_id, pointer)
        for index, analysis in self.arrays["analysis"]:
            pointer = f"/analysis/{index}"
            for name in ("type", "vendor"):
                if not isinstance(analysis.get(name), str):
                    self.report("E19", f"{pointer}/{name}", f"is {_show(analysis.get(name))}; it must be a string")
            self._index(analysis, "dialog", "dialog", pointer)
            self._index(analysis, "attachment", "attachments", pointer)
            _content(analysis, pointer, self.report)
        for index, attachment in self.arrays["attachments"]:
            pointer = f"/attachments/{index}"
            rule = "W12" if attachment.get("purpose") == "tags" else "E19"
            for name in ("start", "party", "dialog"):
                if attachment.get(name) is None:
                    self.report(rule, f"{pointer}/{name}", "is missing")
            _date(attachment, "start", pointer, self.report)
            self._index(attachment, "party", "parties", pointer)
            self._index(attachment, "dialog", "dialog", pointer)
            _content(attachment, pointer, self.report)

    def _party(self, party: dict[str, Any], pointer: str) -> None:
        did, name = party.get("did"), party.get("name")
        if did is not None and not (isinstance(did, str) and did.startswith("did:")):
            self.report("W8", f"{pointer}/did", f"{_show(did)} does not begin with did:")
        if name and name != "anonymous" and not party.get("validation"):
            self.report("W9", f"{pointer}/validation", "is missing; say how the name was validated, or 'none'")

    def _dialog(self, dialog: dict[str, Any], index: int, pointer: str) -> None:
        report, kind = self.report, dialog.get("type")
        if kind not in _DIALOG_TYPES:
            report("E10", f"{pointer}/type", f"is {_show(kind)}; it must be one of {', '.join(_DIALOG_TYPES)}")
        _date(dialog, "start", pointer, report, required=True, rule="E10")
        self._index(dialog, "parties", "parties", pointer, nested=True)
        self._index(dialog, "originator", "parties", pointer)
        # Most dialogs are one of these two, and have none of those.
        if kind not in ("recording", "text") or not _UNCOMMON.isdisjoint(dialog):
            self._uncommon(dialog, kind, index, pointer)
        if dialog.get("body") not in (None, "") and not dialog.get("mediatype"):
            report("E9", f"{pointer}/mediatype", "is missing; an inline body needs it")
        mediatype = dialog.get("mediatype")
        if isinstance(mediatype, str) and mediatype.partition(";")[0].strip().lower() not in _MEDIATYPES:
            report("W11", f"{pointer}/mediatype", f"{_show(mediatype)} is none of {', '.join(_MEDIATYPES)}")
        _content(dialog, pointer, report)

    def _uncommon(self, dialog: dict[str, Any], kind: Any, index: int, pointer: str) -> None:
        for name in _TO_PARTIES:
            self._index(dialog, name, "parties", pointer)
        for name in (*_TO_DIALOG, "recordings", "recording_set"):
            self._index(dialog, name, "dialog", pointer)
        self._kind(dialog, kind, pointer)
        self._recording_set(dialog, kind, index, pointer)
        self._history(dialog, pointer)
        session = dialog.get("session_id")
        if session is not None and not _mirrors(session, dialog.get("parties"), 2):
            self.report("E18", f"{pointer}/session_id", "must be an object, or a list that mirrors parties")

    def _kind(self, dialog: dict[str, Any], kind: Any, pointer: str) -> None:
        report, disposition = self.report, dialog.get("disposition")
        if (kind == "incomplete" or disposition is not None) and disposition not in _DISPOSITIONS:
            allowed = ", ".join(_DISPOSITIONS)
            report("E11", f"{pointer}/disposition", f"is {_show(disposition)}; it must be one of {allowed}")
        if kind != "incomplete" and disposition is not None:
            report("E11", f"{pointer}/disposition", f"belongs to incomplete dialogs, not to {_show(kind)}")
        rules = {"incomplete": "E11", "transfer": "E12", "recording-set": "E14"}
        if isinstance(kind, str) and kind in rules:
            more = ("parties", "originator", "mediatype", "filename") if kind == "transfer" else ()
            for name in (*more, *_CONTENT):
                if dialog.get(name) is not None:
                    report(rules[kind], f"{pointer}/{name}", f"must not be in a dialog of type {kind}")
        for name in _TRANSFER:
            if kind != "transfer" and dialog.get(name) is not None:
                report("E13", f"{pointer}/{name}", f"belongs to transfers, not to {_show(kind)}")
            elif kind == "transfer" and name != "consultation" and dialog.get(name) is None:
                report("W6", f"{pointer}/{name}", "is missing in this transfer")

    def _recording_set(self, dialog: dict[str, Any], kind: Any, index: int, pointer: str) -> None:
        report, recordings = self.report, dialog.get("recordings")
        if kind == "recording-set":
            if not isinstance(recordings, list) or not recordings:
                report("E14", f"{pointer}/recordings", "must list the recordings of the set")
        elif recordings is not None:
            report("E14", f"{pointer}/recordings", f"belongs to recording-sets, not to {_show(kind)}")
        if kind != "recording" and dialog.get("recording_set") is not None:
            report("E14", f"{pointer}/recording_set", f"belongs to recordings, not to {_show(kind)}")
        for place, at in enumerate(recordings if isinstance(recordings, list) else []):
            if not _is_index(at) or at >= len(self.types):
                continue  # E15 and E16 say so
            if self.types[at] != "recording":
                report("E14", f"{pointer}/recordings/{place}", f"/dialog/{at} is {_show(self.types[at])}, no recording")
            elif self.arrays["dialog"][at][1].get("recording_set") != index:
                report("W7", f"/dialog/{at}/recording_set", f"does not point back to the set {pointer}")

    def _history(self, dialog: dict[str, Any], pointer: str) -> None:
        history = dialog.get("party_history")
        for place, item in enumerate(history if isinstance(history, list) else []):
            at = f"{pointer}/party_history/{place}"
            if not isinstance(item, dict):
                self.report("E17", at, f"must be an object, not {_show(item)}")
                continue
            event = item.get("event")
            if event not in _EVENTS:
                self.report("E17", f"{at}/event", f"is {_show(event)}; it must be one of {', '.join(_EVENTS)}")
            elif event in ("keydown", "keyup") and not isinstance(item.get("button"), str):
                self.report("E17", f"{at}/button", f"is missing; {event} needs it")
            self._index(item, "party", "parties", at)
            _date(item, "time", at, self.report, required=True)

    def _index(self, entry: dict[str, Any], name: str, array: str, pointer: str, *, nested: bool = False) -> None:
        given = entry.get(name)
        if (
            given is None
            or (type(given) is int and given in self.counts[array])
            or (isinstance(given, list) and all(type(at) is int and at in self.counts[array] for at in given))
        ):
            return
        for where, value in _flat(given, f"{pointer}/{name}", 2 if nested else 1):
            if not _is_index(value):
                self.report("E16", where, f"is {_show(value)}; an index into /{array} is an integer from 0")
            elif value not in self.counts[array]:
                self.report("E15", where, f"is {_show(value)}, but /{array} has {len(self.arrays[array])} entries")


def _flat(value: Any, pointer: str, levels: int) -> Iterator[tuple[str, Any]]:
    """Yield what stands for an index; null is an unused channel, or nothing."""
    if isinstance(value, list) and levels:
        for place, item in enumerate(value):
            yield from _flat(item, f"{pointer}/{place}", levels - 1)
    elif value is not None:
        yield pointer, value


def _is_index(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _mirrors(session: Any, parties: Any, levels: int) -> bool:
    if isinstance(session, list) and isinstance(parties, list) and levels:
        pairs = zip(session, parties, strict=False)
        return len(session) == len(parties) and all(_mirrors(one, party, levels - 1) for one, party in pairs)
    return isinstance(session, dict) or (session is None and parties is None)


def _content(entry: dict[str, Any], pointer: str, report: _Report) -> None:
    body, url, encoding = entry.get("body"), entry.get("url"), entry.get("encoding")
    if url is not None:
        if not (isinstance(url, str) and url.lower().startswith("https://")):
            report("E6", f"{pointer}/url", f"is {_show(url)}; it must begin with https://")
        if entry.get("content_hash") is None:
            report("E6", f"{pointer}/content_hash", "is missing; a url needs it")
        if body not in (None, ""):
            report("W5", f"{pointer}/body", "stands beside url; content is inline or external")
    hashes = entry.get("content_hash")
    if hashes is not None:
        if hashes == []:
            report("E7", f"{pointer}/content_hash", "is an empty list; leave it out")
        for where, value in _flat(hashes, f"{pointer}/content_hash", 1):
            match = _HASH.fullmatch(value) if isinstance(value, str) else None
            if match is None:
                report("E7", where, f"is {_show(value)}; it must be like sha512-<base64url digest without padding>")
            elif match[1] == "sha512" and len(match[2]) != 86:
                report("E7", where, f"has {len(match[2])} characters after sha512-, not 86")
    if body in (None, ""):
        return
    if encoding not in ("base64url", "json", "none"):
        report("E8", f"{pointer}/encoding", f"is {_show(encoding)}; it must be base64url, json or none")
    elif encoding != "json" and not isinstance(body, str):
        report("E8", f"{pointer}/body", f"must be a string, since its encoding is {encoding}; or write encoding json")
    elif encoding == "base64url" and (not _BASE64URL.fullmatch(body) or len(body.rstrip("=")) % 4 == 1):
        report("E8", f"{pointer}/body", "is no base64url")


def _date(
    holder: dict[str, Any], name: str, pointer: str, report: _Report, *, required: bool = False, rule: str = "E2"
) -> datetime | None:
    value = holder.get(name)
    if value is None:
        if required:
            report(rule, f"{pointer}/{name}", "is missing")
        return None
    match = _DATE.fullmatch(value) if isinstance(value, str) else None
    if match:
        seconds = "59" if match[1] == "60" else match[1]  # a leap second, which Python does not know
        try:
            return datetime.fromisoformat(value[:17] + seconds + value[19:].upper())
        except ValueError:
            pass  # such as 31 February
    report("E2", f"{pointer}/{name}", f"is {_show(value)}; write it like 2026-01-31T12:00:00Z, with a zone")
    return None


def _show(value: Any) -> str:
    if value is None:
        return "missing"
    if isinstance(value, (dict, list)):
        return "an object" if isinstance(value, dict) else "an array"
    if isinstance(value, int) and abs(value) > 10**40:
        return "a huge number"
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
