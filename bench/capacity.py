"""Hundreds of chains in flight in one process, each waiting for an answer by HTTP: memory, threads, rate."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from bench.drain import costs, wait_for
from bench.host import Host, server
from bench.plan import Plan, Table

COLUMNS = {
    "waiting": "at once",
    "worker_mb": "worker, MB",
    "family_mb": "all processes, MB",
    "threads": "worker's threads",
    "rate": "vCons/s",
    "cpu_ms": "our CPU, ms",
    "server_ms": "server CPU, ms",
}


def capacity(plan: Plan, threads: int = 512, delay_secs: float = 2.0) -> list[Table]:
    """Run `links.webhook` against a server that answers after *delay_secs*, with so many threads in one worker."""
    table = Table("capacity", f"links.webhook, each answer after {delay_secs:g} s, one worker", COLUMNS)
    table.notes.append(
        f"{threads} threads that wait {delay_secs:g} s can do {threads / delay_secs:,.0f} vCons/s at most"
    )
    for n in plan.turns([1, threads] if plan.full else [threads]):
        with server() as one, slow_server(delay_secs) as url:
            config = {
                "links": {"webhook": {"module": "links.webhook", "options": {"webhook-urls": [url]}}},
                "chains": {"main": {"links": ["webhook"], "ingress_lists": ["in"], "egress_lists": ["out"]}},
            }
            total = n * 4 if n > 1 else 3
            uuids = one.store(5000, total)
            with Host(plan.scratch / "capacity", one.url, config, threads=n) as host:
                [worker] = host.worker_pids()[:1] or host.pids()[1:2]
                before, cpu, began = one.costs(), host.cpu_secs(), time.monotonic()
                one.push("in", uuids)
                peaks = {"worker_mb": 0.0, "family_mb": 0.0, "threads": 0.0}
                while one.redis.llen("out") < total * 3 // 4:
                    seen = {
                        "worker_mb": _mb(worker),
                        "family_mb": sum(map(_mb, host.pids())),
                        "threads": float(len(list(Path(f"/proc/{worker}/task").iterdir()))),
                    }
                    peaks = {name: max(peak, seen[name]) for name, peak in peaks.items()}
                    if time.monotonic() - began > 120:
                        break
                    time.sleep(0.1)
                ended = wait_for(one, host, ["in"], "out", total)
                sample = costs(one, host, before, cpu, ended - began, total)
            with urllib.request.urlopen(f"{url}/peak", timeout=10) as answer:
                waiting = float(answer.read())
        table.row(f"{n} threads" if n > 1 else "1 thread").add(waiting=waiting, **sample, **peaks)
        plan.say(f"  capacity, {n} threads: {waiting:.0f} at once, {peaks['worker_mb']:.0f} MB, {peaks['threads']:.0f}")
    return [table]


@contextlib.contextmanager
def slow_server(delay_secs: float) -> Iterator[str]:
    """Run the server in a process of its own and give its URL."""
    process = subprocess.Popen(
        [sys.executable, "-m", "bench.slow_http", str(delay_secs)],
        cwd=Path(__file__).parent.parent,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    try:
        yield f"http://127.0.0.1:{int(process.stdout.readline())}"
    finally:
        process.communicate(timeout=30)


def _mb(pid: int) -> float:
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) / 1024
    return 0.0
