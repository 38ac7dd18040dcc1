"""Calls of storages that may hang: each on a thread of its own, left behind when its time is over.

A storage of which many calls hang at the same time is not asked any more until one of them ends, so that it costs a
bounded number of threads however often it is needed.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

from conserver.chain import describe
from conserver.components import Storage
from conserver.errors import StorageError

#: Calls of one storage that are over their time and have not ended.
MOST_HANGING = 8

_lock = threading.Lock()
#: By the identity of the storage, which its hanging calls keep alive: one that is loaded anew begins at none.
_hanging: dict[int, int] = {}


class StorageCall:
    """A call of one function of a storage, which begins at once."""

    def __init__(self, storage: Storage, function: Callable[[str, Any], Any], uuid: str, timeout_secs: float) -> None:
        """With the storage's own timeout, or else *timeout_secs*; StorageError if too many calls of it hang."""
        self._storage = storage
        self._function = function
        self._uuid = uuid
        self._timeout_secs = timeout_secs if storage.timeout is None else storage.timeout
        self._value: Any = None
        self._error: BaseException | None = None
        self._ended = False
        self._late = False
        with _lock:
            hanging = _hanging.get(id(storage), 0)
        if hanging >= MOST_HANGING:
            raise StorageError(
                f"{hanging} calls of it have not ended within {self._timeout_secs:g} s; it was not asked"
            )
        self._began = time.monotonic()
        self._thread = threading.Thread(target=self._run, name=f"storage-{storage.name}", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._value = self._function(self._uuid, self._storage.options)
        except BaseException as error:  # noqa: BLE001  storages are other people's code
            self._error = error
        with _lock:
            self._ended = True
            if self._late:
                _hanging[id(self._storage)] -= 1
                if not _hanging[id(self._storage)]:
                    del _hanging[id(self._storage)]

    def result(self) -> Any:
        """Return what the function returns; StorageError that says why it does not, without secrets."""
        self._thread.join(max(0.0, self._began + self._timeout_secs - time.monotonic()))
        with _lock:
            if not self._ended:
                if not self._late:
                    self._late = True
                    _hanging[id(self._storage)] = _hanging.get(id(self._storage), 0) + 1
                raise StorageError(f"no answer within {self._timeout_secs:g} s")
        if self._error is not None:
            raise StorageError(describe(self._error, self._storage.secrets)) from self._error
        return self._value
