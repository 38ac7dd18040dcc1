"""What measured costs mean for a number of vCons a day: `python -m bench.scaling RESULT.json`.

With `--write docs/scaling.md`, what stands between the two marks of the page is replaced.
"""

from __future__ import annotations

import argparse
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.plan import Row
from bench.plots import number

#: How far a core or a server's thread is loaded on purpose: above this, waiting times grow without measure.
SHARE = 0.7
#: Threads of one worker process that wait at the same time; measured in the scenario `capacity`.
THREADS = 512
#: `VCON_REDIS_EXPIRY`: so long a copy stays in Redis after a storage holds it.
EXPIRY_SECS = 3600
BEGIN, END = "<!-- numbers: written by bench/scaling.py -->", "<!-- end of numbers -->"
VOLUMES = (("10,000 a day", 10_000 / 86400), ("1 million a day", 1e6 / 86400), ("1 million an hour", 1e6 / 3600))
VOLUMES = (*VOLUMES, ("10 million an hour", 1e7 / 3600))


@dataclass(frozen=True)
class Costs:
    """What one vCon of 5 kB costs in one kind of chain; `wait_secs` is how long its links wait for others."""

    name: str
    cpu_ms: float
    server_ms: float
    aof_bytes: float
    net_bytes: float
    memory_bytes: float
    wait_secs: float = 0.0


def costs_of(kept: dict[str, Any]) -> list[Costs]:
    """Read the costs of three kinds of chain from what a benchmark has kept."""
    rows = {(t["name"], r["name"]): Row(r["name"], r["runs"]) for t in kept["tables"] for r in t["rows"]}
    memory = rows["memory", "a vCon of 5,000 bytes"], rows["memory", "a UUID in a list"]
    held = sum(row.median("memory_bytes") for row in memory)
    arrival = sum(row.median("aof_bytes") for row in memory)
    stored_ms = memory[0].median("server_ms")

    def costs(name: str, row: Row) -> Costs:
        # Who stores the vCon and pushes its UUID sends both once; what the run itself costs is added to it.
        aof, net = row.median("aof_bytes") + arrival, row.median("net_bytes") + arrival
        return Costs(name, row.median("cpu_ms"), row.median("server_main_ms") + stored_ms, aof, net, held)

    light = costs("three links that do nothing, INFO", rows["noop", "INFO"])
    files = costs("`tag`, storage `file`", rows["tag_and_file", "base"])
    webhook = next(row for (table, _), row in rows.items() if table == "capacity")
    model = Costs(
        "`tag`, a call that takes 5 s, storage `file`",
        files.cpu_ms + webhook.median("cpu_ms"),
        files.server_ms + webhook.median("server_main_ms"),
        files.aof_bytes + webhook.median("aof_bytes"),
        files.net_bytes + webhook.median("net_bytes"),
        held,
        wait_secs=5.0,
    )
    return [light, files, model]


@dataclass(frozen=True)
class Needs:
    """What a rate needs; processes and servers are whole ones, loaded to SHARE."""

    processes: int
    threads: int
    server_share: float
    servers: int
    memory_gb: float
    aof_mb: float
    net_mb: float


def needs(costs: Costs, a_sec: float) -> Needs:
    """Return what *a_sec* vCons a second need."""
    waiting = round(a_sec * (costs.wait_secs + costs.cpu_ms / 1000 / SHARE))
    by_cpu = math.ceil(a_sec * costs.cpu_ms / 1000 / SHARE)
    server_share = a_sec * costs.server_ms / 1000
    return Needs(
        processes=max(1, by_cpu, math.ceil(waiting / THREADS)),
        threads=max(1, waiting),
        server_share=server_share,
        servers=max(1, math.ceil(server_share / SHARE)),
        memory_gb=a_sec * EXPIRY_SECS * costs.memory_bytes / 1e9,
        aof_mb=a_sec * costs.aof_bytes / 1e6,
        net_mb=a_sec * costs.net_bytes / 1e6,
    )


def numbers(kept: dict[str, Any]) -> str:
    """Write the tables of the page."""
    kinds = costs_of(kept)
    machine = kept["machine"]
    out = [
        f"Measured {kept['date'][:10]} at revision {kept['revision']} with vCons of 5 kB: {machine['cores']} cores"
        f" ({machine['processor']}), Python {machine['python']}, {machine['server']}.",
        "",
        "| chain | our CPU, ms | server's thread, ms | append-only file, bytes | network of the server, bytes |",
        "|---|---|---|---|---|",
    ]
    for kind in kinds:
        cells = (number(v) for v in (kind.cpu_ms, kind.server_ms, kind.aof_bytes, kind.net_bytes))
        out.append(f"| {kind.name} | {' | '.join(cells)} |")
    out += [
        "",
        f"A vCon and its UUID take {kinds[0].memory_bytes:,.0f} bytes of the server's memory.",
        "",
        f"| chain | a worker process at {SHARE:.0%} of a core, a day | a server at {SHARE:.0%} of its thread, a day |",
        "|---|---|---|",
    ]
    for kind in kinds:
        worker = min(SHARE * 1000 / kind.cpu_ms, THREADS / kind.wait_secs if kind.wait_secs else math.inf)
        server = SHARE * 1000 / kind.server_ms
        out.append(f"| {kind.name} | {_millions(worker * 86400)} | {_millions(server * 86400)} |")
    for kind in kinds[1:]:
        out += [
            "",
            f"**{kind.name}**",
            "",
            "| volume | a second | worker processes | chains in flight | server's thread | servers | copies in memory |"
            " append-only file | network |",
            "|---|---|---|---|---|---|---|---|---|",
        ]
        for name, rate in VOLUMES:
            need = needs(kind, rate)
            out.append(
                f"| {name} | {number(rate)} | {need.processes:,} | {need.threads:,} | {need.server_share:.1%} |"
                f" {need.servers} | {_little(need.memory_gb)} GB | {_little(need.aof_mb)} MB/s |"
                f" {_little(need.net_mb)} MB/s |"
            )
    return "\n".join(out)


def _little(value: float) -> str:
    return number(value) if value >= 0.01 else "under 0.01"


def _millions(count: float) -> str:
    return f"{number(count / 1e6)} million"


def write(page: Path, kept: dict[str, Any]) -> None:
    """Replace what stands between the marks of *page*."""
    before, begin, rest = page.read_text().partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise SystemExit(f"{page} has no {BEGIN} ... {END}")
    page.write_text(f"{before}{BEGIN}\n\n{numbers(kept)}\n\n{END}{after}")


def main() -> None:
    """Print the tables, or write them into a page."""
    parser = argparse.ArgumentParser("python -m bench.scaling", description="What measured costs mean for a volume.")
    parser.add_argument("result", type=Path, help="a JSON file of python -m bench")
    parser.add_argument("--write", type=Path, metavar="PAGE", help="replace the numbers of this page")
    chosen = parser.parse_args()
    kept = json.loads(chosen.result.read_text())
    if chosen.write:
        write(chosen.write, kept)
    else:
        print(numbers(kept))


if __name__ == "__main__":
    main()
