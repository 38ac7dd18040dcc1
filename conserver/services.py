"""What runs beside the workers, each in a process of its own: the API, the followers, and the replayer.

They claim nothing, so nothing has to be recovered when one dies: it is started again.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import sys
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from socket import socket as Socket
from typing import Any

from conserver import listening, telemetry
from conserver.config import Config
from conserver.process import end_with_supervisor
from conserver.settings import Settings

log = logging.getLogger(__name__)

_LONGEST_PAUSE_SECS = 10.0
_REPORT_SECS = 1.0
#: How long the replayer stays when there is nothing to replay any more.
_REPLAY_SECS = 30.0
#: How long a service may take to end before it is killed.
END_SECS = 30.0
_context = multiprocessing.get_context("spawn")


@dataclass(eq=False)
class _Service:
    name: str
    process: Any = None
    pipe: Connection | None = None
    snapshot: telemetry.Snapshot | None = None
    started: float = 0.0
    failures: int = 0
    start_after: float = 0.0
    asked_to_end: bool = False
    kill_at: float = float("inf")
    config: tuple[Any, ...] = ()
    """The sections that it was started with; when they change it is started anew."""


class Services:
    """The services of one host; the supervisor looks after them."""

    def __init__(self, url: str, settings: Settings, socket: Socket | None = None) -> None:
        """With a *socket* the API is served on it."""
        self._url = url
        self._settings = settings
        self._socket = socket
        self._api = _Service("api")
        self._followers = _Service("followers")
        self._replayer = _Service("replayer")
        self._all = (self._api, self._followers, self._replayer)
        self._replays_until = float("-inf")
        self.ended = telemetry.Metrics()

    def replay(self) -> None:
        """Have dead letters of storages replayed from now on, for a while."""
        self._replays_until = time.monotonic() + _REPLAY_SECS

    def look_after(self, config: Config) -> None:
        """Start what is missing, and end what the config does not want any more."""
        replays = time.monotonic() < self._replays_until
        for service, wanted, sections in (
            (self._api, self._socket is not None, ()),
            (self._followers, bool(config.followers), (config.followers,)),
            (self._replayer, replays, (config.storages, config.imports, config.outbound)),
        ):
            if service.process is not None and not service.process.is_alive():
                self._bury(service)
            changed = service.config != sections
            if service.process is not None and (not wanted or changed) and not service.asked_to_end:
                self._ask_to_end(service)
            if service.process is not None and time.monotonic() > service.kill_at:
                service.process.kill()
            if service.process is None and wanted and time.monotonic() >= service.start_after:
                service.config = sections
                self._start(service, config)

    @staticmethod
    def _ask_to_end(service: _Service) -> None:
        service.asked_to_end, service.kill_at = True, time.monotonic() + END_SECS
        service.process.terminate()

    def _start(self, service: _Service, config: Config) -> None:
        ours, theirs = _context.Pipe()
        args = (service.name, self._url, self._settings, config, self._socket, theirs)
        if service is not self._api:
            args = (*args[:4], None, theirs)
        service.process = _context.Process(target=main, args=args, name=service.name, daemon=False)
        service.process.start()
        theirs.close()
        service.pipe, service.started = ours, time.monotonic()
        service.asked_to_end, service.kill_at = False, float("inf")
        threading.Thread(target=self._listen, args=(service, ours), name=f"listen {service.name}", daemon=True).start()

    @staticmethod
    def _listen(service: _Service, pipe: Connection) -> None:
        with suppress(EOFError, OSError):
            while True:
                service.snapshot = pipe.recv()

    def _bury(self, service: _Service) -> None:
        code = service.process.exitcode
        service.process = None
        if service.pipe is not None:
            service.pipe.close()
        if service.snapshot is not None:
            self.ended.add(service.snapshot)
            service.snapshot = None
        early = time.monotonic() - service.started < 10
        service.failures = service.failures + 1 if early else 0
        if service.asked_to_end:
            service.start_after = 0.0
            return
        service.start_after = time.monotonic() + min(_LONGEST_PAUSE_SECS, 0.1 * 2 ** min(service.failures, 10))
        log.error("the process of the %s ended with exit code %s and is started again", service.name, code)

    def stop(self) -> None:
        """Ask all to end, and take no new connections; a second call changes nothing."""
        if self._socket is not None:
            self._socket.close()
        for service in self._running():
            if not service.asked_to_end:
                self._ask_to_end(service)

    def kill(self) -> None:
        """End whatever still runs."""
        for service in self._running():
            service.process.kill()

    def running(self) -> bool:
        """Say whether any of them still runs."""
        return bool(self._running())

    def _running(self) -> list[_Service]:
        return [s for s in self._all if s.process is not None and s.process.is_alive()]

    def status(self) -> dict[str, Any]:
        """Return what they are, as plain values."""
        status: dict[str, Any] = {service.name: {"pid": service.process.pid} for service in self._running()}
        if (address := self.address()) is not None and "api" in status:
            status["api"]["address"] = address
        return status

    def address(self) -> str | None:
        """Return the URL of the API, or None if it is not served here."""
        if self._socket is None or self._socket.fileno() < 0:
            return None
        return listening.address_of(self._socket)

    def snapshots(self) -> list[telemetry.Snapshot]:
        """Return the numbers of all, those that have ended included."""
        return [self.ended.snapshot(), *(s.snapshot for s in self._all if s.snapshot is not None)]


def main(
    name: str, url: str, settings: Settings, config: Config, socket: Socket | None, supervisor: Connection
) -> None:
    """Run a service until it is told to stop."""
    # Ctrl-C goes to the whole group of processes; the supervisor decides what it means.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    end_with_supervisor()
    os.environ["REDIS_URL"] = url
    telemetry.configure(settings)
    threading.Thread(target=_report, args=(supervisor,), name="report", daemon=True).start()
    if socket is not None:
        from conserver.api.serve import serve

        serve(settings, url, socket)
        return
    stopping = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stopping.set())
    if name == "followers":
        from conserver import followers

        followers.serve(url, settings, config, stopping)
    else:
        from conserver import replayer

        replayer.serve(url, settings, config, stopping)
    logging.shutdown()
    sys.stdout.flush()
    # Not by a return: threads that storages have started would be waited for.
    os._exit(0)


def _report(supervisor: Connection) -> None:
    """Tell the supervisor once a second what was counted; end when it is gone."""
    with suppress(OSError):
        while True:
            supervisor.send(telemetry.metrics.snapshot())
            time.sleep(_REPORT_SECS)
    os.kill(os.getpid(), signal.SIGTERM)
