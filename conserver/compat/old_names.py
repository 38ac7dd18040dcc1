"""Reading `import lib.metrics` as an import of `conserver.compat.lib.metrics`, where that is meant; see `compat`."""

from __future__ import annotations

import ast
import importlib
import os
import re
import sys
import threading
from collections.abc import Sequence
from contextlib import suppress
from functools import cache
from importlib.abc import Loader
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from importlib.util import find_spec, spec_from_loader
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

_OURS = __name__.rpartition(".")[0]
_HERE = Path(__file__).parent
_TOPS = ("lib", "server", "storage", "vcon", "redis_mgr", "settings", "config", "dlq_utils", "version")
_MAY_IMPORT = re.compile(rb"\b(?:from|import)\b[^\n]*\b(?:%s)\b" % "|".join(_TOPS).encode())


def allow(module: str) -> None:
    """Let a module, and all others of its top package, import the old names."""
    _enter(_finder)
    _finder.admit(module.partition(".")[0])


def allow_folder(folder: str) -> None:
    """Let modules that are found in this folder of `sys.path` import the old names."""
    _enter(_finder)
    with _entering:
        _finder.folders |= {folder}


def install() -> None:
    """Let everybody in this process import the old names, before anything else of that name: for tests of links."""
    _enter(_everywhere, first=True)


def is_old_name(name: str) -> bool:
    """Say whether a module's name begins like those of the existing conserver."""
    return name.partition(".")[0] in _TOPS


_entering = threading.Lock()


def _enter(finder: Any, *, first: bool = False) -> None:
    with _entering:
        if finder not in sys.meta_path:
            # Behind those that look for a few modules only, as test runners do.
            place = 0 if first or PathFinder not in sys.meta_path else sys.meta_path.index(PathFinder)
            sys.meta_path.insert(place, finder)


@cache
def _modules() -> frozenset[str]:
    files = {path.relative_to(_HERE).with_suffix("").parts for path in _HERE.rglob("*.py")}
    names = {".".join(parts[:-1] if parts[-1] == "__init__" else parts) for parts in files}
    return frozenset(name for name in names if name.partition(".")[0] in _TOPS)


def new_name(name: str) -> str | None:
    """Return what a module is called here that the existing conserver calls *name*; None for what it does not have."""
    bare = name.removeprefix("server.")
    if bare in _modules():
        return f"{_OURS}.{bare}"
    if name.startswith("server.links."):
        return bare
    if bare.startswith("storage."):
        ours = "storages." + bare.removeprefix("storage.")
        with suppress(ImportError):
            return ours if find_spec(ours) else None
    return None


class _Rewriter(ast.NodeTransformer):
    """Imports of old names become imports of ours; all else stays, line numbers too."""

    def __init__(self, own: set[str]) -> None:
        self._own = own

    def visit_ImportFrom(self, node: ast.ImportFrom) -> Any:
        """`from lib.metrics import x`; of `from lib import metrics, mine` one may be ours and the other not."""
        old = node.module or ""
        new = None if node.level or old in self._own else new_name(old)
        if new is None:
            return node
        ours = [alias for alias in node.names if "." in old.removeprefix("server.") or _has(new, alias.name)]
        if len(ours) < len(node.names) and new == f"{_OURS}.vcon":
            # It wants another vcon than the one with the single class: all of it.
            return node
        rest = [alias for alias in node.names if alias not in ours]
        made = [ast.ImportFrom(new, ours, 0)] if ours else []
        made += [ast.ImportFrom(old, rest, 0)] if rest else []
        return [ast.copy_location(one, node) for one in made]

    def visit_Import(self, node: ast.Import) -> Any:
        """`import lib.metrics` binds `lib`, `import lib.metrics as m` the module itself."""
        made = []
        for alias in node.names:
            new = None if alias.name in self._own else new_name(alias.name)
            if new is None:
                made.append(ast.Import([alias]))
                continue
            top = alias.name.partition(".")[0]
            made.append(ast.Import([ast.alias(new, alias.asname or top)]))
            if alias.asname is None and "." in alias.name:
                made.append(ast.Import([ast.alias(f"{_OURS}.{top}", top)]))
        return [ast.copy_location(one, node) for one in made]


def _has(module: str, name: str) -> bool:
    submodule = f"{module}.{name}".removeprefix(f"{_OURS}.")
    return name == "*" or submodule in _modules() or hasattr(importlib.import_module(module), name)


class _Loader(SourceFileLoader):
    def get_code(self, fullname: str) -> CodeType | None:
        """Compile the source, with its imports as they are meant here; never from or to the cache."""
        path = self.get_filename(fullname)
        source = self.get_data(path)
        if not _MAY_IMPORT.search(source):
            return super().get_code(fullname)
        tree = ast.fix_missing_locations(_Rewriter(_finder.own(path)).visit(ast.parse(source, path)))
        code: CodeType = compile(tree, path, "exec", dont_inherit=True)
        return code


class _Finder:
    """Finds what PathFinder finds, for modules that may import the old names, and nothing else."""

    def __init__(self) -> None:
        # Replaced, never changed: threads that import read them.
        self.roots: frozenset[str] = frozenset()
        self.folders: frozenset[str] = frozenset()

    def admit(self, root: str) -> None:
        """Let a top package import the old names."""
        with _entering:
            self.roots |= {root}

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return the module's spec, with a loader of ours."""
        top = fullname.partition(".")[0]
        if top == "conserver" or not (top in self.roots or (path is None and self._in_folder(fullname))):
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is None or type(spec.loader) is not SourceFileLoader:
            return None
        spec.loader = _Loader(fullname, spec.loader.path)
        return spec

    def own(self, path: str) -> set[str]:
        """Return the names without a dot that, for the module at *path*, are files of its own folder: the user's."""
        folders = [folder for folder in self.folders if path.startswith(folder + os.sep)]
        return {name for name in _TOPS for folder in folders if Path(folder, f"{name}.py").is_file()}

    def _in_folder(self, name: str) -> bool:
        if not self.folders or PathFinder.find_spec(name, list(self.folders)) is None:
            return False
        spec = PathFinder.find_spec(name)
        places = [spec.origin, *(spec.submodule_search_locations or ())] if spec is not None else []
        found = any(str(place).startswith(folder + os.sep) for place in places for folder in self.folders)
        if found:
            # With what is in it, if it is a package.
            self.admit(name)
        return found


class _Everywhere:
    """Finds the old names for anybody, as second names of our modules."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return a spec that leads to our module."""
        new = new_name(fullname) if is_old_name(fullname) else None
        return spec_from_loader(fullname, _SecondName(new)) if new else None


class _SecondName(Loader):
    def __init__(self, name: str) -> None:
        self._name = name

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        """Return our module, which exists."""
        module = importlib.import_module(self._name)
        self._spec = module.__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        """Leave it as it is."""
        module.__spec__ = self._spec


_finder = _Finder()
_everywhere = _Everywhere()
