"""The queue: UUIDs in lists that anybody may push to, taken and settled so that none is lost.

A plain blocking pop removes a UUID before anything is done with it, so a worker that dies takes it along. Here
the pop and the note of who holds it are one script, and so are the end of a claim and the pushes that follow.
This module, `session` (the hot path of one worker), `records` (a look at what is under way) and `claims` (what is
written down) are the only ones that know the keys of work; `lua/` has the scripts, each with a legend of its keys.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import redis

from conserver import connection, scripts
from conserver.claims import Claim, Note, dead_list, own_key
from conserver.errors import ServerError

#: How often a process may die alone with a vCon before the vCon is a dead letter.
MAX_CRASHES = 3
#: How often a claim may come back for any other cause; a limit against loops, far above what outages cause.
MAX_RETURNS = 20

LISTS = "conserver:lists"
PAUSED = "conserver:paused"

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder().decode


@dataclass(frozen=True)
class Depth:
    """How many entries of one list are where."""

    waiting: int
    returned: int
    delayed: int
    suspects: int
    held: int
    dead: int
    parked: int


class Queue:
    """Everything about lists that is not the hot path: push, look, recover, dead letters, pauses."""

    def __init__(self, url: str, name: str = "queue", *, patience_secs: float | None = None) -> None:
        """With *patience_secs* nothing is repeated, and a server that is silent for so long is in trouble."""
        if patience_secs is None:
            self._once = connection.once(url, name)
            # As many threads may note at the same moment as a worker has.
            self._client = connection.client(url, name, max_connections=4096)
        else:
            self._once = self._client = connection.once(url, name, timeout_secs=patience_secs)

    def push(self, name: str, entries: Sequence[str]) -> int:
        """Push UUIDs to the tail of *name* and return its new length. Not repeated if the connection is cut."""
        length = 0
        for at in range(0, len(entries), 5000):
            length = int(self._once.rpush(name, *entries[at : at + 5000]))
        return length

    def note(self, claim: Claim, note: Note) -> bool:
        """Write down how far *claim* has come; False if this worker no longer holds it."""
        claim.note = note
        return bool(scripts.NOTE(self._client, [claim.held_key], [claim.seq, claim.record()]))

    def lists(self) -> list[str]:
        """Return every list that ever had a worker."""
        return sorted(_text(name) for name in self._client.smembers(LISTS))

    def entries(self, name: str, start: int = 0, count: int = 100) -> list[bytes]:
        """Return entries that wait in *name*, the next one first, and leave them there."""
        entries: list[bytes] = self._client.lrange(name, start, start + count - 1)
        return entries

    def workers(self, name: str) -> list[str]:
        """Return the workers that may claim from *name*."""
        return sorted(_text(worker) for worker in self._client.smembers(own_key(name, "workers")))

    def depths(self, names: Sequence[str]) -> dict[str, Depth]:
        """Return how many entries of each list are where; a key of another type counts as empty."""
        pipe = self._client.pipeline(transaction=False)
        for name in names:
            pipe.llen(name)
            for what in ("returned", "suspects", "parked"):
                pipe.llen(own_key(name, what))
            pipe.zcard(own_key(name, "delayed"))
            pipe.llen(dead_list(name))
            pipe.smembers(own_key(name, "workers"))
        rows = pipe.execute(raise_on_error=False)
        depths = {}
        for at, name in enumerate(names):
            row = rows[at * 7 : at * 7 + 7]
            waiting, returned, suspects, parked, delayed, dead = (n if isinstance(n, int) else 0 for n in row[:6])
            members = row[6] if isinstance(row[6], set | list) else ()
            held = sum(int(self._client.hlen(own_key(name, f"held:{_text(w)}"))) for w in members)
            depths[name] = Depth(waiting, returned, delayed, suspects, held, dead, parked)
        return depths

    def recover(
        self,
        name: str,
        worker: str,
        mode: str,
        *,
        limit: bytes,
        culprits: Mapping[int, bytes] | None = None,
    ) -> tuple[int, int, int]:
        """Take *worker* out of *name* and move what it held; return how many went to returned, suspects, dead.

        *mode* is `returned`, `suspects` or `quarantine`; *limit* is the reason of those that came back too
        often; *culprits* are claims that are dead at once, each with its reason.
        """
        most = MAX_CRASHES if mode == "quarantine" else MAX_RETURNS
        own = ("workers", f"held:{worker}", "returned", "suspects")
        keys = [own_key(name, what) for what in own]
        keys += [dead_list(name), own_key(name, "dead"), own_key(name, f"taken:{worker}")]
        args: list[Any] = [worker, mode, most, limit]
        for seq, why in (culprits or {}).items():
            args += (seq, why)
        counts = scripts.RECOVER(self._client, keys, args)
        return int(counts[0]), int(counts[1]), int(counts[2])

    def wake_due(self, names: Sequence[str]) -> int:
        """Put the retries whose time has come where workers find them; return how many."""
        pipe = self._client.pipeline(transaction=False)
        for name in names:
            pipe.zcard(own_key(name, "delayed"))
        # A key of another type is somebody else's: it keeps nobody from the other lists.
        counts = pipe.execute(raise_on_error=False)
        waiting = [name for name, n in zip(names, counts, strict=True) if isinstance(n, int) and n]
        return sum(
            int(scripts.DUE(self._client, [own_key(n, "delayed"), own_key(n, "returned")], [500])) for n in waiting
        )

    def suspects(self, names: Sequence[str]) -> dict[str, int]:
        """Return those of *names* that have suspects, and how many."""
        return self._lengths(names, [own_key(name, "suspects") for name in names])

    def dead(self, name: str, start: int = 0, count: int = 100) -> list[tuple[bytes, dict[str, Any]]]:
        """Return dead letters of *name* (a `DLQ:` list's own name without the prefix), oldest first, with reasons.

        A dead letter that another program made has an empty reason.
        """
        entries: list[bytes] = self._client.lrange(dead_list(name), start, start + count - 1)
        if not entries:
            return []
        whys = self._client.hmget(self._reasons(name), [_dead_field(e) for e in entries])
        return [(entry, _why(why)) for entry, why in zip(entries, whys, strict=True)]

    def dead_count(self, name: str) -> int:
        """Return how many dead letters *name* has."""
        return int(self._client.llen(dead_list(name)))

    def dead_counts(self, names: Sequence[str]) -> dict[str, int]:
        """Return those of *names* that have dead letters, and how many."""
        return self._lengths(names, [dead_list(name) for name in names])

    def _lengths(self, names: Sequence[str], keys: Sequence[str]) -> dict[str, int]:
        pipe = self._client.pipeline(transaction=False)
        for key in keys:
            pipe.llen(key)
        counts = pipe.execute(raise_on_error=False)
        return {name: n for name, n in zip(names, counts, strict=True) if isinstance(n, int) and n}

    def is_dead(self, entry: str, names: Sequence[str]) -> bool:
        """Say whether *entry* is a dead letter of one of *names*; those that another program made do not count."""
        pipe = self._client.pipeline(transaction=False)
        for name in names:
            pipe.hexists(self._reasons(name), _dead_field(entry.encode()))
        return any(found is not False and found != 0 for found in pipe.execute(raise_on_error=False))

    def retry(self, name: str, most: int, *, from_start: bool = False, batch: int = 1000) -> int:
        """Queue up to *most* dead letters of *name* again, oldest first; return how many.

        They go on from the link that failed, or from the chain's start. Those that die meanwhile are not taken twice.
        """
        most = min(most, self.dead_count(name))
        keys = [dead_list(name), self._reasons(name), name, own_key(name, "returned")]
        moved = 0
        while moved < most:
            n = int(scripts.RETRY(self._once, list(keys), [min(batch, most - moved), int(from_start)]))
            moved += n
            if not n:
                break
        return moved

    def drop(self, name: str, entry: str | bytes) -> bool:
        """Forget one dead letter; False if there is none such."""
        return bool(scripts.DROP(self._once, [dead_list(name), self._reasons(name)], ["entry", entry]))

    def drop_under(self, lock: str, token: str, name: str, entry: str) -> bool:
        """Forget one dead letter, if there is such; False, and nothing is done, if *lock* does not hold *token*."""
        keys = [dead_list(name), self._reasons(name), lock]
        return int(scripts.DROP(self._once, keys, ["entry", entry, token])) >= 0

    def drop_oldest(self, name: str, most: int, batch: int = 1000) -> int:
        """Forget up to *most* dead letters, oldest first; return how many."""
        most, dropped = min(most, self.dead_count(name)), 0
        while dropped < most:
            args = ["oldest", min(batch, most - dropped)]
            n = int(scripts.DROP(self._once, [dead_list(name), self._reasons(name)], args))
            dropped += n
            if not n:
                break
        return dropped

    def _reasons(self, name: str) -> str:
        # A storage's dead letters lie in `DLQ:storage:<name>`, which is dead_list("storage:<name>").
        return own_key(dead_list(name), "dead") if name.startswith("storage:") else own_key(name, "dead")

    def pause(self, chain: str, why: Mapping[str, Any]) -> None:
        """Stop all workers from claiming for *chain*; `why` says the reason and when to try again."""
        self._client.hset(PAUSED, chain, _encode(dict(why)))

    def resume(self, chain: str) -> bool:
        """Let workers claim for *chain* again; False if it was not paused."""
        return bool(self._client.hdel(PAUSED, chain))

    def paused(self) -> dict[str, dict[str, Any]]:
        """Return the paused chains and why."""
        return {_text(chain): _why(why) for chain, why in self._client.hgetall(PAUSED).items()}

    def win_probe(self, chain: str, secs: float) -> bool:
        """Say whether this caller, and no other for *secs* seconds, may try a paused chain again."""
        return bool(self._once.set(f"conserver:{{{chain}}}:probe", b"1", nx=True, px=max(1, int(secs * 1000))))

    def server_time(self) -> float:
        """Return the server's clock, in seconds since the epoch: the only clock that hosts share."""
        secs, micros = self._client.time()
        return float(secs) + float(micros) / 1e6

    def probe(self) -> None:
        """Raise ServerError unless the server answers and takes a write."""
        try:
            self._once.set("conserver:probe", b"1", ex=60)
        except (redis.RedisError, ServerError) as error:
            raise ServerError(f"the server does not take writes: {error}") from error

    def server_info(self) -> dict[str, Any]:
        """Return what INFO says."""
        info: dict[str, Any] = self._client.info()
        return info

    def server_warnings(self) -> list[str]:
        """Return what is wrong with the server's settings: ways in which it may lose what it was given."""
        warnings = []
        info = self.server_info()
        if not info.get("aof_enabled"):
            warnings.append(
                "the server keeps no append-only file: what it holds is lost when it ends (set appendonly yes)"
            )
        policy = str(info.get("maxmemory_policy", "noeviction"))
        if policy != "noeviction":
            warnings.append(
                f"the server may evict keys when its memory is full (maxmemory-policy {policy}): vCons and lists"
                " would vanish (set maxmemory-policy noeviction)"
            )
        return warnings


def _dead_field(entry: bytes) -> bytes:
    if len(entry) > 200:
        return b"sha1:" + hashlib.sha1(entry, usedforsecurity=False).hexdigest().encode()
    return entry


def _why(data: bytes | None) -> dict[str, Any]:
    # Other programs may write what they like there.
    try:
        why = _decode(data) if data else {}
    except msgspec.DecodeError:
        why = {}
    return why if isinstance(why, dict) else {}


def _text(value: Any) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
