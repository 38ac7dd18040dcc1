"""The Python modules that a config names: import them, check their contract, bind their options.

    link = load_link(config.links["tag"])
    link.run(vcon_uuid, link.name, link.options)

A component is `links.x` or `storages.x`, any other module that can be imported, or the name of an entry point in the
group `conserver.links` or `conserver.storages`. Nothing is ever installed from here.
"""

from __future__ import annotations

import hashlib
import importlib
import inspect
import json
import os
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

from conserver import compat
from conserver.config import draft_config
from conserver.configmodel import Component, Config, ImportConfig, LinkConfig, Retry, StorageConfig
from conserver.filters import When
from conserver.findings import ComponentError, Finding, Findings, Problem, has_errors, secrets_of
from conserver.imports import Kind, import_component, lacks, needs_of
from conserver.isolation import Died, call_each
from conserver.options import bind_options

IMPORT_LIMIT_SECS = 30.0
"""For the import of one module in the check. Large libraries take seconds on a slow disk."""

#: Functions that a storage need not have.
_OPTIONAL = ("get", "delete", "ping", "list_uuids")
_SIGNATURES = {
    "run": "run(vcon_uuid, link_name, opts)",
    "save": "save(vcon_uuid, opts)",
    "get": "get(vcon_uuid, opts)",
    "delete": "delete(vcon_uuid, opts)",
    "ping": "ping(opts)",
    "list_uuids": "list_uuids(opts, after)",
}


@dataclass(frozen=True)
class Link:
    """A link that is ready to run. `fingerprint` changes with its module or its options, and with nothing else."""

    name: str
    module: str
    run: Callable[[str, str, Any], Any]
    options: Any
    fingerprint: str
    timeout: float | None = None
    retry: Retry | None = None
    when: When | None = None
    secrets: frozenset[str] = frozenset()
    """Values of options that may not be repeated in an error."""


@dataclass(frozen=True)
class Storage:
    """A storage that is ready to save."""

    name: str
    module: str
    save: Callable[[str, Any], Any]
    options: Any
    get: Callable[[str, Any], Any] | None = None
    delete: Callable[[str, Any], Any] | None = None
    ping: Callable[[Any], Any] | None = None
    list_uuids: Callable[[Any, str], Iterable[str]] | None = None
    timeout: float | None = None
    required: bool = False
    secrets: frozenset[str] = frozenset()
    """Values of options that may not be repeated in an error."""


def use_folder(folder: Path) -> None:
    """Let modules be imported from the folder of the config file: its `links/mine.py` lives beside ours.

    The folder comes last, so that a file in it which happens to be called like a library takes nothing away.
    """
    entry = str(folder.absolute())
    if entry not in sys.path:
        sys.path.append(entry)
    compat.allow_folder(entry)
    importlib.invalidate_caches()


def load_link(config: LinkConfig) -> Link:
    """Import a link and bind its options; raises ComponentError with the cure."""
    module, options, _ = load("link", config)
    values = json.dumps([config.module, config.options], sort_keys=True, default=str)
    return Link(
        name=config.name,
        module=config.module,
        run=module.run,
        options=options,
        fingerprint=hashlib.sha256(values.encode()).hexdigest()[:16],
        timeout=config.timeout,
        retry=config.retry,
        when=config.when,
        secrets=frozenset(secrets_of(config.options)),
    )


def load_storage(config: StorageConfig) -> Storage:
    """Import a storage and bind its options; raises ComponentError with the cure."""
    module, options, _ = load("storage", config)
    return Storage(
        name=config.name,
        module=config.module,
        save=module.save,
        options=options,
        get=getattr(module, "get", None),
        delete=getattr(module, "delete", None),
        ping=getattr(module, "ping", None),
        list_uuids=getattr(module, "list_uuids", None),
        timeout=config.timeout,
        required=config.required,
        secrets=frozenset(secrets_of(config.options)),
    )


def load_imports(config: Config) -> None:
    """Import the modules under `imports`; raises ComponentError with the cure."""
    for one in config.imports.values():
        load("import", one)


def load(kind: Kind, config: Component | ImportConfig) -> tuple[Any, Any, list[Problem]]:
    """Import a component and bind its options: the module, the options, and what deserves a warning."""
    what = f"{kind} {config.name!r}"
    module = import_component(kind, what, config.module, config.pip_name)
    if gone := lacks(module):
        message = f"{what}: {config.module} needs {', '.join(gone)}, which is not installed"
        raise ComponentError([Problem("missing-package", f"{message} (pip install '{needs_of(module)}')")])
    if not isinstance(config, Component):
        return module, None, []
    functions = ("run",) if kind == "link" else ("save", *_OPTIONAL)
    problems = [problem for name in functions if (problem := _check_signature(what, config.module, module, name))]
    if problems:
        raise ComponentError(problems)
    try:
        options, warnings = bind_options(what, module, config)
    except ComponentError:
        raise
    except Exception as error:
        message = f"{what}: the Options of {config.module} fail: {type(error).__name__}"
        raise ComponentError([Problem("bad-options", message, ("options",), on_key=True)]) from error
    return module, options, warnings


