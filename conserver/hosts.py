"""Hosts as others see them: what each says of itself, and the end of one that is gone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
from redis.exceptions import ResponseError

from conserver import connection
from conserver.claims import reason
from conserver.errors import ConserverError
from conserver.lease import HOSTS, host_key, host_of
from conserver.outcomes import now
from conserver.queue import MAX_RETURNS, Queue


class HostLives(ConserverError):
    """The host has given a sign of life within its lease: what its workers hold is theirs."""


@dataclass(frozen=True, slots=True)
class Recovered:
    """What a host held: how many claims went back, and how many are dead, since they came back too often."""

    returned: int
    dead: int


class Hosts:
    """Reads what hosts write down, and forgets those that are gone."""

    def __init__(self, url: str, name: str = "hosts") -> None:
        self._client = connection.client(url, name)
        self._queue = Queue(url, name)

    def all(self) -> list[dict[str, Any]]:
        """Return each host by name, whether it is alive, and what it says of itself."""
        hosts = sorted(host.decode("utf-8", "replace") for host in self._client.smembers(HOSTS))
        said: Sequence[bytes | None] = self._client.mget([host_key(host) for host in hosts]) if hosts else []
        return [
            {"host": host, "alive": what is not None, **_status(what)} for host, what in zip(hosts, said, strict=True)
        ]

    def forget(self, host: str) -> Recovered | None:
        """Recover what the workers of a host hold that is gone, and forget it; None if there is no such host.

        Other hosts do the same by themselves. Raises HostLives while its lease stands. May be repeated.
        """
        if self._client.exists(host_key(host)):
            raise HostLives(f"host {host!r} is alive: stop it, or wait until its lease has lapsed")
        held = [
            (name, worker) for name in self._queue.lists() for worker in self._workers(name) if host_of(worker) == host
        ]
        if not held and not self._client.sismember(HOSTS, host):
            return None
        returned = dead = 0
        refused: Exception | None = None
        for name, worker in held:
            limit = reason(f"it came back more than {MAX_RETURNS} times", worker=worker, at=now())
            try:
                counts = self._queue.recover(name, worker, "returned", limit=limit)
            except ResponseError as error:
                # A key of this list is something else: the other lists do not wait for it.
                refused = error
            else:
                returned, dead = returned + counts[0], dead + counts[2]
        if refused is not None:
            raise refused
        self._client.srem(HOSTS, host)
        return Recovered(returned, dead)

    def _workers(self, name: str) -> list[str]:
        try:
            return self._queue.workers(name)
        except ResponseError:
            # A key of another type: nobody can be a member there.
            return []


def _status(said: bytes | None) -> dict[str, Any]:
    # A host of another version may say it in other words.
    try:
        status = msgspec.json.decode(said) if said else {}
    except msgspec.DecodeError:
        status = {}
    return status if isinstance(status, dict) else {}
