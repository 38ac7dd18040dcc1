"""A steady stream of vCons, from a client that knows which of its pushes were accepted."""

from __future__ import annotations

import contextlib
import json
import random
import threading
import time
from collections import Counter
from uuid import UUID

from redis import Redis
from redis.backoff import NoBackoff
from redis.exceptions import RedisError
from redis.retry import Retry

from tests.host import vcon

TICK_SECS = 0.1
#: What has no place in our model, and has to stay as it is written.
_UNKNOWN = ', "x_numbers": [1.50, 1E-30, 123456789012345678901234567890], "x_nested": {"a": [null, {"b": ""}]}}'
#: Subjects that make the test link end its process, or fail for good.
POISON = ("exit", "segfault", "raise")


def client(url: str) -> Redis:
    """Return a client that repeats nothing by itself: who pushes has to know how often."""
    return Redis.from_url(url, socket_timeout=5, socket_connect_timeout=5, retry=Retry(NoBackoff(), 0))


class Traffic(threading.Thread):
    """Pushes *rate* vCons a second to `in`, and one in ten of them to `rough`, where the poison goes as well.

    One in fifty is pushed twice, and some are stopped by a link or fail once. A vCon is stored and pushed in one
    transaction, so that its key tells later whether a push was accepted that got no answer. It ends after *most*.
    """

    def __init__(self, url: str, rng: random.Random, rate: float, *, most: int | None = None, poison_secs: float = 20):
        super().__init__(name="traffic", daemon=True)
        self._redis = client(url)
        self._rng = rng
        self._rate = rate
        self._most = most or 1 << 62
        self._poison_secs = poison_secs
        self._over = threading.Event()
        self._subjects: dict[str, str] = {}
        self._doubtful: list[tuple[str, str, int]] = []
        self.pushed: dict[str, Counter[str]] = {"in": Counter(), "rough": Counter()}
        self.sent = 0

    def run(self) -> None:
        """Push until told to end."""
        began = time.monotonic()
        due, poison_at = 0.0, began + self._poison_secs / 2
        while not self._over.wait(TICK_SECS) and self.sent < self._most:
            due = min(due + TICK_SECS * self._rate, 2 * self._rate)
            batch = [self._next() for _ in range(min(int(due), self._most - self.sent))]
            due -= len(batch)
            if time.monotonic() > poison_at:
                poison_at += self._poison_secs
                batch.append(("rough", self._rng.choice(POISON), 1))
            self._push(batch)

    def _next(self) -> tuple[str, str, int]:
        rng = self._rng
        subject = rng.choices(["", "flaky", "stop"], [90, 5, 5])[0]
        return "rough" if rng.random() < 0.1 else "in", subject, 2 if rng.random() < 0.02 else 1

    def _push(self, batch: list[tuple[str, str, int]]) -> None:
        sent = []
        with self._redis.pipeline(transaction=True) as pipe:
            for name, subject, times in batch:
                uuid = str(UUID(int=self._rng.getrandbits(128), version=4))
                self._subjects[uuid] = subject
                pipe.set(f"vcon:{uuid}", self.given(uuid))
                pipe.rpush(name, *[uuid] * times)
                sent.append((name, uuid, times))
            self.sent += len(sent)
            try:
                pipe.execute()
            except RedisError:
                self._doubtful += sent
                # A server in trouble is asked again later.
                self._over.wait(0.2)
                return
        for name, uuid, times in sent:
            self.pushed[name][uuid] = times

    def given(self, uuid: str) -> str:
        """Return the document of *uuid* as it was stored."""
        return json.dumps(vcon(self._subjects[uuid], uuid=uuid))[:-1] + _UNKNOWN

    def poison(self) -> set[str]:
        """Return those that have to be dead letters."""
        return {uuid for uuid in self.pushed["rough"] if self._subjects[uuid] in POISON}

    def end(self) -> None:
        """Push no more."""
        self._over.set()
        if self.ident is not None:
            self.join()

    def resolve(self) -> None:
        """Find out which of the pushes without an answer were accepted, once the server does nothing else any more."""
        for name, uuid, times in self._doubtful:
            if self._redis.exists(f"vcon:{uuid}"):
                self.pushed[name][uuid] = times
        self._doubtful = []
        with contextlib.suppress(RedisError):
            self._redis.close()
