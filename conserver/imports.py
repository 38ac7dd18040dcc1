"""Importing the modules that a config names, and saying what to do when that fails. Nothing is ever installed."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import inspect
import os
import pkgutil
import re
import sys
import traceback
from pathlib import Path
from typing import Any, Literal

from packaging.requirements import Requirement

from conserver import compat
from conserver.findings import ComponentError, Problem, did_you_mean, one_line, quotable
from conserver.requirements import missing, parse

Kind = Literal["link", "storage", "import"]

_NEEDS = re.compile(r"\bNeeds:\s+(\S+?)\.?(?!\S)")


def import_component(kind: Kind, what: str, name: str, pip_name: str | None) -> Any:
    """Import a module, or load an entry point of that name; raises ComponentError with the cure."""
    packaged = importlib.metadata.entry_points(group=f"conserver.{kind}s", name=name) if "." not in name else ()
    try:
        for entry in packaged:
            compat.allow(entry.module)
            return entry.load()
        compat.allow(name)
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise ComponentError([_explain_missing(kind, what, name, pip_name, error)]) from error
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # SystemExit too: a module may raise anything when it is imported
        reason = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
        message = f"{what}: {name} fails when it is imported: {one_line(reason)}{_where(error, name)}"
        raise ComponentError([Problem("import-failed", message)]) from error


def needs_of(module: Any) -> Requirement | None:
    """Return the requirement that a module says it needs, in the words `Needs: conserver[jq]` of its docstring."""
    found = _NEEDS.search(inspect.getdoc(module) or "")
    return parse(found[1]) if found else None


def lacks(module: Any) -> list[str]:
    """List what is not installed of that which a module says it needs."""
    needs = needs_of(module)
    # Where the conserver only lies on the path, nothing is known of its extras.
    if needs is None or (needs.name == "conserver" and missing(Requirement("conserver"))):
        return []
    return missing(needs)


def _explain_missing(kind: Kind, what: str, name: str, pip_name: str | None, error: ModuleNotFoundError) -> Problem:
    missing = error.name or ""
    top = missing.partition(".")[0]
    if missing and (name == missing or name.startswith(f"{missing}.")):
        known = _available(kind)
        # All of them begin alike, so what is only a little like one is another module.
        hint = did_you_mean(name, known, cutoff=0.75) or "; is it spelt right, and in the folder of the config?"
        package = sys.modules.get(top)
        if top in ("links", "storages") and getattr(package, "__file__", None):
            hint = f"; {package.__file__} hides the {top} that come with the conserver, so delete it"  # type: ignore[union-attr]
        elif pip_name:
            return Problem("missing-package", f"{what}: there is no module {name} (pip install {quotable(pip_name)!r})")
        return Problem("import-failed", f"{what}: there is no module {name}{hint}")
    reason = f"{what}: cannot import {name}: {error}"
    if compat.is_old_name(top) and top != "vcon":
        message = f"{reason}; of the existing conserver's names it is none that is here: see docs/reference/compat.md"
        return Problem("import-failed", message)
    if top in ("conserver", "links", "storages") or missing in sys.stdlib_module_names:
        return Problem("import-failed", f"{reason}{_where(error, name)}")
    extra = _extra_of(top)
    if extra:
        cure = f"pip install 'conserver[{extra}]'"
    elif pip_name:
        cure = f"pip install {quotable(pip_name)!r}"
    else:
        cure = "install the package that has it, and name it as pip_name"
    return Problem("missing-package", f"{reason} ({cure})")


def _extra_of(package: str) -> str | None:
    """Find the extra of our own distribution that brings a package."""
    try:
        requirements = importlib.metadata.requires("conserver") or []
    except importlib.metadata.PackageNotFoundError:
        return None
    extras = []
    for requirement in requirements:
        name = re.match(r"[A-Za-z0-9._-]+", requirement)
        extra = re.search(r"extra\s*==\s*['\"]([^'\"]+)", requirement)
        if name and extra and re.sub(r"[-._]+", "_", name[0]).lower() == package.lower():
            extras.append(extra[1])
    return min(extras, key=lambda extra: (extra in ("all", "test", "dev"), extra), default=None)


def _available(kind: Kind) -> list[str]:
    group = f"{kind}s"
    names = [entry.name for entry in importlib.metadata.entry_points(group=f"conserver.{group}")]
    spec = importlib.util.find_spec(group) if kind != "import" else None
    if spec is not None and spec.submodule_search_locations is not None:
        names += [f"{group}.{module.name}" for module in pkgutil.iter_modules(list(spec.submodule_search_locations))]
    return names


def _where(error: BaseException, name: str) -> str:
    """Name the line of the user's own code that an import failed in."""
    if isinstance(error, SyntaxError) and error.filename:
        return f" ({_short(error.filename)}:{error.lineno})"
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if not _is_machinery(frame.filename)]
    if not frames:
        return ""
    files = tuple(f"/{name.replace('.', '/')}{end}" for end in (".py", "/__init__.py"))
    # Of the component's own lines, the last is the nearest to the mistake.
    frame = [frame for frame in frames if frame.filename.endswith(files)][-1:] or frames[-1:]
    return f" ({_short(frame[0].filename)}:{frame[0].lineno})"


def _is_machinery(file: str) -> bool:
    return file.startswith(("<frozen", os.path.dirname(importlib.__file__))) or file == __file__


def _short(file: str) -> str:
    parents = [Path(entry) for entry in sys.path if entry]
    return min((str(Path(file).relative_to(p)) for p in parents if Path(file).is_relative_to(p)), key=len, default=file)
