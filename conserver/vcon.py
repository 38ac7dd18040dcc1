"""A vCon: a thin wrapper over its JSON object, which stays the truth.

What we do not know is kept as it is. The parts live beside this file: `vcon_json` (lossless JSON), `vcon_forms`
(unsigned, signed, encrypted), `vcon_migration` (old drafts) and `vcon_rules` (what the draft demands).
"""

from __future__ import annotations

import hashlib
import os
import secrets
import socket
import time
from datetime import UTC, datetime
from functools import cache
from typing import Any

from conserver.errors import VconSealed
from conserver.vcon_forms import (
    ARRAYS,
    Form,
    check_shape,
    derived_uuid,
    form_of,
    payload_of,
    uncompressed,
    uuid8,
    uuid_of,
)
from conserver.vcon_json import MAX_BYTES, MAX_DEPTH, copied, dump, load
from conserver.vcon_migration import VERSION, decoded_body, migrate, to_version
from conserver.vcon_rules import RULES, VconFinding, validate

__all__ = [
    "ARRAYS",
    "ENCODINGS",
    "MAX_BYTES",
    "MAX_DEPTH",
    "RULES",
    "VERSION",
    "Vcon",
    "VconFinding",
    "derived_uuid",
    "dump",
    "load",
    "migrate",
    "payload_of",
    "to_version",
    "uuid_of",
    "validate",
]

ENCODINGS = ("base64url", "json", "none")


