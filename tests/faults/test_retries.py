"""Failures that pass: retries that wait in Redis, notes that spare slow links, pauses that spare the queue."""

from __future__ import annotations

import json
import signal
from collections import Counter
from pathlib import Path

import pytest
import yaml
from redis import Redis

from tests.host import Host, accounted, entries, store, vcon
from tests.waiting import wait_until

pytestmark = [pytest.mark.faults, pytest.mark.thorough]

#: Logs that it was called, takes its time, and fails while there is a file `down`.
SERVICE = """
import os, time

LOG = os.open(os.environ["EFFECTS"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
default_options = {"sleep": 0.0}

def run(vcon_uuid, link_name, opts):
    os.write(LOG, f"{link_name} {vcon_uuid}\\n".encode())
    time.sleep(opts["sleep"])
    if link_name == "service" and os.path.exists("down"):
        raise ConnectionError(f"no service for {vcon_uuid}")
    return vcon_uuid
"""


def make(tmp_path: Path, url: str, links: dict[str, dict[str, object]], **chain: object) -> Host:
    """A host with one chain of *links*, all of the module above."""
    config = {
        "links": {name: {"module": "links.service", **more} for name, more in links.items()},
        "chains": {"main": {"links": list(links), "ingress_lists": ["in"], "egress_lists": ["out"], **chain}},
    }
    return Host(tmp_path / "host", url, config, links={"service": SERVICE}, CONSERVER_PAUSE_SECS=0.5)


def test_a_retry_waits_in_redis_and_no_thread_with_it(tmp_path: Path, redis: Redis, server_url: str):
    """Failures are put aside with a growing back-off; when the service is back, all is delivered without a hand."""
    uuids = store(redis, [vcon() for _ in range(30)])
    retry = {"attempts": 20, "backoff_secs": 0.2, "max_backoff_secs": 1}
    host = make(tmp_path, server_url, {"service": {"retry": retry}}, pause_after=0)
    (host.folder / "down").touch()
    host.start()
    try:
        redis.rpush("in", *uuids)
        wait_until(lambda: redis.zcard("conserver:{in}:delayed") == 30, 20, "all put aside")
        wait_until(lambda: min(host.effects().values()) >= 2, 20, "all tried again")
        (host.folder / "down").unlink()
        wait_until(lambda: accounted(redis, ["in"]), 20)

        assert Counter(entries(redis, "out")) == Counter(uuids)
        assert entries(redis, "DLQ:in") == []
    finally:
        host.close()


def test_retries_end_as_a_dead_letter(tmp_path: Path, redis: Redis, server_url: str):
    """After the configured number of runs the vCon is a dead letter."""
    (uuid,) = store(redis, [vcon()])
    retry = {"attempts": 3, "backoff_secs": 0.1}
    host = make(tmp_path, server_url, {"service": {"retry": retry}})
    (host.folder / "down").touch()
    host.start()
    try:
        redis.rpush("in", uuid)
        wait_until(lambda: entries(redis, "DLQ:in") == [uuid], 20)

        assert host.effects() == Counter({("service", uuid): 3})
    finally:
        host.close()


def test_slow_links_are_not_paid_twice(tmp_path: Path, redis: Redis, server_url: str):
    """A worker is killed in the second of two slow links: the first is not run again."""
    uuids = store(redis, [vcon() for _ in range(4)])
    host = make(
        tmp_path, server_url, {"first": {"options": {"sleep": 1.2}}, "second": {"options": {"sleep": 1.2}}}
    ).start()
    try:
        redis.rpush("in", *uuids)
        wait_until(lambda: sum(link == "second" for link, _ in host.effects()) == 4, 20)
        host.signal(signal.SIGKILL, host.worker_pids())
        wait_until(lambda: accounted(redis, ["in"]), 40)

        assert Counter(entries(redis, "out")) == Counter(uuids)
        assert all(n == 1 for (link, _), n in host.effects().items() if link == "first")
        assert all(n == 2 for (link, _), n in host.effects().items() if link == "second")
    finally:
        host.close()


def test_a_chain_that_fails_the_same_way_again_and_again_pauses_itself(tmp_path: Path, redis: Redis, server_url: str):
    """A dead service does not empty the queue into the dead letters; when it is back, the chain goes on by itself."""
    uuids = store(redis, [vcon() for _ in range(300)])
    host = make(tmp_path, server_url, {"service": {"options": {"sleep": 0.01}}})
    (host.folder / "down").touch()
    host.start()
    try:
        redis.rpush("in", *uuids)
        wait_until(lambda: redis.hexists("conserver:paused", "main"), 20, "the chain pauses")
        why = json.loads(redis.hget("conserver:paused", "main") or b"{}")
        assert why["reason"].startswith("10 equal failures in a row; link 'service': ConnectionError: no service for")
        wait_until(lambda: host.effects().total() and "is tried again" in host.said(), 20)
        (host.folder / "down").unlink()
        wait_until(lambda: accounted(redis, ["in"]), 30)

        dead = entries(redis, "DLQ:in")
        assert len(dead) <= 10 + 2 * 8 + 10
        assert Counter(entries(redis, "out") + dead) == Counter(uuids)
        assert not redis.exists("conserver:paused")
    finally:
        host.close()


def test_a_pause_is_kept_from_the_first_claim_on(tmp_path: Path, redis: Redis, server_url: str):
    """A conserver that starts while an operator's pause stands runs nothing of that chain."""
    uuids = store(redis, [vcon() for _ in range(40)])
    redis.hset("conserver:paused", "main", json.dumps({"reason": "maintenance"}))
    redis.rpush("in", *uuids)
    host = make(tmp_path, server_url, {"service": {}})
    config = yaml.safe_load(host.config_file.read_text())
    config["chains"]["other"] = config["chains"]["main"] | {"ingress_lists": ["other"]}
    host.configure(config)
    redis.rpush("other", uuids[0])
    host.start()
    try:
        wait_until(lambda: redis.llen("out") == 1, 20, "the other chain works")

        assert host.effects() == {("service", uuids[0]): 1}
        assert redis.llen("in") == 40
    finally:
        host.close()


def test_a_dead_letter_goes_on_from_the_link_that_failed(tmp_path: Path, redis: Redis, server_url: str):
    """`dlq retry` keeps what was done; `--from-start` forgets it."""
    import subprocess
    import sys

    kept, forgotten = store(redis, [vcon(), vcon()])
    host = make(tmp_path, server_url, {"first": {"options": {"sleep": 0.0}}, "service": {}})
    (host.folder / "down").touch()
    host.start()
    try:
        for uuid, arguments in ((kept, []), (forgotten, ["--from-start"])):
            (host.folder / "down").touch()
            redis.rpush("in", uuid)
            wait_until(lambda uuid=uuid: entries(redis, "DLQ:in") == [uuid], 20)
            (host.folder / "down").unlink()
            command = [sys.executable, "-m", "conserver", "dlq", "retry", "in", *arguments]
            subprocess.run(command, cwd=host.folder, env=host.env, check=True, capture_output=True)
            wait_until(lambda uuid=uuid: uuid in entries(redis, "out"), 20)

        assert host.effects()["first", kept] == 1
        assert host.effects()["first", forgotten] == 2
    finally:
        host.close()
