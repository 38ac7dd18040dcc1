"""From a plain RPUSH to the first link, on a host that has nothing to do; and what it costs to wait."""

from __future__ import annotations

import os
import random
import select
import statistics
import time
from pathlib import Path
from typing import Any

from bench.host import Host, server
from bench.plan import BenchError, Plan, Table

COLUMNS = {"p50_ms": "p50, ms", "p99_ms": "p99, ms", "worst_ms": "worst, ms", "idle_cpu": "idle, % of a core"}

#: Says when it begins, on the clock that all processes of a machine share.
_STAMP = '''"""Tells when it begins."""
import os, time

PIPE = os.open(os.environ["BENCH_PIPE"], os.O_WRONLY)

def run(vcon_uuid, link_name, opts):
    os.write(PIPE, f"{time.monotonic_ns()}\\n".encode())
    return vcon_uuid
'''


def latency(plan: Plan, lists: tuple[int, ...] = (1, 50)) -> list[Table]:
    """Measure the wake-up of an idle host, for each number of lists."""
    table = Table("latency", "from RPUSH to the first link, idle host", COLUMNS)
    with server() as one:
        for count in plan.turns(lists):
            one.redis.flushall()
            sample = _sample(plan, one, count)
            table.row(f"{count} lists" if count > 1 else "1 list").add(**sample)
            plan.say(f"  latency, {count} lists: p50 {sample['p50_ms']:.2f} ms, p99 {sample['p99_ms']:.2f} ms")
    return [table]


def _sample(plan: Plan, one: Any, lists: int) -> dict[str, float]:
    names = [f"in_{n}" for n in range(lists)]
    folder = plan.scratch / "latency"
    chains = {name: {"links": ["stamp"], "ingress_lists": [name], "egress_lists": ["out"]} for name in names}
    config = {"links": {"stamp": {"module": "links.stamp"}}, "chains": chains}
    pipe_file = plan.scratch / "latency.pipe"
    pipe = _pipe(pipe_file)
    try:
        with Host(folder, one.url, config, links={"stamp": _STAMP}, ready_lists=names, BENCH_PIPE=pipe_file) as host:
            uuids = one.store(5000, plan.count(1500 if plan.full else 500, least=10) + 20)
            chance = random.Random(1)
            waits = []
            for uuid in uuids:
                # A pause that is never the same, so that nothing can beat in time with it.
                time.sleep(chance.uniform(0.002, 0.015))
                began = time.monotonic_ns()
                one.redis.rpush(chance.choice(names), uuid)
                waits.append((_next_stamp(pipe) - began) / 1e6)
            idle = min(plan.secs, 3.0)
            cpu = host.cpu_secs() + one.costs()["server_secs"]
            time.sleep(idle)
            idle_cpu = (host.cpu_secs() + one.costs()["server_secs"] - cpu) / idle * 100
    finally:
        os.close(pipe)
    waits = waits[20:]  # the first ones import and open what is needed
    cuts = statistics.quantiles(waits, n=100, method="inclusive")
    return {"p50_ms": cuts[49], "p99_ms": cuts[98], "worst_ms": max(waits), "idle_cpu": idle_cpu, "n": len(waits)}


def _pipe(file: Path) -> int:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.unlink(missing_ok=True)
    os.mkfifo(file)
    # Open for both, so that neither side waits for the other.
    return os.open(file, os.O_RDWR)


def _next_stamp(pipe: int) -> int:
    if not select.select([pipe], [], [], 30)[0]:
        raise BenchError("latency: a pushed vCon did not reach its link within 30 s")
    return int(os.read(pipe, 200).split()[0])
