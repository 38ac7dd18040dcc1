"""The index of vCons: which there are by time, and by the terms that they are found by.

The sorted set of all vCons is that of the existing conserver. `conserver:index` holds for each vCon the keys that it
is in, so that it can be taken out of them again when it is deleted or has expired. Everything is written as commands,
which go along with what they belong to.
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import floor
from typing import Any, NoReturn

import msgspec

from conserver import connection, scripts
from conserver.connection import Command
from conserver.errors import ServerError
from conserver.settings import Settings
from conserver.talk import reply_of
from conserver.terms import Terms, created_at_of, keys_of, term_keys
from conserver.vcon_forms import is_uuid

log = logging.getLogger(__name__)

#: Up to so many that meet the rarest term are fetched and sorted; else all vCons are looked through by time, in steps.
FEW = 10_000
_STEP = 1000
#: Holds for each vCon the keys that it is in.
INDEX_KEY = "conserver:index"
_EXPIRING = "conserver:expiring"
_PREFIX = "vcon:"
_CURSOR = re.compile(r"(-?(?:inf|\d[\d.e+-]{0,30}))_(.*)", re.DOTALL)
_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder().decode


class BadCursor(ValueError):
    """A cursor that no page has ended with."""


@dataclass(frozen=True)
class Page:
    """Some of the vCons that were asked for, newest first; `after` is where the next page goes on, "" at the end.

    A page may be shorter than was asked for although another one follows.
    """

    uuids: list[str]
    after: str = ""


@dataclass(frozen=True, slots=True)
class _Row:
    """A member of the sorted set, as it stands there."""

    score: str
    member: str

    @property
    def uuid(self) -> str:
        return self.member.removeprefix(_PREFIX)

    @property
    def place(self) -> tuple[float, str]:
        return float(self.score), self.member

    @property
    def cursor(self) -> str:
        return f"{self.score}_{self.member}"


class Index:
    """The index; safe for many threads."""

    def __init__(self, client: Any, settings: Settings) -> None:
        self._client = client
        self._settings = settings

    def add_commands(
        self,
        uuid: str,
        document: dict[str, Any],
        before: Iterable[str] = (),
        keys: set[str] | None = None,
    ) -> list[Command]:
        """Return the commands that put the vCon into *keys*, or its own, and take it out of the rest of *before*."""
        keys, before = keys_of(document) if keys is None else keys, set(before)
        created_at = created_at_of(document)
        # One that does not say when it was created stays where it was first put.
        placed: list[Any] = ["NX", int(time.time())] if created_at is None else [created_at]
        return [
            ("ZADD", self._settings.sorted_set, *placed, uuid),
            # As the existing conserver wrote it.
            ("ZREM", self._settings.sorted_set, _PREFIX + uuid),
            *(("SADD", key, uuid) for key in keys - before),
            *(("SREM", key, uuid) for key in before - keys),
            ("HSET", INDEX_KEY, uuid, _encode(sorted(keys))),
        ]

    @staticmethod
    def keys_command(uuid: str) -> Command:
        """Return the command that asks for the keys that the vCon is in; see keys_of_reply."""
        return ("HGET", INDEX_KEY, uuid)

    @staticmethod
    def keys_of_reply(reply: Any) -> set[str]:
        """Return the keys that the vCon is in; none if the index does not know it."""
        return set(_decode(reply)) if isinstance(reply, bytes) else set()

    def write(self, commands: Sequence[Command]) -> None:
        """Send commands of this index."""
        self.told(self._client.call(commands))

    @staticmethod
    def told(replies: Iterable[Any]) -> None:
        """Raise what the server could not do; say what another program's key prevented."""
        for reply in replies:
            if isinstance(reply, Exception):
                if connection.is_server_error(reply):
                    raise ServerError(str(reply)) from reply
                log.warning("the index is not complete, since a key of it is something else: %s", reply)

    # Reading

    def find(self, **terms: str) -> set[str]:
        """Return the UUIDs of all vCons that meet each of *terms*; see Terms."""
        return {uuid.decode("utf-8", "replace") for uuid in self._client.sinter(term_keys(terms))}

    def search(
        self, terms: Terms, *, since: float | None = None, until: float | None = None, after: str = "", size: int
    ) -> Page:
        """Return a page of the vCons that meet all *terms* and were created in the time (epoch seconds, inclusive)."""
        keys = term_keys(terms)
        place = _place(after)
        counts = [reply_of(reply) for reply in self._client.call([("SCARD", key) for key in keys])]
        if min(counts) > FEW:
            return self._look_through(keys, since, until, after, size)
        rows = [
            row
            for row in self._rows_of([uuid.decode("utf-8", "replace") for uuid in self._client.sinter(keys)])
            if _in_time(row, since, until) and (place is None or row.place < place)
        ]
        rows.sort(key=lambda row: row.place, reverse=True)
        return Page([row.uuid for row in rows[:size]], rows[size - 1].cursor if len(rows) > size else "")

    def _rows_of(self, uuids: list[str]) -> list[_Row]:
        rows = []
        for at in range(0, len(uuids), _STEP):
            some = uuids[at : at + _STEP]
            members = [[prefix + uuid for uuid in some] for prefix in ("", _PREFIX)]
            scores = [
                reply_of(reply)
                for reply in self._client.call([("ZMSCORE", self._settings.sorted_set, *these) for these in members])
            ]
            for uuid, score, prefixed in zip(some, *scores, strict=True):
                if score is not None and is_uuid(uuid):
                    rows.append(_Row(score.decode(), uuid))
                elif prefixed is not None and is_uuid(uuid):
                    rows.append(_Row(prefixed.decode(), _PREFIX + uuid))
        return rows

    def _look_through(self, keys: list[str], since: float | None, until: float | None, after: str, size: int) -> Page:
        found: list[_Row] = []
        while True:
            rows, after = self._rows(since=since, until=until, after=after, skip=0, most=_STEP)
            asked = [("SMISMEMBER", key, *(row.uuid for row in rows)) for key in keys] if rows else []
            replies = [reply_of(reply) for reply in self._client.call(asked)] if asked else []
            found += [row for row, *there in zip(rows, *replies, strict=bool(rows)) if all(there)]
            if len(found) > size:
                return Page([row.uuid for row in found[:size]], found[size - 1].cursor)
            if not after:
                return Page([row.uuid for row in found])

    def page(
        self, *, since: float | None = None, until: float | None = None, after: str = "", skip: int = 0, size: int
    ) -> Page:
        """Return a page of all vCons of the time (epoch seconds, inclusive), behind *after* or *skip* of them."""
        rows, after = self._rows(since=since, until=until, after=after, skip=skip, most=size)
        return Page([row.uuid for row in rows], after)

    def _rows(
        self, *, since: float | None, until: float | None, after: str, skip: int, most: int
    ) -> tuple[list[_Row], str]:
        """Return what there is of vCons among the next *most* members, and the cursor to what follows them."""
        place = _place(after)
        score, member = (f"{place[0]:.17g}", place[1]) if place else ("", "")
        args = [score, member, "+inf" if until is None else f"{until:.17g}", skip, most + 1]
        flat = scripts.PAGE(self._client, [self._settings.sorted_set], args)
        told = [
            (_Row(score.decode(), member.decode("utf-8", "replace")), bool(twin))
            for member, score, twin in zip(flat[::3], flat[1::3], flat[2::3], strict=True)
        ]
        told = [(row, twin) for row, twin in told if _in_time(row, since, None)]
        rows = [row for row, twin in told[:most] if not twin and is_uuid(row.uuid)]
        return rows, told[most - 1][0].cursor if len(told) > most else ""

    # Forgetting

    def expiring_command(self, due: Mapping[str, int]) -> Command:
        """Return the command that notes in how many seconds each vCon may have expired."""
        # In the list of what expires comes also what does not after all: the sweep sees that it is still there.
        command: list[Any] = ["ZADD", _EXPIRING]
        now = time.time()
        for uuid, secs in due.items():
            command += (now + max(secs, self._settings.index_expiry_secs), uuid)
        return command

    def sweep(self, most: int = 500) -> int:
        """Take vCons that have expired out of the index; return how many."""
        now = time.time()
        due = [u.decode() for u in self._client.zrangebyscore(_EXPIRING, "-inf", now, start=0, num=most)]
        if not due:
            return 0
        replies = self._client.call([("PTTL", _PREFIX + uuid) for uuid in due])
        self.told(replies)
        left = {uuid: ms for uuid, ms in zip(due, replies, strict=True) if isinstance(ms, int)}
        gone = [uuid for uuid, ms in left.items() if ms == -2]
        self.forget(gone)
        later = {uuid: now + ms / 1000 for uuid, ms in left.items() if ms >= 0}
        if later:
            self._client.zadd(_EXPIRING, later)
        kept = [uuid for uuid, ms in left.items() if ms == -1]
        if kept:
            self._client.zrem(_EXPIRING, *kept)
        return len(gone)

    def forget(self, uuids: Iterable[str]) -> bool:
        """Take vCons out of the index; say whether any of them was in it."""
        uuids = list(uuids)
        if not uuids:
            return False
        indexed = self._client.hmget(INDEX_KEY, uuids)
        out = [
            ("SREM", key, u) for u, keys in zip(uuids, indexed, strict=True) for key in (_decode(keys) if keys else ())
        ]
        # Members that the existing conserver wrote have the key's prefix.
        members = [*uuids, *(_PREFIX + uuid for uuid in uuids)]
        replies = self._client.call(
            [
                *out,
                ("ZREM", _EXPIRING, *uuids),
                ("HDEL", INDEX_KEY, *uuids),
                ("ZREM", self._settings.sorted_set, *members),
            ]
        )
        self.told(replies)
        return any(isinstance(reply, int) and reply for reply in replies)


def _place(cursor: str) -> tuple[float, str] | None:
    """Return score and member of the row that a cursor names; None for no cursor."""
    if not cursor:
        return None
    match = _CURSOR.fullmatch(cursor)
    try:
        return (float(match[1]), match[2]) if match else _refuse(cursor)
    except ValueError:
        return _refuse(cursor)


def _refuse(cursor: str) -> NoReturn:
    raise BadCursor(f"{cursor[:80]!r} is no cursor: take it from the answer before")


def _in_time(row: _Row, since: float | None, until: float | None) -> bool:
    # Most scores are whole seconds: what was created in the second of `since` may be newer than that.
    score = float(row.score)
    return (since is None or score >= floor(since)) and (until is None or score <= until)
