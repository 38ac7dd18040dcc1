"""`lib.vcon_redis.VconRedis`: the vCons, by way of the writer that the run of the chain has.

What is stored is merged with what others have stored since it was read, and only while this worker holds its claim.
VconConflict says that both changed the same: let it pass, and the link runs again on the new copy.
"""

from __future__ import annotations

from typing import Any

from conserver import ambient
from conserver.compat.documents import Document, as_old, as_ours, stringify
from conserver.compat.lib.vcon_compat import normalize_legacy_fields
from conserver.compat.vcon import Vcon
from conserver.errors import LinkError, VconNotFound, VconSealed
from conserver.settings import Settings
from conserver.stored import vcon_key
from conserver.vcon import VERSION
from conserver.vcon import Vcon as OurVcon
from conserver.vcon_forms import form_of
from conserver.vcon_json import canonical


class _DefaultTtl:
    def __get__(self, instance: object, owner: type) -> int:
        return Settings.from_env().redis_expiry_secs


class VconRedis:
    """Reads and stores vCons, for whatever run the thread is in that calls it."""

    DEFAULT_TTL = _DefaultTtl()
    """`VCON_REDIS_EXPIRY`, in seconds."""

    # Reading

    def get_vcon(self, vcon_id: str) -> Vcon | None:
        """Return the vCon, from Redis or else a storage; None if nobody has it."""
        found = self._read(vcon_id)
        if found is None:
            return None
        vcon = Vcon()
        vcon.vcon_dict, vcon.base = as_old(found.document), found.base
        return vcon

    def get_vcon_dict(self, vcon_id: str) -> dict[str, Any] | None:
        """Return the vCon's document, from Redis or else a storage; None if nobody has it."""
        found = self._read(vcon_id)
        if found is None:
            return None
        document = Document(as_old(found.document))
        document.base = found.base
        return document

    @staticmethod
    def _read(vcon_id: str) -> OurVcon | None:
        try:
            return ambient.vcons.get(str(vcon_id))
        except VconNotFound:
            return None

    @staticmethod
    def _load_from_storage(vcon_id: str) -> dict[str, Any] | None:
        return VconRedis().get_vcon_dict(vcon_id)

    # Storing

    def store_vcon(self, vcon: Any, ttl: int | None = None) -> None:
        """Store anything with `uuid` and `to_dict()`; with *ttl* it expires that many seconds after the chain settles.

        A vCon that the link has not read replaces what is stored under its UUID. Raises VconSealed for a change of a
        signed or encrypted one.
        """
        document = vcon.to_dict()
        base = self._store(document, getattr(vcon, "base", None))
        if isinstance(vcon, Vcon):
            vcon.base = base
        self._expire_later(str(vcon.uuid), ttl)

    def store_vcon_dict(self, vcon_dict: dict[str, Any], ttl: int | None = None) -> None:
        """Store a document, which is brought to the current draft in place; see `store_vcon`."""
        if form_of(vcon_dict) == "unsigned":
            self._enforce_spec_on_write(vcon_dict)
        base = self._store(vcon_dict, getattr(vcon_dict, "base", None))
        if isinstance(vcon_dict, Document):
            vcon_dict.base = base
        self._expire_later(str(OurVcon(vcon_dict).uuid), ttl)

    @staticmethod
    def _store(document: dict[str, Any], base: bytes | None) -> bytes | None:
        uuid = OurVcon(document).uuid
        work = ambient.current()
        if base is None and work is not None and uuid is not None:
            base = work.writer.base_of(uuid)
        before = OurVcon.parse(base).document if base is not None else None
        ours = OurVcon(as_ours(document, before))
        if before is not None and canonical(before) == canonical(ours.document):
            return base
        if before is not None and (ours.sealed or form_of(before) != "unsigned"):
            raise VconSealed(f"vCon {uuid} is {form_of(before)}: it cannot be changed without breaking it")
        ours.base = base
        ambient.vcons.save(ours)
        return ours.base

    def _expire_later(self, uuid: str, ttl: int | None) -> None:
        if ttl is not None:
            self.set_expiry(uuid, ttl)

    @staticmethod
    def _stringify_json_body(entry: dict[str, Any]) -> None:
        stringify(entry)

    @classmethod
    def _enforce_spec_on_write(cls, vcon_dict: dict[str, Any]) -> dict[str, Any]:
        normalize_legacy_fields(vcon_dict)
        vcon_dict["vcon"] = VERSION
        for name in ("group", "redacted"):
            if name in vcon_dict and not vcon_dict[name]:
                del vcon_dict[name]
        for name in ("analysis", "attachments"):
            for entry in vcon_dict.get(name) or []:
                stringify(entry)
        return vcon_dict

    # Expiry

    def set_expiry(self, vcon_id: str, ttl: int) -> bool:
        """Let the vCon expire *ttl* seconds after the chain has settled, another one than the chain's *ttl* from now.

        False if it is not there. LinkError for what is no number of seconds.
        """
        work, uuid = ambient.current(), str(vcon_id)
        store = ambient.store()
        if not store.client.exists(vcon_key(uuid)):
            return False
        if work is not None and _is_at_hand(work, uuid):
            ambient.vcons.expire(uuid, ttl)
        elif isinstance(ttl, bool) or not isinstance(ttl, int) or not 0 < ttl <= ambient.LONGEST_EXPIRY_SECS:
            raise LinkError(f"a vCon cannot expire in {ttl!r:.40} seconds")
        else:
            store.expire([(uuid, "*", ttl)])
        return True

    def get_ttl(self, vcon_id: str) -> int:
        """Return the seconds until it expires: -1 if it does not, -2 if it is not there."""
        work, uuid = ambient.current(), str(vcon_id)
        left = int(ambient.store().client.ttl(vcon_key(uuid)))
        if left != -2 and work is not None and _is_at_hand(work, uuid) and work.expire_secs is not None:
            return work.expire_secs
        return left

    def remove_expiry(self, vcon_id: str) -> bool:
        """Let the vCon stay; False if it would not have expired."""
        work, uuid = ambient.current(), str(vcon_id)
        removed = bool(ambient.store().client.persist(vcon_key(uuid)))
        if work is not None and _is_at_hand(work, uuid) and work.expire_secs is not None:
            work.expire_secs = None
            return True
        return removed

    # The same for a link that awaits; the client is not used, and the loop waits for the moment that it takes

    async def store_vcon_async(self, redis_client: Any, vcon: Any, ttl: int | None = None) -> None:
        """See `store_vcon`."""
        self.store_vcon(vcon, ttl)

    async def store_vcon_dict_async(self, redis_client: Any, vcon_dict: dict[str, Any], ttl: int | None = None) -> None:
        """See `store_vcon_dict`."""
        self.store_vcon_dict(vcon_dict, ttl)

    async def set_expiry_async(self, redis_client: Any, vcon_id: str, ttl: int) -> bool:
        """See `set_expiry`."""
        return self.set_expiry(vcon_id, ttl)

    async def get_ttl_async(self, redis_client: Any, vcon_id: str) -> int:
        """See `get_ttl`."""
        return self.get_ttl(vcon_id)


def _is_at_hand(work: ambient.Work, uuid: str) -> bool:
    # A run knows its vCon; what has none is a test's, about one.
    return str(getattr(work, "uuid", uuid)).lower() == uuid.lower()
