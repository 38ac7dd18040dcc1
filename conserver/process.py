"""A worker process: how it starts, what it hears from its supervisor and tells it, and how it ends."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

from redis.exceptions import RedisError

from conserver import telemetry
from conserver.board import Board
from conserver.config import Config
from conserver.errors import ServerError
from conserver.session import NotAMember
from conserver.settings import Settings
from conserver.worker import Worker

log = logging.getLogger(__name__)

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


class Line:
    """The pipe to the supervisor; any thread may tell it something."""

    def __init__(self, pipe: Connection) -> None:
        self._pipe = pipe
        self._sending = threading.Lock()

    def tell(self, message: tuple[Any, ...]) -> None:
        """Send a message; OSError when the supervisor is gone."""
        with self._sending:
            self._pipe.send(message)

    def hear(self) -> tuple[Any, ...]:
        """Wait for an order; EOFError or OSError when the supervisor is gone."""
        order: tuple[Any, ...] = self._pipe.recv()
        return order


def main(spec: Spec, supervisor: Connection) -> None:
    """Run a worker process until it is told to stop."""
    # Ctrl-C goes to the whole group of processes; the supervisor decides what it means.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    end_with_supervisor()
    os.environ["REDIS_URL"] = spec.url
    telemetry.configure(spec.settings)
    line = Line(supervisor)
    worker = Worker(
        spec.name,
        spec.url,
        spec.settings,
        Board(spec.slots, memory=spec.board_memory),
        quarantine=spec.quarantine,
        retire=lambda: line.tell(("retiring",)),
    )
    signal.signal(signal.SIGTERM, lambda *_: worker.inbox.put(lambda: worker.stop(spec.settings.drain_secs)))
    worker.use(spec.config)
    with suppress(ServerError):
        # Before the first claim: it may be of a chain that is paused.
        worker.pauses.set(worker.queue.paused(), [])
    for duty in (_listen, _report):
        threading.Thread(target=duty, args=(worker, line), name=duty.__name__, daemon=True).start()
    code = 0
    try:
        worker.run()
        worker.session.leave()
        line.tell(("metrics", telemetry.metrics.snapshot()))
    except NotAMember as error:
        log.warning("%s; what it held runs elsewhere, and it starts again under a new name", error)
        code = EXIT_NOT_A_MEMBER
    except (ServerError, OSError) as error:
        log.warning("worker %s ends without leaving its lists: %s", spec.name, error)
    with suppress(OSError):
        # An exit code alone proves nothing: a link can end this process with any.
        line.tell(("ended",))
    logging.shutdown()
    sys.stdout.flush()
    # Not sys.exit: threads that were abandoned would be waited for.
    os._exit(code)


def _listen(worker: Worker, line: Line) -> None:
    """Carry out the supervisor's orders; when it is gone, finish and end."""
    settings = worker.settings
    try:
        while True:
            order, *values = line.hear()
            if order == "config":
                worker.use(*values)
            elif order == "stop":
                worker.inbox.put(lambda secs=values[0]: worker.stop(secs))  # type: ignore[misc]
    except (EOFError, OSError):
        # Long before others may take our claims for lost.
        worker.inbox.put(lambda: worker.stop(min(settings.drain_secs, settings.lease_secs / 2)))


def _report(worker: Worker, line: Line) -> None:
    """Tell the supervisor once a second what was counted, and look for pauses."""
    while True:
        try:
            line.tell(("metrics", telemetry.metrics.snapshot()))
            pauses = worker.pauses.look()
            worker.inbox.put(lambda pauses=pauses: worker.pauses.set(*pauses))  # type: ignore[misc]
        except (ServerError, RedisError):
            log.debug("the server does not answer; pauses stay as they are")
        except OSError:
            return
        time.sleep(1.0)


def end_with_supervisor() -> None:
    """Ask the kernel for a SIGTERM when the supervisor dies; elsewhere the closed pipe tells it."""
    if sys.platform == "linux":
        import ctypes

        PR_SET_PDEATHSIG = 1
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
