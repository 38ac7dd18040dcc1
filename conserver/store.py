"""The store: vCons in Redis, and no update lost.

`vcon:<uuid>` holds the JSON document as a string (values of a JSON module are read too). Whoever changes a vCon
says which text it started from; if somebody else has written in between, both changes are merged, or the writer
is told of the conflict. This is the only module that knows the keys of vCons.
"""

from __future__ import annotations

import hashlib
import logging
import secrets
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

import msgspec
from redis.exceptions import ResponseError

from conserver import connection, scripts
from conserver.errors import ClaimLost, NotAVcon, ServerError, StorageError, VconConflict, VconNotFound, VconSealed
from conserver.merge import merge
from conserver.settings import Settings
from conserver.vcon import Vcon
from conserver.vcon_json import canonical, load

log = logging.getLogger(__name__)

#: How long a deleted vCon cannot come back by a late save or from a storage that could not delete it.
DELETED_SECS = 7 * 86400
#: How long one writer may have a vCon for itself, after its work met a conflict twice.
LOCK_SECS = 30
#: For how long a text that came with a claim is as good as one that is read now.
FRESH_SECS = 0.1
_INDEXED = ("tel", "mailto", "name")
_INDEX = "conserver:index"
_EXPIRING = "conserver:expiring"
_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder().decode

ReadThrough = Callable[[str], "dict[str, Any] | None"]


def vcon_key(uuid: str) -> str:
    """Return the key that holds the vCon."""
    return f"vcon:{uuid}"


def digest(text: bytes) -> str:
    """Return the SHA-1 of a stored text: the name of a version, not a protection."""
    return hashlib.sha1(text, usedforsecurity=False).hexdigest()


def party_keys(document: dict[str, Any]) -> set[str]:
    """Return the index keys of a document's parties: `tel:`, `mailto:` and `name:` with their values."""
    keys = set()
    parties = document.get("parties")
    for party in parties if isinstance(parties, list) else ():
        for kind in _INDEXED if isinstance(party, dict) else ():
            value = party.get(kind)
            if isinstance(value, str) and value:
                keys.add(_party_key(kind, value))
    return keys


def _party_keys_of(text: bytes) -> set[str]:
    # What is no vCon has no parties that could stand in the index.
    try:
        document = load(text)
    except NotAVcon:
        return set()
    return party_keys(document) if isinstance(document, dict) else set()


def _party_key(kind: str, value: str) -> str:
    # The draft lets "tel:" stand in front of a number or not: both are the same number.
    return f"{kind}:{value.removeprefix(kind + ':')}".encode("utf-8", "replace").decode()


