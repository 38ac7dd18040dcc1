"""A disk that is small enough to be filled in a moment."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.conftest import missing


@contextmanager
def small_disk(folder: Path, kbytes: int) -> Iterator[Path]:
    """A disk of its own for *folder*, with so much room; needs root, or sudo that asks nothing."""
    folder.mkdir(parents=True, exist_ok=True)
    if not _as_root("mount", "-t", "tmpfs", "-o", f"size={kbytes}k,mode=777", "tmpfs", str(folder)):
        missing("a test of a full disk mounts a small one, which needs root, or sudo without a password")
    try:
        yield folder
    finally:
        # Lazily: a process that ends in this moment may still have files open there.
        _as_root("umount", "-l", str(folder))


def fill(disk: Path) -> None:
    """Leave no room on a small disk; again, and it takes what has become free since."""
    with (disk / "filler").open("ab", buffering=0) as filler, contextlib.suppress(OSError):
        while True:
            filler.write(bytes(4096))


def make_room(disk: Path) -> None:
    """Take away what `fill` has written."""
    (disk / "filler").unlink()


def grow(disk: Path, kbytes: int) -> None:
    """Give a small disk so much room."""
    assert _as_root("mount", "-o", f"remount,size={kbytes}k", str(disk))


def _as_root(*command: str) -> bool:
    for prefix in ((), ("sudo", "-n")):
        with contextlib.suppress(OSError):
            if subprocess.run([*prefix, *command], capture_output=True, timeout=30, check=False).returncode == 0:
                return True
    return False
