"""The watch: tells a worker that has nothing to do when something was pushed, without writing and without polling.

`CLIENT TRACKING` makes the server say when a key changes that this connection has read. So an LLEN of every list
arms the watch, and a plain RPUSH by any client wakes it within a millisecond. A server that lacks this (before
RESP3, or behind a proxy) is polled, with a pause that grows while nothing happens.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Mapping

from conserver.connection import Wire
from conserver.errors import ServerError

log = logging.getLogger(__name__)

#: Now and then it looks in any case: a message can be lost where a lost vCon may not.
LOOK_AGAIN_SECS = 5.0
_FIRST_PAUSE_SECS = 0.005
_LONGEST_PAUSE_SECS = 0.25


class Watch:
    """A thread that calls *wake* once after `arm`, with the lists that may have entries."""

    def __init__(self, url: str, name: str, wake: Callable[[Iterable[str]], None]) -> None:
        self._wire = Wire(url, f"watch:{name}", resp3=True)
        self._wake = wake
        self._armed = threading.Event()
        self._keys: Mapping[str, str] = {}
        self._tracks = False
        self._connected = False
        threading.Thread(target=self._run, name="watch", daemon=True).start()

    def arm(self, keys: Mapping[str, str]) -> None:
        """Wake the worker when one of *keys*, each with the list it belongs to, has an entry: maybe at once."""
        self._keys = keys
        if keys:
            self._armed.set()

    def _run(self) -> None:
        while True:
            self._armed.wait()
            try:
                lists = self._wait_for_entries()
            except ServerError as error:
                # The worker meets the same trouble and says so.
                log.debug("the watch lost its connection: %s", error)
                self._connected = False
                time.sleep(0.2)
                lists = set(self._keys.values())
            self._armed.clear()
            self._wake(lists)

    def _wait_for_entries(self) -> set[str]:
        if not self._connected:
            reply = self._wire.call([("CLIENT", "TRACKING", "ON")])[0]
            self._tracks = not isinstance(reply, Exception)
            self._connected = True
        pause = _FIRST_PAUSE_SECS
        give_up = time.monotonic() + LOOK_AGAIN_SECS
        keys: Mapping[str, str] = {}
        while time.monotonic() < give_up:
            # Asked again only when the worker has other lists by now: the server remembers what was asked.
            if not self._tracks or keys != self._keys:
                keys = self._keys
                lists = self._with_entries(keys)
                if lists:
                    return lists
            if not self._tracks:
                time.sleep(pause)
                pause = min(pause * 1.5, _LONGEST_PAUSE_SECS)
                continue
            changed = self._wire.wait_for_push(_LONGEST_PAUSE_SECS)
            if changed is not None:
                return {keys[key] for key in changed if key in keys} or set(keys.values())
        return set(keys.values())

    def _with_entries(self, keys: Mapping[str, str]) -> set[str]:
        replies = self._wire.call([("LLEN", key) for key in keys]) if keys else []
        return {name for name, n in zip(keys.values(), replies, strict=True) if isinstance(n, int) and n > 0}
