"""The config file as a client of the API sees it and replaces it.

    shown = read_masked(path)
    replace(path, shown | {"chains": {...}})

Both speak of the file as it is written: `${VAR}` stays `${VAR}`, and secrets are masked (`conserver.masks`). A config
that is refused leaves everything as it was; one that is accepted is in the file as a whole or not at all, and the file
that it replaces stays beside it, with its comments, as `config.yml.<UTC>.bak`.

A client may name the modules that come as links and storages (`links.*`, `storages.*`, `storage.*`, `tracers.*`), the
entry points of `conserver.links` and `conserver.storages`, and what the file or a backup of it names already. So it can
have no other module of the machine imported. What is not installed is refused, and nothing is ever installed.
"""

from __future__ import annotations

import importlib.metadata
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from dataclasses import replace as changed
from math import isfinite
from pathlib import Path
from typing import Any

import yaml

from conserver import components
from conserver.backups import alone, backups_of, swap
from conserver.config import MAX_BYTES, read_file
from conserver.errors import ConfigError
from conserver.findings import ConfigRefused, Finding, Findings, Remark, Substituted, pointer, without
from conserver.findings import Path as Where
from conserver.masks import hidden_in, masked, same, unmasked
from conserver.yamlnodes import MAX_DEPTH, read_yaml, reads_as_text

_MODULE = re.compile(r"(links|storages?|tracers)(\.[A-Za-z][A-Za-z0-9_]*)+")
_SURROGATE = re.compile("[\ud800-\udfff]")
_MAX_DIGITS = 300


@dataclass(frozen=True, slots=True)
class Replaced:
    """What came of it. Without a backup the file said just this before, and was not touched."""

    backup: Path | None
    remarks: tuple[Remark, ...] = ()
    """What `conserver check` warns of."""


def read_masked(path: Path) -> dict[str, Any]:
    """Give the file as JSON has it, with a mask for each secret; ConfigError with the findings if it is not YAML."""
    shown: dict[str, Any] = masked(_read(path)[0])
    return shown


def replace(path: Path, posted: Any, env: Mapping[str, str] = os.environ) -> Replaced:
    """Put a config into the file, with the secrets that the file has where the posted one has masks.

    Where the file lacks one, and what was posted is what `read_masked` gave of a backup, that config comes back with
    its secrets: a client may replace the config with another one for a while. Blocks for as long as the imports of the
    check take. Raises ConfigRefused with all that is wrong with what was posted, ConfigBusy, or ConfigError if the file
    cannot be written.
    """
    _refuse_unfit(posted)
    target = Path(os.path.realpath(path))
    with alone(target):
        before = target.read_bytes()
        stored, clean = _stored(path)
        former = {backup: _stored(backup) for backup in backups_of(target)}
        wanted = _unmasked(posted, stored, [config for config, _ in former.values()])
        if clean and same(wanted, stored):
            return Replaced(None)
        known = {module for config, _ in [(stored, clean), *former.values()] for module in _modules(config).values()}
        new = {where: module for where, module in _modules(wanted).items() if module not in known}
        _refuse_foreign(new)
        # A backup that says the same is taken as it is, with its comments.
        again = next((backup for backup, (config, clean) in former.items() if clean and same(wanted, config)), None)
        text = _text_of(wanted) if again is None else read_file(again, Findings(str(again)))
        hidden = hidden_in(stored) | hidden_in(wanted)
        remarks = [changed(remark, message=without(hidden, remark.message)) for remark in _check(path, env, text, new)]
        if stored.get("chains") and not wanted.get("chains"):
            message = "no chains: the config in force would stay; set 'enabled: false' for those that are to stop"
            remarks.append(Remark("/chains", "error", "no-chains", message))
        if any(remark.level == "error" for remark in remarks):
            raise ConfigRefused(remarks)
        return Replaced(swap(target, text.encode(), before), tuple(remarks))


# What stands in a file


def _read(path: Path) -> tuple[dict[str, Any], Findings]:
    findings = Findings(str(path))
    root = read_yaml(read_file(path, findings), None, findings)
    broken = [str(finding) for finding in findings.sorted() if finding.rule == "syntax"]
    if not broken and root is not None and not isinstance(root, dict):
        broken = [f"{path}:1:1: the file must be a mapping with links, storages and chains"]
    if broken:
        raise ConfigError("; ".join(broken))
    return root or {}, findings


def _stored(path: Path) -> tuple[dict[str, Any], bool]:
    """Give what stands in a file, as far as it can be read, and whether that is all."""
    try:
        config, findings = _read(path)
    except ConfigError:
        return {}, False
    return config, not findings.sorted()


def _unmasked(posted: Any, stored: Any, former: Iterable[Any]) -> Any:
    try:
        return unmasked(posted, stored)
    except ConfigRefused:
        for config in former:
            if posted == masked(config):
                return unmasked(posted, config)
        raise


# What may be posted


