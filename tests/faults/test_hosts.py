"""Several hosts on one server: they share the work, and what one leaves behind the others finish."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from redis import Redis

from tests.faults.checker import History
from tests.host import Host, accounted, entries, store, vcon
from tests.waiting import wait_until

pytestmark = [pytest.mark.faults, pytest.mark.timeout(300)]

LEASE_SECS = 2
#: Where one host has to be late, and not for a whole lease, however busy the machine is.
LONG_LEASE_SECS = 4
THREADS = 8

Start = Callable[..., list[Host]]


@pytest.fixture
def start(tmp_path: Path, server_url: str) -> Iterator[Start]:
    """Start two hosts, each with folder, log and name of its own; their link sleeps."""
    hosts: list[Host] = []

    def begin(*, sleep: float, **env: object) -> list[Host]:
        config: dict[str, Any] = {
            "links": {"act": {"module": "links.act", "options": {"sleep": sleep, "act": False}}},
            "chains": {"main": {"links": ["act"], "ingress_lists": ["in"], "egress_lists": ["out"]}},
        }
        env = {"CONSERVER_LEASE_SECS": LEASE_SECS, "CONSERVER_VCON_CONCURRENCY": THREADS, **env}
        hosts.extend(Host(tmp_path / name, server_url, config, **env) for name in ("first", "second"))
        for host in hosts:
            host.start(wait=False)
        wait_for_workers(*hosts)
        return hosts

    yield begin
    for host in hosts:
        host.close()


def wait_for_workers(*hosts: Host) -> None:
    """Wait until all workers of *hosts* claim."""
    for host in hosts:
        wanted = int(host.env["CONSERVER_WORKERS"])
        wait_until(lambda host=host, wanted=wanted: len(host.worker_pids()) == wanted, 90, f"{host.folder.name} works")


def in_hand(host: Host) -> set[str]:
    """The vCons with which the host's link has begun, and not ended."""
    history = History(host.effects_file)
    return {uuid for _, uuid in (history.began - history.ended).elements()}


def twice_begun(redis: Redis, hosts: list[Host], uuids: list[str]) -> set[str]:
    """Wait for the end, see that nothing is lost, and return the vCons with which the link began twice; none more."""
    wait_until(lambda: accounted(redis, ["in"]), 90, "everything settled")
    history = History(*(host.effects_file for host in hosts))

    history.check(redis, uuids)
    assert set(history.began.values()) <= {1, 2}
    return {uuid for (_, uuid), n in history.began.items() if n == 2}


@pytest.mark.thorough
def test_two_hosts_share_the_work(start: Start, redis: Redis):
    """Each vCon goes to one of them, and neither gets less than a fifth."""
    uuids = store(redis, [vcon() for _ in range(600)])
    hosts = start(sleep=0.05, CONSERVER_WORKERS=1)
    redis.rpush("in", *uuids)

    assert twice_begun(redis, hosts, uuids) == set()
    assert min(host.effects().total() for host in hosts) >= len(uuids) / 5


def test_a_host_that_was_killed_is_taken_over_by_the_other(start: Start, redis: Redis):
    """kill -9 of all its processes: after its lease the other runs what it had in hand, and nothing else again."""
    first, second = start(sleep=0.5)
    uuids = store(redis, [vcon() for _ in range(120)])
    redis.rpush("in", *uuids)
    wait_until(lambda: redis.llen("out") > 16 and len(in_hand(first)) > THREADS, 60, "both are at work")
    name = first.status()["workers"][0]["name"].rpartition(":")[0]
    first.kill_everything()
    undelivered = {uuid for _, uuid in first.began()} - set(entries(redis, "out"))
    left = in_hand(first)
    wait_until(lambda: not redis.exists(f"conserver:host:{name}"), LEASE_SECS + 20, "the lease lapses")
    wait_until(lambda: left <= {uuid for _, uuid in second.began()}, LEASE_SECS + 20, "the other has taken over")

    # What had ended, and was not settled yet, may have to run again as well.
    assert left <= twice_begun(redis, [first, second], uuids) <= undelivered
    assert name.encode() not in redis.smembers("conserver:hosts")


def stop_the_server(redis: Redis) -> Callable[[], object]:
    """SIGSTOP: no answer, and time goes by."""
    pid = redis.info("server")["process_id"]
    os.kill(pid, signal.SIGSTOP)
    return lambda: os.kill(pid, signal.SIGCONT)


def pause_all_clients(redis: Redis) -> Callable[[], object]:
    """CLIENT PAUSE, as an operator may ask for; it ends by itself, since nothing else is answered before."""
    redis.execute_command("CLIENT", "PAUSE", 2 * LONG_LEASE_SECS * 1000, "ALL")
    return redis.ping


def let_pass(secs: float) -> None:
    """Let time go by, where that is the fault itself."""
    end = time.monotonic() + secs
    wait_until(lambda: time.monotonic() > end, secs + 60)


@pytest.mark.thorough
@pytest.mark.parametrize("pause", [stop_the_server, pause_all_clients])
def test_a_pause_of_the_server_frees_nobodys_claims(
    start: Start, redis: Redis, pause: Callable[[Redis], Callable[[], object]]
):
    """All leases lapse, and one host is slow to renew its own: the other does not take it for dead."""
    first, second = start(sleep=1.0, CONSERVER_WORKERS=1, CONSERVER_LEASE_SECS=LONG_LEASE_SECS)
    uuids = store(redis, [vcon() for _ in range(96)])
    redis.rpush("in", *uuids)
    wait_until(lambda: len(in_hand(first)) == len(in_hand(second)) == THREADS, 60, "both are at work")
    go_on = pause(redis)
    assert second.process is not None
    second.signal(signal.SIGSTOP, [second.process.pid])
    try:
        let_pass(LONG_LEASE_SECS + 0.5)
    finally:
        go_on()
        # Time enough for the first to look, and too short for a lease in which it has seen nothing of the second.
        let_pass(LONG_LEASE_SECS / 2)
        second.signal(signal.SIGCONT, [second.process.pid])

    assert twice_begun(redis, [first, second], uuids) == set()
    assert "recovered what" not in first.said() + second.said()


@pytest.mark.thorough
def test_a_rolling_restart_loses_and_repeats_nothing(start: Start, redis: Redis):
    """One host after the other, twice, each stopped by SIGTERM in the middle of its work: each link begins once."""
    hosts = start(sleep=0.3, CONSERVER_WORKERS=1)
    uuids: list[str] = []
    codes = []
    for host in hosts * 2:
        uuids += (more := store(redis, [vcon() for _ in range(120)]))
        before = host.effects().total()
        redis.rpush("in", *more)
        wait_until(lambda host=host, before=before: host.effects().total() > before + THREADS, 60, "it is at work")
        codes.append(host.stop())
        host.start(wait=False)
        wait_for_workers(host)

    assert twice_begun(redis, hosts, uuids) == set()
    assert codes == [0] * 4
