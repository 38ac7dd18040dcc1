"""The hot path of the queue: all claims and settlements of one worker, spoken by one thread over one connection."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from redis.exceptions import NoScriptError

from conserver import connection, scripts
from conserver.claims import Claim, Found, Settlement, own_key
from conserver.errors import ConserverError, ServerError
from conserver.queue import LISTS

#: All that is sent here may be sent again, so a server or a connection that is silent is found out soon: before the
#: supervisor takes this worker for stuck.
PATIENCE_SECS = 2.5
#: A wait that is longer than this is the server's doing, not ours.
LONG_WAIT_SECS = 0.5
_ABSENT = Found(False)


@dataclass(slots=True)
class Trip:
    """What came of a round trip.

    `results` has for each settlement 1 (done), 0 (no longer held), the words of the target that refused it, or None
    (the server did not say: send it again). `unreadable` are lists that are something else, with the server's words.
    `trouble` is a ServerError if the server did not do all that was asked, or NotAMember. `also` has the replies to
    what went along, if there were any.
    """

    results: list[int | str | None]
    also: list[Any] = field(default_factory=list)
    claims: list[Claim] = field(default_factory=list)
    unreadable: dict[str, str] = field(default_factory=dict)
    trouble: ConserverError | None = None


def _found(reply: int | list[Any], at: float) -> Found:
    if isinstance(reply, int):
        return Found(bool(reply))
    left_ms, version, text = reply
    return Found(True, max(1, left_ms // 1000) if version else 0, version.decode(), text, at)


class NotAMember(ConserverError):
    """This worker was recovered by somebody else: it may claim no more under its name."""


class Session:
    """The claims of one worker, spoken by one thread over one connection.

    A worker that only takes *suspects* is a quarantine.
    """

    def __init__(self, url: str, worker: str, *, suspects: bool = False) -> None:
        self.worker = worker
        self._wire = connection.Wire(url, f"queue:{worker}", timeout_secs=PATIENCE_SECS)
        self.waited_secs = 0.0
        """How long the server has been silent; for the caller to reset."""
        self._least_lag = float("inf")
        self._heard = 0.0
        self._silent_since: float | None = None
        self._suspects = suspects
        self._held: dict[str, set[int]] = {}
        self._after: dict[str, int] = {}
        self._loaded = False
        self._doubtful = False

    def join(self, lists: Iterable[str]) -> None:
        """Become a worker that may claim from *lists*; repeating it changes nothing."""
        names = [name for name in lists if name not in self._held]
        if names:
            joins = [("SADD", own_key(name, "workers"), self.worker) for name in names]
            for reply in self._all([("SADD", LISTS, *names), *joins]):
                if isinstance(reply, Exception):
                    raise self._refusal(reply)
        for name in names:
            self._held[name] = set()
            self._after[name] = 0

    def trip(
        self, settlements: Sequence[Settlement], wanted: Mapping[str, int], also: Sequence[connection.Command] = ()
    ) -> Trip:
        """Settle and claim in one round trip; commands of others that may as well be lost go *also* along.

        What the server did not do is in the result, not an exception; a settlement without a result may be sent again.
        """
        by_list: dict[str, list[int]] = {}
        for index, settlement in enumerate(settlements):
            by_list.setdefault(settlement.claim.list, []).append(index)
        commands = [self._settle_command(name, [settlements[i] for i in rows]) for name, rows in by_list.items()]
        commands += [self._claim_command(name, n, by_list.get(name, ()), settlements) for name, n in wanted.items()]
        trip = Trip(results=[None] * len(settlements))
        try:
            if self._doubtful and self._went_back():
                trip.trouble = NotAMember(
                    "the server has gone back in time: it does not know what was claimed or settled before"
                )
                return trip
            replies = self._all([*commands, *also])
        except ServerError as error:
            trip.trouble = error
            return trip
        replies, trip.also = replies[: len(commands)], replies[len(commands) :]
        for (name, rows), reply in zip(by_list.items(), replies, strict=False):
            self._note_results(trip, name, rows, settlements, reply)
        for name, reply in zip(wanted, replies[len(by_list) :], strict=True):
            if reply is None:
                trip.trouble = NotAMember(f"worker {self.worker} was taken for dead and may not claim from {name!r}")
            elif isinstance(reply, Exception):
                trip.trouble = self._refusal(reply)
            else:
                if reply[0]:
                    trip.unreadable[name] = reply[0].decode("utf-8", "replace")
                if not self._take(name, reply, trip.claims):
                    trip.trouble = NotAMember(
                        f"the server has gone back in time: it names a claim of {name!r} as one before"
                    )
        return trip

    def _went_back(self) -> bool:
        """Say whether the server is an old copy of the one before the cut: nobody else would find what it holds."""
        asked: list[connection.Command] = [("HKEYS", own_key(name, f"held:{self.worker}")) for name in self._held]
        asked += [("GET", own_key(name, "seq")) for name in self._held]
        replies = self._all(asked)
        self._doubtful = any(isinstance(reply, Exception) for reply in replies)
        if self._doubtful:
            return False
        for (name, held), seqs, counter in zip(self._held.items(), replies, replies[len(self._held) :], strict=False):
            after = self._after[name]
            if int(counter or 0) < after or any(int(seq) <= after and int(seq) not in held for seq in seqs):
                return True
        return False

    def _note_results(
        self, trip: Trip, name: str, rows: list[int], settlements: Sequence[Settlement], reply: Any
    ) -> None:
        if isinstance(reply, Exception):
            words = str(reply)
            if not connection.key_is_denied(words):
                trip.trouble = self._refusal(reply)
            elif len(rows) == 1:
                trip.results[rows[0]] = words
            else:
                # One key that is denied refuses the whole script: each by itself, so that one alone is refused.
                for row in rows:
                    self._note_results(trip, name, [row], settlements, self._alone(name, settlements[row]))
            return
        for row, result in zip(rows, reply, strict=True):
            if isinstance(result, int):
                trip.results[row] = result
                self._held[name].discard(settlements[row].claim.seq)
            elif connection.is_not_now(words := result.decode("utf-8", "replace")):
                trip.trouble = ServerError(f"server at {self._wire.address}: {words}")
            else:
                trip.results[row] = words

    def _alone(self, name: str, settlement: Settlement) -> Any:
        try:
            return self._all([self._settle_command(name, [settlement])])[0]
        except ServerError as error:
            return error

    def _refusal(self, reply: Exception) -> ServerError:
        return ServerError(f"server at {self._wire.address}: {reply}")

    def _take(self, name: str, reply: list[Any], claims: list[Claim]) -> bool:
        """Note new claims; False if the server hands out a seq a second time, as after a failover to an old copy."""
        held, held_key = self._held[name], own_key(name, f"held:{self.worker}")
        seqs = reply[1::2]
        if seqs and min(seqs) <= self._after[name]:
            # Under this name an old run could settle a new claim.
            return False
        for seq, record in zip(seqs, reply[2::2], strict=True):
            claims.append(Claim.parse(name, held_key, seq, record))
            held.add(seq)
        self._after[name] = max(self._after[name], *seqs) if seqs else self._after[name]
        return True

    def _settle_command(self, name: str, settlements: list[Settlement]) -> connection.Command:
        own = own_key(name, f"held:{self.worker}"), own_key(name, "workers"), own_key(name, f"taken:{self.worker}")
        keys: dict[str, int] = {key: n for n, key in enumerate(own, 1)}
        args: list[Any] = [self.worker]
        for settlement in settlements:
            args += (settlement.claim.seq, len(settlement.operations))
            for kind, key, a, b in settlement.operations:
                args += (kind, keys.setdefault(key, len(keys) + 1), a)
                if kind != "R":
                    args.append(b)
        return scripts.SETTLE.command(list(keys), args)

    def _claim_command(
        self, name: str, n: int, settling: Sequence[int], settlements: Sequence[Settlement]
    ) -> connection.Command:
        sources = [own_key(name, "suspects")] if self._suspects else [own_key(name, "returned"), name]
        own = (f"held:{self.worker}", "seq", f"taken:{self.worker}")
        keys = [own_key(name, "workers"), *(own_key(name, what) for what in own), *sources]
        # The settlements of this trip come first, so this is what will be held when the claim is executed.
        held = self._held[name]
        known = len(held) - sum(settlements[i].claim.seq in held for i in settling)
        return scripts.CLAIM.command(
            keys, [self.worker, n, self._after[name], known, 0 if self._suspects else len(keys)]
        )

    def found(
        self,
        claims: Sequence[Claim],
        text_bytes: Sequence[int] = (),
        meanwhile: Callable[[], None] | None = None,
    ) -> list[Found]:
        """Say which vCons of *claims* are in Redis, and keep those from expiring while they are worked on.

        Of those that are no longer than their number in *text_bytes* the text comes along. When the server does not
        say, none counts as found: whoever runs it looks again. *meanwhile* is done while the server works.
        """
        keys = [f"vcon:{claim.uuid}" for claim in claims if claim.uuid]
        most = [most for claim, most in zip(claims, text_bytes or [0] * len(claims), strict=True) if claim.uuid]
        try:
            reply = self._all([scripts.TOUCH.command(keys, most)], meanwhile)[0] if keys else []
        except ServerError as error:
            reply = error
        if isinstance(reply, Exception):
            return [_ABSENT] * len(claims)
        there, now = iter(reply), time.monotonic()
        return [_found(next(there), now) if claim.uuid else _ABSENT for claim in claims]

    def ping(self) -> None:
        """Find out whether the server lets us wait: `waited_secs` grows by the time that it was silent.

        The server's clock tells when it executed the command. A reply that came late because nobody here could read
        it, since a link kept the interpreter for itself, does not count.
        """
        began = time.monotonic()
        with suppress(ServerError):
            reply = self._call([("TIME",)])[0]
            if not isinstance(reply, Exception):
                lag = int(reply[0]) + int(reply[1]) / 1e6 - began
                self._least_lag = min(self._least_lag, lag)
                silent = min(lag - self._least_lag, time.monotonic() - began)
                self.waited_secs += silent if silent > LONG_WAIT_SECS else 0.0

    def _call(self, commands: Sequence[connection.Command], meanwhile: Callable[[], None] | None = None) -> list[Any]:
        try:
            replies = self._wire.call(commands, meanwhile)
        except ServerError:
            now = time.monotonic()
            # It was silent since its last reply; but a session that had nothing to ask has not waited all that time.
            since = self._silent_since or max(self._heard, now - PATIENCE_SECS - LONG_WAIT_SECS)
            self.waited_secs += now - since
            self._silent_since = now
            self._doubtful = True
            raise
        self._heard = time.monotonic()
        if self._silent_since is not None:
            self.waited_secs += self._heard - self._silent_since
            self._silent_since = None
        return replies

    def wake_keys(self, lists: Iterable[str]) -> dict[str, str]:
        """Return the keys whose entries this worker claims, each with its list, for a watch."""
        if self._suspects:
            return {own_key(name, "suspects"): name for name in lists}
        return {key: name for name in lists for key in (name, own_key(name, "returned"))}

    def _all(self, commands: list[connection.Command], meanwhile: Callable[[], None] | None = None) -> list[Any]:
        if not commands:
            return []
        if not self._loaded:
            self._call([("SCRIPT", "LOAD", script.text) for script in scripts.ALL])
            self._loaded = True
        replies = self._call(commands, meanwhile)
        again = [i for i, reply in enumerate(replies) if isinstance(reply, NoScriptError)]
        if again:
            # The server has forgotten its scripts. If it does not take them, that is its answer.
            self._call([("SCRIPT", "LOAD", script.text) for script in scripts.ALL])
            for i, reply in zip(again, self._call([commands[i] for i in again]), strict=True):
                replies[i] = reply
        return replies

    def leave(self) -> None:
        """Give up membership of every list where nothing is held; what is held is recovered by the supervisor."""
        self._all(
            [
                scripts.LEAVE.command(
                    [own_key(name, what) for what in ("workers", f"held:{self.worker}", f"taken:{self.worker}")],
                    [self.worker],
                )
                for name in self._held
            ]
        )
        self._wire.close()
