"""`lib.queue.VconQueue`: lists of UUIDs.

What a link enqueues is pushed when its chain settles, like `conserver.push`; outside of a chain at once. What is taken
from a list is gone from it: whoever dies with it loses it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from conserver import ambient
from conserver.claims import dead_list, storage_dead_list
from conserver.compat.lib.vcon_redis import VconRedis
from conserver.compat.redis_mgr import get_client


class VconQueue:
    """Lists of UUIDs; a *client* of one's own is used for what is done at once."""

    def __init__(self, client: Any = None) -> None:
        self._client = client if client is not None else get_client()

    def enqueue(self, list_name: str, vcon_id: str) -> None:
        """Push to the tail; LinkError for what is no UUID."""
        ambient.push(list_name, vcon_id)

    def enqueue_front(self, list_name: str, vcon_id: str) -> None:
        """Push to the head; in a chain to the tail, since that is done when it settles."""
        if ambient.current() is not None:
            ambient.push(list_name, vcon_id)
        else:
            self._client.lpush(list_name, vcon_id)

    def dequeue(self, list_names: Sequence[str] | str, timeout: float = 15) -> tuple[str, str] | None:
        """Take the first entry of the first list that has one, as (list, entry); None if none came within *timeout*."""
        names = [list_names] if isinstance(list_names, str) else list(list_names)
        taken = self._client.blpop(names, timeout=timeout) if names else None
        return None if taken is None else (_text(taken[0]), _text(taken[1]))

    def enqueue_dlq(self, ingress_list: str, vcon_id: str) -> None:
        """Push to the dead letters of an ingress list."""
        ambient.push(dead_list(ingress_list), vcon_id)

    def enqueue_storage_dlq(self, storage_name: str, vcon_id: str, retention_seconds: int | None = None) -> None:
        """Push to the dead letters of a storage; the vCon stays until a storage has it, whatever the seconds say."""
        ambient.push(storage_dead_list(storage_name), vcon_id)

    def queue_length(self, list_name: str) -> int:
        """Return how many entries wait in a list."""
        return int(self._client.llen(list_name))

    def set_vcon_ttl(self, vcon_id: str, seconds: int) -> bool:
        """See `VconRedis.set_expiry`."""
        return VconRedis().set_expiry(vcon_id, seconds)

    async def enqueue_async(self, redis: Any, list_name: str, *vcon_ids: str) -> None:
        """Push to the tail; in a chain when it settles, else by the client that is given."""
        if ambient.current() is not None:
            for vcon_id in vcon_ids:
                ambient.push(list_name, vcon_id)
        elif vcon_ids:
            await redis.rpush(list_name, *vcon_ids)

    async def queue_length_async(self, redis: Any, list_name: str) -> int:
        """Return how many entries wait in a list."""
        return int(await redis.llen(list_name))

    async def dequeue_dlq_async(self, redis: Any, ingress_list: str) -> str | None:
        """Take the oldest dead letter of an ingress list, or None if there is none."""
        taken = await redis.lpop(dead_list(ingress_list))
        return None if taken is None else _text(taken)


def _text(value: Any) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
