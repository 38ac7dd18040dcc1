"""The frame that other task queues are measured in, with one of three lines that needs no installing."""

from __future__ import annotations

import subprocess
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from redis import Redis

from bench import peers
from bench.peers import environments
from bench.peers.environments import CannotInstall, environment
from bench.peers.known import PEERS, Peer, Variant
from tests.waiting import wait_until

CLIENT = """
import counted
from redis import Redis

def enqueue(tasks):
    redis = Redis.from_url(counted.URL)
    for sent in tasks:
        redis.rpush("fake", sent)
"""
WORKER = """
import counted
from redis import Redis

redis = Redis.from_url(counted.URL)
while True:
    counted.done(float(redis.blpop("fake")[1]))
"""


@pytest.fixture
def fake(tmp_path: Path) -> Peer:
    """A task queue that needs nothing but what this process has."""
    (tmp_path / "app_fake.py").write_text(CLIENT)
    variant = Variant("x2", ("python", "-c", WORKER), n=400, processes=2)
    return Peer("fake", (), (variant, replace(variant, name="again", n=100)), apps=tmp_path)


@pytest.fixture
def measure(tmp_path: Path, server_url: str, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[dict[str, Any]]]:
    """Measure on a real server, once unless asked for more."""

    def measure(peer: Peer, *, full: bool = False, runs: int = 1, patience_secs: float = 60) -> list[dict[str, Any]]:
        monkeypatch.setattr(peers, "_RUNS", runs)
        how = {"full": full, "scratch": tmp_path / "scratch", "patience_secs": patience_secs}
        return list(peers.measure(peer, server_url, **how))

    return measure


def running(word: str) -> list[int]:
    """The processes of this machine whose environment has *word*."""
    found = []
    for file in Path("/proc").glob("[0-9]*/environ"):
        try:
            if word.encode() in file.read_bytes():
                found.append(int(file.parent.name))
        except OSError:
            continue
    return found


def test_a_row_has_a_rate_for_each_run_and_what_a_task_costs(fake: Peer, measure: Callable[..., Any]):
    """A short benchmark measures the first variant, in tasks a second and CPU time of both sides."""
    rows = measure(fake, runs=2)

    (row,) = rows
    assert (row["name"], row["variant"], row["n"], row["error"]) == ("fake", "x2", 400, None)
    assert len(row["tasks_per_sec"]) == 2
    assert min(row["tasks_per_sec"]) > 0
    assert row["server_ms_per_task"] > 0
    assert row["cpu_ms_per_task"] is None or row["cpu_ms_per_task"] > 0
    assert row["latency_ms"] is None


def test_a_full_benchmark_has_all_variants_and_their_latency(
    fake: Peer, measure: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
):
    """A full benchmark measures more tasks of each variant, then sends probes one by one."""
    monkeypatch.setattr(peers, "_PROBE_SECS", 1)

    rows = measure(fake, full=True)

    assert [(row["variant"], row["n"], row["error"]) for row in rows] == [("x2", 1600, None), ("again", 400, None)]
    for row in rows:
        assert 0 < row["latency_ms"]["p50"] <= row["latency_ms"]["p99"]


def test_what_is_left_in_the_server_is_removed_first(fake: Peer, measure: Callable[..., Any], redis: Redis):
    """Each run begins with an empty server, so tasks of another run are not done as well."""
    redis.rpush("fake", *["0.0"] * 5000)

    (row,) = measure(fake)

    assert row["error"] is None
    assert redis.llen("fake") == 0


def test_workers_are_gone_afterwards(fake: Peer, measure: Callable[..., Any], tmp_path: Path):
    """Nothing that was started lives on, not even what a worker has started itself."""
    forking = fake.variants[0].command[2].replace("redis =", "import os; os.fork(); redis =")
    variant = replace(fake.variants[0], command=("python", "-c", forking), processes=1)

    (row,) = measure(replace(fake, variants=(variant,)))

    assert row["error"] is None
    # A process that was killed is gone when the kernel has put it away.
    wait_until(lambda: not running(f"PYTHONPATH={tmp_path}"))


