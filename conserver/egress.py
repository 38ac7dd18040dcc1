"""Egress lists as their readers see them: taken for good, or leased until the reader acknowledges what it has.

A reader that takes and dies has lost what it took. What is leased stays written down; if its lease lapses, by the
server's clock alone, it goes back to the head of its list and may go to another reader. `lua/leases.lua` says how.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from redis.exceptions import ResponseError

from conserver import connection, scripts
from conserver.claims import own_key
from conserver.errors import ConserverError

#: Every list that ever had a lease. Nothing is taken out: a lease may begin in that moment.
LEASED = "conserver:leased"
#: The most entries of one call.
MOST_ENTRIES = 10_000
#: The longest lease.
MOST_SECS = 86_400.0


class LeaseLapsed(ConserverError):
    """There is no such lease, or it has lapsed: its entries may have gone to another reader."""


@dataclass(frozen=True, slots=True)
class Leased:
    """What a reader has been given, oldest first, and until when; `expires_at` is in seconds of the server's clock.

    Without entries there is no lease.
    """

    id: str
    entries: tuple[bytes, ...]
    expires_at: float


@dataclass(frozen=True, slots=True)
class OpenLease:
    """A lease as it stands: how many entries are left of it, and how long it has. At 0 s it is about to go back."""

    id: str
    count: int
    secs_left: float


class Egress:
    """Reads lists for those who come for what chains have delivered. It reads any list that it is told to."""

    def __init__(self, url: str, name: str = "egress", *, patience_secs: float | None = None) -> None:
        """With *patience_secs* nothing is repeated, and a server that is silent for so long is in trouble."""
        if patience_secs is None:
            self._once = connection.once(url, name)
            self._client = connection.client(url, name)
        else:
            self._once = self._client = connection.once(url, name, timeout_secs=patience_secs)

    def take(self, name: str, n: int) -> list[bytes]:
        """Take up to *n* entries off the list, oldest first; what is lost on the way to the reader is lost.

        Not repeated if the connection is cut.
        """
        _check("n", n, MOST_ENTRIES)
        return list(self._once.lpop(name, n) or ())

    def lease(self, name: str, n: int, secs: float, lease: str | None = None) -> Leased:
        """Lease up to *n* entries for *secs* seconds, oldest first.

        A call with the id of a *lease* that stands gives what is left of that one again.
        """
        _check("n", n, MOST_ENTRIES)
        _check("secs", secs, MOST_SECS)
        lease = lease or secrets.token_hex(16)
        # Known before there is a lease: nobody would put it back otherwise. A full server refuses what changes nothing.
        if not self._client.sismember(LEASED, name):
            self._client.sadd(LEASED, name)
        args = [lease, n, max(1, int(secs * 1000))]
        while (reply := scripts.LEASE(self._client, _keys(name), args))[0] != b"ok":
            # So much has lapsed that it goes back in pieces.
            continue
        return Leased(lease, tuple(reply[2:]), reply[1] / 1000)

    def acknowledge(self, name: str, lease: str, entries: Sequence[bytes] | None = None) -> int:
        """Forget *entries* of a lease, or all of it; return how many it had of them.

        Raises LeaseLapsed if the lease is gone. A lease of which nothing is left is known for another minute.
        """
        return self._end(name, lease, "acknowledge", entries)

    def give_back(self, name: str, lease: str, entries: Sequence[bytes] | None = None) -> int:
        """Put *entries* of a lease, or all of it, back to the head of the list in their old order; return how many.

        Raises LeaseLapsed if the lease is gone: they are in the list already, or with another reader.
        """
        return self._end(name, lease, "give back", entries)

    def _end(self, name: str, lease: str, how: str, entries: Sequence[bytes] | None) -> int:
        if entries is not None and len(entries) > MOST_ENTRIES:
            raise ValueError(f"{len(entries):,} entries: a call takes {MOST_ENTRIES:,} at the most")
        these = ["all"] if entries is None else ["these", *entries]
        # The token makes a repetition known as one: an entry may be in a lease twice.
        ended = int(scripts.UNLEASE(self._client, _keys(name), [lease, secrets.token_hex(8), how, *these]))
        if ended < 0:
            raise LeaseLapsed(
                f"list {name!r} has no lease {lease[:60]!r}: it has lapsed, and its entries may go to other readers"
            )
        return ended

    def extend(self, name: str, lease: str, secs: float) -> bool:
        """Let a lease stand for *secs* seconds from now; False if it is gone, or nothing is left of it."""
        _check("secs", secs, MOST_SECS)
        return bool(scripts.EXTEND(self._client, _keys(name)[1:], [lease, max(1, int(secs * 1000))]))

    def leases(self, name: str, most: int = 1000) -> list[OpenLease]:
        """Return the leases of a list of which something is left, the first to lapse first."""
        _, leased, leases = _keys(name)
        rows: list[tuple[bytes, float]] = self._client.zrange(leases, 0, most - 1, withscores=True)
        if not rows:
            return []
        secs, micros = self._client.time()
        now = float(secs) + float(micros) / 1e6
        notes = self._client.hmget(leased, [b"@" + lease for lease, _ in rows])
        counts = [int(note.split()[2]) if note else 0 for note in notes]
        return [
            OpenLease(lease.decode("utf-8", "replace"), count, max(0.0, lapses / 1000 - now))
            for (lease, lapses), count in zip(rows, counts, strict=True)
            if count
        ]

    def put_back_lapsed(self) -> int:
        """Put entries of all lists whose lease has lapsed back to the head of their list; return how many.

        Some 100,000 of a list at once; the next call goes on.
        """
        names = sorted(name.decode("utf-8", "replace") for name in self._client.smembers(LEASED))
        pipe = self._client.pipeline(transaction=False)
        for name in names:
            pipe.zcard(_keys(name)[2])
        counts = pipe.execute(raise_on_error=False)
        moved, refused = 0, None
        for name in [name for name, n in zip(names, counts, strict=True) if isinstance(n, int) and n]:
            try:
                moved += self._put_back(name)
            except ResponseError as error:
                # A key of this list is something else: the other lists do not wait for it.
                refused = error
        if refused is not None:
            raise refused
        return moved

    def _put_back(self, name: str) -> int:
        moved = 0
        # In pieces, and not for ever: the caller has other duties.
        for _ in range(10):
            n, more = scripts.LAPSE(self._client, _keys(name), [])
            moved += n
            if not more:
                break
        return moved


def _keys(name: str) -> list[Any]:
    return [name, own_key(name, "leased"), own_key(name, "leases")]


def _check(what: str, value: float, most: float) -> None:
    if not 0 < value <= most:
        raise ValueError(f"{what}={value!r}: must be more than 0, and {most:,.0f} at the most")
