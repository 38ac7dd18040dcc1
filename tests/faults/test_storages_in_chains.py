"""Storages in a chain: none holds up the others, no failed save is forgotten, nothing expires that nobody holds."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from redis import Redis

from tests.host import Host, accounted, entries, store, vcon
from tests.waiting import wait_until

pytestmark = pytest.mark.faults

#: Keeps vCons in a folder; while there is a file `down` beside it, it fails, and while there is `hang`, it hangs.
FOLDER = """
import json, os, time
from conserver import vcons

def save(vcon_uuid, opts):
    path = opts["path"]
    if os.path.exists(path + ".down"):
        raise ConnectionError("the folder is down")
    while os.path.exists(path + ".hang"):
        time.sleep(0.05)
    os.makedirs(path, exist_ok=True)
    with open(f"{path}/{vcon_uuid}", "w") as file:
        file.write(vcons.get(vcon_uuid).to_json())
"""
READABLE = (
    FOLDER
    + """
def get(vcon_uuid, opts):
    try:
        with open(f"{opts['path']}/{vcon_uuid}") as file:
            return json.load(file)
    except FileNotFoundError:
        return None
"""
)


def make(tmp_path: Path, url: str, *, storage: dict[str, Any] | None = None, **env: object) -> Host:
    """A host with a chain that tags and saves to two folders, of which `good` can give back."""
    config = {
        "links": {"tag": {"module": "links.tag", "options": {"tags": ["seen:yes"]}}},
        "storages": {
            "good": {"module": "storages.readable", "options": {"path": str(tmp_path / "good")}},
            "other": {
                "module": "storages.folder",
                "options": {"path": str(tmp_path / "other")},
                **(storage or {}),
            },
        },
        "chains": {
            "main": {
                "links": ["tag"],
                "storages": ["good", "other"],
                "ingress_lists": ["in"],
                "egress_lists": ["out"],
            }
        },
    }
    host = Host(tmp_path / "host", url, config, **env)
    (host.folder / "storages").mkdir()
    (host.folder / "storages" / "folder.py").write_text(FOLDER)
    (host.folder / "storages" / "readable.py").write_text(READABLE)
    return host


def saved(folder: Path) -> dict[str, Any]:
    """What a folder holds."""
    return {file.name: json.loads(file.read_text()) for file in folder.iterdir()} if folder.exists() else {}


def conserver(host: Host, *arguments: str) -> str:
    """Run a command of the CLI in the host's folder and return what it printed."""
    import subprocess
    import sys

    done = subprocess.run(
        [sys.executable, "-m", "conserver", *arguments], cwd=host.folder, env=host.env, capture_output=True, text=True
    )
    return done.stdout + done.stderr


@pytest.mark.thorough
def test_a_storage_that_fails_is_noted_and_its_saves_can_be_replayed(tmp_path: Path, redis: Redis, server_url: str):
    """The other storage has all vCons, delivery goes on, nothing expires; replay saves what is missing, once."""
    (tmp_path / "other.down").touch()
    uuids = store(redis, [vcon() for _ in range(50)])
    host = make(tmp_path, server_url).start()
    try:
        redis.rpush("in", *uuids)
        wait_until(lambda: accounted(redis, ["in"]), 30)
        assert Counter(entries(redis, "out")) == Counter(uuids)
        assert saved(tmp_path / "good").keys() == set(uuids)
        assert Counter(entries(redis, "DLQ:storage:other")) == Counter(uuids)
        why = json.loads(redis.hget("conserver:{DLQ:storage:other}:dead", uuids[0]) or b"{}")
        assert why["error"] == "ConnectionError: the folder is down"
        assert all(redis.ttl(f"vcon:{uuid}") == -1 for uuid in uuids)

        (tmp_path / "other.down").unlink()
        conserver(host, "dlq", "replay", "other")

        assert saved(tmp_path / "other") == saved(tmp_path / "good")
        assert entries(redis, "DLQ:storage:other") == []
    finally:
        host.close()


@pytest.mark.thorough
def test_a_storage_that_hangs_holds_nobody_up_for_longer_than_its_timeout(
    tmp_path: Path, redis: Redis, server_url: str
):
    """Its save counts as failed after its timeout; the other storage's save and the delivery are done."""
    (tmp_path / "other.hang").touch()
    uuids = store(redis, [vcon() for _ in range(8)])
    host = make(tmp_path, server_url, storage={"timeout": 1.0}).start()
    try:
        redis.rpush("in", *uuids)
        wait_until(lambda: redis.llen("out") == 8, 20)

        assert saved(tmp_path / "good").keys() == set(uuids)
        assert Counter(entries(redis, "DLQ:storage:other")) == Counter(uuids)
        why = json.loads(redis.hget("conserver:{DLQ:storage:other}:dead", uuids[0]) or b"{}")
        assert why["error"] == "no answer within 1 s"
    finally:
        (tmp_path / "other.hang").unlink()
        host.close()


@pytest.mark.thorough
def test_a_required_storage_that_fails_fails_the_chain(tmp_path: Path, redis: Redis, server_url: str):
    """Nothing is delivered that a required storage does not hold; a retry of the dead letters delivers it."""
    (tmp_path / "other.down").touch()
    uuids = store(redis, [vcon() for _ in range(5)])
    host = make(tmp_path, server_url, storage={"required": True}).start()
    try:
        redis.rpush("in", *uuids)
        wait_until(lambda: accounted(redis, ["in"]), 20)
        assert entries(redis, "out") == []
        assert Counter(entries(redis, "DLQ:in")) == Counter(uuids)
        why = json.loads(redis.hget("conserver:{in}:dead", uuids[0]) or b"{}")
        assert why["error"] == "storage 'other' is required and failed: ConnectionError: the folder is down"

        (tmp_path / "other.down").unlink()
        conserver(host, "dlq", "retry", "in")
        wait_until(lambda: redis.llen("out") == 5, 20)

        assert saved(tmp_path / "other").keys() == set(uuids)
        assert entries(redis, "DLQ:in") == []
        assert redis.hlen("conserver:{in}:dead") == 0
    finally:
        host.close()


def test_a_copy_expires_only_once_the_storages_hold_this_version(tmp_path: Path, redis: Redis, server_url: str):
    """It gets its expiry at settle, a later change takes it away, and what has expired is read from a storage again."""
    (uuid,) = store(redis, [vcon()])
    host = make(tmp_path, server_url, VCON_REDIS_EXPIRY=1000).start()
    try:
        redis.rpush("in", uuid)
        ttl: Callable[[], int] = lambda: int(redis.ttl(f"vcon:{uuid}"))  # noqa: E731
        wait_until(lambda: ttl() > 900, 20, "the copy expires")
        assert saved(tmp_path / "good")[uuid] == json.loads(redis.get(f"vcon:{uuid}") or b"")

        redis.delete(f"vcon:{uuid}")
        redis.rpush("in", uuid)
        wait_until(lambda: redis.llen("out") == 2, 20, "it is fetched from the storage and delivered again")

        assert (
            json.loads(redis.get(f"vcon:{uuid}") or b"")["attachments"] == saved(tmp_path / "good")[uuid]["attachments"]
        )
    finally:
        host.close()
