"""conserver.telemetry: logs that can be read by machines, numbers that add up."""

from __future__ import annotations

import io
import json
import logging
import math
import re
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from conserver import telemetry
from conserver.settings import Settings
from conserver.telemetry import JsonFormatter, Metrics, PlainFormatter, exposition, key, shorten

CLASSIC = re.compile(r'[a-zA-Z_:][a-zA-Z0-9_:]*(\{([a-zA-Z_][a-zA-Z0-9_]*="([^"\\]|\\.)*",?)*\})? ')
anything = st.text(st.characters(codec=None, categories=None))  # lone surrogates included
writable = st.text(st.characters(codec="utf-8"))


def record(message: str, *args: Any, level: int = logging.INFO, **more: Any) -> logging.LogRecord:
    made = logging.LogRecord("conserver.test", level, "f.py", 1, message, args, more.pop("exc_info", None))
    made.__dict__.update(more)
    return made


@pytest.fixture
def root() -> Iterator[logging.Logger]:
    """The root logger, which is afterwards what it was before."""
    logger = logging.getLogger()
    before = logger.handlers[:], logger.level
    yield logger
    logger.handlers[:], logger.level = before


def caught(error: Exception) -> Any:
    try:
        raise error
    except type(error):
        return sys.exc_info()


# JSON lines


@given(
    message=writable, field=writable | st.binary() | st.integers() | st.floats() | st.none() | st.sets(st.integers())
)
def test_a_json_line_is_one_line_of_json_whatever_is_logged(message: str, field: Any) -> None:
    """Newlines, bytes, numbers that JSON does not have."""
    line = JsonFormatter().format(record("%s", message, fields={"vcon": field}))

    assert json.loads(line)["levelname"] == "INFO"
    assert len(line.encode().splitlines()) == 1
    assert "\n" not in line


def test_a_lone_surrogate_leaves_the_other_fields_as_they_are() -> None:
    """What a party's name breaks is that name, not the level and the ids that logs are searched by."""
    line = json.loads(JsonFormatter().format(record("name %s", "\ud800", fields={"vcon": "a", "secs": 1.5})))

    assert (line["levelname"], line["vcon"], line["secs"]) == ("INFO", "a", 1.5)
    assert line["message"].startswith("name ")


def test_a_json_line_has_the_ids_as_fields() -> None:
    """Those of the thread, and those of the record, which count more."""
    with telemetry.bound(vcon="a", chain="main"):
        line = json.loads(JsonFormatter().format(record("done %d", 7, level=logging.ERROR, fields={"vcon": "b"})))

    assert line.pop("asctime").endswith("Z")
    assert line == {"levelname": "ERROR", "name": "conserver.test", "message": "done 7", "vcon": "b", "chain": "main"}


def test_a_message_cannot_pretend_to_be_another_line() -> None:
    """What a vCon or a client says stays inside of its own message."""
    evil = 'x"}\n{"levelname": "CRITICAL", "message": "stolen"}'

    line = JsonFormatter().format(record("%s", evil))

    assert json.loads(line)["message"] == evil


def test_a_traceback_is_part_of_its_line() -> None:
    """As one field."""
    line = json.loads(JsonFormatter().format(record("bad", exc_info=caught(ValueError("no good \ud800")))))

    assert "ValueError: no good" in line["exc_info"]


@pytest.mark.parametrize(
    ("created", "shown"), [(0.0, "1970-01-01T00:00:00.000Z"), (1767225600.9996, "2026-01-01T00:00:00.999Z")]
)
def test_the_time_is_utc_to_the_millisecond(created: float, shown: str) -> None:
    """Wherever the machine stands."""
    assert json.loads(JsonFormatter().format(record("x", created=created)))["asctime"] == shown


# Plain lines


def test_a_plain_line_is_for_people() -> None:
    """The level only if it is worth a look, the ids behind the sentence."""
    with telemetry.bound(vcon="a"):
        info = PlainFormatter().format(record("all is well", created=1767225600.0))
        error = PlainFormatter().format(record("all is %s", "lost", level=logging.ERROR, created=1767225600.0))

    assert info == "00:00:00 all is well  vcon=a"
    assert error == "00:00:00 ERROR: all is lost  vcon=a"