class Vcon:
    """One vCon in any form; `document` is the JSON object itself, and changing it changes the vCon.

    `parties`, `dialog`, `analysis` and `attachments` are the live lists of plain dicts. One that the document does
    not have reads as an empty list and enters the document with its first entry.
    """

    __slots__ = ("_document", "_new_arrays", "base")
    __hash__ = None  # type: ignore[assignment]

    def __init__(self, document: dict[str, Any] | None = None) -> None:
        self._document: dict[str, Any] = {} if document is None else document
        self._new_arrays: dict[str, list[dict[str, Any]]] = {}
        self.base: bytes | None = None
        """What the store read or saved last; None for a vCon that was built here."""

    def __eq__(self, other: object) -> bool:
        return self.document == other.document if isinstance(other, Vcon) else NotImplemented

    def __repr__(self) -> str:
        return f"Vcon({self.form}, uuid={self.uuid!r})"

    @classmethod
    def build_new(cls) -> Vcon:
        """Return a new empty vCon of the current draft, with a UUID and the time of now."""
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        uuid = cls.uuid8_domain_name(_domain_name())
        return cls({"vcon": VERSION, "uuid": uuid, "created_at": now, **{name: [] for name in ARRAYS}})

    @classmethod
    def build_from_json(cls, text: str | bytes) -> Vcon:
        """The same as `parse`, under the name that links know."""
        return cls.parse(text)

    @classmethod
    def parse(cls, data: bytes | str, *, migrate: bool = True, max_bytes: int = MAX_BYTES) -> Vcon:
        """Read a vCon in any form from JSON, or from gzip of JSON, and bring an unsigned one to the current draft.

        Raises NotAVcon for what is none: no JSON, no object, no UUID, arrays that hold no objects, more than
        `max_bytes` (also once unpacked). A vCon that breaks the draft's rules is still one: see `validate`.
        """
        document = load(uncompressed(data, max_bytes))
        check_shape(document)
        if migrate:
            _migrate(document)
        return cls(document)

    @property
    def document(self) -> dict[str, Any]:
        """The JSON object."""
        if self._new_arrays:
            self._adopt_arrays()
        return self._document

    @document.setter
    def document(self, document: dict[str, Any]) -> None:
        self._document = document
        self._new_arrays = {}

    vcon_dict = document

    def _adopt_arrays(self) -> None:
        for name, entries in self._new_arrays.items():
            if not entries:
                continue
            if self.sealed:
                raise VconSealed(f"vCon {uuid_of(self._document)} is {self.form}: {name} cannot be added to")
            if self._document.get(name) is None:
                self._document[name] = entries
            else:  # the document got its own in between
                self._document[name].extend(entries)
        self._new_arrays = {name: entries for name, entries in self._new_arrays.items() if not entries}

    # --- what it says ---

    @property
    def form(self) -> Form:
        """`unsigned`, `signed` or `encrypted`."""
        return form_of(self._document)

    @property
    def sealed(self) -> bool:
        """Whether it is signed or encrypted, so that no change is possible."""
        return form_of(self._document) != "unsigned"

    @property
    def uuid(self) -> str | None:
        """The UUID, in whatever form the vCon is."""
        return uuid_of(self._document)

    @property
    def vcon(self) -> str | None:
        """The version that the document names; the current draft needs none."""
        return self._document.get("vcon")

    @property
    def subject(self) -> str | None:
        return self._document.get("subject")

    @property
    def created_at(self) -> str | None:
        return self._document.get("created_at")

    @property
    def updated_at(self) -> str | None:
        return self._document.get("updated_at")

    @property
    def redacted(self) -> dict[str, Any] | None:
        return self._document.get("redacted")

    @property
    def amended(self) -> dict[str, Any] | None:
        return self._document.get("amended")

    @property
    def appended(self) -> dict[str, Any] | None:
        """The old name of `amended`."""
        return self._document.get("appended", self.amended)

    @property
    def group(self) -> list[Any]:
        return self._document.get("group") or []

    @property
    def hash(self) -> str:
        """The SHA-256 of `dumps()` in hex."""
        return hashlib.sha256(self.to_bytes()).hexdigest()

    # --- parties, dialog, analysis, attachments ---

    def _array(self, name: str) -> list[dict[str, Any]]:
        entries = self._document.get(name)
        if entries is None:
            return self._new_arrays.setdefault(name, [])
        return entries  # type: ignore[no-any-return]

    @property
    def parties(self) -> list[dict[str, Any]]:
        return self._array("parties")

    @parties.setter
    def parties(self, entries: list[dict[str, Any]]) -> None:
        self.document["parties"] = entries

    @property
    def dialog(self) -> list[dict[str, Any]]:
        return self._array("dialog")

    @dialog.setter
    def dialog(self, entries: list[dict[str, Any]]) -> None:
        self.document["dialog"] = entries

    @property
    def analysis(self) -> list[dict[str, Any]]:
        return self._array("analysis")

    @analysis.setter
    def analysis(self, entries: list[dict[str, Any]]) -> None:
        self.document["analysis"] = entries

    @property
    def attachments(self) -> list[dict[str, Any]]:
        return self._array("attachments")

    @attachments.setter
    def attachments(self, entries: list[dict[str, Any]]) -> None:
        self.document["attachments"] = entries

    def add_party(self, party: dict[str, Any]) -> None:
        """Append a party."""
        self.parties.append(party)

    def find_party_index(self, by: str, val: Any) -> int | None:
        """Return the index of the first party whose member `by` (a dotted path) is `val`, or None."""
        return next((index for index, party in enumerate(self.parties) if _at(party, by) == val), None)

    def add_dialog(self, dialog: dict[str, Any]) -> None:
        """Append a dialog."""
        self.dialog.append(dialog)

    def find_dialog(self, by: str, val: Any) -> dict[str, Any] | None:
        """Return the first dialog whose member `by` (a dotted path) is `val`, or None."""
        return next((dialog for dialog in self.dialog if _at(dialog, by) == val), None)

    def add_analysis(
        self,
        *,
        type: str,
        dialog: int | list[int] | None,
        vendor: str,
        body: Any,
        encoding: str = "none",
        extra: dict[str, Any] | None = None,
    ) -> dict[str, Any]:
        """Append an analysis and return it; `extra` are further members. A body that is no text has encoding json."""
        entry: dict[str, Any] = {"type": type, "vendor": vendor, **_content(body, encoding), **(extra or {})}
        if dialog is not None:
            entry["dialog"] = dialog
        self.analysis.append(entry)
        return entry

    def find_analysis_by_type(self, type: str) -> dict[str, Any] | None:
        """Return the first analysis of the type, or None."""
        return next((entry for entry in self.analysis if entry.get("type") == type), None)

    def add_attachment(
        self, *, body: Any, purpose: str | None = None, type: str | None = None, encoding: str = "none", **extra: Any
    ) -> dict[str, Any]:
        """Append an attachment and return it; `type` is the old name of `purpose`, `extra` are further members.

        The draft wants `start`, `party` and `dialog` as well; only the caller knows them.
        """
        purpose = purpose or type
        entry = {**({"purpose": purpose} if purpose else {}), **_content(body, encoding), **extra}
        self.attachments.append(entry)
        return entry

    def find_attachment_by_purpose(self, purpose: str) -> dict[str, Any] | None:
        """Return the first attachment with this purpose (or this type, its old name), or None."""
        return next((a for a in self.attachments if purpose in (a.get("purpose"), a.get("type"))), None)

    def find_attachment_by_type(self, type: str) -> dict[str, Any] | None:
        """The same as `find_attachment_by_purpose`, under its old name."""
        return self.find_attachment_by_purpose(type)

    # --- tags ---

    @property
    def tags(self) -> list[str]:
        """The tags of all attachments that hold some, each as `name:value`, once, in the order of the document."""
        return list(dict.fromkeys(tag for attachment in self._tagged() for tag in _readable_tags(attachment)))

    def _tagged(self) -> list[dict[str, Any]]:
        return [a for a in self.attachments if "tags" in (a.get("purpose"), a.get("type"))]

    def get_tag(self, name: str) -> str | None:
        """Return the value of the first tag of this name, or None."""
        return next((tag.partition(":")[2] for tag in self.tags if tag.partition(":")[0] == name), None)

    def add_tag(self, name: str, value: Any) -> None:
        """Add the tag `name:value`; one that is there already is not added again.

        It goes to the first attachment that is a plain list of tags; what is something else stays as it is.
        """
        tag = f"{name}:{value}"
        if tag in self.tags:
            return
        for attachment in self._tagged():
            tags = tags_of(attachment)
            if tags is not None:
                set_tags(attachment, [*tags, tag])
                return
        self.add_attachment(purpose="tags", body=[tag], encoding="json")

    # --- bodies and output ---

    @staticmethod
    def decoded_body(entry: dict[str, Any]) -> Any:
        """Return the body of an entry, parsed when it is the text of JSON; else as it is."""
        return decoded_body(entry)

    @staticmethod
    def with_decoded_body(entry: dict[str, Any]) -> dict[str, Any]:
        """Return a copy of the entry with its body decoded."""
        return {**entry, "body": decoded_body(entry)} if "body" in entry else dict(entry)

    def to_bytes(self) -> bytes:
        """Return the vCon as compact JSON; NotAVcon names what in it is no JSON."""
        return dump(self.document)

    def dumps(self) -> str:
        """Return the vCon as compact JSON text."""
        return self.to_bytes().decode()

    def to_json(self) -> str:
        """The same as `dumps`."""
        return self.dumps()

    def to_dict(self) -> dict[str, Any]:
        """Return a deep copy of the document."""
        return copied(self.document)  # type: ignore[no-any-return]

    @staticmethod
    def uuid8_domain_name(domain: str) -> str:
        """Return a new UUIDv8 of this instant, marked with the domain.

        The draft takes all of the last 62 bits from the domain's SHA-1. Then two processes of one domain would make
        the same UUID in the same quarter of a microsecond; so half of these bits are random.
        """
        mark = int.from_bytes(hashlib.sha1(domain.encode(), usedforsecurity=False).digest()[:4]) >> 2
        return Vcon.uuid8_time(mark << 32 | secrets.randbits(32))

    @staticmethod
    def uuid8_time(bits: int) -> str:
        """Return a UUIDv8 of this instant, whose last 62 bits are these."""
        milliseconds, rest = divmod(time.time_ns(), 1_000_000)
        return uuid8(milliseconds << 80 | (rest * 4096 // 1_000_000) << 64 | bits & ((1 << 62) - 1))


_migrate = migrate


def tags_of(attachment: dict[str, Any]) -> list[str] | None:
    """Return the tags that an attachment holds, or None when its body is nothing that holds tags.

    A list of `name:value` is the rule; the text of one and an object of names and values are found as well.
    """
    body = attachment.get("body")
    if isinstance(body, str) and attachment.get("encoding") in ("json", "none", None):
        body = decoded_body({"body": body, "encoding": "json"})
    if isinstance(body, dict):
        return [f"{name}:{value}" for name, value in body.items()]
    if isinstance(body, list) and all(isinstance(tag, str) for tag in body):
        return body
    return [] if body is None or body == "" else None


def _readable_tags(attachment: dict[str, Any]) -> list[str]:
    tags = tags_of(attachment)
    if tags is None:
        body = attachment.get("body")
        tags = [tag for tag in body if isinstance(tag, str)] if isinstance(body, list) else []
    return tags


def set_tags(attachment: dict[str, Any], tags: list[str]) -> None:
    """Write the tags, as text where the attachment had text: a reader of it may know nothing else."""
    as_text = isinstance(attachment.get("body"), str) and attachment["body"] != ""
    attachment["body"] = dump(tags).decode() if as_text else tags
    attachment["encoding"] = "json"


def _content(body: Any, encoding: str) -> dict[str, Any]:
    if encoding not in ENCODINGS:
        raise ValueError(f"encoding {encoding!r} is none of {', '.join(ENCODINGS)}")
    if not isinstance(body, str):
        if encoding == "base64url":
            raise ValueError(f"a base64url body must be text, not {type(body).__name__}")
        encoding = "json"
    return {"body": body, "encoding": encoding}


def _at(entry: dict[str, Any], path: str) -> Any:
    found: Any = entry
    for part in path.split("."):
        found = found.get(part) if isinstance(found, dict) else None
    return found


@cache
def _domain_name() -> str:
    return os.environ.get("UUID8_DOMAIN_NAME") or socket.gethostname()