def _check_signature(what: str, name: str, module: Any, function: str) -> Problem | None:
    signature = _SIGNATURES[function]
    found = getattr(module, function, None)
    if found is None and function in _OPTIONAL:
        return None
    if found is None:
        return Problem("no-run", f"{what}: {name} has no {signature}")
    if not callable(found):
        return Problem("no-run", f"{what}: {function} of {name} is no function; it must be {signature}")
    if inspect.iscoroutinefunction(found):
        return Problem("no-run", f"{what}: {function} of {name} is async; it must be a plain {signature}")
    try:
        inspect.signature(found).bind(*signature.split(","))
    except ValueError:
        return None  # written in C, and says nothing about itself
    except TypeError:
        given = f"{function}{inspect.signature(found)}"
        return Problem("no-run", f"{what}: {given} of {name} must be {signature}")
    return None


def check(
    path: Path, env: Mapping[str, str] = os.environ, text: str | None = None
) -> tuple[Config | None, list[Finding]]:
    """Do all that `conserver check` does, and `conserver run` before it starts: the file, then the components.

    With *text* it is taken for what stands in the file. The config is None if any of the findings, which are sorted,
    is an error.
    """
    config, findings = draft_config(path, env, text)
    _check_components(config, findings, env, IMPORT_LIMIT_SECS)
    found = findings.sorted()
    return (None if has_errors(found) else config), found


def check_components(
    config: Config, env: Mapping[str, str] = os.environ, *, limit_secs: float = IMPORT_LIMIT_SECS
) -> list[Finding]:
    """Import every component in a child process, which may print, hang or die, and check its contract and options."""
    findings = Findings(config.file, config.places)
    _check_components(config, findings, env, limit_secs)
    return findings.sorted()


def _check_components(config: Config, findings: Findings, env: Mapping[str, str], limit_secs: float) -> None:
    entries = list(_entries(config))
    answers = call_each(_inspect, entries, limit_secs=limit_secs, alike=lambda entry: entry[1].module)
    may_give_back = set()
    for (kind, entry, _), answer in zip(entries, answers, strict=True):
        if isinstance(answer, Died):
            message = f"{kind} {entry.name!r}: {entry.module} {answer.reason} when it is imported"
            answer = {"problems": [("import-failed", message, ["module"], False)], "gives_back": True}
        for rule, message, path, on_key in answer["problems"]:
            note = findings.key if on_key else findings.value
            note(rule, (f"{kind}s", entry.name, *path), message)
        if answer["gives_back"]:
            may_give_back.add(entry.name)
    if env.get("VCON_REDIS_EXPIRY", "").strip() != "0":
        _check_expiry(config, may_give_back, findings)


_Entry = tuple[Kind, LinkConfig | StorageConfig | ImportConfig, Path]


def _entries(config: Config) -> list[_Entry]:
    entries: list[_Entry] = [("import", entry, config.folder) for entry in config.imports.values()]
    entries += [("link", entry, config.folder) for entry in config.links.values()]
    entries += [("storage", entry, config.folder) for entry in config.storages.values()]
    return entries


def _inspect(entry: _Entry) -> dict[str, Any]:
    """Load one component, in the child; what cannot be loaded gets no finding on top that it gives nothing back."""
    kind, config, folder = entry
    use_folder(folder)
    try:
        module, _, problems = load(kind, config)
    except ComponentError as error:
        return {"problems": [astuple(problem) for problem in error.problems], "gives_back": True}
    return {"problems": [astuple(problem) for problem in problems], "gives_back": hasattr(module, "get")}


def _check_expiry(config: Config, may_give_back: set[str], findings: Findings) -> None:
    for chain in config.chains.values():
        working = chain.enabled and chain.name not in config.waiting
        if working and all(name in config.storages and name not in may_give_back for name in chain.storages):
            message = (
                f"chain {chain.name!r} has no storage that can give a vCon back, so its vCons stay in Redis for ever"
            )
            cure = "add one that has get, or set VCON_REDIS_EXPIRY=0 if that is meant"
            findings.key("never-expires", ("chains", chain.name), f"{message}; {cure}")
