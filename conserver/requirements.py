"""Which Python packages are here: a requirement as pip writes it, and what is missing of it."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Iterator

from packaging.requirements import InvalidRequirement, Requirement


def parse(text: str) -> Requirement | None:
    """Read a requirement; None for what only pip understands, such as a URL or a folder."""
    try:
        return Requirement(text)
    except InvalidRequirement:
        return None


def missing(wanted: Requirement) -> list[str]:
    """List what has to be installed, so that the requirement is met with its extras; empty if it is.

    Of a package that is here, only what its extras lack: `conserver[jq]` never leads to another conserver.
    """
    if wanted.marker and not wanted.marker.evaluate():
        return []
    try:
        version = importlib.metadata.version(wanted.name)
    except importlib.metadata.PackageNotFoundError:
        return [_without_marker(wanted)]
    if not wanted.specifier.contains(version, prereleases=True):
        return [_without_marker(wanted)]
    found = [text for extra in sorted(wanted.extras) for one in _of_extra(wanted.name, extra) for text in missing(one)]
    return list(dict.fromkeys(found))


def _of_extra(package: str, extra: str) -> Iterator[Requirement]:
    for text in importlib.metadata.requires(package) or []:
        one = Requirement(text)
        if one.marker and one.marker.evaluate({"extra": extra}) and not one.marker.evaluate({"extra": ""}):
            one.marker = None
            yield one


def _without_marker(wanted: Requirement) -> str:
    one = Requirement(str(wanted))
    one.marker = None
    return str(one)
