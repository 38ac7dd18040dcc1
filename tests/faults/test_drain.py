"""SIGTERM at any time: no new claims, what runs may finish, the rest goes back, exit code 0."""

from __future__ import annotations

import os
import signal
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from redis import Redis

from conserver.embedded import EmbeddedServer
from tests.host import Host, accounted, entries, store, vcon
from tests.waiting import wait_until

pytestmark = [pytest.mark.faults, pytest.mark.thorough, pytest.mark.timeout(300)]


def config(sleep: float) -> dict[str, object]:
    """A chain whose link sleeps."""
    return {
        "links": {"act": {"module": "links.act", "options": {"sleep": sleep, "act": False}}},
        "chains": {"main": {"links": ["act"], "ingress_lists": ["in"], "egress_lists": ["out"]}},
    }


def held(redis: Redis) -> int:
    """How many claims anybody has."""
    return sum(redis.hlen(key) for key in redis.keys("conserver:*:held:*"))


def assert_the_rest_is_delivered(host: Host, redis: Redis, uuids: list[str]) -> None:
    """A next start delivers what is left, and each vCon was delivered once."""
    host.configure(config(0))
    host.start()
    wait_until(lambda: accounted(redis, ["in"]), 120)

    assert Counter(entries(redis, "out")) == Counter(uuids)
    assert entries(redis, "DLQ:in") == []


@pytest.mark.parametrize("to_all", [False, True], ids=["to-the-host", "to-all-its-processes"])
def test_a_drain_claims_nothing_more_and_finishes_what_runs(
    tmp_path: Path, redis: Redis, server_url: str, to_all: bool
):
    """As by kill, or by a service manager that tells each process: what runs is delivered, not one more begins."""
    uuids = store(redis, [vcon() for _ in range(100)])
    host = Host(tmp_path / "host", server_url, config(4))
    try:
        host.start()
        redis.rpush("in", *uuids)
        wait_until(lambda: host.effects().total() == 16, 90, "all threads at work")
        host.signal(signal.SIGTERM, host.family() if to_all else host.family()[:1])
        assert host.process is not None
        assert host.process.wait(90) == 0

        assert host.effects().total() == redis.llen("out") == 16
        assert not held(redis)
        assert redis.llen("in") + redis.llen("conserver:{in}:returned") == 84
        assert_the_rest_is_delivered(host, redis, uuids)
        assert max(host.effects().values()) == 1
    finally:
        host.close()


@pytest.mark.parametrize("first", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_does_not_wait(tmp_path: Path, redis: Redis, server_url: str, first: int):
    """What still runs is given back at once, with exit code 0, whatever the drain time."""
    uuids = store(redis, [vcon() for _ in range(30)])
    host = Host(tmp_path / "host", server_url, config(600), CONSERVER_DRAIN_SECS=600)
    try:
        host.start()
        redis.rpush("in", *uuids)
        wait_until(lambda: host.effects().total() == 16, 90, "all threads at work")
        host.signal(first, host.family()[:1])
        wait_until(lambda: "draining" in host.said(), 90)
        assert host.stop(timeout=90) == 0

        assert not held(redis)
        assert redis.llen("in") + redis.llen("conserver:{in}:returned") == 30
        assert_the_rest_is_delivered(host, redis, uuids)
    finally:
        host.close()


def test_a_drain_ends_when_its_time_is_over(tmp_path: Path, redis: Redis, server_url: str):
    """One that does not finish within the drain time is given back, also if it keeps its process for itself."""
    uuids = store(redis, [vcon(subject) for subject in ("hang", "block")])
    host = Host(tmp_path / "host", server_url, config(0), CONSERVER_WORKERS=2, CONSERVER_DRAIN_SECS=1)
    settings = config(0)
    settings["links"] = {"act": {"module": "links.act"}}
    host.configure(settings)
    try:
        host.start()
        redis.rpush("in", *uuids)
        wait_until(lambda: host.effects().total() == 2, 90, "both at work")
        assert host.stop(timeout=90) == 0

        assert not held(redis)
        assert Counter(redis.lrange("conserver:{in}:returned", 0, -1)) != Counter()
        assert_the_rest_is_delivered(host, redis, uuids)
    finally:
        host.close()


def beginning(host: Host) -> object:
    """Whether the process has begun to say something."""
    return host.log.stat().st_size or len(host.family()) > 1


def has_lease(host: Host) -> object:
    """Whether the supervisor has its lease."""
    return host.redis.keys("conserver:host:*")


def has_process(host: Host) -> object:
    """Whether the first worker's process is there."""
    return len(host.family()) > 2


@pytest.mark.parametrize("moment", [beginning, has_lease, has_process])
def test_a_start_can_be_ended_at_any_time(
    tmp_path: Path, redis: Redis, server_url: str, moment: Callable[[Host], object]
):
    """SIGTERM before the workers claim: exit code 0, nothing is held, no process is left."""
    uuids = store(redis, [vcon() for _ in range(40)])
    redis.rpush("in", *uuids)
    host = Host(tmp_path / "host", server_url, config(0))
    try:
        host.start(wait=False)
        wait_until(lambda: moment(host), 120)
        family = host.family()
        assert host.stop() == 0

        assert not held(redis)
        wait_until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in family), 90, "all have ended")
        assert_the_rest_is_delivered(host, redis, uuids)
    finally:
        host.close()


@pytest.mark.parametrize("again", [1, 2])
def test_a_drain_ends_although_the_server_is_away(tmp_path: Path, again: int):
    """The server is dead and the host looks for it: one SIGTERM, or two, end it; nothing is lost, run twice at most."""
    server = EmbeddedServer(tmp_path / "data")
    url = server.start()
    redis = Redis.from_url(url)
    host = Host(tmp_path / "host", url, config(0.05), CONSERVER_DRAIN_SECS=2)
    try:
        uuids = store(redis, [vcon() for _ in range(300)])
        host.start()
        redis.rpush("in", *uuids)
        wait_until(lambda: redis.llen("out") > 50, 90)
        pid = server.pid
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda: "does not work" in host.said(), 90, "the host looks for the server")
        host.signal(signal.SIGTERM, host.family()[:1])
        if again == 2:
            wait_until(lambda: "draining" in host.said(), 90)
            host.signal(signal.SIGTERM, host.family()[:1])
        assert host.process is not None
        assert host.process.wait(90) == 0
        server.restart_if_dead()

        assert_the_rest_is_delivered(host, redis, uuids)
        assert max(host.effects().values()) <= 2
    finally:
        host.close()
        redis.close()
        server.stop()
