"""Records under way, for operators: claims that workers hold, on all hosts, and what waits to be claimed again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from conserver import connection, scripts
from conserver.claims import Claim, own_key
from conserver.lease import host_of

#: Where records wait that are not claimed by anybody.
PLACES = ("returned", "delayed", "suspects", "parked")


@dataclass(frozen=True, slots=True)
class Held:
    """A claim that a worker holds; `done` links of its chain are noted as done."""

    list: str
    seq: int
    worker: str
    host: str
    entry: bytes
    crashes: int
    returns: int
    attempts: int
    done: int


@dataclass(frozen=True, slots=True)
class Waiting:
    """A record that is to be claimed again; `due_at`, in seconds of the server's clock, is None if that is any time."""

    entry: bytes
    crashes: int
    returns: int
    attempts: int
    done: int
    due_at: float | None = None


class Records:
    """Looks at records of lists, and takes claims from workers."""

    def __init__(self, url: str, name: str = "records") -> None:
        self._client = connection.client(url, name)
        self._once = connection.once(url, name)

    def claims(self, names: Sequence[str], *, after: tuple[str, int] | None = None, count: int = 100) -> list[Held]:
        """Return up to *count* claims of these lists, by list and seq.

        *after* is the list and the seq of the last one on the page before.
        """
        members = self._all(("SMEMBERS", own_key(name, "workers")) for name in names)
        holders = [
            (name, worker.decode("utf-8", "replace"))
            for name, workers in zip(names, members, strict=True)
            for worker in workers
        ]
        seqs = self._all(("HKEYS", _held(*holder)) for holder in holders)
        found = sorted({(n, int(seq), worker) for (n, worker), held in zip(holders, seqs, strict=True) for seq in held})
        page = [row for row in found if after is None or row[:2] > after][:count]
        records = self._all(("HGET", _held(name, worker), seq) for name, seq, worker in page)
        return [
            Held(name, seq, worker, host_of(worker), *_parsed(record))
            for (name, seq, worker), record in zip(page, records, strict=True)
            # Others have been settled since.
            if record
        ]

    def waiting_again(self, name: str, what: str, start: int = 0, count: int = 100) -> list[Waiting]:
        """Return records of *name* that wait in *what*, one of `PLACES`, the next one first."""
        if what not in PLACES:
            raise ValueError(f"{what!r}: must be one of {', '.join(PLACES)}")
        key = own_key(name, what)
        if what != "delayed":
            return [Waiting(*_parsed(record)) for record in self._client.lrange(key, start, start + count - 1)]
        rows = self._client.zrange(key, start, start + count - 1, withscores=True)
        return [Waiting(*_parsed(member.partition(b":")[2]), due / 1000) for member, due in rows]

    def return_claim(self, name: str, worker: str, seq: int) -> bool:
        """Take a claim from its worker, and make it the next of *name* to be claimed; False if it is not held.

        Its worker can neither settle nor save it any more, and finds out when its run ends. Nothing is counted.
        Not repeated if the connection is cut.
        """
        return self._withdraw(name, worker, seq, "return")

    def drop_claim(self, name: str, worker: str, seq: int) -> bool:
        """Take a claim from its worker as `return_claim` does, and forget it."""
        return self._withdraw(name, worker, seq, "drop")

    def _withdraw(self, name: str, worker: str, seq: int, how: str) -> bool:
        keys = [_held(name, worker), own_key(name, f"taken:{worker}"), own_key(name, "returned")]
        return bool(scripts.WITHDRAW(self._once, list(keys), [seq, how]))

    def _all(self, commands: Any) -> list[Any]:
        """Return what each command gives, or nothing where a key is of another type."""
        pipe = self._client.pipeline(transaction=False)
        for command in commands:
            pipe.execute_command(*command)
        return [() if isinstance(reply, Exception) else reply for reply in pipe.execute(raise_on_error=False)]


def _held(name: str, worker: str) -> str:
    return own_key(name, f"held:{worker}")


def _parsed(record: bytes) -> tuple[bytes, int, int, int, int]:
    """Return the entry, crashes, returns, attempts and links that are done; one of another version is all entry."""
    claim = Claim.parse("", "", 0, record)
    return claim.entry, claim.crashes, claim.returns, claim.attempts, claim.note.done if claim.note else 0
