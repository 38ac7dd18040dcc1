"""Logs and metrics, in one place, bound to the vCon, the chain and the link that a thread works on.

Logs are sentences on a terminal and JSON lines elsewhere. Metrics are counted in plain memory by each process;
workers send what they have to their supervisor, which alone speaks Prometheus: no files, no stale processes.
"""

from __future__ import annotations

import json
import logging
import logging.config
import re
import sys
import threading
import time
from bisect import bisect_left
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TextIO

import msgspec

from conserver.settings import Settings

#: Upper bounds of the buckets of all histograms, in seconds.
BUCKETS = (0.0005, 0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0, 30.0, 60.0, 300.0, 600.0)

Labels = tuple[tuple[str, str], ...]
Key = tuple[str, Labels]
Snapshot = dict[str, Any]

_encode = msgspec.json.Encoder(enc_hook=str).encode
_bound = threading.local()


def shorten(text: str, most: int) -> str:
    """Return *text* on one line, printable, with at most *most* characters."""
    text = " ".join(text.split())
    text = "".join(c if c.isprintable() else "?" for c in text[: most + 1])
    return text if len(text) <= most else text[: most - 1] + "…"


# Logs


@contextmanager
def bound(**fields: str) -> Iterator[None]:
    """Add *fields* to every log record of this thread while the block runs."""
    before = getattr(_bound, "fields", None)
    _bound.fields = {**before, **fields} if before else fields
    try:
        yield
    finally:
        _bound.fields = before


def bind(fields: dict[str, str] | None) -> None:
    """Set the fields of this thread's log records; the cheap form of `bound` for the hot path."""
    _bound.fields = fields


def fields() -> dict[str, str]:
    """Return the fields of this thread's log records: `vcon`, `chain` and the like, where they are known."""
    return dict(getattr(_bound, "fields", None) or {})


def _fields(record: logging.LogRecord) -> dict[str, Any]:
    return fields() | (getattr(record, "fields", None) or {})


class JsonFormatter(logging.Formatter):
    """One JSON object a line: asctime, levelname, name, message, and the ids as fields."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the record as one line of JSON; what is no JSON value is written as text."""
        line: dict[str, Any] = {
            "asctime": _timestamp(record.created),
            "levelname": record.levelname,
            "name": record.name,
            "message": record.getMessage(),
        }
        line.update(_fields(record))
        if record.exc_info:
            line["exc_info"] = self.formatException(record.exc_info)
        try:
            return _encode(line).decode()
        except (UnicodeEncodeError, TypeError, ValueError):
            # Lone surrogates and whatever else has no place in JSON.
            return json.dumps(line, default=repr)


class PlainFormatter(logging.Formatter):
    """A line for people: time, level if it is not INFO, message, the ids behind it."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the record as text; a traceback follows on its own lines."""
        level = "" if record.levelno == logging.INFO else f"{record.levelname}: "
        values = _fields(record)
        traceback = values.pop("traceback", None)
        fields = " ".join(f"{k}={v}" for k, v in values.items())
        line = f"{_timestamp(record.created)[11:19]} {level}{record.getMessage()}{'  ' + fields if fields else ''}"
        if record.exc_info:
            traceback = self.formatException(record.exc_info)
        if traceback:
            line = f"{line}\n{traceback}"
        return line.encode("utf-8", "replace").decode()


_second: tuple[int, str] = (0, "")


def _timestamp(created: float) -> str:
    # Most lines fall into the second of the line before: formatting a date costs more than the rest.
    global _second
    whole, second = int(created), _second
    if second[0] != whole:
        second = _second = (whole, time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(whole)))
    return f"{second[1]}.{int((created - whole) * 1000):03d}Z"


def configure(settings: Settings, stream: TextIO | None = None) -> None:
    """Set up logging for this process: to stdout, JSON unless that is a terminal.

    `LOGGING_CONFIG_FILE` replaces all of it. Handlers that others have added to the root logger are kept.
    """
    if settings.logging_config_file is not None:
        logging.config.fileConfig(settings.logging_config_file, disable_existing_loggers=False)
        return
    stream = stream or sys.stdout
    handler = logging.StreamHandler(stream)
    handler.setFormatter(PlainFormatter() if stream.isatty() else JsonFormatter())
    handler.set_name("conserver")
    root = logging.getLogger()
    for old in [h for h in root.handlers if h.get_name() == "conserver"]:
        root.removeHandler(old)
    root.addHandler(handler)
    root.setLevel(settings.log_level)
    for noisy in ("httpx", "httpcore", "openai", "urllib3", "uvicorn"):
        logging.getLogger(noisy).setLevel(max(logging.WARNING, root.level))


