"""Rebuilding the index from the vCons that are in Redis, after other programs have written there.

Writers may go on. The server refuses to enter a vCon that was written since it was read; and out of what a vCon does
not say any more it is taken only if it still does not say it a moment later.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from typing import Any

from redis.exceptions import RedisError, ResponseError, WatchError

from conserver import connection
from conserver.errors import NotAVcon, ServerError
from conserver.index import INDEX_KEY, Index
from conserver.settings import Settings
from conserver.terms import keys_of
from conserver.vcon import load, uuid_of
from conserver.vcon_forms import is_uuid

#: Of one step, which the server does in one piece.
_MOST_KEYS = 100
_MOST_BYTES = 16 * 1024 * 1024
#: A writer enters what it is about to save; by then it has.
_LATER_SECS = 1.0
_PREFIX = "vcon:"


def reindex(client: Any, settings: Settings) -> int:
    """Enter every vCon that is in Redis into the index; return how many.

    What the index says of vCons that are not in Redis stays: a storage may hold them. Members of the sorted set that
    have the prefix of a key lose it.
    """
    index = Index(client, settings)
    entered: set[str] = set()
    superfluous: dict[str, set[str]] = {}
    try:
        for uuids in _steps(client):
            for uuid, left in _enter(client, index, [uuid for uuid in uuids if uuid not in entered], {}):
                entered.add(uuid)
                if left:
                    superfluous[uuid] = left
        if superfluous:
            time.sleep(_LATER_SECS)
            again = list(superfluous)
            for at in range(0, len(again), _MOST_KEYS):
                _enter(client, index, again[at : at + _MOST_KEYS], superfluous)
        _take_prefixes_off(client, settings.sorted_set)
    except RedisError as error:
        if connection.is_server_error(error):
            raise ServerError(str(error)) from error
        raise
    return len(entered)


def _steps(client: Any) -> Iterator[list[str]]:
    """Yield the UUIDs of all keys of vCons, as many together as may be read at once; some may come twice."""
    cursor: Any = 0
    while True:
        cursor, keys = client.scan(cursor, match=_PREFIX + "*", count=1000)
        uuids = [key.decode("utf-8", "replace").removeprefix(_PREFIX) for key in keys]
        uuids = [uuid for uuid in uuids if is_uuid(uuid)]
        sizes = client.call([("MEMORY", "USAGE", _PREFIX + uuid) for uuid in uuids]) if uuids else []
        step, total = list[str](), 0
        for uuid, size in zip(uuids, sizes, strict=True):
            total += size if isinstance(size, int) else 0
            if step and (total > _MOST_BYTES or len(step) == _MOST_KEYS):
                yield step
                step, total = [], size if isinstance(size, int) else 0
            step.append(uuid)
        if step:
            yield step
        if not int(cursor):
            return


def _enter(
    client: Any, index: Index, uuids: list[str], superfluous: Mapping[str, set[str]]
) -> list[tuple[str, set[str]]]:
    """Enter those that are vCons, and take them out of *superfluous* keys; return each, and what else it is in."""
    found: list[tuple[str, set[str]]] = []
    waiting = [uuids]
    while waiting:
        some = waiting.pop()
        try:
            found += _entered(client, index, some, superfluous)
        except WatchError:
            # One of them was written meanwhile: the others do not wait for that.
            half = (len(some) + 1) // 2
            waiting += [some[:half], some[half:]]
    if due := _due(client, [uuid for uuid, _ in found]):
        client.execute_command(*index.expiring_command(due))
    return found


def _entered(
    client: Any, index: Index, uuids: list[str], superfluous: Mapping[str, set[str]]
) -> list[tuple[str, set[str]]]:
    if not uuids:
        return []
    found: list[tuple[str, set[str]]] = []
    with client.pipeline() as pipe:
        pipe.watch(*(_PREFIX + uuid for uuid in uuids))
        known = dict(zip(uuids, map(index.keys_of_reply, pipe.hmget(INDEX_KEY, uuids)), strict=True))
        documents = _documents(pipe, uuids)
        if not documents:
            return []
        pipe.multi()
        for uuid, document in documents.items():
            before, wanted = known[uuid], keys_of(document)
            out = (before - wanted) & superfluous.get(uuid, set())
            now = (before | wanted) - out
            found.append((uuid, now - wanted))
            *commands, note = index.add_commands(uuid, document, out, now)
            # A writer that is about to save may have noted more since.
            for command in [*commands, note] if now != before else commands:
                pipe.execute_command(*command)
        replies = pipe.execute(raise_on_error=False)
    index.told(replies)
    return found


def _documents(pipe: Any, uuids: list[str]) -> dict[str, dict[str, Any]]:
    """Return those that are vCons."""
    texts = dict(zip(uuids, pipe.mget([_PREFIX + uuid for uuid in uuids]), strict=True))
    if others := [uuid for uuid, text in texts.items() if text is None]:
        try:
            found = pipe.execute_command("JSON.MGET", *(_PREFIX + uuid for uuid in others), ".")
            texts |= dict(zip(others, found, strict=True))
        except ResponseError as error:
            if connection.is_server_error(error):
                raise
            # Without a JSON module these are gone, or something else.
    documents = {}
    for uuid, text in texts.items():
        try:
            document = load(text) if text else None
        except NotAVcon:
            continue
        if isinstance(document, dict) and (uuid_of(document) or "").lower() == uuid.lower():
            documents[uuid] = document
    return documents


def _due(client: Any, uuids: list[str]) -> dict[str, int]:
    lives = client.call([("PTTL", _PREFIX + uuid) for uuid in uuids]) if uuids else []
    return {uuid: ms // 1000 + 1 for uuid, ms in zip(uuids, lives, strict=True) if isinstance(ms, int) and ms >= 0}


def _take_prefixes_off(client: Any, sorted_set: str) -> None:
    cursor: Any = 0
    while True:
        cursor, members = client.zscan(sorted_set, cursor, match=_PREFIX + "*", count=1000)
        with client.pipeline() as pipe:
            for member, score in members:
                uuid = member.decode("utf-8", "replace").removeprefix(_PREFIX)
                if is_uuid(uuid):
                    pipe.zadd(sorted_set, {uuid: score}, nx=True)
                    pipe.zrem(sorted_set, member)
            pipe.execute()
        if not int(cursor):
            return
