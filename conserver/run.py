"""One claim on its way through a chain, and how it ends."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from conserver import telemetry
from conserver.ambient import Work
from conserver.claims import Claim, Found, Note
from conserver.components import Link, Storage
from conserver.config import Retry
from conserver.errors import ClaimLost, ServerError
from conserver.store import VconStore

if TYPE_CHECKING:
    from conserver.chain import Chain

#: A recovered claim goes on behind the links that are noted as done; noting costs a round trip, so only
#: work that took longer than this is noted.
NOTE_AFTER_SECS = 1.0
#: How many pauses of its process a run may have.
MOST_PAUSES = 3
#: How often a vCon that others change while it is saved is saved again.
SAVE_ROUNDS = 3
_FOUND = Found(True)


def note_clock() -> None:
    """Note where this thread's use of the processor can be read, also when it may have ended."""
    thread = threading.current_thread()
    thread.conserver_clock = time.pthread_getcpuclockid(threading.get_ident())  # type: ignore[attr-defined]


@dataclass(slots=True)
class Outcome:
    """How a run ended, and what the worker needs to settle it.

    kind: `delivered`, `stopped` (by a link), `failed`, `returned` (nobody's fault: run it again), or `lost` (the
    claim was taken away: nothing may be done any more).
    """

    kind: str
    uuid: str
    error: str = ""
    link: str = ""
    traceback: str = ""
    """Where an error that the link did not mean to raise came from, without the secrets of its options."""
    retry: Retry | None = None
    wait_secs: float = 0.0
    """How long a service asks to be left alone, before it is tried again."""
    note: Note | None = None
    storage_errors: dict[str, str] = field(default_factory=dict)
    server_failed: bool = False
    """The server did not do what was asked of it: nobody's fault, unless it works for everybody else."""
    blameless: bool = False
    """It is returned for a cause that has nothing to do with this vCon, so that is not counted."""
    saved: str = ""
    """The digest of the text that the storages were given; see Run.stands."""
    version: str = ""
    """The digest of the text that every storage of the chain has saved, if one of them can give it back."""


