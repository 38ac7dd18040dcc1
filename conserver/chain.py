"""A chain: links in order, then storages, for one claim.

`Chain.run` turns a claim into an Outcome. It knows no Redis lists and no processes: what follows from the outcome
is the worker's business.
"""

from __future__ import annotations

import hashlib
import logging
import os
import threading
import time
import uuid as uuids
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

from conserver import ambient, telemetry
from conserver.ambient import Work
from conserver.claims import Claim, Note, dead_list, is_uuid
from conserver.components import Link, Storage
from conserver.config import ChainConfig, Retry
from conserver.errors import ClaimLost, LinkError, ServerError, VconConflict, VconNotFound
from conserver.settings import Settings
from conserver.store import VconStore

log = logging.getLogger(__name__)

#: A recovered claim goes on behind the links that are noted as done; noting costs a round trip, so only
#: work that took longer than this is noted.
NOTE_AFTER_SECS = 1.0
_FOLDER = os.getcwd()


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
    exception: BaseException | None = None
    retry: Retry | None = None
    note: Note | None = None
    storage_errors: dict[str, str] = field(default_factory=dict)
    blameless: bool = False
    """It is returned because the server does not work: not counted, and nobody works on until it does."""
    version: str = ""
    """The digest of the text that every storage of the chain has saved, if one of them can give it back."""


class Run(Work):
    """One claim on its way through a chain; the worker sees where it is and until when it may be there."""

    def __init__(self, claim: Claim, chain: Chain, store: VconStore, *, found: bool = True) -> None:
        super().__init__(store.writer((claim.held_key, claim.seq)))
        self.claim = claim
        self.chain = chain
        self.store = store
        self.found = found
        """False if the vCon was not in Redis when it was claimed."""
        self.uuid = claim.uuid or ""
        self.outcome: Outcome | None = None
        self.ending = ""
        """The state that the settlement leads to: delivered, stopped, delayed, returned or dead."""
        self.settled = False
        self.abandoned = False
        self.slot = -1
        self.began = time.monotonic()
        self.deadline = float("inf")
        self.stage = ""
        self.storage: Storage | None = None
        self.link: Link | None = None
        self.done = 0
        self.timings: list[tuple[telemetry.Key, float]] = []
        self.counts: list[telemetry.Key] = []
        self.board: Callable[[bytes, float], None] = lambda what, deadline: None
        self.take_note: Callable[[Note], bool] = lambda note: True
        self._noted = self.began
        # What the links that are done have asked for; one that fails and runs again asks again.
        self._asked: tuple[tuple[tuple[str, str], ...], int | None] = ((), None)
        self._saved: dict[str, str] = {}

    def enter(self, what: bytes, timeout_secs: float) -> None:
        """Begin something that may take *timeout_secs*, or what is left to the chain."""
        if self.abandoned:
            raise ClaimLost(f"{self.stage or 'the run'} was over its time and the claim is settled")
        self.deadline = min(time.monotonic() + timeout_secs, self.began + self.chain.timeout_secs)
        self.board(what, self.deadline)

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
        self._asked = tuple(self.pushes), self.expire_secs

    def note_slow_work(self) -> None:
        """Write down which links are done, if that took a while: a run after a crash need not pay for them again."""
        if time.monotonic() - self._noted < NOTE_AFTER_SECS:
            return
        if not self.take_note(self.note()):
            raise ClaimLost("the claim was taken from this worker")
        self._noted = time.monotonic()

    def resume(self, note: Note | None) -> None:
        """Start behind the links that *note* says are done, if the chain still begins with them."""
        if note is None or note.done >= len(self.chain.prefixes) or self.chain.prefixes[note.done] != note.prefix:
            return
        self.done, self.uuid = note.done, note.uuid
        self.pushes, self.expire_secs = list(note.pushes), note.expire_secs
        self._asked = note.pushes, note.expire_secs

    def overdue(self) -> Outcome:
        """Return how this run ends that is still busy after its deadline."""
        took = time.monotonic() - self.began
        if self.storage is not None and not self.storage.required:
            errors = self._storage_errors | {self.storage.name: f"no answer within {self._limit(self.storage.timeout)}"}
            return Outcome("delivered", self.uuid, storage_errors=errors)
        if took >= self.chain.timeout_secs:
            why = f"the chain ran longer than its timeout of {self.chain.timeout_secs:g} s, in {self.stage}"
        elif self.storage is not None:
            why = f"{self.stage} did not answer within {self._limit(self.storage.timeout)}"
        else:
            why = f"{self.stage} ran longer than its timeout of {self._limit(self.link.timeout if self.link else None)}"
        retry = (self.link and self.link.retry) or self.chain.retry
        return Outcome("failed", self.uuid, why, self.link.name if self.link else "", retry=retry, note=self.note())

    def _limit(self, timeout: float | None) -> str:
        settings = self.chain.settings
        default = settings.storage_timeout_secs if self.storage is not None else settings.link_timeout_secs
        return f"{timeout if timeout is not None else default:g} s"

    _storage_errors: dict[str, str] = {}  # noqa: RUF012  replaced by the run once storages begin


