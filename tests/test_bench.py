"""The benchmark measures what it says, shown with a few vCons; and its tables and plots say what was measured."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from bench import __main__ as bench_main
from bench import beside, drain, report, scaling, vcons
from bench.capacity import capacity
from bench.growth import growth
from bench.host import server
from bench.latency import latency
from bench.limit import limit
from bench.plan import BenchError, Plan, Table
from bench.plots import Bar, bars, lines, number
from bench.recovery import dead_letters, recovery, startup
from bench.throughput import Case, config_of, host, noop, tag_and_file
from conserver.vcon import validate
from tests.conftest import missing


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    """As little as can be measured."""
    if not Path("/proc/self/stat").exists():
        missing("the benchmark reads /proc")
    return Plan(tmp_path, secs=0.05, repeats=1, scale=0.002, say=lambda words: None)


SMALL: dict[str, Callable[[Plan], list[Table]]] = {
    "noop": lambda plan: noop(plan, [Case("2 workers", workers=2, log_level="INFO", large_config=True)]),
    "tag_and_file": lambda plan: tag_and_file(plan, [Case("base")]),
    "limit": limit,
    "latency": lambda plan: latency(plan, (2,)),
    "capacity": lambda plan: capacity(plan, threads=4, delay_secs=0.3),
    "dead_letters": dead_letters,
    "recovery": recovery,
    "startup": startup,
    "growth": lambda plan: growth(plan, backlogs=(1_000,), lists=(2,), sizes=(20_000,)),
}
#: Those that start most processes, or wait for them.
SLOW = {"growth", "recovery", "startup"}


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.long) if n in SLOW else n for n in SMALL])
def test_each_scenario_measures_something(name: str, plan: Plan) -> None:
    """Every row has a value for each column, and what takes time took some."""
    tables = SMALL[name](plan)

    assert tables
    for table in tables:
        assert table.rows
        for row in table.rows:
            assert set(table.columns) <= set(row.runs), (table.name, row.name)
            for measure, values in row.runs.items():
                assert all(math.isfinite(value) and value >= 0 for value in values), (row.name, measure)
            for measure in {"rate", "p50_ms", "worker_mb", "first_ms", "ms", "memory_bytes"} & set(row.runs):
                assert min(row.runs[measure]) > 0, (table.name, row.name, measure)
            # The server that answers late has counted how many waited at the same moment.
            assert row.runs.get("waiting", [4.0]) == [4.0]


def test_ours_is_shown_beside_task_queues(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    """A ratio for each that was measured, a reason for each that was not."""
    urls = []

    def run_peers(url: str, **_: Any) -> list[dict[str, Any]]:
        urls.append(url)
        rates = {"tasks_per_sec": [1.0, 2.0], "cpu_ms_per_task": 3.0, "server_ms_per_task": 4.0, "error": None}
        failure = {"tasks_per_sec": [], "cpu_ms_per_task": None, "server_ms_per_task": None, "error": "no such package"}
        common = {"version": "1.0", "variant": "-w 2"}
        return [{"name": "quick", **common, **rates}, {"name": "gone", **common, **failure}]

    monkeypatch.setattr(beside, "run_peers", run_peers)

    [table] = beside.peers(plan, ["both"])

    ours, quick, gone = table.rows
    assert urls[0].startswith("redis://127.0.0.1:")
    assert len(ours.runs["rate"]) == 2
    assert quick.runs["ratio"] == pytest.approx([sum(ours.runs["rate"]) / 2, sum(ours.runs["rate"]) / 4])
    assert gone.runs == {}
    assert "no such package" in report.text_of(table)


def test_a_chain_that_fails_is_no_measurement(plan: Plan) -> None:
    """A vCon that ends as a dead letter is told with its reason, instead of a rate."""
    with server() as one:
        running = host(plan.scratch / "broken", one.url, Case("broken"), files=False)
        (running.folder / "links" / "noop.py").write_text(
            "def run(vcon_uuid, link_name, opts):\n    raise ValueError(7)"
        )

        with running, pytest.raises(BenchError, match=r"0 of 3 delivered, but .*ValueError: 7"):
            drain.batch(one, running, one.store(1000, 3))


@pytest.mark.parametrize("size", [1_000, 5_000, 50_000])
def test_the_vcons_are_valid_and_of_the_size(size: int) -> None:
    """Each is a vCon without a finding, within a tenth of the size that was asked for, with a UUID of its own."""
    made = list(vcons.documents(size, 3))

    assert len({uuid for uuid, _ in made}) == 3
    for uuid, text in made:
        document = json.loads(text)
        assert document["uuid"] == uuid
        assert [str(finding) for finding in validate(document)] == []
        assert abs(len(text) - size) < size / 10


def test_a_large_config_is_as_large_as_the_example_of_the_existing_conserver(tmp_path: Path) -> None:
    """At least 6 kB, and a tenth of that without."""
    sizes = [len(json.dumps(config_of(tmp_path, Case("", large_config=large), files=True))) for large in (True, False)]

    assert sizes[0] > 6_000 > 600 > sizes[1]


def test_turns_go_there_and_back(tmp_path: Path) -> None:
    """So what drifts while it is measured hits all cases alike."""
    assert Plan(tmp_path, repeats=3).turns("ab") == ["a", "b", "b", "a", "a", "b"]


def table_of(name: str, rates: dict[str, list[float]], **more: float) -> Table:
    table = Table(name, f"about {name}", {"rate": "vCons/s", "cpu_ms": "ms"}, notes=["a note"])
    for row, runs in rates.items():
        for rate in runs:
            table.row(row).add(rate=rate, cpu_ms=0.05, server_ms=0.01, **more)
    return table


def test_a_table_shows_median_spread_and_runs() -> None:
    """In columns that line up, with the notes below."""
    text = report.text_of(table_of("noop", {"base": [9000, 11000, 10000], "1 thread": [300]}))

    head, _, names, _, base, thread, note, _ = text.split("\n")
    assert head == "about noop"
    assert names.split() == ["vCons/s", "ms", "runs"]
    assert base.split() == ["base", "10,000", "(9,000..11,000)", "0.0500", "(0.0500..0.0500)", "3"]
    assert thread.split() == ["1", "thread", "300", "0.0500", "1"]
    assert note == "(a note)"
    assert len(base) == len(thread) == len(names)


def test_goals_are_told_for_what_was_measured() -> None:
    """A goal says whether it is reached; one that was not measured says nothing."""
    tables = {
        "noop": table_of("noop", {"base": [376.0 * 41], "INFO": [313.0 * 19]}),
        "peers": table_of("peers", {report.OURS: [400.0], "rq": [10.0]}),
    }

    tables["peers"].row("rq").add(ratio=40.0)
    tables["peers"].row("huey").add(ratio=4.0)

    text = report.goals_table(tables)

    assert "reached  three no-op links, WARNING: times the existing conserver: 41 (at least 40)" in text
    assert "NOT YET  three no-op links, INFO: times the existing conserver: 19 (at least 20)" in text
    assert "reached  two workers, no-op: times the fastest task queue: 4 (at least 4)" in text
    assert "dead letters" not in text
    assert report.goals_table({}) == ""


def test_the_file_keeps_every_run(tmp_path: Path, plan: Plan) -> None:
    """With what it was measured on."""
    with server() as one:
        file = report.keep(tmp_path, report.document(plan, [table_of("noop", {"base": [1.0, 2.0]})], one))

    kept = json.loads(file.read_text())
    assert kept["tables"][0]["rows"][0]["runs"]["rate"] == [1.0, 2.0]
    assert kept["machine"]["cores"] >= 1
    assert {"python", "server", "libraries", "processor", "load"} <= set(kept["machine"])
    assert kept["revision"]


def test_plots_are_drawn_for_what_was_measured(tmp_path: Path) -> None:
    """One for each table that has one, well-formed, with the names of its rows."""
    tables = {
        "noop": table_of("noop", {"base": [1.0, 3.0], "a < b & c": [2.0]}),
        "sizes": table_of("sizes", {"1,000": [5.0]}, axis=1000.0),
    }

    files = report.plot(tmp_path, tables)

    assert [file.name for file in files] == ["throughput.svg", "cost-by-sizes.svg"]
    drawn = "".join(ElementTree.parse(files[0]).getroot().itertext())
    assert "a < b & c" in drawn
    assert "the existing conserver" in drawn


def rectangles(svg: str) -> list[float]:
    root = ElementTree.fromstring(svg)
    return [float(one.attrib["width"]) for one in root.iter("{http://www.w3.org/2000/svg}rect")][1:]


def test_bars_are_as_long_as_what_they_show() -> None:
    """From zero, so that half as much is half as long; a whisker only where runs differ."""
    svg = bars("t", "u", [Bar("a", 100, 90, 110), Bar("b", 50, 50, 50, other=True)])

    long, short = rectangles(svg)
    assert long == pytest.approx(2 * short, abs=0.2)
    assert svg.count('class="spread"') == 3


def test_lines_are_on_logarithmic_axes() -> None:
    """Ten times as much is one step up and one step to the right; zero is drawn at the bottom."""
    svg = lines("t", "x", "y", {"one": [(1, 1), (10, 10), (100, 100)], "two": [(1, 0), (100, 1)]})

    root = ElementTree.fromstring(svg)
    first, _ = root.iter("{http://www.w3.org/2000/svg}polyline")
    (x1, y1), (x2, y2), (x3, y3) = (map(float, point.split(",")) for point in first.attrib["points"].split())
    assert x2 - x1 == pytest.approx(x3 - x2, abs=0.2)
    assert y1 - y2 == pytest.approx(y2 - y3, abs=0.2)
    assert y1 > y2


def test_needs_follow_from_costs() -> None:
    """Work decides on processes, or waiting if that needs more; parts are loaded to 70 %."""
    costs = scaling.Costs("x", cpu_ms=7, server_ms=0.7, aof_bytes=1e4, net_bytes=2e4, memory_bytes=5e3)
    waiting = replace(costs, cpu_ms=0.07, wait_secs=51.2)

    busy, idle = scaling.needs(costs, 1000), scaling.needs(waiting, 100)

    assert (busy.processes, busy.threads, busy.servers) == (10, 10, 1)
    assert (idle.processes, idle.threads) == (10, 5120)
    assert (busy.server_share, busy.memory_gb, busy.aof_mb, busy.net_mb) == pytest.approx((0.7, 18, 10, 20))
    assert scaling.needs(costs, 1001).servers == 2


def test_the_numbers_of_a_page_are_written_anew(tmp_path: Path) -> None:
    """Between the marks, and nothing else; the costs are those of the file."""
    more = {"server_main_ms": 0.02, "aof_bytes": 300.0, "net_bytes": 400.0}
    memory = table_of("memory", {"a vCon of 5,000 bytes": [1], "a UUID in a list": [1]}, memory_bytes=2500.0, **more)
    tables = [
        table_of("noop", {"INFO": [1.0]}, **more),
        table_of("tag_and_file", {"base": [1.0]}, **more),
        table_of("capacity", {"512 threads": [1.0]}, **more),
        memory,
    ]
    kept = {
        "date": "2026-01-05T10:00:00+00:00",
        "revision": "abc",
        "machine": {"cores": 2, "processor": "P", "python": "3.11", "server": "valkey 9"},
        "tables": [asdict(table) for table in tables],
    }
    page = tmp_path / "page.md"
    page.write_text(f"before\n{scaling.BEGIN}\nold\n{scaling.END}\nafter\n")

    scaling.write(page, kept)
    scaling.write(page, kept)

    text = page.read_text()
    assert text.startswith(f"before\n{scaling.BEGIN}\n\nMeasured 2026-01-05 at revision abc")
    assert text.endswith(f"\n\n{scaling.END}\nafter\n")
    assert "old" not in text
    # 0.05 ms of the chain and as much of the call; 0.02 ms twice on the server, and 0.01 ms to store the vCon.
    assert "| `tag`, a call that takes 5 s, storage `file` | 0.100 | 0.0500 |" in text
    assert "take 5,000 bytes" in text


def test_the_page_about_scaling_has_its_marks() -> None:
    """Or nobody could write its numbers anew."""
    text = (bench_main.ROOT / "docs" / "scaling.md").read_text()

    assert 0 < text.find(scaling.BEGIN) < text.find(scaling.END)


@pytest.mark.parametrize(
    ("value", "shown"), [(0, "0"), (12345.6, "12,346"), (123.4, "123"), (12.34, "12.3"), (0.01234, "0.0123"), (5, "5")]
)
def test_numbers_have_the_digits_they_deserve(value: float, shown: str) -> None:
    """Three that count."""
    assert number(value) == shown


def test_the_command_measures_shows_and_keeps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A scenario that fails is told, and keeps none of the others from being shown."""

    def failing(plan: Plan) -> list[Table]:
        raise BenchError("no luck")

    scenarios = {"good": lambda plan: [table_of("noop", {"base": [plan.secs, float(plan.repeats)]})], "bad": failing}
    monkeypatch.setattr(bench_main, "SCENARIOS", scenarios)
    folders = [f"--{name}={tmp_path / name}" for name in ("out", "plots", "scratch")]

    status = bench_main.main(["--full", *folders])

    said = capsys.readouterr()
    assert status == 1
    assert "bad could not be measured: no luck" in said.err
    assert "about noop" in said.out
    [kept] = (tmp_path / "out").glob("*.json")
    assert json.loads(kept.read_text())["tables"][0]["rows"][0]["runs"]["rate"] == [5.0, 5.0]
    assert [file.name for file in (tmp_path / "plots").iterdir()] == ["throughput.svg"]


def test_the_command_says_what_there_is() -> None:
    """`--help` names every scenario."""
    done = subprocess.run([sys.executable, "-m", "bench", "--help"], capture_output=True, text=True, check=True)

    assert [name for name in bench_main.SCENARIOS if name not in done.stdout] == []