class Run(Work):
    """One claim on its way through a chain; the worker sees where it is and until when it may be there."""

    def __init__(self, claim: Claim, chain: Chain, store: VconStore, *, found: Found = _FOUND) -> None:
        text = (claim.uuid or "", found.text, found.at) if found.text is not None else None
        super().__init__(store.writer((claim.held_key, claim.seq), text))
        self.claim = claim
        self.chain = chain
        self.store = store
        # Without the text, which is done with when it was read once.
        self.found = found if found.text is None else replace(found, text=None)
        """Whether the vCon was in Redis when it was claimed."""
        self.uuid = claim.uuid or ""
        self.outcome: Outcome | None = None
        self.ending = ""
        """The state that the settlement leads to: delivered, stopped, delayed, returned or dead."""
        self.settled = False
        self.abandoned = False
        self.thread: threading.Thread | None = None
        self.slot = -1
        self.began = time.monotonic()
        self.deadline = float("inf")
        self.what = b""
        self.stage = ""
        self.storage: Storage | None = None
        self.link: Link | None = None
        self.done = 0
        self.timings: list[tuple[telemetry.Key, float]] = []
        self.counts: list[telemetry.Key] = []
        self.board: Callable[[bytes, float], None] = lambda what, deadline: None
        self.take_note: Callable[[Note], bool] = lambda note: True
        self.rounds = 0
        """How often the storages were given the vCon."""
        self._noted = self.began
        self._pauses = 0
        # What the links that are done have asked for; one that fails and runs again asks again.
        self._asked: tuple[tuple[tuple[str, str], ...], int | None] = ((), None)
        self.storage_errors: dict[str, str] = {}
        self.tried: set[str] = set()
        """Storages that have had their turn."""
        self.late: list[threading.Thread] = []
        """Threads of storages that did not answer in time, and still run."""

    def enter(self, what: bytes, timeout_secs: float) -> None:
        """Begin something that may take *timeout_secs*, or what is left to the chain."""
        if self.abandoned:
            raise ClaimLost(f"{self.stage or 'the run'} was over its time and the claim is settled")
        self.what = what
        self.deadline = min(time.monotonic() + timeout_secs, self.began + self.chain.timeout_secs)
        self.board(what, self.deadline)

    def extend(self, secs: float, *, server: bool) -> None:
        """Put off the deadline, for time in which nothing in this process could go on.

        Where that was not the *server*, a few times only: a link that keeps the interpreter for itself again and
        again stops this process in the same way.
        """
        self._pauses += not server
        if self._pauses > MOST_PAUSES:
            return
        self.began += secs
        self.deadline += secs
        self.board(self.what, self.deadline)

    def fields(self) -> dict[str, str]:
        """Return the ids of this run for a log line."""
        return {"vcon": self.uuid, "chain": self.chain.name, "list": self.claim.list}

    def note(self) -> Note:
        """Return how far this run has come."""
        return Note(self.done, self.chain.prefixes[self.done], self.uuid, self._asked[0], self._asked[1])

    def link_is_done(self, uuid: str) -> None:
        """Go on with *uuid* behind the link that has just ended; what it asked for stands now."""
        self.uuid = uuid
        self.done += 1
        if self.pushes or self.expire_secs is not None:
            self._asked = tuple(self.pushes), self.expire_secs

    def note_slow_work(self) -> None:
        """Write down which links are done, if that took a while: a run after a crash need not pay for them again."""
        if time.monotonic() - self._noted < NOTE_AFTER_SECS:
            return
        try:
            held = self.take_note(self.note())
        except ServerError:
            # The note spares this work only after a crash; to end the run would waste it for certain.
            return
        if not held:
            raise ClaimLost("the claim was taken from this worker")
        self._noted = time.monotonic()

    def resume(self, note: Note | None) -> None:
        """Start behind the links that *note* says are done, if the chain still begins with them."""
        if note is None or note.done >= len(self.chain.prefixes) or self.chain.prefixes[note.done] != note.prefix:
            return
        self.done, self.uuid = note.done, note.uuid
        self.pushes, self.expire_secs = list(note.pushes), note.expire_secs
        self._asked = note.pushes, note.expire_secs

    def stands(self, newest: bytes | None) -> Outcome | None:
        """Return how this run ends whose vCon is saved, or None if it has to be saved again, in its *newest* version.

        Two chains may save one vCon at the same time, and the older version may come last to a storage. One that is not
        in Redis any more (None) may have been deleted meanwhile, everywhere but where it was saved to since.
        """
        if self.outcome is None or (newest is not None and newest.decode() == self.outcome.saved):
            return self.outcome
        if self.rounds == SAVE_ROUNDS:
            # It changes all the time: whoever changes it last saves it last.
            return replace(self.outcome, version="")
        self.outcome, self.deadline = None, float("inf")
        self.writer.thaw(self.uuid)
        return None

    def overdue(self) -> Outcome:
        """Return how this run ends that is still busy after its deadline."""
        took = time.monotonic() - self.began
        if self.storage is not None:
            errors = self._without_answer(self.storage)
            failed = [storage.name for storage in self.chain.storages if storage.required and storage.name in errors]
            if not failed:
                return Outcome("delivered", self.uuid, storage_errors=errors)
            why = f"storage {failed[0]!r} is required and failed: {errors[failed[0]]}"
            return Outcome("failed", self.uuid, why, retry=self.chain.retry, note=self.note())
        if took >= self.chain.timeout_secs:
            why = f"the chain ran longer than its timeout of {self.chain.timeout_secs:g} s, in {self.stage}"
        elif self.link is None:
            why = f"{self.stage} took longer than {self._limit(None)}"
        else:
            why = f"{self.stage} ran longer than its timeout of {self._limit(self.link.timeout)}"
        retry = (self.link and self.link.retry) or self.chain.retry
        return Outcome("failed", self.uuid, why, self.link.name if self.link else "", retry=retry, note=self.note())

    def _without_answer(self, hanging: Storage) -> dict[str, str]:
        """Return why which storages do not have the vCon, when *hanging* does not answer and others wait behind it."""
        errors = dict(self.storage_errors)
        for storage in self.chain.storages:
            if storage.name == hanging.name:
                errors[storage.name] = f"no answer within {self._limit(storage.timeout)}"
            elif storage.name not in self.tried:
                errors[storage.name] = f"not tried, since storage {hanging.name!r} did not answer"
        return errors

    def _limit(self, timeout: float | None) -> str:
        settings = self.chain.settings
        default = settings.link_timeout_secs if self.link is not None else settings.storage_timeout_secs
        return f"{timeout if timeout is not None else default:g} s"
