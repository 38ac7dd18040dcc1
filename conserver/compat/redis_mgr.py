"""`redis_mgr`: clients of the server, whose replies are text.

What they write to a key `vcon:<uuid>` as JSON goes through the store, merged and fenced; all else is done at once, as
it is asked for: what a link pushes by them is pushed again when the link runs again.
"""

from __future__ import annotations

import json
import re
from functools import cache
from typing import Any

from redis.asyncio import Redis as AsyncRedis
from redis.exceptions import ResponseError

from conserver import ambient, connection
from conserver.compat.lib.vcon_redis import VconRedis
from conserver.errors import ConserverError

_MEMBERS = re.compile(r"\$?\.?([A-Za-z_][\w-]*)")


class _Json:
    """`client.json()`: documents of vCons by way of the store, all others as the server has them."""

    def __init__(self, client: Any, commands: Any) -> None:
        self._client = client
        self._commands = commands

    def get(self, name: str, *paths: Any, **options: Any) -> Any:
        """Return a document, or one member of it; with a path that begins with `$`, a list of what it finds."""
        uuid = _uuid_of(name)
        if uuid is None:
            return self._commands.get(name, *paths, **options)
        document = VconRedis().get_vcon_dict(uuid)
        if document is None:
            return None
        path = str(paths[0]) if paths else "."
        member = _member_of(path)
        if member is None:
            return [document] if path == "$" else document
        if path.startswith("$"):
            return [document[member]] if member in document else []
        return document.get(member)

    def set(self, name: str, path: Any, obj: Any, **options: Any) -> Any:
        """Store a document, or one member of it."""
        uuid = _uuid_of(name)
        if uuid is None:
            return self._commands.set(name, path, obj, **options)
        member = _member_of(str(path))
        document = obj
        if member is not None:
            document = VconRedis().get_vcon_dict(uuid)
            if document is None:
                return None
            document[member] = obj
        VconRedis().store_vcon_dict(document)
        return True

    def __getattr__(self, name: str) -> Any:
        return getattr(self._commands, name)


def _uuid_of(key: Any) -> str | None:
    key = key.decode("utf-8", "replace") if isinstance(key, bytes) else str(key)
    return key.removeprefix("vcon:") if key.startswith("vcon:") else None


def _member_of(path: str) -> str | None:
    if path in ("$", ".", "$."):
        return None
    member = _MEMBERS.fullmatch(path)
    if member is None:
        raise ValueError(f"path {path!r:.80}: of a vCon only the whole and its members can be had; take lib.vcon_redis")
    return member[1]


class Client(connection.Client):
    """A client whose replies are text, and whose trouble with the server is a ServerError."""

    def json(self, *args: Any, **options: Any) -> Any:
        """Return the commands for JSON."""
        return _Json(self, super().json(*args, **options))


@cache
def _client_of(url: str) -> Any:
    # Without a limit of time: a link may wait for an entry of a list, and has a timeout of its own.
    return connection.once(url, "compat", timeout_secs=None, kind=Client, decode_responses=True)


def _url() -> str:
    try:
        return ambient.store().url
    except ConserverError:
        # Nobody has said where the server is, as when a link is imported to be checked.
        return "redis://localhost"


class _Shared:
    """The client of the server that the caller's run is on, or that of `REDIS_URL`."""

    def __getattr__(self, name: str) -> Any:
        return getattr(_client_of(_url()), name)

    def __repr__(self) -> str:
        return f"<client of {connection.address(_url())}>"


redis: Any = _Shared()


def get_client() -> Any:
    """Return the client that all share."""
    return redis


async def get_async_client() -> Any:
    """Return a new asynchronous client; its commands know nothing of vCons."""
    return AsyncRedis.from_url(_url(), decode_responses=True)


def json_set(client: Any, key: str, value: Any, ttl: int | None = None) -> Any:
    """Store a value as JSON; the expiry stays as it is unless there is a *ttl*."""
    uuid = _uuid_of(key)
    if uuid is not None:
        VconRedis().store_vcon_dict(value, ttl)
        return True
    text = json.dumps(value)
    return client.set(key, text, keepttl=True) if ttl is None else client.set(key, text, ex=ttl)


def json_get(client: Any, key: str) -> Any:
    """Return a value that was stored as JSON, as text or by a JSON module; None if there is none."""
    uuid = _uuid_of(key)
    if uuid is not None:
        return VconRedis().get_vcon_dict(uuid)
    try:
        text = client.get(key)
    except ResponseError as error:
        if not str(error).startswith("WRONGTYPE"):
            raise
        text = client.execute_command("JSON.GET", key)
    return None if text is None else json.loads(text)


def set_key(key: str, value: Any) -> Any:
    """Store a value as JSON."""
    return json_set(redis, key, value)


def get_key(key: str) -> Any:
    """Return a value that was stored as JSON, or None."""
    return json_get(redis, key)


def delete_key(key: str) -> int:
    """Delete a key; a vCon for good, with all that it is found by. Return how many there were."""
    uuid = _uuid_of(key)
    if uuid is not None:
        return int(ambient.vcons.delete(uuid))
    return int(redis.delete(key))


def show_keys(pattern: str) -> list[str]:
    """Return the keys that match a pattern, found in steps that keep nobody waiting."""
    return list(dict.fromkeys(redis.scan_iter(match=pattern, count=1000)))