@pytest.mark.parametrize(
    "more",
    [
        {"fields": {"vcon": "\ud800"}},
        {"exc_info": caught(ValueError("\ud800"))},
    ],
)
def test_a_plain_line_can_be_written_whatever_is_in_it(more: dict[str, Any]) -> None:
    """A terminal takes no lone surrogates; the line would be lost with an error of the logging itself."""
    PlainFormatter().format(record("odd \udfff", **more)).encode()


# Setting up


def test_logs_go_to_a_pipe_as_json_and_once(root: logging.Logger) -> None:
    """Also if it is set up twice; handlers of others stay, and talkative libraries are kept quiet."""
    stream, other = io.StringIO(), logging.NullHandler()
    root.addHandler(other)

    for _ in range(2):
        telemetry.configure(Settings(log_level="DEBUG"), stream)
    logging.getLogger("conserver.x").debug("one")
    logging.getLogger("httpx").info("GET https://user:secret@host")

    (line,) = stream.getvalue().splitlines()
    assert json.loads(line)["message"] == "one"
    assert other in root.handlers


def test_a_terminal_gets_sentences(root: logging.Logger) -> None:
    """Who looks at it is a person."""

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    stream = Terminal()
    telemetry.configure(Settings(), stream)
    logging.getLogger("conserver.x").warning("careful")

    assert stream.getvalue().endswith(" WARNING: careful\n")


def test_a_logging_config_file_replaces_all_of_it(root: logging.Logger, tmp_path: Path) -> None:
    """As with the existing conserver; loggers that exist already go on."""
    log, file = tmp_path / "out.log", tmp_path / "logging.ini"
    file.write_text(f"""
[loggers]
keys=root
[handlers]
keys=file
[formatters]
keys=mine
[logger_root]
level=INFO
handlers=file
[handler_file]
class=FileHandler
formatter=mine
args=({str(log)!r},)
[formatter_mine]
format=MINE %(message)s
""")
    existing = logging.getLogger("conserver.existing")

    telemetry.configure(Settings(logging_config_file=file))
    existing.info("hello")
    for handler in logging.getLogger().handlers:
        handler.close()

    assert log.read_text() == "MINE hello\n"


@given(text=anything, most=st.integers(2, 50))
def test_shortened_text_is_one_printable_line(text: str, most: int) -> None:
    """It goes into reasons and logs, so nothing in it moves a cursor."""
    short = shorten(text, most)

    assert len(short) <= most
    assert short.isprintable()
    short.encode()


def test_bound_fields_end_with_their_block() -> None:
    """And each thread has its own."""
    seen: list[dict[str, Any]] = []
    with telemetry.bound(a="1"):
        with telemetry.bound(b="2"):
            inner = telemetry._fields(record("x"))
        thread = threading.Thread(target=lambda: seen.append(telemetry._fields(record("x"))))
        thread.start()
        thread.join(10)
        outer = telemetry._fields(record("x"))

    assert (inner, outer, seen) == ({"a": "1", "b": "2"}, {"a": "1"}, [{}])
    assert telemetry._fields(record("x")) == {}


# Numbers


def parsed(text: bytes) -> dict[str, float]:
    """Each sample of an exposition by its name and labels."""
    families = list(text_string_to_metric_families(text.decode()))
    assert len({family.name for family in families}) == len(families)
    return {f"{s.name}{sorted(s.labels.items())}": s.value for family in families for s in family.samples}


