"""One vCon in several hands: each push is one run, all changes stay, and a holder who is killed blocks nobody."""

from __future__ import annotations

import json
import signal
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from redis import Redis

from tests.host import EFFECT, Host, accounted, entries, store, vcon
from tests.waiting import wait_until

pytestmark = [pytest.mark.faults, pytest.mark.thorough, pytest.mark.timeout(300)]

#: Adds what no other run adds; or changes what all runs change, so that they conflict.
WRITER = (
    EFFECT
    + '''
"""Changes the vCon, slowly."""
import uuid as uuids
from conserver import vcons

default_options = {"same": False, "each": False, "sleep": 0.05}

def run(vcon_uuid, link_name, opts):
    mine = f"{link_name}-{uuids.uuid4()}"
    effect("began", link_name, vcon_uuid)
    with vcons.edit(vcon_uuid) as vcon:
        if opts["same"]:
            vcon.document["x_last"] = mine
        elif not any(entry["type"] == link_name for entry in vcon.analysis if not opts["each"]):
            vcon.add_analysis(type=mine if opts["each"] else link_name, dialog=[], vendor="test", body=mine)
        time.sleep(opts["sleep"])
    effect("ended", link_name, vcon_uuid)
    return vcon_uuid
'''
)


def make(tmp_path: Path, url: str, chains: int, **options: Any) -> Host:
    """A host with chains that all write to the vCons of their list in-<n>."""
    names = [f"c{n}" for n in range(chains)]
    config = {
        "links": {name: {"module": "links.writer", "options": options} for name in names},
        "chains": {
            name: {"links": [name], "ingress_lists": [f"in-{name}"], "egress_lists": [f"out-{name}"]} for name in names
        },
    }
    return Host(tmp_path / "host", url, config, links={"writer": WRITER})


def document(redis: Redis, uuid: str) -> dict[str, Any]:
    """The vCon as it is now."""
    return json.loads(redis.get(f"vcon:{uuid}") or b"{}")


def locks(redis: Redis) -> int:
    """How many vCons somebody has to himself."""
    return len(redis.keys("conserver:{vcon:*}:lock"))


def test_chains_that_write_one_vcon_while_workers_are_killed_lose_nothing(
    tmp_path: Path, redis: Redis, server_url: str
):
    """Two chains at the same 60 vCons, and three kill -9: each vCon has the change of both, once."""
    uuids = store(redis, [vcon() for _ in range(60)])
    host = make(tmp_path, server_url, 2)
    try:
        host.start()
        redis.rpush("in-c0", *uuids)
        redis.rpush("in-c1", *uuids)
        for n in (10, 20, 30):
            wait_until(lambda n=n: redis.llen("out-c0") > n, 120)
            host.signal(signal.SIGKILL, wait_until(host.worker_pids, 120)[:1])
        wait_until(lambda: accounted(redis, ["in-c0", "in-c1"]), 120)

        assert Counter(entries(redis, "out-c0")) == Counter(entries(redis, "out-c1")) == Counter(uuids)
        assert entries(redis, "DLQ:in-c0") == entries(redis, "DLQ:in-c1") == []
        types = [sorted(entry["type"] for entry in document(redis, uuid)["analysis"]) for uuid in uuids]
        assert types == [["c0", "c1"]] * 60
    finally:
        host.close()


def test_one_who_is_killed_with_a_vcon_to_itself_blocks_nobody(tmp_path: Path, redis: Redis, server_url: str):
    """Runs that conflict again and again take turns by a lock; its holder is killed, and all of them end."""
    (uuid,) = store(redis, [vcon()])
    host = make(tmp_path, server_url, 6, same=True, sleep=0.2)
    try:
        host.start()
        for n in range(6):
            redis.rpush(f"in-c{n}", uuid)
        wait_until(lambda: locks(redis), 90, "somebody has the vCon to itself")
        host.signal(signal.SIGKILL, host.worker_pids())
        wait_until(lambda: accounted(redis, [f"in-c{n}" for n in range(6)]), 120)

        ended = [entries(redis, f"out-c{n}") + entries(redis, f"DLQ:in-c{n}") for n in range(6)]
        assert ended == [[uuid]] * 6
        assert [entries(redis, f"out-c{n}") for n in range(6)].count([uuid]) >= 1
        assert document(redis, uuid)["x_last"].partition("-")[0] in {f"c{n}" for n in range(6)}
        assert locks(redis) == 0
    finally:
        host.close()


def test_each_push_is_one_run(tmp_path: Path, redis: Redis, server_url: str):
    """Three times in the list, three times more while it runs: six runs that overlap, six deliveries, six changes."""
    (uuid,) = store(redis, [vcon()])
    host = make(tmp_path, server_url, 1, each=True, sleep=0.3)
    try:
        host.start()
        redis.rpush("in-c0", uuid, uuid, uuid)
        wait_until(lambda: host.effects()["c0", uuid] >= 3, 90, "three runs at work")
        redis.rpush("in-c0", uuid)
        redis.rpush("in-c0", uuid, uuid)
        wait_until(lambda: accounted(redis, ["in-c0"]), 120)

        assert entries(redis, "out-c0") == [uuid] * 6
        assert entries(redis, "DLQ:in-c0") == []
        assert len({entry["type"] for entry in document(redis, uuid)["analysis"]}) == 6
        assert len(document(redis, uuid)["analysis"]) == 6
    finally:
        host.close()
