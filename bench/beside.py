"""Ours beside others: task queues on the same server with work that does nothing; what a plain loop loses."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import replace

from bench import drain
from bench.host import Server, server
from bench.losses import losses
from bench.peers import run_peers
from bench.peers.known import PEERS
from bench.plan import Plan, Table
from bench.throughput import Case, host

OURS = "conserver, 3 no-op links"
COLUMNS = {
    "rate": "a second",
    "cpu_ms": "workers' CPU, ms",
    "server_ms": "server CPU, ms",
    "ratio": "ours is so many times as fast",
}


def peers(plan: Plan, names: Sequence[str] | None = None) -> list[Table]:
    """Measure each of the others between two runs of ours, which its ratio is taken from."""
    table = Table("peers", "no-op work, two worker processes, beside task queues", COLUMNS)
    table.notes.append("theirs is a small message; ours a vCon in a chain, which is claimed, looked up, and delivered")
    table.notes.append("the server keeps an append-only file; who loses a task when a worker is killed was not asked")
    with server() as one:
        ours = table.row(OURS).add(**_ours(plan, one))
        for name in [peer.name for peer in PEERS] if names is None else names:
            found = run_peers(one.tcp_url(), full=plan.full, scratch=plan.scratch / "peers", names=[name])
            ours.add(**_ours(plan, one))
            near = statistics.mean(ours.runs["rate"][-2:])
            for peer in found:
                row = table.row(f"{peer['name']} {peer['version']}, {peer['variant']}", note=peer["error"] or "")
                for rate in peer["tasks_per_sec"]:
                    row.add(rate=rate, ratio=near / rate)
                if row.runs:
                    row.add(cpu_ms=peer["cpu_ms_per_task"] or 0.0, server_ms=peer["server_ms_per_task"])
                plan.say(f"  {row.name}: {row.median('rate'):,.0f}/s" if row.runs else f"  {row.name}: {row.note}")
    return [table]


def lost(plan: Plan) -> list[Table]:
    """Count what a loop around a blocking pop loses in trouble, and what a conserver does."""
    columns = {"lost": "lost", "dead": "dead letters", "twice": "delivered twice"}
    table = Table("losses", "what is lost when something dies in the middle, 2 workers with 8 threads", columns)
    for found in losses(plan.scratch, plan.full):
        row = table.row(f"{found['fault']}: {found['worker']}, {found['n']:,} vCons")
        for measure in columns:
            row.runs[measure] = [float(count) for count in found[measure]]
        plan.say(f"  {row.name}: {found['lost']} lost")
    return [table]


def _ours(plan: Plan, one: Server) -> dict[str, float]:
    one.redis.flushall()
    supply = drain.reused(one, 5000, plan.count(8_000, least=8))
    with host(plan.scratch / "peers", one.tcp_url(), Case(OURS, workers=2), files=False) as running:
        # Half as long as elsewhere: there are many of these.
        sample = drain.measure(replace(plan, secs=plan.secs / 2), one, running, supply)
    plan.say(f"  {OURS}: {sample['rate']:,.0f} vCons/s")
    return sample
