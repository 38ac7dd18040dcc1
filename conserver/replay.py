"""Replay: what a storage could not save is saved there again, without the rest of the chain.

One replay a storage at a time: it holds a lock that lapses by itself if the process dies.
"""

from __future__ import annotations

import secrets
import threading
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from conserver import connection
from conserver.ambient import Work, working
from conserver.claims import storage_dead_list
from conserver.components import Storage
from conserver.differences import where_differs
from conserver.errors import ConserverError, NotAVcon, ServerError, StorageError, VconNotFound
from conserver.kept_lock import kept_lock
from conserver.queue import Queue
from conserver.run import SAVE_ROUNDS
from conserver.settings import Settings
from conserver.storage_calls import StorageCall
from conserver.store import VconStore
from conserver.vcon import Vcon
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
        self,
        queue: Queue,
        store: VconStore,
        storage: Storage,
        settings: Settings,
        storages: Sequence[Storage] = (),
        broken: Collection[str] = (),
    ) -> None:
        """A copy in Redis expires once none of *storages*, nor of the *broken* ones that cannot be asked, lacks it."""
        self._queue = queue
        self._store = store
        self._storage = storage
        self._settings = settings
        self._name = f"storage:{storage.name}"
        names = [*(other.name for other in storages), *broken]
        self._others = [f"storage:{name}" for name in names if name != storage.name]
        self._givers = [other for other in storages if other.get is not None and other.name != storage.name]
        self._lock = f"conserver:{{{storage_dead_list(storage.name)}}}:replay"
        self._client = connection.once(store.url, "replay")

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
        token = secrets.token_hex(16)
        with kept_lock(self._client, self._lock, LOCK_SECS, token=token) as lost:
            if lost is None:
                raise ReplayRuns(
                    f"storage {self._storage.name!r} is being replayed already; if that process died, try again in "
                    f"{LOCK_SECS:g} s"
                )
            at_once, in_a_row, tried, passed = 1, 0, 0, 0
            while most is None or tried < most:
                page = self._queue.entries(storage_dead_list(self._storage.name), passed, _PAGE)
                if not page:
                    break
                batch, over = _pick(page, wanted, at_once if most is None else min(at_once, most - tried))
                if lost.is_set():
                    raise self._lost()
                saved = done.saved
                failures = self._save(batch, done, token)
                done.failures |= failures
                saved = done.saved - saved
                # What was saved is gone from the list.
                passed += over + len(batch) - saved
                tried += len(batch)
                in_a_row = 0 if saved else in_a_row + len(failures)
                at_once = 1 if failures else min(2 * at_once, MOST_AT_ONCE) if saved else at_once
                if (failures and not go_on) or in_a_row >= _MOST_IN_A_ROW or (stopping and stopping.is_set()):
                    break
            done.left = self._queue.dead_count(self._name)
        return done

    def _lost(self) -> ServerError:
        return ServerError(f"the lock of this replay of storage {self._storage.name!r} was lost; replay again")

    def _save(self, batch: list[str], done: Replayed, token: str) -> dict[str, str]:
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
            # Before the entry is dropped, since nobody comes back to what has none; and after that, if it could not be
            # done before: the replay of another storage may have dropped its own in between, and seen ours.
            expires = self._let_expire(uuid, version)
            # Without the lock somebody else may have dropped it, and one of a newer version may stand there now.
            if not self._queue.drop_under(self._lock, token, self._name, uuid):
                raise self._lost()
            done.saved += 1
            if not expires:
                self._let_expire(uuid, version)
        return failures

    def _save_newest(self, uuid: str, options: Any) -> str:
        """Save the vCon until what was saved is its newest version; return the name of that version."""
        version = ""
        for _ in range(SAVE_ROUNDS):
            writer = self._store.writer()
            with working(Work(writer)):
                try:
                    version = writer.freeze(uuid)
                except VconNotFound:
                    if self._store.is_erased(uuid):
                        # Perhaps while it was saved here, now or by a save that was cut off.
                        if self._storage.delete is not None:
                            self._storage.delete(uuid, options)
                    elif version:
                        # It has expired, and this is what was there last.
                        return version
                    raise
                self._storage.save(uuid, options)
            if self._store.version(uuid) == version:
                return version
        raise StorageError("it is changed all the time")

    def _let_expire(self, uuid: str, version: str) -> bool:
        secs = self._settings.redis_expiry_secs
        if not secs or self._queue.is_dead(uuid, self._others):
            return False
        if self._storage.get is None and not self._is_held_elsewhere(uuid):
            return False
        # A full server lets it expire, and refuses what belongs to the index: then more room is what is needed most.
        with suppress(ServerError):
            self._store.expire([(uuid, version, secs)])
        return True

    def _is_held_elsewhere(self, uuid: str) -> bool:
        """Say whether another storage gives back what Redis holds."""
        text = self._store.text(uuid)
        if text is None:
            return False
        document = Vcon.parse(text).document
        for storage in self._givers:
            get: Any = storage.get
            with suppress(StorageError, NotAVcon):
                found = StorageCall(storage, get, uuid, self._settings.storage_timeout_secs).result()
                if found is not None and not where_differs(document, found):
                    return True
        return False


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
