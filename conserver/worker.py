"""A worker: one process that claims, runs chains on its threads, and settles.

One thread, the one in `Worker.run`, speaks the queue protocol: it settles what the other threads have finished and
claims for those that are free, in one round trip. So the bookkeeping needs no locks, and throughput grows with
the number of threads. Duties: claim; start; settle; abandon what is over its time; stop when told to or when the
supervisor is gone.
"""

from __future__ import annotations

import logging
import os
import random
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from queue import Empty, SimpleQueue
from typing import Any

from conserver import components, outbound, telemetry
from conserver.board import Board
from conserver.chain import Chain
from conserver.claims import Claim, Settlement
from conserver.config import Config
from conserver.errors import ConfigError, ServerError
from conserver.intake import Intake
from conserver.outcomes import Reporter, settlement
from conserver.pauses import Pauses
from conserver.queue import Queue
from conserver.run import Outcome, Run
from conserver.session import NotAMember, Session
from conserver.settings import Settings
from conserver.store import VconStore
from conserver.watch import Watch

log = logging.getLogger(__name__)

#: How often deadlines are looked at.
TICK_SECS = 0.25
#: How long a list that cannot be read (a key of another type) is left alone.
REST_SECS = 5.0
#: The longest that nothing is claimed because the server has failed what ran.
LONGEST_AILING_SECS = 60.0
#: A process with more threads that did not come back than this is replaced.
MAX_ABANDONED = 8
#: A quarantine with nothing to do ends.
QUARANTINE_IDLE_SECS = 3.0
#: The exit code of a worker that was taken for dead by others.
EXIT_NOT_A_MEMBER = 75


@dataclass
class Spec:
    """What a worker process is started with; it travels to it by pickle."""

    name: str
    url: str
    settings: Settings
    config: Config
    board_memory: Any
    slots: int
    quarantine: bool = False


def chains_of(config: Config, settings: Settings) -> dict[str, list[str]]:
    """Return the chains that this host works on, each with the lists that it claims from.

    Of two chains with the same ingress list the last one has it, as in the existing conserver.
    """
    chains: dict[str, list[str]] = {}
    for name, chain in config.chains.items():
        if not chain.enabled or name in config.waiting or (settings.chains and name not in settings.chains):
            continue
        chains[name] = [ingress for ingress in chain.ingress_lists if config.chain_of(ingress) == name]
    return chains


