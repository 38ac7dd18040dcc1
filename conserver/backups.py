"""Backups: a file is replaced as a whole, by one at a time, and what it said before stays beside it.

    with alone(target):
        backup = swap(target, data, before=target.read_bytes())

Whoever reads the file finds the old one or the new one, also after a power cut or a kill in the middle.
"""

from __future__ import annotations

import fcntl
import os
import re
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from errno import EBUSY, EXDEV
from pathlib import Path

from conserver.errors import ConfigError

BACKUPS = 10
"""As many of the files that were replaced are kept."""
LOCK_SECS = 60.0
"""For how long one who wants to replace the file waits for another."""


class ConfigBusy(ConfigError):
    """Somebody else changes the file at this moment; read it again, and then try again."""


@contextmanager
def alone(target: Path) -> Iterator[None]:
    """Be the only one, of all threads and processes, who replaces this file; ConfigError if it cannot be replaced."""
    try:
        mode = target.stat().st_mode
    except OSError as error:
        raise ConfigError(f"{target} cannot be read: {error.strerror}") from error
    # Root may write what is read-only, too, but somebody meant it.
    if not mode & 0o222 or not os.access(target, os.R_OK | os.W_OK):
        raise ConfigError(f"{target} is read-only for this process, so it is not replaced")
    try:
        lock = os.open(target.with_name(f".{target.name}.lock"), os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o660)
    except OSError as error:
        message = f"{target.parent} cannot be written ({error.strerror}), and a new file has to be made in it"
        raise ConfigError(message) from error
    try:
        _wait_for(lock, target)
        try:
            yield
        finally:
            # Closing is not enough: a process that was forked meanwhile would have the lock, too.
            fcntl.flock(lock, fcntl.LOCK_UN)
    finally:
        os.close(lock)


def _wait_for(lock: int, target: Path) -> None:
    deadline = time.monotonic() + LOCK_SECS
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError as error:
            if time.monotonic() > deadline:
                raise ConfigBusy(f"somebody else has been replacing {target} for {LOCK_SECS:g} s") from error
            time.sleep(0.02)


def backups_of(target: Path) -> list[Path]:
    """List what the file was before, the newest first."""
    name = re.compile(rf"{re.escape(target.name)}\.\d{{8}}T\d{{6}}\.\d{{6}}Z\.bak")
    try:
        found = [entry for entry in target.parent.iterdir() if name.fullmatch(entry.name)]
    except PermissionError:
        return []
    return sorted(found, key=lambda entry: entry.name, reverse=True)


def swap(target: Path, data: bytes, before: bytes) -> Path:
    """Put *data* in place of *before*, which goes to a backup; return its path.

    Only for who is `alone`. Raises ConfigBusy if the file does not say *before* any more.
    """
    draft, spare = (target.with_name(f".{target.name}.{word}") for word in ("draft", "spare"))
    backup = target.with_name(f"{target.name}.{datetime.now(UTC):%Y%m%dT%H%M%S.%fZ}.bak")
    try:
        like = target.stat()
        _write(draft, data, like)
        _write(spare, before, like)
        if target.read_bytes() != before:
            raise ConfigBusy(f"{target} was changed by somebody else while the new one was checked; read it again")
        spare.rename(backup)
        _sync(target.parent)
        draft.replace(target)
    except (OSError, ConfigBusy) as error:
        for left in (draft, spare, backup):
            with suppress(OSError):
                left.unlink(missing_ok=True)
        if isinstance(error, ConfigBusy):
            raise
        mounted = "; it is mounted as a single file, so mount its folder" if error.errno in (EBUSY, EXDEV) else ""
        raise ConfigError(f"{target} was not replaced: {error.strerror}{mounted}") from error
    with suppress(OSError):
        _sync(target.parent)
        # By a clock that was set back, the newest may seem to be the oldest.
        for old in [entry for entry in backups_of(target) if entry != backup][BACKUPS - 1 :]:
            old.unlink()
    return backup


def _write(file: Path, data: bytes, like: os.stat_result) -> None:
    """Write a file that the same people may read, down to the disk."""
    file.unlink(missing_ok=True)  # somebody was killed while writing it
    mode = stat.S_IMODE(like.st_mode)
    with open(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as out:
        try:
            os.fchown(out.fileno(), like.st_uid, like.st_gid)
        except PermissionError:
            try:
                os.fchown(out.fileno(), -1, like.st_gid)
            except PermissionError:
                mode &= ~0o070  # it is another group now, and was not meant
        os.fchmod(out.fileno(), mode)
        out.write(data)
        out.flush()
        os.fsync(out.fileno())


def _sync(folder: Path) -> None:
    opened = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)
