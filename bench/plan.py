"""How much to measure, and what a measurement is."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

Case = TypeVar("Case")


@dataclass(frozen=True)
class Plan:
    """How much to measure: seconds a run, repeats, everything or the quick part; `scale` shrinks counts for a test."""

    scratch: Path
    secs: float = 3.0
    repeats: int = 3
    full: bool = False
    scale: float = 1.0
    say: Callable[[str], None] = print

    def count(self, n: int, least: int = 1) -> int:
        """Return *n*, or the part of it that a small plan wants."""
        return max(least, round(n * self.scale))

    def turns(self, cases: Sequence[Case]) -> list[Case]:
        """Return all cases once a repeat, there and back, so that noise and drift hit all of them alike."""
        order: list[Case] = []
        for turn in range(self.repeats):
            order += cases if turn % 2 == 0 else reversed(cases)
        return order


@dataclass
class Row:
    """One case: for each measure a value of every run."""

    name: str
    runs: dict[str, list[float]] = field(default_factory=dict)
    note: str = ""

    def add(self, **measures: float) -> Row:
        """Add the values of one run."""
        for measure, value in measures.items():
            self.runs.setdefault(measure, []).append(value)
        return self

    def median(self, measure: str) -> float:
        """Return the middle of the runs."""
        return statistics.median(self.runs[measure])


@dataclass
class Table:
    """The rows of one scenario; `columns` says which measures are shown, and how they are called."""

    name: str
    title: str
    columns: dict[str, str]
    rows: list[Row] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def row(self, name: str, note: str = "") -> Row:
        """Return the row of that name; it is made if there is none."""
        for row in self.rows:
            if row.name == name:
                return row
        self.rows.append(Row(name, note=note))
        return self.rows[-1]


class BenchError(Exception):
    """A measurement that could not be made: the message says what happened."""
