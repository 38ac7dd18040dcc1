"""The queue: UUIDs in lists that anybody may push to, taken and settled so that none is lost.

A plain blocking pop removes a UUID before anything is done with it, so a worker that dies takes it along. Here
the pop and the note of who holds it are one script, and so are the end of a claim and the pushes that follow.
This is the only module that knows the keys of work; `lua/` has the scripts, each with a legend of its keys.

`Queue` is what everybody uses; `Session` is the hot path of one worker: all its claims and settlements, spoken
by one thread over one connection.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec
import redis
from redis.exceptions import NoScriptError

from conserver import connection, scripts
from conserver.errors import ConserverError, ServerError
from conserver.telemetry import shorten

#: How often a process may die alone with a vCon before the vCon is a dead letter.
MAX_CRASHES = 3
#: How often a claim may come back for any other cause; a limit against loops, far above what outages cause.
MAX_RETURNS = 20

LISTS = "conserver:lists"
PAUSED = "conserver:paused"

_UUID = re.compile(rb"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")
_FRESH = b"1 0 0 0 0\n"
_HEADER = re.compile(rb"1 (\d+) (\d+) (\d+) (\d+)\n")
_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder().decode


def dead_list(name: str) -> str:
    """Return the list of dead letters of an ingress list, named as the existing conserver names it."""
    return f"DLQ:{name}"


def storage_dead_list(storage: str) -> str:
    """Return the list of vCons whose save to *storage* failed."""
    return f"DLQ:storage:{storage}"


def _own(name: str, what: str) -> str:
    # The list's name is the hash tag: on a Cluster all keys of one list lie in one slot.
    return f"conserver:{{{name}}}:{what}"


@dataclass(frozen=True, slots=True)
class Note:
    """How far a claim has come, so that slow links are not paid twice.

    `done` links of the chain are done; `prefix` is a hash of their names and options, since the config may have
    changed meanwhile; `uuid` is the vCon they led to; `pushes` and `expire_secs` are what they asked for.
    """

    done: int
    prefix: str
    uuid: str
    pushes: tuple[tuple[str, str], ...] = ()
    expire_secs: int | None = None

    def to_json(self) -> bytes:
        """Return the note in as few bytes as it needs."""
        value: dict[str, Any] = {"done": self.done, "prefix": self.prefix, "uuid": self.uuid}
        if self.pushes:
            value["pushes"] = self.pushes
        if self.expire_secs is not None:
            value["expire"] = self.expire_secs
        return _encode(value)

    @classmethod
    def from_json(cls, data: bytes) -> Note | None:
        """Return the note, or None for one that is empty or not ours."""
        try:
            value = _decode(data) if data else None
            if not value:
                return None
            pushes = tuple((str(a), str(b)) for a, b in value.get("pushes", ()))
            return cls(int(value["done"]), str(value["prefix"]), str(value["uuid"]), pushes, value.get("expire"))
        except (msgspec.DecodeError, KeyError, TypeError, ValueError, AttributeError):
            # A note only saves work: without it the chain starts from its first link.
            return None


@dataclass(slots=True)
class Claim:
    """A UUID that a worker has taken and not yet settled; `seq` is its name within the list.

    `entry` is what was pushed, byte for byte. `crashes`, `returns` and `attempts` count how often it came back.
    """

    list: str
    seq: int
    entry: bytes
    held_key: str
    crashes: int = 0
    returns: int = 0
    attempts: int = 0
    note: Note | None = None
    readable: bool = True
    """False for a record of a version that this one does not know."""

    @property
    def uuid(self) -> str | None:
        """Return the UUID, or None if the entry is none."""
        return self.entry.decode("ascii") if _UUID.fullmatch(self.entry) else None

    def record(self) -> bytes:
        """Return the claim as it is written down in Redis."""
        if not self.readable:
            return self.entry
        note = self.note.to_json() if self.note else b""
        return b"1 %d %d %d %d\n%b%b" % (self.crashes, self.returns, self.attempts, len(note), note, self.entry)

    @classmethod
    def parse(cls, name: str, held_key: str, seq: int, record: bytes) -> Claim:
        """Read a record; one of an unknown version becomes a claim that is not `readable`."""
        if record.startswith(_FRESH):
            return cls(name, seq, record[len(_FRESH) :], held_key)
        match = _HEADER.match(record)
        if match is None:
            return cls(name, seq, record, held_key, readable=False)
        crashes, returns, attempts, size = (int(n) for n in match.groups())
        at = match.end()
        note = Note.from_json(record[at : at + size])
        return cls(name, seq, record[at + size :], held_key, crashes, returns, attempts, note)


@dataclass(slots=True)
class Settlement:
    """The end of a claim and what follows from it, all in one step or not at all."""

    claim: Claim
    operations: list[tuple[str, str, Any, Any]] = field(default_factory=list)

    def push(self, list_name: str, value: str | bytes) -> Settlement:
        """Push *value* to the tail of *list_name*."""
        self.operations.append(("R", list_name, value, None))
        return self

    def bury(self, dead_list_name: str, entry: str | bytes, reason: bytes) -> Settlement:
        """Make *entry* a dead letter, with the reason beside it."""
        self.operations.append(("R", dead_list_name, entry, None))
        self.operations.append(("D", _own(dead_list_name, "dead"), entry, reason))
        return self

    def die(self, reason: bytes) -> Settlement:
        """Make the claim's entry a dead letter of its list."""
        name = self.claim.list
        self.operations.append(("R", dead_list(name), self.claim.entry, None))
        self.operations.append(("D", _own(name, "dead"), self.claim.entry, reason))
        return self

    def give_back(self) -> Settlement:
        """Put the record where the next free worker takes it first."""
        return self.push(_own(self.claim.list, "returned" if self.claim.readable else "parked"), self.claim.record())

    def delay(self, secs: float) -> Settlement:
        """Put the record aside for *secs* seconds."""
        # The seq in front keeps two pushes of one UUID apart: members of a sorted set are unique.
        member = b"%d:%b" % (self.claim.seq, self.claim.record())
        self.operations.append(("Z", _own(self.claim.list, "delayed"), int(secs * 1000), member))
        return self