class Worker:
    """The state of one worker process. All methods but `_work` run on the one protocol thread."""

    def __init__(self, spec: Spec, supervisor: Connection) -> None:
        self.settings = spec.settings
        self.quarantine = spec.quarantine
        threads = 1 if spec.quarantine else spec.settings.concurrency
        self.inbox: SimpleQueue[Callable[[], None] | Run] = SimpleQueue()
        self.queue = Queue(spec.url, f"worker:{spec.name}")
        self.store = VconStore(spec.url, spec.settings, read_through=lambda uuid: read_through(self.storages, uuid))
        self.session = Session(spec.url, spec.name, suspects=spec.quarantine)
        self.intake = Intake(threads)
        self.reporter = Reporter(spec.name, self.store, spec.settings)
        self.pauses = Pauses(self.queue, self.intake, spec.settings.pause_secs)
        self.board = Board(spec.slots, memory=spec.board_memory)
        self.watch = Watch(spec.url, spec.name, wake=self._wake)
        self.chains: dict[str, Chain] = {}
        self.storages: list[components.Storage] = []
        self.runs: dict[tuple[str, int], Run] = {}
        self.slots = list(range(spec.slots))
        self.jobs: SimpleQueue[Run | None] = SimpleQueue()
        self.free = threads
        self.abandoned: list[tuple[threading.Thread | None, Run]] = []
        self.pending: list[tuple[Run, Settlement]] = []
        self.refused: list[tuple[float, Run]] = []
        self.backlog: list[Claim] = []
        self.late: list[threading.Thread] = []
        self.stopping = False
        self.give_up = float("inf")
        self.idle_since = time.monotonic()
        self._trouble = 0
        self._ailing = 0
        self._ailing_until = 0.0
        self._looked = time.monotonic()
        self._supervisor = supervisor
        self._sending = threading.Lock()
        self._threads: dict[Run, threading.Thread] = {}
        for _ in range(threads):
            self._add_thread()

    # The hot loop

    def run(self) -> None:
        """Claim, run and settle until told to stop and nothing is in hand."""
        while not (self.stopping and len(self.runs) == len(self.refused) and not self.pending):
            claiming = not self.stopping and self.free > 0 and not self.backlog and self._server_works()
            wanted = self.intake.wanted(self.free) if claiming else {}
            if not wanted and not self.pending:
                self.watch.arm(self.session.wake_keys(self.intake.empty()) if claiming else {})
                self._collect(TICK_SECS if self.runs or self._ailing else 1.0)
                self._look_after_deadlines()
                continue
            trip = self.session.trip([end for _, end in self.pending], wanted)
            self._settled(trip.results)
            self._start(trip.claims, wanted)
            if trip.trouble or trip.unreadable:
                self._troubled(trip.trouble, trip.unreadable)
            elif self._trouble:
                log.warning("the server works again")
                self._trouble = 0
            self._collect(0.0)
            self._look_after_deadlines()

    def _collect(self, timeout_secs: float) -> None:
        """Take what has happened from the inbox: finished runs become settlements, orders are carried out."""
        try:
            item = self.inbox.get(timeout=timeout_secs) if timeout_secs else self.inbox.get_nowait()
            while True:
                if isinstance(item, Run):
                    self._finished(item)
                else:
                    item()
                item = self.inbox.get_nowait()
        except Empty:
            pass

    def _start(self, claims: list[Any], wanted: Mapping[str, int]) -> None:
        """Give each claim to a free thread, after one look whether the vCons are there."""
        got: dict[str, int] = {}
        for claim in claims:
            got[claim.list] = got.get(claim.list, 0) + 1
        self.intake.took(wanted, got)
        # Claims whose reply was lost come beside those that are asked for, so they may be more than there are threads.
        claims = self.backlog + claims
        self.backlog = claims[self.free :]
        claims = claims[: self.free]
        for claim, found in zip(claims, self.session.found(claims) if claims else [], strict=True):
            run = Run(claim, self.chains[self.intake.chain_of(claim.list)], self.store, found=found)
            if run.uuid and claim.readable:
                self._hand_out(run)
            else:
                # Not a UUID, or a record of another version: nothing to run.
                self.free -= 1
                self._end(run, self.reporter.unusable(run))

    def _settled(self, results: list[int | str | None]) -> None:
        """Look at what became of the settlements that were sent."""
        sent, self.pending = self.pending[: len(results)], self.pending[len(results) :]
        done: list[Run] = []
        for (run, end), result in zip(sent, results, strict=True):
            if result is None:
                self.pending.append((run, end))
            elif isinstance(result, str):
                self._refused(run, result)
            else:
                self.runs.pop((run.claim.list, run.claim.seq), None)
                run.settled = result == 1
                done.append(run)
        if done:
            self.reporter.report(done)
            for run in done:
                self.pauses.note(run)

    # What happens to a run

    def _hand_out(self, run: Run) -> None:
        slot = run.slot = self.slots.pop()
        claim = run.claim
        self.board.take(slot, claim.seq, claim.list, run.uuid)
        run.board = lambda what, deadline: self.board.enter(slot, what, deadline)
        run.take_note = lambda note: self.queue.note(claim, note)
        self.runs[claim.list, claim.seq] = run
        self.free -= 1
        self.jobs.put(run)

    def _work(self) -> None:
        while (run := self.jobs.get()) is not None:
            self._threads[run] = threading.current_thread()
            try:
                run.outcome = run.chain.run(run)
            except BaseException as error:
                # Not even an error of ours may cost a thread, or the claim that it has in hand.
                log.exception("a run ended in a way that it should not")
                run.outcome = Outcome("failed", run.uuid, f"internal error: {type(error).__name__}")
            self.inbox.put(run)
            if run.abandoned:
                # Somebody else has its place by now.
                return

    def _finished(self, run: Run) -> None:
        self._threads.pop(run, None)
        self.late += run.late
        self.slots.append(run.slot)
        self.board.clear(run.slot)
        if run.abandoned:
            self.abandoned = [(thread, other) for thread, other in self.abandoned if other is not run]
        elif run.outcome is not None:
            self._end(run, run.outcome)

    def _end(self, run: Run, outcome: Outcome) -> None:
        """Free the thread and have the claim settled with the next trip."""
        self.free += 1
        self.idle_since = time.monotonic()
        if outcome.server_failed:
            # If the server takes a write at this very moment, it may be something about this vCon.
            outcome = replace(outcome, blameless=not self._takes_writes())
        elif outcome.kind in ("delivered", "stopped"):
            self._ailing = 0
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
        due = [run for at, run in self.refused if now > at]
        self.refused = [(at, run) for at, run in self.refused if now <= at]
        for run in due:
            self._settle(run, Outcome("returned", run.uuid, "it could not be settled before", note=run.note()))
        if late > 1.0 + TICK_SECS:
            # The whole process was stopped, or the server was: nobody's fault in here.
            for run in self.runs.values():
                if run.outcome is None:
                    run.extend(late)
        for run in [run for run in self.runs.values() if run.outcome is None]:
            if now > run.deadline or now > self.give_up:
                self._abandon(
                    run, run.overdue() if now > run.deadline else Outcome("returned", run.uuid, note=run.note())
                )
        if self.quarantine and not self.runs and now - self.idle_since > QUARANTINE_IDLE_SECS:
            self.stopping = True
        self.late = [thread for thread in self.late if thread.is_alive()]
        left = [*self.late, *(thread for thread, _ in self.abandoned)]
        if len(left) > MAX_ABANDONED or any(_burns(thread) for thread in left):
            self._retire()

    def _abandon(self, run: Run, outcome: Outcome) -> None:
        run.abandoned = True
        self.board.clear(run.slot)
        self.abandoned.append((self._threads.get(run), run))
        self._add_thread()
        self._end(run, outcome)

    def _add_thread(self) -> None:
        threading.Thread(target=self._work, name="chain", daemon=True).start()

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

    def _server_works(self) -> bool:
        """Say whether to claim: after the server has failed a run, not before it takes a write again.

        Else the same vCons would run into the same trouble again and again, and pay for it each time.
        """
        if not self._ailing or time.monotonic() < self._ailing_until:
            return not self._ailing
        return self._takes_writes()

    def _takes_writes(self) -> bool:
        """Ask the server to take a write; if it does not, nothing is claimed for a while that grows."""
        if self._ailing and time.monotonic() < self._ailing_until:
            return False
        try:
            self.queue.probe()
        except ServerError:
            if not self._ailing:
                log.error("the server does not work for what runs; nothing is claimed until it does")
            self._ailing += 1
            self._ailing_until = time.monotonic() + min(LONGEST_AILING_SECS, 0.25 * 2 ** min(self._ailing, 10))
            return False
        return True

    def stop(self, within_secs: float) -> None:
        """Claim no more; what still runs after *within_secs* is given back."""
        self.stopping = True
        self.give_up = min(self.give_up, time.monotonic() + within_secs)

    def _retire(self) -> None:
        if not self.stopping:
            left = len(self.abandoned) + len(self.late)
            log.warning("%d threads did not come back; this process finishes and is replaced", left)
            self.stopping = True
            self.tell(("retiring",))

    def use(self, config: Config) -> None:
        """Take *config* for what is claimed from now on; imports happen on the thread that calls this."""
        chains, storages = load(config, self.settings)
        lists = chains_of(config, self.settings)

        def switch() -> None:
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

    def tell(self, message: tuple[Any, ...]) -> None:
        """Send a message to the supervisor."""
        with self._sending:
            self._supervisor.send(message)

    def listen(self) -> None:
        """Carry out the supervisor's orders; when it is gone, finish and end. Runs on a thread of its own."""
        try:
            while True:
                order, *values = self._supervisor.recv()
                if order == "config":
                    self.use(*values)
                elif order == "stop":
                    self.inbox.put(lambda secs=values[0]: self.stop(secs))  # type: ignore[misc]
        except (EOFError, OSError):
            # Long before others may take our claims for lost.
            self.inbox.put(lambda: self.stop(min(self.settings.drain_secs, self.settings.lease_secs / 2)))

    def report(self) -> None:
        """Tell the supervisor once a second what was counted, and look for pauses. Runs on a thread of its own."""
        while True:
            try:
                self.tell(("metrics", telemetry.metrics.snapshot()))
                pauses = self.pauses.look()
                self.inbox.put(lambda pauses=pauses: self.pauses.set(*pauses))  # type: ignore[misc]
            except ServerError:
                log.debug("the server does not answer; pauses stay as they are")
            except OSError:
                return
            time.sleep(1.0)


