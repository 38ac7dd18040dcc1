"""The board: shared memory on which threads write what they run and until when.

The supervisor reads it. Nobody pings, so a link that holds the interpreter's lock is not taken for dead before its
time; and when a process has to be killed, the board names the culprit.
"""

from __future__ import annotations

import struct
from ctypes import c_char
from dataclasses import dataclass
from multiprocessing.context import SpawnContext
from typing import Any

# deadline (monotonic seconds, which all processes of a host share; 0 for a free slot), seq, list, vCon, what runs
_LIST_BYTES = 200
_SLOT = struct.Struct(f"<dq{_LIST_BYTES}s64s100s")
_DEADLINE = struct.Struct("<d")
_WHAT = struct.Struct("<100s")
_WHAT_AT = _SLOT.size - _WHAT.size


def board_name(list_name: str) -> str:
    """Return a list's name as it stands on the board, where there is room for so much of it."""
    return list_name.encode()[:_LIST_BYTES].decode("utf-8", "replace")


@dataclass(frozen=True)
class Entry:
    """What one thread does: the claim, the vCon, what runs (a link, a storage) and its deadline."""

    deadline: float
    seq: int
    list: str
    uuid: str
    what: str


class Board:
    """Slots in shared memory; `memory` goes to the process that writes them."""

    def __init__(self, slots: int, context: SpawnContext | None = None, memory: Any = None) -> None:
        self.slots = slots
        self.memory = memory if context is None else context.RawArray(c_char, slots * _SLOT.size)
        self._bytes = memoryview(self.memory).cast("B")

    def take(self, slot: int, seq: int, list_name: str, uuid: str) -> None:
        """Write a claim into *slot*, without a deadline yet."""
        _SLOT.pack_into(
            self._bytes, slot * _SLOT.size, 0.0, seq, list_name.encode()[:_LIST_BYTES], uuid.encode()[:64], b""
        )

    def enter(self, slot: int, what: bytes, deadline: float) -> None:
        """Write what runs now, and until when it may."""
        at = slot * _SLOT.size
        _WHAT.pack_into(self._bytes, at + _WHAT_AT, what)
        # Last, so that a reader never sees a deadline beside the work before.
        _DEADLINE.pack_into(self._bytes, at, deadline)

    def clear(self, slot: int) -> None:
        """Free *slot*."""
        _DEADLINE.pack_into(self._bytes, slot * _SLOT.size, 0.0)

    def read(self) -> list[Entry]:
        """Return what runs now."""
        entries = []
        for slot in range(self.slots):
            deadline, seq, *texts = _SLOT.unpack_from(self._bytes, slot * _SLOT.size)
            if deadline:
                entries.append(Entry(deadline, seq, *(t.rstrip(b"\0").decode("utf-8", "replace") for t in texts)))
        return entries
