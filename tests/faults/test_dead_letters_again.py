"""Dead letters go back while the list is busy: each once, however many commands move them."""

from __future__ import annotations

import json
import threading
from collections import Counter
from pathlib import Path

import pytest
from redis import Redis

from tests.commands import run_beside, start_beside
from tests.host import Host, accounted, entries, store, vcon
from tests.waiting import wait_until

pytestmark = [pytest.mark.faults, pytest.mark.thorough, pytest.mark.timeout(300)]

CONFIG = {
    "links": {"act": {"module": "links.act", "options": {"act": False}}},
    "chains": {"main": {"links": ["act"], "ingress_lists": ["in"], "egress_lists": ["out"]}},
}


def bury(redis: Redis, uuids: list[str]) -> None:
    """Make dead letters of *uuids*, as a chain does whose second link has failed."""
    pipe = redis.pipeline(transaction=False)
    for n, uuid in enumerate(uuids):
        # The note is of another config, so it saves no work.
        note = {"note": {"done": 1, "prefix": "0123456789ab", "uuid": uuid}} if n % 2 else {}
        pipe.rpush("DLQ:in", uuid)
        pipe.hset("conserver:{in}:dead", uuid, json.dumps({"n": 1, "error": "no service", **note}, separators=",:"))
    pipe.execute()


@pytest.mark.parametrize("at_once", [False, True], ids=["one-after-the-other", "two-at-once"])
def test_dead_letters_go_back_once_while_others_flow(tmp_path: Path, redis: Redis, server_url: str, at_once: bool):
    """`dlq retry` of 1,000, twice, beside 500 new vCons: 1,500 deliveries, and no dead letter or reason is left."""
    dead, new = (store(redis, [vcon() for _ in range(n)]) for n in (1000, 500))
    bury(redis, dead)
    host = Host(tmp_path / "host", server_url, CONFIG)
    done = threading.Event()

    def flow() -> None:
        for uuid in new:
            redis.rpush("in", uuid)
            done.wait(0.005)

    traffic = threading.Thread(target=flow, daemon=True)
    try:
        host.start()
        traffic.start()
        if at_once:
            commands = [start_beside(host, "dlq", "retry", "in") for _ in range(2)]
            said = [command.communicate(timeout=100)[0] for command in commands]
            assert [command.returncode for command in commands] == [0, 0], said
        else:
            said = [run_beside(host, "dlq", "retry", "in") for _ in range(2)]
            assert said[0] == "1,000 dead letters of 'in' queued again\n"
        done.set()
        traffic.join(60)
        wait_until(lambda: accounted(redis, ["in"]), 120)

        assert Counter(entries(redis, "out")) == Counter([*dead, *new])
        assert host.effects() == Counter(("act", uuid) for uuid in [*dead, *new])
        assert not redis.exists("DLQ:in", "conserver:{in}:dead")
    finally:
        done.set()
        host.close()


def test_letters_that_die_again_are_dead_once(tmp_path: Path, redis: Redis, server_url: str):
    """A retry while their cause lasts: each is a dead letter again, with one reason, and not moved a second time."""
    uuids = store(redis, [vcon("raise") for _ in range(300)])
    bury(redis, uuids)
    config = {
        "links": {"act": {"module": "links.act"}},
        "chains": {"main": {**CONFIG["chains"]["main"], "pause_after": 0}},
    }
    host = Host(tmp_path / "host", server_url, config)
    try:
        host.start()
        said = run_beside(host, "dlq", "retry", "in")
        wait_until(lambda: accounted(redis, ["in"]) and redis.llen("DLQ:in") == 300, 120)
        whys = [json.loads(why) for why in redis.hvals("conserver:{in}:dead")]

        assert said == "300 dead letters of 'in' queued again\n"
        assert Counter(entries(redis, "DLQ:in")) == Counter(uuids)
        assert [(why["n"], why["error"]) for why in whys] == [(1, "link 'act': ValueError: no good")] * 300
        assert max(host.effects().values()) == 1
    finally:
        host.close()
