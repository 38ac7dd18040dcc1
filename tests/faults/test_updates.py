"""Promises 2 and 4: no update is lost, and who has lost a claim can neither settle nor save."""

from __future__ import annotations

import json
import signal
from collections import Counter
from pathlib import Path

import pytest
from redis import Redis

from conserver.settings import Settings
from conserver.store import VconStore
from tests.host import Host, accounted, entries, store, vcon
from tests.waiting import wait_until

pytestmark = pytest.mark.faults

ANALYST = '''
"""Adds an analysis of its own."""
import os, time
from conserver import vcons

LOG = os.open(os.environ["EFFECTS"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
default_options = {"times": 1, "sleep": 0.0}

def run(vcon_uuid, link_name, opts):
    os.write(LOG, f"{link_name} {vcon_uuid}\\n".encode())
    for n in range(opts["times"]):
        with vcons.edit(vcon_uuid) as vcon:
            kind = f"{link_name}-{n}"
            if not vcon.find_analysis_by_type(kind):
                time.sleep(opts["sleep"])
                vcon.add_analysis(type=kind, dialog=[], vendor="test", body=kind)
    return vcon_uuid
'''


def test_three_writers_of_one_vcon_lose_nothing(tmp_path: Path, redis: Redis, server_url: str):
    """Two chains in two processes and a third writer add 200 analyses each, at once: all 600 are there, once."""
    links = {n: {"module": "links.analyst", "options": {"times": 200}} for n in ("one", "two")}
    config = {
        "links": links,
        "chains": {n: {"links": [n], "ingress_lists": [f"in-{n}"], "egress_lists": ["out"]} for n in links},
    }
    hosts = [
        Host(
            tmp_path / n, server_url, config, links={"analyst": ANALYST}, CONSERVER_CHAINS=n, CONSERVER_WORKERS=1
        ).start()
        for n in links
    ]
    try:
        (uuid,) = store(redis, [vcon()])
        redis.rpush("in-one", uuid)
        redis.rpush("in-two", uuid)
        vcons = VconStore(server_url, Settings())
        wait_until(lambda: sum(host.effects().total() for host in hosts) == 2, 20, "both chains at work")
        for n in range(200):
            with vcons.edit(uuid) as document:
                document.add_analysis(type=f"three-{n}", dialog=[], vendor="test", body=f"three-{n}")
        wait_until(lambda: redis.llen("out") == 2, 60, "both chains done")

        types = Counter(entry["type"] for entry in json.loads(redis.get(f"vcon:{uuid}") or b"{}")["analysis"])
        assert types == Counter(f"{n}-{k}" for n in ("one", "two", "three") for k in range(200))
    finally:
        for host in hosts:
            host.close()


def test_a_host_that_was_stopped_past_its_lease_changes_nothing_any_more(tmp_path: Path, redis: Redis, server_url: str):
    """SIGSTOP a supervisor and its workers past the lease, let another finish, SIGCONT: one delivery, one analysis."""
    config = {
        "links": {"slow": {"module": "links.analyst", "options": {"sleep": 1.0}}},
        "chains": {"main": {"links": ["slow"], "ingress_lists": ["in"], "egress_lists": ["out"]}},
    }
    first = Host(tmp_path / "first", server_url, config, links={"analyst": ANALYST}).start()
    second = Host(tmp_path / "second", server_url, config, links={"analyst": ANALYST})
    try:
        uuids = store(redis, [vcon() for _ in range(12)])
        redis.rpush("in", *uuids)
        wait_until(lambda: first.effects().total() == 12, 20, "all twelve at work")
        family = first.family()
        first.signal(signal.SIGSTOP, family)
        second.start()
        wait_until(lambda: redis.llen("out") == 12, 40, "the second host has taken over")
        before = {uuid: redis.get(f"vcon:{uuid}") for uuid in uuids}
        first.signal(signal.SIGCONT, family)
        wait_until(lambda: "was taken from this worker" in first.said(), 20, "the first host finds out")
        wait_until(lambda: len(first.worker_pids()) == 2, 20, "the first host starts again under new names")
        wait_until(lambda: accounted(redis, ["in"]), 20)

        assert Counter(entries(redis, "out")) == Counter(uuids)
        assert {uuid: redis.get(f"vcon:{uuid}") for uuid in uuids} == before
        assert all(len(json.loads(text or b"{}")["analysis"]) == 1 for text in before.values())
    finally:
        first.signal(signal.SIGCONT, first.family())
        first.close()
        second.close()
