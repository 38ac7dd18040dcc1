"""Many writes at once, of which each may be refused for itself."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from conserver import outbound
from conserver.errors import OutboundStatus
from conserver.outbound import Backoff, Retryable

from .asking import LINES, ask, error_type, objects, strange
from .options import Options
from .parts import Part, Place

#: Servers of some hosts take 10 MB at once; a part that is larger goes alone.
_MOST_BATCH_BYTES = 5 * 1024 * 1024
_BUSY = Backoff().statuses


@dataclass(frozen=True)
class Outcome:
    """What became of many writes: some were too old, or an index is gone."""

    overtaken: bool
    dropped: bool


def write(opts: Options, vcon_uuid: str, generation: int, removed: Iterable[Place], parts: Iterable[Part]) -> Outcome:
    """Delete parts and write others; what is newer than *generation* stays as it is.

    What is written counts as newer than what is deleted, so that it does not matter in which order they happen,
    nor under how many names an index goes.
    """
    waiting = [_Action("delete", place, vcon_uuid, generation, iter(())) for place in sorted(removed)]
    waiting += [_Action("index", part.place, vcon_uuid, generation + 1, part.documents()) for part in parts]
    conflicts: set[int] = set()

    def attempt() -> None:
        nonlocal waiting
        while waiting:
            batch = _batch(waiting)
            again, busy = _send(batch, conflicts, opts)
            waiting = [*again, *waiting[len(batch) :]]
            if busy:
                raise Retryable(f"{opts.address}: the server is busy, and has not taken all parts", status=429)

    outbound.retrying(f"parts at {opts.address}", attempt, Backoff(total_secs=opts.timeout))
    return Outcome(409 in conflicts, 404 in conflicts)


def _send(batch: list[_Action], conflicts: set[int], opts: Options) -> tuple[list[_Action], bool]:
    """Send a batch; return what of it is to be sent again, and whether because the server was busy."""
    answer = ask(opts, "POST", "/_bulk", b"".join(map(bytes, batch)), kind=LINES, quote_answer=False)
    again, busy = [], False
    for action, item in zip(batch, objects(answer, "items", count=len(batch)), strict=True):
        result = item.get(action.kind)
        if not isinstance(result, dict) or not isinstance(status := result.get("status"), int):
            raise strange(answer)
        if status in _BUSY:
            busy = True
            again.append(action)
        elif status == 400 and action.say_less():
            again.append(action)
        elif status in (404, 409):
            conflicts |= {status} if action.kind == "index" else set()
        elif status >= 300:
            said = f"{answer.source}: index {action.place.index} refused a part: {status} {error_type(result)}"
            raise OutboundStatus(said.rstrip(), status)
    return again, busy


class _Action:
    """One write of many, and what to say less of if it is refused."""

    def __init__(self, kind: str, place: Place, vcon_uuid: str, version: int, documents: Iterator[bytes]) -> None:
        self.kind = kind
        self.place = place
        name = {"_index": place.index, "_id": f"{vcon_uuid}_{place.position}"}
        head = {kind: {**name, "version": version, "version_type": "external_gte"}}
        self._head = json.dumps(head).encode() + b"\n"
        self._documents = documents
        self._body = b""
        self.say_less()

    def say_less(self) -> bool:
        """Go on to the next document; False if there is none."""
        body = next(self._documents, None)
        if body is not None:
            self._body = body + b"\n"
        return body is not None

    def __bytes__(self) -> bytes:
        return self._head + self._body

    def __len__(self) -> int:
        return len(self._head) + len(self._body)


def _batch(actions: list[_Action]) -> list[_Action]:
    """Return as many of the first actions as may go together, and at least one."""
    size = 0
    for count, action in enumerate(actions):
        size += len(action)
        if size > _MOST_BATCH_BYTES and count:
            return actions[:count]
    return actions
