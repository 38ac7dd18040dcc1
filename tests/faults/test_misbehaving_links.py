"""Links that do what no link should: their vCon says why, and everybody else goes on."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path

import pytest
from redis import Redis

from tests.host import Host, accounted, entries, store, vcon
from tests.waiting import wait_until

pytestmark = [pytest.mark.faults, pytest.mark.thorough]

#: What the vCon's subject asks for.
ODD = """
import os, sys, threading
from conserver import vcons

def run(vcon_uuid, link_name, opts):
    what = vcons.get(vcon_uuid).subject
    if what == "number":
        return 5
    if what == "nonsense":
        return "not a uuid"
    if what == "exit":
        raise SystemExit("done here")
    if what == "interrupt":
        raise KeyboardInterrupt
    if what == "print":
        print("a print of a link", flush=True)
    if what == "fork":
        if os.fork() == 0:
            return vcon_uuid
    if what == "chdir":
        os.chdir("/")
    if what == "deep":
        def down():
            down()
        down()
    if what == "vanish":
        vcons.delete(vcon_uuid)
        vcons.get(vcon_uuid)
    if what == "thread":
        threading.Thread(target=lambda: 1 / 0).start()
    if what == "stop":
        return None
    return vcon_uuid
"""
GOOD = {"print", "fork", "chdir", "thread", ""}
WHY = {
    "number": "link 'odd': it returned 5: a link returns a vCon's UUID, or None to stop the chain",
    "nonsense": "link 'odd': it returned 'not a uuid', which is no UUID",
    "exit": "link 'odd': it called exit (done here)",
    "interrupt": "link 'odd': KeyboardInterrupt",
    "deep": "link 'odd': RecursionError: maximum recursion depth exceeded",
    "vanish": "link 'odd': VconNotFound: vCon {uuid} was deleted",
}


def children(pid: int) -> list[str]:
    """The processes that any thread of *pid* has started and that still run."""
    pids = [child for file in Path(f"/proc/{pid}/task").glob("*/children") for child in file.read_text().split()]
    return [child for child in pids if ") Z " not in Path(f"/proc/{child}/stat").read_text()]


def test_odd_links_hurt_only_their_own_vcon(tmp_path: Path, redis: Redis, server_url: str):
    """Each ends as it should, the next storage still finds its relative folder, and nothing runs twice."""
    config = {
        "links": {"odd": {"module": "links.odd"}},
        "storages": {"file": {"module": "storages.file", "options": {"path": "vcons"}}},
        "chains": {
            "main": {
                "links": ["odd"],
                "storages": ["file"],
                "ingress_lists": ["in"],
                "egress_lists": ["out"],
            }
        },
    }
    documents = [vcon(what) for what in (*sorted(GOOD), *WHY, "stop") for _ in range(3)]
    by_uuid = {document["uuid"]: document["subject"] for document in documents}
    store(redis, documents)
    host = Host(tmp_path / "host", server_url, config, links={"odd": ODD}, CONSERVER_WORKERS=1).start()
    try:
        redis.rpush("in", *by_uuid)
        wait_until(lambda: accounted(redis, ["in"]), 30)

        delivered = Counter(entries(redis, "out"))
        dead = Counter(entries(redis, "DLQ:in"))
        assert delivered == Counter(uuid for uuid, what in by_uuid.items() if what in GOOD)
        assert dead == Counter(uuid for uuid, what in by_uuid.items() if what in WHY)
        for uuid in dead:
            why = json.loads(redis.hget("conserver:{in}:dead", uuid) or b"{}")["error"]
            assert why == WHY[by_uuid[uuid]].format(uuid=uuid)
        files = {file.stem for file in (host.folder / "vcons").rglob("*.json")}
        assert files == set(delivered)
        assert "changed the working directory" in host.said()
        (worker,) = host.worker_pids()
        wait_until(lambda: not children(worker), 5, "what came back twice from a fork has ended")
    finally:
        host.close()


@pytest.mark.parametrize(
    ("source", "finding"),
    [
        ("x = 1", "error[no-run] "),
        ("import os; os._exit(3)", "error[import-failed] "),
        ("raise SystemExit(2)", "error[import-failed] "),
        ("import conserver_no_such_package", "error[missing-package] "),
    ],
)
def test_a_module_that_is_no_link_is_told_before_the_first_vcon(
    tmp_path: Path, redis: Redis, server_url: str, source: str, finding: str
):
    """The conserver does not start, and says why with line and column."""
    config = {
        "links": {"odd": {"module": "links.odd"}},
        "chains": {"main": {"links": ["odd"], "ingress_lists": ["in"]}},
    }
    host = Host(tmp_path / "host", server_url, config, links={"odd": source}).start(wait=False)
    try:
        assert host.process is not None
        assert host.process.wait(60) == 1
        assert re.search(rf"config\.yml:\d+:\d+: {re.escape(finding)}", host.said())
        assert not redis.keys("conserver:*")
    finally:
        host.close()
