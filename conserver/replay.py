"""Replay: what a storage could not save is saved there again, without the rest of the chain.

One replay a storage at a time: it holds a lock that lapses by itself if the process dies.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

from conserver import connection
from conserver.ambient import Work, working
from conserver.claims import storage_dead_list
from conserver.components import Storage
from conserver.errors import ConserverError, ServerError, StorageError, VconNotFound
from conserver.kept_lock import kept_lock
from conserver.queue import Queue
from conserver.run import SAVE_ROUNDS
from conserver.settings import Settings
from conserver.storage_calls import StorageCall
from conserver.store import VconStore
from conserver.vcon_forms import is_uuid

#: A lock that is not renewed for this long was left by a process that died.
LOCK_SECS = 30.0
#: Saves at the same time, once the storage has shown that it works.
MOST_AT_ONCE = 8
#: So many failures in a row are not about these vCons.
_MOST_IN_A_ROW = 3
_PAGE = 100


@dataclass
class Replayed:
    """What came of a replay."""

    saved: int = 0
    failures: dict[str, str] = field(default_factory=dict)
    """Entries that could not be saved, and why."""
    missing: list[str] = field(default_factory=list)
    """Entries whose vCon is nowhere any more; they stay dead letters until they are dropped."""
    left: int = 0
    """Dead letters that are still there, the missing ones included."""

    @property
    def failed(self) -> str:
        """Why it stopped, with the UUID; "" if it did not have to."""
        return next((f"{uuid}: {why}" for uuid, why in self.failures.items()), "")


class ReplayRuns(ConserverError):
    """Another replay of this storage runs at this moment."""


class Replay:
    """The replay of one storage's dead letters."""

    def __init__(
        self, queue: Queue, store: VconStore, storage: Storage, settings: Settings, storages: Collection[str] = ()
    ) -> None:
        """*storages* are the names of all storages: a copy in Redis expires once none of them lacks the vCon."""
        self._queue = queue
        self._store = store
        self._storage = storage
        self._settings = settings
        self._name = f"storage:{storage.name}"
        self._others = [f"storage:{name}" for name in storages if name != storage.name]
        self._lock = f"conserver:{{{storage_dead_list(storage.name)}}}:replay"

    def run(
        self,
        *,
        most: int | None = None,
        go_on: bool = False,
        wanted: Callable[[str], bool] = lambda uuid: True,
        stopping: threading.Event | None = None,
    ) -> Replayed:
        """Save the current version of each dead letter, oldest first, *most* at the most; one by one at first.

        An entry is dropped only after its save, so a replay that dies repeats a few saves at the worst. The first
        failure ends it, when the saves under way have ended; if it shall *go_on*, three in a row do. Entries that are
        not *wanted* are passed over. Raises ReplayRuns if somebody else is at it, ServerError if the Redis-compatible
        server fails.
        """
        done = Replayed()
        with kept_lock(connection.once(self._store.url, "replay"), self._lock, LOCK_SECS) as lost:
            if lost is None:
                raise ReplayRuns(
                    f"storage {self._storage.name!r} is being replayed already; if that process died, try again in "
                    f"{LOCK_SECS:g} s"
                )
            at_once, in_a_row, tried, passed = 1, 0, 0, 0
            while most is None or tried < most:
                page = [entry for entry, _ in self._queue.dead(self._name, passed, _PAGE)]
                if not page:
                    break
                batch, over = _pick(page, wanted, at_once if most is None else min(at_once, most - tried))
                if lost.is_set():
                    raise ServerError(
                        f"the lock of this replay of storage {self._storage.name!r} was lost; replay again"
                    )
                missing = len(done.missing)
                failures = self._save(batch, done)
                done.failures |= failures
                # What was saved is gone from the list.
                passed += over + len(failures) + len(done.missing) - missing
                tried += len(batch)
                in_a_row = in_a_row + len(failures) if len(failures) == len(batch) else 0
                at_once = 1 if failures else min(2 * at_once, MOST_AT_ONCE)
                if (failures and not go_on) or in_a_row >= _MOST_IN_A_ROW or (stopping and stopping.is_set()):
                    break
            done.left = self._queue.dead_count(self._name)
        return done

    def _save(self, batch: list[str], done: Replayed) -> dict[str, str]:
        """Save these at the same time and drop those that are saved; return the others, with the reasons."""
        failures = {}
        timeout = self._settings.storage_timeout_secs
        done.missing += [uuid for uuid in batch if not is_uuid(uuid)]
        calls = {uuid: StorageCall(self._storage, self._save_newest, uuid, timeout) for uuid in batch if is_uuid(uuid)}
        for uuid, call in calls.items():
            try:
                version = call.result()
            except StorageError as error:
                if isinstance(error.__cause__, ServerError):
                    # Not the storage's doing.
                    raise error.__cause__ from None
                if isinstance(error.__cause__, VconNotFound):
                    done.missing.append(uuid)
                else:
                    failures[uuid] = str(error)
                continue
            self._queue.drop(self._name, uuid)
            done.saved += 1
            self._let_expire(uuid, version)
        return failures

    def _save_newest(self, uuid: str, options: Any) -> str:
        """Save the vCon until what was saved is its newest version; return the name of that version."""
        for attempt in range(SAVE_ROUNDS):
            writer = self._store.writer()
            with working(Work(writer)):
                try:
                    version = writer.freeze(uuid)
                except VconNotFound:
                    # Perhaps deleted everywhere, while it was saved here.
                    if attempt and self._storage.delete is not None:
                        self._storage.delete(uuid, options)
                    raise
                self._storage.save(uuid, options)
            if self._store.version(uuid) == version:
                return version
        raise StorageError("it is changed all the time")

    def _let_expire(self, uuid: str, version: str) -> None:
        secs = self._settings.redis_expiry_secs
        if secs and self._storage.get is not None and not self._queue.is_dead(uuid, self._others):
            self._store.expire([(uuid, version, secs)])


def _pick(page: Sequence[bytes], wanted: Callable[[str], bool], most: int) -> tuple[list[str], int]:
    """Return the first entries of *page* to be saved at the same time, and how many before the last were unwanted."""
    batch: list[str] = []
    unwanted = 0
    for entry in page:
        uuid = entry.decode("utf-8", "backslashreplace")
        # Twice in the list: two saves of one vCon must not meet.
        if len(batch) == most or uuid in batch:
            break
        if wanted(uuid):
            batch.append(uuid)
        else:
            unwanted += 1
    return batch, unwanted