class Chain:
    """A chain of a config, with its links and storages imported."""

    def __init__(self, config: ChainConfig, links: Sequence[Link], storages: Sequence[Storage], settings: Settings):
        self.config = config
        self.name = config.name
        self.links = tuple(links)
        self.storages = tuple(storages)
        self.settings = settings
        self.retry = config.retry
        self.timeout_secs = config.timeout or float("inf")
        self.prefixes = _prefixes(links)
        self._labels = [f"link {link.name!r}" for link in links]
        self._board = [label.encode()[:100] for label in self._labels]
        self._timing = [
            telemetry.key("conserver.link.execution_time", **{"link_name": link.name, "chain_name": config.name})
            for link in links
        ]
        self._done = [telemetry.key("conserver.link.count", link_name=link.name, outcome="success") for link in links]
        self._halted = [telemetry.key("conserver.link.count", link_name=link.name, outcome="halt") for link in links]
        self.time_key = telemetry.key("conserver.main_loop.vcon_processing_time", chain_name=config.name)
        self._counts: dict[tuple[str, str], list[telemetry.Key]] = {}
        self._pid = os.getpid()

    def counts(self, list_name: str, ending: str) -> list[telemetry.Key]:
        """Return the counters that move when a claim of *list_name* has come to this *ending*."""
        keys = self._counts.get((list_name, ending))
        if keys is None:
            keys = [
                telemetry.key("conserver.main_loop.count_vcons_received", ingress_list=list_name),
                telemetry.key("conserver.main_loop.count_vcons_processed", chain_name=self.name, outcome=ending),
            ]
            if ending == "dead":
                keys.append(telemetry.key("conserver.dlq.count", queue_name=dead_list(list_name)))
            self._counts[list_name, ending] = keys
        return keys

    def run(self, run: Run) -> Outcome:
        """Run the links and storages for *run*, in this thread; whatever happens becomes an Outcome."""
        ambient.bind(run)
        fields = {"vcon": run.uuid, "chain": self.name}
        telemetry.bind(fields)
        try:
            run.resume(run.claim.note)
            if not run.found and not run.store.exists(run.uuid):
                return Outcome("failed", run.uuid, f"there is no vCon {run.uuid}: not in Redis, and no storage has it")
            for index in range(run.done, len(self.links)):
                fields["link"] = self.links[index].name
                result = self._run_link(run, index)
                if result is None:
                    return Outcome("stopped", run.uuid, link=self.links[index].name)
                run.link_is_done(result)
                run.note_slow_work()
            run.link = None
            return self._save(run) if self.storages else self._delivered(run, {}, "")
        except BaseException as error:  # noqa: BLE001  links are other people's code
            return self._failed(run, error)
        finally:
            ambient.bind(None)
            telemetry.bind(None)

    def _run_link(self, run: Run, index: int) -> str | None:
        link = run.link = self.links[index]
        run.stage = self._labels[index]
        if link.when is not None and not link.when.matches(run.writer.get(run.uuid)):
            return run.uuid
        began = time.monotonic()
        pushes = len(run.pushes)
        for attempt in range(4):
            timeout = link.timeout if link.timeout is not None else self.settings.link_timeout_secs
            run.enter(self._board[index], timeout)
            try:
                # A link that met somebody else's change runs again on the new copy; if that happens
                # twice, with the vCon to itself for a moment.
                with run.writer.alone(run.uuid) if attempt >= 2 else nullcontext():
                    result = link.run(run.uuid, link.name, link.options)
                break
            except VconConflict:
                if attempt == 3:
                    raise
                del run.pushes[pushes:]
            finally:
                self._look_after(run)
        run.timings.append((self._timing[index], time.monotonic() - began))
        if run.abandoned:
            raise ClaimLost(f"{run.stage} was over its time and the claim is settled")
        uuid = _checked(link, result)
        run.counts.append(self._halted[index] if uuid is None else self._done[index])
        return uuid

    def _look_after(self, run: Run) -> None:
        if os.getpid() != self._pid:
            # The link forked and both came back. Only one of them holds the claim, and this is not it.
            os._exit(0)
        if os.getcwd() != _FOLDER:
            log.warning("%s changed the working directory, which all links of a process share: changed back", run.stage)
            os.chdir(_FOLDER)

    def _save(self, run: Run) -> Outcome:
        version = run.writer.freeze(run.uuid)
        errors: dict[str, str] = {}
        run._storage_errors = errors
        if len(self.storages) == 1 or not self.settings.parallel_storage:
            for storage in self.storages:
                self._save_one(run, storage, errors)
        else:
            self._save_all(run, errors)
        run.storage = None
        failed = [storage for storage in self.storages if storage.required and storage.name in errors]
        if failed:
            error = f"storage {failed[0].name!r} is required and failed: {errors[failed[0].name]}"
            return Outcome("failed", run.uuid, error, retry=self.retry, note=run.note())
        return self._delivered(run, errors, version)

    def _save_one(self, run: Run, storage: Storage, errors: dict[str, str]) -> None:
        run.storage, run.stage = storage, f"storage {storage.name!r}"
        run.enter(run.stage.encode()[:100], self._storage_timeout(storage))
        error = self._try_save(run, storage)
        run.enter(b"", self.settings.storage_timeout_secs)
        if error:
            errors[storage.name] = error

    def _save_all(self, run: Run, errors: dict[str, str]) -> None:
        """Save to all storages at once; one that is late is left behind, and the others count."""
        run.stage = "storages"
        longest = max(self._storage_timeout(storage) for storage in self.storages)
        # A little more than the longest, so that this thread, which waits, is never the one that is late.
        run.enter(b"storages", longest + 5)
        late = threading.Event()
        results: dict[str, str | BaseException | None] = {}
        threads = [
            (storage, threading.Thread(target=self._save_aside, args=(run, storage, results, late), daemon=True))
            for storage in self.storages
        ]
        began = time.monotonic()
        for _, thread in threads:
            thread.start()
        for storage, thread in threads:
            timeout = self._storage_timeout(storage)
            thread.join(max(0.0, began + timeout - time.monotonic()))
            if storage.name not in results:
                late.set()
                errors[storage.name] = f"no answer within {timeout:g} s"
        for name, error in list(results.items()):
            if isinstance(error, BaseException):
                raise error
            if error:
                errors.setdefault(name, error)

    def _save_aside(
        self, run: Run, storage: Storage, results: dict[str, str | BaseException | None], late: threading.Event
    ) -> None:
        ambient.bind(run)
        telemetry.bind({"vcon": run.uuid, "chain": self.name})
        try:
            results[storage.name] = self._try_save(run, storage)
        except ClaimLost as error:
            results[storage.name] = error
        if late.is_set():
            log.warning("storage %r ended late: %s", storage.name, results[storage.name] or "saved")

    def _try_save(self, run: Run, storage: Storage) -> str | None:
        began, outcome = time.monotonic(), "success"
        text: str | None = None
        try:
            storage.save(run.uuid, storage.options)
        except BaseException as error:
            if _caused_by(error, ClaimLost):
                raise
            log.warning("storage %r could not save: %s", storage.name, describe(error), exc_info=_unexpected(error))
            outcome, text = "error", describe(error)
        run.counts.append(telemetry.key("conserver.storage.count", backend=storage.name, outcome=outcome))
        run.timings.append(
            (telemetry.key("conserver.storage.duration", backend=storage.name), time.monotonic() - began)
        )
        return text

    def _storage_timeout(self, storage: Storage) -> float:
        return storage.timeout if storage.timeout is not None else self.settings.storage_timeout_secs

    def _delivered(self, run: Run, errors: dict[str, str], version: str) -> Outcome:
        given_back = any(storage.get is not None for storage in self.storages)
        return Outcome(
            "delivered", run.uuid, storage_errors=errors, version=version if given_back and not errors else ""
        )

    def _failed(self, run: Run, error: BaseException) -> Outcome:
        if _caused_by(error, ClaimLost):
            return Outcome("lost", run.uuid, str(error))
        if _caused_by(error, ServerError):
            return Outcome("returned", run.uuid, f"{run.stage}: {error}", note=run.note(), blameless=True)
        link = run.link
        retry = (link.retry if link else None) or self.retry
        if isinstance(error, VconNotFound) and not run.stage:
            retry = None
        where = f"{run.stage}: " if run.stage else ""
        if link:
            run.counts.append(telemetry.key("conserver.link.count", link_name=link.name, outcome="error"))
        return Outcome(
            "failed",
            run.uuid,
            where + describe(error),
            link=link.name if link else "",
            exception=error if _unexpected(error) else None,
            retry=retry,
            note=run.note(),
        )


