"""A worker: one process that claims, runs chains on its threads, and settles.

One thread, the one in `Worker.run`, speaks the queue protocol: it settles what the other threads have finished and
claims for those that are free, in one round trip. So the bookkeeping needs no locks, and throughput grows with
the number of threads. Duties: claim; start; settle; abandon what is over its time; stop when told to or when the
supervisor is gone.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import replace
from queue import Empty, SimpleQueue
from typing import Any

from conserver import components, crashpoints
from conserver.board import Board
from conserver.chain import Chain
from conserver.claims import Claim, Settlement
from conserver.config import Config
from conserver.connection import Command, is_server_error
from conserver.crew import Crew
from conserver.errors import ServerError
from conserver.intake import Intake
from conserver.outcomes import Reporter, settlement
from conserver.pauses import Pauses
from conserver.queue import Queue
from conserver.run import Outcome, Run
from conserver.session import NotAMember, Session
from conserver.settings import Settings
from conserver.store import VconStore
from conserver.watch import Watch
from conserver.workload import chains_of, load, read_through
from conserver.writes import Writes

log = logging.getLogger(__name__)

#: How often deadlines are looked at.
TICK_SECS = 0.25
#: The largest vCon that is read ahead: all that is claimed at once is in memory then.
MOST_AHEAD_BYTES = 65_536
#: How long a list that cannot be read (a key of another type) is left alone.
REST_SECS = 5.0
#: A process with more threads that did not come back than this is replaced.
MAX_ABANDONED = 8
#: How long until chains that could not be imported are tried again.
LOAD_AGAIN_SECS = 10.0
#: A quarantine with nothing to do ends.
QUARANTINE_IDLE_SECS = 3.0


def slots_for(threads: int) -> int:
    """Return how many slots of the board a worker with so many threads may need."""
    # An abandoned run keeps its slot until its thread comes back. Links and storages have a limit each.
    return 2 * MAX_ABANDONED + 3 * threads


class Worker:
    """The state of one worker process. All methods but `_work` run on the one protocol thread."""

    def __init__(
        self,
        name: str,
        url: str,
        settings: Settings,
        board: Board,
        *,
        quarantine: bool,
        retire: Callable[[], None],
    ) -> None:
        """*retire* tells the supervisor that this process finishes what it has and wants to be replaced."""
        self.settings = settings
        self.quarantine = quarantine
        threads = self.threads = 1 if quarantine else settings.concurrency
        self.inbox: SimpleQueue[Callable[[], None]] = SimpleQueue()
        self.queue = Queue(url, f"worker:{name}")
        self.store = VconStore(
            url,
            settings,
            lambda uuid: read_through(self.storages, uuid, timeout_secs=settings.storage_timeout_secs),
        )
        self.session = Session(url, name, suspects=quarantine)
        self.intake = Intake(threads)
        self.reporter = Reporter(name, self.store, settings)
        self.pauses = Pauses(self.queue, self.intake, settings.pause_secs)
        self.writes = Writes(self.queue)
        self.board = board
        self.watch = Watch(url, name, wake=self._wake)
        self.chains: dict[str, Chain] = {}
        self.storages: list[components.Storage] = []
        self.runs: dict[tuple[str, int], Run] = {}
        self.slots = list(range(board.slots))
        self.crew = Crew(threads, self._work, tell=lambda: self.inbox.put(_nothing))
        self.free = threads
        self.abandoned: list[Run] = []
        self.pending: list[tuple[Run, Settlement]] = []
        self.unreported: list[Run] = []
        self.saved: list[Run] = []
        self.expiring: list[Command] = []
        self.refused: list[tuple[float, Run]] = []
        self.backlog: list[Claim] = []
        self.late: list[threading.Thread] = []
        self.stopping = False
        self.give_up = float("inf")
        self.idle_since = time.monotonic()
        self._trouble = 0
        self._looked = time.monotonic()
        self._tell_to_retire = retire
        self._newest: Config | None = None

    # The hot loop

    def run(self) -> None:
        """Claim, run and settle until told to stop and nothing is in hand."""
        while not (
            self.stopping and len(self.runs) == len(self.refused) and not (self.pending or self.expiring or self.saved)
        ):
            claiming = not self.stopping and self.free > 0 and not self.backlog and self.writes.accepted()
            wanted = self.intake.wanted(self.free) if claiming else {}
            if not (wanted or self.pending or self.expiring or self.saved):
                self.watch.arm(self.session.wake_keys(self.intake.empty()) if claiming else {})
                self._collect(TICK_SECS if self.runs or self.writes.doubtful else 1.0)
                self._look_after_deadlines()
                continue
            expiring, self.expiring = self.expiring, []
            versions = [self.store.version_command(run.uuid) for run in self.saved]
            trip = self.session.trip([end for _, end in self.pending], wanted, [*versions, *expiring])
            self.reporter.expired(expiring, trip.also[len(versions) :])
            self._settled(trip.results)
            self._look_at_versions(trip.also[: len(versions)])
            self._start(trip.claims, wanted)
            self._report()
            if trip.trouble or trip.unreadable:
                self._troubled(trip.trouble, trip.unreadable)
            elif self._trouble and wanted:
                # Not for settlements alone: it may refuse claims only, and would seem to work every other time.
                log.warning("the server works again")
                self._trouble = 0
            self._collect(0.0)
            self._look_after_deadlines()

    def _collect(self, timeout_secs: float) -> None:
        """See what has happened, for so long at most: orders are carried out, runs that have ended are settled next."""
        with suppress(Empty):
            order = self.inbox.get(timeout=min(timeout_secs, self.crew.patience_secs)) if timeout_secs else None
            while True:
                if order is not None:
                    order()
                order = self.inbox.get_nowait()
        for run in self.crew.ended():
            self._finished(run)
        self.crew.look()

    def _start(self, claims: list[Any], wanted: Mapping[str, int]) -> None:
        """Give each claim to a free thread, after one look whether the vCons are there."""
        got: dict[str, int] = {}
        for claim in claims:
            got[claim.list] = got.get(claim.list, 0) + 1
        self.intake.took(wanted, got)
        if self.stopping:
            # They stay held, and are given back when this process has ended.
            self.backlog += claims
            return
        # Claims whose reply was lost come beside those that are asked for, so they may be more than there are threads.
        claims = self.backlog + claims
        self.backlog = claims[self.free :]
        claims = claims[: self.free]
        runs = []
        chains = [self.chains[self.intake.chain_of(claim.list)] for claim in claims]
        sizes = [MOST_AHEAD_BYTES if chain.reads else 0 for chain in chains]
        for claim, chain, found in zip(claims, chains, self.session.found(claims, sizes, self._report), strict=True):
            run = Run(claim, chain, self.store, found=found)
            self.free -= 1
            if run.uuid and claim.readable:
                self._prepare(run)
                runs.append(run)
            else:
                # Not a UUID, or a record of another version: nothing to run.
                self._end(run, self.reporter.unusable(run))
        self.crew.start(runs)

    def _settled(self, results: list[int | str | None]) -> None:
        """Look at what became of the settlements that were sent."""
        sent, self.pending = self.pending[: len(results)], self.pending[len(results) :]
        for (run, end), result in zip(sent, results, strict=True):
            if result is None:
                self.pending.append((run, end))
            elif isinstance(result, str):
                self._refused(run, result)
            else:
                self.runs.pop((run.claim.list, run.claim.seq), None)
                run.settled = result == 1
                self.unreported.append(run)

    def _report(self) -> None:
        """Say what became of what is settled; best done while the server works on something."""
        if self.unreported:
            done, self.unreported = self.unreported, []
            self.expiring += self.reporter.report(done)
            for run in done:
                self.pauses.note(run)

    # What happens to a run

    def _prepare(self, run: Run) -> None:
        slot = run.slot = self.slots.pop()
        claim = run.claim
        self.board.take(slot, claim.seq, claim.list, run.uuid)
        run.board = lambda what, deadline: self.board.enter(slot, what, deadline)
        run.take_note = lambda note: self.queue.note(claim, note)
        self.runs[claim.list, claim.seq] = run

    @staticmethod
    def _work(run: Run) -> None:
        run.thread = threading.current_thread()
        try:
            outcome = run.chain.run(run)
        except BaseException as error:
            # Not even an error of ours may cost a thread, or the claim that it has in hand.
            log.exception("a run ended in a way that it should not")
            outcome = Outcome("failed", run.uuid, f"internal error: {type(error).__name__}")
        if not run.abandoned:
            run.outcome = outcome
        # At once: it is over before the next one, which this thread may be stuck in.
        run.board(b"", 0.0)

    def _finished(self, run: Run) -> None:
        self.late += run.late
        run.late = []
        self.board.clear(run.slot)
        if run.outcome is not None and run.outcome.saved and not run.abandoned:
            self.saved.append(run)
            return
        self.slots.append(run.slot)
        if run.abandoned:
            self.abandoned.remove(run)
        elif run.outcome is not None:
            self._end(run, run.outcome)

    def _look_at_versions(self, replies: list[Any]) -> None:
        """End the runs whose storages hold the newest version, and have the others save it."""
        asked, self.saved = self.saved[: len(replies)], self.saved[len(replies) :]
        for run, newest in zip(asked, replies, strict=True):
            if isinstance(newest, Exception):
                error = ServerError(str(newest)) if is_server_error(newest) else newest
                outcome: Outcome | None = run.chain.failed(run, error)
            else:
                outcome = run.stands(newest)
            if outcome is None:
                self.crew.start([run])
            else:
                self.slots.append(run.slot)
                self._end(run, outcome)

    def _end(self, run: Run, outcome: Outcome) -> None:
        """Free the thread and have the claim settled with the next trip."""
        self.free += 1
        self.idle_since = time.monotonic()
        if outcome.server_failed:
            # If the server takes a write at this very moment, it may be something about this vCon.
            outcome = replace(outcome, blameless=self.writes.to_blame())
        elif outcome.kind in ("delivered", "stopped"):
            self.writes.went_well()
        self.intake.settled(run.chain.name)
        self._settle(run, self.pauses.spare(run, outcome))

    def _settle(self, run: Run, outcome: Outcome) -> None:
        run.outcome = outcome
        self.runs[run.claim.list, run.claim.seq] = run
        self.pending.append((run, settlement(run, outcome, self.reporter.worker)))

    def _refused(self, run: Run, words: str) -> None:
        """A target of the settlement cannot take it: the run has failed; if that is refused as well, it goes back."""
        log.error("vCon %s could not be settled: %s", run.uuid, words, extra={"fields": run.fields()})
        if run.outcome is not None and run.outcome.kind == "returned":
            # Not even that: it stays held, and is tried again later.
            self.refused.append((time.monotonic() + REST_SECS, run))
        elif run.outcome is not None and run.outcome.kind == "failed":
            self.pauses.pause(run.chain, f"dead letters of list {run.claim.list!r} are refused: {words}")
            self._settle(run, replace(run.outcome, kind="returned", error=words))
        else:
            self._settle(run, Outcome("failed", run.uuid, f"could not be delivered: {words}"))

    def _look_after_deadlines(self) -> None:
        """End the claims of runs that are over their time, and leave their threads behind."""
        if time.monotonic() - self._looked < TICK_SECS:
            return
        if self.runs:
            # While the server is silent, links that wait for it can do nothing.
            self.session.ping()
        now = time.monotonic()
        late, self._looked = now - self._looked, now
        waited, self.session.waited_secs = self.session.waited_secs, 0.0
        due = [run for at, run in self.refused if now > at]
        self.refused = [(at, run) for at, run in self.refused if now <= at]
        for run in due:
            self._settle(run, Outcome("returned", run.uuid, "it could not be settled before", note=run.note()))
        self._put_off(late, waited)
        for run in [run for run in self.runs.values() if run.outcome is None]:
            if now > run.deadline or now > self.give_up:
                self._abandon(
                    run, run.overdue() if now > run.deadline else Outcome("returned", run.uuid, note=run.note())
                )
        if self.quarantine and not self.runs and now - self.idle_since > QUARANTINE_IDLE_SECS:
            self.stopping = True
        self.late = [thread for thread in self.late if thread.is_alive()]
        left = [*self.late, *(run.thread for run in self.abandoned)]
        # All threads may meet a storage before it is known to hang; after that it costs no more of them.
        in_storages = len(self.late) + sum(run.storage is not None for run in self.abandoned)
        too_many = len(left) - in_storages > MAX_ABANDONED or in_storages > MAX_ABANDONED + self.threads
        if too_many or any(_burns(thread) for thread in left):
            self._retire()

    def _put_off(self, late: float, waited: float) -> None:
        """Give runs the time back in which the server was silent, or the whole process was stopped."""
        if late - waited > 1.0 + TICK_SECS or waited > 0:
            for run in [run for run in self.runs.values() if run.outcome is None]:
                if waited > 0:
                    run.extend(waited, server=True)
                if late - waited > 1.0 + TICK_SECS:
                    run.extend(late - waited, server=False)

    def _abandon(self, run: Run, outcome: Outcome) -> None:
        run.abandoned = True
        self.board.clear(run.slot)
        self.abandoned.append(run)
        self.crew.add()
        self._end(run, outcome)

    # Orders and trouble

    def _troubled(self, trouble: Exception | None, unreadable: Mapping[str, str]) -> None:
        for name, words in unreadable.items():
            if self.intake.rest(name, REST_SECS):
                log.error("list %r cannot be read and is left alone: %s", name, words)
        if trouble is None:
            return
        if isinstance(trouble, NotAMember):
            raise trouble
        self._trouble += 1
        if self._trouble == 1:
            log.error("the server does not work; claims wait until it does: %s", trouble)
        # With jitter, so that all workers do not come back in the same moment.
        self._collect(min(2.0, 0.05 * 2 ** min(self._trouble, 6)) * random.uniform(0.5, 1.0))  # noqa: S311

    def _wake(self, lists: Iterable[str]) -> None:
        self.inbox.put(lambda: self.intake.look(lists))

    def stop(self, within_secs: float) -> None:
        """Claim no more; what still runs after *within_secs* is given back."""
        if crashpoints.ARMED:
            crashpoints.reach("worker.draining")
        self.stopping = True
        self.give_up = min(self.give_up, time.monotonic() + within_secs)

    def _retire(self) -> None:
        if not self.stopping:
            left = len(self.abandoned) + len(self.late)
            log.warning("%d threads did not come back; this process finishes and is replaced", left)
            self.stopping = True
            self._tell_to_retire()

    def use(self, config: Config) -> None:
        """Take *config* for what is claimed from now on; imports happen on the thread that calls this."""
        chains, storages = load(config, self.settings)
        lists = chains_of(config, self.settings)
        self._newest = config

        def switch() -> None:
            if config is not self._newest:
                # It has waited for the server for too long.
                return
            try:
                self.session.join([name for chain in chains for name in lists[chain]])
            except ServerError as error:
                log.warning("the config waits for the server: %s", error)
                later = threading.Timer(1.0, lambda: self.inbox.put(switch))
                later.daemon = True
                later.start()
                return
            self.chains.update(chains)
            self.storages = storages
            self.intake.set_chains((chains[name].config, list(lists[name])) for name in chains)

        self.inbox.put(switch)
        if chains.keys() != lists.keys():
            # A module that is missing may come: somebody copies files.
            again = threading.Timer(LOAD_AGAIN_SECS, lambda: self.use(config) if config is self._newest else None)
            again.daemon = True
            again.start()


def _nothing() -> None:
    """Do nothing: an order that only wakes the protocol thread."""


def _burns(thread: threading.Thread | None) -> bool:
    """Say whether an abandoned thread still uses the processor: it would slow down all others for ever."""
    clock = getattr(thread, "conserver_clock", None)
    if thread is None or clock is None or not thread.is_alive():
        return False
    try:
        used = time.clock_gettime(clock)
    except OSError:
        # It has ended in this moment.
        return False
    before, seen = getattr(thread, "_conserver_cpu", (used, time.monotonic()))
    if time.monotonic() - seen > 1.0 or not hasattr(thread, "_conserver_cpu"):
        thread._conserver_cpu = (used, time.monotonic())  # type: ignore[attr-defined]
    return used - before > 0.5
