"""config.yml -> Config, or everything that is wrong with it.

    config, findings = load_config(Path("config.yml"))

reads the file and checks what can be known without importing a component; `conserver.components.check` does the rest.
The shape of the file is in docs/reference/config.md, the rules are in docs/reference/check.md.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from conserver import rules
from conserver.configmodel import (
    ApiConfig,
    ChainConfig,
    Component,
    Config,
    FollowerConfig,
    ImportConfig,
    LinkConfig,
    Named,
    Retry,
    StorageConfig,
    TracerConfig,
)
from conserver.filters import When
from conserver.findings import Finding, Findings, did_you_mean, has_errors, shown
from conserver.findings import Path as Where
from conserver.outbound_policy import OutboundPolicy
from conserver.yamlnodes import read_yaml

__all__ = [
    "ChainConfig",
    "Config",
    "Finding",
    "FollowerConfig",
    "ImportConfig",
    "LinkConfig",
    "Retry",
    "StorageConfig",
    "TracerConfig",
    "When",
    "draft_config",
    "load_config",
]

MAX_BYTES = 5 * 1024 * 1024

_YES_AND_NO = {"yes": "true", "on": "true", "y": "true", "no": "false", "off": "false", "n": "false"}

_LEGACY_LINKS = {
    "links.openai_transcribe": "openai",
    "links.groq_whisper": "groq",
    "links.hugging_face_whisper": "hugging_face",
    "links.deepgram_link": "deepgram",
}


def load_config(path: Path, env: Mapping[str, str] = os.environ) -> tuple[Config | None, list[Finding]]:
    """Read and check the file; the config is None if any of the findings, which are sorted, is an error."""
    config, findings = draft_config(path, env)
    found = findings.sorted()
    return (None if has_errors(found) else config), found


def draft_config(path: Path, env: Mapping[str, str], text: str | None = None) -> tuple[Config, Findings]:
    """Read the file like `load_config`, but give what can be understood of it even when there are errors.

    With *text* it is taken for what stands in the file. For checks that want to go on; never for running.
    """
    findings = Findings(str(path))
    text = read_file(path, findings) if text is None else text
    root = read_yaml(text, env, findings)
    if root is not None and not isinstance(root, dict):
        findings.value(
            "wrong-type", (), f"the file must be a mapping with links, storages and chains, not {shown(root)}"
        )
        root = None
    config = _Builder(root or {}, findings).config(str(path), path.absolute().parent)
    waiting = rules.apply(config, findings)
    return config.model_copy(update={"waiting": waiting}), findings


def read_file(path: Path, findings: Findings) -> str:
    """Give the text of a config file, or "" after a finding that says why it cannot be read."""
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        message = f"{path.absolute()} does not exist; create it, or name another one in CONSERVER_CONFIG_FILE"
        findings.at("syntax", 1, 1, message)
        return ""
    except OSError as error:
        findings.at("syntax", 1, 1, f"{path.absolute()} cannot be read: {error.strerror}")
        return ""
    if len(data) > MAX_BYTES:
        findings.at("syntax", 1, 1, f"larger than {MAX_BYTES // 1024 // 1024} MB; is this the right file?")
        return ""
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        before = data[: error.start]
        column = len(before[before.rfind(b"\n") + 1 :].decode()) + 1
        message = f"byte 0x{data[error.start]:02X} is not UTF-8; save the file as UTF-8"
        findings.at("syntax", before.count(b"\n") + 1, column, message)
        return ""


_N = TypeVar("_N", bound=Named)
_M = TypeVar("_M", bound=BaseModel)


class _Builder:
    """Turns the plain values of the file into models, and notes what does not fit."""

    def __init__(self, root: dict[str, Any], findings: Findings) -> None:
        self._root = root
        self._findings = findings

    def config(self, file: str, folder: Path) -> Config:
        sections = [name for name in Config.model_fields if name not in ("file", "folder", "waiting", "places")]
        for key in self._root:
            # x-... is where people keep the anchors that they use further down.
            if key not in sections and not key.startswith("x-"):
                message = f"{key!r} is no section of the config{did_you_mean(key, sections)}"
                self._findings.key("unknown-field", (key,), message)
        return Config(
            file=file,
            folder=folder,
            links=self._components("links", "link", LinkConfig),
            storages=self._components("storages", "storage", StorageConfig),
            tracers=self._components("tracers", "tracer", TracerConfig),
            chains=self._components("chains", "chain", ChainConfig),
            imports=self._components("imports", "import", ImportConfig),
            followers=self._components("followers", "follower", FollowerConfig),
            ingress_auth=self._ingress_auth(),
            hooks=self._section("hooks"),
            outbound=self._one("outbound", OutboundPolicy),
            api=self._one("api", ApiConfig),
            places=self._findings.places,
        )

    def _one(self, section: str, model: type[_M]) -> _M:
        fields = {key: value for key, value in self._section(section).items() if value is not None}
        known = list(model.model_fields)
        for key in sorted(fields.keys() - known):
            message = f"{section} has an unknown field {key!r}{did_you_mean(key, known)}"
            self._findings.key("unknown-field", (section, key), message)
            del fields[key]
        try:
            return model(**fields)
        except ValidationError as error:
            for problem in error.errors(include_url=False):
                self._note(section, (section,), fields, problem)
        return model()

    def _section(self, section: str) -> dict[str, Any]:
        raw = self._root.get(section)
        if raw is None:
            return {}
        if not isinstance(raw, dict):
            self._findings.value("wrong-type", (section,), f"{section} must be a mapping of names, not {shown(raw)}")
            return {}
        return raw

    def _components(self, section: str, word: str, model: type[_N]) -> dict[str, _N]:
        built = {}
        for name, raw in self._section(section).items():
            where: Where = (section, name)
            what = f"{word} {name!r}"
            if section == "imports" and isinstance(raw, str):
                raw = {"module": raw}
            if not name:
                self._findings.key("bad-value", where, f"a {word} needs a name that is not empty")
            if raw is not None and not isinstance(raw, dict):
                self._findings.value("wrong-type", where, f"{what} must be a mapping, not {shown(raw, where)}")
                continue
            fields = dict(raw or {})
            self._check_names(what, where, fields, model)
            if model is ChainConfig and "links" not in fields:
                message = f"{what} has no links; write 'links: []' for a chain that only stores and forwards"
                self._findings.key("missing-field", where, message)
            if issubclass(model, Component):
                self._modernise(what, where, section, fields)
            one = self._validate(what, where, fields, model, name)
            if one is not None:
                built[name] = one
        return built

    def _check_names(self, what: str, where: Where, fields: dict[str, Any], model: type[BaseModel]) -> None:
        known = [name for name in model.model_fields if name != "name"]
        for key, value in fields.items():
            if key not in known:
                hint = did_you_mean(key, known)
                if model is LinkConfig and key.replace("-", "_") in ("ingress_lists", "egress_lists"):
                    hint = ": lists belong to a chain, and on a link they have never done anything"
                self._findings.key("unknown-field", (*where, key), f"{what} has an unknown field {key!r}{hint}")
            elif key == "retry" and isinstance(value, dict):
                self._check_names(f"{what}: retry", (*where, key), value, Retry)
            elif model.model_fields[key].annotation is bool and isinstance(value, str) and value.lower() in _YES_AND_NO:
                message = (
                    f"{what}: write '{key}: {_YES_AND_NO[value.lower()]}' instead of {shown(value, (*where, key))}"
                )
                self._findings.value("deprecated", (*where, key), f"{message}, which is text in YAML 1.2")

    def _modernise(self, what: str, where: Where, section: str, fields: dict[str, Any]) -> None:
        module = fields.get("module")
        if not isinstance(module, str):
            return
        if section == "storages" and module.startswith("storage."):
            fields["module"] = f"storages.{module.removeprefix('storage.')}"
            message = f"{what}: module {module!r} is now called {fields['module']!r}"
            self._findings.value("deprecated", (*where, "module"), message)
        vendor = _LEGACY_LINKS.get(module) if section == "links" else None
        if vendor is not None:
            fields["module"] = "links.transcribe"
            message = f"{what}: module {module!r} is now 'links.transcribe' with the option 'vendor: {vendor}'"
            self._findings.value("deprecated", (*where, "module"), message)
            options = fields.get("options") or {}
            if isinstance(options, dict):
                has_vendor = "vendor" in options or "vendor_options" in options
                fields["options"] = {"vendor": vendor, **(options if has_vendor else {"vendor_options": options})}

    def _validate(self, what: str, where: Where, fields: dict[str, Any], model: type[_N], name: str) -> _N | None:
        """Build the model without the fields that are wrong, so that the rest of it can be checked too."""
        given = _without_nulls({key: value for key, value in fields.items() if key != "name"})
        try:
            return model(name=name, **given)
        except ValidationError as error:
            for problem in error.errors(include_url=False):
                self._note(what, where, fields, problem)
                given.pop(str(problem["loc"][0]), None)
        try:
            return model(name=name, **given)
        except ValidationError:
            return None

    def _note(self, what: str, where: Where, fields: dict[str, Any], problem: Any) -> None:
        path: Where = (*where, *problem["loc"])
        label = "".join(f"[{part + 1}]" if isinstance(part, int) else f".{part}" for part in problem["loc"])[1:]
        rule, text = _explain(problem, path)
        if problem["type"] == "extra_forbidden":
            # Not a mere warning: without a condition that is misspelt, the link would run on more vCons than meant.
            key = str(problem["loc"][-1])
            message = f"{what}: {label} is no condition{did_you_mean(key, When.model_fields)}"
            self._findings.key("bad-value", path, message)
        elif problem["type"] == "missing":
            self._findings.key(rule, path[:-1], f"{what} has no {label}")
        elif where[0] == "chains" and problem["loc"][0] == "links" and isinstance(problem["input"], dict):
            message = f"{what}: links are named here; the options of a link stand under links.<name>.options"
            self._findings.value(rule, path, message)
        else:
            self._findings.value(rule, path, f"{what}: {label} {text}")

    def _ingress_auth(self) -> dict[str, tuple[str, ...]]:
        accepted = {}
        for name, raw in self._section("ingress_auth").items():
            keys = [raw] if isinstance(raw, str) else raw
            if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
                message = f"ingress_auth: the keys of list {name!r} must be text or a list of texts; use quotes"
                self._findings.value("wrong-type", ("ingress_auth", name), message)
            elif not all(key.strip() for key in keys):
                message = f"ingress_auth: a key of list {name!r} is empty, which would let anybody in"
                self._findings.value("bad-value", ("ingress_auth", name), message)
            else:
                accepted[name] = tuple(keys)
        return accepted


def _without_nulls(fields: dict[str, Any]) -> dict[str, Any]:
    return {
        key: _without_nulls(value) if key in ("retry", "when") and isinstance(value, dict) else value
        for key, value in fields.items()
        if value is not None
    }


_MUST_BE = {
    "string_type": "text",
    "int_type": "a whole number",
    "int_parsing": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "float_parsing": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "tuple_type": "a list",
    "dict_type": "a mapping",
    "model_type": "a mapping",
}


def _explain(problem: Any, path: Where) -> tuple[str, str]:
    kind, value, limits = problem["type"], problem["input"], problem.get("ctx", {})
    if kind == "missing":
        return "missing-field", "is missing"
    if kind in _MUST_BE:
        hint = ""
        if kind == "string_type" and isinstance(value, int | float):
            hint = f'; write "{shown(value, path)}" with quotes'
        elif kind == "tuple_type" and isinstance(value, str):
            hint = f"; write [{shown(value, path)}]"
        return "wrong-type", f"must be {_MUST_BE[kind]}, not {shown(value, path)}{hint}"
    if kind == "greater_than_equal":
        return "bad-value", f"must be at least {limits['ge']:g}, not {shown(value, path)}"
    if kind == "literal_error":
        return "bad-value", f"must be {limits['expected']}, not {shown(value, path)}"
    if kind == "string_too_short":
        return "bad-value", "must not be empty"
    return "bad-value", str(limits.get("error", problem["msg"]))