class VconStore:
    """All vCons. Safe for many threads; `writer()` gives each piece of work a writer of its own."""

    def __init__(
        self,
        url: str,
        settings: Settings,
        read_through: ReadThrough | None = None,
        *,
        patience_secs: float | None = None,
    ) -> None:
        """With *patience_secs* nothing is repeated, and a server that is silent for so long is in trouble."""
        if patience_secs is None:
            self._client = connection.client(url, "store", max_connections=4096)
        else:
            self._client = connection.once(url, "store", timeout_secs=patience_secs)
        self._settings = settings
        self.max_bytes = settings.max_vcon_bytes
        self._read_through = read_through

    def writer(self, fence: tuple[str, int] | None = None, found: tuple[str, bytes, float] | None = None) -> Writer:
        """Return a writer; with a *fence* (held key, seq) it saves only while that claim is held.

        *found* is a vCon that was read just now: (uuid, text, monotonic seconds).
        """
        return Writer(self, fence, found)

    def read(self, uuid: str, *, expires: bool = True) -> bytes:
        """Return the stored text; raise VconNotFound.

        A vCon that is not in Redis is fetched from the storages and cached; with *expires* the cached copy goes
        away by itself, since a storage holds it.
        """
        text: bytes | None
        try:
            text = self._client.get(vcon_key(uuid))
        except ResponseError as error:
            text = self._read_json(uuid, error)
        return text if text is not None else self._fetch(uuid, expires=expires)

    def _read_json(self, uuid: str, error: ResponseError) -> bytes | None:
        kind = self._client.type(vcon_key(uuid))
        if kind == b"none":
            return None
        if kind != b"ReJSON-RL":
            raise NotAVcon(f"key {vcon_key(uuid)!r} holds a {kind.decode()}, not a vCon") from error
        text: bytes | None = self._client.execute_command("JSON.GET", vcon_key(uuid))
        return text

    def _fetch(self, uuid: str, *, expires: bool) -> bytes:
        missing = VconNotFound(f"there is no vCon {uuid}: not in Redis, and no storage gives it back")
        if self._read_through is None or not self._settings.storage_fallback:
            raise missing
        if self._client.exists(_deleted_key(uuid)):
            raise VconNotFound(f"vCon {uuid} was deleted")
        document = self._read_through(uuid)
        if document is None:
            raise missing
        vcon = Vcon(document)
        if vcon.uuid != uuid:
            raise StorageError(f"a storage answered the read of vCon {uuid} with vCon {vcon.uuid!r}: not used")
        text = vcon.to_bytes()
        outcome, *current = self._save(uuid, "", text)
        if outcome == "deleted":
            raise VconNotFound(f"vCon {uuid} was deleted")
        if outcome == "conflict":
            return bytes(current[0])
        self._index(uuid, document, set())
        if expires and self._settings.redis_expiry_secs:
            self.expire([(uuid, digest(text), self._settings.redis_expiry_secs)])
        return text

    def newest(self, uuid: str) -> bytes | None:
        """Return the stored text after asking the storages too, or None if nobody has the vCon."""
        try:
            return self.read(uuid, expires=False)
        except VconNotFound:
            return None

    @staticmethod
    def version_command(uuid: str) -> connection.Command:
        """Return the command that asks for the digest of what Redis holds; the reply is None if it holds nothing."""
        return scripts.VERSION.command([vcon_key(uuid)], [])

    def keep(self, uuid: str) -> None:
        """Take away the vCon's expiry: it is not certain any more what its storages hold."""
        self._client.persist(vcon_key(uuid))

    def get(self, uuid: str) -> Vcon:
        """Return the vCon, migrated to the current draft in memory; raise VconNotFound or NotAVcon."""
        return self.writer().get(uuid)

    def exists(self, uuid: str) -> bool:
        """Say whether the vCon is in Redis, or was just fetched from a storage; it does not expire for now."""
        try:
            self.read(uuid, expires=False)
        except VconNotFound:
            return False
        return True

    @contextmanager
    def edit(self, uuid: str) -> Iterator[Vcon]:
        """Yield the vCon and save it if it was changed; see Writer.edit."""
        with self.writer().edit(uuid) as vcon:
            yield vcon

    def create(self, vcon: Vcon, *, replace: bool = False) -> str:
        """Store a vCon that comes from outside; return `created`, `replaced` or `exists`.

        `exists` means that another version is stored under this UUID, and was kept. The same text again counts
        as created, so a request that was cut short can be repeated.
        """
        uuid, text, before = _uuid(vcon), vcon.to_bytes(), set()
        outcome, *rest = self._save(uuid, "", text, revive=True)
        result = "created"
        if outcome == "conflict":
            if not replace:
                return "exists"
            before, result = _party_keys_of(rest[0]), "replaced"
            outcome, *rest = self._save(uuid, "*", text, revive=True)
        if outcome != "ok":
            raise _refused(uuid, outcome, rest)
        self._index(uuid, vcon.document, before)
        return result

    def delete(self, uuid: str, *, fence: tuple[str, int] | None = None) -> bool:
        """Delete the vCon from Redis and the index, for good; False if it was not there.

        With a *fence* (held key, seq) only while that claim is held; else ClaimLost.
        """
        keys = [vcon_key(uuid), _deleted_key(uuid), *([fence[0]] if fence else [])]
        result = int(scripts.DELETE(self._client, list(keys), [DELETED_SECS, fence[1] if fence else ""]))
        if result < 0:
            raise _refused(uuid, "lost", [])
        self._forget([uuid])
        return bool(result)

    def find(self, **terms: str) -> set[str]:
        """Return the UUIDs of vCons with a party that has each of *terms* (`tel`, `mailto`, `name`; exact)."""
        keys = [_party_key(kind, value) for kind, value in terms.items()]
        if not keys:
            raise ValueError("find needs at least one of tel, mailto, name")
        return {uuid.decode() for uuid in self._client.sinter(keys)}

    def expire(self, versions: Sequence[tuple[str, str, int]]) -> int:
        """Let each (uuid, digest, seconds) expire if it still is that version; return how many do."""
        expiring = sum(
            int(scripts.EXPIRE(self._client, [vcon_key(uuid)], [version, secs])) for uuid, version, secs in versions
        )
        if versions:
            self._client.execute_command(*self.expire_commands(versions)[-1])
        return expiring

    def expire_commands(self, versions: Sequence[tuple[str, str, int]]) -> list[connection.Command]:
        """Return the commands that let each (uuid, digest, seconds) expire if it still is that version."""
        if not versions:
            return []
        now = time.time()
        # In the list of what expires comes also what does not after all: the sweep sees that it is still there.
        due: list[Any] = ["ZADD", _EXPIRING]
        for uuid, _, secs in versions:
            due += (now + max(secs, self._settings.index_expiry_secs), uuid)
        return [*(scripts.EXPIRE.command([vcon_key(u)], [version, secs]) for u, version, secs in versions), due]

    def sweep(self, most: int = 500) -> int:
        """Take vCons that have expired from the index; return how many."""
        now = time.time()
        due = [u.decode() for u in self._client.zrangebyscore(_EXPIRING, "-inf", now, start=0, num=most)]
        if not due:
            return 0
        pipe = self._client.pipeline(transaction=False)
        for uuid in due:
            pipe.pttl(vcon_key(uuid))
        left = dict(zip(due, pipe.execute(), strict=True))
        gone = [uuid for uuid, ms in left.items() if ms == -2]
        self._forget(gone)
        later = {uuid: now + ms / 1000 for uuid, ms in left.items() if ms >= 0}
        if later:
            self._client.zadd(_EXPIRING, later)
        kept = [uuid for uuid, ms in left.items() if ms == -1]
        if kept:
            self._client.zrem(_EXPIRING, *kept)
        return len(gone)

    def _forget(self, uuids: Iterable[str]) -> None:
        uuids = list(uuids)
        if not uuids:
            return
        indexed = self._client.hmget(_INDEX, uuids)
        pipe = self._client.pipeline(transaction=False)
        for uuid, keys in zip(uuids, indexed, strict=True):
            for key in _decode(keys) if keys else ():
                pipe.srem(key, uuid)
        # Members that the existing conserver wrote have the key's prefix.
        pipe.zrem(self._settings.sorted_set, *uuids, *map(vcon_key, uuids))
        pipe.zrem(_EXPIRING, *uuids)
        pipe.hdel(_INDEX, *uuids)
        self._told(pipe.execute(raise_on_error=False))

    def _index(self, uuid: str, document: dict[str, Any], before: set[str], keys: set[str] | None = None) -> None:
        keys = party_keys(document) if keys is None else keys
        pipe = self._client.pipeline(transaction=False)
        pipe.zadd(self._settings.sorted_set, {uuid: _created_at(document)})
        for key in keys - before:
            pipe.sadd(key, uuid)
        for key in before - keys:
            pipe.srem(key, uuid)
        pipe.hset(_INDEX, uuid, _encode(sorted(keys)))
        self._told(pipe.execute(raise_on_error=False))

    @staticmethod
    def _told(replies: list[Any]) -> None:
        """Raise what the server could not do; say what another program's key prevented."""
        for reply in replies:
            if isinstance(reply, Exception):
                if connection.is_server_error(reply):
                    raise ServerError(str(reply)) from reply
                log.warning("the index of parties is not complete, since a key of it is something else: %s", reply)

    def _save(
        self,
        uuid: str,
        expected: str,
        text: bytes,
        *,
        revive: bool = False,
        token: str = "",
        fence: tuple[str, int] | None = None,
    ) -> list[Any]:
        keys = [vcon_key(uuid), _deleted_key(uuid), _lock_key(uuid)]
        if fence:
            keys.append(fence[0])
        args = [expected, text, token, self._settings.redis_format, int(revive), fence[1] if fence else ""]
        outcome, *rest = scripts.SAVE(self._client, list(keys), args)
        return [outcome.decode(), *rest]


