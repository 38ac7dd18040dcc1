"""After something has ended: dead letters queued again, the vCons of a killed worker, a start from nothing."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
import uuid as uuids
from collections import Counter
from pathlib import Path
from typing import Any

from bench.host import NOOP, Host, Server, server
from bench.plan import BenchError, Plan, Table
from conserver.claims import dead_list, own_key, reason
from conserver.queue import Queue

#: Hangs at its first begin with a vCon, and is done at once at the second.
_TWICE = '''"""Waits at the first begin, and tells of each."""
import os, time

LOG = os.open(os.environ["BENCH_LOG"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
SEEN = os.environ["BENCH_SEEN"]

def run(vcon_uuid, link_name, opts):
    os.write(LOG, f"{vcon_uuid} {time.monotonic_ns()}\\n".encode())
    try:
        os.close(os.open(os.path.join(SEEN, vcon_uuid), os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return vcon_uuid
    time.sleep(300)
'''


def dead_letters(plan: Plan) -> list[Table]:
    """Queue dead letters again, with their reasons and without."""
    table = Table("dead_letters", "dead letters queued again", {"rate": "a second", "server_ms": "server CPU, ms"})
    n = plan.count(100_000, least=100)
    with server() as one:
        queue = Queue(one.url, "bench")
        for name, with_reasons, by_command in plan.turns(
            (
                ("with reasons", True, False),
                ("without reasons", False, False),
                ("with reasons, by `conserver dlq retry`", True, True),
            )
        ):
            one.redis.flushall()
            _bury(one, n, with_reasons)
            before, began = one.costs(), time.monotonic()
            moved = _retry_by_command(plan.scratch, one) if by_command else queue.retry("in", n)
            secs = time.monotonic() - began
            if one.redis.llen("in") != n or moved not in (n, None):
                raise BenchError(f"{one.redis.llen('in')} of {n} dead letters were moved")
            used = one.costs()["server_secs"] - before["server_secs"]
            table.row(name).add(rate=n / secs, server_ms=used * 1000 / n, secs=secs, n=float(n))
            plan.say(f"  dead letters, {name}: {n / secs:,.0f} a second")
    return [table]


def _bury(one: Server, n: int, with_reasons: bool) -> None:
    why = reason("ValueError: the service said no", link="transcribe", chain="main", worker="w", at="2026-01-01T00:00")
    entries = [str(uuids.uuid4()) for _ in range(n)]
    one.push(dead_list("in"), entries)
    if with_reasons:
        for at in range(0, n, 5000):
            one.redis.hset(own_key("in", "dead"), mapping=dict.fromkeys(entries[at : at + 5000], why))


def _retry_by_command(scratch: Path, one: Server) -> None:
    scratch.mkdir(parents=True, exist_ok=True)
    _command(scratch, ["dlq", "retry", "in"], REDIS_URL=one.url)


def _command(folder: Path, words: list[str], **env: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "conserver", *words],
        cwd=folder,
        env={**os.environ, **env},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise BenchError(f"conserver {' '.join(words)} failed: {done.stdout}{done.stderr}")


def recovery(plan: Plan) -> list[Table]:
    """Kill a worker with `kill -9`, or a whole host, and measure until its vCons begin again."""
    columns = {"first_ms": "first again, ms", "last_ms": "last again, ms"}
    table = Table("recovery", "from kill -9 to the links running again, 8 vCons in hand", columns)
    table.notes.append("a worker: they run in quarantine, alone, since one of them may have been the cause")
    table.notes.append("a host: another one waits for the lease, 10 s by default")
    for what in plan.turns(("a worker", "a host") if plan.full else ("a worker",)):
        with server() as one:
            sample = _killed(plan, one, whole_host=what == "a host")
        table.row(what).add(**sample)
        plan.say(f"  recovery of {what}: {sample['first_ms']:.0f} to {sample['last_ms']:.0f} ms")
    return [table]


def _killed(plan: Plan, one: Server, *, whole_host: bool) -> dict[str, float]:
    log, seen = plan.scratch / "recovery.log", plan.scratch / "recovery.seen"
    seen.mkdir(parents=True, exist_ok=True)
    for old in seen.iterdir():
        old.unlink()
    log.unlink(missing_ok=True)
    log.touch()
    config = {
        "links": {"twice": {"module": "links.twice"}},
        "chains": {"main": {"links": ["twice"], "ingress_lists": ["in"], "egress_lists": ["out"]}},
    }
    env: dict[str, Any] = {"threads": 8, "links": {"twice": _TWICE}, "BENCH_LOG": log, "BENCH_SEEN": seen}
    pushed = one.store(5000, 8)
    with contextlib.ExitStack() as stack:
        host = stack.enter_context(Host(plan.scratch / "recovery", one.url, config, **env))
        one.push("in", pushed)
        host.wait(lambda: len(_begins(log)) == len(pushed), 30, "not all began")
        if whole_host:
            other = stack.enter_context(Host(plan.scratch / "recovery_other", one.url, config, **env))
            # It judges nobody before it has been heard for a whole lease.
            time.sleep(11)
        victims = host.pids() if whole_host else host.worker_pids()
        if not victims:
            raise BenchError("the host does not say which process is its worker")
        killed_ns = time.monotonic_ns()
        for pid in victims:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        (other if whole_host else host).wait(lambda: len(_again(log)) == len(pushed), 90, "not all began again", 0.02)
        again = sorted(_again(log).values())
    return {"first_ms": (again[0] - killed_ns) / 1e6, "last_ms": (again[-1] - killed_ns) / 1e6}


def _begins(log: Path) -> list[tuple[str, int]]:
    return [(uuid, int(at)) for uuid, _, at in (line.partition(" ") for line in log.read_text().splitlines())]


def _again(log: Path) -> dict[str, int]:
    seen: Counter[str] = Counter()
    again = {}
    for uuid, at in _begins(log):
        seen[uuid] += 1
        if seen[uuid] == 2:
            again[uuid] = at
    return again


def startup(plan: Plan) -> list[Table]:
    """Start processes, and measure until they are of use."""
    table = Table("startup", "starts", {"ms": "ms"})
    folder = plan.scratch / "startup"
    config = {
        "links": {"noop": {"module": "links.noop"}},
        "chains": {"main": {"links": ["noop"], "ingress_lists": ["in"], "egress_lists": ["out"]}},
    }
    with server() as one:
        [uuid] = one.store(5000, 1)
        for _ in range(max(1, plan.repeats + 2) if plan.scale == 1 else 1):
            one.redis.delete("out")
            one.push("in", [uuid])
            host = Host(folder, one.url, config, links={"noop": NOOP})
            began = time.monotonic()
            with host:
                ended = host.wait(lambda: one.redis.llen("out"), 60, "nothing was delivered", 0.001)
            table.row("`conserver worker` to its first delivery").add(ms=(ended - began) * 1000)
            for words in (["--help"], ["check", "config.yml"]):
                began = time.monotonic()
                _command(folder, words)
                table.row(f"`conserver {' '.join(words)}`").add(ms=(time.monotonic() - began) * 1000)
    plan.say(f"  startup: {table.rows[0].median('ms'):.0f} ms to the first delivery")
    return [table]
