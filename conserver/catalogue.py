"""What can be used in a config: links and storages with what they say of themselves, and the rules.

    for one in components("link", folder):
        print(one.module, one.summary, [option.name for option in one.options])

A component says what it does in the first line of its docstring, and what it touches in a paragraph that begins with
`Reads:`:

    Reads: the transcripts. Writes: an analysis for each of them. Needs: conserver[openai].
"""

from __future__ import annotations

import importlib.metadata
import inspect
import json
import pkgutil
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pydantic import AliasChoices, AliasPath, BaseModel
from pydantic.errors import PydanticUserError

from conserver import findings, vcon_rules
from conserver.components import IMPORT_LIMIT_SECS, use_folder
from conserver.findings import ComponentError
from conserver.imports import Kind, import_component, lacks, needs_of
from conserver.isolation import Died, call_each
from conserver.masks import masked
from conserver.options import is_model, names_of

_TOUCHES = re.compile(r"^Reads:\s+(.+?)\s+Writes:\s+(.+?)(?=\s+Needs:|\s*\n\n|\s*\Z)", re.M | re.S)
_TYPES = {"string": "text", "boolean": "true or false", "object": "mapping", "array": "list"}


@dataclass(frozen=True)
class Option:
    """One option, or one member of an option that is a mapping: `source.text_location`."""

    name: str
    aliases: tuple[str, ...]
    type: str
    default: Any
    """As JSON; None for none, and for a secret whatever it is."""
    required: bool
    secret: bool
    description: str


@dataclass(frozen=True)
class Entry:
    """A link or a storage as it can be named in a config."""

    kind: Kind
    module: str
    source: str
    """Where it is from: `conserver`, a package with its version, or the folder of the config."""
    summary: str = ""
    reads: str = ""
    writes: str = ""
    needs: str = ""
    """The requirement that it cannot do without, as pip writes it."""
    missing: tuple[str, ...] = ()
    """What is not installed of that."""
    options: tuple[Option, ...] = ()
    schema: Mapping[str, Any] | None = None
    """The JSON schema of its options; None if they are not known."""
    error: str = ""
    """Why nothing more is known: it cannot be imported."""


def components(kind: Kind, folder: Path) -> list[Entry]:
    """Describe every link or storage: ours, those of packages, and those in the folder of the config.

    They are imported in a child process, since they may print, hang or die.
    """
    places = _places(kind, folder)
    questions = [(kind, name, source, str(folder)) for name, source in places.items()]
    answers = call_each(_described, questions, limit_secs=IMPORT_LIMIT_SECS, alike=lambda question: question[1])
    entries = []
    for (_, name, source, _), answer in zip(questions, answers, strict=True):
        if isinstance(answer, Died):
            entries.append(Entry(kind, name, source, error=f"{name} {answer.reason} when it is imported"))
            continue
        options = tuple(Option(**option | {"aliases": tuple(option["aliases"])}) for option in answer["options"])
        entries.append(Entry(**answer | {"options": options, "missing": tuple(answer["missing"])}))
    return entries


def describe(name: str, kind: Kind = "link", source: str = "conserver") -> Entry:
    """Import a component and tell what it says of itself; raises ComponentError if it cannot be imported."""
    module = import_component(kind, f"{kind} {name!r}", name, None)
    reads, writes = _touches(module)
    schema = _schema(module)
    return Entry(
        kind=kind,
        module=name,
        source=source,
        summary=(inspect.getdoc(module) or "").partition("\n")[0],
        reads=reads,
        writes=writes,
        needs=str(needs_of(module) or ""),
        missing=tuple(lacks(module)),
        options=tuple(_options(schema, schema.get("$defs", {}))) if schema else (),
        schema=schema,
    )


def _touches(module: Any) -> tuple[str, str]:
    found = _TOUCHES.search(inspect.getdoc(module) or "")
    reads, writes = (" ".join(text.split()).rstrip(".") for text in found.groups()) if found else ("", "")
    return reads, writes


def _described(question: tuple[Kind, str, str, str]) -> dict[str, Any]:
    kind, name, source, folder = question
    use_folder(Path(folder))
    try:
        return asdict(describe(name, kind, source))
    except ComponentError as error:
        return asdict(Entry(kind, name, source, error=str(error)))


def _places(kind: Kind, folder: Path) -> dict[str, str]:
    group = f"{kind}s"
    ours = Path(__file__).parent.parent / group
    found = {name: "conserver" for name in _modules(ours, group)}
    for entry in importlib.metadata.entry_points(group=f"conserver.{group}"):
        found.setdefault(entry.name, f"{entry.dist.name} {entry.dist.version}" if entry.dist else entry.value)
    for name in _modules(folder / group, group):
        found.setdefault(name, str(folder / group))
    return found


def _modules(folder: Path, package: str) -> list[str]:
    names = [module.name for module in pkgutil.iter_modules([str(folder)])]
    return [f"{package}.{name}" for name in sorted(names) if not name.startswith("_")]


# Options