class Writer:
    """One piece of work on vCons: a run of a chain, a request, an `edit`.

    It remembers what it read, so that what it saves can be told from what others wrote.
    """

    def __init__(
        self, store: VconStore, fence: tuple[str, int] | None, found: tuple[str, bytes, float] | None = None
    ) -> None:
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
        self._keys[uuid] = text, party_keys(vcon.document)
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
    def edit(self, uuid: str) -> Iterator[Vcon]:
        """Yield the vCon and save it if something was changed and no exception was raised.

        Raises VconSealed for a signed or encrypted vCon, VconConflict when somebody else changed the same part.
        """
        vcon = self.get(uuid)
        if vcon.sealed:
            raise VconSealed(f"vCon {uuid} is {vcon.form}: it cannot be changed without breaking it")
        before = digest(canonical(vcon.document))
        yield vcon
        if digest(canonical(vcon.document)) != before:
            self._save(vcon, changed=True)

    def save(self, vcon: Vcon) -> None:
        """Save *vcon*, merged with what others wrote since it was read.

        A vCon that was not read here, but built, replaces what is stored under its UUID. Raises VconConflict,
        VconNotFound if it was deleted meanwhile, and ClaimLost if this worker may not write any more.
        """
        base = self._base(vcon)
        self._save(vcon, changed=not vcon.sealed and (base is None or base != vcon.to_bytes()))

    def _indexed(self, uuid: str, base: bytes | None) -> set[str] | None:
        text, keys = self._keys.get(uuid, (None, set()))
        return keys if base is not None and text is base else _party_keys_of(base) if base else None

    def _base(self, vcon: Vcon) -> bytes | None:
        return vcon.base if vcon.base is not None else self._read.get(_uuid(vcon))

    def _save(self, vcon: Vcon, *, changed: bool) -> None:
        uuid, base = _uuid(vcon), self._base(vcon)
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
            keys = party_keys(document)
            if indexed is None or keys - indexed:
                # Before the save: a run that is repeated since its process died in between has nothing to save.
                before, indexed = indexed or set(), (indexed or set()) | keys
                self._store._index(uuid, document, before, indexed)
            outcome, *rest = self._store._save(uuid, expected, text, token=self._token, fence=self._fence)
            if outcome == "ok":
                break
            if outcome == "locked" and time.monotonic() < give_up:
                time.sleep(0.02)
                continue
            if base is None or outcome not in ("conflict", "gone"):
                if outcome == "deleted":
                    self._store._forget([uuid])
                raise _refused(uuid, outcome, rest)
            theirs = bytes(rest[0]) if rest else self._store.newest(uuid)
            if theirs is None:
                # It has expired, and no storage has it either: what was read is all there is.
                expected = ""
                continue
            base_document = base_document or Vcon.parse(base).document
            document = merge(base_document, Vcon.parse(theirs).document, Vcon.parse(mine).document)
            text, expected = Vcon(document).to_bytes(), digest(theirs)
        if keys != indexed:
            self._store._index(uuid, document, indexed)
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
        token, key, client = secrets.token_hex(8), _lock_key(uuid), self._store._client
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


