"""Keep each vCon in a file of its own.

    {path}/[YYYY/MM/DD/]{uuid}.json[.gz]

The date is the one that `created_at` says, as it is written there; a vCon without a date lies in `path` itself. A
file is written beside its place, flushed to the disk and then renamed, so that there is never half a vCon under a name
that counts. Then copies of this vCon under another date or ending are removed.

A vCon is found without a look at every folder: UUIDs of versions 7 and 8 begin with a time, and where that is not of
the same day as `created_at`, `{path}/.lookup/` holds a symbolic link. Only what another program has put elsewhere, and
a UUID that is not there at all, is looked for in the folder of each day, newest first.

What cannot be written (a full or read-only disk, a vCon over `max_file_size`) is a StorageError that says so.

Reads: the file of a vCon. Writes: a file for each vCon, and symbolic links that lead to it.
"""

import contextlib
import errno
import gzip
import heapq
import os
import re
import secrets
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, Field, WithJsonSchema

from conserver import StorageError, Vcon, vcons

_UUID = re.compile(r"[0-9a-fA-F]{8}-(?:[0-9a-fA-F]{4}-){3}[0-9a-fA-F]{12}", re.ASCII)
_NAME = re.compile(rf"({_UUID.pattern})\.json(?:\.gz)?", re.ASCII)
_ENDINGS = (".json", ".json.gz")
_LOOKUP = ".lookup"
#: UUIDs that are kept in memory to be put in order.
_PAGE = 100_000


def _mode(given: Any) -> int:
    mode = given
    if isinstance(given, str):
        with contextlib.suppress(ValueError):
            mode = int(given.lower().removeprefix("0o"), 8)
    if not isinstance(mode, int) or isinstance(mode, bool) or not 0o400 <= mode <= 0o777:
        raise ValueError("must be an octal number from 0o400 to 0o777, as 0o644 or '644'")
    return mode


def _folder_mode(mode: int) -> int:
    if mode & 0o700 != 0o700:
        raise ValueError("must let the owner do everything (0o7..), or nothing could be saved there")
    return mode


_Mode = Annotated[
    int,
    BeforeValidator(_mode),
    WithJsonSchema({"anyOf": [{"type": "integer"}, {"type": "string"}], "x-type": "octal number"}),
]
# Absolute from the start: a link may change the working directory.
_Folder = Annotated[str, Field(min_length=1), AfterValidator(os.path.abspath)]


class Options(BaseModel):
    """Where and how."""

    path: _Folder = Field(default="/data/vcons", description="The folder; it is made if it is not there.")
    organize_by_date: bool = Field(
        default=True,
        description="Whether there is a folder for each day, the one that `created_at` names as it is written there. A "
        "vCon without a date lies in `path` itself.",
    )
    compression: bool = Field(default=False, description="Whether the files are gzipped.")
    max_file_size: int = Field(default=10_485_760, ge=1, description="Largest vCon, in bytes of JSON text.")
    file_permissions: _Mode = Field(
        default=0o644,
        description='Mode of the files, whatever the umask; `0o644` and `"644"` mean the same.',
        json_schema_extra={"default": "0o644"},
    )
    dir_permissions: Annotated[_Mode, AfterValidator(_folder_mode)] = Field(
        default=0o755,
        description="Mode of the folders that are made here. Folders that were there keep theirs.",
        json_schema_extra={"default": "0o755"},
    )
    fsync: bool = Field(
        default=True,
        description="Whether a save waits for the disk. Without it, a power cut may lose the last seconds; a crash of "
        "the conserver loses nothing.",
    )


def save(vcon_uuid: str, opts: Options) -> None:
    """Write the vCon; one that is there already is replaced."""
    _check_uuid(vcon_uuid)
    vcon = vcons.get(vcon_uuid)
    text = vcon.to_bytes()
    if len(text) > opts.max_file_size:
        raise StorageError(
            f"vCon {vcon_uuid} has {len(text):,} bytes, more than max_file_size ({opts.max_file_size:,})"
        )
    folder = os.path.join(opts.path, _day(vcon)) if opts.organize_by_date else opts.path
    file = os.path.join(folder, vcon_uuid + _ENDINGS[opts.compression])
    with _told("write", file):
        _write(file, gzip.compress(text, 6, mtime=0) if opts.compression else text, opts)
        before = _pointed(vcon_uuid, opts)
        _point(vcon_uuid, file, before, opts)
        for other in {before or file, *_places(vcon_uuid, (folder, *_homes(vcon_uuid, opts)))} - {file}:
            _remove(other)


