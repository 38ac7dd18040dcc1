"""Feeding a list: vCons of files go into the store, and their UUIDs to the list in the order they are given."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from redis.exceptions import ResponseError

from conserver.errors import NotAVcon, ServerError
from conserver.queue import Queue
from conserver.store import VconStore
from conserver.vcon import Vcon, VconFinding, validate
from conserver.vcon_forms import is_uuid

#: A push is one round trip for this many.
BATCH = 100
_ENDINGS = (".vcon", ".json", ".vcon.gz", ".json.gz")


@dataclass(frozen=True)
class Fed:
    """What became of one thing that was to be pushed: it was pushed, unless `refused` says why not."""

    name: str
    uuid: str = ""
    stored: str = ""
    """`created`, `replaced` or `exists` (another version was there and was kept); "" for a bare UUID."""
    refused: str = ""
    findings: tuple[VconFinding, ...] = ()
    """What of the vCon breaks the draft's rules, after its migration."""


def expand(given: Iterable[str], lines: Iterable[str]) -> list[str]:
    """Return UUIDs and names of files: a folder becomes the vCon files in it, `-` the *lines* that are not blank."""
    names: list[str] = []
    for name in given:
        if name == "-":
            names += [line.strip() for line in lines if line.strip()]
        elif not is_uuid(name) and Path(name).is_dir():
            # A folder with nothing in it stays, to be refused by name.
            names += _files(Path(name)) or [name]
        else:
            names.append(name)
    return names


def _files(folder: Path) -> list[str]:
    found = (path for path in folder.rglob("*") if path.name.endswith(_ENDINGS) and path.is_file())
    # The file storage keeps links to its files in a hidden folder.
    return sorted(str(path) for path in found if not any(p.startswith(".") for p in path.relative_to(folder).parts))


def feed(
    queue: Queue, store: VconStore, list_name: str, names: Sequence[str], *, max_bytes: int, replace: bool = False
) -> Iterator[Fed]:
    """Push *names*, as `expand` returns them, and yield what became of each once it is in the list.

    A UUID is pushed as it is, whether or not there is such a vCon.
    """
    for at in range(0, len(names), BATCH):
        batch = [_stored(store, name, max_bytes, replace=replace) for name in names[at : at + BATCH]]
        try:
            queue.push(list_name, [fed.uuid for fed in batch if not fed.refused])
        except ResponseError as error:
            raise ServerError(f"nothing was pushed to {list_name!r}: {error}; what was stored stays stored") from error
        yield from batch


def _stored(store: VconStore, name: str, max_bytes: int, *, replace: bool) -> Fed:
    if is_uuid(name):
        return Fed(name, name)
    path = Path(name)
    if path.is_dir():
        return Fed(name, refused=f"there is no file in it that ends in {', '.join(_ENDINGS)}")
    try:
        with path.open("rb") as file:
            data = file.read(max_bytes + 1)
    except FileNotFoundError:
        return Fed(name, refused="it is neither a UUID nor a file")
    except (OSError, ValueError) as error:
        return Fed(name, refused=f"it cannot be read: {getattr(error, 'strerror', None) or error}")
    if len(data) > max_bytes:
        return Fed(name, refused=f"it has more than {max_bytes:,} bytes (CONSERVER_MAX_VCON_BYTES)")
    try:
        vcon = Vcon.parse(data, max_bytes=max_bytes)
        stored = store.create(vcon, replace=replace)
    except NotAVcon as error:
        return Fed(name, refused=str(error))
    # The store has it under this form, whatever the case in the file.
    return Fed(name, str(vcon.uuid).lower(), stored, findings=tuple(validate(vcon.document)))
