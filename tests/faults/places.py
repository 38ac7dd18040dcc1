"""Where UUIDs are: waiting, held, put aside, dead, delivered."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence

from redis import Redis

_RECORDS = {"returned": "returned", "suspects": "suspect", "parked": "parked"}


def where(redis: Redis, lists: Sequence[str], egress: Sequence[str]) -> defaultdict[str, Counter[str]]:
    """Return how often each UUID is in which place, of what chains read from *lists* and deliver to *egress*.

    The places: `waiting`, `returned`, `suspect`, `parked`, `delayed`, `held`, `dead`, and `in '<egress list>'`.
    """
    places: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for name in lists:
        _find(places, "waiting", redis.lrange(name, 0, -1))
        _find(places, "dead", redis.lrange(f"DLQ:{name}", 0, -1))
        for kind, place in _RECORDS.items():
            _find(places, place, map(_entry, redis.lrange(f"conserver:{{{name}}}:{kind}", 0, -1)))
        members = redis.zrange(f"conserver:{{{name}}}:delayed", 0, -1)
        _find(places, "delayed", (_entry(member.partition(b":")[2]) for member in members))
        for key in redis.scan_iter(f"conserver:{{{_quoted(name)}}}:held:*", count=1000):
            _find(places, "held", map(_entry, redis.hvals(key)))
    for name in egress:
        _find(places, f"in {name!r}", redis.lrange(name, 0, -1))
    return places


def _find(places: defaultdict[str, Counter[str]], place: str, entries: Iterable[bytes]) -> None:
    for entry in entries:
        places[entry.decode("utf-8", "replace")][place] += 1


def _entry(record: bytes) -> bytes:
    """Return what was pushed of a record: a header with the size of the note, the note, the entry."""
    match = re.match(rb"\d+(?: \d+)* (\d+)\n", record)
    return record[match.end() + int(match[1]) :] if match else record


def _quoted(name: str) -> str:
    return re.sub(r"([*?\[\]\\])", r"\\\1", name)
