"""A network that resets, swallows, delays, and brings things late: each vCon is delivered once all the same."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from redis import Redis

import conserver
from conserver import ambient
from conserver.errors import ServerError
from conserver.feed import feed
from conserver.lease import Lease
from conserver.queue import Queue
from conserver.session import PATIENCE_SECS, Session
from conserver.settings import Settings
from conserver.store import VconStore
from tests.commands import Folder
from tests.faults.doubles import editor
from tests.faults.endings import end_well, settled
from tests.host import Host, accounted, entries, store, vcon
from tests.proxy import Proxy, proxied
from tests.waiting import wait_until

pytestmark = pytest.mark.faults


@pytest.fixture
def proxy(server_url: str) -> Iterator[Proxy]:
    """The network between a host and its server."""
    with proxied(server_url) as proxy:
        yield proxy


@pytest.fixture
def far(tmp_path: Path, server_url: str, proxy: Proxy) -> Iterator[Host]:
    """A host that reaches its server through that network."""
    host = editor(tmp_path / "far", server_url, REDIS_URL=proxy.url)
    yield host
    host.close()


def keep_busy(redis: Redis, secs: float, batch: int = 40) -> list[str]:
    """Push vCons for so long, as many as are taken, and return all of them."""
    pushed: list[str] = []
    until = time.monotonic() + secs
    while time.monotonic() < until:
        uuids = store(redis, [vcon() for _ in range(batch)])
        redis.rpush("in", *uuids)
        pushed += uuids
        wait_until(lambda: redis.llen("in") < batch or time.monotonic() > until, secs + 10)
    return pushed


@pytest.mark.parametrize("secs", [pytest.param(4, id="short"), pytest.param(60, id="full", marks=pytest.mark.long)])
def test_random_resets_lose_and_repeat_nothing(far: Host, redis: Redis, proxy: Proxy, secs: int):
    """One chunk in twenty is a reset, in either direction: each vCon is delivered once, and no worker ends of it."""
    far.start()
    workers = sorted(far.worker_pids())
    with proxy.resetting(0.05, seed=secs):
        uuids = keep_busy(redis, secs)

    assert settled(redis, far) == [workers]
    assert proxy.resets > 20
    end_well(redis, uuids, far)


@pytest.mark.thorough
@pytest.mark.parametrize("secs", [pytest.param(6, id="short"), pytest.param(20, id="full", marks=pytest.mark.long)])
def test_a_blackhole_costs_nothing_but_its_time(far: Host, redis: Redis, proxy: Proxy, secs: int):
    """Nothing is answered for longer than a lease: not ready meanwhile, and afterwards work goes on by itself."""
    far.start()
    workers = sorted(far.worker_pids())
    wait_until(lambda: far.get("/readyz").status_code == 200, 15)
    uuids = keep_busy(redis, 1)
    with proxy.blackhole():
        until = time.monotonic() + secs
        wait_until(lambda: far.get("/readyz").status_code == 503, 15)
        wait_until(lambda: time.monotonic() > until, secs + 5)
    uuids += keep_busy(redis, 1)

    assert settled(redis, far) == [workers]
    wait_until(lambda: far.get("/readyz").status_code == 200, 15)
    end_well(redis, uuids, far)


@pytest.mark.thorough
def test_half_a_second_of_latency_is_only_slow(far: Host, redis: Redis, proxy: Proxy):
    """A server that is half a second away: claims, edits and settlements take their time, and each is done once."""
    proxy.delay_secs = 0.25
    uuids = store(redis, [vcon() for _ in range(12)])
    # A renewal has a third of the lease for its way there and back.
    far.env["CONSERVER_LEASE_SECS"] = "10"
    far.start(wait=False)
    redis.rpush("in", *uuids)

    settled(redis, far)
    end_well(redis, uuids, far, links={"edit": 1})


def test_claims_and_settlements_that_arrive_after_their_worker_was_recovered_are_refused(
    tmp_path: Path, far: Host, redis: Redis, server_url: str, proxy: Proxy
):
    """The network keeps what a host says until another has taken its work over: what comes then changes nothing."""
    far.start()
    near = editor(tmp_path / "near", server_url)
    try:
        uuids = store(redis, [vcon() for _ in range(400)])
        redis.rpush("in", *uuids)
        wait_until(lambda: redis.llen("out") > 50, 30)
        with proxy.holding():
            near.start()
            wait_until(lambda: accounted(redis, ["in"]), 60, "the near host has done everything")
            wait_until(lambda: len(redis.smembers("conserver:{in}:workers")) == 2, 30, "the far workers are out")
            before = entries(redis, "out")
            # Something to take, for claims that come late, while nobody is there who may.
            assert near.stop() == 0
            late = store(redis, [vcon() for _ in range(40)])
            redis.rpush("in", *late)
        wait_until(lambda: "was taken for dead" in far.said(), 30, "the far host finds out")

        settled(redis, far)
        assert entries(redis, "out")[: len(before)] == before
        end_well(redis, uuids + late, far)
    finally:
        near.close()


@pytest.mark.thorough
def test_no_push_of_ours_is_ever_done_twice(
    tmp_path: Path, redis: Redis, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
):
    """Through resets: who is told that a UUID was pushed finds it once, who is told of an error once or not at all."""
    monkeypatch.setenv("REDIS_URL", proxy.url)
    ambient._server.cache_clear()
    settings = Settings()
    queue, vcons = Queue(proxy.url), VconStore(proxy.url, settings)
    folder = Folder(tmp_path, url=proxy.url)
    ways = {
        "queue": lambda uuid: queue.push("in", [uuid]),
        "script": lambda uuid: conserver.push("in", uuid),
        "feed": lambda uuid: list(feed(queue, vcons, "in", [uuid], max_bytes=settings.max_vcon_bytes)),
    }
    said: dict[str, bool] = {}
    with proxy.resetting(0.1, seed=1):
        for push in ways.values():
            for document in [vcon() for _ in range(100)]:
                try:
                    push(document["uuid"])
                    said[document["uuid"]] = True
                except ServerError:
                    said[document["uuid"]] = False
        for uuid in [vcon()["uuid"] for _ in range(6)]:
            said[uuid] = folder.run("push", "in", uuid).returncode == 0
    ambient._server.cache_clear()

    found = entries(redis, "in")
    assert len(found) == len(set(found))
    assert {uuid for uuid, pushed in said.items() if pushed} <= set(found) <= said.keys()
    assert 20 < sum(said.values()) < len(said)


@pytest.mark.thorough
def test_nobody_waits_for_a_silent_server_longer_than_its_patience(redis: Redis, proxy: Proxy):
    """Claims, the supervisor's looks and renewals of a lease give up once, after their own time, and say so."""
    session = Session(proxy.url, "host:1")
    session.join(["in"])
    looks, lease = Queue(proxy.url, patience_secs=2.0), Lease(proxy.url, "host", 2.0)
    waits = {
        "claim": (PATIENCE_SECS, lambda: session.trip([], {"in": 1})),
        "look": (2.0, looks.lists),
        "lease": (2.0 / 3, lease.renew),
        "probe": (2.0, looks.probe),
    }

    def waited(ask: Any) -> float:
        began = time.monotonic()
        with contextlib.suppress(ServerError):
            ask()
        return time.monotonic() - began

    with proxy.blackhole(), ThreadPoolExecutor() as threads:
        took = dict(zip(waits, threads.map(waited, [ask for _, ask in waits.values()]), strict=True))

    # Twice as long would be a repetition; the rest is for a machine that is busy.
    assert {name: secs for name, secs in took.items() if secs > waits[name][0] * 1.5 + 1} == {}
