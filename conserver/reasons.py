"""How an exception becomes the reason of a dead letter or a line of the log, without secrets."""

from __future__ import annotations

import os
from collections.abc import Collection
from traceback import format_exception

from conserver.errors import LinkError, StorageError
from conserver.findings import without

_OURS = os.path.dirname(__file__) + os.sep
#: What is kept of an error's message.
MOST_CHARACTERS = 8000


def describe(error: BaseException, secrets: Collection[str] = ()) -> str:
    """Return an exception in a sentence: its type unless it is one of ours, and its message without *secrets*."""
    try:
        text = str(error)
    except Exception as trouble:  # noqa: BLE001  other people's exceptions, too
        text = f"its message cannot be had: {type(trouble).__name__}"
    text = without(secrets, text[:MOST_CHARACTERS])
    if isinstance(error, LinkError | StorageError) and text:
        return text
    if isinstance(error, SystemExit):
        return f"it called exit ({text})"
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def traceback_of(error: BaseException, secrets: Collection[str]) -> str:
    """Return where an exception came from, from the first frame that is not ours, without *secrets*."""
    # Our own frames, which come first, say nothing about the link.
    theirs = error.__traceback__
    while theirs is not None and theirs.tb_frame.f_code.co_filename.startswith(_OURS):
        theirs = theirs.tb_next
    text = "".join(format_exception(type(error), error, theirs or error.__traceback__)).rstrip()
    # Its end says most.
    return without(secrets, text[-4 * MOST_CHARACTERS :])


def cause(error: BaseException, *kinds: type[BaseException]) -> BaseException | None:
    """Return the first of an exception and what has led to it that is one of *kinds*."""
    seen: BaseException | None = error
    for _ in range(10):
        if seen is None or isinstance(seen, kinds):
            break
        seen = seen.__cause__ or seen.__context__
    return seen if isinstance(seen, kinds) else None


def caused_by(error: BaseException, *kinds: type[BaseException]) -> bool:
    """Say whether an exception is one of *kinds*, or one of these has led to it."""
    return cause(error, *kinds) is not None
