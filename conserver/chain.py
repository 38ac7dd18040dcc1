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
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from conserver import ambient, crashpoints, telemetry
from conserver.claims import dead_list, is_uuid
from conserver.components import Link, Storage
from conserver.config import ChainConfig
from conserver.errors import (
    ClaimLost,
    ConserverError,
    LinkError,
    OutboundError,
    ServerError,
    StorageError,
    VconConflict,
    VconNotFound,
)
from conserver.reasons import cause as cause_of
from conserver.reasons import caused_by, describe, traceback_of
from conserver.run import Outcome, Run, note_clock
from conserver.settings import Settings
from conserver.storage_calls import StorageCall, under_way

log = logging.getLogger(__name__)

_FOLDER = os.getcwd()
#: A service that asks to be left alone for longer is asked again all the same.
LONGEST_WAIT_SECS = 3600.0


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
        self._timeouts = [settings.link_timeout_secs if link.timeout is None else link.timeout for link in links]
        self._timing = [
            telemetry.key("conserver.link.execution_time", **{"link_name": link.name, "chain_name": config.name})
            for link in links
        ]
        self._done = [telemetry.key("conserver.link.count", link_name=link.name, outcome="success") for link in links]
        self._halted = [telemetry.key("conserver.link.count", link_name=link.name, outcome="halt") for link in links]
        self.time_key = telemetry.key("conserver.main_loop.vcon_processing_time", chain_name=config.name)
        self.reads = False
        """Whether the last run has read its vCon: then it comes along with the next claims."""
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
        """Run the links and storages for *run*, in this thread; whatever happens becomes an Outcome.

        One that is run again goes on where it was: with the storages.
        """
        ambient.bind(run)
        fields = {"vcon": run.uuid, "chain": self.name}
        telemetry.bind(fields)
        try:
            if not run.rounds:
                run.resume(run.claim.note)
            if not (run.rounds or run.found.there or self._fetched(run)):
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
            return self.failed(run, error)
        finally:
            ambient.bind(None)
            telemetry.bind(None)
            self.reads = run.writer.has_read
            if os.getcwd() != _FOLDER:
                self._go_back()

    def _fetched(self, run: Run) -> bool:
        self._enter_reading(run)
        return run.store.exists(run.uuid)

    def _enter_reading(self, run: Run) -> None:
        # A storage that is asked may hang as well.
        run.link, run.stage = None, "reading the vCon"
        run.enter(b"reading the vCon", self.settings.storage_timeout_secs)

    def _run_link(self, run: Run, index: int) -> str | None:
        link = self.links[index]
        if link.when is not None:
            self._enter_reading(run)
            if not link.when.matches(run.writer.get(run.uuid)):
                return run.uuid
        run.link, run.stage = link, self._labels[index]
        began = time.monotonic()
        pushes = len(run.pushes)
        for attempt in range(4):
            run.enter(self._board[index], self._timeouts[index])
            run.writer.begin()
            try:
                # A link that met somebody else's change runs again on the new copy; if that happens
                # twice, with the vCon to itself for a moment.
                if attempt < 2:
                    result = link.run(run.uuid, link.name, link.options)
                else:
                    with run.writer.alone(run.uuid):
                        result = link.run(run.uuid, link.name, link.options)
                break
            except VconConflict:
                if attempt == 3:
                    raise
                del run.pushes[pushes:]
            finally:
                if os.getpid() != self._pid:
                    # The link forked and both came back. Only one of them holds the claim, and this is not it.
                    os._exit(0)
        run.timings.append((self._timing[index], time.monotonic() - began))
        if run.abandoned:
            raise ClaimLost(f"{run.stage} was over its time and the claim is settled")
        uuid = run.uuid if result == run.uuid else _checked(link, result)
        if crashpoints.ARMED:
            crashpoints.reach("link.done")
        run.counts.append(self._halted[index] if uuid is None else self._done[index])
        return uuid

    def _go_back(self) -> None:
        # Asked once a run: it costs as much as a small link.
        names = ", ".join([repr(link.name) for link in self.links] + [repr(storage.name) for storage in self.storages])
        log.warning(
            "chain %r: one of %s changed the working directory, which all links of a process share: changed back",
            self.name,
            names,
        )
        os.chdir(_FOLDER)

    def _save(self, run: Run) -> Outcome:
        """Save to all storages; whether that was the newest version is to be seen: Run.stands."""
        self._enter_reading(run)
        try:
            version = run.writer.freeze(run.uuid)
        except VconNotFound:
            if not run.rounds:
                raise
            if run.store.is_erased(run.uuid):
                self._take_back(run)
                raise
            # It has expired, and the storages hold what was there last.
            return self._delivered(run, run.storage_errors, "")
        run.rounds += 1
        errors = run.storage_errors = {}
        run.tried.clear()
        if len(self.storages) == 1 or not self.settings.parallel_storage:
            for storage in self.storages:
                self._save_one(run, storage, errors)
        else:
            self._save_all(run, errors)
        run.storage, run.stage = None, "reading the vCon"
        failed = [storage for storage in self.storages if storage.required and storage.name in errors]
        if failed:
            error = f"storage {failed[0].name!r} is required and failed: {errors[failed[0].name]}"
            return Outcome("failed", run.uuid, error, retry=self.retry, note=run.note())
        return self._delivered(run, errors, version)

    def _take_back(self, run: Run) -> None:
        """Delete the vCon, which was deleted while it was saved, from the storages that have it now."""
        for storage in self.storages:
            if storage.delete is None:
                log.warning("storage %r may hold this vCon, which was deleted meanwhile", storage.name)
                continue
            try:
                StorageCall(storage, storage.delete, run.uuid, self._storage_timeout(storage)).result()
            except StorageError as error:
                log.warning(
                    "storage %r may hold this vCon, which was deleted meanwhile: %s; delete it again",
                    *(storage.name, error),
                )

    def _save_one(self, run: Run, storage: Storage, errors: dict[str, str]) -> None:
        run.storage, run.stage = storage, f"storage {storage.name!r}"
        run.enter(run.stage.encode()[:100], self._storage_timeout(storage))
        error = self._try_save(run, storage)
        run.tried.add(storage.name)
        if run.abandoned:
            self._ended_late(run, storage, error)
            raise ClaimLost(f"{run.stage} was over its time and the claim is settled")
        if error:
            errors[storage.name] = error

    def _save_all(self, run: Run, errors: dict[str, str]) -> None:
        """Save to all storages at once; one that is late is left behind, and the others count."""
        run.stage = "storages"
        longest = max(self._storage_timeout(storage) for storage in self.storages)
        # A little more than the longest, so that this thread, which waits, is never the one that is late.
        run.enter(b"storages", longest + 5)
        late: set[str] = set()
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
                late.add(storage.name)
                run.late.append(thread)
                errors[storage.name] = f"no answer within {timeout:g} s"
        for name, error in list(results.items()):
            if isinstance(error, BaseException):
                raise error
            if error:
                errors.setdefault(name, error)

    def _save_aside(
        self, run: Run, storage: Storage, results: dict[str, str | BaseException | None], late: set[str]
    ) -> None:
        note_clock()
        ambient.bind(run)
        telemetry.bind({"vcon": run.uuid, "chain": self.name})
        try:
            results[storage.name] = self._try_save(run, storage)
        except ClaimLost as error:
            results[storage.name] = error
        if storage.name in late:
            self._ended_late(run, storage, results[storage.name])

    @staticmethod
    def _ended_late(run: Run, storage: Storage, error: str | BaseException | None) -> None:
        log.warning("storage %r ended late: %s", storage.name, error or "saved")
        # Another chain may have saved a newer version to it in between.
        with suppress(ServerError):
            run.writer.keep(run.uuid)

    def _try_save(self, run: Run, storage: Storage) -> str | None:
        began, outcome = time.monotonic(), "success"
        text: str | None = None
        try:
            with under_way(storage, self._storage_timeout(storage)):
                storage.save(run.uuid, storage.options)
            if crashpoints.ARMED:
                crashpoints.reach("storage.saved")
        except BaseException as error:
            if caused_by(error, ClaimLost):
                raise
            outcome, text = "error", describe(error, storage.secrets)
            details = (
                {"traceback": traceback_of(error, storage.secrets)} if not isinstance(error, ConserverError) else {}
            )
            log.warning("storage %r could not save: %s", storage.name, text, extra={"fields": details})
        run.counts.append(telemetry.key("conserver.storage.count", backend=storage.name, outcome=outcome))
        run.timings.append(
            (telemetry.key("conserver.storage.duration", backend=storage.name), time.monotonic() - began)
        )
        return text

    def _storage_timeout(self, storage: Storage) -> float:
        return storage.timeout if storage.timeout is not None else self.settings.storage_timeout_secs

    def _delivered(self, run: Run, errors: dict[str, str], version: str) -> Outcome:
        if crashpoints.ARMED:
            crashpoints.reach("chain.ended")
        given_back = any(storage.get is not None for storage in self.storages)
        held = version if given_back and not errors else ""
        return Outcome("delivered", run.uuid, storage_errors=errors, saved=version, version=held)

    def failed(self, run: Run, error: BaseException) -> Outcome:
        """Return how *run* ends that met *error*."""
        if caused_by(error, ClaimLost):
            return Outcome("lost", run.uuid, str(error))
        if caused_by(error, ServerError):
            return Outcome("returned", run.uuid, f"{run.stage}: {error}", note=run.note(), server_failed=True)
        link = run.link
        retry = (link.retry if link else None) or self.retry
        if isinstance(error, VconNotFound) and link is None:
            retry = None
        where = f"{run.stage}: " if run.stage else ""
        secrets = link.secrets if link else frozenset()
        if link:
            run.counts.append(telemetry.key("conserver.link.count", link_name=link.name, outcome="error"))
        return Outcome(
            "failed",
            run.uuid,
            where + describe(error, secrets),
            link=link.name if link else "",
            # Our own errors say all there is to say; anything else is worth its traceback.
            traceback="" if isinstance(error, ConserverError) else traceback_of(error, secrets),
            retry=retry,
            wait_secs=_asked_to_wait(error),
            note=run.note(),
        )


def _asked_to_wait(error: BaseException) -> float:
    cause = cause_of(error, OutboundError)
    asked = cause.retry_after_secs if isinstance(cause, OutboundError) else None
    return min(asked or 0.0, LONGEST_WAIT_SECS)


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


__all__ = ["Chain", "Outcome", "Run"]
