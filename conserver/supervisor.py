"""The supervisor: the one process of a host that owns its workers, and never runs a link itself.

Duties: 1. hold the host's lease; 2. start workers, and replace those that end; 3. kill one whose run is overdue and
that has not settled it itself; 4. recover what dead workers held, its own and those of hosts whose lease lapsed;
5. keep quarantine for suspects; 6. wake retries that are due, put back what readers had leased, and have replayed what
storages could not save; 7. reload the config; 8. drain and end.
"""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import os
import secrets
import signal
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from queue import SimpleQueue
from typing import Any

import msgspec
from redis.exceptions import RedisError

from conserver import crashpoints, telemetry
from conserver.board import Board, Entry
from conserver.config import Config
from conserver.egress import Egress
from conserver.embedded import EmbeddedServer
from conserver.errors import ConserverError, ServerError
from conserver.health import Health
from conserver.lease import Lease
from conserver.process import Spec, main
from conserver.queue import MAX_CRASHES, MAX_RETURNS, Queue
from conserver.recovery import Recovery
from conserver.reload import Reload
from conserver.services import Services
from conserver.settings import Settings
from conserver.store import VconStore
from conserver.vitals import Vitals
from conserver.worker import slots_for
from conserver.workload import chains_of

log = logging.getLogger(__name__)

#: A run that its own worker has not settled this long after its deadline has blocked the whole process.
OVERDUE_GRACE_SECS = 2.0
#: How long the supervisor waits for an answer of the server.
PATIENCE_SECS = 2.0
#: Processes that run suspects, one at a time each.
MAX_QUARANTINES = 2
_LONGEST_RESTART_SECS = 10.0
_LONGEST_RESTART_AT_WORK_SECS = 1.0
_context = multiprocessing.get_context("spawn")


@dataclass(eq=False)
class _Process:
    name: str
    process: Any
    pipe: Connection
    board: Board
    quarantine: bool
    started: float
    asked_to_end: bool = False
    replaced: bool = False
    ended_itself: bool = False
    """It has said that it ends; one that a link has ended says nothing."""
    snapshot: telemetry.Snapshot | None = None
    overdue: dict[tuple[str, int], float] = field(default_factory=dict)
    culprits: list[Entry] = field(default_factory=list)
    listener: threading.Thread | None = None
    orders: SimpleQueue[tuple[Any, ...] | None] = field(default_factory=SimpleQueue)


