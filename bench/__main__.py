"""`python -m bench [--full] [--only NAME ...] [--out FOLDER]`: measure, show tables, keep a JSON file and plots."""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from redis.exceptions import RedisError

from bench import report
from bench.api import api
from bench.beside import lost, peers
from bench.capacity import capacity
from bench.growth import growth
from bench.host import server
from bench.latency import latency
from bench.limit import limit
from bench.plan import BenchError, Plan, Table
from bench.recovery import dead_letters, recovery, startup
from bench.storages import storages
from bench.throughput import noop, tag_and_file
from conserver.errors import ConserverError

ROOT = Path(__file__).resolve().parent.parent

SCENARIOS: dict[str, Callable[[Plan], list[Table]]] = {
    "noop": noop,
    "limit": limit,
    "tag_and_file": tag_and_file,
    "peers": peers,
    "latency": latency,
    "capacity": capacity,
    "dead_letters": dead_letters,
    "recovery": recovery,
    "startup": startup,
    "growth": growth,
    "api": api,
    "storages": storages,
    "losses": lost,
}
#: Takes minutes and hardly changes, so it is not part of the quick ones.
_ON_DEMAND = {"losses"}
#: What is measured only once in the quick part, since a run says enough.
_ONCE = {"growth", "capacity", "latency"}


def main(words: list[str] | None = None) -> int:
    """Run the scenarios that *words* ask for; 1 if one of them could not be measured."""
    parser = argparse.ArgumentParser("python -m bench", description="Measure the conserver on this machine.")
    parser.add_argument("--full", action="store_true", help="all cases and more time for each")
    parser.add_argument("--only", nargs="+", choices=SCENARIOS, metavar="NAME", help=" ".join(SCENARIOS))
    parser.add_argument("--secs", type=float, help="seconds a run aims at (3; with --full 5)")
    parser.add_argument("--repeats", type=int, help="runs of each case (3; with --full 5)")
    parser.add_argument("--out", type=Path, default=ROOT / "bench" / "results", help="folder for the JSON file")
    parser.add_argument("--plots", type=Path, default=ROOT / "docs" / "plots", help="folder for the SVG plots")
    parser.add_argument("--scratch", type=Path, default=ROOT / "build" / "bench", help="folder that is written to")
    chosen = parser.parse_args(words)
    if not Path("/proc/self/stat").exists():
        parser.error("processor time and memory of processes are read from /proc: this needs Linux")
    secs = chosen.secs or (5.0 if chosen.full else 3.0)
    repeats = chosen.repeats or (5 if chosen.full else 3)
    scratch = chosen.scratch.resolve()

    tables: dict[str, Table] = {}
    failed = False
    began = time.monotonic()
    for name in chosen.only or [name for name in SCENARIOS if chosen.full or name not in _ON_DEMAND]:
        once = name in _ONCE and not chosen.full and not chosen.repeats
        plan = Plan(scratch, secs=secs, repeats=1 if once else repeats, full=chosen.full, say=_say)
        _say(f"{name} ({time.monotonic() - began:.0f} s)")
        try:
            found = SCENARIOS[name](plan)
        except (BenchError, ConserverError, RedisError, OSError, subprocess.SubprocessError) as error:
            _say(f"  {name} could not be measured: {error}")
            failed = True
            continue
        tables |= {table.name: table for table in found}
    shutil.rmtree(scratch, ignore_errors=True)

    print()
    for table in tables.values():
        print(report.text_of(table))
    print(report.goals_table(tables))
    plan = Plan(scratch, secs=secs, repeats=repeats, full=chosen.full)
    with server() as one:
        kept = report.keep(chosen.out, report.document(plan, list(tables.values()), one))
    drawn = report.plot(chosen.plots, tables)
    print(f"{kept}, {len(drawn)} plots in {chosen.plots}, {time.monotonic() - began:.0f} s")
    return int(failed)


def _say(words: str) -> None:
    print(words, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
