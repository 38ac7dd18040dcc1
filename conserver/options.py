"""Options of the config + what a module declares -> what its functions get as `opts`."""

from __future__ import annotations

import copy
import inspect
import re
from collections.abc import Iterable, Mapping
from typing import Any, TypeGuard

from pydantic import AliasChoices, AliasPath, BaseModel, ValidationError

from conserver.configmodel import Component
from conserver.findings import (
    ComponentError,
    Problem,
    Substituted,
    did_you_mean,
    is_secret,
    one_line,
    secrets_of,
    shown,
    without,
)
from conserver.findings import Path as Where
from conserver.yamlnodes import resolve

_BOOLS = {"yes": True, "on": True, "true": True, "no": False, "off": False, "false": False}


def bind_options(what: str, module: Any, config: Component) -> tuple[Any, list[Problem]]:
    """Bring the options of a config entry together with what the module declares.

    Returns an instance of the module's `Options` (pydantic), or a new dict of its `default_options` with the config's
    values over them; and what deserves a warning. Raises ComponentError.
    """
    model = getattr(module, "Options", None)
    if is_model(model):
        return _bind_model(what, model, config.options)
    defaults = getattr(module, "default_options", None)
    if defaults is not None and not isinstance(defaults, Mapping):
        message = f"{what}: default_options of {config.module} must be a dict, not {type(defaults).__name__}"
        raise ComponentError([Problem("bad-options", message)])
    return _merge(what, dict(defaults or {}), config.options)


def is_model(model: Any) -> TypeGuard[type[BaseModel]]:
    return inspect.isclass(model) and issubclass(model, BaseModel)


def _merge(what: str, defaults: dict[str, Any], options: dict[str, Any]) -> tuple[dict[str, Any], list[Problem]]:
    warnings = []
    merged = copy.deepcopy(defaults)
    for name, value in options.items():
        default = defaults.get(name)
        # The defaults of a module are seldom all that it reads, so only what looks like a slip is worth a word.
        hint = did_you_mean(name, defaults, cutoff=0.8) if name not in defaults else ""
        if hint:
            warnings.append(
                Problem("unknown-option", f"{what} has no option {name!r}{hint}", ("options", name), on_key=True)
            )
        merged[name] = str(value) if isinstance(default, str) and isinstance(value, str) else _plain(value)
        if isinstance(default, bool) and isinstance(value, str) and value.lower() in _BOOLS:
            merged[name] = _BOOLS[value.lower()]
            warnings += _deprecated_bool(what, name, value)
    return merged, warnings


def _bind_model(what: str, model: type[BaseModel], options: dict[str, Any]) -> tuple[BaseModel, list[Problem]]:
    warnings = []
    known = names_of(model)
    given = dict(options)
    if model.model_config.get("extra") != "allow":
        # `after_link` belongs to the hook of that name and may stand in the options of every link.
        for name in [name for name in options if name not in known and name != "after_link"]:
            message = f"{what} has no option {name!r}{did_you_mean(name, known)}"
            warnings.append(Problem("unknown-option", message, ("options", name), on_key=True))
        given = {name: value for name, value in options.items() if name in known}
    for name, value in given.items():
        field = known.get(name)
        if field is not None and model.model_fields[field].annotation is bool and isinstance(value, str):
            warnings += _deprecated_bool(what, name, value)
    try:
        bound = model.model_validate(_plain(given))
        return bound, [*warnings, *_unknown_inside(what, bound, given)]
    except ValidationError as error:
        texts = [problem["loc"] for problem in error.errors() if problem["type"] == "string_type"]
        first = error
    # A ${PASSWORD} of nothing but digits reads as a number, where the option wants text.
    try:
        bound = model.model_validate(_plain(given, as_text=texts))
        return bound, [*warnings, *_unknown_inside(what, bound, given)]
    except ValidationError as error:
        problems = [_explain_invalid(what, options, problem) for problem in error.errors(include_url=False)]
        raise ComponentError([*problems, *warnings]) from (error if texts else first)


