"""The JSON schema of config.yml, for editors that complete and check YAML.

It has the options of each link and storage under `$defs`, chosen by `module`. It is no substitute for
`conserver check`: it knows nothing of what one part of the file has to do with another.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from pydantic import BaseModel, TypeAdapter

from conserver.catalogue import Entry
from conserver.configmodel import (
    ApiConfig,
    ChainConfig,
    FollowerConfig,
    ImportConfig,
    LinkConfig,
    StorageConfig,
    TracerConfig,
)
from conserver.outbound_policy import OutboundPolicy

_REF = "#/$defs/"
#: What may stand for a number, a boolean or one of some words.
_VARIABLE = {"type": "string", "pattern": r"\$\{"}


def config_schema(links: Iterable[Entry], storages: Iterable[Entry]) -> dict[str, Any]:
    """Return the schema of a config in which these can be used."""
    defs: dict[str, Any] = {}
    sections = {
        "links": _mapping(_component(LinkConfig, links, defs)),
        "storages": _mapping(_component(StorageConfig, storages, defs)),
        "tracers": _mapping(_of(TracerConfig, defs)),
        "chains": _mapping({**_of(ChainConfig, defs), "required": ["links"]}),
        "imports": _mapping({"anyOf": [{"type": "string"}, _of(ImportConfig, defs)]}),
        "followers": _mapping(_of(FollowerConfig, defs)),
        "ingress_auth": _mapping({"type": ["string", "array"], "items": {"type": "string"}}),
        "hooks": {"type": ["object", "null"]},
        "api": {"anyOf": [_of(ApiConfig, defs), {"type": "null"}]},
        "outbound": {"anyOf": [_of(OutboundPolicy, defs), {"type": "null"}]},
    }
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "config.yml of the conserver",
        "type": "object",
        "properties": sections,
        "$defs": defs,
    }


def _mapping(of: dict[str, Any]) -> dict[str, Any]:
    # A section with nothing in it is no mistake.
    return {"type": ["object", "null"], "additionalProperties": of}


def _of(model: type[BaseModel], defs: dict[str, Any]) -> dict[str, Any]:
    """Return the schema of an entry of a section; its name is the key that it stands under."""
    schema = _hoisted(TypeAdapter(model).json_schema(), model.__name__, defs)
    schema["properties"].pop("name", None)
    return schema | {"required": [name for name in schema.get("required", ()) if name != "name"]}


def _component(model: type[BaseModel], entries: Iterable[Entry], defs: dict[str, Any]) -> dict[str, Any]:
    schema = _of(model, defs)
    known, rules = [], []
    for entry in entries:
        known.append({"const": entry.module, "description": entry.summary})
        if entry.schema is None:
            continue
        defs[entry.module] = _hoisted(_with_aliases(entry.schema), entry.module, defs)
        options: dict[str, Any] = {"properties": {"options": {"$ref": f"{_REF}{entry.module}"}}}
        if defs[entry.module].get("required") or "allOf" in defs[entry.module]:
            options["required"] = ["options"]
        chosen = {"properties": {"module": {"const": entry.module}}, "required": ["module"]}
        rules.append({"if": chosen, "then": options})
    # Any other module may be one that can be imported where the conserver runs.
    schema["properties"]["module"] = {"anyOf": [*known, {"type": "string", "minLength": 1}]}
    return schema | ({"allOf": rules} if rules else {})


def _with_aliases(schema: Mapping[str, Any]) -> dict[str, Any]:
    """Give each option under all of its names, one of which is enough for an option that is required."""
    properties: dict[str, Any] = {}
    required, either = list(schema.get("required", ())), []
    for name, described in schema.get("properties", {}).items():
        names = [name, *described.get("x-aliases", ())]
        properties |= {one: {key: value for key, value in described.items() if key != "x-aliases"} for one in names}
        if name in required and len(names) > 1:
            required.remove(name)
            either.append({"anyOf": [{"required": [one]} for one in names]})
    rest = {"properties": properties, "required": required} | ({"allOf": either} if either else {})
    return {**schema, **rest}


def _hoisted(schema: Mapping[str, Any], owner: str, defs: dict[str, Any]) -> dict[str, Any]:
    """Return the schema with its own `$defs` moved to those of the whole, under names that say whose they are."""
    inner = schema.get("$defs", {})
    defs.update({f"{owner}.{name}": _relaxed(one, owner) for name, one in inner.items()})
    relaxed: dict[str, Any] = _relaxed({key: value for key, value in schema.items() if key != "$defs"}, owner)
    return relaxed


def _relaxed(schema: Any, owner: str) -> Any:
    if isinstance(schema, list):
        return [_relaxed(one, owner) for one in schema]
    if not isinstance(schema, dict):
        return schema
    out: dict[str, Any] = {}
    for key, value in schema.items():
        if key == "properties":
            out[key] = {name: _relaxed(one, owner) for name, one in value.items()}
        elif key == "$ref":
            out[key] = f"{_REF}{owner}.{value.removeprefix(_REF)}"
        # Titles that are made of the names of fields say nothing more.
        elif key not in ("title", "x-type"):
            out[key] = value if key in ("default", "enum", "const", "examples") else _relaxed(value, owner)
    if out.get("type") in ("integer", "number", "boolean") or "enum" in out or "const" in out:
        said = {key: out.pop(key) for key in ("description", "default") if key in out}
        return {"anyOf": [out, _VARIABLE], **said}
    return out