def reason(
    error: str,
    *,
    link: str = "",
    chain: str = "",
    worker: str = "",
    at: str = "",
    crashes: int = 0,
    note: Note | None = None,
    uuid: str | None = None,
) -> bytes:
    """Return why something is dead, as JSON in under 500 bytes.

    `uuid` is the vCon that the entry had led to, where that is another one. The note goes along if it fits.
    """
    why: dict[str, Any] = {"n": 1, "error": "", "link": _fitting(link, 60), "chain": _fitting(chain, 60)}
    why |= {"at": at, "worker": _fitting(worker, 60)}
    if crashes:
        why["crashes"] = crashes
    if uuid:
        why["uuid"] = uuid
    why = {key: value for key, value in why.items() if value != "" or key == "error"}
    # The error comes first: a note only saves work.
    why["error"] = _fitting(error, 490 - len(_encode(why)))
    if note is not None and len(_encode(why)) + len(note.to_json()) < 480:
        why["note"] = _decode(note.to_json())
    return _encode(why)


def _fitting(text: str, most_bytes: int) -> str:
    """Return *text* on one line, cut so that it takes at most *most_bytes* as JSON."""
    text = shorten(text, max(1, most_bytes)).encode("utf-8", "replace").decode()
    while len(_encode(text)) - 2 > most_bytes:
        text = text[: -max(2, (len(_encode(text)) - 2 - most_bytes) // 4)] + "…"
    return text


@dataclass(slots=True)
class Trip:
    """What came of a round trip.

    `results` has for each settlement 1 (done), 0 (no longer held), the words of the target that refused it, or None
    (the server did not say: send it again). `unreadable` are lists that are something else, with the server's words.
    `trouble` is a ServerError if the server did not do all that was asked, or NotAMember.
    """

    results: list[int | str | None]
    claims: list[Claim] = field(default_factory=list)
    unreadable: dict[str, str] = field(default_factory=dict)
    trouble: ConserverError | None = None


class NotAMember(ConserverError):
    """This worker was recovered by somebody else: it may claim no more under its name."""


class Session:
    """The claims of one worker, spoken by one thread over one connection.

    A worker that only takes *suspects* is a quarantine.
    """

    def __init__(self, url: str, worker: str, *, suspects: bool = False) -> None:
        self.worker = worker
        self._wire = connection.Wire(url, f"queue:{worker}")
        self._suspects = suspects
        self._held: dict[str, set[int]] = {}
        self._after: dict[str, int] = {}
        self._loaded = False

    def join(self, lists: Iterable[str]) -> None:
        """Become a worker that may claim from *lists*; repeating it changes nothing."""
        names = [name for name in lists if name not in self._held]
        if names:
            joins = [("SADD", _own(name, "workers"), self.worker) for name in names]
            for reply in self._all([("SADD", LISTS, *names), *joins]):
                if isinstance(reply, Exception):
                    raise self._refusal(reply)
        for name in names:
            self._held[name] = set()
            self._after[name] = 0

    def trip(self, settlements: Sequence[Settlement], wanted: Mapping[str, int]) -> Trip:
        """Settle and claim in one round trip.

        What the server did not do is in the result, not an exception; a settlement without a result may be sent again.
        """
        by_list: dict[str, list[int]] = {}
        for index, settlement in enumerate(settlements):
            by_list.setdefault(settlement.claim.list, []).append(index)
        commands = [self._settle_command(name, [settlements[i] for i in rows]) for name, rows in by_list.items()]
        commands += [self._claim_command(name, n, by_list.get(name, ()), settlements) for name, n in wanted.items()]
        trip = Trip(results=[None] * len(settlements))
        try:
            replies = self._all(commands)
        except ServerError as error:
            trip.trouble = error
            return trip
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
                self._take(name, reply, trip.claims)
        return trip

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

    def _take(self, name: str, reply: list[Any], claims: list[Claim]) -> None:
        held, held_key = self._held[name], _own(name, f"held:{self.worker}")
        for at in range(1, len(reply), 2):
            seq = reply[at]
            claims.append(Claim.parse(name, held_key, seq, reply[at + 1]))
            held.add(seq)
        if len(reply) > 1:
            self._after[name] = max(self._after[name], *reply[1::2])

    def _settle_command(self, name: str, settlements: list[Settlement]) -> connection.Command:
        keys: dict[str, int] = {_own(name, f"held:{self.worker}"): 1}
        args: list[Any] = []
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
        sources = [_own(name, "suspects")] if self._suspects else [_own(name, "returned"), name]
        keys = [_own(name, "workers"), _own(name, f"held:{self.worker}"), _own(name, "seq"), *sources]
        # The settlements of this trip come first, so this is what will be held when the claim is executed.
        held = self._held[name]
        known = len(held) - sum(settlements[i].claim.seq in held for i in settling)
        return scripts.CLAIM.command(
            keys, [self.worker, n, self._after[name], known, 0 if self._suspects else len(keys)]
        )

    def found(self, claims: Sequence[Claim]) -> list[bool]:
        """Say which vCons of *claims* are in Redis, and keep those from expiring while they are worked on.

        When the server does not say, none counts as found: whoever runs it looks again.
        """
        uuids = [claim.uuid for claim in claims]
        keys = [f"vcon:{uuid}" for uuid in uuids if uuid]
        try:
            reply = self._all([scripts.TOUCH.command(keys, [])])[0] if keys else []
        except ServerError as error:
            reply = error
        if isinstance(reply, Exception):
            return [False] * len(claims)
        there = iter(reply)
        return [bool(uuid and next(there)) for uuid in uuids]

    def wake_keys(self, lists: Iterable[str]) -> dict[str, str]:
        """Return the keys whose entries this worker claims, each with its list, for a watch."""
        if self._suspects:
            return {_own(name, "suspects"): name for name in lists}
        return {key: name for name in lists for key in (name, _own(name, "returned"))}

    def _all(self, commands: list[connection.Command]) -> list[Any]:
        if not commands:
            return []
        if not self._loaded:
            self._wire.call([("SCRIPT", "LOAD", script.text) for script in scripts.ALL])
            self._loaded = True
        replies = self._wire.call(commands)
        again = [i for i, reply in enumerate(replies) if isinstance(reply, NoScriptError)]
        if again:
            # The server has forgotten its scripts. If it does not take them, that is its answer.
            self._wire.call([("SCRIPT", "LOAD", script.text) for script in scripts.ALL])
            for i, reply in zip(again, self._wire.call([commands[i] for i in again]), strict=True):
                replies[i] = reply
        return replies

    def leave(self) -> None:
        """Give up membership of every list where nothing is held; what is held is recovered by the supervisor."""
        self._all(
            [
                scripts.LEAVE.command([_own(name, "workers"), _own(name, f"held:{self.worker}")], [self.worker])
                for name in self._held
            ]
        )
        self._wire.close()


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

    def __init__(self, url: str, name: str = "queue") -> None:
        self._once = connection.once(url, name)
        self._client = connection.client(url, name)

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

    def workers(self, name: str) -> list[str]:
        """Return the workers that may claim from *name*."""
        return sorted(_text(worker) for worker in self._client.smembers(_own(name, "workers")))

    def depths(self, names: Sequence[str]) -> dict[str, Depth]:
        """Return how many entries of each list are where; a key of another type counts as empty."""
        pipe = self._client.pipeline(transaction=False)
        for name in names:
            pipe.llen(name)
            for what in ("returned", "suspects", "parked"):
                pipe.llen(_own(name, what))
            pipe.zcard(_own(name, "delayed"))
            pipe.llen(dead_list(name))
            pipe.smembers(_own(name, "workers"))
        rows = pipe.execute(raise_on_error=False)
        depths = {}
        for at, name in enumerate(names):
            row = rows[at * 7 : at * 7 + 7]
            waiting, returned, suspects, parked, delayed, dead = (n if isinstance(n, int) else 0 for n in row[:6])
            members = row[6] if isinstance(row[6], set | list) else ()
            held = sum(int(self._client.hlen(_own(name, f"held:{_text(w)}"))) for w in members)
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
        keys = [_own(name, "workers"), _own(name, f"held:{worker}"), _own(name, "returned"), _own(name, "suspects")]
        args: list[Any] = [worker, mode, most, limit]
        for seq, why in (culprits or {}).items():
            args += (seq, why)
        counts = scripts.RECOVER(self._client, [*keys, dead_list(name), _own(name, "dead")], args)
        return int(counts[0]), int(counts[1]), int(counts[2])

    def wake_due(self, names: Sequence[str]) -> int:
        """Put the retries whose time has come where workers find them; return how many."""
        pipe = self._client.pipeline(transaction=False)
        for name in names:
            pipe.zcard(_own(name, "delayed"))
        waiting = [name for name, n in zip(names, pipe.execute(), strict=True) if n]
        return sum(int(scripts.DUE(self._client, [_own(n, "delayed"), _own(n, "returned")], [500])) for n in waiting)

    def suspects(self, names: Sequence[str]) -> dict[str, int]:
        """Return those of *names* that have suspects, and how many."""
        pipe = self._client.pipeline(transaction=False)
        for name in names:
            pipe.llen(_own(name, "suspects"))
        return {name: n for name, n in zip(names, pipe.execute(), strict=True) if n}

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

    def retry(self, name: str, most: int, *, from_start: bool = False, batch: int = 1000) -> int:
        """Queue up to *most* dead letters of *name* again, oldest first; return how many.

        They go on from the link that failed, or from the chain's start. Those that die meanwhile are not taken twice.
        """
        most = min(most, self.dead_count(name))
        keys = [dead_list(name), self._reasons(name), name, _own(name, "returned")]
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
        return _own(dead_list(name), "dead") if name.startswith("storage:") else _own(name, "dead")

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