def _refuse_unfit(posted: Any) -> None:
    """Refuse what no file can hold, before anything looks deeper into it."""
    if not isinstance(posted, dict):
        raise ConfigRefused([Remark("", "error", "wrong-type", "the config must be an object with links and chains")])
    remarks = []
    size = 0
    waiting: list[tuple[Any, Where]] = [(posted, ())]
    while waiting:
        value, where = waiting.pop()
        size += len(value) if isinstance(value, str) else 1
        if size > MAX_BYTES:
            raise ConfigRefused([_too_large()])
        if reason := _unfit(value, len(where)):
            remarks.append(Remark(pointer(where), "error", "wrong-type", reason))
        elif isinstance(value, dict):
            waiting += [(key, where) for key in value]
            waiting += [(item, (*where, key)) for key, item in value.items()]
        elif isinstance(value, list):
            waiting += [(item, (*where, index)) for index, item in enumerate(value)]
    if remarks:
        raise ConfigRefused(remarks)


def _unfit(value: Any, depth: int) -> str:
    if isinstance(value, dict | list) and depth >= MAX_DEPTH:
        return f"is nested deeper than {MAX_DEPTH} levels"
    if isinstance(value, dict):
        return "" if all(isinstance(key, str) for key in value) else "has a key that is no text"
    if isinstance(value, str):
        return "has half of a surrogate pair in it, which is no character" if _SURROGATE.search(value) else ""
    if isinstance(value, float):
        return "" if isfinite(value) else "is no number of JSON"
    if isinstance(value, int):
        return f"has more than {_MAX_DIGITS} digits" if abs(value) >= 10**_MAX_DIGITS else ""
    return "" if value is None or isinstance(value, list) else f"is a {type(value).__name__}, which is no value of JSON"


def _too_large() -> Remark:
    return Remark("", "error", "too-large", f"larger than {MAX_BYTES // 1024 // 1024} MB; is this the right config?")


def _modules(config: Mapping[str, Any]) -> dict[Where, str]:
    found: dict[Where, str] = {}
    for section in ("links", "storages", "tracers", "imports", "hooks"):
        entries = config.get(section)
        for name, entry in entries.items() if isinstance(entries, dict) else ():
            if isinstance(entry, dict) and isinstance(entry.get("module"), str):
                found[(section, name, "module")] = entry["module"]
            elif isinstance(entry, str) and section in ("imports", "hooks"):
                found[(section, name)] = entry
    return found


def _refuse_foreign(new: Mapping[Where, str]) -> None:
    remarks = []
    for where, module in new.items():
        group = f"conserver.{where[0]}" if where[0] in ("links", "storages") else None
        packaged = group and "." not in module and importlib.metadata.entry_points(group=group, name=module)
        if packaged or _MODULE.fullmatch(module):
            continue
        message = (
            f"{module[:100]!r} may not be named here: links.*, storages.* and tracers.* may, entry points, and what "
            "the file names already; put any other module into the file itself"
        )
        remarks.append(Remark(pointer(where), "error", "foreign-module", message))
    if remarks:
        raise ConfigRefused(remarks)


def _check(path: Path, env: Mapping[str, str], text: str, new: Mapping[Where, str]) -> list[Remark]:
    places = _parse(text)[1].places
    # A mapping begins where its first key does; what is said about that place is about the key.
    at = sorted([*places.values.items(), *places.keys.items()], key=lambda item: len(item[0]))
    paths = {place: where for where, place in at}

    def remark(finding: Finding) -> Remark:
        where = pointer(paths.get((finding.line, finding.column), ()))
        said = Remark(where, finding.level, finding.rule, finding.message)
        missing = where and finding.rule == "not-built" and any(f"{pointer(to)}/".startswith(f"{where}/") for to in new)
        return changed(said, level="error") if missing else said

    return [remark(finding) for finding in components.check(path, env, text)[1]]


# The text of a file


_BLANKS = str.maketrans("\n\t", "  ")


class _Dumper(yaml.SafeDumper):
    def ignore_aliases(self, data: Any) -> bool:
        return True


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    style = "|" if "\n" in text else None
    # PyYAML puts quotes around what YAML 1.1 takes for something else than text. We read YAML 1.2.
    if not reads_as_text(text) or (isinstance(text, Substituted) and not text.whole):
        style = "'"
    if not text.translate(_BLANKS).isprintable():
        style = '"'
    return dumper.represent_scalar("tag:yaml.org,2002:str", str(text), style)


_Dumper.add_representer(str, _represent_text)
_Dumper.add_representer(Substituted, _represent_text)


def _text_of(config: dict[str, Any]) -> str:
    text = yaml.dump(
        config, Dumper=_Dumper, sort_keys=False, allow_unicode=True, default_flow_style=False, width=MAX_BYTES
    )
    if len(text.encode()) > MAX_BYTES:
        raise ConfigRefused([_too_large()])
    read, findings = _parse(text)
    if findings.sorted() or not same(read, config):
        reason = "; ".join(finding.message for finding in findings.sorted()) or "it would not be read as the same"
        raise ConfigRefused([Remark("", "error", "syntax", f"this config cannot be written as YAML: {reason}")])
    return text


def _parse(text: str) -> tuple[Any, Findings]:
    findings = Findings("")
    return read_yaml(text, None, findings) or {}, findings
