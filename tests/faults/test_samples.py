"""Real vCons of the field, where they are beside the project, from file to file through the real command line."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from redis import Redis

from tests.host import Host, accounted, entries
from tests.waiting import wait_until

SAMPLES = Path(__file__).resolve().parents[2].parent / "shared" / "samples"
pytestmark = [
    pytest.mark.thorough,
    pytest.mark.faults,
    pytest.mark.skipif(not SAMPLES.is_dir(), reason="the sample vCons are not beside the project"),
]
REFUSED = {"ab.vcon", "simple-vcon.vcon", "vcon_json_schema.json"}
SEALED = {
    "ab_call_ext_rec_signed.vcon",
    "ab_call_ext_rec_encrypted.vcon",
    "ab_call_ext_rec_decrypted.vcon",
}


@pytest.fixture
def host(tmp_path: Path, server_url: str) -> Iterator[Host]:
    """Two chains: one tags and stores, the other touches nothing."""
    config = {
        "links": {"tag": {"module": "links.tag", "options": {"tags": ["kind:sample"]}}},
        "storages": {"file": {"module": "storages.file", "options": {"path": str(tmp_path / "vcons")}}},
        "chains": {
            "tagging": {
                "links": ["tag"],
                "storages": ["file"],
                "ingress_lists": ["in"],
                "egress_lists": ["out"],
            },
            "passing": {"links": [], "storages": ["file"], "ingress_lists": ["as-is"], "egress_lists": ["out"]},
        },
    }
    host = Host(tmp_path / "host", server_url, config, CONSERVER_WORKERS=1).start()
    yield host
    host.close()


def push(host: Host, *arguments: object) -> subprocess.CompletedProcess[str]:
    """`conserver push` in the host's folder."""
    return subprocess.run(
        [sys.executable, "-m", "conserver", "push", *map(str, arguments)],
        cwd=host.folder,
        env=host.env,
        capture_output=True,
        text=True,
        check=False,
    )


def stored(tmp_path: Path) -> dict[str, dict]:
    """What the storage holds, by UUID."""
    return {file.stem: json.loads(file.read_text()) for file in (tmp_path / "vcons").rglob("*.json")}


def test_every_fake_vcon_is_delivered_tagged_migrated_and_stored(host: Host, redis: Redis, tmp_path: Path):
    """All of them, pushed with one command; none is dead."""
    files = sorted((SAMPLES / "fake-vcons").glob("*.json"))
    uuids = [json.loads(file.read_text())["uuid"] for file in files]
    pushed = push(host, "in", *files)
    wait_until(lambda: accounted(redis, ["in"]), 30)

    assert len(files) == 20
    assert pushed.returncode == 0, pushed.stderr
    assert Counter(entries(redis, "out")) == Counter(uuids)
    assert entries(redis, "DLQ:in") == []
    documents = stored(tmp_path)
    assert documents.keys() == set(uuids)
    for document in documents.values():
        assert document["vcon"] == "0.4.0"
        assert "redacted" not in document
        assert "mimetype" not in json.dumps(document)
        assert [a["body"] for a in document["attachments"] if a.get("purpose") == "tags"] == [["kind:sample"]]


def test_each_ietf_example_passes_unchanged_or_is_reported_or_refused(host: Host, redis: Redis, tmp_path: Path):
    """Sealed ones come out with the same JSON value, rules that are broken are named, stubs are refused."""
    for file in sorted((SAMPLES / "ietf-vcon-core").iterdir()):
        # Some of them share a UUID: each is pushed alone, on an empty server.
        for key in redis.keys("vcon:*"):
            redis.delete(key)
        redis.delete("out")
        pushed = push(host, "as-is", file)
        if file.name in REFUSED:
            assert pushed.returncode == 1, file.name
            assert file.name in pushed.stdout + pushed.stderr
            assert redis.llen("out") == redis.llen("as-is") == 0
            continue
        assert pushed.returncode == 0, pushed.stderr
        wait_until(lambda: redis.llen("out") == 1, 20, file.name)
        (uuid,) = entries(redis, "out")
        before, after = json.loads(file.read_text()), stored(tmp_path)[uuid]
        if file.name in SEALED:
            assert after == before
        elif "created_at" not in before:
            assert "E2 " in pushed.stdout + pushed.stderr, pushed.stdout + pushed.stderr
        assert json.loads(redis.get(f"vcon:{uuid}") or b"") == after
    assert entries(redis, "DLQ:as-is") == []
