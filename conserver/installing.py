"""Installing what the components of a config need, when an operator asks for it: `conserver install`.

Nothing else in the conserver ever installs a package.
"""

from __future__ import annotations

import importlib.util
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass

from conserver.components import check_components
from conserver.config import Config
from conserver.errors import ConserverError
from conserver.findings import Finding, quotable
from conserver.requirements import missing, parse

_EXTRA = re.compile(r"pip install '(conserver\[[\w,.-]+\])'")


@dataclass(frozen=True)
class Wanted:
    """Something that is not installed."""

    requirement: str
    """As pip takes it."""
    shown: str
    """The same without secrets."""
    why: str
    """Who needs it, as "link 'speech'"."""


def wanted(config: Config) -> list[Wanted]:
    """List what is missing of the `pip_name`s of a config, and of our own extras, each once.

    Imports the components in a child process, as the check does.
    """
    found: dict[str, Wanted] = {}
    findings = check_components(config)
    for one in [*_pip_names(config, findings), *_extras(findings)]:
        found.setdefault(one.requirement, one)
    return list(found.values())


def _pip_names(config: Config, findings: list[Finding]) -> Iterator[Wanted]:
    for word, entries in (("link", config.links), ("storage", config.storages), ("import", config.imports)):
        for name, entry in entries.items():
            why, text = f"{word} {name!r}", (entry.pip_name or "").strip()
            if text.startswith("-"):
                raise ConserverError(
                    f"{why}: pip_name {quotable(text)!r} is no package: options of pip are not taken from it"
                )
            requirement = parse(text)
            if requirement is not None and requirement.url is None:
                lacks = bool(missing(requirement))
            else:
                # Only pip knows what a URL or a folder holds.
                lacks = any(f.rule == "missing-package" and f.message.startswith(f"{why}:") for f in findings)
            if text and lacks:
                yield Wanted(text, quotable(entry.pip_name or ""), why)


def _extras(findings: list[Finding]) -> Iterator[Wanted]:
    for finding in findings:
        for extra in _EXTRA.findall(finding.message):
            requirement = parse(extra)
            for text in missing(requirement) if requirement else ():
                yield Wanted(text, text, extra)


def command() -> list[str]:
    """Return the beginning of the command that installs into this environment: pip's, or uv's where there is no pip."""
    if importlib.util.find_spec("pip") is not None:
        return [sys.executable, "-m", "pip", "install", "--disable-pip-version-check", "--no-input"]
    uv = shutil.which("uv")
    if uv is None:
        raise ConserverError(
            f"{sys.executable} has no pip, and there is no uv on PATH; {sys.executable} -m ensurepip brings pip"
        )
    return [uv, "pip", "install", "--python", sys.executable]


def shown(packages: list[Wanted]) -> str:
    """Return the command as a person would type it, without secrets."""
    return shlex.join([*command(), *(one.shown for one in packages)])


def install(packages: list[Wanted]) -> None:
    """Install them all at once, so that their versions fit together; raises ConserverError if that fails."""
    sys.stdout.flush()
    done = subprocess.run([*command(), *(one.requirement for one in packages)], check=False)  # noqa: S603  asked for
    if done.returncode:
        raise ConserverError(
            f"the packages were not installed: {command()[0]} ended with exit code {done.returncode}, see above"
        )
