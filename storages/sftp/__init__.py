"""Keep each vCon in a file of its own on an SFTP server.

    {path}/{filename}[_{time}]_{uuid}.{extension}     the vCon
    {path}/.lookup/{xx}/{uuid}                        the name of that file: where to find it

The time is that of `created_at`, in UTC, as 20260102T030405Z; a vCon without a date has none in its name. `xx` are two
digits of the UUID, so that no folder gets too large. The existing conserver never wrote anything there: its upload
calls itself until it fails.

A file is written beside its place and then renamed, so that there is never half a vCon under a name that counts. Before
that, the lookup file names the place, beside an older one if there is one; when the vCon is written, the older one is
removed. So whatever a crash leaves is found by the next save or delete. It is the server that decides when a file is on
its disk.

The server must be known: its key is in `known_hosts`, or has the `fingerprint` that is given.

Reads: the file of a vCon, and its lookup file. Writes: two files for each vCon.
Needs: conserver[sftp].
"""

import contextlib
import heapq
import re
import secrets
from collections.abc import Iterator
from datetime import UTC, datetime
from functools import partial
from typing import Any

from pydantic import Field, field_validator

from conserver import StorageError, Vcon, vcons

from . import files
from .server import Server, run

_UUID = re.compile(r"[0-9a-fA-F]{8}-(?:[0-9a-fA-F]{4}-){3}[0-9a-fA-F]{12}", re.ASCII)
_NAME = re.compile(r"[^/\\\x00-\x1f\x7f]+")
_LOOKUP, _SHARD = ".lookup", re.compile(r"[0-9a-f]{2}")
_PAGE = 100_000


class Options(Server):
    """Where, and how to get in."""

    path: str = Field(default=".", min_length=1, description="The folder; it is made if it is not there.")
    filename: str = Field(default="vcon", description="What the names of the files begin with.")
    add_timestamp_to_filename: bool = Field(
        default=True, description="Whether they go on with the time of `created_at`, in UTC."
    )
    extension: str = Field(default="json", description="What they end with, after the dot.")
    name: str = Field(default="sftp", description="Of no effect; the existing conserver has it.")

    @field_validator("filename", "extension")
    @classmethod
    def _is_a_name(cls, name: str) -> str:
        if not _NAME.fullmatch(name):
            raise ValueError("must be a part of a file's name: without slashes, and not empty")
        return name

    @property
    def folder(self) -> str:
        """The folder, fit for a slash behind it."""
        return self.path.rstrip("/")


def save(vcon_uuid: str, opts: Options) -> None:
    """Write the vCon; one that is there already is replaced."""
    _check_uuid(vcon_uuid)
    vcon = vcons.get(vcon_uuid)
    text, name = vcon.to_bytes(), _name(vcon, vcon_uuid, opts)

    def work(sftp: Any) -> None:
        names = _names(sftp, vcon_uuid, opts)
        if name not in names:
            _point(sftp, vcon_uuid, [*names, name], opts)
        files.write(sftp, f"{opts.folder}/{name}", text)
        stale = [other for other in names if other != name]
        if stale:
            # First, so that a reader never takes the older one for the vCon.
            _point(sftp, vcon_uuid, [name, *stale], opts)
            for other in stale:
                files.remove(sftp, f"{opts.folder}/{other}")
            _point(sftp, vcon_uuid, [name], opts)

    run("write to", opts, work)


def get(vcon_uuid: str, opts: Options) -> dict[str, Any] | None:
    """Return the stored vCon, or None if there is none."""
    _check_uuid(vcon_uuid)

    def work(sftp: Any) -> tuple[str, bytes] | None:
        for name in _names(sftp, vcon_uuid, opts):
            text = files.read(sftp, f"{opts.folder}/{name}")
            if text is not None:
                return name, text
        return None

    found = run("read from", opts, work)
    if found is None:
        return None
    try:
        return Vcon.parse(found[1], migrate=False).document
    except ValueError as error:
        raise StorageError(f"{opts.where}/{found[0]} is no vCon: {error}") from error


def delete(vcon_uuid: str, opts: Options) -> bool:
    """Remove the vCon and its lookup file; False if there was none."""
    _check_uuid(vcon_uuid)

    def work(sftp: Any) -> bool:
        removed = [files.remove(sftp, f"{opts.folder}/{name}") for name in _names(sftp, vcon_uuid, opts)]
        files.remove(sftp, _lookup(vcon_uuid, opts))
        return any(removed)

    return run("delete from", opts, work)


def list_uuids(opts: Options, after: str = "") -> Iterator[str]:
    """Yield the UUIDs of stored vCons in order, those behind *after*. Looks at all names, for each 100,000 once."""
    while page := run("list", opts, partial(_page, after, opts)):
        yield from page
        after = page[-1]


def ping(opts: Options) -> None:
    """Raise StorageError if no file can be written."""
    name = f"{opts.folder}/.ping-{secrets.token_hex(4)}"

    def work(sftp: Any) -> None:
        files.write(sftp, name, b"{}")
        files.remove(sftp, name)

    run("write to", opts, work)


# Where things are


def _check_uuid(vcon_uuid: str) -> None:
    # It becomes a file's name: nothing that climbs out of the folder may get there.
    if not _UUID.fullmatch(vcon_uuid):
        raise StorageError(f"{vcon_uuid[:80]!r} is no UUID, so it can be no file's name")


def _name(vcon: Vcon, vcon_uuid: str, opts: Options) -> str:
    time = ""
    if opts.add_timestamp_to_filename:
        with contextlib.suppress(TypeError, ValueError, OverflowError):
            created = datetime.fromisoformat(vcon.created_at or "")
            utc = created.astimezone(UTC) if created.tzinfo else created
            time = f"_{utc.year:04}{utc:%m%dT%H%M%S}Z"
    return f"{opts.filename}{time}_{vcon_uuid}.{opts.extension}"


def _lookup(vcon_uuid: str, opts: Options) -> str:
    # These digits differ from vCon to vCon, whatever the UUID's version.
    return f"{opts.folder}/{_LOOKUP}/{vcon_uuid[16:18].lower()}/{vcon_uuid}"


def _names(sftp: Any, vcon_uuid: str, opts: Options) -> list[str]:
    """Name the files in which the vCon may be, the right one first."""
    text = files.read(sftp, _lookup(vcon_uuid, opts)) or b""
    lines = text.decode("utf-8", "replace").splitlines()
    # Others can write there, too: nothing that climbs out of the folder, and no other vCon.
    return [line for line in lines if vcon_uuid in line and _NAME.fullmatch(line)]


def _page(after: str, opts: Options, sftp: Any) -> list[str]:
    return heapq.nsmallest(_PAGE, (uuid for uuid in _all_uuids(sftp, opts) if uuid > after))


def _all_uuids(sftp: Any, opts: Options) -> Iterator[str]:
    top = f"{opts.folder}/{_LOOKUP}"
    for shard in filter(_SHARD.fullmatch, files.names(sftp, top)):
        for name in files.names(sftp, f"{top}/{shard}"):
            # Elsewhere, a lookup file is none.
            if _UUID.fullmatch(name) and _lookup(name, opts) == f"{top}/{shard}/{name}":
                yield name


def _point(sftp: Any, vcon_uuid: str, names: list[str], opts: Options) -> None:
    files.write(sftp, _lookup(vcon_uuid, opts), "".join(f"{name}\n" for name in names).encode())
