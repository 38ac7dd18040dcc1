"""How the cost of one vCon grows: with the backlog, the number of lists, and its size; and what it takes in memory."""

from __future__ import annotations

from collections.abc import Sequence

from bench import drain
from bench.host import NOOP, Host, Server, server
from bench.plan import Plan, Table
from bench.throughput import COLUMNS, Case, host

BACKLOGS = (1_000, 100_000)
LISTS = (1, 50, 500)
SIZES = (1_000, 10_000, 100_000, 1_000_000)


def growth(
    plan: Plan,
    backlogs: Sequence[int] = BACKLOGS,
    lists: Sequence[int] = LISTS,
    sizes: Sequence[int] = SIZES,
) -> list[Table]:
    """Measure the three axes, each by itself, and the memory that vCons and UUIDs take."""
    with server() as one:
        if plan.full and backlogs is BACKLOGS:
            backlogs = (*BACKLOGS, 1_000_000)
        return [_backlog(plan, one, backlogs), _lists(plan, one, lists), _sizes(plan, one, sizes), _memory(plan, one)]


def _backlog(plan: Plan, one: Server, backlogs: Sequence[int]) -> Table:
    table = Table("backlog", "UUIDs that wait meanwhile; three links that do nothing", COLUMNS)
    for backlog in plan.turns(backlogs):
        one.redis.flushall()
        supply = drain.reused(one, 5000, plan.count(5_000, least=8))
        with host(plan.scratch / "growth", one.url, Case("base"), files=False) as running:
            sample = drain.measure(plan, one, running, supply)
            n = max(8, round(sample["rate"] * plan.secs))
            sample = drain.steady(one, running, supply, plan.count(backlog, least=8), n)
        table.row(f"{backlog:,}").add(axis=float(backlog), **sample)
        plan.say(f"  {backlog:,} waiting: {sample['rate']:,.0f} vCons/s, {sample['cpu_ms']:.3f} ms")
    return table


def _lists(plan: Plan, one: Server, counts: Sequence[int]) -> Table:
    table = Table("lists", "ingress lists, each with a chain of one link that does nothing", COLUMNS)
    for count in plan.turns(counts):
        one.redis.flushall()
        names = [f"in_{n}" for n in range(count)]
        chains = {name: {"links": ["noop"], "ingress_lists": [name], "egress_lists": ["out"]} for name in names}
        config = {"links": {"noop": {"module": "links.noop"}}, "chains": chains}
        supply = drain.reused(one, 5000, plan.count(5_000, least=8))
        with Host(plan.scratch / "growth", one.url, config, links={"noop": NOOP}, ready_lists=names) as running:
            sample = drain.measure(plan, one, running, supply, lists=names)
        table.row(f"{count:,}").add(axis=float(count), **sample)
        plan.say(f"  {count:,} lists: {sample['rate']:,.0f} vCons/s, {sample['cpu_ms']:.3f} ms")
    return table


def _sizes(plan: Plan, one: Server, sizes: Sequence[int]) -> Table:
    table = Table("sizes", "bytes a vCon; links.tag and storage file", COLUMNS)
    for size in plan.turns(sizes):
        one.redis.flushall()
        with host(plan.scratch / "growth", one.url, Case("base"), files=True) as running:
            sample = drain.measure(plan, one, running, drain.fresh(one, size), least=32)
        table.row(f"{size:,}").add(axis=float(size), **sample)
        plan.say(f"  {size:,} bytes: {sample['rate']:,.0f} vCons/s, {sample['cpu_ms']:.3f} ms")
    return table


def _memory(plan: Plan, one: Server) -> Table:
    columns = {"memory_bytes": "server memory, bytes", "aof_bytes": "append-only file, bytes", "server_ms": "CPU, ms"}
    table = Table("memory", "what one takes on the server to be stored, or pushed", columns)
    n = plan.count(20_000, least=100)
    one.redis.flushall()
    for name, count, put in (
        ("a vCon of 5,000 bytes", n, lambda: one.store(5_000, n)),
        ("a vCon of 50,000 bytes", n // 10, lambda: one.store(50_000, n // 10)),
        ("a UUID in a list", n, lambda: one.push("in", [f"{at:08x}-0000-4000-8000-000000000000" for at in range(n)])),
    ):
        memory, before = one.redis.info("memory")["used_memory"], one.costs()
        put()
        after = one.costs()
        table.row(name).add(
            memory_bytes=(one.redis.info("memory")["used_memory"] - memory) / count,
            aof_bytes=(after["aof_bytes"] - before["aof_bytes"]) / count,
            server_ms=(after["server_main_secs"] - before["server_main_secs"]) * 1000 / count,
            n=float(count),
        )
    return table
