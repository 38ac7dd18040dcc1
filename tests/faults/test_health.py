"""What a host says of itself: /livez, /readyz, /metrics, and one line a vCon."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families
from redis import Redis

from conserver.embedded import EmbeddedServer
from tests.host import Host, accounted, store, vcon
from tests.waiting import wait_until

pytestmark = pytest.mark.faults

CONFIG = {
    "links": {"act": {"module": "links.act"}},
    "storages": {"file": {"module": "storages.file", "options": {"path": "vcons"}}},
    "chains": {
        "main": {"links": ["act"], "storages": ["file"], "ingress_lists": ["in"], "egress_lists": ["out"]},
    },
}


@pytest.fixture
def host(tmp_path: Path, server_url: str) -> Iterator[Host]:
    """A conserver with one chain."""
    host = Host(tmp_path / "host", server_url, CONFIG).start()
    yield host
    host.close()


def numbers(host: Host) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    """All samples of /metrics."""
    families = text_string_to_metric_families(host.get("/metrics").text)
    return {(s.name, tuple(sorted(s.labels.items()))): s.value for family in families for s in family.samples}


@pytest.mark.thorough
def test_the_numbers_add_up_over_workers_that_died(host: Host, redis: Redis):
    """Received, processed and dead are what was pushed, also when a worker was killed; no label is a UUID."""
    uuids = store(redis, [vcon() for _ in range(60)] + [vcon("raise") for _ in range(4)])
    redis.rpush("in", *uuids[:30])
    wait_until(lambda: accounted(redis, ["in"]), 30)
    processed = ("conserver_main_loop_count_vcons_processed_total", (("chain_name", "main"), ("outcome", "delivered")))
    wait_until(lambda: numbers(host).get(processed) == 30, 10, "thirty counted")
    host.signal(signal.SIGKILL, host.worker_pids())
    wait_until(lambda: len(host.worker_pids()) == 2, 20)
    redis.rpush("in", *uuids[30:])
    wait_until(lambda: accounted(redis, ["in"]), 30)
    wait_until(lambda: numbers(host).get(processed) == 60, 10, "sixty counted")

    now = numbers(host)
    assert now["conserver_dlq_count_total", (("queue_name", "DLQ:in"),)] == 4
    assert now["conserver_main_loop_count_vcons_received_total", (("ingress_list", "in"),)] == 64
    assert now["conserver_main_loop_vcon_processing_time_count", (("chain_name", "main"),)] == 64
    assert now["conserver_link_count_total", (("link_name", "act"), ("outcome", "error"))] == 4
    assert now["conserver_storage_count_total", (("backend", "file"), ("outcome", "success"))] == 60
    assert now["conserver_ingress_list_length", (("ingress_list", "in"), ("kind", "dlq"))] == 4
    assert not [labels for _, labels in now if set(dict(labels).values()) & set(uuids)]


def test_readyz_follows_the_server(tmp_path: Path):
    """Ready with workers and a server, 503 with the reason while the server is away, ready again after."""
    server = EmbeddedServer(tmp_path / "data")
    url = server.start()
    host = Host(tmp_path / "host", url, CONFIG).start()
    try:
        wait_until(lambda: host.get("/readyz").status_code == 200, 10)
        os.kill(wait_until(lambda: server.pid), signal.SIGKILL)
        wait_until(lambda: host.get("/readyz").status_code == 503, 10)
        problems = host.get("/readyz").json()["problems"]
        alive = host.get("/livez").status_code
        server.restart_if_dead()
        wait_until(lambda: host.get("/readyz").status_code == 200, 20)

        assert len(problems) == 1
        assert alive == 200
    finally:
        host.close()
        server.stop()


@pytest.mark.thorough
def test_one_line_a_vcon_at_info(host: Host, redis: Redis):
    """Normal operation says one JSON line for each vCon, with its ids, and nothing else."""
    before = len(host.said().splitlines())
    uuids = store(redis, [vcon() for _ in range(40)])
    redis.rpush("in", *uuids)
    wait_until(lambda: accounted(redis, ["in"]), 30)
    lines = wait_until(lambda: (said := host.said().splitlines()[before:]) and len(said) >= 40 and said, 10)

    said = [json.loads(line) for line in lines]
    assert sorted(line["vcon"] for line in said) == sorted(uuids)
    assert {(line["levelname"], line["message"], line["chain"], line["list"]) for line in said} == {
        ("INFO", "delivered", "main", "in")
    }
