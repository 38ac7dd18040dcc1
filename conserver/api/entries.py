"""Entries of lists as JSON: UUIDs mostly, but anybody may push, and what is no text has to be named as well."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Annotated

from pydantic import Field

#: The name of a list, a chain or a worker in a body: on one line, and not too long for logs.
NAME = r"^[^\x00-\x1f\x7f-\x9f\u2028\u2029]+$"
Name = Annotated[str, Field(min_length=1, max_length=200, pattern=NAME)]

_ESCAPED = re.compile(rb"\\x([89a-f][0-9a-f])")


def text_of(entry: bytes) -> str:
    """Return an entry as text; a byte that is not UTF-8 is written as `\\xff`."""
    return entry.decode("utf-8", "backslashreplace")


def entries_of(texts: Iterable[str]) -> Iterator[bytes]:
    """Yield the entries that `text_of` may have turned into these texts: one each, or two for one with escapes."""
    for text in texts:
        entry = text.encode("utf-8", "replace")
        yield entry
        raw = _ESCAPED.sub(lambda match: bytes.fromhex(match[1].decode()), entry)
        if raw != entry and text_of(raw) == text:
            yield raw
