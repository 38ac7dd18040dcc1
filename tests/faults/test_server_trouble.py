"""A server that is full, read-only, forgetful, forbids a command or is away: nobody's dead letter."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from redis import Redis

from conserver import scripts
from tests import server_moods
from tests.faults.checker import History
from tests.host import EFFECT, Host, accounted, entries, store, vcon
from tests.waiting import wait_until

pytestmark = pytest.mark.faults

TAGGER = '''
"""Adds a tag."""
import time
from conserver import vcons

def run(vcon_uuid, link_name, opts):
    time.sleep(0.02)
    with vcons.edit(vcon_uuid) as vcon:
        vcon.add_tag("seen", "yes")
    return vcon_uuid
'''
CONFIG = {
    "links": {"tag": {"module": "links.tagger"}},
    "chains": {"main": {"links": ["tag"], "ingress_lists": ["in"], "egress_lists": ["out"]}},
}


@contextmanager
def forgetful(redis: Redis) -> Iterator[None]:
    """The script cache is empty, again and again."""
    redis.script_flush()
    yield
    redis.script_flush()


TROUBLES = {
    "full": server_moods.full,
    "read-only": server_moods.read_only,
    "no claims": lambda redis: server_moods.denied(redis, "-hset"),
    "no egress": lambda redis: server_moods.denied(redis, "-rpush"),
    "no saves": lambda redis: server_moods.denied(redis, "-set"),
    "forgetful": forgetful,
}


@pytest.fixture
def host(tmp_path: Path, server_url: str) -> Iterator[Host]:
    """A conserver that tags vCons."""
    host = Host(tmp_path / "host", server_url, CONFIG, links={"tagger": TAGGER})
    yield host
    host.close()


@pytest.mark.parametrize("trouble", TROUBLES)
def test_trouble_of_the_server_is_nobodys_dead_letter(host: Host, redis: Redis, trouble: str):
    """While it lasts everything waits; afterwards each vCon is tagged and delivered once, by itself."""
    uuids = store(redis, [vcon() for _ in range(400)])
    host.start()
    redis.rpush("in", *uuids)
    wait_until(lambda: redis.llen("out") > 50, 30)
    with TROUBLES[trouble](redis):
        if trouble != "forgetful":
            wait_until(lambda: "does not work" in host.said() or "could not be settled" in host.said(), 15)
    wait_until(lambda: accounted(redis, ["in"]), 60, "everything settled")

    assert Counter(entries(redis, "out")) == Counter(uuids)
    assert entries(redis, "DLQ:in") == []
    assert all(len(json.loads(redis.get(f"vcon:{uuid}") or b"{}")["attachments"]) == 1 for uuid in uuids)
    assert host.process is not None
    assert host.process.poll() is None


@pytest.mark.thorough
def test_cut_connections_cost_nothing(host: Host, redis: Redis):
    """Every connection is cut, twenty times: each vCon is delivered once."""
    uuids = store(redis, [vcon() for _ in range(1000)])
    host.start()
    redis.rpush("in", *uuids)
    for n in range(1, 21):
        wait_until(lambda n=n: redis.llen("out") > 40 * n, 30)
        redis.client_kill_filter(_type="normal", skipme=True)
    wait_until(lambda: accounted(redis, ["in"]), 60, "everything settled")

    assert Counter(entries(redis, "out")) == Counter(uuids)
    assert entries(redis, "DLQ:in") == []


#: Says that it has begun, and waits until there is a file `go`.
GATE = (
    EFFECT
    + """
def run(vcon_uuid, link_name, opts):
    effect("began", link_name, vcon_uuid)
    while not os.path.exists("go"):
        time.sleep(0.02)
    effect("ended", link_name, vcon_uuid)
    return vcon_uuid