# Metrics


class Metrics:
    """The numbers of one process: counters, gauges and histograms by name and labels."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counters: dict[Key, float] = {}
        self._histograms: dict[Key, list[float]] = {}

    def count(self, key: Key, value: float = 1) -> None:
        """Add *value* to a counter."""
        with self._lock:
            self._counters[key] = self._counters.get(key, 0) + value

    def record(self, counts: Iterable[Key], observations: Iterable[tuple[Key, float]]) -> None:
        """Add one to each of *counts*, and (key, seconds) pairs to histograms."""
        counters, histograms = self._counters, self._histograms
        with self._lock:
            for key in counts:
                counters[key] = counters.get(key, 0) + 1
            for key, secs in observations:
                row = histograms.get(key)
                if row is None:
                    # The buckets, one for what is above them all, and the sum.
                    row = histograms[key] = [0.0] * (len(BUCKETS) + 2)
                row[bisect_left(BUCKETS, secs)] += 1
                row[-1] += secs

    def snapshot(self) -> Snapshot:
        """Return all numbers since the process began, as plain values for another process."""
        with self._lock:
            return {"counters": dict(self._counters), "histograms": {k: list(v) for k, v in self._histograms.items()}}

    def add(self, snapshot: Snapshot) -> None:
        """Add the numbers of another process, for instance one that has ended."""
        for key, value in snapshot["counters"].items():
            self.count(key, value)
        with self._lock:
            for key, row in snapshot["histograms"].items():
                mine = self._histograms.setdefault(key, [0.0] * len(row))
                for i, value in enumerate(row):
                    mine[i] += value


metrics = Metrics()


def key(name: str, /, **labels: str) -> Key:
    """Return the key of a series, to be made once and used often."""
    return name, tuple(sorted((label, _label(value)) for label, value in labels.items()))


def _label(value: Any) -> str:
    # Names come from configs; one that cannot be written may not cost all the numbers.
    return str(value).encode("utf-8", "replace").decode()


def count(name: str, value: float = 1, /, **labels: str) -> None:
    """Add *value* to the counter *name* (`conserver.link.openai.analysis_failures`). A label never is a UUID."""
    metrics.count(key(name, **labels), value)


def observe(name: str, secs: float, /, **labels: str) -> None:
    """Add a duration in seconds to the histogram *name*. A label never is a UUID."""
    metrics.record((), [(key(name, **labels), secs)])


def exposition(snapshots: Iterable[Snapshot], gauges: Iterable[tuple[Key, float]]) -> bytes:
    """Return the sum of *snapshots* and the *gauges* in Prometheus' text format.

    Dots in names become underscores; counters end in `_total`.
    """
    from prometheus_client import CollectorRegistry, generate_latest
    from prometheus_client.core import Metric

    total = Metrics()
    for snapshot in snapshots:
        total.add(snapshot)
    summed = total.snapshot()
    # One family a name, though links may count it with other labels: a second TYPE line spoils the whole page.
    families: dict[str, Metric] = {}

    def family(kind: str, series: Key) -> tuple[Metric, dict[str, str]]:
        name = _plain(series[0])
        made = families.setdefault(name, Metric(name, series[0], kind))
        return made, {_plain(label): value for label, value in series[1]}

    for series, value in summed["counters"].items():
        made, labels = family("counter", series)
        made.add_sample(f"{made.name}_total", labels, value)
    for series, value in gauges:
        made, labels = family("gauge", series)
        made.add_sample(made.name, labels, value)
    for series, row in summed["histograms"].items():
        made, labels = family("histogram", series)
        running = 0.0
        for upper, n in zip((*map(str, BUCKETS), "+Inf"), row[:-1], strict=True):
            running += n
            made.add_sample(f"{made.name}_bucket", {**labels, "le": upper}, running)
        made.add_sample(f"{made.name}_count", labels, running)
        made.add_sample(f"{made.name}_sum", labels, row[-1])

    class _Collector:
        def collect(self) -> Iterator[Metric]:
            yield from families.values()

    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Collector())
    return generate_latest(registry)


def _plain(name: str) -> str:
    # Authors may name their numbers as they like; Prometheus may not read them all.
    return re.sub(r"[^a-zA-Z0-9_]", "_", name) or "unnamed"