def _deleted_key(uuid: str) -> str:
    return f"conserver:{{vcon:{uuid}}}:deleted"


def _lock_key(uuid: str) -> str:
    return f"conserver:{{vcon:{uuid}}}:lock"


def _uuid(vcon: Vcon) -> str:
    uuid = vcon.uuid
    if not isinstance(uuid, str) or not uuid:
        raise NotAVcon("this vCon has no uuid, so it cannot be stored")
    return uuid


def _refused(uuid: str, outcome: str, rest: list[Any]) -> Exception:
    if outcome == "lost":
        return ClaimLost(f"vCon {uuid} was not saved: this worker does not hold its claim any more")
    if outcome == "deleted":
        return VconNotFound(f"vCon {uuid} was deleted")
    if outcome == "locked":
        return VconConflict(f"vCon {uuid} is being changed by somebody else all the time")
    if outcome == "conflict":
        return VconConflict(f"another vCon is stored under {uuid}")
    if outcome == "type":
        return NotAVcon(f"key {vcon_key(uuid)!r} holds a {rest[0].decode()}, not a vCon")
    return ServerError(f"vCon {uuid} was not saved: {outcome}")


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _created_at(document: dict[str, Any]) -> int:
    created_at = document.get("created_at")
    try:
        return int(datetime.fromisoformat(created_at).timestamp()) if isinstance(created_at, str) else int(time.time())
    except (ValueError, OverflowError):
        return int(time.time())
