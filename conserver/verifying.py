"""Verification: whether a storage holds what Redis holds, vCon by vCon.

What does not fit at the first look may be on its way to the storage. So it is looked at again, after a look at what
waits and what is being worked on: a vCon is called wrong only if nobody had it in hand and it stayed as it was.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from typing import Any, Literal

from conserver.differences import is_newer, where_differs
from conserver.errors import NotAVcon, StorageError, VconNotFound
from conserver.places import Place, in_threads
from conserver.queue import Queue
from conserver.records import PLACES, Records
from conserver.store import VconStore
from conserver.stored import digest, vcon_key
from conserver.vcon import Vcon

State = Literal["equal", "missing", "different", "unreadable", "newer", "unsaved", "gone", "repaired"]
#: These are wrong.
WRONG: tuple[State, ...] = ("missing", "different", "unreadable")
#: These can be saved again.
REPAIRABLE: tuple[State, ...] = ("missing", "different", "newer")
#: So many that do not fit are looked at again together: what waits is read through each time.
_AT_ONCE = 1000
_PAGE = 500
_UUID_BYTES = 36


@dataclass(frozen=True)
class Verdict:
    """What became of one vCon.

    `equal`: the storage holds what Redis holds. `missing`: it holds nothing. `different`: it holds something else.
    `unreadable`: it cannot be read there, or is no vCon in Redis. `newer`: Redis holds a newer version, and keeps it
    until storages have it. `unsaved`: it is on its way to the storage, or a dead letter. `gone`: Redis does not hold it
    any more. `repaired`: it was saved again.
    """

    uuid: str
    state: State
    why: str = ""


@dataclass(frozen=True)
class _Look:
    verdict: Verdict
    version: str = ""
    """That which Redis held."""


class Verification:
    """Compares one storage with Redis."""

    def __init__(self, place: Place, store: VconStore, queue: Queue, records: Records, lists: Sequence[str]) -> None:
        """*lists* are the ingress lists of the chains that save to this storage."""
        self._place = place
        self._store = store
        self._queue = queue
        self._records = records
        self._lists = lists

    def run(
        self,
        *,
        since: float | None = None,
        limit: int | None = None,
        threads: int = 4,
        repair: Collection[State] = (),
    ) -> Iterator[Verdict]:
        """Compare every vCon of the index, the one created last first; what is in *repair* is saved again.

        Those created *since* (epoch seconds), at most *limit* of them. PlaceDown if the storage does not work.
        """
        doubtful: dict[str, _Look] = {}
        for uuids in self._pages(since, limit):
            for look in in_threads(self._look, uuids, threads):
                if look.verdict.state in REPAIRABLE:
                    doubtful[look.verdict.uuid] = look
                else:
                    yield look.verdict
            if len(doubtful) >= _AT_ONCE:
                yield from self._look_again(doubtful, threads, repair)
                doubtful = {}
        yield from self._look_again(doubtful, threads, repair)

    def _pages(self, since: float | None, limit: int | None) -> Iterator[list[str]]:
        after, left = "", limit
        while left is None or left > 0:
            page = self._store.index.page(since=since, after=after, size=_PAGE if left is None else min(_PAGE, left))
            yield page.uuids
            after = page.after
            left = None if left is None else left - len(page.uuids)
            if not after:
                return

    def _look(self, uuid: str) -> _Look:
        try:
            text = self._store.text(uuid)
            if text is None:
                return _Look(Verdict(uuid, "gone"))
            document = Vcon.parse(text).document
        except NotAVcon as error:
            return _Look(Verdict(uuid, "unreadable", f"Redis holds what is no vCon: {error}"))
        try:
            found = self._place.get(uuid)
        except StorageError as error:
            return _Look(Verdict(uuid, "unreadable", str(error)))
        if found is None:
            return _Look(Verdict(uuid, "missing"), digest(text))
        where = where_differs(document, found)
        if not where:
            return _Look(Verdict(uuid, "equal"))
        # A copy that expires does so because storages were given this version.
        kept = is_newer(document, found) and self._store.client.pttl(vcon_key(uuid)) == -1
        return _Look(Verdict(uuid, "newer" if kept else "different", f"at {where}"), digest(text))

    def _look_again(self, doubtful: dict[str, _Look], threads: int, repair: Collection[State]) -> Iterator[Verdict]:
        if not doubtful:
            return
        in_hand = self._in_hand()

        def judge(first: _Look) -> Verdict:
            if why := in_hand.get(first.verdict.uuid.lower()):
                return replace(first.verdict, state="unsaved", why=why)
            look = self._look(first.verdict.uuid)
            verdict = look.verdict
            if verdict.state in REPAIRABLE and look.version != first.version:
                return replace(verdict, state="unsaved", why="it was changed while it was compared")
            return self._repaired(verdict) if verdict.state in repair else verdict

        yield from in_threads(judge, doubtful.values(), threads)

    def _repaired(self, verdict: Verdict) -> Verdict:
        try:
            self._place.put_newest(verdict.uuid)
        except VconNotFound:
            return replace(verdict, state="gone")
        except StorageError as error:
            return replace(verdict, why=f"{verdict.why}; not repaired: {error}".removeprefix("; "))
        return replace(verdict, state="repaired", why=f"it was {verdict.state} {verdict.why}".rstrip())

    def _in_hand(self) -> dict[str, str]:
        """Return what is on its way to the storage, or was and is a dead letter: UUID -> where it is."""
        found: dict[str, str] = {}

        def note(entries: Iterator[bytes], where: str) -> None:
            # Anything may stand in a list, of any length.
            found.update((entry.decode("latin-1").lower(), where) for entry in entries if len(entry) == _UUID_BYTES)

        for name in self._lists:
            note(_backwards(partial(self._queue.entries, name)), f"it waits in {name!r}")
        # Twice: what is given back in between has been in neither place when that was looked at.
        for _ in range(2):
            note(self._held(), "it is being worked on")
            for name, what in product(self._lists, PLACES):
                rows = _backwards(partial(self._records.waiting_again, name, what))
                note((row.entry for row in rows), f"it is to be worked on again by {name!r}")
        for name in [*self._lists, f"storage:{self._place.name}"]:
            rows = _backwards(partial(self._queue.dead, name))
            note((entry for entry, _ in rows), f"it is a dead letter of {name!r}")
        return found

    def _held(self) -> Iterator[bytes]:
        after: tuple[str, int] | None = None
        while page := self._records.claims(self._lists, after=after, count=_AT_ONCE):
            yield from (held.entry for held in page)
            after = page[-1].list, page[-1].seq


def _backwards(page_of: Callable[[int, int], list[Any]]) -> Iterator[Any]:
    # From the end: entries are taken at the head, so none moves past the place that is read next.
    start = -_AT_ONCE
    while page := page_of(start, _AT_ONCE):
        yield from page
        start -= _AT_ONCE
