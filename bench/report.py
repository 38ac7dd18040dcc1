"""What is shown and kept of a benchmark: tables, what was to be reached, a JSON file, plots."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from bench.beside import OURS
from bench.host import Server
from bench.plan import Plan, Row, Table
from bench.plots import Bar, bars, lines, number

#: The existing conserver, measured earlier on the same kind of machine: vCons/s of one worker process with one thread.
EXISTING = {"noop": 376.0, "noop_info": 313.0, "tag_and_file": 200.0}
#: And of its API: requests/s of one process with vCons of 5 kB, measured on another day.
EXISTING_API = {"create": 750.0, "read": 2050.0}
_LIBRARIES = ("redis", "hiredis", "msgspec", "pydantic", "httpx", "fastapi", "uvicorn", "uvloop", "httptools")
_LIBRARIES = (*_LIBRARIES, "psycopg", "boto3", "moto", "paramiko", "nats-py")
_EXISTING_NOTE = "the existing conserver (measured earlier on the same kind of machine)"

Tables = dict[str, Table]


def text_of(table: Table) -> str:
    """Write a table for the terminal: the median, the least and the most of each measure, and how many runs."""
    head = ["", *table.columns.values(), "runs"]
    lines_ = [head]
    for row in table.rows:
        runs = max((len(values) for values in row.runs.values()), default=0)
        lines_.append([row.name, *(_cell(row, measure) for measure in table.columns), str(runs or row.note)])
    widths = [max(len(line[at]) for line in lines_) for at in range(len(head))]
    shown = [
        "  ".join(
            cell.ljust(w) if at == 0 else cell.rjust(w) for at, (cell, w) in enumerate(zip(line, widths, strict=True))
        )
        for line in lines_
    ]
    rule = "-" * len(shown[0])
    notes = [f"({note})" for note in table.notes]
    return "\n".join([table.title, rule, shown[0], rule, *shown[1:], *notes, ""])


def _cell(row: Row, measure: str) -> str:
    values = row.runs.get(measure)
    if not values:
        return "-"
    middle = number(row.median(measure))
    return middle if len(values) == 1 else f"{middle} ({number(min(values))}..{number(max(values))})"


@dataclass(frozen=True)
class Goal:
    """Something that was to be reached; `reached` gives what was measured and whether that is enough."""

    what: str
    to_reach: str
    reached: Callable[[Tables], tuple[float, bool]]


def _median(tables: Tables, table: str, row: str, measure: str) -> float:
    found = next(one for one in tables[table].rows if one.name == row)
    return found.median(measure)


def _at_least(least: float, value: Callable[[Tables], float]) -> Callable[[Tables], tuple[float, bool]]:
    return lambda tables: ((found := value(tables)), found >= least)


def _under(most: float, value: Callable[[Tables], float]) -> Callable[[Tables], tuple[float, bool]]:
    return lambda tables: ((found := value(tables)), found < most)


def _least_ratio(tables: Tables) -> float:
    return min(row.median("ratio") for row in tables["peers"].rows if "ratio" in row.runs)


GOALS = (
    Goal(
        "three no-op links, WARNING: times the existing conserver",
        "at least 40",
        _at_least(40, lambda t: _median(t, "noop", "base", "rate") / EXISTING["noop"]),
    ),
    Goal(
        "three no-op links, INFO: times the existing conserver",
        "at least 20",
        _at_least(20, lambda t: _median(t, "noop", "INFO", "rate") / EXISTING["noop_info"]),
    ),
    Goal("our CPU for one of them, ms", "under 0.07", _under(0.07, lambda t: _median(t, "noop", "base", "cpu_ms"))),
    Goal(
        "large config: our CPU, part of that with a small one",
        "under 1.1",
        _under(1.1, lambda t: _median(t, "noop", "large config", "cpu_ms") / _median(t, "noop", "base", "cpu_ms")),
    ),
    Goal(
        "tag and file: times the existing conserver",
        "at least 10",
        _at_least(10, lambda t: _median(t, "tag_and_file", "base", "rate") / EXISTING["tag_and_file"]),
    ),
    Goal(
        "two workers, no-op: times the fastest task queue",
        "at least 4",
        _at_least(4, _least_ratio),
    ),
    Goal(
        "one worker, no-op: part of a bare reliable loop",
        "to be known",
        _at_least(0, lambda t: _median(t, "noop", "base", "rate") / t["limit"].rows[1].median("rate")),
    ),
    Goal(
        "dead letters queued again, a second",
        "at least 100,000",
        _at_least(100_000, lambda t: _median(t, "dead_letters", "with reasons", "rate")),
    ),
    Goal(
        "512 chains that wait for HTTP, MB of their process",
        "under 200",
        _under(200, lambda t: _median(t, "capacity", "512 threads", "worker_mb")),
    ),
    Goal(
        "RPUSH to the first link, idle: p50, ms",
        "under 2",
        _under(2, lambda t: _median(t, "latency", "1 list", "p50_ms")),
    ),
    Goal("the same: p99, ms", "under 10", _under(10, lambda t: _median(t, "latency", "1 list", "p99_ms"))),
    Goal(
        "API, creates of 5 kB: times the existing conserver",
        "at least 2.5",
        _at_least(2.5, lambda t: _median(t, "api", "create, 5 kB", "rate") / EXISTING_API["create"]),
    ),
    Goal(
        "API, reads of 5 kB: times the existing conserver",
        "at least 2",
        _at_least(2, lambda t: _median(t, "api", "read, 5 kB", "rate") / EXISTING_API["read"]),
    ),
)


def goals_table(tables: Tables) -> str:
    """Say of each goal whose measurements are there whether it is reached."""
    shown = []
    for goal in GOALS:
        try:
            value, enough = goal.reached(tables)
        except (KeyError, StopIteration, IndexError, ValueError):
            continue  # not measured this time
        shown.append(f"{'reached' if enough else 'NOT YET'}  {goal.what}: {number(value)} ({goal.to_reach})")
    if not shown:
        return ""
    return "\n".join(["what was to be reached", "----------------------", *shown, f"({_EXISTING_NOTE})", ""])


def document(plan: Plan, tables: Sequence[Table], server: Server) -> dict[str, Any]:
    """Return all that is kept: every run of every case, and on what it was measured."""
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "revision": revision(),
        "machine": {
            "system": platform.platform(),
            "processor": _processor(),
            "cores": len(os.sched_getaffinity(0)),
            "load": os.getloadavg(),
            "python": platform.python_version(),
            "server": server.version(),
            "libraries": {name: _version(name) for name in _LIBRARIES},
        },
        "plan": {"secs": plan.secs, "repeats": plan.repeats, "full": plan.full},
        "tables": [asdict(table) for table in tables],
    }


def revision() -> str:
    """Return the revision of the project, with a plus if files differ from it; "unknown" outside of git."""
    folder = Path(__file__).parent
    try:
        said = subprocess.run(
            ["git", "describe", "--always", "--dirty=+", "--exclude=*"],
            cwd=folder,
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return said.stdout.strip()


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "none"


def keep(folder: Path, kept: dict[str, Any]) -> Path:
    """Write the JSON file and return its path."""
    folder.mkdir(parents=True, exist_ok=True)
    stamp = kept["date"].replace(":", "").replace("+0000", "Z")
    file = folder / f"{stamp}-{kept['revision'].rstrip('+')}.json"
    file.write_text(json.dumps(kept, indent=1) + "\n")
    return file


def plot(folder: Path, tables: Tables) -> list[Path]:
    """Draw what there are tables for."""
    drawn = {}
    if "noop" in tables:
        # What comes before the colon is the short name of a bare loop.
        limits = (
            [_bar(row, row.name.partition(":")[0], other=True) for row in tables["limit"].rows]
            if "limit" in tables
            else []
        )
        drawn["throughput"] = bars(
            "Three links that do nothing",
            "vCons a second",
            [_existing(EXISTING["noop"]), *map(_bar, tables["noop"].rows), *limits],
        )
    if "tag_and_file" in tables:
        rows = [_existing(EXISTING["tag_and_file"]), *map(_bar, tables["tag_and_file"].rows)]
        drawn["tag-and-file"] = bars("links.tag and storage file", "vCons a second", rows)
    if "peers" in tables:
        measured = sorted((row for row in tables["peers"].rows if row.runs), key=lambda row: row.median("rate"))
        rows = [_bar(row, other=row.name != OURS) for row in measured]
        drawn["task-queues"] = bars("No-op work with two worker processes, beside task queues", "a second", rows)
    if "api" in tables:
        existing = [_existing(rate, f"the existing conserver, {name}") for name, rate in EXISTING_API.items()]
        rows = [_bar(row, other=row.name.endswith("bare")) for row in tables["api"].rows]
        drawn["api"] = bars("The HTTP API, one process, 16 connections", "requests a second", [*existing, *rows])
    if "storages" in tables:
        measured = [row for row in tables["storages"].rows if row.runs]
        rows = [
            bar
            for row in measured
            for bar in (
                _bar(row, measure="many"),
                _bar(row, f"{row.name}, bare loop", measure="many_bare", other=True),
            )
        ]
        drawn["storages"] = bars("Saves of vCons of 5 kB with 16 threads", "saves a second", rows)
    for name, title, label in (
        ("sizes", "What one vCon costs, by its size (links.tag and storage file)", "bytes a vCon"),
        ("lists", "What one vCon costs, by the number of lists", "ingress lists"),
        ("backlog", "What one vCon costs, by what waits behind it", "UUIDs that wait"),
    ):
        if name in tables:
            rows_ = sorted(tables[name].rows, key=lambda row: row.median("axis"))
            series = {
                "our processes": [(row.median("axis"), row.median("cpu_ms")) for row in rows_],
                "the server": [(row.median("axis"), row.median("server_ms")) for row in rows_],
            }
            drawn[f"cost-by-{name}"] = lines(title, label, "ms of a processor", series)
    folder.mkdir(parents=True, exist_ok=True)
    for name, svg in drawn.items():
        (folder / f"{name}.svg").write_text(svg)
    return [folder / f"{name}.svg" for name in drawn]


def _bar(row: Row, label: str = "", *, measure: str = "rate", other: bool = False) -> Bar:
    runs = row.runs[measure]
    return Bar(label or row.name, row.median(measure), min(runs), max(runs), other)


def _existing(rate: float, label: str = "the existing conserver, 1 worker") -> Bar:
    return Bar(label, rate, rate, rate, True)
