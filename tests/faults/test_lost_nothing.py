"""Promises 1 and 2: nothing is lost and consequences come once, whatever is killed."""

from __future__ import annotations

import os
import signal
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from redis import Redis

from conserver.embedded import EmbeddedServer
from tests.host import Host, accounted, entries, store, vcon
from tests.waiting import wait_until

pytestmark = pytest.mark.faults

SLEEPER = {
    "links": {"act": {"module": "links.act", "options": {"sleep": 0.02, "act": False}}},
    "chains": {"main": {"links": ["act"], "ingress_lists": ["in"], "egress_lists": ["out"]}},
}


@pytest.fixture
def host(tmp_path: Path, server_url: str) -> Iterator[Host]:
    """A conserver with a link that sleeps 20 ms."""
    host = Host(tmp_path / "host", server_url, SLEEPER)
    yield host
    host.close()


@contextmanager
def apart(folder: Path) -> Iterator[tuple[EmbeddedServer, Redis, Host]]:
    """A server that may be killed, and the same conserver on it."""
    server = EmbeddedServer(folder / "data")
    url = server.start()
    host = Host(folder / "host", url, SLEEPER)
    try:
        yield server, host.redis, host
    finally:
        host.close()
        server.stop()


def assert_each_delivered_once(redis: Redis, uuids: list[str]) -> None:
    """0 lost, 0 dead, each once on the egress list, nothing left behind."""
    wait_until(lambda: accounted(redis, ["in"]), 120, "everything settled")
    delivered = Counter(entries(redis, "out"))

    assert delivered == Counter(uuids)
    assert entries(redis, "DLQ:in") == []


@pytest.mark.parametrize("n", [pytest.param(800, id="short"), pytest.param(5000, id="full", marks=pytest.mark.long)])
def test_a_killed_worker_loses_nothing(host: Host, redis: Redis, n: int):
    """Three kill -9 of a worker in one run: every vCon is delivered once."""
    uuids = store(redis, [vcon() for _ in range(n)])
    host.start()
    redis.rpush("in", *uuids)
    for share in (0.2, 0.4, 0.6):
        wait_until(lambda share=share: redis.llen("out") > n * share, 60)
        host.signal(signal.SIGKILL, wait_until(host.worker_pids, 20)[:1])

    assert_each_delivered_once(redis, uuids)
    assert host.stop() == 0


@pytest.mark.parametrize("n", [pytest.param(800, id="short"), pytest.param(5000, id="full", marks=pytest.mark.long)])
def test_a_killed_supervisor_loses_nothing(host: Host, redis: Redis, n: int):
    """kill -9 of the supervisor, and another start: every vCon is delivered once."""
    uuids = store(redis, [vcon() for _ in range(n)])
    host.start()
    redis.rpush("in", *uuids)
    wait_until(lambda: redis.llen("out") > n * 0.3, 60)
    host.kill()
    host.start()

    assert_each_delivered_once(redis, uuids)


@pytest.mark.parametrize("n", [pytest.param(800, id="short"), pytest.param(5000, id="full", marks=pytest.mark.long)])
def test_everything_killed_and_the_server_with_it_loses_nothing(tmp_path: Path, n: int):
    """kill -9 of supervisor, workers and server at once, and another start of both."""
    with apart(tmp_path) as (server, redis, host):
        uuids = store(redis, [vcon() for _ in range(n)])
        host.start()
        redis.rpush("in", *uuids)
        wait_until(lambda: redis.llen("out") > n * 0.3, 60)
        os.kill(wait_until(lambda: server.pid), signal.SIGKILL)
        host.kill_everything()
        server.restart_if_dead()
        host.start()

        assert_each_delivered_once(redis, uuids)


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
@pytest.mark.parametrize("n", [pytest.param(800, id="short"), pytest.param(5000, id="full", marks=pytest.mark.long)])
def test_a_server_restart_loses_nothing(tmp_path: Path, n: int, how: int):
    """The server ends in the middle and comes back a second later; the daemon stays up."""
    with apart(tmp_path) as (server, redis, host):
        uuids = store(redis, [vcon() for _ in range(n)])
        host.start()
        redis.rpush("in", *uuids)
        wait_until(lambda: redis.llen("out") > n * 0.3, 60)
        os.kill(wait_until(lambda: server.pid), how)
        wait_until(lambda: not server.is_running(), 10)
        wait_until(lambda: "does not work" in host.said(), 10, "the host notices")
        server.restart_if_dead()

        assert_each_delivered_once(redis, uuids)
        assert host.process is not None
        assert host.process.poll() is None


@pytest.mark.thorough
@pytest.mark.parametrize("n", [pytest.param(800, id="short"), pytest.param(5000, id="full", marks=pytest.mark.long)])
def test_a_drain_ends_well_and_the_rest_is_delivered_later(host: Host, redis: Redis, n: int):
    """SIGTERM in the middle: exit code 0, nothing held, and the next start delivers what is left."""
    uuids = store(redis, [vcon() for _ in range(n)])
    host.start()
    redis.rpush("in", *uuids)
    wait_until(lambda: redis.llen("out") > n * 0.3, 60)
    assert host.stop() == 0
    assert not list(redis.scan_iter("conserver:*:held:*"))
    assert redis.llen("in") > 0
    host.start()

    assert_each_delivered_once(redis, uuids)
    assert max(host.effects().values()) == 1