def describe(error: BaseException) -> str:
    """Return an exception in a sentence: its type unless it is one of ours, and its message."""
    text = str(error)
    if isinstance(error, LinkError) and text:
        return text
    if isinstance(error, SystemExit):
        return f"it called exit ({text})"
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _unexpected(error: BaseException) -> BaseException | None:
    # A LinkError says all there is to say; anything else is worth its traceback.
    return None if isinstance(error, LinkError) else error


def _caused_by(error: BaseException, *kinds: type[BaseException]) -> bool:
    seen: BaseException | None = error
    for _ in range(10):
        if seen is None or isinstance(seen, kinds):
            break
        seen = seen.__cause__ or seen.__context__
    return isinstance(seen, kinds)


def _checked(link: Link, result: Any) -> str | None:
    if isinstance(result, uuids.UUID):
        return str(result)
    if result is None or result is False or result == "":
        return None
    if not isinstance(result, str):
        raise LinkError(f"it returned {result!r:.50}: a link returns a vCon's UUID, or None to stop the chain")
    if not is_uuid(result):
        raise LinkError(f"it returned {result!r:.60}, which is no UUID")
    return result


def _prefixes(links: Sequence[Link]) -> list[str]:
    # prefixes[n] names the first n links with their options: a note is good while the chain begins so.
    hasher = hashlib.sha1(usedforsecurity=False)
    prefixes = [""]
    for link in links:
        hasher.update(f"{link.name}\0{link.fingerprint}\0".encode())
        prefixes.append(hasher.hexdigest()[:12])
    return prefixes


__all__ = ["Chain", "Outcome", "Run", "describe"]
