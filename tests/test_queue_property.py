"""conserver.queue: whatever happens in whatever order, each UUID ends in exactly one place."""

from __future__ import annotations

import contextlib
import uuid as uuids
from collections import Counter
from collections.abc import Sequence

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from redis import Redis

from conserver.claims import Claim, Note, Settlement
from conserver.errors import ServerError
from conserver.queue import Queue
from conserver.records import Records
from conserver.session import NotAMember, Session
from tests.proxy import Proxy, proxied

STEPS = st.sampled_from(
    ["push", "claim", "trip"] * 4
    + ["settle", "lose reply", "recover", "note", "withdraw"] * 2
    + ["lose request", "crash", "leave", "due", "flush", "retry"]
)
ENDS = st.sampled_from(["deliver", "die", "give back", "delay"])


class Worker:
    """One that remembers what it sent until it has an answer, as the real one does."""

    def __init__(self, proxy: Proxy, name: str, delivered: list[bytes], *, quarantine: bool) -> None:
        self.proxy, self.name = proxy, name
        self.ended_badly = "quarantine" if quarantine else "suspects"
        self.session = Session(proxy.url, name, suspects=quarantine)
        self.held: dict[int, Claim] = {}
        self.pending: list[Settlement] = []
        self.delivered = delivered
        """What workers were told that they have delivered."""
        while True:
            try:
                self.session.join(["in"])
                return
            except ServerError:
                continue

    def close(self) -> None:
        """End as a process does: its connection goes with it."""
        self.session._wire.close()

    def end(self, how: str) -> None:
        if self.held:
            seq = min(self.held)
            claim = self.held.pop(seq)
            end = Settlement(claim)
            if how == "deliver":
                end.push("out", claim.entry)
            elif how == "die":
                end.die(b'{"n":1}')
            elif how == "give back":
                end.give_back()
            else:
                end.delay(-1)
            self.pending.append(end)

    def trip(self, n: int) -> bool:
        """Settle and claim; False for a worker that was recovered."""
        trip = self.session.trip(self.pending, {"in": n} if n else {})
        assert all(result in (0, 1, None) for result in trip.results)
        self.delivered += [
            end.claim.entry
            for end, result in zip(self.pending, trip.results, strict=True)
            if result == 1 and end.operations[0][1] == "out"
        ]
        self.pending = [end for end, result in zip(self.pending, trip.results, strict=True) if result is None]
        for claim in trip.claims:
            assert claim.seq not in self.held, "handed out twice"
            self.held[claim.seq] = claim
        return not isinstance(trip.trouble, NotAMember)


def act(step: str, how: str, worker: Worker, redis: Redis, queue: Queue, records: Records, pushed: list[bytes]) -> bool:
    """Do one step; False if the worker has come to its end."""
    if step == "push":
        pushed.append(str(uuids.uuid4()).encode())
        redis.rpush("in", pushed[-1])
    elif step == "claim":
        return worker.trip(2)
    elif step == "settle":
        worker.end(how)
    elif step == "trip":
        worker.end(how)
        return worker.trip(1)
    elif step == "lose reply":
        worker.proxy.lose_next_reply()
    elif step == "lose request":
        worker.proxy.lose_next_request()
    elif step == "recover":
        # Taken for dead while it lives: it finds out at its next claim.
        queue.recover("in", worker.name, "returned", limit=b'{"n":1}')
    elif step == "note":
        for claim in worker.held.values():
            queue.note(claim, Note(1, "0123456789ab", claim.entry.decode()))
    elif step == "crash":
        # Its supervisor has seen it, or comes too late to do something about it.
        if how != "delay":
            queue.recover("in", worker.name, worker.ended_badly, limit=b'{"n":1}')
        return False
    elif step == "retry":
        queue.retry("in", 3, from_start=how == "deliver")
    elif step == "withdraw" and worker.held:
        # An operator takes it away while it runs.
        records.return_claim("in", worker.name, max(worker.held))
    elif step == "leave":
        with contextlib.suppress(ServerError):
            worker.session.leave()
        return False
    elif step == "due":
        queue.wake_due(["in"])
    elif step == "flush":
        redis.script_flush()
    return True


def drain(redis: Redis, queue: Queue, url: str) -> None:
    """What other hosts do in the end: recover all members, and run everything that waits."""
    for name in queue.workers("in"):
        queue.recover("in", name, "suspects", limit=b'{"n":1}')
    while queue.wake_due(["in"]):
        pass
    for suspects in (False, True):
        session = Session(url, f"last:{suspects}", suspects=suspects)
        session.join(["in"])
        while claims := session.trip([], {"in": 50}).claims:
            session.trip([Settlement(claim).push("out", claim.entry) for claim in claims], {})
        session.leave()


def each_uuid_ends_in_exactly_one_place(server: str, steps: Sequence[tuple[str, str, int]]) -> None:
    """Two workers and a quarantine do what *steps* say; then whatever is left is run."""
    with Redis.from_url(server) as redis, proxied(server) as one, proxied(server) as two, proxied(server) as three:
        redis.flushall()
        queue, records, proxies, pushed, delivered = Queue(server), Records(server), (one, two, three), [], []
        workers: list[Worker | None] = [None, None, None]
        for born, (step, how, number) in enumerate(steps):
            worker = workers[number]
            if worker is None:
                worker = workers[number] = Worker(proxies[number], f"host:{born}", delivered, quarantine=number == 2)
            if not act(step, how, worker, redis, queue, records, pushed):
                worker.close()
                workers[number] = None
        for worker in filter(None, workers):
            worker.close()

        drain(redis, queue, server)

        out = redis.lrange("out", 0, -1)
        assert sorted(out + redis.lrange("DLQ:in", 0, -1)) == sorted(pushed)
        assert Counter(delivered) <= Counter(out)
        assert not [key for key in redis.keys("conserver:*") if any(w in key for w in (b"held", b"delayed", b"taken"))]


STORY = st.lists(st.tuples(STEPS, ENDS, st.sampled_from([0, 0, 1, 1, 2])), min_size=20, max_size=60)


@settings(
    max_examples=40,
    deadline=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
    # To make a failure small may take minutes; the long test does.
    phases=[Phase.explicit, Phase.generate],
)
@given(steps=STORY)
def test_each_uuid_ends_in_exactly_one_place(server: str, steps: Sequence[tuple[str, str, int]]) -> None:
    """Through lost replies and requests, crashes, false alarms, forgotten scripts and dead letters tried again."""
    each_uuid_ends_in_exactly_one_place(server, steps)


@pytest.mark.long
@pytest.mark.timeout(900)
@settings(max_examples=2000, deadline=None, suppress_health_check=list(HealthCheck))
@given(steps=STORY)
def test_each_uuid_ends_in_exactly_one_place_in_many_ways(server: str, steps: Sequence[tuple[str, str, int]]) -> None:
    """As above, with thousands of stories that are others each time."""
    each_uuid_ends_in_exactly_one_place(server, steps)
