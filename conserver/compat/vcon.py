"""`vcon.Vcon` of the existing conserver: the class that its links work with, whose members are plain dicts and lists.

`tags` is the attachment that holds them, or None; `conserver.Vcon` has a list of them instead.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from conserver import vcon as _ours
from conserver.compat.documents import stringify
from conserver.errors import NotAVcon, VconSealed
from conserver.vcon_forms import form_of, uuid_of
from conserver.vcon_json import copied

log = logging.getLogger(__name__)

_ENCODINGS = ("json", "none", "base64url")


class Vcon:
    """A vCon over `vcon_dict`, which is a copy of what it was made of."""

    def __init__(self, vcon_dict: dict[str, Any] | str | None = None) -> None:
        if isinstance(vcon_dict, (str, bytes)):
            log.warning("Vcon was given text instead of a dict; it is taken for JSON")
            vcon_dict = _read(vcon_dict)
        self.vcon_dict: dict[str, Any] = dict(copied(vcon_dict or {}))
        self.base: bytes | None = getattr(vcon_dict, "base", None)
        """The stored text that this came from; None for a vCon that was built here."""

    @classmethod
    def build_from_json(cls, json_string: str | bytes) -> Vcon:
        """Make a vCon of JSON text; ValueError if it is none."""
        return cls(json.loads(json_string))

    @classmethod
    def build_new(cls) -> Vcon:
        """Make an empty vCon, with a new UUID and the time of now."""
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        arrays: dict[str, Any] = {name: [] for name in ("group", *_ours.ARRAYS)}
        head: dict[str, Any] = {"uuid": _ours.Vcon.build_new().uuid, "vcon": "0.0.1", "created_at": now, "redacted": {}}
        return cls({**head, **arrays})

    # What it says

    @property
    def uuid(self) -> str | None:
        return uuid_of(self.vcon_dict)

    @property
    def vcon(self) -> str | None:
        return self.vcon_dict.get("vcon")

    @property
    def subject(self) -> str | None:
        return self.vcon_dict.get("subject")

    @property
    def created_at(self) -> Any:
        return self.vcon_dict.get("created_at")

    @property
    def updated_at(self) -> Any:
        return self.vcon_dict.get("updated_at")

    @property
    def redacted(self) -> Any:
        return self.vcon_dict.get("redacted")

    @property
    def appended(self) -> Any:
        return self.vcon_dict.get("appended", self.vcon_dict.get("amended"))

    @property
    def group(self) -> list[Any]:
        return self.vcon_dict.get("group") or []

    @property
    def hash(self) -> str:
        """The SHA-256 of `dumps()` in hex."""
        return hashlib.sha256(self.dumps().encode()).hexdigest()

    # parties, dialog, attachments, analysis: lists of plain dicts, to be read and replaced

    @property
    def parties(self) -> list[dict[str, Any]]:
        return self._entries("parties")

    @parties.setter
    def parties(self, value: list[dict[str, Any]]) -> None:
        self.vcon_dict["parties"] = value

    @property
    def dialog(self) -> list[dict[str, Any]]:
        return self._entries("dialog")

    @dialog.setter
    def dialog(self, value: list[dict[str, Any]]) -> None:
        self.vcon_dict["dialog"] = value

    @property
    def attachments(self) -> list[dict[str, Any]]:
        return self._entries("attachments")

    @attachments.setter
    def attachments(self, value: list[dict[str, Any]]) -> None:
        self.vcon_dict["attachments"] = value

    @property
    def analysis(self) -> list[dict[str, Any]]:
        return self._entries("analysis")

    @analysis.setter
    def analysis(self, value: list[dict[str, Any]]) -> None:
        self.vcon_dict["analysis"] = value

    def _entries(self, name: str) -> list[dict[str, Any]]:
        if form_of(self.vcon_dict) != "unsigned":
            return self.vcon_dict.get(name) or []
        if self.vcon_dict.get(name) is None:
            self.vcon_dict[name] = []
        entries: list[dict[str, Any]] = self.vcon_dict[name]
        return entries

    def _append(self, name: str, entry: dict[str, Any]) -> None:
        form = form_of(self.vcon_dict)
        if form != "unsigned":
            raise VconSealed(f"vCon {self.uuid} is {form}: {name} cannot be added to")
        self._entries(name).append(entry)

    def add_party(self, party: dict[str, Any]) -> None:
        """Append a party."""
        self._append("parties", party)

    def find_party_index(self, by: str, val: Any) -> int | None:
        """Return the index of the first party whose member *by*, a dotted path, is *val*; or None."""
        return next((index for index, party in enumerate(self.parties) if _at(party, by) == val), None)

    def add_dialog(self, dialog: dict[str, Any]) -> None:
        """Append a dialog."""
        self._append("dialog", dialog)

    def find_dialog(self, by: str, val: Any) -> dict[str, Any] | None:
        """Return the first dialog whose member *by*, a dotted path, is *val*; or None."""
        return next((dialog for dialog in self.dialog if _at(dialog, by) == val), None)

    def add_analysis(
        self,
        *,
        type: str,
        dialog: list[int] | int,
        vendor: str,
        body: Any,
        encoding: str = "none",
        extra: Mapping[str, Any] | None = None,
    ) -> None:
        """Append an analysis; a body that is an object or a list becomes the text of its JSON."""
        _check(body, encoding)
        entry = {"type": type, "dialog": dialog, "vendor": vendor, "body": body, "encoding": encoding, **(extra or {})}
        stringify(entry)
        self._append("analysis", entry)

    def find_analysis_by_type(self, type: str) -> dict[str, Any] | None:
        """Return the first analysis of this type, or None."""
        return next((entry for entry in self.analysis if entry.get("type") == type), None)

    def add_attachment(self, *, body: Any, type: str, encoding: str = "none") -> None:
        """Append an attachment.

        With `encoding="json"` an object or a list becomes the text of its JSON. Otherwise it stays what it is until it
        is stored.
        """
        _check(body, encoding)
        entry = {"type": type, "body": body, "encoding": encoding}
        if encoding == "json":
            stringify(entry)
        self._append("attachments", entry)

    def find_attachment_by_purpose(self, purpose: str) -> dict[str, Any] | None:
        """Return the first attachment of this purpose, or of this type, its old name; or None."""
        return next((a for a in self.attachments if purpose in (a.get("purpose"), a.get("type"))), None)

    def find_attachment_by_type(self, type: str) -> dict[str, Any] | None:
        """The same as `find_attachment_by_purpose`."""
        return self.find_attachment_by_purpose(type)

    # tags

    @property
    def tags(self) -> dict[str, Any] | None:
        """The attachment that holds the tags, or None."""
        return self.find_attachment_by_purpose("tags")

    def _tag_list(self) -> list[str]:
        tags = _ours.tags_of(self.tags) if self.tags else None
        return list(tags or [])

    def get_tag(self, tag_name: str) -> str | None:
        """Return the value of the first tag of this name, or None."""
        values = (tag.partition(":")[2] for tag in self._tag_list() if tag.partition(":")[0] == tag_name)
        return next(values, None)

    def add_tag(self, tag_name: str, tag_value: Any) -> None:
        """Append the tag `name:value`, also when it is there already."""
        if self.tags is None:
            self._append("attachments", {"purpose": "tags", "body": "[]", "encoding": "json"})
        attachment = self.tags
        if attachment is not None:
            tags = [*self._tag_list(), f"{tag_name}:{tag_value}"]
            attachment.update(body=json.dumps(tags, ensure_ascii=False), encoding="json")

    # bodies and output

    @staticmethod
    def decoded_body(entry: dict[str, Any]) -> Any:
        """Return the body of an entry, parsed if it is the text of JSON."""
        return _ours.Vcon.decoded_body(entry)

    @staticmethod
    def with_decoded_body(entry: dict[str, Any]) -> dict[str, Any]:
        """Return a copy of the entry with its body decoded."""
        return _ours.Vcon.with_decoded_body(entry)

    def to_dict(self) -> dict[str, Any]:
        """Return a deep copy of the document."""
        copy: dict[str, Any] = copied(self.vcon_dict)
        return copy

    def to_json(self) -> str:
        """Return the document as JSON text."""
        return _ours.dump(self.vcon_dict).decode()

    def dumps(self) -> str:
        """The same as `to_json`."""
        return self.to_json()

    @staticmethod
    def uuid8_domain_name(domain_name: str) -> str:
        """Return a new UUIDv8 of this instant, marked with the domain."""
        return _ours.Vcon.uuid8_domain_name(domain_name)

    @staticmethod
    def uuid8_time(custom_c_62_bits: int) -> str:
        """Return a UUIDv8 of this instant, whose last 62 bits are these."""
        return _ours.Vcon.uuid8_time(custom_c_62_bits)


def _read(text: str | bytes) -> dict[str, Any]:
    try:
        document = _ours.load(text)
    except NotAVcon:
        document = None
    return document if isinstance(document, dict) else {}


def _check(body: Any, encoding: str) -> None:
    if encoding not in _ENCODINGS:
        raise ValueError(f"encoding {encoding!r:.40} is none of {', '.join(_ENCODINGS)}")
    if encoding == "json" and isinstance(body, str):
        try:
            json.loads(body)
        except ValueError as error:
            raise ValueError(f"the body is no JSON, though its encoding is json: {error}") from error
    if encoding == "base64url" and not isinstance(body, str):
        raise ValueError(f"a base64url body must be text, not {type(body).__name__}")


def _at(entry: Any, path: str) -> Any:
    for part in path.split("."):
        entry = entry.get(part) if isinstance(entry, dict) else None
    return entry