def _unknown_inside(what: str, bound: BaseModel, given: Mapping[str, Any]) -> list[Problem]:
    """Warn of what an option that is a mapping holds and its model does not know."""
    problems = []
    for name, field in names_of(type(bound)).items():
        inner, written = getattr(bound, field), given.get(name)
        if not (isinstance(inner, BaseModel) and isinstance(written, Mapping)) or inner.model_config.get("extra"):
            continue
        known = names_of(type(inner))
        for key in [key for key in written if key not in known and key != "after_link"]:
            message = f"{what}: option {name!r} has no {key!r}{did_you_mean(key, known)}"
            problems.append(Problem("unknown-option", message, ("options", name, key), on_key=True))
    return problems


def _explain_invalid(what: str, options: dict[str, Any], problem: Any) -> Problem:
    loc: Where = tuple(problem["loc"])
    label = ".".join(str(part) for part in loc)
    text = one_line(without(secrets_of(options, ("options", "")), problem["msg"]))
    text = text.removeprefix("Value error, ").removeprefix("Assertion failed, ")
    text = re.sub(r", unable to .*", "", re.sub(r"^Input should be", "must be", text))
    text = text.replace("must be a valid tuple", "must be a valid list")
    # A secret is a "Value", whose length is that of its text.
    text = re.sub(r"^Value should have at least 1 item", "must have at least 1 character", text)
    text = re.sub(r"^(String|List|Tuple|Value) should have", "must have", text)
    text = re.sub(r" after validation, not \d+$", "", text)
    if problem["type"] == "missing":
        return Problem("bad-options", f"{what}: option {label!r} is missing", ("options",), on_key=True)
    own_words = problem["type"] in ("value_error", "assertion_error")
    given = "" if own_words else f", not {_shown_at(options, loc, problem['input'])}"
    message = f"{what}: option {label!r} {text}{given}" if label else f"{what}: {text}"
    return Problem("bad-options", message, ("options", *loc))


def _shown_at(options: Any, loc: Where, value: Any) -> str:
    for part in loc:
        try:
            options = options[part]
        except (KeyError, IndexError, TypeError):
            return shown(value, ("options", "", *loc))
    return shown(options, ("options", "", *loc))


def _deprecated_bool(what: str, name: str, value: str) -> list[Problem]:
    if isinstance(value, Substituted) or value.lower() not in ("yes", "on", "no", "off") or is_secret((name,)):
        return []
    cure = str(_BOOLS[value.lower()]).lower()
    message = f"{what}: write '{name}: {cure}' instead of {value!r}, which is text in YAML 1.2"
    return [Problem("deprecated", message, ("options", name))]


def _plain(value: Any, where: Where = (), as_text: Iterable[Where] = ()) -> Any:
    """Give options as ordinary values: an unquoted `${VAR}` means what it would mean in its place in the file."""
    if isinstance(value, Mapping):
        return {key: _plain(item, (*where, key), as_text) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item, (*where, index), as_text) for index, item in enumerate(value)]
    if isinstance(value, Substituted):
        text = str(value)
        # An empty variable is an empty text, not nothing: `password: ${PASSWORD}` must not turn into null.
        return resolve(text) if value.whole and resolve(text) is not None and where not in as_text else text
    return value


def names_of(model: type[BaseModel]) -> dict[str, str]:
    """Map each name that an option may be written under to its field."""
    names: dict[str, str] = {}
    by_name = any(model.model_config.get(key) for key in ("populate_by_name", "validate_by_name"))
    for field, info in model.model_fields.items():
        alias = info.validation_alias or info.alias
        choices = alias.choices if isinstance(alias, AliasChoices) else [alias]
        for choice in choices:
            if choice is not None:
                names[str(choice.path[0]) if isinstance(choice, AliasPath) else choice] = field
        if by_name or alias is None:
            names[field] = field
    return names
