"""Files on an SFTP server: whole, or not at all."""

import contextlib
import errno
import io
import secrets
import stat
from typing import Any


def read(sftp: Any, path: str) -> bytes | None:
    try:
        with sftp.open(path, "rb") as file:
            size = file.stat().st_size or 0
            file.prefetch(size)
            data: bytes = file.read()
    except FileNotFoundError:
        return None
    if len(data) < size:
        raise EOFError(f"{len(data)} of {size} bytes")
    return data


def names(sftp: Any, folder: str) -> list[str]:
    """Name what is in a folder: nothing, if there is none."""
    try:
        found: list[str] = sftp.listdir(folder)
    except FileNotFoundError:
        _check_free(sftp, folder)
        return []
    return found


def _check_free(sftp: Any, folder: str) -> None:
    """Raise NotADirectoryError if a folder cannot be there: OpenSSH says of it, too, that it was not found."""
    try:
        mode = sftp.stat(folder).st_mode
    except FileNotFoundError:
        if above := folder.rpartition("/")[0]:
            _check_free(sftp, above)
        return
    if mode is not None and not stat.S_ISDIR(mode):
        raise NotADirectoryError(errno.ENOTDIR, f"{folder} is no folder")


def write(sftp: Any, path: str, data: bytes) -> None:
    folder, _, name = path.rpartition("/")
    temporary = f"{folder}/.{name}.{secrets.token_hex(4)}.tmp"
    try:
        try:
            sftp.putfo(io.BytesIO(data), temporary, file_size=len(data))
        except FileNotFoundError:
            _make_folder(sftp, folder)
            sftp.putfo(io.BytesIO(data), temporary, file_size=len(data))
        _rename(sftp, temporary, path)
    except OSError:
        with contextlib.suppress(OSError, EOFError):
            sftp.remove(temporary)
        raise


def _rename(sftp: Any, source: str, target: str) -> None:
    try:
        return sftp.posix_rename(source, target)
    except OSError as error:
        if "support" not in str(error).lower():  # "Operation unsupported", in the words of each server
            raise
    # A server without OpenSSH's extension does not rename over a file: for a moment there is none.
    remove(sftp, target)
    return sftp.rename(source, target)


def _make_folder(sftp: Any, folder: str) -> None:
    above = folder.rpartition("/")[0]
    with contextlib.suppress(OSError):  # somebody else has made it at this moment; if not, the write says so
        if above not in ("", "."):
            _make_folder(sftp, above)
        sftp.mkdir(folder)


def remove(sftp: Any, path: str) -> bool:
    try:
        sftp.remove(path)
    except FileNotFoundError:
        return False
    return True
