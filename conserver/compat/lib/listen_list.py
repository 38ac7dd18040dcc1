"""`lib.listen_list`: the entries of a list, as they come."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any


async def listen_list(r: Any, list_name: str) -> AsyncIterator[Any]:
    """Take one entry after the other, for ever; who dies with one has lost it."""
    while True:
        taken = await r.blpop([list_name], timeout=5)
        if taken:
            yield taken[1]
