"""Claims and their ends, as they are written down in Redis: records, notes, reasons, and the keys beside a list."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

import msgspec

from conserver.telemetry import shorten

_UUID = re.compile(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")
_FRESH = b"1 0 0 0 0\n"
_HEADER = re.compile(rb"1 (\d+) (\d+) (\d+) (\d+)\n")
_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder().decode


def is_uuid(text: str) -> bool:
    """Say whether *text* is a UUID as it stands in keys: in groups of digits with dashes, nothing around it."""
    return _UUID.fullmatch(text) is not None


def dead_list(name: str) -> str:
    """Return the list of dead letters of an ingress list, named as the existing conserver names it."""
    return f"DLQ:{name}"


def storage_dead_list(storage: str) -> str:
    """Return the list of vCons whose save to *storage* failed."""
    return f"DLQ:storage:{storage}"


def own_key(name: str, what: str) -> str:
    """Return our key beside the list *name*, in the same slot of a Cluster."""
    # The list's name is the hash tag.
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
    uuid: str | None = field(init=False)
    """The entry, or None if it is no UUID."""

    def __post_init__(self) -> None:
        entry = self.entry.decode("latin-1")
        self.uuid = entry if is_uuid(entry) else None

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


@dataclass(frozen=True, slots=True)
class Found:
    """Whether a claimed vCon is in Redis; and if it was about to expire, when, and which version that was.

    `text` is the vCon itself, for a chain that is going to read it, as it was at `at` (monotonic seconds).
    """

    there: bool
    left_secs: int = 0
    version: str = ""
    text: bytes | None = None
    at: float = 0.0


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
        self.operations.append(("D", own_key(dead_list_name, "dead"), entry, reason))
        return self

    def die(self, reason: bytes) -> Settlement:
        """Make the claim's entry a dead letter of its list."""
        name = self.claim.list
        self.operations.append(("R", dead_list(name), self.claim.entry, None))
        self.operations.append(("D", own_key(name, "dead"), self.claim.entry, reason))
        return self

    def give_back(self) -> Settlement:
        """Put the record where the next free worker takes it first."""
        return self.push(own_key(self.claim.list, "returned" if self.claim.readable else "parked"), self.claim.record())

    def delay(self, secs: float) -> Settlement:
        """Put the record aside for *secs* seconds."""
        # The seq in front keeps two pushes of one UUID apart: members of a sorted set are unique.
        member = b"%d:%b" % (self.claim.seq, self.claim.record())
        self.operations.append(("Z", own_key(self.claim.list, "delayed"), int(secs * 1000), member))
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
