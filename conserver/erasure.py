"""Erasure: a vCon is deleted wherever it may be, and what may still hold it is named.

Dead letters and entries of lists stay: a UUID without a vCon ends as a dead letter that says so.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from conserver.components import Storage
from conserver.errors import StorageError
from conserver.storage_calls import StorageCall
from conserver.store import VconStore

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Erased:
    """What came of an erasure."""

    found: bool
    """Whether it was anywhere; a storage that does not say whether it had the vCon counts as one that had it."""
    left: dict[str, str] = field(default_factory=dict)
    """Storage -> why it may still hold the vCon, and what to do. Erasing again tries these again."""


def erase(
    store: VconStore,
    storages: Sequence[Storage],
    unusable: Mapping[str, str],
    uuid: str,
    timeout_secs: float,
    *,
    expected: str = "",
) -> Erased:
    """Delete the vCon from Redis, the index and all *storages* at the same time; repeating it does what is left.

    *unusable* are storages that cannot be loaded, with why. A storage has its own timeout, or else *timeout_secs*.
    With *expected*, the digest of a version, VconConflict if Redis holds another one; then nothing is deleted.
    """
    # Redis first: its mark keeps late saves, and storages that hold the vCon a moment longer, from bringing it back.
    found = store.delete(uuid, expected=expected)
    calls: dict[str, StorageCall] = {}
    left = {name: f"it cannot be loaded: {why}; correct the config, and delete again" for name, why in unusable.items()}
    for storage in storages:
        if storage.delete is None and storage.get is None:
            left[storage.name] = f"{storage.module} has no delete(vcon_uuid, opts): delete the vCon there by hand"
            continue
        # Without `delete` it can at least say that it does not hold it.
        calls[storage.name] = StorageCall(storage, storage.delete or storage.get, uuid, timeout_secs)  # type: ignore[arg-type]
    for storage in storages:
        if storage.name not in calls:
            continue
        try:
            answer = calls[storage.name].result()
        except StorageError as error:
            left[storage.name] = f"{error}; delete again when it works"
            continue
        if storage.delete is not None:
            found = found or answer is not False
        elif answer is not None:
            left[storage.name] = f"{storage.module} has no delete(vcon_uuid, opts): delete the vCon there by hand"
    for name, why in left.items():
        log.warning("vCon %s may still be in storage %r: %s", uuid, name, why)
    return Erased(found, left)