def get(vcon_uuid: str, opts: Options) -> dict[str, Any] | None:
    """Return the stored vCon, or None if there is none."""
    _check_uuid(vcon_uuid)
    with _told("read from", opts.path):
        for file in _copies(vcon_uuid, opts):
            try:
                with open(file, "rb") as stream:
                    text = stream.read()
            except FileNotFoundError:
                continue
            try:
                return Vcon.parse(text, migrate=False).document
            except ValueError as error:
                raise StorageError(f"{file} is no vCon: {error}") from error
    return None


def exists(vcon_uuid: str, opts: Options) -> bool:
    """Tell whether the vCon is stored."""
    _check_uuid(vcon_uuid)
    with _told("read from", opts.path):
        return any(os.path.exists(file) for file in _copies(vcon_uuid, opts))


def delete(vcon_uuid: str, opts: Options) -> bool:
    """Remove every copy of the vCon, and folders that this leaves empty; False if there was none."""
    _check_uuid(vcon_uuid)
    with _told("delete from", opts.path):
        removed = [file for file in set(_copies(vcon_uuid, opts)) if _remove(file)]
        _remove(_pointer(vcon_uuid, opts))
        for file in removed:
            _prune(os.path.dirname(file), opts.path)
    return bool(removed)


def ping(opts: Options) -> None:
    """Raise StorageError if no file can be written."""
    file = os.path.join(opts.path, f".ping-{secrets.token_hex(4)}")
    with _told("write", file):
        try:
            _write(file, b"{}", opts)
        finally:
            _remove(file)


def list_uuids(opts: Options, after: str = "") -> Iterator[str]:
    """Yield the UUIDs of stored vCons in order, those behind *after*. Looks at every name, for each 100,000 once."""
    with _told("list", opts.path):
        while page := heapq.nsmallest(_PAGE, (uuid for uuid, _ in _all_files(opts.path) if uuid > after)):
            after = page[-1]
            # One of which two copies are there comes once.
            yield from dict.fromkeys(page)


def list_vcons(opts: Options, limit: int = 100, offset: int = 0) -> list[str]:
    """Return the UUIDs of stored vCons, the latest written first. Looks at every file."""
    with _told("list", opts.path):
        newest = heapq.nlargest(offset + limit, _written(opts.path))
    return [uuid for _, uuid in newest[offset:]]


# Where things are


def _check_uuid(vcon_uuid: str) -> None:
    # It becomes a file's name: nothing that climbs out of the folder may get there.
    if not _UUID.fullmatch(vcon_uuid):
        raise StorageError(f"{vcon_uuid[:80]!r} is no UUID, so it can be no file's name")


def _day(vcon: Vcon) -> str:
    try:
        created_at = datetime.fromisoformat(vcon.created_at or "")
    except (TypeError, ValueError):
        return ""
    return f"{created_at.year:04}/{created_at.month:02}/{created_at.day:02}"


def _homes(vcon_uuid: str, opts: Options) -> tuple[str, ...]:
    """Name the folders in which a vCon needs no lookup link."""
    if vcon_uuid[14] not in "78":
        return (opts.path,)
    try:
        begun = datetime.fromtimestamp(int(vcon_uuid[:8] + vcon_uuid[9:13], 16) / 1000, UTC)
    except (ValueError, OverflowError):
        return (opts.path,)
    return os.path.join(opts.path, f"{begun:%Y/%m/%d}"), opts.path


def _pointer(vcon_uuid: str, opts: Options) -> str:
    # These digits differ from vCon to vCon, whatever the UUID's version; the first and the last need not.
    return os.path.join(opts.path, _LOOKUP, vcon_uuid[16:18].lower(), vcon_uuid)


def _pointed(vcon_uuid: str, opts: Options) -> str | None:
    pointer = _pointer(vcon_uuid, opts)
    try:
        target = os.readlink(pointer)
    except FileNotFoundError:
        return None
    return os.path.normpath(os.path.join(os.path.dirname(pointer), target))


def _places(vcon_uuid: str, folders: Iterable[str]) -> Iterator[str]:
    for folder in folders:
        for ending in _ENDINGS:
            yield os.path.join(folder, vcon_uuid + ending)


def _copies(vcon_uuid: str, opts: Options) -> Iterator[str]:
    """Name the places where the vCon may be, the right one first."""
    pointed = _pointed(vcon_uuid, opts)
    if pointed:
        yield pointed
    yield from _places(vcon_uuid, _homes(vcon_uuid, opts))
    yield from _places(vcon_uuid, _days(opts.path, 3))


