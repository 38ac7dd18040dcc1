"""The moment at which what a thread asks of others has to end, whatever limits each request has of its own."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager


class _Deadline(threading.local):
    end = math.inf


_deadline = _Deadline()


@contextmanager
def until(end: float) -> Iterator[None]:
    """Let nothing that the block asks for over `outbound`, on this thread, go on beyond *end*, a monotonic time."""
    before = _deadline.end
    _deadline.end = min(before, end)
    try:
        yield
    finally:
        _deadline.end = before


def thread_deadline() -> float:
    """Return the end that this thread has, inf if it has none."""
    return _deadline.end


def secs_left() -> float:
    """Return the seconds until then; they may be negative."""
    return _deadline.end - time.monotonic()
