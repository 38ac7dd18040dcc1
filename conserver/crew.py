"""The threads of a worker that run chains: as many go to work as are of use.

Waking a thread costs more than a link that does nothing, and threads that all want the interpreter at once slow each
other down. So runs that end at once are worked off by few threads. When none of those that wait was taken for
`STALL_SECS`, twice as many threads go to work.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence

from conserver.run import Run, note_clock

#: How long runs may wait, with none of them taken, while there are idle threads.
STALL_SECS = 0.002
#: How long a run that has ended may wait for others: ten settlements cost little more than one.
BATCH_SECS = 0.01
#: How often it is tried whether half as many threads do.
NARROW_SECS = 0.1


class Crew:
    """Threads that take runs in turn. One thread alone starts runs, looks after the crew and asks what has ended."""

    def __init__(self, threads: int, work: Callable[[Run], None], tell: Callable[[], None]) -> None:
        """*work* runs in a thread; *tell* is called in one when `ended` has something to say."""
        self._work = work
        self._tell = tell
        self._waiting: deque[Run] = deque()
        self._ended: deque[Run] = deque()
        self._idle: list[threading.Lock] = []
        self._parking = threading.Lock()
        self._threads = threads
        self._told = False
        self._width = 1
        self._taken = self._seen = 0
        self._progress = self._narrowed = self._settled = time.monotonic()
        for _ in range(threads):
            self.add()

    def add(self) -> None:
        """Add a thread, in the place of one that was abandoned with its run."""
        threading.Thread(target=self._take_turns, name="chain", daemon=True).start()

    def start(self, runs: Sequence[Run]) -> None:
        """Have *runs* worked on, of which there are never more than threads without work."""
        if not self._waiting:
            self._progress = time.monotonic()
        self._waiting.extend(runs)
        self._wake()

    def ended(self) -> list[Run]:
        """Return the runs that have ended, or none as long as others are about to end that make it a batch."""
        now = time.monotonic()
        if self._waiting and now - self._settled < BATCH_SECS:
            return []
        self._settled = now
        # First, so that what ends from now on is told again.
        self._told = False
        return [self._ended.popleft() for _ in range(len(self._ended))]

    @property
    def patience_secs(self) -> float:
        """How long to wait until the next `look` and `ended`, if nothing is told before."""
        return STALL_SECS if self._waiting or self._ended else float("inf")

    def look(self) -> None:
        """Wake more threads if those that are awake are busy, and fewer from now on if they are not."""
        now = time.monotonic()
        if self._taken != self._seen:
            self._seen, self._progress = self._taken, now
        elif self._waiting and now - self._progress >= STALL_SECS:
            awake = self._threads - len(self._idle)
            self._width = min(2 * max(self._width, awake), self._threads)
            self._progress = self._narrowed = now
            self._wake()
        if now - self._narrowed >= NARROW_SECS:
            self._width = max(1, self._width // 2)
            self._narrowed = now

    def _wake(self) -> None:
        with self._parking:
            awake = self._threads - len(self._idle)
            for _ in range(min(len(self._waiting), self._width - awake, len(self._idle))):
                # The one that went to sleep last.
                self._idle.pop().release()

    def _take_turns(self) -> None:
        note_clock()
        asleep = threading.Lock()
        asleep.acquire()
        while True:
            run = self._next(asleep)
            if run is None:
                # Who can go on at once leaves what has ended to a batch.
                if self._ended and not self._told:
                    self._told = True
                    self._tell()
                asleep.acquire()
                continue
            self._work(run)
            self._ended.append(run)
            if run.abandoned:
                # Somebody else has its place by now.
                self._tell()
                return

    def _next(self, asleep: threading.Lock) -> Run | None:
        """Take the next run, or go to sleep: then None, and *asleep* is released when there is one."""
        with self._parking:
            if not self._waiting:
                self._idle.append(asleep)
                return None
            self._taken += 1
            return self._waiting.popleft()
