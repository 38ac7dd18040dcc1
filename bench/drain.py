"""A batch of vCons goes through a host: how fast, and what it costs."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from bench.host import Host, Server, dead_letters
from bench.plan import BenchError, Plan

#: Gives so many UUIDs whose vCons are in Redis.
Supply = Callable[[int], list[str]]

_POLL_SECS = 0.005
_SLOWEST_SECS = 120.0


def reused(server: Server, size: int, n: int) -> Supply:
    """Give the same vCons again and again: for links that change nothing."""
    pool = server.store(size, n)
    return lambda wanted: (pool * (wanted // len(pool) + 1))[:wanted]


def fresh(server: Server, size: int) -> Supply:
    """Give vCons that were never seen: for links that change them, and storages."""
    return lambda wanted: server.store(size, wanted)


def measure(
    plan: Plan,
    server: Server,
    host: Host,
    supply: Supply,
    *,
    lists: Sequence[str] = ("in",),
    egress: str = "out",
    least: int = 64,
) -> dict[str, float]:
    """Warm up until a batch takes a while, then measure one that takes about `plan.secs`."""
    n = plan.count(least, least=min(least, 8))
    enough = min(0.4, plan.secs / 4)
    sample = batch(server, host, supply(n), lists=lists, egress=egress)
    while sample["secs"] < enough:
        n *= 2 if sample["secs"] > enough / 4 else 4
        sample = batch(server, host, supply(n), lists=lists, egress=egress)
    for _ in range(2):
        sample = batch(server, host, supply(max(n, round(sample["rate"] * plan.secs))), lists=lists, egress=egress)
        if sample["secs"] > 0.7 * plan.secs:
            break
        # The warm-up was slower than what came then, so this run was too short to be exact.
    return sample


def batch(
    server: Server, host: Host, uuids: Sequence[str], *, lists: Sequence[str] = ("in",), egress: str = "out"
) -> dict[str, float]:
    """Push UUIDs, spread over *lists*, and measure from the first push to the last delivery."""
    server.redis.delete(egress)
    before, cpu = server.costs(), host.cpu_secs()
    began = time.monotonic()
    for at, name in enumerate(lists):
        server.push(name, uuids[at :: len(lists)])
    ended = wait_for(server, host, lists, egress, len(uuids))
    return costs(server, host, before, cpu, ended - began, len(uuids))


def steady(
    server: Server, host: Host, supply: Supply, backlog: int, n: int, *, name: str = "in", egress: str = "out"
) -> dict[str, float]:
    """Measure *n* deliveries while about *backlog* UUIDs wait, all the time."""
    server.redis.delete(egress, name)
    server.push(name, supply(backlog))
    before, cpu, began = server.costs(), host.cpu_secs(), time.monotonic()
    first = server.redis.llen(egress)
    done = first
    while done < first + n:
        short = backlog - server.redis.llen(name)
        if short > 0:
            server.push(name, supply(short))
        time.sleep(_POLL_SECS)
        done = server.redis.llen(egress)
        if time.monotonic() - began > _SLOWEST_SECS:
            raise BenchError(f"{host.folder.name}: {done - first} of {n} delivered: {dead_letters(server.redis, name)}")
    sample = costs(server, host, before, cpu, time.monotonic() - began, done - first)
    server.redis.delete(name)
    return sample


def wait_for(server: Server, host: Host, lists: Sequence[str], egress: str, n: int) -> float:
    """Wait until *n* are delivered and return the moment; BenchError if one is dead instead."""
    look_at = time.monotonic() + 1

    def done() -> bool:
        nonlocal look_at
        if time.monotonic() > look_at:
            # Seldom, since to look is work for the server that is measured.
            look_at = time.monotonic() + 1
            whys = [why for why in (dead_letters(server.redis, name) for name in lists[:8]) if why]
            if whys:
                raise BenchError(f"{host.folder.name}: {server.redis.llen(egress)} of {n} delivered, but {whys[0]}")
        return server.redis.llen(egress) >= n

    return host.wait(done, _SLOWEST_SECS, f"not all of {n} were delivered", _POLL_SECS)


def costs(server: Server, host: Host, before: dict[str, float], cpu: float, secs: float, n: int) -> dict[str, float]:
    """Return rate and costs of one vCon, of *n* that took *secs* since the counters were read."""
    used = {name: value - before[name] for name, value in server.costs().items()}
    return {
        "rate": n / secs,
        "cpu_ms": (host.cpu_secs() - cpu) * 1000 / n,
        "server_ms": used["server_secs"] * 1000 / n,
        "server_main_ms": used["server_main_secs"] * 1000 / n,
        "aof_bytes": used["aof_bytes"] / n,
        "net_bytes": used["net_bytes"] / n,
        "commands": used["commands"] / n,
        "secs": secs,
        "n": float(n),
    }
