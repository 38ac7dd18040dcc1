"""Pauses: a chain that fails the same way again and again stops, instead of emptying its queue into the DLQ.

A pause stands in Redis, so all workers keep it and operators see it. After a while one worker lets one claim through;
if that goes well the chain goes on, else the pause doubles. A pause without a time to try again is an operator's.
"""

from __future__ import annotations

import logging
import re
from typing import Any

from conserver.chain import Chain
from conserver.errors import ServerError
from conserver.intake import Intake
from conserver.outcomes import now
from conserver.queue import Queue
from conserver.run import Outcome, Run

log = logging.getLogger(__name__)

LONGEST_PAUSE_SECS = 600.0
#: So often one vCon may try a paused chain; then it is a dead letter.
MOST_PROBES = 3
_VARYING = re.compile(r"[0-9a-fA-F]{8}-[0-9a-fA-F-]{27}|0x[0-9a-fA-F]+|\d+(\.\d+)?")


def signature(outcome: Outcome) -> str | None:
    """Return what two failures of the same cause have in common, or None if no link failed."""
    if outcome.kind != "failed" or not outcome.link:
        return None
    return f"{outcome.link}: {_VARYING.sub('#', outcome.error[:400])[:200]}"


class Pauses:
    """The pauses of one worker's chains."""

    def __init__(self, queue: Queue, intake: Intake, first_secs: float) -> None:
        self._queue = queue
        self._intake = intake
        self._first_secs = first_secs
        self._paused: dict[str, dict[str, Any]] = {}
        self._streaks: dict[str, tuple[str, int]] = {}
        self._probing: set[str] = set()

    def look(self) -> tuple[dict[str, dict[str, Any]], list[str]]:
        """Return the pauses that stand in Redis, and the chains that this worker may try again now.

        Called by a thread of its own, since it waits for the server; `set` takes the result.
        """
        paused = self._queue.paused()
        due = {name: why for name, why in paused.items() if why.get("retry_at")}
        clock = self._queue.server_time() if due else 0.0
        return paused, [
            name
            for name, why in due.items()
            if why["retry_at"] <= clock and self._queue.win_probe(name, float(why.get("secs") or self._first_secs))
        ]

    def set(self, paused: dict[str, dict[str, Any]], probes: list[str]) -> None:
        """Keep *paused*, and let one claim of each of *probes* through."""
        for chain in self._paused.keys() - paused.keys():
            self._streaks.pop(chain, None)
            self._probing.discard(chain)
        self._paused = paused
        self._intake.set_paused(paused)
        for chain in probes:
            log.info("chain %r is tried again", chain)
            self._probing.add(chain)
            self._intake.probe(chain)

    def spare(self, run: Run, outcome: Outcome) -> Outcome:
        """Give back what fails for the cause that its chain is paused for: it is not this vCon's fault."""
        why = self._paused.get(run.chain.name)
        if why is None or signature(outcome) is None or why.get("signature") != signature(outcome):
            return outcome
        probe = run.chain.name in self._probing
        if probe and run.claim.returns + 1 >= MOST_PROBES:
            # It may be this one after all; others come to try the chain.
            return outcome
        spared = Outcome("returned", outcome.uuid, outcome.error, link=outcome.link, note=outcome.note)
        spared.blameless = not probe
        return spared

    def note(self, run: Run) -> None:
        """Count equal failures in a row, and pause the chain when they are too many."""
        outcome, chain = run.outcome, run.chain
        if outcome is None:
            return
        if run.ending in ("returned", "dead", "delayed") and chain.name in self._probing:
            self._probing.discard(chain.name)
            self.pause(chain, str(self._paused.get(chain.name, {}).get("reason", outcome.error)))
            return
        failed = signature(outcome)
        if failed is None:
            if outcome.kind in ("delivered", "stopped"):
                self._streaks.pop(chain.name, None)
                if chain.name in self._probing:
                    self._resume(chain)
            return
        last, count = self._streaks.get(chain.name, ("", 0))
        count = count + 1 if last == failed else 1
        self._streaks[chain.name] = (failed, count)
        if chain.config.pause_after and count >= chain.config.pause_after and not self._intake.paused(chain.name):
            self.pause(chain, f"{count} equal failures in a row; {outcome.error}", failed)

    def pause(self, chain: Chain, why: str, failed: str | None = None) -> None:
        """Pause *chain* for all workers; the pause doubles if it was paused before."""
        before = self._paused.get(chain.name, {})
        if before and not before.get("retry_at"):
            # An operator's pause is an operator's to end.
            return
        secs = min(LONGEST_PAUSE_SECS, 2 * float(before["secs"])) if before.get("secs") else self._first_secs
        entry: dict[str, Any] = {"reason": why[:400], "since": before.get("since") or now(), "secs": secs}
        entry["signature"] = failed or before.get("signature")
        try:
            entry["retry_at"] = self._queue.server_time() + secs
            self._queue.pause(chain.name, entry)
        except ServerError as error:
            log.warning("the pause of chain %r is known to this worker only: %s", chain.name, error)
        self._paused[chain.name] = entry
        self._intake.set_paused(self._paused)
        log.error("chain %r is paused for %g s: %s", chain.name, secs, why)

    def _resume(self, chain: Chain) -> None:
        self._probing.discard(chain.name)
        self._paused.pop(chain.name, None)
        self._intake.set_paused(self._paused)
        try:
            self._queue.resume(chain.name)
        except ServerError as error:
            log.warning("chain %r goes on in this worker only: %s", chain.name, error)
        log.warning("chain %r works again and goes on", chain.name)
