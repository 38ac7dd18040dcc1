"""vCons of odd sizes and odd contents: taken whole or refused with a reason, and the worker that met them lives."""

from __future__ import annotations

import gzip
import json
from collections import Counter
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from redis import Redis

from tests.commands import start_beside
from tests.host import Host, accounted, entries, store, vcon
from tests.waiting import wait_until

pytestmark = [pytest.mark.faults, pytest.mark.thorough, pytest.mark.timeout(300)]

MEGABYTE = 1_000_000


def make(tmp_path: Path, url: str, **env: object) -> Host:
    """A host with one worker and one thread, whose chain tags and stores."""
    folder = str(tmp_path / "files")
    options = {"path": folder, "max_file_size": 1_000 * MEGABYTE}
    config = {
        "links": {"tag": {"module": "links.tag", "options": {"tags": ["seen:yes"]}}},
        "storages": {"file": {"module": "storages.file", "options": options}},
        "chains": {
            "main": {
                "links": ["tag"],
                "storages": ["file"],
                "ingress_lists": ["in"],
                "egress_lists": ["out"],
                "pause_after": 0,
            }
        },
    }
    return Host(tmp_path / "host", url, config, CONSERVER_WORKERS=1, CONSERVER_VCON_CONCURRENCY=1, **env)


def with_member(raw: str) -> tuple[str, bytes]:
    """A vCon as text, with a member of these characters, and its UUID."""
    document = vcon()
    return document["uuid"], json.dumps(document)[:-1].encode() + b', "x_odd": ' + raw.encode("latin-1") + b"}"


def nested(levels: int) -> str:
    """So many arrays inside of each other."""
    return "[" * levels + "]" * levels


def without_tags(document: dict[str, Any]) -> dict[str, Any]:
    """The vCon as it was before the chain."""
    return {key: value for key, value in document.items() if key not in ("attachments", "updated_at")}