def _days(folder: str, levels: int) -> Iterator[str]:
    if levels == 0:
        yield folder
        return
    try:
        names = sorted((name for name in os.listdir(folder) if name.isdecimal()), reverse=True)
    except (FileNotFoundError, NotADirectoryError):
        return
    for name in names:
        yield from _days(os.path.join(folder, name), levels - 1)


def _written(folder: str) -> Iterator[tuple[float, str]]:
    """Yield of each file when it was written, and its UUID."""
    for uuid, file in _all_files(folder):
        with contextlib.suppress(FileNotFoundError):
            yield os.stat(file).st_mtime, uuid


def _all_files(folder: str) -> Iterator[tuple[str, str]]:
    """Yield the UUID and the path of each file; a folder that cannot be looked into is an OSError."""
    for at, folders, names in os.walk(folder, onerror=_unless_gone):
        folders[:] = [name for name in folders if name.isdecimal()]
        for name in names:
            found = _NAME.fullmatch(name)
            if found:
                yield found[1], os.path.join(at, name)


def _unless_gone(error: OSError) -> None:
    # A folder of which the last file was deleted just now is removed.
    if not isinstance(error, FileNotFoundError):
        raise error


# Writing


def _write(file: str, data: bytes, opts: Options) -> None:
    folder, name = os.path.split(file)
    temporary = os.path.join(folder, f".{name}.{secrets.token_hex(4)}.tmp")
    descriptor = _create(temporary, opts)
    try:
        try:
            os.fchmod(descriptor, opts.file_permissions)
            rest = memoryview(data)
            while rest:
                rest = rest[os.write(descriptor, rest) :]
            if opts.fsync:
                os.fsync(descriptor)
        finally:
            os.close(descriptor)
        os.replace(temporary, file)
    except BaseException:
        _remove(temporary)
        raise
    if opts.fsync:
        _sync(folder)


def _create(file: str, opts: Options) -> int:
    for tries_left in range(10, -1, -1):
        try:
            return os.open(file, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600)
        except FileNotFoundError:
            if not tries_left:
                raise
        # The first of its day; or a delete removes the folder, which is empty, at this very moment.
        with contextlib.suppress(FileNotFoundError):
            _make_folder(os.path.dirname(file), opts)
    raise AssertionError("the last try returns or raises")


def _make_folder(folder: str, opts: Options) -> None:
    """Make the folder and those above it that are missing; one that is there keeps its mode."""
    above = os.path.dirname(folder)
    if not os.path.isdir(above):
        _make_folder(above, opts)
    with contextlib.suppress(FileExistsError):
        os.mkdir(folder, 0o700)
        os.chmod(folder, opts.dir_permissions)
        if opts.fsync:
            _sync(above)


def _sync(folder: str) -> None:
    """Wait until the names in a folder are on the disk."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _point(vcon_uuid: str, file: str, before: str | None, opts: Options) -> None:
    """Let the lookup link, which leads to *before*, lead to *file*, if that needs one."""
    pointer = _pointer(vcon_uuid, opts)
    if os.path.dirname(file) in _homes(vcon_uuid, opts):
        if before:
            _remove(pointer)
        return
    if before == file:
        return
    target = os.path.join("..", "..", os.path.relpath(file, opts.path))
    temporary = f"{pointer}.{secrets.token_hex(4)}.tmp"
    try:
        os.symlink(target, temporary)
    except FileNotFoundError:
        _make_folder(os.path.dirname(pointer), opts)
        os.symlink(target, temporary)
    os.replace(temporary, pointer)


def _remove(file: str) -> bool:
    try:
        os.unlink(file)
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def _prune(folder: str, top: str) -> None:
    """Remove empty folders from here up to the top, which stays."""
    while folder != top:
        try:
            os.rmdir(folder)
        except OSError as error:
            if error.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOENT):
                return
            raise
        folder = os.path.dirname(folder)


_CURES = {
    errno.ENOSPC: "make room on that disk",
    errno.EDQUOT: "make room, or ask for a larger quota",
    errno.EROFS: "it is mounted read-only: give another path, or mount it for writing",
    errno.EACCES: "let the user of the conserver write there, or give another path",
    errno.EPERM: "let the user of the conserver write there, or give another path",
    errno.ENOTDIR: "a part of the path is no folder: give another path",
}


@contextmanager
def _told(action: str, file: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        cure = _CURES.get(error.errno or 0)
        raise StorageError(f"cannot {action} {file}: {error.strerror}{f'; {cure}' if cure else ''}") from error