class Supervisor:
    """Runs the workers of one host until it is told to stop. `run` returns when all is handed back."""

    def __init__(
        self,
        url: str,
        settings: Settings,
        config: Config,
        *,
        server: EmbeddedServer | None = None,
        listening: socket.socket | None = None,
    ) -> None:
        """Serve the API as well, if there is a socket for it."""
        self.url = url
        self.settings = settings
        self.config = config
        self.server = server
        self.host = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(3)}"
        # It has to look after processes whatever the server does, so it waits for no answer for long.
        self.queue = Queue(url, "supervisor", patience_secs=PATIENCE_SECS)
        self.store = VconStore(url, settings, patience_secs=PATIENCE_SECS)
        self.egress = Egress(url, "supervisor", patience_secs=PATIENCE_SECS)
        self.services = Services(url, settings, listening)
        self.lease = Lease(url, self.host, settings.lease_secs)
        self.reload = Reload(settings.config_file, config)
        self.health: Health | None = None
        self.vitals = Vitals(self)
        self.stopping = False
        self._stops = self._drains = 0
        self.processes: list[_Process] = []
        self._numbers = iter(range(1, 1 << 62))
        self.recovery = Recovery(self.queue, self.lease, self.host)
        self.ended = telemetry.Metrics()
        self._failures = 0
        self._start_after = 0.0
        self._wake_read, self._wake_write = socket.socketpair()
        self._give_up = float("inf")
        self._last_end = time.monotonic()
        self.troubles: dict[str, str] = {}
        """Duties that the server keeps from being done, and its words."""
        self._every: dict[str, float] = {}
        self.metrics_lock = threading.Lock()
        self._looked = time.monotonic()
        self._said: dict[str, str] = {}
        self._looking: threading.Thread | None = None
        self._new_config: list[Config] = []

    def run(self) -> None:
        """Start everything, look after it, and drain when told to stop; raise ServerError if the start fails."""
        self.lease.begin()
        for warning in self.queue.server_warnings():
            log.warning("%s", warning)
        self.health = Health(self.settings.metrics_port, self.vitals.ready, self.vitals.metrics)
        for signum in (signal.SIGTERM, signal.SIGINT):
            signal.signal(signum, lambda *_: self.stop())
        try:
            while not (self.stopping and not self.processes and not self.recovery and not self.services.running()):
                self._look_after()
                if self.stopping and not self.processes and time.monotonic() > self._last_end + 5:
                    log.error("the server does not take back what the workers held; others recover it later")
                    break
        finally:
            for process in self.processes:
                process.process.kill()
            self.services.kill()
            self.health.close()
            with contextlib.suppress(ServerError):
                self.lease.end()

    def stop(self) -> None:
        """Drain: no new claims, running chains may finish, the rest is given back. A second call does not wait.

        Safe in a signal handler: the loop does the rest.
        """
        self._stops += 1
        with contextlib.suppress(OSError):
            self._wake_write.send(b"x")

    def _drain(self) -> None:
        drain = self.settings.drain_secs if not self.stopping else 0.0
        if drain:
            log.info("draining: running chains may finish within %g s", drain)
        else:
            log.info("ending: what still runs is given back now")
        if crashpoints.ARMED:
            crashpoints.reach("supervisor.draining")
        self.stopping = True
        self._last_end = time.monotonic()
        self._give_up = time.monotonic() + drain
        self.services.stop()
        for process in self.processes:
            self._tell(process, ("stop", drain))

    def _look_after(self) -> None:
        """Do what is due, then wait for the next thing to happen."""
        if self._stops > self._drains:
            self._drains = self._stops
            self._drain()
        for process in list(self.processes):
            if not process.process.is_alive():
                self._bury(process)
        self._kill_overdue()
        self._due("recovery", 0.0, lambda: self.recovery.of_ours(self.config))
        if not self.stopping:
            self._due("workers", 0.0, self._start_missing)
            self._due("services", 0.25, lambda: self.services.look_after(self.config))
            self._due("replays", 1.0, self._look_for_unsaved)
            self._due("retries", 0.25, lambda: self.queue.wake_due(self.queue.lists()))
            self._due("egress leases", 1.0, self.egress.put_back_lapsed)
            self._due("other hosts", self.settings.lease_secs / 3, self._recover_others)
            self._due("quarantine", 0.5, self._start_quarantine)
            self._due("index", 10.0, self.store.sweep)
            self._due("reload", 1.0, self._reload)
            if self.troubles:
                self._due("server", 1.0, self._mend_server)
        self._due("publish", 1.0, self._publish)
        self._wait()

    def _due(self, duty: str, every_secs: float, do: Callable[[], Any]) -> None:
        """Do a duty if it is time for it; what goes wrong with one keeps nobody from the others."""
        now_secs = time.monotonic()
        if now_secs < self._every.get(duty, 0.0):
            return
        self._every[duty] = now_secs + every_secs
        try:
            do()
        except ServerError as error:
            if not self.troubles:
                log.error("the server does not work: %s", error)
            self.troubles[duty] = str(error)
            # A server that does not answer is not asked all the time.
            self._every[duty] = time.monotonic() + max(every_secs, 0.5)
        except (RedisError, ConserverError, OSError) as error:
            words = f"{type(error).__name__}: {error}"
            if self._said.get(duty) != words:
                log.error("%s: it cannot be done and is tried again: %s", duty, words)
            self._said[duty] = words
            self._every[duty] = time.monotonic() + max(every_secs, 1.0)
        else:
            self._said.pop(duty, None)
            if self.troubles.pop(duty, None) and not self.troubles:
                log.warning("the server works again")

    def _publish(self) -> None:
        self.lease.publish(msgspec.json.encode(self.vitals.status()))

    def _mend_server(self) -> None:
        if self.server is None or self.stopping:
            return
        try:
            self.server.restart_if_dead()
        except ServerError as error:
            log.error("the embedded server cannot be started again: %s", error)

    def _wait(self) -> None:
        ready = wait([*(process.process.sentinel for process in self.processes), self._wake_read], timeout=0.25)
        if self._wake_read in ready:
            self._wake_read.recv(64)

    def _listen(self, process: _Process) -> None:
        """Take what a worker says; on a thread of its own, since one that is stopped in mid-word may not hold us up."""
        try:
            while True:
                kind, *values = process.pipe.recv()
                if kind == "metrics":
                    process.snapshot = values[0]
                elif kind == "retiring":
                    process.asked_to_end = process.replaced = True
                elif kind == "ended":
                    process.ended_itself = True
        except (EOFError, OSError):
            return

    def _look_for_unsaved(self) -> None:
        names = [f"storage:{name}" for name, storage in self.config.storages.items() if storage.replay]
        if names and self.queue.dead_counts(names):
            self.services.replay()

    # 2. Processes

    def _start_missing(self) -> None:
        running = [p for p in self.processes if not p.quarantine and not p.replaced]
        if time.monotonic() < self._start_after:
            return
        for _ in range(self.settings.workers - len(running)):
            self._start(quarantine=False)

    def _start_quarantine(self) -> None:
        running = sum(p.quarantine for p in self.processes)
        if running >= MAX_QUARANTINES or time.monotonic() < self._start_after:
            return
        lists = [name for lists in chains_of(self.config, self.settings).values() for name in lists]
        suspects = sum(self.queue.suspects(lists).values())
        for _ in range(min(MAX_QUARANTINES, suspects) - running):
            self._start(quarantine=True)

    def _start(self, *, quarantine: bool) -> None:
        name = f"{self.host}:{next(self._numbers)}"
        threads = 1 if quarantine else self.settings.concurrency
        board = Board(slots_for(threads), _context)
        ours, theirs = _context.Pipe()
        spec = Spec(name, self.url, self.settings, self.config, board.memory, board.slots, quarantine)
        process = _context.Process(target=main, args=(spec, theirs), name=name, daemon=False)
        # Ctrl-C goes to the whole group: until a worker has learned to leave that to us, it waits.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
        theirs.close()
        started = _Process(name, process, ours, board, quarantine, time.monotonic())
        started.listener = threading.Thread(target=self._listen, args=(started,), name=f"listen {name}", daemon=True)
        started.listener.start()
        speaker = threading.Thread(target=self._speak, args=(started,), name=f"speak {name}", daemon=True)
        speaker.start()
        self.processes.append(started)

    def _bury(self, process: _Process) -> None:
        """Note how a process ended, and have what it held recovered accordingly."""
        self.processes.remove(process)
        if process.listener is not None:
            # What it has said last is still in the pipe.
            process.listener.join(1.0)
        process.orders.put(None)
        process.pipe.close()
        self._last_end = time.monotonic()
        if process.snapshot is not None:
            with self.metrics_lock:
                self.ended.add(process.snapshot)
        code = process.process.exitcode
        asked = process.asked_to_end or self.stopping or process.ended_itself
        mode = "returned" if asked else "quarantine" if process.quarantine else "suspects"
        ended = _ended(code)
        if mode == "quarantine":
            limit = f"its process {ended}, {MAX_CRASHES} times in quarantine"
        else:
            limit = f"it came back more than {MAX_RETURNS} times"
        self.recovery.note(process.name, mode, limit, process.culprits)
        # A process that ends again and again as soon as it has started must not keep the machine busy.
        early = time.monotonic() - process.started < 10 and not (self.stopping or process.asked_to_end)
        if not process.quarantine:
            self._failures = self._failures + 1 if early else 0
            if self._failures > 1:
                # What it ran is left to quarantine, so one after it may get further; one that ran nothing will not.
                longest = _LONGEST_RESTART_AT_WORK_SECS if process.board.read() else _LONGEST_RESTART_SECS
                secs = min(longest, 0.1 * 2 ** min(self._failures, 10))
                self._start_after = time.monotonic() + secs
        if asked and code == 0:
            return
        log.log(logging.WARNING if asked else logging.ERROR, "worker %s %s", process.name, ended)

    def _kill_overdue(self) -> None:
        """Kill a process in which something is over its time and that has not done anything about it."""
        now_secs = time.monotonic()
        gap, self._looked = now_secs - self._looked, now_secs
        for process in self.processes:
            if gap > 1.0:
                # This process was stopped itself, or the server was: the workers get their chance first.
                process.overdue = {}
            running = process.board.read()
            late = [e for e in running if now_secs > e.deadline + OVERDUE_GRACE_SECS]
            seen = {(entry.list, entry.seq): process.overdue.get((entry.list, entry.seq), now_secs) for entry in late}
            process.overdue = seen
            # Seen twice, a second apart: after a pause of the whole host the worker gets its chance first.
            stuck = [entry for entry in late if now_secs - seen[entry.list, entry.seq] > 1.0]
            if stuck and process.process.is_alive():
                for entry in stuck:
                    log.error("worker %s is killed: %s does not end and blocks it", process.name, entry.what)
                # Who holds the interpreter's lock stops all threads, and need not be the first that is late. Only one
                # that runs alone is the culprit for sure; else quarantine tells, where each runs by itself.
                if len(running) == 1:
                    process.asked_to_end = True
                    process.culprits = stuck
                process.process.kill()
        if self.stopping and now_secs > self._give_up + 2:
            for process in self.processes:
                process.process.kill()
            self.services.kill()

    def _recover_others(self) -> None:
        self.recovery.of_others(self.config, {process.name for process in self.processes})

    # 7. Reload

    def _reload(self) -> None:
        """Look for a changed config; the check imports modules, which may take long, so a thread does it."""
        if self._looking is not None and self._looking.is_alive():
            return
        if self._new_config:
            self.config = self._new_config.pop()
            self._new_config.clear()
            for process in self.processes:
                self._tell(process, ("config", self.config))
        self._looking = threading.Thread(target=self._look_for_config, name="reload", daemon=True)
        self._looking.start()

    def _look_for_config(self) -> None:
        try:
            config = self.reload.look()
        except (ConserverError, OSError) as error:
            log.error("%s could not be checked: %s", self.settings.config_file, error)
            return
        if config is not None:
            self._new_config.append(config)

    def _tell(self, process: _Process, message: tuple[Any, ...]) -> None:
        process.orders.put(message)

    def _speak(self, process: _Process) -> None:
        """Send a worker its orders, on a thread of its own: one that is stuck reads nothing, and has to be killed."""
        # A worker that has ended cannot be told anything; it is buried at the next look.
        with contextlib.suppress(OSError):
            while (order := process.orders.get()) is not None:
                process.pipe.send(order)


def _ended(code: int | None) -> str:
    if code is not None and code < 0:
        with contextlib.suppress(ValueError):
            return f"was ended by {signal.Signals(-code).name}"
    return f"ended with exit code {code}"
