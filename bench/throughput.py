"""vCons a second, and what one costs, with one axis varied at a time around a base."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench import drain
from bench.host import NOOP, Host, server
from bench.plan import Plan, Table

COLUMNS = {"rate": "vCons/s", "cpu_ms": "our CPU, ms", "server_ms": "server CPU, ms"}


@dataclass(frozen=True)
class Case:
    """One way to run one of the two chains; the defaults are the base."""

    name: str
    workers: int = 1
    threads: int = 16
    log_level: str = "WARNING"
    large_config: bool = False
    size: int = 5000
    disk: bool = False
    fsync: bool = False
    full: bool = False
    """Only measured when everything is."""


NOOP_CASES = (
    Case("base"),
    Case("2 workers", workers=2),
    Case("1 thread", threads=1),
    Case("8 threads", threads=8),
    Case("64 threads", threads=64),
    Case("INFO", log_level="INFO"),
    Case("large config", large_config=True),
    Case("50 kB", size=50_000),
    Case("2 workers, INFO", workers=2, log_level="INFO", full=True),
)
FILE_CASES = (
    Case("base"),
    Case("2 workers", workers=2),
    Case("1 thread", threads=1),
    Case("on a disk", disk=True),
    Case("8 threads", threads=8, full=True),
    Case("64 threads", threads=64, full=True),
    Case("INFO", log_level="INFO", full=True),
    Case("large config", large_config=True, full=True),
    Case("50 kB", size=50_000, full=True),
    Case("on a disk, fsync: true", disk=True, fsync=True),
    Case("on a disk, fsync: true, 1 thread", threads=1, disk=True, fsync=True, full=True),
)
#: A disk is slower the more was written to it just before, so the base leaves it out.
_MEMORY = Path(f"/dev/shm/conserver-bench-{os.getpid()}")
BASE = "base: 1 worker, 16 threads, small config, 5 kB, LOG_LEVEL=WARNING, metrics on"


def noop(plan: Plan, cases: Sequence[Case] = NOOP_CASES) -> list[Table]:
    """Measure a chain of three links that do nothing."""
    table = Table("noop", "three links that do nothing", COLUMNS, notes=[BASE])
    return [_measure(plan, table, cases, files=False)]


def tag_and_file(plan: Plan, cases: Sequence[Case] = FILE_CASES) -> list[Table]:
    """Measure a chain that tags the vCon and writes it to a file."""
    table = Table("tag_and_file", "links.tag and storage file", COLUMNS, notes=[f"{BASE}, files in memory"])
    try:
        return [_measure(plan, table, cases, files=True)]
    finally:
        shutil.rmtree(_MEMORY, ignore_errors=True)


def _measure(plan: Plan, table: Table, cases: Sequence[Case], *, files: bool) -> Table:
    wanted = [case for case in cases if plan.full or not case.full]
    with server() as redis:
        for case in wanted:
            table.row(case.name)
        for case in plan.turns(wanted):
            redis.redis.flushall()
            with host(plan.scratch / table.name, redis.url, case, files=files) as one:
                count = plan.count(8_000 if case.size < 20_000 else 2_000, least=8)
                supply = drain.fresh(redis, case.size) if files else drain.reused(redis, case.size, count)
                sample = drain.measure(plan, redis, one, supply)
            table.row(case.name).add(**sample)
            plan.say(f"  {table.name}, {case.name}: {sample['rate']:,.0f} vCons/s, {sample['cpu_ms']:.3f} ms CPU")
    return table


def host(folder: Path, url: str, case: Case, *, files: bool) -> Host:
    """Return a conserver for one case, not yet started."""
    config = config_of(folder, case, files=files)
    env = {"workers": case.workers, "threads": case.threads, "LOG_LEVEL": case.log_level}
    return Host(folder, url, config, links={"noop": NOOP}, **env)


def config_of(folder: Path, case: Case, *, files: bool) -> dict[str, Any]:
    """Return the config of one case: the chain that is measured, and with a large config many others."""
    links: dict[str, Any] = {f"noop_{n}": {"module": "links.noop"} for n in (1, 2, 3)}
    storages: dict[str, Any] = {}
    chain: dict[str, Any] = {"links": list(links), "ingress_lists": ["in"], "egress_lists": ["out"], "enabled": 1}
    if files:
        links["tag"] = {"module": "links.tag", "options": {"tags": ["bench:yes", "size:small"]}}
        options = {"path": str((folder if case.disk else _MEMORY) / "vcons"), "fsync": case.fsync}
        storages["file"] = {"module": "storages.file", "options": options}
        chain |= {"links": ["tag"], "storages": ["file"]}
    chains = {"main": chain}
    if case.large_config:
        # As large as the example of the existing conserver: some 6 kB.
        for n in range(30):
            links[f"other_{n}"] = {"module": "links.tag", "options": {"tags": [f"a{n}:x", f"b{n}:y", f"c{n}:z"]}}
        for n in range(8):
            options = {"path": str(folder / f"other_{n}"), "organize_by_date": True, "compression": True}
            storages[f"other_{n}"] = {"module": "storages.file", "options": options}
        for n in range(15):
            chains[f"other_{n}"] = {
                "links": [f"other_{n}", f"other_{n + 15}"],
                "storages": [f"other_{n % 8}"],
                "ingress_lists": [f"other_in_{n}"],
                "egress_lists": [f"other_out_{n}"],
                "enabled": 1,
            }
    return {"links": links, "storages": storages, "chains": chains}
