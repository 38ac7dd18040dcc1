"""Recovery: what workers held that are no more goes back, to quarantine, or into the dead letters."""

from __future__ import annotations

import logging
from collections.abc import Collection
from dataclasses import dataclass

from redis.exceptions import ResponseError

from conserver import telemetry
from conserver.board import Entry, board_name
from conserver.claims import reason
from conserver.config import Config
from conserver.lease import Lease, host_of
from conserver.outcomes import now
from conserver.queue import MAX_RETURNS, Queue

log = logging.getLogger(__name__)


@dataclass
class _Ended:
    """A worker that has ended, until the server has taken what is to be done for it."""

    worker: str
    mode: str
    limit: str
    culprits: list[Entry]


class Recovery:
    """Recovers what dead workers of this host held, and those of hosts whose lease has lapsed."""

    def __init__(self, queue: Queue, lease: Lease, host: str) -> None:
        self._queue = queue
        self._lease = lease
        self._host = host
        self._ended: list[_Ended] = []

    def __bool__(self) -> bool:
        """Say whether there is something that the server has not taken yet."""
        return bool(self._ended)

    def note(self, worker: str, mode: str, limit: str, culprits: list[Entry]) -> None:
        """Have what *worker* held recovered in this mode (see lua/recover.lua); *culprits* become dead letters.

        What is over the limit of its crashes or returns becomes one as well, with the reason *limit*.
        """
        self._ended.append(_Ended(worker, mode, limit, culprits))

    def of_ours(self, config: Config) -> None:
        """Do what was noted; ServerError, or the refusal of a list, if some of it has to be done again."""
        for ended in list(self._ended):
            refused: Exception | None = None
            for name in self._queue.lists():
                culprits = {
                    entry.seq: _overdue_reason(entry, ended.worker, config)
                    for entry in ended.culprits
                    if entry.list == board_name(name)
                }
                try:
                    self._recover(config, name, ended.worker, ended.mode, ended.limit, culprits)
                except ResponseError as error:
                    # A key of this list is something else: the other lists do not wait for it.
                    refused = error
            self._ended.remove(ended)
            if refused is not None:
                self._ended.append(ended)
                raise refused

    def of_others(self, config: Config, ours: Collection[str]) -> None:
        """Recover what workers hold whose host has lapsed, and leftovers of this host's but *ours*, which run."""
        members = {name: self._queue.workers(name) for name in self._queue.lists()}
        lapsed = set(self._lease.lapsed(host_of(worker) for workers in members.values() for worker in workers))
        refused: Exception | None = None
        for name, workers in members.items():
            for worker in workers:
                if host_of(worker) in lapsed or (host_of(worker) == self._host and worker not in ours):
                    try:
                        limit = f"it came back more than {MAX_RETURNS} times"
                        self._recover(config, name, worker, "returned", limit, {})
                    except ResponseError as error:
                        # A key of this list is something else: the other lists do not wait for it.
                        refused = error
        if refused is not None:
            raise refused
        for host in lapsed:
            self._lease.forget(host)

    def _recover(
        self, config: Config, name: str, worker: str, mode: str, limit: str, culprits: dict[int, bytes]
    ) -> None:
        why = reason(limit, worker=worker, at=now(), chain=config.chain_of(name) or "")
        returned, suspects, dead = self._queue.recover(name, worker, mode, limit=why, culprits=culprits)
        if returned or suspects or dead:
            log.warning(
                "recovered what worker %s held of %r: %d go back, %d to quarantine, %d dead",
                *(worker, name, returned, suspects, dead),
            )
        if dead:
            telemetry.count("conserver.dlq.count", dead, queue_name=f"DLQ:{name}")


def _overdue_reason(entry: Entry, worker: str, config: Config) -> bytes:
    error = f"{entry.what} did not end within its timeout and blocked its process, which was killed"
    link = entry.what.partition("'")[2].rpartition("'")[0] if entry.what.startswith("link") else ""
    chain = config.chain_of(entry.list) or ""
    return reason(error, link=link, chain=chain, worker=worker, at=now())
