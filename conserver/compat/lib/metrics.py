"""`lib.metrics`: counters and histograms among the metrics of the conserver."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from conserver import telemetry
from conserver.claims import is_uuid

log = logging.getLogger(__name__)


def _labels(attributes: Mapping[str, Any] | None) -> dict[str, str]:
    # A series a vCon would fill every memory: what names one is left out.
    pairs = {str(name): str(value) for name, value in (attributes or {}).items() if value is not None}
    return {name: value for name, value in pairs.items() if name != "vcon.uuid" and not is_uuid(value)}


def increment_counter(name: str, value: float = 1, attributes: Mapping[str, Any] | None = None) -> None:
    """Add *value* to a counter; one below 0 is refused with a warning."""
    if value < 0:
        log.warning("counter %r cannot be decreased by %s: not counted", name, value)
        return
    telemetry.count(name, value, **_labels(attributes))


def record_histogram(name: str, value: float, attributes: Mapping[str, Any] | None = None) -> None:
    """Add a value to a histogram, whose buckets are made for seconds."""
    telemetry.observe(name, value, **_labels(attributes))


def add_updown_counter(name: str, value: float = 1, attributes: Mapping[str, Any] | None = None) -> None:
    """Count in `<name>.up` or `<name>.down`, whose difference is the number of now."""
    telemetry.count(f"{name}.up" if value >= 0 else f"{name}.down", abs(value), **_labels(attributes))


def register_observable_gauge(name: str, callback: Callable[..., Any], description: str | None = None) -> None:
    """Do nothing: workers tell their supervisor what they have counted, and have no gauges."""
    log.debug("gauge %r is not shown: links have counters and histograms", name)


def init_metrics() -> None:
    """Do nothing: metrics need no start."""


def stats_gauge(name: str, value: float, tags: Sequence[str] = ()) -> None:
    """Do nothing; it never did."""


def stats_count(name: str, value: float = 1, tags: Sequence[str] = ()) -> None:
    """Do nothing; it never did."""