def _schema(module: Any) -> dict[str, Any] | None:
    model = getattr(module, "Options", None)
    if is_model(model):
        try:
            schema = model.model_json_schema()
        except PydanticUserError:  # a type that JSON knows nothing of
            return None
        _add_names(schema, model)
        # What is the component's own comes before what it has from a class that others have, too.
        own = {_shown_name(model, name) for name in inspect.get_annotations(model) if name in model.model_fields}
        schema["properties"] = dict(sorted(schema["properties"].items(), key=lambda option: option[0] not in own))
        return schema
    given = json.loads(json.dumps(dict(getattr(module, "default_options", None) or {}), default=str))
    # Somebody's own key may stand among the defaults.
    defaults = masked(given, ("links", "", "options"))
    return {"type": "object", "properties": {name: _like(value) for name, value in defaults.items()}}


def _like(value: Any) -> dict[str, Any]:
    kinds = {bool: "boolean", int: "integer", float: "number", str: "string", dict: "object", list: "array"}
    return {"default": value} | ({"type": kinds[type(value)]} if type(value) in kinds else {})


def _add_names(schema: dict[str, Any], model: type[BaseModel]) -> None:
    """Put the other names of an option beside the one that the schema has, and never the default of a secret."""
    names: dict[str, list[str]] = {}
    for name, field in names_of(model).items():
        names.setdefault(field, []).append(name)
    for field in model.model_fields:
        shown = _shown_name(model, field)
        described = schema["properties"][shown]
        if others := [name for name in names[field] if name != shown]:
            described["x-aliases"] = others
        if _is_secret(described):
            described.pop("default", None)


def _shown_name(model: type[BaseModel], field: str) -> str:
    """Return the name that the schema has for a field."""
    info = model.model_fields[field]
    alias = info.validation_alias or info.alias
    choice = alias.choices[0] if isinstance(alias, AliasChoices) else alias
    return str(choice.path[0] if isinstance(choice, AliasPath) else choice or field)


def _options(
    schema: Mapping[str, Any], defs: Mapping[str, Any], prefix: str = "", given: Any = None
) -> Iterator[Option]:
    required = schema.get("required", ())
    for name, described in schema.get("properties", {}).items():
        default = given[name] if isinstance(given, Mapping) and name in given else described.get("default")
        inner = _inner(described, defs)
        yield Option(
            name=f"{prefix}{name}",
            aliases=tuple(f"{prefix}{other}" for other in described.get("x-aliases", ())),
            type=type_text(described, defs),
            default=None if _is_secret(described) else default,
            required=name in required,
            secret=_is_secret(described),
            description=" ".join(described.get("description", "").split()),
        )
        if inner:
            many = "[]" if "items" in _bare(described) else ""
            yield from _options(inner, defs, f"{prefix}{name}{many}.", default)


def _bare(described: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the one schema of an option that may be null, too; else the schema as it is."""
    others = [one for one in described.get("anyOf", ()) if one.get("type") != "null"]
    return others[0] if len(others) == 1 else described


def _inner(described: Mapping[str, Any], defs: Mapping[str, Any]) -> Mapping[str, Any] | None:
    bare = _bare(described)
    bare = bare.get("items", bare) if bare.get("type") == "array" else bare
    target: Mapping[str, Any] = defs.get(bare.get("$ref", "").rpartition("/")[2], {})
    return target if target.get("properties") else None


def _is_secret(described: Mapping[str, Any]) -> bool:
    bare = _bare(described)
    return bool(bare.get("writeOnly")) or bare.get("format") == "password"


def type_text(described: Mapping[str, Any], defs: Mapping[str, Any]) -> str:
    """Say in words what a value may be, as "integer from 1, or null"."""
    if "$ref" in described:
        return type_text(defs.get(described["$ref"].rpartition("/")[2], {}), defs)
    if _is_secret(described) and "anyOf" not in described:
        return "secret"
    if "x-type" in described:
        return str(described["x-type"])
    if "anyOf" in described:
        kinds = [type_text(one, defs) for one in described["anyOf"]]
        return " or ".join(dict.fromkeys(kinds))
    values = described.get("enum") or ([described["const"]] if "const" in described else [])
    if values:
        return " or ".join(f"`{value}`" for value in values)
    kind = described.get("type", "anything")
    if kind == "array" and described.get("items"):
        of = type_text(described["items"], defs)
        return f"list of {'mappings' if of == 'mapping' else of}"
    if kind == "object" and isinstance(described.get("additionalProperties"), dict):
        return f"mapping to {type_text(described['additionalProperties'], defs)}"
    return f"{_TYPES.get(kind, kind)}{_range(described)}"


def _range(described: Mapping[str, Any]) -> str:
    words = (("minimum", "from"), ("exclusiveMinimum", "above"), ("maximum", "to"), ("exclusiveMaximum", "below"))
    return "".join(f" {word} {described[key]:,.12g}" for key, word in words if key in described)


# Rules


@dataclass(frozen=True)
class Rule:
    """Something that is checked."""

    of: str
    """`config` for what `conserver check` looks at, `vcon` for what a vCon must be."""
    id: str
    level: str
    text: str


def rules() -> list[Rule]:
    """Return the rules of `conserver check`, then those for vCons."""
    config = [Rule("config", name, level, findings.MEANINGS[name]) for name, level in findings.RULES.items()]
    levels = {"E": "error", "W": "warning"}
    return config + [Rule("vcon", name, levels[name[0]], text) for name, text in vcon_rules.RULES.items()]