def load(config: Config, settings: Settings) -> tuple[dict[str, Chain], list[components.Storage]]:
    """Import what the chains of this host need; a chain that cannot be imported is reported and left out.

    Storages that no chain here uses are read from as well, so they are imported if they can be.
    """
    components.use_folder(config.folder)
    try:
        components.load_imports(config)
    except ConfigError as error:
        log.error("%s; what needs it will fail", error)
    outbound.configure(config.outbound)
    storages: dict[str, components.Storage] = {}
    broken: dict[str, ConfigError] = {}
    for name, storage in config.storages.items():
        try:
            storages[name] = components.load_storage(storage)
        except ConfigError as error:
            broken[name] = error
    chains: dict[str, Chain] = {}
    for name in chains_of(config, settings):
        chain = config.chains[name]
        try:
            links = [components.load_link(config.links[link]) for link in chain.links]
            for storage_name in chain.storages:
                if storage_name in broken:
                    raise broken[storage_name]
            chains[name] = Chain(chain, links, [storages[storage] for storage in chain.storages], settings)
        except ConfigError as error:
            log.error("chain %r is not worked on, its lists wait: %s", name, error)
    return chains, list(storages.values())


def read_through(storages: list[components.Storage], uuid: str) -> dict[str, Any] | None:
    """Return the vCon from the first of *storages*, in the order of the config, that gives it back."""
    for storage in storages:
        if storage.get is None:
            continue
        try:
            document: dict[str, Any] | None = storage.get(uuid, storage.options)
        except Exception as error:  # noqa: BLE001  storages are other people's code
            log.warning("storage %r could not read vCon %s: %s", storage.name, uuid, error)
            continue
        if document is not None:
            return document
    return None


