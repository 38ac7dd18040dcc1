"""Calls of storages that may hang: each is given up after its time, and its thread is left behind.

A storage of which a call hangs has no more than a few calls under way, and is not asked beyond them: so it costs few
threads however often it is needed, and holds nobody up. Calls may hang for ever though the storage works again, over
connections that are dead; so one more is let through now and then, and if that one ends, the others are forgotten.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from typing import Any

from conserver import deadline
from conserver.components import Storage
from conserver.errors import StorageError
from conserver.reasons import describe

#: Calls of one storage that may be under way while one of them is over its time.
MOST_HANGING = 4
#: How long the last call must be over its time before one more is let through: half as long as the storage hangs, but
#: from the first of these to the second.
FIRST_TRY_SECS = 30.0
LONGEST_TRY_SECS = 1800.0

#: By the identity of the storage, which its calls keep alive: when the time of each call that has not ended is over.
_under_way: dict[int, dict[object, float]] = {}
_lock = threading.Lock()


@contextmanager
def under_way(storage: Storage, timeout_secs: float) -> Iterator[None]:
    """Count what the block does as a call of *storage*; StorageError, and no call, if it hangs.

    What the block asks of others over `outbound` ends with its time: nobody waits for it any more, and what it still
    wrote could be older than what another call has written since.
    """
    call, pid = object(), os.getpid()
    with _lock:
        now = time.monotonic()
        calls = _under_way.setdefault(id(storage), {})
        hangs = len(calls) >= MOST_HANGING and min(calls.values()) < now
        if hangs and not _may_try(calls.values(), now):
            raise StorageError(f"calls of it have not ended within {timeout_secs:g} s; it was not asked")
        calls[call] = now + timeout_secs
    try:
        with deadline.until(now + timeout_secs):
            yield
    finally:
        if os.getpid() != pid:
            # The storage forked and both came back. Only one of them is to go on, and this is not it.
            os._exit(0)
        with _lock:
            ended = time.monotonic()
            due = calls.pop(call, None)
            if hangs and due is not None and ended <= due:
                for other in [other for other, due in calls.items() if due < ended]:
                    del calls[other]
            if not calls and _under_way.get(id(storage)) is calls:
                del _under_way[id(storage)]


def _may_try(dues: Collection[float], now: float) -> bool:
    hanging_secs, last_secs = now - min(dues), now - max(dues)
    return last_secs > min(max(FIRST_TRY_SECS, hanging_secs / 2), LONGEST_TRY_SECS)


class StorageCall:
    """A call of one function of a storage, which begins at once."""

    def __init__(self, storage: Storage, function: Callable[[str, Any], Any], uuid: str, timeout_secs: float) -> None:
        """With the storage's own timeout, or else *timeout_secs*."""
        self._storage = storage
        self._function = function
        self._uuid = uuid
        self._timeout_secs = timeout_secs if storage.timeout is None else storage.timeout
        self._value: Any = None
        self._error: BaseException | None = None
        self._ended = False
        self._began = time.monotonic()
        self._thread = threading.Thread(target=self._run, name=f"storage-{storage.name}", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            with under_way(self._storage, self._timeout_secs):
                self._value = self._function(self._uuid, self._storage.options)
        except BaseException as error:  # noqa: BLE001  storages are other people's code
            self._error = error
        self._ended = True

    def result(self) -> Any:
        """Return what the function returns; StorageError that says why it does not, without secrets.

        It was not asked if it hangs.
        """
        self._thread.join(max(0.0, self._began + self._timeout_secs - time.monotonic()))
        if not self._ended:
            raise StorageError(f"no answer within {self._timeout_secs:g} s")
        if self._error is not None:
            raise StorageError(describe(self._error, self._storage.secrets)) from self._error
        return self._value
