"""Whether the server takes writes, asked only after it has failed something that ran.

Else the same vCons would run into the same trouble again and again, and their links would be paid each time.
"""

from __future__ import annotations

import logging
import time

from conserver.errors import ServerError
from conserver.queue import Queue

log = logging.getLogger(__name__)

#: The longest that a server which refuses writes is left alone.
LONGEST_REST_SECS = 60.0
#: So many runs in a row that the server has failed, though it takes writes, are no coincidence.
MOST_UNEXPLAINED = 10


class Writes:
    """One worker's knowledge of the server; what is claimed depends on it."""

    def __init__(self, queue: Queue) -> None:
        self._queue = queue
        self._refusals = 0
        self._unexplained = 0
        self._ask_again = 0.0

    @property
    def doubtful(self) -> bool:
        """Say whether the server has refused something since a run went well."""
        return self._refusals > 0

    def accepted(self) -> bool:
        """Say whether to claim: always, but after a refusal only once the server has taken a write again."""
        return not self._refusals or self.ask()

    def ask(self) -> bool:
        """Ask the server to take a write; one that has just refused is not asked for a while that grows."""
        if self._refusals and time.monotonic() < self._ask_again:
            return False
        try:
            self._queue.probe()
        except ServerError:
            self._refused()
            return False
        return True

    def to_blame(self) -> bool:
        """Say whether the server is to blame for what it has just failed, rather than what was asked of it.

        It is if it refuses a write at this very moment; or if it fails one run after the other, whatever it says.
        """
        if not self.ask():
            return True
        self._unexplained += 1
        if self._unexplained < MOST_UNEXPLAINED:
            return False
        self._refused()
        return True

    def _refused(self) -> None:
        if not self._refusals:
            log.error("the server does not work for what runs; nothing is claimed until it does")
        self._refusals += 1
        self._ask_again = time.monotonic() + min(LONGEST_REST_SECS, 0.25 * 2 ** min(self._refusals, 10))

    def went_well(self) -> None:
        """Note that a run has done all that it wanted."""
        self._unexplained = 0
        if self._refusals:
            log.warning("the server works again for what runs")
        self._refusals = 0
