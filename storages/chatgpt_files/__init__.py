"""Keep each vCon as a file in a vector store of OpenAI, where its file search finds what was said.

    POST {base_url}/files                          the vCon, as {uuid}.vcon.json
    POST {base_url}/vector_stores/{id}/files       that file into the vector store
    DELETE {base_url}/files/{id}                   what that takes the place of

A file cannot be changed. So the new one is uploaded, and only when the vector store has taken it in, the older files of
the vCon are deleted that are there: it is never without the vCon. The same content again changes nothing. Of saves that
meet, the one whose file is the newest stays.

To list the files of an account takes too long for every save. So they have attributes in the vector store (`vcon_uuid`,
`sha256`, `file_id`, `uploaded_at`), by which its search finds them, and the names of the newest files are looked
through as well. A `delete` does list them all, and so finds what has no attributes: files of the existing conserver,
and what a save left behind that broke off between the upload and the vector store.

OpenAI hands out no file that is in a vector store. So the vCon cannot be had back, and there is no `get`.

The key needs the rights to read and write files and vector stores.

Reads: nothing that could be had back. Writes: a file for each vCon.
"""

import hashlib
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from uuid import UUID

from pydantic import Field

from conserver import StorageError, vcons
from conserver.errors import OutboundError, OutboundStatus

from . import service
from .service import Entry, File, Service

#: How many of the newest files are looked through by name: as many as OpenAI takes from one user in a minute.
_NEWEST = 1000
_FIRST_PAUSE_SECS = 0.25
_LONGEST_PAUSE_SECS = 4.0
#: OpenAI's times are in whole seconds.
_TICK_SECS = 1.0
_MOST_UPLOADS = 4


class Options(Service):
    """Which vector store, and how to get in."""

    purpose: str = Field(
        default="assistants", pattern=r"^[a-z_-]+$", description="The purpose of the files: this, or `user_data`."
    )
    processing_secs: float = Field(
        default=40.0, gt=0, description="Seconds that the vector store has for taking a file in."
    )


class _NotTaken(OutboundError):
    """The vector store refuses a file."""


def save(vcon_uuid: str, opts: Options) -> None:
    """Upload the vCon, see it into the vector store, then delete the older files that are there."""
    name = _name(vcon_uuid)
    text = vcons.get(vcon_uuid).to_bytes()
    digest = hashlib.sha256(text).hexdigest()
    with _told("save"):
        found = _find(vcon_uuid, opts)
        kept = max(found, default=None)
        if kept is None or found[kept] != digest or not _is_there(kept, opts):
            kept = _upload(name, text, found, opts)
            _take_in(kept, vcon_uuid, digest, opts)
            found = _find(vcon_uuid, opts)
        for one in sorted(found):
            if one < kept:
                service.remove(opts, one.id)
        if _is_overtaken(kept, found, opts):
            service.remove(opts, kept.id)


def delete(vcon_uuid: str, opts: Options) -> bool:
    """Delete every file of the vCon that the key can see; False if there was none."""
    name = _name(vcon_uuid)
    with _told("delete"):
        named = {one.id for one, its_name in service.all_files(opts) if its_name == name}
        found = {one.id for one in _search(vcon_uuid, opts)}
        # The search goes on finding for a while what was deleted, so that it alone proves nothing.
        removed = [service.remove(opts, file_id) for file_id in sorted(named | found)]
    return bool(named) or any(removed)


def ping(opts: Options) -> None:
    """Raise StorageError if the key cannot read the vector store and the files, or the vector store has expired."""
    with _told("read"):
        status = service.store_status(opts)
        service.newest_files(opts, 1, opts.purpose)
    if status == "expired":
        raise StorageError(f"the vector store {opts.vector_store_id} has expired; make another one")


def _name(vcon_uuid: str) -> str:
    try:
        UUID(vcon_uuid)
    except ValueError as error:
        raise StorageError(f"{vcon_uuid[:80]!r} is no UUID, so it can be no name of a file") from error
    return f"{vcon_uuid}.vcon.json"


# The way in


