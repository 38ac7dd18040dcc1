"""From the outcome of a run to its settlement, its log line, its numbers and the expiry of its vCon."""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from conserver import telemetry
from conserver.claims import Settlement, dead_list, reason, storage_dead_list
from conserver.config import Retry
from conserver.connection import Command
from conserver.queue import MAX_RETURNS
from conserver.run import Outcome, Run
from conserver.settings import Settings
from conserver.store import VconStore

log = logging.getLogger(__name__)

_LEVELS = {
    "delivered": logging.INFO,
    "stopped": logging.INFO,
    "delayed": logging.WARNING,
    "returned": logging.WARNING,
    "lost": logging.WARNING,
    "dead": logging.ERROR,
}


def now() -> str:
    """Return the time as it stands in reasons of dead letters."""
    return datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


def settlement(run: Run, outcome: Outcome, worker: str) -> Settlement:
    """Return what ends the claim of *run*, and set `run.ending` to the state that it leads to."""
    claim, end = run.claim, Settlement(run.claim)

    def why(error: str) -> bytes:
        led_to = outcome.uuid if outcome.uuid != claim.uuid else None
        about = {"link": outcome.link, "chain": run.chain.name, "worker": worker, "at": now()}
        return reason(error, crashes=claim.crashes, note=outcome.note, uuid=led_to, **about)

    run.ending = outcome.kind
    if outcome.kind in ("delivered", "stopped"):
        for name in run.chain.config.egress_lists if outcome.kind == "delivered" else ():
            end.push(name, outcome.uuid)
        for name, uuid in run.pushes:
            end.push(name, uuid)
        for storage, error in outcome.storage_errors.items():
            end.bury(storage_dead_list(storage), outcome.uuid, why(error))
    elif outcome.kind == "failed":
        retry = outcome.retry
        if retry is not None and claim.attempts + 1 < retry.attempts:
            claim.attempts += 1
            claim.note = outcome.note
            run.ending = "delayed"
            end.delay(max(backoff_secs(retry, claim.attempts), outcome.wait_secs))
        else:
            run.ending = "dead"
            end.die(why(outcome.error))
    else:
        # Also for a claim that is said to be lost: if it is held after all, it must not vanish.
        claim.note = outcome.note or claim.note
        claim.returns += not outcome.blameless
        if claim.returns > MAX_RETURNS:
            run.ending = "dead"
            end.die(why(f"it came back {claim.returns} times; the last time: {outcome.error}"))
        elif outcome.server_failed and not outcome.blameless:
            # The server works for others: if it is this vCon, that shows in time, and does not keep everybody busy.
            end.delay(min(60.0, 0.5 * 2 ** min(claim.returns, 10)))
        else:
            end.give_back()
    return end


def backoff_secs(retry: Retry, attempt: int) -> float:
    """Return how long the *attempt*-th failure is put aside: doubled each time, with a tenth of jitter."""
    secs = min(retry.backoff_secs * 2 ** min(attempt - 1, 60), retry.max_backoff_secs)
    return float(secs * random.uniform(0.9, 1.1))  # noqa: S311  no secret depends on it


class Reporter:
    """Says what became of runs: one log line each, the numbers, and expiry for what storages hold."""

    def __init__(self, worker: str, store: VconStore, settings: Settings) -> None:
        self.worker = worker
        self._store = store
        self._settings = settings

    def unusable(self, run: Run) -> Outcome:
        """Return how a claim ends that is not a UUID, or a record that this version cannot read."""
        if not run.claim.readable:
            return Outcome("returned", "", "its record is of a version that this one does not know: parked")
        shown = telemetry.shorten(repr(run.claim.entry[:80])[1:], 90)
        return Outcome("failed", "", f"the entry {shown} ({len(run.claim.entry):,} bytes) is not a UUID")

    def report(self, runs: Sequence[Run]) -> list[Command]:
        """Log and count what has been settled; return the commands by which it expires, where it may."""
        counts: list[telemetry.Key] = []
        observations: list[tuple[telemetry.Key, float]] = []
        ended = time.monotonic()
        for run in runs:
            # A run that has ended may have been given time back since.
            secs = max(0.0, ended - run.began)
            counts += run.counts
            observations += run.timings
            if run.settled:
                counts += run.chain.counts(run.claim.list, run.ending)
                observations.append((run.chain.time_key, secs))
            self._log(run, secs)
        telemetry.metrics.record(counts, observations)
        return self._expire(runs)

    def _log(self, run: Run, secs: float) -> None:
        outcome = run.outcome
        ending = run.ending if run.settled else "lost"
        level = _LEVELS[ending]
        if outcome is None or not log.isEnabledFor(level):
            return
        fields = run.fields() | {"secs": round(secs, 4)}
        message = ending
        if ending == "dead":
            message = f"dead letter in {dead_list(run.claim.list)}: {outcome.error}"
            fields |= {"traceback": outcome.traceback} if outcome.traceback else {}
        elif ending == "delayed":
            message = f"failed, to be tried again (attempt {run.claim.attempts}): {outcome.error}"
        elif ending == "returned":
            message = f"given back, to run again: {outcome.error}"
        elif ending == "lost":
            message = f"not settled, since the claim was taken from this worker: {outcome.error or outcome.kind}"
        elif outcome.storage_errors:
            level, message = logging.WARNING, f"delivered, but not saved to {', '.join(outcome.storage_errors)}"
        log.log(level, "%s", message, extra={"fields": fields})

    def _expire(self, runs: Sequence[Run]) -> list[Command]:
        versions = []
        for run in runs:
            outcome = run.outcome
            if outcome is None or not run.settled:
                continue
            if run.ending == "dead" and run.uuid and self._settings.dlq_expiry_secs:
                versions.append((outcome.uuid, "*", self._settings.dlq_expiry_secs))
            elif outcome.version:
                secs = run.expire_secs if run.expire_secs is not None else self._settings.redis_expiry_secs
                versions += [(outcome.uuid, outcome.version, secs)] if secs > 0 else []
            elif run.expire_secs and not run.chain.storages and run.ending in ("delivered", "stopped"):
                # The operator's own order; a chain with storages expires nothing that they do not hold.
                versions.append((outcome.uuid, "*", run.expire_secs))
            elif run.found.version and run.ending in ("stopped", "delivered"):
                # It was about to expire when it was claimed, and is the same version still.
                versions.append((run.claim.uuid or "", run.found.version, run.found.left_secs))
        return self._store.expire_commands(versions)

    @staticmethod
    def expired(sent: Sequence[Command], replies: Sequence[Any]) -> None:
        """Say what the server made of the commands of `report`."""
        failed = [reply for reply in replies if isinstance(reply, Exception)]
        if len(replies) < len(sent) or failed:
            why = failed[0] if failed else "the server does not answer"
            # The last command is about all of them.
            stay = min(len(failed), len(sent) - 1) if replies else len(sent) - 1
            log.warning("%d vCons stay in Redis that could have expired: %s", stay, why)
