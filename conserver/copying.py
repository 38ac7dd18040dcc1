"""Copying from one storage to another: each vCon as the one gives it, past Redis, and to be gone on with at any time.

What could not be copied is remembered beside the place that the copy has come to, and tried again at the end.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import msgspec

from conserver import connection
from conserver.differences import where_differs
from conserver.errors import ConserverError, NotAVcon, ServerError, StorageError, VconNotFound
from conserver.kept_lock import kept_lock
from conserver.places import Place, in_threads
from conserver.run import SAVE_ROUNDS
from conserver.store import VconStore
from conserver.vcon import Vcon

State = Literal["copied", "overwritten", "equal", "different", "missing", "erased", "unsaved", "failed"]
#: These are tried again.
LATER: tuple[State, ...] = ("unsaved", "failed")
#: A copy that nobody goes on with for so long begins anew.
KEPT_SECS = 30 * 86400
#: A lock that is not renewed for this long was left by a process that died.
LOCK_SECS = 10.0
#: What a process that dies has to repeat at the most.
_PAGE = 200


class CopyRuns(ConserverError):
    """These two storages are being copied at this moment."""


@dataclass(frozen=True)
class Copied:
    """What became of one vCon.

    `copied`; `overwritten`: another version was there. `equal`: it was there. `different`: another version is there,
    and was left. `missing`: there is nothing to copy. `erased`: it was deleted from the conserver, and left. `unsaved`:
    Redis holds another version, which the storage that is copied from was not given yet. `failed`: one of them failed.
    """

    uuid: str
    state: State
    why: str = ""


@dataclass
class Progress:
    """How far a copy has come."""

    of: str
    """What is copied, and how it is walked: another copy begins anew."""
    after: str = ""
    walked: bool = False
    """Only what is to be tried again is left."""
    counts: dict[str, int] = field(default_factory=dict)


class Copying:
    """A copy of what one storage holds to another one."""

    def __init__(
        self,
        store: VconStore,
        source: Place,
        target: Place,
        *,
        uuids: Sequence[str] | None = None,
        overwrite: bool = False,
    ) -> None:
        """Of all that *source* lists, or else of what the index knows; of these *uuids*, if they are given.

        StorageError if one of the storages cannot do what that needs.
        """
        if source.storage.get is None:
            raise StorageError(f"storage {source.name!r}: {source.storage.module} has no get, so nothing can be copied")
        if target.storage.get is None and not overwrite:
            raise StorageError(
                f"storage {target.name!r}: {target.storage.module} has no get, so what it holds cannot be seen:"
                " it can only be overwritten (--overwrite)"
            )
        self._store = store
        self._source = source
        self._target = target
        self._uuids = uuids
        self._overwrite = overwrite
        self._key = f"conserver:{{copy:{source.name}:{target.name}}}:progress"
        self._later = f"conserver:{{copy:{source.name}:{target.name}}}:later"
        self._lock = f"conserver:{{copy:{source.name}:{target.name}}}:lock"
        self.by_index = uuids is None and source.storage.list_uuids is None
        """Whether only those are copied that the index knows."""
        self.progress = self._read() or Progress(self._of())
        """With what earlier runs have done."""

    def left(self) -> int:
        """Return how many are to be tried again."""
        return int(self._store.client.scard(self._later))

    def run(self, *, restart: bool = False, threads: int = 4) -> Iterator[Copied]:
        """Copy what is left to copy, and try again what could not be copied.

        Whenever it ends, another run goes on where it was, and repeats a few vCons at most; with *restart* it begins
        anew. PlaceDown if one of the storages does not work, CopyRuns if somebody else is at it.
        """
        with kept_lock(connection.once(self._store.url, "copy"), self._lock, LOCK_SECS) as lost:
            if lost is None:
                raise CopyRuns(
                    f"storage {self._source.name!r} is being copied to {self._target.name!r} already; if that process"
                    f" died, try again in {LOCK_SECS:g} s"
                )
            self._begin(restart)
            for uuids, after in self._pages() if not self.progress.walked else ():
                if lost.is_set():
                    raise ServerError("the lock of this copy was lost; start it again, and it goes on where it was")
                known = self._store.client.smismember(self._later, uuids) if uuids else []
                # A page that was broken off comes again: what has failed there has its turn at the end.
                new = [uuid for uuid, is_known in zip(uuids, known, strict=True) if not is_known]
                yield from self._copied(new, threads)
                self.progress.after = after
                self._write()
            self.progress.walked = True
            self._write()
            yield from self._tried_again(threads)
            if not self.left():
                self._store.client.delete(self._key)

    def _begin(self, restart: bool) -> None:
        before = None if restart else self._read()
        self.progress = before or Progress(self._of())
        if before is None:
            # Whatever is to be tried again belongs to another copy.
            self._store.client.delete(self._later)
            self._write()

    def _copied(self, uuids: Sequence[str], threads: int) -> Iterator[Copied]:
        for one in in_threads(self._copy, uuids, threads):
            if one.state in LATER:
                self._store.client.sadd(self._later, one.uuid)
                self._store.client.expire(self._later, KEPT_SECS)
            else:
                self.progress.counts[one.state] = self.progress.counts.get(one.state, 0) + 1
            yield one

    def _tried_again(self, threads: int) -> Iterator[Copied]:
        uuids = [uuid.decode() for uuid in self._store.client.smembers(self._later)]
        for one in self._copied(uuids, threads):
            if one.state not in LATER:
                self._store.client.srem(self._later, one.uuid)
                self._write()
            yield one

    def _pages(self) -> Iterator[tuple[list[str], str]]:
        """Yield UUIDs, each time with where to go on behind them."""
        after = self.progress.after
        if self._uuids is not None:
            for at in range(int(after or 0), len(self._uuids), _PAGE):
                yield list(self._uuids[at : at + _PAGE]), str(at + _PAGE)
        elif not self.by_index:
            yield from self._source.uuids(after)
        else:
            while True:
                page = self._store.index.page(after=after, size=_PAGE)
                after = page.after
                yield page.uuids, after
                if not after:
                    return

    def _copy(self, uuid: str) -> Copied:
        try:
            return self._try_copy(uuid)
        except (StorageError, NotAVcon, VconNotFound) as error:
            return Copied(uuid, "failed", str(error))

    def _try_copy(self, uuid: str) -> Copied:
        done: State | None = None
        for _ in range(SAVE_ROUNDS):
            # Before anything else: a version that is written to Redis later is seen below, one that was written before
            # and not saved yet is seen here.
            text = self._store.text(uuid)
            if self._store.is_erased(uuid):
                return Copied(uuid, "erased")
            document = self._source.get(uuid)
            if document is None:
                return Copied(uuid, "missing")
            held = self._target.get(uuid) if self._target.storage.get is not None else None
            if text is not None and where_differs(newest := Vcon.parse(text).document, document):
                if held is not None and not where_differs(newest, held):
                    return Copied(uuid, done or "equal")
                if done:
                    # What was put may have replaced the newer version, which a chain had saved just before.
                    self._target.put_newest(uuid)
                    return Copied(uuid, done)
                why = f"Redis holds another version, which {self._source.name!r} does not have"
                return Copied(uuid, "unsaved", why)
            if held is not None and not where_differs(document, held):
                return Copied(uuid, done or "equal")
            if held is not None and done is None and not self._overwrite:
                return Copied(uuid, "different", f"at {where_differs(document, held)}")
            if not self._target.put(uuid, document):
                return Copied(uuid, "erased")
            done = done or ("copied" if held is None else "overwritten")
            if self._store.text(uuid) == text:
                return Copied(uuid, done)
        raise StorageError("it is changed all the time")

    # How far it has come

    def _of(self) -> str:
        # Passwords are not shown by options, and do not make another place of one.
        ends = [(place.storage.module, repr(place.storage.options)) for place in (self._source, self._target)]
        walked: Any = "index" if self.by_index else "list" if self._uuids is None else self._uuids
        return hashlib.sha256(msgspec.json.encode([ends, walked, self._overwrite])).hexdigest()

    def _read(self) -> Progress | None:
        text = self._store.client.get(self._key)
        try:
            progress = msgspec.json.decode(text, type=Progress) if text else None
        except msgspec.DecodeError:
            return None
        return progress if progress is not None and progress.of == self._of() else None

    def _write(self) -> None:
        self._store.client.set(self._key, msgspec.json.encode(self.progress), ex=KEPT_SECS)