def _upload(name: str, text: bytes, before: Collection[File], opts: Options) -> File:
    """Upload a file that is newer than those before, so that everybody sees which one is to stay."""
    for _ in range(_MOST_UPLOADS):
        new = service.upload(opts, name, text, opts.purpose)
        if all(one < new for one in before):
            return new
        service.remove(opts, new.id)
        time.sleep(_TICK_SECS)
    raise OutboundError(f"{name}: a new file gets no later time than {max(before).id}, which is there; try later")


def _take_in(one: File, vcon_uuid: str, digest: str, opts: Options) -> None:
    """Put a file into the vector store and wait until it is taken in; if it is refused, delete it."""
    attributes = {"vcon_uuid": vcon_uuid, "sha256": digest, "file_id": one.id, "uploaded_at": one.uploaded_at}
    try:
        _wait(one, service.attach(opts, one.id, attributes), opts)
    except (OutboundStatus, _NotTaken):
        overtaken = False
        with suppress(OutboundError):
            service.remove(opts, one.id)
            # A save that came later may have deleted it meanwhile, and has a newer one there.
            overtaken = _is_overtaken(one, _find(vcon_uuid, opts), opts)
        if not overtaken:
            raise


def _wait(one: File, entry: Entry, opts: Options) -> None:
    where = f"vector store {opts.vector_store_id}: file {one.id}"
    deadline = time.monotonic() + opts.processing_secs
    pause = _FIRST_PAUSE_SECS
    while entry.status == "in_progress":
        left = deadline - time.monotonic()
        if left <= 0:
            # It stays: the next save of the same content finds it there.
            raise OutboundError(
                f"{where} is not taken in after {opts.processing_secs:g} s; try later (processing_secs)"
            )
        time.sleep(min(pause, left))
        pause = min(2 * pause, _LONGEST_PAUSE_SECS)
        now = _entry(one, opts)
        if now is None:
            raise _NotTaken(f"{where} was deleted meanwhile")
        entry = now
    if entry.status != "completed":
        raise _NotTaken(f"{where} is {entry.status}{entry.reason}")


def _is_there(one: File, opts: Options) -> bool:
    """True if the file is in the vector store, or gets there while we wait; the search also finds what was deleted."""
    entry = _entry(one, opts)
    if entry is None or not service.exists(opts, one.id):
        return False
    try:
        _wait(one, entry, opts)
    except _NotTaken:
        return False
    return True


def _is_overtaken(one: File, found: Collection[File], opts: Options) -> bool:
    """True if a newer file of the vCon is in the vector store, from a save that came later."""
    newer = [_entry(other, opts) for other in found if other > one]
    return any(entry is not None and entry.status == "completed" for entry in newer)


# What is there


def _find(vcon_uuid: str, opts: Options) -> dict[File, object]:
    """Return the files of the vCon in the vector store with their digests: by the search, and the newest by name."""
    found = _search(vcon_uuid, opts)
    for one, name in service.newest_files(opts, _NEWEST, opts.purpose):
        if name == _name(vcon_uuid) and one not in found:
            entry = _entry(one, opts)
            if entry is not None:  # otherwise it may be in another vector store, with its own copy of the vCon
                found[one] = entry.attributes.get("sha256")
    return found


def _search(vcon_uuid: str, opts: Options) -> dict[File, object]:
    """Return the files of the vCon that the search finds with their digests."""
    found: dict[File, object] = {}
    while True:
        # An answer has a piece of a file in each place, so a large file may fill it; hence the others, then.
        conditions = [service.condition("vcon_uuid", "eq", vcon_uuid)]
        conditions += [service.condition("file_id", "ne", one.id) for one in sorted(found)]
        new = {
            one.file: one.attributes.get("sha256")
            for one in service.search(opts, vcon_uuid, conditions)
            # Whatever a service makes of the conditions: nothing but files of this vCon is ever deleted.
            if one.name == _name(vcon_uuid) and one.attributes.get("vcon_uuid") == vcon_uuid
        }
        if new.keys() <= found.keys():
            return found
        found |= new


def _entry(one: File, opts: Options) -> Entry | None:
    """Return what the vector store has of a file."""
    try:
        return service.entry(opts, one.id)
    except OutboundStatus as error:
        if error.status != 404:
            raise
        return None


@contextmanager
def _told(action: str) -> Iterator[None]:
    try:
        yield
    except OutboundError as error:
        raise StorageError(f"cannot {action}: {error}") from error
