"""Writers: each piece of work on vCons has one, which remembers what it read, so that no update is lost."""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from conserver.connection import Command
from conserver.errors import NotAVcon, VconConflict, VconSealed
from conserver.merge import merge
from conserver.stored import Fence, digest, lock_key, refused, uuid_in, vcon_key
from conserver.terms import keys_of, keys_of_text
from conserver.vcon import Vcon
from conserver.vcon_json import canonical

if TYPE_CHECKING:
    from conserver.store import VconStore

#: How long one writer may have a vCon for itself, after its work met a conflict twice.
LOCK_SECS = 30
#: For how long a text that came with a claim is as good as one that is read now.
FRESH_SECS = 0.1


class Writer:
    """One piece of work on vCons: a run of a chain, a request, an `edit`.

    It remembers what it read, so that what it saves can be told from what others wrote.
    """

    def __init__(self, store: VconStore, fence: Fence | None, found: tuple[str, bytes, float] | None = None) -> None:
        self._store = store
        self._fence = fence
        self._found = found
        self._begun = False
        self.has_read = False
        self._token = ""
        self._read: dict[str, bytes] = {}
        self._saved: dict[str, bytes] = {}
        self._frozen: dict[str, bytes] = {}
        # Of the text that was read last: parsing it again for this alone would cost as much as the edit.
        self._keys: dict[str, tuple[bytes, set[str]]] = {}

    @property
    def store(self) -> VconStore:
        """The store that it reads from and saves to."""
        return self._store

    def get(self, uuid: str) -> Vcon:
        """Return the vCon, migrated in memory; raise VconNotFound, or NotAVcon if what is stored is none."""
        text = self._frozen.get(uuid) or self._text(uuid)
        if len(text) > self._store.max_bytes:
            raise NotAVcon(
                f"vCon {uuid} has {len(text):,} bytes, more than CONSERVER_MAX_VCON_BYTES"
                f" ({self._store.max_bytes:,}) allows"
            )
        vcon = Vcon.parse(text, max_bytes=self._store.max_bytes)
        if str(vcon.uuid).lower() != uuid.lower():
            raise NotAVcon(f"key {vcon_key(uuid)!r} holds vCon {vcon.uuid}, which is another one")
        vcon.base = text
        self._keys[uuid] = text, keys_of(vcon.document)
        # The first text counts for a vCon that is built from what was read: a later one may hold what it has not seen.
        self._read.setdefault(uuid, text)
        return vcon

    def _text(self, uuid: str) -> bytes:
        self.has_read = True
        found, self._found = self._found, None
        # What came with the claim serves the first who asks, if that is at once: later somebody may have written.
        if found is not None and found[0] == uuid and time.monotonic() - found[2] < FRESH_SECS:
            return found[1]
        return self._store.read(uuid, expires=self._fence is None)

    @contextmanager
    def edit(self, uuid: str, *, exact: bool = False) -> Iterator[Vcon]:
        """Yield the vCon and save it if something was changed and no exception was raised.

        Raises VconSealed for a signed or encrypted vCon, VconConflict when somebody else changed the same part; if it
        must be saved *exact*, without a merge, when somebody else changed anything.
        """
        vcon = self.get(uuid)
        if vcon.sealed:
            raise VconSealed(f"vCon {uuid} is {vcon.form}: it cannot be changed without breaking it")
        before = digest(canonical(vcon.document))
        yield vcon
        if digest(canonical(vcon.document)) != before:
            self._save(vcon, changed=True, exact=exact)

    def text(self, uuid: str) -> bytes:
        """Return the text that this writer has saved last, or else the one that it has read."""
        return self._saved.get(uuid) or self._read[uuid]

    def save(self, vcon: Vcon) -> None:
        """Save *vcon*, merged with what others wrote since it was read.

        A vCon that was not read here, but built, replaces what is stored under its UUID. Raises VconConflict,
        VconNotFound if it was deleted meanwhile, and ClaimLost if this worker may not write any more.
        """
        base = self._base(vcon)
        self._save(vcon, changed=not vcon.sealed and (base is None or base != vcon.to_bytes()))

    def _indexed(self, uuid: str, base: bytes | None) -> set[str] | None:
        text, keys = self._keys.get(uuid, (None, set()))
        return keys if base is not None and text is base else keys_of_text(base) if base else None

    def base_of(self, uuid: str) -> bytes | None:
        """Return the text that a vCon is taken to come from which was built under this UUID; None if none was read."""
        return self._read.get(uuid)

    def _base(self, vcon: Vcon) -> bytes | None:
        return vcon.base if vcon.base is not None else self._read.get(uuid_in(vcon))

    def _save(self, vcon: Vcon, *, changed: bool, exact: bool = False) -> None:
        uuid, base = uuid_in(vcon), self._base(vcon)
        self._found = None
        if changed:
            vcon.document["updated_at"] = _now()
        text = mine = vcon.to_bytes()
        expected = digest(base) if base is not None else "*"
        base_document = None
        document = vcon.document
        indexed = self._indexed(uuid, base)
        self._keys.pop(uuid, None)
        give_up = time.monotonic() + LOCK_SECS + 5
        while True:
            keys = keys_of(document)
            entering: list[Command] = []
            if indexed is None or keys - indexed:
                # Before the save: a run that is repeated since its process died in between has nothing to save.
                before, indexed = indexed or set(), (indexed or set()) | keys
                entering = self._store.index.add_commands(uuid, document, before, indexed)
            outcome, *rest = self._store.save(uuid, expected, text, entering, token=self._token, fence=self._fence)
            if outcome == "ok":
                break
            if outcome == "locked" and time.monotonic() < give_up:
                time.sleep(0.02)
                continue
            if base is None or exact or outcome not in ("conflict", "gone"):
                if outcome == "deleted":
                    self._store.index.forget([uuid])
                raise refused(uuid, outcome, rest)
            theirs = bytes(rest[0]) if rest else self._store.newest(uuid)
            if theirs is None:
                # It has expired, and no storage has it either: what was read is all there is.
                expected = ""
                continue
            base_document = base_document or Vcon.parse(base).document
            document = merge(base_document, Vcon.parse(theirs).document, Vcon.parse(mine).document)
            text, expected = Vcon(document).to_bytes(), digest(theirs)
        if keys != indexed:
            self._store.index.write(self._store.index.add_commands(uuid, document, indexed))
        # A JSON module gives back other text than it was given.
        stored = bytes(rest[0]) if rest else text
        # The base is what this writer wrote, never the merge's result: what it saves next grows from that.
        vcon.base = self._read[uuid] = stored if text is mine else mine
        self._saved[uuid] = stored

    def delete(self, uuid: str) -> bool:
        """Delete the vCon from Redis and the index; see VconStore.delete."""
        self._found = None
        self._read.pop(uuid, None)
        self._saved.pop(uuid, None)
        return self._store.delete(uuid, fence=self._fence)

    def begin(self) -> None:
        """Forget what was read: what comes now starts from what it reads itself."""
        self._read.clear()
        self._forget_found()

    def _forget_found(self) -> None:
        # What came with the claim is for the first link, or for the storages of a chain without links: whoever has run
        # may have had the vCon changed by way of others.
        if self._begun:
            self._found = None
        self._begun = True

    def freeze(self, uuid: str) -> str:
        """Read the vCon once for everything that follows, and return the name of that version.

        All storages of a chain save the same version, and its digest is what may expire later. What this writer has
        saved need not be read again: whoever has changed it since has work of its own to end.
        """
        self._forget_found()
        text = self._saved.get(uuid) or self._text(uuid)
        self._frozen[uuid] = text
        return digest(text)

    def thaw(self, uuid: str) -> None:
        """Forget the frozen version: `freeze` reads the newest."""
        self._frozen.pop(uuid, None)
        self._saved.pop(uuid, None)

    def keep(self, uuid: str) -> None:
        """Take away the vCon's expiry; see VconStore.keep."""
        self._store.keep(uuid)

    @contextmanager
    def alone(self, uuid: str) -> Iterator[None]:
        """Keep other writers from saving this vCon while the block runs, for LOCK_SECS at most."""
        token, key, client = secrets.token_hex(8), lock_key(uuid), self._store.client
        give_up = time.monotonic() + LOCK_SECS + 5
        while not client.set(key, token, nx=True, px=LOCK_SECS * 1000):
            if time.monotonic() > give_up:
                raise VconConflict(f"vCon {uuid} is being changed by somebody else all the time")
            time.sleep(0.02)
        self._token = token
        try:
            yield
        finally:
            self._token = ""
            if client.get(key) == token.encode():
                client.delete(key)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
