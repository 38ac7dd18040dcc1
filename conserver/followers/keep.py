"""How a vCon that was followed gets into our store, where another version of it may be."""

from __future__ import annotations

from typing import Any

from conserver.errors import NotAVcon, VconConflict
from conserver.followers.record import Record
from conserver.store import VconStore
from conserver.stored import digest, refused
from conserver.terms import keys_of_text
from conserver.vcon import Vcon, load
from conserver.vcon_json import canonical

#: So often somebody else may save the vCon between our look and our save.
_TRIES = 5


def keep(vcon: Vcon, store: VconStore, record: Record) -> None:
    """Store what was fetched; NotAVcon, which makes it a dead letter, if it was changed both there and here.

    There is no base to merge the two against. So a version that was followed and not changed here since is replaced;
    one that was changed here only is kept; one that was never followed is replaced, as the existing conserver does.
    """
    uuid, version = str(vcon.uuid), _version(vcon.document)
    followed = record.version(uuid)
    for _ in range(_TRIES):
        # Storages are asked only for what may be there.
        current = store.newest(uuid) if followed else store.text(uuid)
        here = _version_of(current) if current is not None else ""
        if current is None:
            stored = store.create(vcon) != "exists"
        elif here == version:
            # Perhaps by a process that died before it wrote the index.
            store.index.write(store.index.add_commands(uuid, vcon.document))
            stored = True
        elif version == followed:
            return
        elif followed is not None and here != followed:
            raise NotAVcon("it was changed there and here since it was followed last; the one here was kept")
        else:
            stored = _replace(vcon, store, current)
        if stored:
            record.note_version(uuid, version)
            return
    raise VconConflict(f"vCon {uuid} is being changed by somebody else all the time")


def _replace(vcon: Vcon, store: VconStore, current: bytes) -> bool:
    """Replace exactly the version *current*; False if that is not the one that is stored any more."""
    uuid = str(vcon.uuid)
    outcome, *rest = store.save(uuid, digest(current), vcon.to_bytes(), revive=True)
    if outcome in ("conflict", "gone"):
        return False
    if outcome != "ok":
        raise refused(uuid, outcome, rest)
    store.index.write(store.index.add_commands(uuid, vcon.document, keys_of_text(current)))
    return True


def _version_of(text: bytes) -> str:
    try:
        return _version(load(text))
    except NotAVcon:
        # Somebody has put something else there.
        return ""


def _version(document: Any) -> str:
    # Not of the text: storages and JSON modules give back another spelling of the same.
    return digest(canonical(document))
