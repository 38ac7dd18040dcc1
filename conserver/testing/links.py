"""Runs of one link on one vCon."""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from conserver.ambient import Work, working
from conserver.components import load_link
from conserver.config import LinkConfig
from conserver.differences import difference
from conserver.testing.calls import throwaway_store, two_party_call, uuid_of
from conserver.vcon import Vcon

Given = str | os.PathLike[str] | Mapping[str, Any] | Vcon | None


@dataclass(frozen=True)
class Trial:
    """What one run of a link did."""

    before: Vcon
    vcon: Vcon
    """The vCon that the chain would go on with; where the link stopped it, the one that it was given."""
    result: str | None
    """What `run` returned: a UUID, or None to stop."""
    pushes: tuple[tuple[str, str], ...]
    """(list, UUID), as the link asked for them; in a chain they are made when it settles."""
    expire_secs: int | None
    """The expiry that the link asked for."""


def run_link(
    module: str | ModuleType, options: Mapping[str, Any] | None = None, *, on: Given = None, times: int = 1
) -> Vcon:
    """Run a link on a vCon and return the vCon that it leaves behind; `try_link` tells more."""
    return try_link(module, options, on=on, times=times).vcon


def try_link(
    module: str | ModuleType,
    options: Mapping[str, Any] | None = None,
    *,
    on: Given = None,
    name: str = "link",
    times: int = 1,
    beside: Path | None = None,
) -> Trial:
    """Run a link on a vCon, with its options bound as in a chain, and return all that came of it.

    *on* is a Vcon, a document, or a file (looked for in the working directory, then in *beside*); by default a call of
    two people. With *times* above 1 it runs that often, as after a crash, and AssertionError tells where a later run
    changed something more. What the link raises comes out as it is.
    """
    name_of_module = module if isinstance(module, str) else module.__name__
    link = load_link(LinkConfig(name=name, module=name_of_module, options=dict(options or {})))
    vcon = _given(on, beside)
    store = throwaway_store()
    store.create(vcon, replace=True)
    trial = None
    for _ in range(times):
        with working(Work(store.writer())) as work:
            result = link.run(uuid_of(vcon), name, link.options)
        if result is not None and not isinstance(result, str):
            raise AssertionError(f"{name_of_module}: run must return a UUID or None, not {result!r}")
        after = store.get(result or uuid_of(vcon))
        before, trial = trial, Trial(vcon, after, result, tuple(work.pushes), work.expire_secs)
        if before is not None:
            _assert_same(name_of_module, before, trial)
    if trial is None:
        raise ValueError(f"times={times}: must be 1 or more")
    return trial


def _assert_same(module: str, first: Trial, again: Trial) -> None:
    # A vCon that the link built is of the moment of its run.
    times = {"updated_at": None} if first.vcon.uuid == first.before.uuid else {"updated_at": None, "created_at": None}
    changed = difference({**first.vcon.document, **times}, {**again.vcon.document, **times})
    if changed:
        raise AssertionError(f"{module}: a second run changed more: {changed}")
    for what in ("result", "pushes", "expire_secs"):
        one, other = getattr(first, what), getattr(again, what)
        if one != other:
            raise AssertionError(f"{module}: {what} of a second run: {other!r}, of the first: {one!r}")


def _given(on: Given, beside: Path | None = None) -> Vcon:
    if on is None:
        return two_party_call()
    if isinstance(on, Vcon):
        return Vcon(on.to_dict())
    if isinstance(on, Mapping):
        return Vcon(copy.deepcopy(dict(on)))
    places = [Path(on), *([beside / on] if beside else [])]
    for place in places:
        if place.is_file():
            return Vcon.parse(place.read_bytes())
    raise FileNotFoundError(
        f"there is no vCon {os.fspath(on)}: looked for {', '.join(str(p.absolute()) for p in places)}"
    )
