"""Storages that miss saves catch up by themselves: afterwards each holds every vCon, equal to the one in Redis."""

from __future__ import annotations

import json
import signal
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from redis import Redis

from conserver.components import load_storage
from conserver.config import StorageConfig
from tests.fakes.sftp_server import SftpServer
from tests.host import Host, accounted, entries, store, vcon
from tests.postgresql import PostgresServer, postgres_server
from tests.servers import RealServer, running
from tests.waiting import wait_until

pytestmark = pytest.mark.faults


AWAY_SECS = 30.0


class Places:
    """Five storages, three of them with a real server of their own."""

    def __init__(self, folder: Path, postgres: PostgresServer, keys: RealServer, sftp: SftpServer) -> None:
        self.postgres = postgres
        self.keys = keys
        self.sftp = sftp
        self.storages: dict[str, dict[str, Any]] = {
            "files": {"module": "storages.file", "options": {"path": str(folder / "files"), "fsync": False}},
            "rows": {"module": "storages.sqlite", "options": {"path": str(folder / "rows.sqlite"), "fsync": False}},
            "table": {"module": "storages.postgres", "options": {**postgres.options, "timeout": 5}},
            "keys": {"module": "storages.redis_storage", "options": {"redis_url": keys.url, "timeout": 2}},
            "remote": {"module": "storages.sftp", "options": sftp.options(timeout=5)},
        }

    def host(self, folder: Path, url: str, **env: object) -> Host:
        """A conserver whose one chain tags, and saves to all of them."""
        config = {
            "links": {"tag": {"module": "links.tag", "options": {"tags": ["seen:yes"]}}},
            "storages": self.storages,
            "chains": {
                "main": {
                    "links": ["tag"],
                    "storages": list(self.storages),
                    "ingress_lists": ["in"],
                    "egress_lists": ["out"],
                }
            },
        }
        return Host(folder, url, config, **env)

    def differing(self, redis: Redis, uuids: list[str]) -> dict[str, int]:
        """How many vCons each storage lacks, or holds otherwise than Redis."""
        wrong: Counter[str] = Counter()
        for name, entry in self.storages.items():
            storage = load_storage(StorageConfig(name=name, **entry))
            assert storage.get is not None
            for uuid in uuids:
                wrong[name] += storage.get(uuid, storage.options) != json.loads(redis.get(f"vcon:{uuid}") or b"0")
        return {name: n for name, n in wrong.items() if n}


@pytest.fixture
def places(tmp_path: Path) -> Iterator[Places]:
    keys = RealServer(tmp_path / "keys", appendfsync="no")  # it is killed, not the machine
    with postgres_server() as postgres, running(keys), SftpServer(tmp_path / "sftp") as sftp:
        yield Places(tmp_path, postgres, keys, sftp)


def caught_up(redis: Redis, places: Places) -> bool:
    """Say whether no storage has a dead letter."""
    return not any(redis.llen(f"DLQ:storage:{name}") for name in places.storages)


@pytest.mark.parametrize(
    "vcons",
    [
        pytest.param(500, marks=pytest.mark.timeout(300)),
        pytest.param(5000, marks=[pytest.mark.long, pytest.mark.timeout(1200)]),
    ],
)
def test_five_storages_hold_everything_though_one_was_away_and_one_was_killed(
    tmp_path: Path, redis: Redis, server_url: str, places: Places, vcons: int
) -> None:
    """Without a hand: one is down for 30 s in the midst of it, one is killed and comes back."""
    uuids = store(redis, [vcon(f"call {number}") for number in range(vcons)])
    host = places.host(tmp_path / "host", server_url)
    try:
        host.start()
        redis.rpush("in", *uuids)
        wait_until(lambda: redis.llen("out") > vcons // 10, 120)
        places.postgres.stop()
        back = threading.Timer(AWAY_SECS, places.postgres.start)
        back.start()
        wait_until(lambda: redis.llen("DLQ:storage:table") > 0, 120)
        places.keys.kill()
        wait_until(lambda: redis.llen("DLQ:storage:keys") > 0, 120)
        places.keys.start()
        wait_until(lambda: accounted(redis, ["in"]), 600)
        missed = redis.llen("DLQ:storage:table")
        back.join()
        wait_until(lambda: caught_up(redis, places), 300, "all dead letters of storages saved")

        assert missed > 0
        assert Counter(entries(redis, "out")) == Counter(uuids)
        assert entries(redis, "DLQ:in") == []
        assert places.differing(redis, uuids) == {}
        # As if nothing had happened: what all storages hold may expire.
        assert all(redis.ttl(f"vcon:{uuid}") > 0 for uuid in uuids)
        assert host.stop() == 0
    finally:
        host.close()


@pytest.mark.thorough
@pytest.mark.timeout(300)
def test_while_one_storage_hangs_the_others_go_on_and_it_catches_up(
    tmp_path: Path, redis: Redis, server_url: str, places: Places
) -> None:
    """A server that takes connections and says nothing; no process is replaced for it."""
    uuids = store(redis, [vcon() for _ in range(200)])
    places.storages["keys"] |= {"timeout": 1.0}
    host = places.host(tmp_path / "host", server_url)
    try:
        host.start()
        workers = set(host.worker_pids())
        places.keys.freeze()
        redis.rpush("in", *uuids)
        wait_until(lambda: redis.llen("out") == len(uuids), 120)
        others = {name: entry for name, entry in places.storages.items() if name != "keys"}
        everything, places.storages = places.storages, others
        meanwhile = places.differing(redis, uuids), redis.llen("DLQ:storage:keys")
        places.storages = everything
        places.keys.process.send_signal(signal.SIGCONT)
        wait_until(lambda: caught_up(redis, places), 120)

        assert meanwhile == ({}, len(uuids))
        assert places.differing(redis, uuids) == {}
        assert set(host.worker_pids()) == workers
    finally:
        host.close()
