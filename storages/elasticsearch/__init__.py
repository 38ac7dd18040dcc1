"""Keep each vCon in Elasticsearch or OpenSearch: its parts to be searched, and the whole to be had back.

    {index_prefix}vcon_parties, or vcon_parties_{role}        a document for each party
    {index_prefix}vcon_attachments_{type or purpose}          for each attachment
    {index_prefix}vcon_analysis_{type}                        for each analysis
    {index_prefix}vcon_dialog                                 for each dialog
    {index_prefix}vcon_documents                              for each vCon, with its exact text

The first four are those of the existing conserver, and their documents as well: the id `{uuid}_{position}`, the members
of the part with a JSON body decoded, `vcon_id`, `started_at` of the first dialog, and `tenant_id`. The last one is new:
by it `get` gives back the very vCon, and a save knows what an earlier one has left to be removed.

A save writes the document first, with a generation above that of the one before and with the places of all parts, old
and new; then the parts, with the generation as their external version. So whatever a crash leaves is found by the next
save or delete, and of two saves of one vCon that meet, the older one can change nothing any more.

It speaks plain HTTP with Elasticsearch 7.17 to 9 and OpenSearch alike: Elastic's own client takes no OpenSearch, and in
each version only some versions of the server.

Reads: the document of a vCon. Writes: a document for each vCon, and one for each of its parts.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from secrets import token_hex
from typing import Any

from conserver import StorageError, Vcon, outbound, vcons
from conserver.errors import OutboundError, OutboundStatus
from conserver.outbound import Backoff, Retryable

from .options import Options
from .parts import Part, documents_index, listed, pieces, taken_apart
from .server import Server

__all__ = ["Options", "delete", "get", "list_uuids", "ping", "save"]

#: How far ahead the first try is of a clock that was wrong, in the microseconds of generations; each one doubles it.
_AHEAD = 60_000_000


def save(vcon_uuid: str, opts: Options) -> None:
    """Write the vCon over what is there, and remove parts that only an earlier version had."""
    vcon = vcons.get(vcon_uuid)
    text = vcon.to_bytes().decode()
    shown = Vcon.parse(vcons.egress(vcon, opts.format_version), migrate=False)
    parts = taken_apart(vcon_uuid, shown, opts.index_prefix)
    saving = _Saving(vcon_uuid, text, parts, opts)
    with _told("save to", opts):
        _until_alone(saving.attempt, vcon_uuid, opts)


def get(vcon_uuid: str, opts: Options) -> dict[str, Any] | None:
    """Return the stored vCon, or None if there is none."""
    with _told("read from", opts):
        known, _ = Server(opts).look(vcon_uuid, text=True)
    if known is None:
        return None
    try:
        return Vcon.parse(known.text or "", migrate=False).document
    except ValueError as error:
        where = f"document {vcon_uuid} of index {documents_index(opts.index_prefix)} at {opts.address}"
        raise StorageError(f"{where} is no vCon: {error}") from error


def delete(vcon_uuid: str, opts: Options) -> bool:
    """Delete the vCon and all of its parts, whoever wrote them; False if there was nothing."""
    server = Server(opts)
    removed = False

    def attempt() -> None:
        nonlocal removed
        known, _ = server.look(vcon_uuid)
        if known is not None:
            removed = True
            # Also those that are not there yet: a save that is still under way can write them no more.
            server.write(vcon_uuid, max(_now(), known.generation + 2), known.places, ())
        count, all_of_it = server.remove_found(vcon_uuid)
        removed = removed or count > 0
        # Last: as long as it is there, what is left is found again.
        if not all_of_it or (known is not None and not server.remove(vcon_uuid, known)):
            raise Retryable(f"{opts.address}: the vCon is being saved at this moment")

    with _told("delete from", opts):
        _until_alone(attempt, vcon_uuid, opts)
    return removed


def list_uuids(opts: Options, after: str = "") -> Iterator[str]:
    """Yield the UUIDs of stored vCons in order, those behind *after*: of all that have a document."""
    with _told("list", opts):
        yield from Server(opts).uuids(after)


def ping(opts: Options) -> None:
    """Raise StorageError if vCons cannot be read and written; the index for them is made if it is missing."""
    server = Server(opts)
    with _told("write to", opts):
        server.make(server.look("ping")[1])
        server.try_to_write()


class _Saving:
    """One save, over all its attempts."""

    def __init__(self, vcon_uuid: str, text: str, parts: list[Part], opts: Options) -> None:
        self._uuid = vcon_uuid
        self._text = pieces(text)
        self._parts = parts
        self._places = frozenset(part.place for part in parts)
        self._server = Server(opts)
        self._address = opts.address
        self._least = 0
        self._ahead = _AHEAD

    def attempt(self) -> None:
        """Save, or raise Retryable if somebody else has come in between."""
        server, uuid = self._server, self._uuid
        before, missing = server.look(uuid, {place.index for place in self._places})
        server.make(missing)
        # What the existing conserver has written, no document names.
        stale = (before.places if before else server.find(uuid)) - self._places
        generation = max(_now(), before.generation + 2 if before else 0, self._least)
        mine = token_hex(8)
        head = {"vcon_id": uuid, "generation": generation, "save": mine, "parts": listed(self._places | stale)}
        written = server.put(uuid, Vcon({**head, "text": self._text}).to_bytes(), before)
        if written is None:
            # Or by ourselves, and the answer was lost: then it is what we find the next time.
            raise Retryable(f"{self._address}: the vCon is being saved by others all the time")
        outcome = server.write(uuid, generation, stale, self._parts)
        if outcome.dropped:
            raise Retryable(f"{self._address}: an index of parts was deleted meanwhile")
        if outcome.overtaken:
            now, _ = server.look(uuid)
            if now is not None and now.save == mine:
                # Nobody is newer: a part was written, or deleted, by a clock that is ahead of ours.
                self._least = generation + self._ahead
                self._ahead *= 2
                raise Retryable(f"{self._address}: parts of the vCon have versions of a later time; compare the clocks")
        elif stale:
            server.forget(uuid, self._places, written)


def _now() -> int:
    return time.time_ns() // 1000


def _until_alone(attempt: Callable[[], None], vcon_uuid: str, opts: Options) -> None:
    # Every time that somebody comes in between, they have got further; so it needs many attempts, and short waits.
    backoff = Backoff(attempts=32, wait_secs=0.05, max_wait_secs=1.0, total_secs=opts.timeout)
    outbound.retrying(f"vCon {vcon_uuid} at {opts.address}", attempt, backoff)


_CURES = {
    401: "check api_key, or username and password",
    403: "the key or the role needs read, write, create_index and maintenance on these indexes; if it has them, see "
    "whether they are blocked, as those of a full disk are",
    404: "is url that of Elasticsearch or OpenSearch?",
    413: "let the server take more (http.max_content_length)",
    429: "the server has more to do than it can, or its disk is full",
}


@contextmanager
def _told(action: str, opts: Options) -> Iterator[None]:
    try:
        yield
    except OutboundError as error:
        cure = _CURES.get(error.status) if isinstance(error, OutboundStatus) else None
        if "CERTIFICATE_VERIFY_FAILED" in str(error):
            cure = "give ca_certs, the file with the authority that has signed its certificate"
        message = f"cannot {action} indexes {opts.index_prefix}vcon_*: {error}{f'; {cure}' if cure else ''}"
        raise StorageError(message) from error
