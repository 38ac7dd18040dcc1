"""One index of the fake of Elasticsearch: what it takes and refuses, versions of documents, and what a search sees.

As the real one, it learns what members are from the first document that has them and refuses what does not fit, keeps
the versions of what was deleted, and lets a search see only what was there at the last refresh.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any

_METADATA = {"_id", "_index", "_source", "_routing", "_ignored", "_field_names", "_version", "_seq_no", "_nested_path"}
_TYPES = {"text", "keyword", "date", "long", "double", "boolean", "object"}
_TEXT = {"type": "text", "fields": {"keyword": {"type": "keyword", "ignore_above": 256}}}
_MOST_FIELDS, _MOST_DEPTH, _MOST_CHARACTERS, _MOST_DIGITS = 1000, 20, 50_000_000, 1000


class Refused(Exception):
    """What the server answers instead of doing something."""

    def __init__(self, status: int, kind: str, reason: str = "") -> None:
        super().__init__(reason)
        self.status = status
        self.error = {"type": kind, "reason": reason}


@dataclass(frozen=True)
class Stored:
    """A document as it was written."""

    source: dict[str, Any]
    version: int
    seq_no: int


class Index:
    """The documents of an index, and what it knows of their members."""

    def __init__(self, body: dict[str, Any] | None = None) -> None:
        body = body or {}
        _only(body, {"mappings", "settings", "aliases"}, "create_index")
        mappings = body.get("mappings", {})
        _only(mappings, {"dynamic", "date_detection", "dynamic_templates", "properties"}, "root mapping")
        self.documents: dict[str, Stored] = {}
        self.blocked = False
        self._dynamic = mappings.get("dynamic", True)
        self._finds_dates = mappings.get("date_detection", True)
        self._templates = [dict(next(iter(one.values()))) for one in mappings.get("dynamic_templates", [])]
        self._fields = dict(mappings.get("properties", {}))
        for mapping in [*self._fields.values(), *(one["mapping"] for one in self._templates)]:
            _check_mapping(mapping)
        self._deleted: dict[str, int] = {}
        self._seen: dict[str, Stored] = {}
        self._seq_no = 0

    @property
    def types(self) -> dict[str, str]:
        """The members that it knows, with their types."""
        return {name: mapping.get("type", "object") for name, mapping in self._fields.items()}

    def refresh(self) -> None:
        """Let searches see what there is now."""
        self._seen = dict(self.documents)

    def write(self, key: str, source: dict[str, Any], **how: Any) -> Stored:
        """Store a document; *how* are the parameters of its version."""
        version = self._next_version(key, **how)
        self._fields = self._learned(source)
        return self._store(key, source, version)

    def merge(self, key: str, part: dict[str, Any], **how: Any) -> Stored:
        """Change members of a document."""
        if key not in self.documents:
            raise Refused(404, "document_missing_exception", f"[{key}]: document missing")
        return self.write(key, self.documents[key].source | part, **how)

    def remove(self, key: str, **how: Any) -> bool:
        """Delete a document, also one that is not there: its version counts all the same."""
        self._check_block()
        self._deleted[key] = self._next_version(key, **how)
        self._seq_no += 1
        return self.documents.pop(key, None) is not None

    def found(self, query: dict[str, Any]) -> dict[str, Stored]:
        """What a search finds."""
        return {key: stored for key, stored in self._seen.items() if self._matches(stored.source, query)}

    def check_sort(self, name: str) -> None:
        """Refuse to sort by what is no keyword, or is unknown; by `_id` as version 8 and 9 do, unless they are told."""
        if name in _METADATA:
            raise Refused(400, "illegal_argument_exception", f"Fielddata access on the {name} field is disallowed")
        mapping = self._mapping(name)
        if not mapping:
            raise Refused(400, "query_shard_exception", f"No mapping found for [{name}] in order to sort on")
        if mapping.get("type") != "keyword":
            raise Refused(400, "illegal_argument_exception", f"Fielddata is disabled on [{name}]")

    def sorted_as(self, source: dict[str, Any], name: str) -> str | None:
        """Return the value of a keyword, None if the document has none that is short enough."""
        value = source.get(name.partition(".")[0])
        most = self._mapping(name).get("ignore_above", _MOST_CHARACTERS)
        return value if isinstance(value, str) and len(value) <= most else None

    def _mapping(self, name: str) -> dict[str, Any]:
        field, _, inner = name.partition(".")
        mapping: dict[str, Any] = self._fields.get(field, {})
        inners: dict[str, dict[str, Any]] = mapping.get("fields", {})
        return inners.get(inner, {}) if inner else mapping

    def _check_block(self) -> None:
        if self.blocked:
            raise Refused(403, "cluster_block_exception", "blocked by: [FORBIDDEN/8/index write (api)];")

    def _store(self, key: str, source: dict[str, Any], version: int) -> Stored:
        self._check_block()
        self._seq_no += 1
        self._deleted.pop(key, None)
        self.documents[key] = Stored(source, version, self._seq_no)
        return self.documents[key]

    def _next_version(
        self,
        key: str,
        *,
        version: int | None = None,
        version_type: str = "internal",
        if_seq_no: int | None = None,
        if_primary_term: int | None = None,
        create: bool = False,
    ) -> int:
        current = self.documents.get(key)
        last = current.version if current else self._deleted.get(key, 0)
        conflict = Refused(409, "version_conflict_engine_exception", f"[{key}]: version conflict")
        if create and current:
            raise conflict
        if if_seq_no is not None and (current is None or (if_seq_no, if_primary_term) != (current.seq_no, 1)):
            raise conflict
        if version_type == "internal":
            if version is not None:
                raise Refused(400, "action_request_validation_exception", "internal versioning can not be used")
            return last + 1
        if version_type != "external_gte" or version is None or not 0 <= version < 2**63:
            raise Refused(400, "illegal_argument_exception", "No version type match")
        if last > version:
            raise conflict
        return version

    # What fits

    def _learned(self, source: dict[str, Any]) -> dict[str, Any]:
        fields = dict(self._fields)
        if _METADATA & source.keys():
            raise Refused(
                400, "document_parsing_exception", "is a metadata field and cannot be added inside a document"
            )
        for path, value, depth in _members(source):
            self._learn(fields, path, value, depth)
        if sum(1 + len(mapping.get("fields", ())) for mapping in fields.values()) > _MOST_FIELDS:
            raise Refused(
                400, "illegal_argument_exception", f"Limit of total fields [{_MOST_FIELDS}] has been exceeded"
            )
        return fields

    def _learn(self, fields: dict[str, Any], path: str, value: Any, depth: int) -> None:
        above = [path[: match.start()] for match in re.finditer(r"\.", path)]
        if any(name in fields and fields[name].get("enabled") is False for name in above):
            return
        if self._dynamic in (False, "false") and any(name not in fields for name in [*above, path]):
            return
        if self._dynamic == "strict" and path not in fields:
            raise Refused(400, "strict_dynamic_mapping_exception", f"introduction of [{path}] is not allowed")
        for name in above:
            if fields.setdefault(name, {"type": "object"})["type"] != "object":
                raise Refused(400, "document_parsing_exception", f"[{name}] is no object, in {value!r}")
        if depth > _MOST_DEPTH:
            raise Refused(
                400, "illegal_argument_exception", f"Limit of mapping depth [{_MOST_DEPTH}] has been exceeded"
            )
        mapping = fields.setdefault(path, self._guess(value))
        if not _fits(mapping, value):
            # As the real one, it quotes what it refuses.
            reason = f"failed to parse field [{path}] of type [{mapping['type']}]. Preview of field's value: '{value}'"
            raise Refused(400, "document_parsing_exception", reason)

    def _guess(self, value: Any) -> dict[str, Any]:
        if isinstance(value, dict):
            return {"type": "object"}
        names = {bool: "boolean", int: "long", float: "double"}
        kind = names.get(type(value), "string")
        if kind == "string" and self._finds_dates and _is_date(value):
            return {"type": "date"}
        for template in self._templates:
            if template["match_mapping_type"] == kind:
                return template["mapping"]
        return _TEXT if kind == "string" else {"type": kind}

    # What is found

    def _matches(self, source: dict[str, Any], query: dict[str, Any]) -> bool:
        [(kind, clause)] = query.items()
        if kind == "bool":
            _only(clause, {"should", "minimum_should_match"}, "bool")
            return any(self._matches(source, one) for one in clause["should"])
        if kind == "match_all":
            return True
        if kind not in ("term", "match"):
            raise Refused(400, "parsing_exception", f"unknown query [{kind}]")
        [(name, wanted)] = clause.items()
        mapping = self._mapping(name)
        value = source.get(name.partition(".")[0])
        if not isinstance(value, str):
            return False
        if mapping.get("type") == "keyword":
            return value == wanted
        if mapping.get("type") == "text":
            # A term is looked for among the words, and a match takes any of its own.
            looked_for = set(_words(wanted)) if kind == "match" else {wanted}
            return not looked_for.isdisjoint(_words(value))
        return False


def _members(source: dict[str, Any], path: str = "", depth: int = 1) -> Iterator[tuple[str, Any, int]]:
    """Yield each member with its path, objects before what is in them."""
    for name, value in source.items():
        if not name.strip() or name.startswith(".") or name.endswith(".") or ".." in name:
            raise Refused(400, "document_parsing_exception", f"field name cannot be [{name}]")
        for one in value if isinstance(value, list) else [value]:
            yield from _value(f"{path}{name}", one, depth)


def _value(path: str, value: Any, depth: int) -> Iterator[tuple[str, Any, int]]:
    if isinstance(value, list):
        for one in value:
            yield from _value(path, one, depth)
    elif isinstance(value, dict):
        yield path, value, depth
        yield from _members(value, f"{path}.", depth + 1)
    elif value is not None:
        if isinstance(value, str) and len(value) > _MOST_CHARACTERS:
            raise Refused(400, "x_content_parse_exception", f"String value length ({len(value)}) exceeds the maximum")
        if isinstance(value, int) and abs(value) >= 10**_MOST_DIGITS:
            raise Refused(400, "x_content_parse_exception", "Number value length exceeds the maximum")
        yield path, value, depth


def _fits(mapping: dict[str, Any], value: Any) -> bool:
    kind = mapping.get("type", "object")
    if mapping.get("enabled") is False:
        return True
    if kind == "object" or isinstance(value, dict):
        return kind == "object" and isinstance(value, dict)
    return kind in ("text", "keyword") or bool(mapping.get("ignore_malformed")) or _is_well_formed(kind, value)


def _is_well_formed(kind: str, value: Any) -> bool:
    if kind == "boolean":
        return isinstance(value, bool) or value in ("true", "false", "")
    if kind == "date":
        return isinstance(value, int) or _is_date(value)
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return False
    return not isinstance(value, bool) and (kind == "double" or -(2**63) <= number < 2**63)


def _is_date(value: Any) -> bool:
    if not isinstance(value, str) or not re.match(r"\d{4}-\d\d", value):
        return False
    try:
        datetime.fromisoformat(value)
    except ValueError:
        return False
    return True


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())


def _check_mapping(mapping: dict[str, Any]) -> None:
    kind = mapping.get("type", "object")
    if kind not in _TYPES:
        raise Refused(400, "mapper_parsing_exception", f"No handler for type [{kind}]")
    allowed = {"type", "fields"}
    if kind in ("date", "long", "double"):
        allowed |= {"ignore_malformed"}
    if kind == "keyword":
        allowed |= {"ignore_above"}
    if kind == "object":
        allowed = {"type", "enabled"}
    _only(mapping, allowed, "mapping")


def _only(given: dict[str, Any], allowed: set[str], what: str) -> None:
    if unknown := given.keys() - allowed:
        raise Refused(400, "parse_exception", f"{what}: unknown {sorted(unknown)}")