def _burns(thread: threading.Thread | None) -> bool:
    """Say whether an abandoned thread still uses the processor: it would slow down all others for ever."""
    if thread is None or thread.ident is None or not thread.is_alive():
        return False
    used = time.clock_gettime(time.pthread_getcpuclockid(thread.ident))
    before, seen = getattr(thread, "_conserver_cpu", (used, time.monotonic()))
    if time.monotonic() - seen > 1.0 or not hasattr(thread, "_conserver_cpu"):
        thread._conserver_cpu = (used, time.monotonic())  # type: ignore[attr-defined]
    return used - before > 0.5


def main(spec: Spec, supervisor: Connection) -> None:
    """Run a worker process until it is told to stop."""
    # Ctrl-C goes to the whole group of processes; the supervisor decides what it means.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _end_with_supervisor()
    os.environ["REDIS_URL"] = spec.url
    telemetry.configure(spec.settings)
    worker = Worker(spec, supervisor)
    signal.signal(signal.SIGTERM, lambda *_: worker.inbox.put(lambda: worker.stop(spec.settings.drain_secs)))
    worker.use(spec.config)
    with suppress(ServerError):
        # Before the first claim: it may be of a chain that is paused.
        worker.pauses.set(*worker.pauses.look())
    for duty in (worker.listen, worker.report):
        threading.Thread(target=duty, name=duty.__name__, daemon=True).start()
    code = 0
    try:
        worker.run()
        worker.session.leave()
        worker.tell(("metrics", telemetry.metrics.snapshot()))
    except NotAMember as error:
        log.warning("%s; what it held runs elsewhere, and it starts again under a new name", error)
        code = EXIT_NOT_A_MEMBER
    except (ServerError, OSError) as error:
        log.warning("worker %s ends without saying goodbye: %s", spec.name, error)
    logging.shutdown()
    sys.stdout.flush()
    # Not sys.exit: threads that were abandoned would be waited for.
    os._exit(code)


def _end_with_supervisor() -> None:
    """Ask the kernel for a SIGTERM when the supervisor dies; elsewhere the closed pipe tells it."""
    if sys.platform == "linux":
        import ctypes

        PR_SET_PDEATHSIG = 1
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
