"""The store: vCons in Redis, and no update lost.

`vcon:<uuid>` holds the JSON document as a string (values of a JSON module are read too). Whoever changes a vCon
says which text it started from; if somebody else has written in between, both changes are merged, or the writer
is told of the conflict. `stored` knows how one vCon lies in Redis, `index` how many are found, `writer` how one is
changed; nobody else knows the keys of vCons.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from redis.exceptions import ResponseError

from conserver import connection, scripts
from conserver.errors import NotAVcon, StorageError, VconConflict, VconNotFound
from conserver.index import Index
from conserver.settings import Settings
from conserver.stored import Fence, Stored, deleted_key, digest, refused, save_command, uuid_in, vcon_key
from conserver.talk import Talk, hold, reply_of
from conserver.terms import keys_of
from conserver.vcon import Vcon
from conserver.vcon_json import canonical
from conserver.writer import Writer

#: How long a deleted vCon cannot come back by a late save or from a storage that could not delete it.
DELETED_SECS = 7 * 86400

#: How often a replacement meets another version before it is given up.
_MOST_TRIES = 100

ReadThrough = Callable[[str], "dict[str, Any] | None"]


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
            self.client = connection.client(url, "store", max_connections=4096)
        else:
            self.client = connection.once(url, "store", timeout_secs=patience_secs)
        self.url = url
        self.index = Index(self.client, settings)
        self._settings = settings
        self.max_bytes = settings.max_vcon_bytes
        self._read_through = read_through

    def writer(self, fence: Fence | None = None, found: tuple[str, bytes, float] | None = None) -> Writer:
        """Return a writer; with a *fence* (held key, seq) it saves only while that claim is held.

        *found* is a vCon that was read just now: (uuid, text, monotonic seconds).
        """
        return Writer(self, fence, found)

    def read(self, uuid: str, *, expires: bool = True) -> bytes:
        """Return the stored text; raise VconNotFound.

        A vCon that is not in Redis is fetched from the storages and cached; with *expires* the cached copy goes
        away by itself, since a storage holds it.
        """
        text = self.text(uuid)
        return text if text is not None else self._fetch(uuid, expires=expires)

    def _fetch(self, uuid: str, *, expires: bool) -> bytes:
        missing = VconNotFound(f"there is no vCon {uuid}: not in Redis, and no storage gives it back")
        if self._read_through is None or not self._settings.storage_fallback:
            raise missing
        if self.is_erased(uuid):
            raise VconNotFound(f"vCon {uuid} was deleted")
        document = self._read_through(uuid)
        if document is None:
            raise missing
        vcon = Vcon(document)
        if str(vcon.uuid).lower() != uuid.lower():
            raise StorageError(f"a storage answered the read of vCon {uuid} with vCon {vcon.uuid!r}: not used")
        if not vcon.sealed:
            document["uuid"] = uuid
        try:
            text = vcon.to_bytes()
        except NotAVcon as error:
            raise StorageError(f"a storage answered the read of vCon {uuid} with what is no JSON: {error}") from error
        outcome, *current = self.save(uuid, "", text)
        if outcome == "deleted":
            raise VconNotFound(f"vCon {uuid} was deleted")
        if current:
            # Somebody else has stored it meanwhile, or a JSON module gives back other text.
            text = bytes(current[0])
        if outcome == "conflict":
            return text
        keys = keys_of(document)
        known = self.index.keys_of_reply(self.client.execute_command(*self.index.keys_command(uuid)))
        self.index.write(self.index.add_commands(uuid, document, known - keys, keys))
        if expires and self._settings.redis_expiry_secs:
            self.expire([(uuid, digest(text), self._settings.redis_expiry_secs)])
        return text

    def text(self, uuid: str) -> bytes | None:
        """Return what Redis holds, or None; no storage is asked. NotAVcon if the key holds something else."""
        return hold(self.reading(uuid), self.client.call)

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

    def version(self, uuid: str) -> str | None:
        """Return the digest of what Redis holds, or None if it holds nothing."""
        version: bytes | None = scripts.VERSION(self.client, [vcon_key(uuid)], [])
        return version.decode() if version is not None else None

    def is_erased(self, uuid: str) -> bool:
        """Say whether the vCon was deleted a short while ago, so that it may not come back."""
        return bool(self.client.exists(deleted_key(uuid)))

    def keep(self, uuid: str) -> None:
        """Take away the vCon's expiry: it is not certain any more what its storages hold."""
        self.client.persist(vcon_key(uuid))

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
        return hold(self.creating(vcon, vcon.to_bytes(), replace=replace), self.client.call).outcome

    def creating(
        self, vcon: Vcon, text: bytes, *, replace: bool = False, then: Sequence[connection.Command] = ()
    ) -> Talk[Stored]:
        """Do what `create` does, as a talk; *text* is that of the vCon, and *then* goes along with its index.

        What *then* asks for is not done for `exists`. If the server refuses it, that is raised; what is stored stays
        stored, and the same once more does the rest.
        """
        uuid = uuid_in(vcon).lower()
        outcome, *rest = yield from self._saving(uuid, "", text, revive=True)
        if outcome == "conflict":
            current = bytes(rest[0])
            if _says_the_same(current, vcon):
                outcome, rest = "ok", [current]
            elif not replace:
                return Stored("exists", current)
            else:
                return (yield from self.replacing(vcon, text, then=then))
        if outcome != "ok":
            raise refused(uuid, outcome, rest)
        yield from self._indexing(uuid, vcon, set(), then)
        # A JSON module gives back other text than it was given.
        return Stored("created", bytes(rest[0]) if rest else text)

    def replacing(
        self,
        vcon: Vcon,
        text: bytes,
        may_replace: Callable[[bytes | None], bool] | None = None,
        then: Sequence[connection.Command] = (),
    ) -> Talk[Stored]:
        """Store *vcon* in place of what Redis holds, as a talk; `kept` if *may_replace* is not true of that.

        What *may_replace* was asked about, None if there is nothing, is what is replaced, and no later version.
        """
        uuid, result = uuid_in(vcon).lower(), "created"
        [indexed] = yield [self.index.keys_command(uuid)]
        before = self.index.keys_of_reply(reply_of(indexed))
        current = yield from self.reading(uuid)
        for _ in range(_MOST_TRIES):
            if may_replace is not None and not may_replace(current):
                return Stored("kept", current)
            result = "created" if current is None else "replaced"
            expected = "" if current is None else digest(current)
            outcome, *rest = yield from self._saving(uuid, expected, text, revive=True)
            if outcome == "ok":
                yield from self._indexing(uuid, vcon, before, then)
                return Stored(result, bytes(rest[0]) if rest else text)
            if outcome not in ("conflict", "gone"):
                raise refused(uuid, outcome, rest)
            current = bytes(rest[0]) if rest else None
        raise VconConflict(f"vCon {uuid} is being changed by somebody else all the time")

    def _indexing(self, uuid: str, vcon: Vcon, before: set[str], then: Sequence[connection.Command]) -> Talk[None]:
        keys = keys_of(vcon.document)
        commands = [self.index.keys_command(uuid), *self.index.add_commands(uuid, vcon.document, before, keys)]
        replies = yield [*commands, *then]
        self.index.told(replies[: len(commands)])
        if left := self.index.keys_of_reply(replies[0]) - keys - before:
            # It had expired, and has come back as another.
            self.index.told((yield [("SREM", key, uuid) for key in left]))
        for reply in replies[len(commands) :]:
            reply_of(reply)

    def reading(self, uuid: str) -> Talk[bytes | None]:
        """Return the text that is in Redis, or None, as a talk: no storage is asked."""
        [reply] = yield [("GET", vcon_key(uuid))]
        if not (isinstance(reply, ResponseError) and str(reply).startswith("WRONGTYPE")):
            return reply_of(reply)  # type: ignore[no-any-return]
        wrong = reply
        [kind] = yield [("TYPE", vcon_key(uuid))]
        if reply_of(kind) == b"none":
            return None
        if kind != b"ReJSON-RL":
            raise NotAVcon(f"key {vcon_key(uuid)!r} holds a {kind.decode()}, not a vCon") from wrong
        [reply] = yield [("JSON.GET", vcon_key(uuid))]
        return reply_of(reply)  # type: ignore[no-any-return]

    def delete(self, uuid: str, *, fence: Fence | None = None, expected: str = "") -> bool:
        """Delete the vCon from Redis and the index, for good; False if it was not there.

        With a *fence* (held key, seq) only while that claim is held; else ClaimLost. With *expected*, the digest of a
        version, only that one; else VconConflict.
        """
        keys = [vcon_key(uuid), deleted_key(uuid), *([fence[0]] if fence else [])]
        result = int(scripts.DELETE(self.client, list(keys), [DELETED_SECS, fence[1] if fence else "", expected]))
        if result == -1:
            raise refused(uuid, "lost", [])
        if result == -2:
            raise VconConflict(f"vCon {uuid} is another version than the one that was to be deleted")
        return self.index.forget([uuid]) or bool(result)

    def find(self, **terms: str) -> set[str]:
        """Return the UUIDs of all vCons that meet each of *terms*; see Index.find."""
        return self.index.find(**terms)

    def expire(self, versions: Sequence[tuple[str, str, int]]) -> int:
        """Let each (uuid, digest, seconds) expire if it still is that version; return how many do."""
        expiring = sum(
            int(scripts.EXPIRE(self.client, [vcon_key(uuid)], [version, secs])) for uuid, version, secs in versions
        )
        if versions:
            self.client.execute_command(*self.index.expiring_command({uuid: secs for uuid, _, secs in versions}))
        return expiring

    def expire_commands(self, versions: Sequence[tuple[str, str, int]]) -> list[connection.Command]:
        """Return the commands that let each (uuid, digest, seconds) expire if it still is that version."""
        if not versions:
            return []
        due = self.index.expiring_command({uuid: secs for uuid, _, secs in versions})
        return [*(scripts.EXPIRE.command([vcon_key(u)], [version, secs]) for u, version, secs in versions), due]

    def sweep(self) -> int:
        """Take vCons that have expired out of the index; return how many."""
        return self.index.sweep()

    def save(
        self,
        uuid: str,
        expected: str,
        text: bytes,
        before: Sequence[connection.Command] = (),
        *,
        revive: bool = False,
        token: str = "",
        fence: Fence | None = None,
    ) -> list[Any]:
        """Save *text* in one round trip, behind the commands *before* for the index; return what lua/save.lua says."""
        return hold(
            self._saving(uuid, expected, text, before, revive=revive, token=token, fence=fence), self.client.call
        )

    def _saving(
        self, uuid: str, expected: str, text: bytes, before: Sequence[connection.Command] = (), **more: Any
    ) -> Talk[list[Any]]:
        command = save_command(uuid, expected, text, redis_format=self._settings.redis_format, **more)
        *told, reply = yield [*before, command]
        outcome, *rest = reply_of(reply)
        self.index.told(told)
        return [outcome.decode(), *rest]


def _says_the_same(stored: bytes, vcon: Vcon) -> bool:
    """Say whether a stored text is this vCon: members in another order, or an older version of the draft."""
    try:
        return canonical(Vcon.parse(stored).document) == canonical(vcon.document)
    except NotAVcon:
        return False