def peak_memory(pid: int) -> int:
    """The most bytes that a process has ever used."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024


def stored(tmp_path: Path, uuid: str) -> dict[str, Any]:
    """What the storage holds of a vCon."""
    (file,) = (tmp_path / "files").rglob(f"{uuid}.json")
    return json.loads(file.read_text())


TAKEN = {
    "deep": nested(150),
    "beyond 64 bits": "[18446744073709551616, -9223372036854775809, 1" + "0" * 100 + "]",
    "lone surrogate": '"\\ud800 and \\udfff"',
    "controls": '"\\u0000\\u001f\\u2028 \\\\ \\" "',
    "small and precise": "[5e-324, 0.1, 1.0, -0.0, 123456789.123456789]",
    "names": '{"": 1, "__proto__": {}, "$where": "x", "a.b": [null], "uuid": "../../x"}',
    "a path": '"../../../../tmp/x"',
}
REFUSED = {
    "nested deeper than 200 levels": nested(1000),
    "not UTF-8": '"\xff\xfe"',
    "NaN is no JSON number": "NaN",
    "-Infinity is no JSON number": "-Infinity",
    "1e400 is too large for a number": "1e400",
    "has more than 4300 digits": "1" + "0" * 5000,
    "not JSON": '"it ends here',
}


def test_odd_values_are_kept_exactly_or_refused_with_a_reason(tmp_path: Path, redis: Redis, server_url: str):
    """What is JSON comes out with the same values; what is none stays as it was, and its dead letter says why."""
    taken = dict(with_member(raw) for raw in TAKEN.values())
    refused = {why: with_member(raw) for why, raw in REFUSED.items()}
    uuid = str(uuid4())
    for why, text in {
        "is empty": b"",
        "not an array": b"[]",
        "not null": b"null",
        "holds vCon": json.dumps(vcon()).encode(),
        "which is no UUID": json.dumps(vcon(uuid="../../../../tmp/x")).encode(),
        "uuid is missing": json.dumps({"vcon": "0.4.0", "parties": []}).encode(),
    }.items():
        refused[why] = (str(uuid4()), text)
    dated = vcon(created_at="../../../../tmp/x", uuid=uuid)
    taken[uuid] = json.dumps(dated).encode()
    for key, text in [*taken.items(), *refused.values()]:
        redis.set(f"vcon:{key}", text)
    host = make(tmp_path, server_url)
    try:
        host.start()
        worker = host.worker_pids()
        redis.rpush(
            "in", *[key for pair in zip(refused.values(), [*taken] * 2, strict=False) for key in (pair[0][0], pair[1])]
        )
        wait_until(lambda: accounted(redis, ["in"]), 120)

        assert set(entries(redis, "out")) == taken.keys()
        assert Counter(entries(redis, "DLQ:in")) == Counter(key for key, _ in refused.values())
        for why, (key, text) in refused.items():
            said = json.loads(redis.hget("conserver:{in}:dead", key) or b"{}")["error"]
            assert why in said
            assert redis.get(f"vcon:{key}") == text
        for key, text in taken.items():
            assert repr(without_tags(stored(tmp_path, key))) == repr(without_tags(json.loads(text)))
        assert {
            file.parent.relative_to(tmp_path / "files").parts[:1] for file in (tmp_path / "files").rglob("*.json")
        } == {("2026",), ()}
        assert host.worker_pids() == worker
    finally:
        host.close()


def test_10_000_dialogs_come_out_as_they_went_in(tmp_path: Path, redis: Redis, server_url: str):
    """All of them, in order, and the tag beside them."""
    dialogs = [
        {"type": "text", "start": "2026-01-01T00:00:00Z", "parties": [0], "encoding": "none", "body": f"line {n}"}
        for n in range(10_000)
    ]
    document = vcon(dialog=dialogs)
    (uuid,) = store(redis, [document])
    host = make(tmp_path, server_url)
    try:
        host.start()
        redis.rpush("in", uuid)
        wait_until(lambda: accounted(redis, ["in"]), 120)

        assert entries(redis, "out") == [uuid]
        assert without_tags(stored(tmp_path, uuid)) == without_tags(document)
        assert stored(tmp_path, uuid)["attachments"][0]["body"] == ["seen:yes"]
    finally:
        host.close()


@pytest.mark.parametrize("megabytes", [20, pytest.param(100, marks=pytest.mark.long)])
def test_a_huge_vcon_takes_a_bounded_amount_of_memory(tmp_path: Path, redis: Redis, server_url: str, megabytes: int):
    """It is delivered whole; the process that does it never uses more than nine times its size on top."""
    large, small = (vcon(x_body="abcde fg\\n" * (size // 10)) for size in (megabytes * MEGABYTE, 10))
    uuids = store(redis, [small, large])
    host = make(tmp_path, server_url, CONSERVER_MAX_VCON_BYTES=200 * MEGABYTE)
    try:
        host.start()
        redis.rpush("in", uuids[0])
        wait_until(lambda: redis.llen("out") == 1, 90)
        (worker,) = host.worker_pids()
        before = peak_memory(worker)
        redis.rpush("in", uuids[1])
        wait_until(lambda: redis.llen("out") == 2, 120)

        assert host.worker_pids() == [worker]
        assert stored(tmp_path, uuids[1])["x_body"] == large["x_body"]
        assert (peak_memory(worker) - before) / (megabytes * MEGABYTE) <= 9
    finally:
        host.close()


def test_a_vcon_that_is_too_large_is_refused(tmp_path: Path, redis: Redis, server_url: str):
    """By a list it is a dead letter that names both sizes; the next one is delivered by the same process."""
    large, small = vcon(x_body="x" * 30 * MEGABYTE), vcon()
    uuids = store(redis, [large, small])
    host = make(tmp_path, server_url, CONSERVER_MAX_VCON_BYTES=10 * MEGABYTE)
    try:
        host.start()
        (worker,) = host.worker_pids()
        redis.rpush("in", *uuids)
        wait_until(lambda: accounted(redis, ["in"]), 90)
        why = json.loads(redis.hget("conserver:{in}:dead", uuids[0]) or b"{}")["error"]

        assert entries(redis, "out") == uuids[1:]
        assert "bytes, more than CONSERVER_MAX_VCON_BYTES (10,000,000) allows" in why
        assert host.worker_pids() == [worker]
    finally:
        host.close()


def test_files_that_are_traps_are_refused_by_push(tmp_path: Path, redis: Redis, server_url: str):
    """A UUID that climbs, one that is too long, a packed bomb: each is named with its reason, nothing is written."""
    host = make(tmp_path, server_url)
    traps = {
        "climbs.json": json.dumps(vcon(uuid="../../../../tmp/evil")).encode(),
        "absolute.json": json.dumps(vcon(uuid="/etc/passwd")).encode(),
        "long.json": json.dumps(vcon(uuid="a" * 10_000)).encode(),
        "number.json": json.dumps(vcon(uuid=7)).encode(),
        "bomb.json.gz": gzip.compress(b"[" + b"0," * 40 * MEGABYTE),
        "cut.json.gz": gzip.compress(json.dumps(vcon()).encode())[:-9],
        "deep.json": nested(100_000).encode(),
    }
    for name, text in traps.items():
        (host.folder / name).write_bytes(text)
    with start_beside(host, "push", "in", *traps) as push:
        said, _ = push.communicate(timeout=100)

    assert push.returncode == 1
    assert [name for name in traps if name not in said] == []
    assert "Traceback" not in said
    assert redis.keys("vcon:*") == []
    assert not redis.exists("in")
