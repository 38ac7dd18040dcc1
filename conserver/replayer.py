"""The replayer: what storages could not save is saved again by itself when they work again.

A process beside the workers, which the supervisor runs while there are dead letters of storages. Each storage has a
thread that replays them in rounds, with longer and longer pauses while nothing can be saved.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from dataclasses import dataclass

from redis.exceptions import RedisError

from conserver import telemetry
from conserver.components import Storage
from conserver.config import Config
from conserver.errors import ConserverError
from conserver.queue import Queue
from conserver.replay import LOCK_SECS, Replay, Replayed, ReplayRuns
from conserver.settings import Settings
from conserver.store import VconStore
from conserver.workload import load_storages, read_through

log = logging.getLogger(__name__)

#: How often a thread looks for dead letters of its storage.
LOOK_SECS = 1.0
#: The pause after a round in which nothing could be saved; it doubles up to the second.
FIRST_PAUSE_SECS = 1.0
LONGEST_PAUSE_SECS = 15.0
#: The longest pause for one vCon that the storage does not take while it takes others.
LONGEST_LATE_SECS = 600.0
#: How long saves may go on when the process is to stop.
STOP_SECS = 1.5
_MOST_LATE = 100_000


def serve(url: str, settings: Settings, config: Config, stopping: threading.Event) -> None:
    """Replay the dead letters of the storages of *config* until *stopping* is set.

    A save that is cut off then is done again by the next start.
    """
    storages, broken = load_storages(config)
    for name, error in broken.items():
        log.error("storage %r cannot be replayed: %s", name, error)
    # One that hangs when it is asked for what is not in Redis may not have the others' saves hang.
    store = VconStore(
        url,
        settings,
        lambda uuid: read_through(list(storages.values()), uuid, timeout_secs=settings.storage_timeout_secs),
    )
    queue = Queue(url, "replayer")
    replayers = [
        Replayer(queue, Replay(queue, store, storage, settings, list(storages.values()), broken), storage, stopping)
        for name, storage in storages.items()
        if config.storages[name].replay
    ]
    threads = [threading.Thread(target=r.run, name=f"replayer-{r.name}", daemon=True) for r in replayers]
    for thread in threads:
        thread.start()
    while not stopping.is_set():
        # Not by its wait: the handler of a signal that sets it may find its lock held.
        time.sleep(0.1)
    give_up = time.monotonic() + STOP_SECS
    for thread in threads:
        thread.join(max(0.0, give_up - time.monotonic()))


@dataclass
class _Late:
    """A vCon that the storage did not take."""

    seen: int
    """How many others had been saved when it failed last."""
    again_at: float = 0.0
    tries: int = 0
    refused: bool = False
    """It has failed again after others were saved: it is about this vCon."""


class Replayer:
    """The rounds of one storage."""

    def __init__(self, queue: Queue, replay: Replay, storage: Storage, stopping: threading.Event) -> None:
        self.name = storage.name
        self._queue = queue
        self._replay = replay
        self._stopping = stopping
        self._late: dict[str, _Late] = {}
        # Of those, the ones that this round tries again.
        self._due: set[str] = set()
        # How many dead letters the last round left as they were, and until when no other is worth it.
        self._left, self._rest_until = 0, 0.0
        self._failures = 0
        self._saved = 0

    def run(self) -> None:
        """Do rounds until told to stop. Never raises."""
        while not self._stopping.is_set():
            try:
                pause = self._look()
            except ReplayRuns:
                # Another host, or somebody by hand; if that process died, its lock lapses.
                pause = LOCK_SECS / 3
            except Exception as error:
                expected = isinstance(error, ConserverError | RedisError)
                log.warning("dead letters of storage %r: %s", self.name, error, exc_info=None if expected else error)
                pause = self._failed()
            self._stopping.wait(pause)

    def _look(self) -> float:
        """Do a round if it may be of use; return the seconds until the next look."""
        left = self._queue.dead_count(f"storage:{self.name}")
        if not left:
            self._late.clear()
        # To go through many that have to wait costs more than to see that nothing has come.
        if not left or (left == self._left and time.monotonic() < self._rest_until):
            return LOOK_SECS
        return self._round()

    def _round(self) -> float:
        """Replay once; return the seconds until the next time."""
        self._due.clear()
        self._rest_until = 0.0
        # What has failed waits behind what was not tried yet: whatever is in front, everything gets its turn.
        done = self._replay.run(go_on=True, wanted=lambda entry: entry not in self._late, stopping=self._stopping)
        if not (done.saved or done.failures or done.missing):
            done = self._replay.run(go_on=True, wanted=self._is_due, stopping=self._stopping)
        self._note(done)
        if not (done.saved or done.failures or done.missing) and self._late:
            self._left = done.left
            again_at = min(late.again_at for late in self._late.values())
            self._rest_until = min(again_at, time.monotonic() + LONGEST_PAUSE_SECS)
        if done.saved:
            telemetry.count("conserver.storage.replayed", done.saved, backend=self.name)
            log.warning("storage %r: %d dead letters saved, %d left", self.name, done.saved, done.left)
            self._failures = 0
        elif done.failures:
            if not self._failures:
                message = "storage %r does not take its dead letters, and is tried again until it does: %s"
                log.warning(message, self.name, done.failed)
            return self._failed()
        return LOOK_SECS

    def _failed(self) -> float:
        self._failures += 1
        return _pause(self._failures, LONGEST_PAUSE_SECS)

    def _is_due(self, entry: str) -> bool:
        late = self._late.get(entry)
        if late is not None and time.monotonic() < late.again_at:
            return False
        self._due.add(entry)
        return True

    def _note(self, done: Replayed) -> None:
        """Have what failed wait: not for long where it is about the storage, ever longer where it is about the vCon."""
        now = time.monotonic()
        self._saved += done.saved
        if done.saved:
            for late in self._late.values():
                late.again_at = late.again_at if late.refused else 0.0
        for entry in done.failures:
            late = self._late.setdefault(entry, _Late(self._saved))
            late.refused = late.refused or late.seen < self._saved
            late.seen, late.tries = self._saved, late.tries + 1
            late.again_at = now + _pause(late.tries, LONGEST_LATE_SECS if late.refused else LONGEST_PAUSE_SECS)
        for entry in done.missing:
            # Somebody may store it yet, under the same UUID.
            self._late[entry] = _Late(self._saved, now + LONGEST_LATE_SECS, refused=True)
        for entry in self._due - done.failures.keys() - set(done.missing):
            # Saved: when it comes again, that is another story.
            self._late.pop(entry, None)
        for entry in list(self._late)[: max(0, len(self._late) - _MOST_LATE)]:
            del self._late[entry]


def _pause(failures: int, longest_secs: float) -> float:
    secs = min(longest_secs, FIRST_PAUSE_SECS * 2 ** min(failures - 1, 30))
    return random.uniform(secs / 2, secs)  # noqa: S311  spreads load
