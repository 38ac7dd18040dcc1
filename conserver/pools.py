"""Connections that are kept open for the next one who needs one."""

from __future__ import annotations

import contextlib
import os
import threading
import time
import weakref
from collections.abc import Callable
from typing import Generic, TypeVar

from conserver.errors import StorageError

Connection = TypeVar("Connection")
T = TypeVar("T")

#: Longer than that, and a firewall or the server may have ended it without a word.
_MOST_IDLE_SECS = 60.0


class Pool(Generic[Connection]):
    """Connections to one place, each in the hands of one thread at a time.

    A connection is made by the thread that needs it, so that its error says why there is none.
    """

    def __init__(
        self,
        connect: Callable[[], Connection],
        close: Callable[[Connection], None],
        broken: Callable[[Connection, Exception | None], bool],
        *,
        most: int,
        wait_secs: float,
    ) -> None:
        """*broken* tells whether a connection can no longer be used, before its use (None) or after an error."""
        self._connect = connect
        self._close = close
        self._broken = broken
        self._most = most
        self._wait_secs = wait_secs
        self._free = threading.BoundedSemaphore(most)
        self._idle: list[tuple[float, Connection]] = []
        self._pid = os.getpid()
        weakref.finalize(self, _close_all, self._idle, close, self._pid)

    def run(self, work: Callable[[Connection], T]) -> T:
        """Call *work* with a connection, and once more with a new one if one that was kept turns out to be broken.

        So *work* must be such that it may be repeated. StorageError if all connections stay in use.
        """
        if not self._free.acquire(timeout=self._wait_secs):
            raise StorageError(f"all {self._most} connections have been in use for {self._wait_secs:g} s")
        try:
            kept = self._take()
            if kept is not None:
                try:
                    return self._use(kept, work)
                except Exception as error:
                    if not self._broken(kept, error):
                        raise
                    # What broke this one has broken those that are older.
                    self.close()
            return self._use(self._connect(), work)
        finally:
            self._free.release()

    def close(self) -> None:
        """Close the connections that nobody uses."""
        _close_all(self._idle, self._close, self._pid)

    def _take(self) -> Connection | None:
        if self._pid != os.getpid():
            # After a fork they are still those of the parent, and so is their end: they are kept, and left alone.
            self._pid, self._idle, self._of_parent = os.getpid(), [], self._idle
        while True:
            try:
                since, connection = self._idle.pop()
            except IndexError:
                return None
            if time.monotonic() - since < _MOST_IDLE_SECS and not self._broken(connection, None):
                return connection
            _drop(connection, self._close)

    def _use(self, connection: Connection, work: Callable[[Connection], T]) -> T:
        try:
            result = work(connection)
        except BaseException as error:
            if not isinstance(error, Exception) or self._broken(connection, error):
                _drop(connection, self._close)
            else:
                self._idle.append((time.monotonic(), connection))
            raise
        self._idle.append((time.monotonic(), connection))
        return result


def _close_all(idle: list[tuple[float, Connection]], close: Callable[[Connection], None], pid: int) -> None:
    while idle and pid == os.getpid():
        _drop(idle.pop()[1], close)


def _drop(connection: Connection, close: Callable[[Connection], None]) -> None:
    # It is broken or of no use any more, and nobody waits for its end.
    with contextlib.suppress(Exception):
        close(connection)
