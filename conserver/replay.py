"""Replay: what a storage could not save is saved there again, without the rest of the chain.

One replay a storage at a time: it holds a lock that lapses by itself if the process dies.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass, field

from conserver import connection
from conserver.ambient import Work, working
from conserver.chain import describe
from conserver.claims import storage_dead_list
from conserver.components import Storage
from conserver.errors import ConserverError, ServerError, VconNotFound
from conserver.kept_lock import kept_lock
from conserver.queue import Queue
from conserver.store import VconStore
from conserver.vcon_forms import is_uuid

#: A lock that is not renewed for this long was left by a process that died.
LOCK_SECS = 30.0
_PAGE = 100


@dataclass
class Replayed:
    """What came of a replay."""

    saved: int = 0
    failed: str = ""
    """Why it stopped, with the UUID; "" if it did not have to."""
    missing: list[str] = field(default_factory=list)
    """Entries whose vCon is nowhere any more; they stay dead letters until they are dropped."""
    left: int = 0
    """Dead letters that are still there, the missing ones included."""


class ReplayRuns(ConserverError):
    """Another replay of this storage runs at this moment."""


def replay(
    url: str,
    queue: Queue,
    store: VconStore,
    storage: Storage,
    *,
    most: int | None = None,
    timeout_secs: float = 60.0,
) -> Replayed:
    """Save the current version of each dead letter of *storage*, oldest first, *most* at the most.

    An entry is dropped only after its save, so a replay that dies repeats one save at the worst. The first failure of
    the storage ends the replay. Each save may take the storage's timeout, or else *timeout_secs*.
    Raises ReplayRuns if somebody else is at it, ServerError if the Redis-compatible server fails.
    """
    name = f"storage:{storage.name}"
    done = Replayed()
    key = f"conserver:{{{storage_dead_list(storage.name)}}}:replay"
    with kept_lock(connection.once(url, "replay"), key, LOCK_SECS) as lost:
        if lost is None:
            raise ReplayRuns(
                f"storage {storage.name!r} is being replayed already; if that process died, try again in "
                f"{LOCK_SECS:g} s"
            )
        tried = 0
        while not done.failed and (most is None or tried < most):
            page = queue.dead(name, len(done.missing), _PAGE if most is None else min(_PAGE, most - tried))
            if not page:
                break
            for entry, _ in page:
                if lost.is_set():
                    raise ServerError(f"the lock of this replay of storage {storage.name!r} was lost; replay again")
                tried += 1
                uuid = entry.decode("utf-8", "backslashreplace")
                if not is_uuid(uuid) or not store.exists(uuid):
                    done.missing.append(uuid)
                    continue
                done.failed = _save(store, storage, uuid, storage.timeout or timeout_secs)
                if done.failed:
                    break
                queue.drop(name, entry)
                done.saved += 1
        done.left = queue.dead_count(name)
    return done


def _save(store: VconStore, storage: Storage, uuid: str, timeout_secs: float) -> str:
    """Save one vCon on a thread of its own, so that one that hangs can be left behind; return what went wrong."""
    ended: list[BaseException | None] = []

    def save() -> None:
        try:
            with working(Work(store.writer())):
                storage.save(uuid, storage.options)
            ended.append(None)
        except BaseException as error:  # noqa: BLE001  storages are other people's code
            ended.append(error)

    thread = threading.Thread(target=save, name="replay", daemon=True)
    thread.start()
    thread.join(timeout_secs)
    if not ended:
        return f"{uuid}: no answer within {timeout_secs:g} s"
    error = ended[0]
    if isinstance(error, ServerError | VconNotFound):
        # Not the storage's doing: the server went away, or the vCon in this very moment.
        raise error
    return "" if error is None else f"{uuid}: {describe(error, storage.secrets)}"
