"""A lock in Redis that is kept for as long as its holder works, and lapses by itself when the holder dies."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from redis.exceptions import RedisError
from redis.lock import Lock

from conserver import scripts
from conserver.errors import ServerError


class _Lock(Lock):
    def do_acquire(self, token: str) -> bool:
        """Take it if nobody has it; redis-py's own way fails on a full server."""
        return bool(scripts.LOCK(self.redis, [self.name], [token, int((self.timeout or 0) * 1000)]))


@contextmanager
def kept_lock(
    client: Any, key: str, lease_secs: float, *, token: str | None = None
) -> Iterator[threading.Event | None]:
    """Hold the lock *key* while the block runs; None if somebody else has it.

    *client* is one that sends each command once. The event is set when the lock could not be kept. After the death of
    its holder it is free within *lease_secs*. The key holds *token*, for scripts that do something only under the lock.
    """
    lock = _Lock(client, key, timeout=lease_secs, blocking=False, thread_local=False)
    if not lock.acquire(token=token):
        yield None
        return
    lost, ended = threading.Event(), threading.Event()

    def keep() -> None:
        while not ended.wait(lease_secs / 3):
            try:
                lock.reacquire()
            except (RedisError, ServerError):
                lost.set()
                return

    keeper = threading.Thread(target=keep, name=f"keep {key}", daemon=True)
    keeper.start()
    try:
        yield lost
    finally:
        ended.set()
        keeper.join()
        try:
            lock.release()
        except (RedisError, ServerError):
            # Lost, or it lapses by itself.
            lost.set()