def test_numbers_of_all_processes_add_up() -> None:
    """Also of those that have ended; gauges stand beside them."""
    one, two = Metrics(), Metrics()
    for metrics in (one, two):
        metrics.count(key("conserver.link.count", link_name="tag", outcome="success"), 2)
        metrics.record([key("conserver.dlq.count", queue_name="DLQ:in")], [(key("conserver.time", chain="main"), 0.02)])
    two.record([], [(key("conserver.time", chain="main"), 1000.0)])

    samples = parsed(exposition([one.snapshot(), two.snapshot()], [(key("conserver.workers"), 2.0)]))

    assert samples["conserver_link_count_total[('link_name', 'tag'), ('outcome', 'success')]"] == 4
    assert samples["conserver_dlq_count_total[('queue_name', 'DLQ:in')]"] == 2
    assert samples["conserver_workers[]"] == 2
    buckets = {
        le: samples[f"conserver_time_bucket[('chain', 'main'), ('le', '{le}')]"] for le in ("0.01", "0.05", "+Inf")
    }
    assert buckets == {"0.01": 0, "0.05": 2, "+Inf": 3}
    assert samples["conserver_time_count[('chain', 'main')]"] == 3
    assert math.isclose(samples["conserver_time_sum[('chain', 'main')]"], 1000.04)


@given(st.dictionaries(st.sampled_from(["link_name", "list"]), writable, min_size=1))
def test_any_value_of_a_label_can_be_read_back(labels: dict[str, str]) -> None:
    """Names of lists and links are other people's."""
    metrics = Metrics()
    metrics.count(key("conserver.x", **labels))

    text = exposition([metrics.snapshot()], [])

    assert next(iter(text_string_to_metric_families(text.decode()))).samples[0].labels == labels


@pytest.mark.parametrize(
    "counts",
    [
        [("conserver.link.mine.count", {}), ("conserver.link.mine.count", {"model": "x"})],
        [("conserver.link.my-link.count!", {})],
        [("conserver.x", {"not-a-name": "y"})],
        [("conserver.x", {"n": 3})],
        [("conserver.x", {"name": "\ud800"})],
    ],
    ids=["other labels", "odd name", "odd label", "label that is no text", "label with a lone surrogate"],
)
def test_odd_numbers_of_one_link_do_not_hide_those_of_all(counts: list[tuple[str, dict[str, Any]]]) -> None:
    """A link may count what it likes under any name."""
    metrics = Metrics()
    metrics.count(key("conserver.good"))
    for name, labels in counts:
        metrics.count(key(name, **labels))

    text = exposition([metrics.snapshot()], [])
    samples = parsed(text)

    lines = text.decode().splitlines()
    types = [line for line in lines if line.startswith("# TYPE")]
    assert len(types) == len(set(types))
    assert all(CLASSIC.match(line) for line in lines if not line.startswith("#"))
    assert samples["conserver_good_total[]"] == 1
    assert len([name for name in samples if "created" not in name]) == 1 + len(counts)


def test_threads_count_together() -> None:
    """None of them is lost."""
    metrics = Metrics()

    def work() -> None:
        for _ in range(1000):
            metrics.record([key("x")], [(key("y"), 0.1)])

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)

    assert metrics.snapshot()["counters"] == {key("x"): 4000}
    assert sum(metrics.snapshot()["histograms"][key("y")][:-1]) == 4000


def test_a_snapshot_is_of_its_moment() -> None:
    """What is counted later does not change what was sent."""
    metrics = Metrics()
    metrics.record([key("x")], [(key("y"), 1.0)])
    snapshot = metrics.snapshot()

    metrics.record([key("x")], [(key("y"), 1.0)])

    assert snapshot["counters"] == {key("x"): 1}
    assert snapshot["histograms"][key("y")][-1] == 1.0


def test_links_count_with_plain_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    """The names as in the existing conserver, whatever the order of the labels."""
    monkeypatch.setattr(telemetry, "metrics", Metrics())

    telemetry.count("conserver.link.openai.failures", model="m", kind="k")
    telemetry.count("conserver.link.openai.failures", 2, kind="k", model="m")
    telemetry.observe("conserver.link.openai.time", 0.5)

    snapshot = telemetry.metrics.snapshot()
    assert list(snapshot["counters"].values()) == [3]
    assert snapshot["histograms"][key("conserver.link.openai.time")][-1] == 0.5
