"""vCons of any size, made of words; the same ones in each run but for their UUIDs."""

from __future__ import annotations

import functools
import json
import random
import time
from collections.abc import Iterator
from datetime import UTC, datetime

from conserver.vcon_forms import uuid8

_WORDS = """
account address again agent amount answer appointment bill call card change check confirm connection contract
cost customer date delivery detail email error exactly friday hold hour invoice issue line manager minute moment
monday month name network number offer order package password phone please problem question refund reset
service speed support system technician thank ticket today tomorrow understand update week würde yesterday
"""
_PLACE = "00000000-0000-4000-8000-000000000000"
_TEMPLATES = 16


def documents(size: int, n: int) -> Iterator[tuple[str, bytes]]:
    """Make *n* vCons of about *size* bytes: each its UUID and its JSON text."""
    templates = _templates(size)
    for at in range(n):
        uuid = uuid8(time.time_ns() // 1_000_000 << 80 | random.getrandbits(80))
        yield uuid, templates[at % len(templates)].replace(_PLACE.encode(), uuid.encode())


@functools.lru_cache(maxsize=8)
def _templates(size: int) -> list[bytes]:
    return [_template(size, random.Random(seed)) for seed in range(_TEMPLATES if size < 100_000 else 2)]


def _template(size: int, chance: random.Random) -> bytes:
    words = _WORDS.split()
    # Today, as new vCons are: their UUIDs begin with the time, and the file storage has a folder for each day.
    now = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    document = {
        "vcon": "0.4.0",
        "uuid": _PLACE,
        "created_at": now,
        "subject": " ".join(chance.choices(words, k=5)),
        "parties": [
            {"tel": f"+1555{chance.randrange(10**7):07}", "name": "Ann Agent", "validation": "none"},
            {"tel": f"+1555{chance.randrange(10**7):07}", "name": "Carl Caller", "validation": "none"},
        ],
        "dialog": [],
        "analysis": [],
        "attachments": [],
    }
    length = len(_text(document))
    # Some hundred bytes a turn: many small objects, as transcripts are, rather than one long string.
    while length < size - 150:
        turn = len(document["dialog"])
        body = " ".join(chance.choices(words, k=30))[: max(1, size - length - 160)]
        document["dialog"].append(
            {
                "type": "text",
                "start": now,
                "parties": [turn % 2],
                "mediatype": "text/plain",
                "body": body,
                "encoding": "none",
            }
        )
        length += len(_text(document["dialog"][-1])) + 1
    return _text(document)


def _text(value: object) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()
