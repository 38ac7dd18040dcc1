"""Promise 3: no vCon pays for its neighbour."""

from __future__ import annotations

import json
import signal
from collections import Counter
from pathlib import Path

import pytest
from redis import Redis

from tests.host import Host, accounted, entries, store, vcon
from tests.waiting import wait_until

pytestmark = pytest.mark.faults

ACTOR = {
    "links": {"act": {"module": "links.act", "options": {"sleep": 0.01}, "timeout": 1.0}},
    "chains": {"main": {"links": ["act"], "ingress_lists": ["in"], "egress_lists": ["out"]}},
}


def why(redis: Redis, uuid: str) -> str:
    """The reason of a dead letter."""
    return json.loads(redis.hget("conserver:{in}:dead", uuid) or b"{}").get("error", "")


def test_five_bad_vcons_among_500_die_alone(tmp_path: Path, redis: Redis, server_url: str):
    """One that exits, segfaults, spins, hangs or raises is a dead letter that says why; all others are delivered."""
    bad = {subject: vcon(subject) for subject in ("exit", "segfault", "spin", "hang", "raise")}
    documents = [vcon() for _ in range(495)]
    for at, document in zip((40, 140, 240, 340, 440), bad.values(), strict=True):
        documents.insert(at, document)
    uuids = store(redis, documents)
    host = Host(tmp_path / "host", server_url, ACTOR).start()
    try:
        redis.rpush("in", *uuids)
        wait_until(lambda: accounted(redis, ["in"]), 90, "everything settled")

        dead = {subject: document["uuid"] for subject, document in bad.items()}
        assert Counter(entries(redis, "out")) == Counter(set(uuids) - set(dead.values()))
        assert Counter(entries(redis, "DLQ:in")) == Counter(dead.values())
        assert why(redis, dead["exit"]) == "its process ended with exit code 1, 3 times in quarantine"
        assert why(redis, dead["segfault"]) == "its process was ended by SIGSEGV, 3 times in quarantine"
        assert why(redis, dead["spin"]) == "link 'act' ran longer than its timeout of 1 s"
        assert why(redis, dead["hang"]) == "link 'act' ran longer than its timeout of 1 s"
        assert why(redis, dead["raise"]) == "link 'act': ValueError: no good"
    finally:
        host.close()


@pytest.mark.thorough
def test_a_link_that_blocks_the_whole_process_dies_alone(tmp_path: Path, redis: Redis, server_url: str):
    """A link that never gives the interpreter back is named by the board; its neighbours run again."""
    documents = [vcon() for _ in range(60)]
    documents[20] = vcon("block")
    uuids = store(redis, documents)
    host = Host(tmp_path / "host", server_url, ACTOR, CONSERVER_WORKERS=1).start()
    try:
        redis.rpush("in", *uuids)
        wait_until(lambda: accounted(redis, ["in"]), 60, "everything settled")

        culprit = documents[20]["uuid"]
        assert entries(redis, "DLQ:in") == [culprit]
        assert why(redis, culprit).startswith("link 'act' did not end within its timeout and blocked its process")
        assert Counter(entries(redis, "out")) == Counter(set(uuids) - {culprit})
    finally:
        host.close()


@pytest.mark.thorough
def test_who_is_late_first_is_not_the_culprit_for_that(tmp_path: Path, redis: Redis, server_url: str):
    """A link with little time cannot end while another, which has more, keeps the interpreter for itself."""
    act = {"module": "links.act", "options": {"sleep": 1.0}}
    config = {
        "links": {"short": {**act, "timeout": 2}, "long": {**act, "timeout": 7}},
        "chains": {
            name: {"links": [name], "ingress_lists": [name], "egress_lists": ["out"]} for name in ("short", "long")
        },
    }
    good, bad = store(redis, [vcon(), vcon("block")])
    host = Host(tmp_path / "host", server_url, config, CONSERVER_WORKERS=1)
    try:
        redis.rpush("short", good)
        redis.rpush("long", bad)
        host.start(wait=False)
        wait_until(lambda: accounted(redis, ["short", "long"]), 100, "everything settled")

        assert (entries(redis, "out"), entries(redis, "DLQ:long"), entries(redis, "DLQ:short")) == ([good], [bad], [])
    finally:
        host.close()


@pytest.mark.thorough
def test_a_pause_of_the_whole_host_blames_nobody(tmp_path: Path, redis: Redis, server_url: str):
    """A host that is stopped for longer than a link's timeout and goes on settles its runs as if nothing had been."""
    config = {
        "links": {"act": {"module": "links.act", "options": {"sleep": 0.5}, "timeout": 1.0}},
        "chains": ACTOR["chains"],
    }
    uuids = store(redis, [vcon() for _ in range(40)])
    host = Host(tmp_path / "host", server_url, config, CONSERVER_LEASE_SECS=30).start()
    try:
        redis.rpush("in", *uuids)
        wait_until(lambda: redis.llen("out") > 2, 20)
        family = host.family()
        host.signal(signal.SIGSTOP, family)
        until = redis.time()[0] + 3
        wait_until(lambda: redis.time()[0] >= until, 10)
        host.signal(signal.SIGCONT, family)
        wait_until(lambda: accounted(redis, ["in"]), 60, "everything settled")

        assert Counter(entries(redis, "out")) == Counter(uuids)
        assert entries(redis, "DLQ:in") == []
    finally:
        host.close()
