"""A disk without room: under a storage there is never half a file, under the server nothing is lost, and both mend."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from redis import Redis

from tests.disks import fill, grow, make_room, small_disk
from tests.faults.doubles import editor
from tests.faults.endings import end_well, settled
from tests.host import accounted, entries, store, vcon
from tests.servers import RealServer, running
from tests.waiting import wait_until

pytestmark = [pytest.mark.faults, pytest.mark.thorough]


def saved(disk: Path) -> dict[str, Any]:
    """What is on the disk under names that count: each has to be whole."""
    return {file.stem: json.loads(file.read_text()) for file in disk.rglob("*.json")}


def test_a_full_disk_has_no_half_vcon_and_what_is_missing_can_be_saved_later(
    tmp_path: Path, redis: Redis, server_url: str
):
    """What does not fit is on the storage's DLQ and kept in Redis; what was there stays whole; room mends it all."""
    with small_disk(tmp_path / "disk", 2048) as disk:
        uuids = store(redis, [vcon(padding="x" * 50_000) for _ in range(80)])
        file = {"module": "storages.file", "options": {"path": str(disk)}}
        host = editor(tmp_path / "host", server_url, storages={"file": file})
        host.start()
        try:
            redis.rpush("in", *uuids)
            wait_until(lambda: accounted(redis, ["in"]), 60)
            first, missed = saved(disk), entries(redis, "DLQ:storage:file")
            assert 10 < len(first) < 60
            assert Counter([*first, *missed]) == Counter(uuids)
            why = json.loads(redis.hget("conserver:{DLQ:storage:file}:dead", missed[0]) or b"{}")["error"]
            assert "No space left on device" in why
            assert all(redis.ttl(f"vcon:{uuid}") == -1 for uuid in missed)

            fill(disk)
            redis.rpush("in", *first)
            wait_until(lambda: accounted(redis, ["in"]), 60)
            assert saved(disk) == first
            assert len(entries(redis, "DLQ:storage:file")) == len(uuids)

            grow(disk, 32_768)
            replay = [sys.executable, "-m", "conserver", "dlq", "replay", "file"]
            subprocess.run(replay, cwd=host.folder, env=host.env, check=True, capture_output=True, timeout=60)

            end_well(redis, [*uuids, *first], host)
            assert entries(redis, "DLQ:storage:file") == []
            assert saved(disk) == {uuid: json.loads(redis.get(f"vcon:{uuid}") or b"") for uuid in uuids}
            assert list(disk.rglob("*.tmp")) == []
        finally:
            host.close()


def test_a_full_disk_under_the_server_stops_claims_and_loses_nothing(tmp_path: Path):
    """The server takes no writes: /readyz has its words, work waits, and goes on by itself once there is room."""
    with (
        small_disk(tmp_path / "disk", 16_384) as disk,
        running(RealServer(tmp_path / "server", dir=disk)) as server,
    ):
        redis = server.client
        uuids = store(redis, [vcon() for _ in range(600)])
        host = editor(tmp_path / "host", server.url).start()
        workers = [sorted(host.worker_pids())]
        try:
            wait_until(lambda: host.get("/readyz").status_code == 200, 15)
            redis.rpush("in", *uuids)
            wait_until(lambda: redis.llen("out") > 50, 30)
            fill(disk)
            wait_until(lambda: (said := host.get("/readyz")).status_code == 503 and "MISCONF" in said.text, 30)
            began = host.effects().total()
            make_room(disk)

            assert settled(redis, host) == workers
            assert began < len(uuids)
            wait_until(lambda: host.get("/readyz").status_code == 200, 15)
            end_well(redis, uuids, host)
        finally:
            host.close()
        before = entries(redis, "out")
        wait_until(lambda: redis.info("persistence")["aof_pending_bio_fsync"] == 0, 15)
        server.kill()
        server.start()

        assert entries(redis, "out") == before
