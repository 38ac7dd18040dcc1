"""How a scenario ends: all is settled by itself, the hosts are well and end when told to, the checker is content."""

from __future__ import annotations

from typing import Any

from redis import Redis

from tests.faults.checker import History
from tests.host import Host, accounted
from tests.waiting import wait_until


def settled(redis: Redis, *hosts: Host) -> list[list[int]]:
    """Wait until nothing is waiting or held any more, and return the processes of the workers of each host."""
    wait_until(lambda: accounted(redis, ["in"]), 90, "everything settled")
    for host in hosts:
        assert host.process is not None
        assert host.process.poll() is None
        assert "Traceback" not in host.said()
    wanted = [int(host.env["CONSERVER_WORKERS"]) for host in hosts]
    # One that is starved by its neighbours may be without a lease for a moment, and says nothing then.
    wait_until(lambda: [len(host.worker_pids()) for host in hosts] == wanted, 60, "all workers are there")
    return [sorted(host.worker_pids()) for host in hosts]


def end_well(redis: Redis, uuids: list[str], *hosts: Host, **allowed: Any) -> None:
    """End the hosts, which leave nothing behind, and check that each of *uuids* was delivered once."""
    for host in hosts:
        assert host.stop() == 0, host.said()[-3000:]
    History(*(host.effects_file for host in hosts)).check(redis, uuids, gone=True, **allowed)
