"""What came of trying links: what each did to the vCons of a throw-away server, and how it ended."""

from __future__ import annotations

import difflib
import json
import os
import re
import time
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any
from uuid import UUID

import msgspec

from conserver.claims import is_uuid
from conserver.components import Link
from conserver.errors import VconNotFound
from conserver.findings import without
from conserver.reasons import describe
from conserver.store import VconStore

#: A line of a difference that is longer is cut.
LONGEST_LINE = 160
#: Where more lines than this differ, nobody reads them, and to compare them takes minutes.
MOST_LINES = 5000
_CONTEXT = 2


@dataclass
class Step:
    """What one link did."""

    link: str
    uuid: str = ""
    """Of the vCon that it was given."""
    secs: float = 0.0
    result: str | None = None
    """The UUID that it returned; None if that was none, or an error."""
    error: str = ""
    changed: list[str] = field(default_factory=list)
    """UUIDs of the vCons that it has made, changed or deleted."""
    changes: list[str] = field(default_factory=list)
    """A unified diff of these, as indented JSON; long lines are cut."""


@dataclass
class Trial:
    """What came of it; secrets of options are in none of its messages."""

    migrated: list[str]
    """What migration changed before the first link."""
    steps: list[Step]
    skipped: list[str]
    """Links whose condition (`when`) the vCon does not meet."""
    ending: str
    """What the outcome leads to: delivered, stopped, delayed (it would be tried again), dead or returned."""
    error: str
    traceback: str
    """What a link raised, unless it is a LinkError; its traceback begins in the link."""
    uuid: str
    """Of the vCon that it ended with."""
    pushes: list[tuple[str, str]]
    """(list, UUID), as they would be made with the settlement."""
    storage_errors: dict[str, str]
    given: str = ""
    """The UUID of the vCon that it began with."""
    asked: list[tuple[str, str]] = field(default_factory=list)
    """Those of `pushes` that links have asked for."""
    egress: list[tuple[str, str]] = field(default_factory=list)
    """Those of `pushes` that deliver to the egress lists of the chain."""
    expire_secs: int | None = None
    """When a link wants the vCon to expire."""
    vcons: dict[str, str] = field(default_factory=dict)
    """UUID -> text of the vCon that it began with, unless that was deleted, and of all that were made or changed."""
    changed: list[str] = field(default_factory=list)
    """Those of `vcons` that were made or changed."""
    deleted: list[str] = field(default_factory=list)
    bases: dict[str, str] = field(default_factory=dict)
    """UUID -> the text that it had, for vCons that came from a storage and were changed."""

    @property
    def went_well(self) -> bool:
        """Whether it went as far as its links wanted it to go."""
        return self.ending in ("delivered", "stopped")


class Watch:
    """Sees what each link does to the vCons of *store*, which nobody else uses."""

    def __init__(
        self,
        store: VconStore,
        bases: Mapping[str, bytes],
        secrets: Collection[str],
        notice: Callable[[int, Step], None],
    ) -> None:
        """*bases* are the vCons that no link has made, also those that come into the store later.

        *notice* is called with each step and its number when it begins, and again when it has ended.
        """
        self.steps: list[Step] = []
        self.texts = dict(bases)
        """All vCons, as the last link left them."""
        self.bases = bases
        self._store = store
        self._secrets = secrets
        self._notice = notice
        self._pid = os.getpid()

    def watched(self, link: Link) -> Link:
        """Return *link* such that it leaves a Step behind."""

        def run(uuid: str, name: str, options: Any) -> Any:
            number, step = len(self.steps), Step(link.name, uuid)
            self.steps.append(step)
            self._notice(number, step)
            began = time.monotonic()
            try:
                result = link.run(uuid, name, options)
                step.result = str(result) if isinstance(result, str | UUID) and is_uuid(str(result)) else None
                return result
            except BaseException as error:
                step.error = describe(error, self._secrets)
                raise
            finally:
                if os.getpid() != self._pid:
                    os._exit(0)  # the link has forked, and this is the copy
                step.secs = time.monotonic() - began
                self._note_changes(step)
                self._notice(number, step)

        return replace(link, run=run)

    def _note_changes(self, step: Step) -> None:
        before = self.texts
        self.look()
        for uuid in sorted(before.keys() | self.texts.keys(), key=lambda one: (one != step.uuid, one)):
            # One that the link has read from a storage was there before.
            old, new = before.get(uuid, self.bases.get(uuid, b"")), self.texts.get(uuid, b"")
            if old != new:
                step.changed.append(uuid)
                step.changes += difference(uuid, old, new, self._secrets)

    def look(self) -> None:
        """Read all vCons."""
        texts: dict[str, bytes] = {}
        after = ""
        while True:
            page = self._store.index.page(since=None, until=None, after=after, size=500)
            for uuid in page.uuids:
                with suppress(VconNotFound):
                    texts[uuid] = self._store.read(uuid)
            if not page.after:
                break
            after = page.after
        self.texts = texts


def difference(uuid: str, before: bytes, after: bytes, secrets: Collection[str] = ()) -> list[str]:
    """Return a unified diff of two texts of a vCon as indented JSON, without *secrets*.

    An empty text means that there is no such vCon. Long lines are cut.
    """
    old, new = _lines(before, secrets), _lines(after, secrets)
    names = [f"--- {uuid} before", f"+++ {uuid} after"]
    # What is alike at both ends need not be compared, which takes long for many lines.
    head = _alike(old, new)
    tail = _alike(old[head:][::-1], new[head:][::-1])
    left_out = max(0, head - _CONTEXT)
    old, new = (lines[left_out : len(lines) - max(0, tail - _CONTEXT)] for lines in (old, new))
    if len(old) + len(new) > MOST_LINES:
        return [*names, f"({len(old):,} lines have become {len(new):,}: too many to show)"]
    told = list(difflib.unified_diff(old, new, n=_CONTEXT, lineterm=""))[2:]
    return [*names, *(_moved(line, left_out) if line.startswith("@@") else _cut(line) for line in told)]


def _lines(text: bytes, secrets: Collection[str]) -> list[str]:
    if not text:
        return []
    in_json = {json.dumps(secret, ensure_ascii=False)[1:-1] for secret in secrets}
    return without({*secrets, *in_json}, msgspec.json.format(text, indent=2).decode()).splitlines()


def _alike(one: list[str], other: list[str]) -> int:
    pairs = enumerate(zip(one, other, strict=False))
    return next((at for at, (a, b) in pairs if a != b), min(len(one), len(other)))


def _moved(hunk: str, lines: int) -> str:
    return re.sub(r"([-+])(\d+)", lambda place: f"{place[1]}{int(place[2]) + lines}", hunk)


def _cut(line: str) -> str:
    return line if len(line) <= LONGEST_LINE else f"{line[:LONGEST_LINE]}… ({len(line):,} characters)"