@pytest.mark.parametrize(
    ("worker", "patience_secs", "error"),
    [
        ("raise SystemExit('no such broker')", 30, "a worker ended at 0 of 40 bytes counted: no such broker"),
        ("import time; time.sleep(60)", 0.5, "nothing happened for 0.5 s at 0 of 40 bytes counted: it said nothing"),
    ],
    ids=["ends", "hangs"],
)
def test_a_task_queue_that_does_nothing_is_a_row_that_says_so(
    fake: Peer, measure: Callable[..., Any], worker: str, patience_secs: float, error: str
):
    """What does not work here costs its own row, which has the last words of its log."""
    broken = replace(fake.variants[0], command=("python", "-c", worker))

    (row,) = measure(replace(fake, variants=(broken,)), patience_secs=patience_secs)

    assert row["error"] == error
    assert row["tasks_per_sec"] == []


def test_a_client_that_fails_is_a_row_that_says_so(fake: Peer, measure: Callable[..., Any]):
    """A queue that cannot be filled is told from one that is not worked on."""
    (fake.apps / "app_fake.py").write_text("raise SystemExit('no such server')")

    (row,) = measure(fake)

    assert row["error"] == "the client could not fill the queue (1): no such server"


def test_a_failed_install_is_a_row_that_says_so(
    fake: Peer, measure: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
):
    """A package that cannot be had costs its own row."""

    def nowhere(name: str, pins: tuple[str, ...]) -> Path:
        raise CannotInstall(f"cannot be installed: {pins[0]}")

    monkeypatch.setattr(peers, "environment", nowhere)

    (row,) = measure(replace(fake, pins=("fake==1.0",)))

    assert (row["version"], row["error"]) == ("1.0", "cannot be installed: fake==1.0")


def test_an_environment_is_made_once_for_its_pins(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """An environment has what is pinned, is used again, and is never there under pins that it does not have."""
    monkeypatch.setattr(environments, "ENVIRONMENTS", tmp_path / "environments")
    pins = (wheel(tmp_path, "first"),)
    programs = environment("fake", pins)
    (programs / "kept").touch()

    assert environment("fake", pins) == programs
    assert (programs / "kept").exists()
    assert subprocess.run([programs / "python", "-c", "import first"], check=False).returncode == 0
    with pytest.raises(CannotInstall, match=r"cannot be installed: ERROR: .*gone-1\.0"):
        environment("fake", (str(tmp_path / "gone-1.0-py3-none-any.whl"),))
    assert not (programs / "kept").exists()


def test_only_task_queues_that_there_are_can_be_asked_for(server_url: str, tmp_path: Path):
    """A name that was mistyped is refused, with those that there are."""
    with pytest.raises(ValueError, match="no such task queue: dramatic; there are rq, dramatiq, "):
        peers.run_peers(server_url, full=False, scratch=tmp_path, names=["rq", "dramatic"])


def test_every_task_queue_is_pinned_and_has_its_task():
    """What is compared is named with its version, and can be enqueued."""
    for peer in PEERS:
        assert [pin for pin in peer.pins if "==" not in pin] == []
        assert peer.pins[0].startswith(peer.name)
        assert "def enqueue(tasks):" in (peer.apps / f"app_{peer.name}.py").read_text()


def wheel(folder: Path, name: str) -> str:
    """A package of one empty module, as a file that pip installs without asking anybody."""
    file = folder / f"{name}-1.0-py3-none-any.whl"
    about = f"{name}-1.0.dist-info"
    with zipfile.ZipFile(file, "w") as package:
        package.writestr(f"{name}.py", "")
        package.writestr(f"{about}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        package.writestr(f"{about}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        package.writestr(f"{about}/RECORD", "")
    return str(file)
