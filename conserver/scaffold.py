"""The first version of a link or a storage: a module that works, its test, its page, and what to write in the config.

The texts are in templates/, with `$name` and so on to be filled in.
"""

from __future__ import annotations

import keyword
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import entry_points
from importlib.util import find_spec
from pathlib import Path
from string import Template
from typing import Literal

from conserver.errors import ConserverError

Kind = Literal["link", "storage"]

_TEMPLATES = Path(__file__).parent / "templates"
#: So that pytest finds `links` and `storages` of the folder that this lies in, however it is called.
_CONFTEST = 'pytest_plugins = ["conserver.testing"]\n'
_CHAIN = {
    "link": """\
storages:
  files:
    module: storages.file
    options:
      path: data/vcons
chains:
  main:
    links: [$name]
    storages: [files]
    ingress_lists: [default]
""",
    "storage": """\
links: {}
chains:
  main:
    links: []
    storages: [$name]
    ingress_lists: [default]
""",
}


@dataclass(frozen=True)
class Draft:
    """What is to be written."""

    files: Mapping[str, str]
    """Path below the folder -> text."""
    config: str
    """The part of config.yml that uses it."""
    next_steps: tuple[str, ...]
    shared: Mapping[str, str]
    """Files that are left alone where they are there already."""


def module(kind: Kind, name: str) -> Draft:
    """Draft `links/NAME.py` or `storages/NAME.py` with its test and its page; raises ConserverError for a bad name."""
    _check_name(kind, name)
    dotted = f"{kind}s.{name}"
    words = {"name": name, "kind": kind, "module": dotted, "tested": f'"{dotted}"', "imports": ""}
    words |= {"install": "", "pip_name": ""}
    config = words["config"] = _filled(f"{kind}.yml", words)
    files = {
        f"{kind}s/{name}.py": _filled(f"{kind}.py", words),
        f"tests/test_{name}.py": _filled(f"{kind}_test.py", words),
        f"docs/{name}.md": _filled(f"{kind}.md", words),
    }
    steps = [f"python -m pytest tests/test_{name}.py", "conserver check  # once a chain of config.yml names it"]
    if kind == "link":
        steps.insert(1, f"conserver try {dotted} YOUR.vcon")
    return Draft(files, config, tuple(steps), {"conftest.py": _CONFTEST})


def package(kind: Kind, name: str) -> Draft:
    """Draft a project in a folder of its own that pip can install, whose entry point is NAME."""
    _check_name(kind, name)
    imported, project = f"{name}_{kind}", f"{name}-{kind}".replace("_", "-")
    if find_spec(imported) is not None:
        raise ConserverError(f"there is a module {imported} already; choose another name")
    words = {
        **{"name": name, "kind": kind, "module": name, "tested": imported, "imports": f"\nimport {imported}\n"},
        **{"package": imported, "project": project, "pip_name": f"    pip_name: {project}\n"},
        "install": f"```\npip install {project}\n```\n\n",
    }
    config = words["config"] = _filled(f"{kind}.yml", words)
    files = {
        "pyproject.toml": _filled("pyproject.toml", words),
        "README.md": _filled(f"{kind}.md", words),
        "config.yml": config + Template(_CHAIN[kind]).substitute(words),
        f"{imported}/__init__.py": _filled(f"{kind}.py", words),
        f"{imported}/py.typed": "",
        f"tests/test_{name}.py": _filled(f"{kind}_test.py", words),
    }
    steps = (f"cd {project}", "pip install -e '.[test]'", "python -m pytest", "python -m mypy", "conserver check")
    return Draft({f"{project}/{path}": text for path, text in files.items()}, config, steps, {})


def write(draft: Draft, folder: Path) -> list[Path]:
    """Write the files of a draft and return them; if one is there already, raise ConserverError and write nothing."""
    there = [str(folder / path) for path in draft.files if (folder / path).exists()]
    if there:
        raise ConserverError(f"nothing was written, since {', '.join(there)} would be overwritten; choose another name")
    files = dict(draft.files) | {path: text for path, text in draft.shared.items() if not (folder / path).exists()}
    for path, text in files.items():
        try:
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_text(text, encoding="utf-8")
        except OSError as error:
            raise ConserverError(f"cannot write {folder / path}: {error.strerror}") from error
    return [folder / path for path in files]


def _check_name(kind: Kind, name: str) -> None:
    if not re.fullmatch(r"[a-z][a-z0-9_]{0,49}", name) or keyword.iskeyword(name):
        rule = "lower-case letters, digits and _, beginning with a letter, and no word of Python"
        raise ConserverError(f"{name!r} is no name of a module: {rule}, as in call_summary")
    dotted = f"{kind}s.{name}"
    ours = Path(__file__).parent.parent / f"{kind}s" / name
    if ours.with_suffix(".py").is_file() or ours.is_dir():
        raise ConserverError(f"{dotted} is one of ours, which would be used instead; choose another name")
    if entry_points(group=f"conserver.{kind}s", name=name):
        raise ConserverError(f"an installed package has a {kind} {name!r} already; choose another name")
    if name in sys.stdlib_module_names or name in ("conserver", "links", "storages"):
        raise ConserverError(f"{name!r} is the name of a module of Python or of the conserver; choose another name")


def _filled(template: str, words: Mapping[str, str]) -> str:
    return Template((_TEMPLATES / f"{template}.txt").read_text(encoding="utf-8")).substitute(words)