"""
)


@pytest.mark.thorough
def test_a_full_server_lets_settle_what_runs_and_hands_out_nothing(tmp_path: Path, redis: Redis, server_url: str):
    """Claims pause and /readyz says why, while what ran is delivered; with memory again the rest goes on by itself."""
    config = {
        "links": {"gate": {"module": "links.gate"}},
        "chains": {"main": {"links": ["gate"], "ingress_lists": ["in"], "egress_lists": ["out"]}},
    }
    uuids = store(redis, [vcon() for _ in range(100)])
    host = Host(tmp_path / "host", server_url, config, links={"gate": GATE}).start()
    try:
        redis.rpush("in", *uuids)
        wait_until(lambda: host.effects().total() == 16, 30)
        with server_moods.full(redis):
            (host.folder / "go").touch()
            wait_until(lambda: redis.llen("out") == 16, 30, "what ran is delivered")
            wait_until(lambda: "does not work" in host.said(), 15)
            wait_until(lambda: "maxmemory" in host.get("/readyz").text, 15)
            begun, waiting = host.effects().total(), redis.llen("in")
        wait_until(lambda: accounted(redis, ["in"]), 60, "everything settled")

        assert (begun, waiting) == (16, 84)
        History(host.effects_file).check(redis, uuids, links={"gate": 1})
        wait_until(lambda: host.get("/readyz").status_code == 200, 15)
    finally:
        host.close()


@pytest.mark.thorough
def test_scripts_that_are_forgotten_again_and_again_cost_nothing(host: Host, redis: Redis):
    """The script cache is emptied thirty times while work goes on: each vCon is delivered once."""
    uuids = store(redis, [vcon() for _ in range(600)])
    host.start()
    redis.rpush("in", *uuids)
    for n in range(1, 31):
        wait_until(lambda n=n: redis.llen("out") > 15 * n, 30)
        redis.script_flush("SYNC" if n % 2 else "ASYNC")
    wait_until(lambda: accounted(redis, ["in"]), 60, "everything settled")

    assert Counter(entries(redis, "out")) == Counter(uuids)
    assert entries(redis, "DLQ:in") == []
    assert "ERROR" not in host.said()


def commands_of(script: str) -> list[str]:
    """The commands that a script of the engine may send, but for those of a JSON module."""
    text = getattr(scripts, script).text
    return sorted(set(re.findall(r"redis\.p?call\('([A-Z]+)'", text)))


@pytest.mark.thorough
@pytest.mark.parametrize("script", ["CLAIM", "SETTLE", "SAVE", "TOUCH"])
def test_each_command_of_a_script_may_be_denied_for_a_while(host: Host, redis: Redis, server_url: str, script: str):
    """One ACL after the other takes one away and gives it back: work waits or goes on, and each is delivered once."""
    redis.execute_command("ACL", "SETUSER", "operator", "on", ">secret", "allkeys", "allchannels", "allcommands")
    with Redis.from_url(server_url, username="operator", password="secret") as operator:
        host.redis = operator
        host.start()
        pushed: list[str] = []

        def more() -> None:
            if operator.llen("in") < 50:
                uuids = store(operator, [vcon() for _ in range(100)])
                operator.rpush("in", *uuids)
                pushed.extend(uuids)

        try:
            for command in commands_of(script):
                more()
                before, said = operator.llen("out"), len(host.said())
                with server_moods.denied(operator, f"-{command}"):
                    wait_until(
                        lambda before=before, said=said: (
                            operator.llen("out") > before + 30 or '"ERROR"' in host.said()[said:]
                        ),
                        30,
                        f"{command}: work goes on, or somebody complains",
                    )
                before = operator.llen("out")
                more()
                wait_until(lambda before=before: operator.llen("out") > before + 5, 30, f"{command}: work goes on")
            wait_until(lambda: accounted(operator, ["in"]), 60, "everything settled")

            assert Counter(entries(operator, "out")) == Counter(pushed)
            assert entries(operator, "DLQ:in") == []
            assert len(host.worker_pids()) == 2
        finally:
            redis.execute_command("ACL", "DELUSER", "operator")
