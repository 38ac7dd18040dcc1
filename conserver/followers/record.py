"""What a follower has taken from another conserver and not yet finished, written down in Redis.

A process that dies takes nothing with it: whoever follows next goes on from here. What the other side gave away for
good stands in the list `follower:<follower>`. What it has leased stands in a list a lease, until it is done; what is
done, in another one until the other side knows.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import UTC, datetime

import msgspec

from conserver import connection, scripts
from conserver.claims import dead_list, own_key, reason
from conserver.kept_lock import kept_lock

#: How long is remembered which version of a vCon was followed.
VERSION_SECS = 30 * 86400
_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(tuple[str, float]).decode


@dataclass(frozen=True)
class Batch:
    """Entries that were taken together: all that was given for good, or those of one `lease`."""

    key: str
    lease: str = ""
    lapses_at: float = 0.0
    """When the other side gives the entries to others, in seconds since the epoch."""


class Record:
    """What one follower has in hand. Safe for any process: an entry is ended by one of them, once."""

    def __init__(self, url: str, follower: str, source: str) -> None:
        """*source* names the list of the other conserver that is pulled; what came from another one is not mixed up."""
        name = f"follower:{follower}"
        self._client = connection.client(url, name)
        self._once = connection.once(url, name)
        self._follower = follower
        self._source = source
        self.name = name
        self.given = Batch(name)
        self._leases = f"conserver:{{follower:{follower}}}:leases"
        self._asking = f"conserver:{{follower:{follower}}}:asking"
        self._lock = f"conserver:{{follower:{follower}}}:lock"
        self._last_source = f"conserver:{{follower:{follower}}}:source"

    # What was given for good

    def begin_to_ask(self, most: int) -> None:
        """Note that up to *most* entries are about to be taken; ServerError if they could not be written down."""
        self._once.set(self._asking, most)

    def asked(self) -> int:
        """Return how many entries may have been taken by somebody who died before he could write them down."""
        return int(self._client.get(self._asking) or 0)

    def end_asking(self, entries: Sequence[str] = ()) -> None:
        """Write down what was taken; that is all that keeps it."""
        pipe = self._once.pipeline(transaction=True)
        for at in range(0, len(entries), 5000):
            pipe.rpush(self.given.key, *entries[at : at + 5000])
        pipe.delete(self._asking)
        pipe.execute()

    def left(self, batch: Batch) -> list[str]:
        """Return what is to be done of a batch, oldest first."""
        return _texts(self._client.lrange(batch.key, 0, -1))

    def strangers(self) -> list[str]:
        """Return what was given for good by another source than the present one, which is the present one from now on.

        Nobody could fetch it there; whoever is told of it has to end it.
        """
        before = self._client.get(self._last_source)
        if before == self._source.encode():
            return []
        return self.left(self.given) if before is not None else []

    def settle_in(self) -> None:
        """Note that what is given from now on comes from the present source."""
        self._client.set(self._last_source, self._source)

    # What was leased

    def begin(self, lease: str, entries: Sequence[str], secs: float) -> Batch:
        """Write down what was leased for *secs* seconds."""
        batch = self._batch(lease, time.time() + secs)
        pipe = self._client.pipeline(transaction=True)
        # It may be sent twice.
        pipe.delete(batch.key)
        for at in range(0, len(entries), 5000):
            pipe.rpush(batch.key, *entries[at : at + 5000])
        pipe.hset(self._leases, lease, _encode([self._source, batch.lapses_at]))
        pipe.execute()
        return batch

    def leases(self) -> list[Batch]:
        """Return the leases of the present source that the other side has not been told the end of."""
        batches = []
        for lease, noted in self._client.hgetall(self._leases).items():
            source, lapses_at = _decode(noted)
            batch = self._batch(lease.decode(), lapses_at)
            if source == self._source:
                batches.append(batch)
            else:
                # It lapses there by itself.
                self.end(batch)
        return batches

    def done(self, batch: Batch) -> list[str]:
        """Return what of a lease is done and has to be acknowledged."""
        return _texts(self._client.lrange(self._done(batch), 0, -1))

    def end(self, batch: Batch) -> None:
        """Forget a lease: the other side knows, or it has lapsed."""
        pipe = self._client.pipeline(transaction=True)
        pipe.delete(batch.key, self._done(batch))
        pipe.hdel(self._leases, batch.lease)
        pipe.execute()

    def _batch(self, lease: str, lapses_at: float) -> Batch:
        return Batch(f"conserver:{{follower:{self._follower}}}:leased:{lease}", lease, lapses_at)

    def _done(self, batch: Batch) -> str:
        return f"conserver:{{follower:{self._follower}}}:done:{batch.lease}"

    # Ends of an entry; False where somebody else has ended it before

    def push(self, batch: Batch, entry: str, list_name: str, uuid: str) -> bool:
        """Push *uuid* to a list of ours, which ends *entry*."""
        return self._end(batch, entry, list_name, uuid, b"")

    def bury(self, batch: Batch, entry: str, why: str) -> bool:
        """Make *entry* a dead letter of the follower."""
        at = datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
        return self._end(batch, entry, dead_list(self.name), entry, reason(why, at=at))

    def drop(self, batch: Batch, entry: str) -> bool:
        """Forget *entry*."""
        return self._end(batch, entry, batch.key, "", b"")

    def _end(self, batch: Batch, entry: str, target: str, value: str, why: bytes) -> bool:
        done = self._done(batch) if batch.lease else batch.key
        keys = [batch.key, done, target, own_key(self.name, "dead")]
        return bool(scripts.FOLLOW(self._client, keys, [entry, value, why, int(bool(batch.lease))]))

    # Versions

    def version(self, uuid: str) -> str | None:
        """Return which version of a vCon was followed last, by any follower; None if that is not known."""
        version = self._client.get(_version_key(uuid))
        return version.decode() if version is not None else None

    def note_version(self, uuid: str, version: str) -> None:
        """Note which version of a vCon was followed."""
        self._client.set(_version_key(uuid), version, ex=VERSION_SECS)

    def alone(self, lease_secs: float) -> AbstractContextManager[threading.Event | None]:
        """Be the one process that follows while the block runs; see kept_lock."""
        return kept_lock(self._once, self._lock, lease_secs)


def _version_key(uuid: str) -> str:
    return f"conserver:{{vcon:{uuid}}}:followed"


def _texts(entries: Sequence[bytes]) -> list[str]:
    return [entry.decode("utf-8", "backslashreplace") for entry in entries]
