"""Clocks of hosts that are wrong, differ, and jump: leases, retries, fences and expiry go by the server's clock."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from redis import Redis

from conserver.settings import Settings
from conserver.store import VconStore, digest
from conserver.vcon import Vcon
from tests.faults.doubles import EDIT
from tests.faults.endings import end_well, settled
from tests.host import Host, accounted, store, vcon
from tests.waiting import wait_until
from tests.wrong_clock import WrongClock

pytestmark = pytest.mark.faults

HOUR, TEN_MINUTES = 3600, 600


def make(folder: Path, url: str, clock: WrongClock, *, sleep: float = 0.02, **env: object) -> Host:
    """A host with a wrong clock, a link that adds an analysis and may fail once, and a storage."""
    retry = {"attempts": 5, "backoff_secs": 1}
    lists = {"ingress_lists": ["in"], "egress_lists": ["out"]}
    config: dict[str, Any] = {
        "links": {"edit": {"module": "links.edit", "options": {"sleep": sleep}, "retry": retry}},
        "storages": {"file": {"module": "storages.file", "options": {"path": "vcons"}}},
        "chains": {"main": {"links": ["edit"], "storages": ["file"], "pause_after": 0, **lists}},
    }
    return Host(folder, url, config, links={"edit": EDIT}, **clock.env, **env)


def hours_seen(host: Host) -> set[int]:
    """By how many hours the clocks of links were wrong, as they saw it themselves."""
    real = os.stat(host.effects_file).st_mtime
    lines = map(json.loads, host.effects_file.read_text().splitlines())
    return {round((line["at"] - real) / HOUR) for line in lines}


def test_a_clock_that_is_wrong_is_seen_and_the_monotonic_one_is_not(tmp_path: Path):
    """What the tests below rest on: Python's wall clock jumps, its sleeps and waits do not."""
    clock = WrongClock(tmp_path)
    code = """if True:
        import datetime, queue, sys, threading, time
        for line in sys.stdin:
            before = time.monotonic()
            time.sleep(0.01)
            threading.Event().wait(0.01)
            print(time.time(), datetime.datetime.now().timestamp(), time.monotonic() - before, flush=True)
    """
    env = {**os.environ, **clock.env}
    process = subprocess.Popen(
        [sys.executable, "-c", code], env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    seen = []
    with process:
        for secs in (0, HOUR, -HOUR):
            clock.set(secs)
            process.stdin.write("\n")
            process.stdin.flush()
            now, today, passed = map(float, process.stdout.readline().split())
            seen.append((round((now - time.time()) / HOUR), round((today - time.time()) / HOUR), passed < 60))
        process.stdin.close()

    assert seen == [(0, 0, True), (1, 1, True), (-1, -1, True)]


@pytest.mark.thorough
def test_clocks_that_jump_by_an_hour_cost_nobody_anything(tmp_path: Path, redis: Redis, server_url: str):
    """Forward on one host, backward on the other, and back: no claim is taken away, and each link begins once."""
    uuids = store(redis, [vcon() for _ in range(600)])
    clocks = [WrongClock(tmp_path / f"clock-{name}") for name in ("one", "two")]
    with ExitStack() as stack:
        hosts = [
            make(tmp_path / name, server_url, clock, sleep=0.1)
            for name, clock in zip(("one", "two"), clocks, strict=True)
        ]
        for host in hosts:
            stack.callback(host.close)
            host.start()
        workers = [sorted(host.worker_pids()) for host in hosts]
        redis.rpush("in", *uuids)
        for n, (one, two) in enumerate(((HOUR, -HOUR), (-HOUR, HOUR), (0, 0))):
            wait_until(lambda n=n: redis.llen("out") > 100 * (n + 1), 60)
            clocks[0].set(one)
            clocks[1].set(two)

        assert settled(redis, *hosts) == workers
        for host in hosts:
            assert hours_seen(host) == {-1, 0, 1}
            assert "recovered" not in host.said()
        end_well(redis, uuids, *hosts, links={"edit": 1})


@pytest.mark.thorough
def test_hosts_that_are_ten_minutes_apart_retry_in_time(tmp_path: Path, redis: Redis, server_url: str):
    """Retries are due by the server's clock, whoever puts them off and whoever wakes them; nobody takes over early."""
    uuids = store(redis, [vcon("flaky") for _ in range(100)])
    with ExitStack() as stack:
        hosts = []
        for name, secs in (("fast", TEN_MINUTES), ("slow", 0)):
            host = make(tmp_path / name, server_url, WrongClock(tmp_path / f"clock-{name}", secs))
            hosts.append(host)
            stack.callback(host.close)
            host.start()
        redis.rpush("in", *uuids)
        waits: list[float] = []

        def look() -> bool:
            secs, micros = redis.time()
            delayed = redis.zrange("conserver:{in}:delayed", 0, -1, withscores=True)
            waits.extend(due / 1000 - secs - micros / 1e6 for _, due in delayed)
            return accounted(redis, ["in"])

        wait_until(look, 60, "all retried and settled")

        assert 0 < max(waits) < 60
        assert all("recovered" not in host.said() for host in hosts)
        # It fails once in the folder of each host.
        end_well(redis, uuids, *hosts, links={"edit": 3})


@pytest.mark.thorough
@pytest.mark.parametrize("secs", [HOUR, -HOUR])
def test_a_copy_expires_after_its_time_whatever_the_clock_of_the_host(
    tmp_path: Path, redis: Redis, server_url: str, secs: int
):
    """The server counts the seconds, from the moment that the storage had this version."""
    (uuid,) = store(redis, [vcon()])
    host = make(tmp_path / "host", server_url, WrongClock(tmp_path / "clock", secs), VCON_REDIS_EXPIRY=1000).start()
    try:
        redis.rpush("in", uuid)
        wait_until(lambda: redis.ttl(f"vcon:{uuid}") > 0, 30)

        assert 800 < redis.ttl(f"vcon:{uuid}") <= 1000
        assert hours_seen(host) == {secs // HOUR}
    finally:
        host.close()


@pytest.mark.parametrize("swept_at", [-HOUR, 0, HOUR, 1000 * HOUR])
@pytest.mark.parametrize("noted_at", [-HOUR, 0, HOUR])
def test_search_keeps_what_is_there_whatever_the_clocks_say(
    redis: Redis, server_url: str, monkeypatch: pytest.MonkeyPatch, noted_at: int, swept_at: int
):
    """The index is swept by a host's clock, but what it takes away is only what the server has let expire."""
    real = time.time
    document = vcon()
    text = Vcon(document).to_bytes()
    vcons = VconStore(server_url, Settings(redis_expiry_secs=5, index_expiry_secs=0))
    vcons.create(Vcon(document))

    monkeypatch.setattr(time, "time", lambda: real() + noted_at)
    assert vcons.expire([(document["uuid"], digest(text), 500)]) == 1
    monkeypatch.setattr(time, "time", lambda: real() + swept_at)
    vcons.sweep()
    there = vcons.find(tel="+15550100")
    redis.delete(f"vcon:{document['uuid']}")
    monkeypatch.setattr(time, "time", lambda: real() + 2000 * HOUR)
    vcons.sweep()

    assert there == {document["uuid"]}
    assert vcons.find(tel="+15550100") == set()
