"""Followers: each pulls the vCons of an egress list of another conserver into a list of ours, and never stops for long.

A vCon is fetched, checked, stored and pushed, and only then is the other side told that it is done. Where that has no
safe egress, what it gave is written down before anything else is done with it. `remote` speaks to the other
conserver, `record` has what is in hand, `keep` stores, this module does the rounds.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache

from redis.exceptions import RedisError

from conserver import components, outbound, telemetry
from conserver.claims import dead_list, is_uuid
from conserver.config import Config
from conserver.configmodel import FollowerConfig
from conserver.errors import ConserverError, NotAVcon, OutboundError, ServerError, StorageError, VconConflict
from conserver.followers.keep import keep
from conserver.followers.record import Batch, Record
from conserver.followers.remote import UUIDS_SECS, Remote, is_for_all, may_have_taken
from conserver.settings import Settings
from conserver.store import VconStore
from conserver.stored import digest
from conserver.workload import read_through

log = logging.getLogger(__name__)

#: How long the other side is asked to keep for us what we pull.
LEASE_SECS = 300.0
#: The pause after a round that failed; it doubles up to the second, or to `pulling_interval` if that is longer.
FIRST_PAUSE_SECS = 1.0
LONGEST_PAUSE_SECS = 60.0
#: The same for one vCon that cannot be fetched while others can.
FIRST_LATE_SECS = 5.0
LONGEST_LATE_SECS = 600.0
#: So many failures while others went through make a vCon a dead letter.
MAX_TRIES = 10
#: So many failures in a row end a round: it is not about these vCons.
MOST_IN_A_ROW = 3
#: No request for a pause is obeyed for longer.
LONGEST_ASKED_SECS = 3600.0
#: How long `serve` waits for rounds that run when it is to stop.
STOP_SECS = 5.0
_LEAST_PAUSE_SECS = 0.1
_LOOK_SECS = 0.1
_MOST_LATE = 1000


def serve(url: str, settings: Settings, config: Config, stopping: threading.Event) -> None:
    """Run the followers of *config*, each on a thread of its own, until *stopping* is set.

    What is in hand then is given back, or goes on where it was with the next start.
    """
    outbound.configure(config.outbound)

    @lru_cache(maxsize=1)
    def storages() -> list[components.Storage]:
        return _storages(config)

    # They are asked for a vCon that was followed before and is not in Redis any more, so hardly ever.
    store = VconStore(url, settings, lambda uuid: read_through(storages(), uuid))
    followers = [Follower(url, settings, entry, store, stopping) for entry in config.followers.values()]
    threads = [threading.Thread(target=f.run, name=f"follower-{f.name}", daemon=True) for f in followers]
    for thread in threads:
        thread.start()
    while not stopping.is_set():
        # Not by its wait: the handler of a signal that sets it may find its lock held, or not run before the wait ends.
        time.sleep(_LOOK_SECS)
    give_up = time.monotonic() + STOP_SECS
    for follower, thread in zip(followers, threads, strict=True):
        thread.join(max(0.0, give_up - time.monotonic()))
        if follower.taking.is_set():
            # Whatever the answer has is on no list any more: it is worth some patience.
            thread.join(UUIDS_SECS)


def _storages(config: Config) -> list[components.Storage]:
    components.use_folder(config.folder)
    storages = []
    for storage in config.storages.values():
        # One that cannot be imported was reported by those who save to it.
        with suppress(ConserverError):
            storages.append(components.load_storage(storage))
    return storages


@dataclass
class _Late:
    """A vCon that could not be fetched while others could."""

    followed: int
    """How many others had gone through when it failed last."""
    pause_secs: float
    tries: int = 0
    again_at: float = 0.0


class Follower:
    """One entry of the section `followers`. One process at a time does its rounds."""

    def __init__(
        self,
        url: str,
        settings: Settings,
        config: FollowerConfig,
        store: VconStore,
        stopping: threading.Event | None = None,
    ) -> None:
        self.name = config.name
        self.taking = threading.Event()
        """Set while entries are on the way that nobody else has any more."""
        self._config = config
        self._lease_secs = settings.lease_secs
        self._store = store
        self._remote = Remote(config, settings)
        self._record = Record(url, config.name, digest(f"{config.url}\n{config.egress_list}".encode()))
        self._stopping = stopping or threading.Event()
        self._lost = threading.Event()
        self._late: dict[str, _Late] = {}
        self._followed = 0
        self._failures = 0
        self._doubtful = 0
        self._settled = False

    def run(self) -> None:
        """Do rounds until told to stop, while this is the one process that follows. Never raises."""
        while not self._stopping.is_set():
            pause = self._lease_secs / 3
            try:
                with self._record.alone(self._lease_secs) as lost:
                    if lost is not None:
                        self._lost, self._settled = lost, False
                        while not self._enough():
                            self._stopping.wait(self._round())
            except Exception as error:  # noqa: BLE001  the top of a thread that nobody else would start again
                pause = self._failed(error)
            self._stopping.wait(pause)

    def _round(self) -> float:
        """Do one round; return the seconds until the next. What goes wrong is said once."""
        try:
            self.pull()
        except Exception as error:  # noqa: BLE001  a follower that stops for an error is one that nobody misses in time
            return self._failed(error)
        if self._failures and not self._late:
            self._works_again()
        return max(self._config.pulling_interval, _LEAST_PAUSE_SECS)

    def _failed(self, error: Exception) -> float:
        self._failures += 1
        longest = max(LONGEST_PAUSE_SECS, self._config.pulling_interval)
        pause = min(longest, FIRST_PAUSE_SECS * 2 ** min(self._failures - 1, 30))
        if self._failures == 1 and not self._enough():
            message = "follower %r does not work, and tries again until it does: %s"
            expected = isinstance(error, ConserverError | RedisError)
            log.warning(message, self.name, error if expected else repr(error), exc_info=None if expected else error)
        telemetry.count("conserver.follower.count_rounds_failed", follower=self.name)
        asked = error.retry_after_secs if isinstance(error, OutboundError) else None
        return max(random.uniform(pause / 2, pause), min(asked or 0.0, LONGEST_ASKED_SECS))  # noqa: S311  spreads load

    def _enough(self) -> bool:
        return self._stopping.is_set() or self._lost.is_set()

    def pull(self) -> int:
        """Do one round: end what an earlier one has left, take more, follow it; return how many were followed.

        Raises OutboundError, ServerError and the like if the round could not do its work; nothing is lost by that.
        """
        before, failed = self._followed, None
        if not self._settled:
            self._settle_in()
        self._end_leases()
        failed = self._follow(self._record.given, self._record.left(self._record.given))
        if not self._enough():
            failed = self._take_more(hurt=bool(failed or self._failures)) or failed
        if failed is not None and self._followed == before:
            raise failed
        if self._followed > before and self._failures:
            for late in self._late.values():
                # Most of them failed for a reason that is over.
                late.again_at = 0.0
            self._works_again()
        return self._followed - before

    def _works_again(self) -> None:
        log.warning("follower %r works again", self.name)
        self._failures, doubtful, self._doubtful = 0, self._doubtful, 0
        if doubtful:
            self._may_be_lost(doubtful, "there was no usable answer, again and again")

    def _settle_in(self) -> None:
        """Look after what the process before has left unclear."""
        asked = self._record.asked()
        if asked:
            self._may_be_lost(asked, "a process died while it took them")
            self._record.end_asking()
        why = "it was taken from another conserver or list than this follower has now, so it cannot be fetched"
        for entry in self._record.strangers():
            self._bury(self._record.given, entry, why)
        self._record.settle_in()
        self._settled = True

    # Taking

    def _take_more(self, *, hurt: bool) -> Exception | None:
        most = self._config.fetch_vcon_limit
        # Those that are late are given again and again, and keep nobody else from his turn.
        lease = self._remote.lease(most + min(len(self._late), 100), LEASE_SECS)
        if lease is None:
            # No more than one, as long as it is not known whether that can be fetched either.
            self._take(1 if hurt else most)
            return self._follow(self._record.given, self._record.left(self._record.given))
        if not lease.entries:
            return None
        until = time.monotonic() + lease.secs / 2
        batch = self._record.begin(lease.id, lease.entries, lease.secs)
        try:
            failed = self._follow(batch, lease.entries, until)
        except (ConserverError, RedisError):
            with suppress(ConserverError, RedisError):
                self._end_leases()
            raise
        self._end_leases()
        return failed

    def _take(self, most: int) -> None:
        """Take entries for good, and write them down before anything else."""
        self._record.begin_to_ask(most)
        self.taking.set()
        try:
            try:
                entries = self._remote.take(most)
            except OutboundError as error:
                if may_have_taken(error):
                    self._may_be_lost(most, "there was no usable answer")
                with suppress(ServerError, RedisError):
                    self._record.end_asking()
                raise
            self._write_down(entries)
        finally:
            self.taking.clear()

    def _write_down(self, entries: Sequence[str]) -> None:
        while True:
            try:
                return self._record.end_asking(entries)
            except (ServerError, RedisError) as error:
                if not entries:
                    raise
                # Nobody else has them: nothing is as important as this.
                if self._stopping.wait(0.5):
                    message = "follower %r: these were taken and could not be written down (%s), push them yourself: %s"
                    log.error(message, self.name, error, " ".join(entries))
                    raise

    def _may_be_lost(self, most: int, why: str) -> None:
        if self._failures:
            # Each further try may cost one more; how many they were is told in the end.
            self._doubtful += most
            return
        log.error(
            "follower %r: up to %d entries may be lost that were taken from list %r of the other conserver: %s",
            *(self.name, most, self._config.egress_list, why),
        )

    def _end_leases(self) -> None:
        """Tell the other side what of its leases is done, and give it back the rest."""
        for batch in self._record.leases():
            try:
                done, left = self._record.done(batch), self._record.left(batch)
                stands = self._remote.acknowledge(batch.lease, done) if done else True
                if left and stands:
                    self._remote.give_back(batch.lease, left)
            except OutboundError:
                if time.time() < batch.lapses_at:
                    raise
                # What was not acknowledged has gone back by itself.
            self._record.end(batch)

    # Following

    def _follow(self, batch: Batch, entries: Sequence[str], until: float = float("inf")) -> Exception | None:
        """Follow *entries* one by one; return the last failure of one of them, or raise one that concerns all."""
        failed, in_a_row = None, 0
        for entry in entries:
            if self._enough() or time.monotonic() > until:
                break
            late = self._late.get(entry)
            if late is not None and late.again_at > time.monotonic():
                continue
            try:
                self._follow_one(batch, entry)
                in_a_row = 0
            except (OutboundError, StorageError, VconConflict) as error:
                if is_for_all(error):
                    raise
                self._put_off(batch, entry, error)
                failed, in_a_row = error, in_a_row + 1
                if in_a_row == MOST_IN_A_ROW:
                    raise
        return failed

    def _follow_one(self, batch: Batch, entry: str) -> None:
        try:
            if not is_uuid(entry):
                raise NotAVcon(f"the entry {entry[:60]!r} is not a UUID")
            vcon = self._remote.vcon(entry)
            if vcon is None:
                if self._record.drop(batch, entry):
                    log.warning("follower %r: vCon %s is not there any more: dropped", self.name, entry)
                    self._count("gone")
            else:
                keep(vcon, self._store, self._record)
                if self._record.push(batch, entry, self._config.follower_ingress_list, str(vcon.uuid)):
                    self._count("pushed")
        except NotAVcon as error:
            self._bury(batch, entry, str(error))
        self._late.pop(entry, None)
        self._followed += 1

    def _put_off(self, batch: Batch, entry: str, error: Exception) -> None:
        if len(self._late) >= _MOST_LATE:
            self._late.clear()
        late = self._late.setdefault(entry, _Late(self._followed, FIRST_LATE_SECS))
        # While nobody gets through it is not the fault of this one.
        late.tries += self._followed > late.followed
        late.followed = self._followed
        late.again_at = time.monotonic() + random.uniform(late.pause_secs / 2, late.pause_secs)  # noqa: S311
        late.pause_secs = min(2 * late.pause_secs, LONGEST_LATE_SECS)
        log.debug("follower %r: vCon %s is tried again later: %s", self.name, entry, error)
        if late.tries >= MAX_TRIES:
            self._bury(batch, entry, f"it failed {late.tries} times while others did not: {error}")
            del self._late[entry]

    def _bury(self, batch: Batch, entry: str, why: str) -> None:
        if self._record.bury(batch, entry, why):
            dead = dead_list(self._record.name)
            log.error("dead letter in %s: %s", dead, why, extra={"fields": {"vcon": entry, "follower": self.name}})
            telemetry.count("conserver.dlq.count", queue_name=dead)
            self._count("dead")

    def _count(self, outcome: str) -> None:
        telemetry.count("conserver.follower.count_vcons_received", follower=self.name, outcome=outcome)
