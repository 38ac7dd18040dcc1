"""What a link sees of the conserver: `vcons`, `push` and `derived_uuid`.

The link contract, `run(vcon_uuid, link_name, opts)`, has no place for the store, so it is ambient: bound to the run
of the chain that the thread works on. Outside of a chain, in a script say, it works on the server of `REDIS_URL`.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import cache

from conserver.claims import is_uuid
from conserver.errors import ConserverError, LinkError
from conserver.queue import Queue
from conserver.settings import Settings
from conserver.store import VconStore
from conserver.vcon import Vcon, derived_uuid, dump, to_version
from conserver.writer import Writer

#: Ten years.
LONGEST_EXPIRY_SECS = 10 * 365 * 86400


class Work:
    """What one run of a chain asks for: a writer of its own, and what is to be done when it settles."""

    def __init__(self, writer: Writer) -> None:
        self.writer = writer
        self.pushes: list[tuple[str, str]] = []
        self.expire_secs: int | None = None


_local = threading.local()


@contextmanager
def working(work: Work) -> Iterator[Work]:
    """Bind *work* to this thread while the block runs."""
    before = getattr(_local, "work", None)
    _local.work = work
    try:
        yield work
    finally:
        _local.work = before


def bind(work: Work | None) -> None:
    """Bind *work* to this thread; the cheap form of `working` for the hot path."""
    _local.work = work


def current() -> Work | None:
    """Return the work that is bound to this thread."""
    return getattr(_local, "work", None)


def store() -> VconStore:
    """Return the store of the work that is bound to this thread; outside of a chain, that of `REDIS_URL`."""
    work = current()
    return work.writer.store if work else _server()[0]


@cache
def _server() -> tuple[VconStore, Queue]:
    settings = Settings.from_env()
    if settings.redis_url is None:
        raise ConserverError("outside of a chain, conserver.vcons needs REDIS_URL in the environment")
    return VconStore(settings.redis_url, settings), Queue(settings.redis_url)


@cache
def _egress_version(value: str) -> str | None:
    # To read the whole environment anew costs as much as to parse a vCon.
    return Settings.from_env({"EGRESS_FORMAT_VERSION": value}).egress_format_version


class Vcons:
    """The vCons, as the link that runs in this thread may see and change them."""

    def _writer(self) -> Writer:
        work: Work | None = getattr(_local, "work", None)
        return work.writer if work else _server()[0].writer()

    def get(self, uuid: str) -> Vcon:
        """Return the vCon, migrated to the current draft; raise VconNotFound."""
        return self._writer().get(uuid)

    def edit(self, uuid: str) -> AbstractContextManager[Vcon]:
        """Yield the vCon and save it at the end of the block if it was changed.

        What others change meanwhile is merged. Raises VconSealed for a signed or encrypted vCon, and VconConflict
        when somebody changed the same part: let it pass, and the link runs again on the new copy.
        """
        return self._writer().edit(uuid)

    def egress(self, vcon: str | Vcon, version: str | None = None) -> bytes:
        """Return the text of the vCon (or of the one with this UUID) in the version that consumers get.

        That is *version*, or else `EGRESS_FORMAT_VERSION`, or else the current one.
        """
        document = (self.get(vcon) if isinstance(vcon, str) else vcon).document
        version = version or _egress_version(os.environ.get("EGRESS_FORMAT_VERSION", ""))
        return dump(to_version(document, version) if version else document)

    def save(self, vcon: Vcon) -> None:
        """Save a vCon: one that was read is merged with what others wrote, one that was built replaces them."""
        self._writer().save(vcon)

    def delete(self, uuid: str) -> bool:
        """Delete a vCon from Redis and the index, for good; False if it was not there. Storages keep theirs."""
        return self._writer().delete(uuid)

    def expire(self, uuid: str, seconds: int) -> None:
        """Ask that the copy in Redis of the vCon at hand expires *seconds* after the chain has settled.

        LinkError unless that is a whole number from 1 to ten years.
        """
        if isinstance(seconds, bool) or not isinstance(seconds, int) or not 0 < seconds <= LONGEST_EXPIRY_SECS:
            raise LinkError(f"a vCon cannot expire in {seconds!r} seconds: from 1 to {LONGEST_EXPIRY_SECS} is possible")
        work: Work | None = getattr(_local, "work", None)
        if work:
            work.expire_secs = seconds
        else:
            _server()[0].expire([(uuid, "*", seconds)])


vcons = Vcons()


def push(list_name: str, uuid: str) -> None:
    """Push *uuid* to a list.

    Inside a link this happens when the chain settles, in one step with everything else: a chain that runs again
    after a crash pushes once, and one that ends as a dead letter pushes nothing. LinkError for what is no UUID or no
    name of a list.
    """
    uuid = str(uuid)
    if not is_uuid(uuid):
        raise LinkError(f"{uuid!r:.60} cannot be pushed to list {list_name!r:.60}: it is no UUID")
    if not isinstance(list_name, str) or not list_name or not list_name.isprintable():
        raise LinkError(f"{list_name!r:.60} is no name of a list")
    work: Work | None = getattr(_local, "work", None)
    if work:
        work.pushes.append((list_name, uuid))
    else:
        _server()[1].push(list_name, [uuid])


__all__ = ["Vcons", "Work", "derived_uuid", "push", "vcons", "working"]
