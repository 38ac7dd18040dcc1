"""A server that is away for long, loads for long, or is replaced by its replica: work waits, and goes on by itself."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

import pytest

from tests.faults.doubles import editor
from tests.faults.endings import end_well, settled
from tests.host import Host, store, vcon
from tests.proxy import proxied
from tests.servers import RealServer, running
from tests.waiting import wait_until

pytestmark = [pytest.mark.faults, pytest.mark.thorough]


@pytest.fixture
def own(tmp_path: Path) -> Iterator[RealServer]:
    """A server of this test alone."""
    with running(RealServer(tmp_path / "own")) as server:
        yield server


@contextmanager
def replicated(
    own: RealServer, folder: Path, *, sleep: float = 0.05
) -> Iterator[tuple[Host, RealServer, Callable[[], None]]]:
    """A started host on *own*, the replica, and what kills *own* and puts the replica in its place."""
    with running(own.replica(folder / "replica")) as replica, proxied(own.url) as proxy:
        host = editor(folder / "host", own.url, sleep=sleep, REDIS_URL=proxy.url)

        def fail_over() -> None:
            own.kill()
            replica.promote()
            host.redis = replica.client
            proxy.point_at(replica.url)

        with closing(host):
            host.start()
            yield host, replica, fail_over


def test_four_workers_wait_ten_seconds_for_a_server_that_was_killed(tmp_path: Path, own: RealServer):
    """Both hosts say that they are not ready; then all go on, no process has ended, and nobody was called dead."""
    uuids = store(own.client, [vcon() for _ in range(1500)])
    with ExitStack() as stack:
        hosts = [editor(tmp_path / name, own.url, sleep=0.05) for name in ("one", "two")]
        for host in hosts:
            stack.callback(host.close)
            host.start()
        workers = [sorted(host.worker_pids()) for host in hosts]
        for host in hosts:
            wait_until(lambda host=host: host.get("/readyz").status_code == 200, 30)
        own.client.rpush("in", *uuids)
        wait_until(lambda: own.client.llen("out") > 100, 30)
        own.kill()
        until = time.monotonic() + 10
        for host in hosts:
            wait_until(lambda host=host: host.get("/readyz").status_code == 503, 15)
        wait_until(lambda: time.monotonic() > until, 15)
        own.start()

        assert settled(own.client, *hosts) == workers
        for host in hosts:
            wait_until(lambda host=host: host.get("/readyz").status_code == 200, 15)
        assert all("recovered" not in host.said() for host in hosts)
        end_well(own.client, uuids, *hosts)


def test_a_server_that_loads_for_longer_than_a_lease_is_waited_for(tmp_path: Path, own: RealServer):
    """It answers LOADING: the host waits, one that is started meanwhile waits too, and nothing is lost."""
    with own.client.pipeline(transaction=False) as pipe:
        for n in range(20_000):
            pipe.set(f"filler:{n}", "x")
        pipe.execute()
    uuids = store(own.client, [vcon() for _ in range(600)])
    with ExitStack() as stack:
        first = editor(tmp_path / "first", own.url, sleep=0.05)
        stack.callback(first.close)
        first.start()
        workers = sorted(first.worker_pids())
        own.client.rpush("in", *uuids)
        wait_until(lambda: own.client.llen("out") > 50, 30)
        own.kill()
        # In microseconds for each command of the file: 5 s, of which nobody may take less for granted.
        own.start(wait=False, key_load_delay=250)
        wait_until(lambda: "loading" in own.says(), 15, "LOADING")
        second = editor(tmp_path / "second", own.url, sleep=0.05)
        stack.callback(second.close)
        second.start(wait=False)
        wait_until(lambda: "still loads its data; waiting for it" in second.said(), 30)
        wait_until(lambda: own.says() == "ready", 60)
        wait_until(lambda: len(second.worker_pids()) == 2, 30)

        assert settled(own.client, first, second)[0] == workers
        end_well(own.client, uuids, first, second)


def test_a_failover_loses_nothing_that_the_replica_has(tmp_path: Path, own: RealServer):
    """The primary is killed at work, and its replica, which had all pushes, takes its place."""
    uuids = store(own.client, [vcon() for _ in range(800)])
    with replicated(own, tmp_path) as (host, replica, fail_over):
        own.client.rpush("in", *uuids)
        assert own.client.wait(1, 10_000) == 1
        wait_until(lambda: own.client.llen("out") > 100, 30)
        fail_over()

        settled(replica.client, host)
        end_well(replica.client, uuids, host)


def test_a_failover_to_an_old_copy_is_noticed_and_what_is_there_is_done_again(tmp_path: Path, own: RealServer):
    """The replica lacks the last claims and settlements: workers that know more start anew, and each UUID ends once."""
    uuids = store(own.client, [vcon() for _ in range(800)])
    with replicated(own, tmp_path) as (host, replica, fail_over):
        own.client.rpush("in", *uuids)
        assert own.client.wait(1, 10_000) == 1
        wait_until(lambda: own.client.llen("out") > 50, 30)
        replica.promote()
        known = replica.client.llen("out")
        wait_until(lambda: own.client.llen("out") > known + 100, 30)
        fail_over()

        settled(replica.client, host)
        assert "the server has gone back in time" in host.said()
        end_well(replica.client, uuids, host)


def test_a_failover_to_a_copy_in_which_all_is_claimed_loses_nothing(tmp_path: Path, own: RealServer):
    """What workers have settled since is held by them again, and no list has anything that would make them claim."""
    uuids = store(own.client, [vcon() for _ in range(16)])
    with replicated(own, tmp_path, sleep=2.0) as (host, replica, fail_over):
        own.client.rpush("in", *uuids)
        wait_until(lambda: host.effects().total() == 16, 30)
        assert own.client.wait(1, 10_000) == 1
        replica.promote()
        wait_until(lambda: own.client.llen("out") == 16, 30)
        fail_over()

        settled(replica.client, host)
        end_well(replica.client, uuids, host)
