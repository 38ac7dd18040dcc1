"""Bars and lines as SVG, readable on light and on dark pages."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from xml.sax.saxutils import escape

_STYLE = """
text { font: 13px system-ui, -apple-system, "Segoe UI", sans-serif; fill: #1f2328 }
.title { font-size: 15px; font-weight: 600 } .faint { fill: #656d76; font-size: 12px }
.page { fill: #ffffff } .grid { stroke: #d0d7de; stroke-width: 1 } .spread { stroke: #1f2328; stroke-width: 1.5 }
.a { fill: #2f6fd6 } .b { fill: #c2571a } .other { fill: #8c959f }
.line { fill: none; stroke-width: 2.5 } .line.a { stroke: #2f6fd6 } .line.b { stroke: #c2571a }
@media (prefers-color-scheme: dark) {
text { fill: #e6edf3 } .faint { fill: #9198a1 } .page { fill: #0d1117 } .grid { stroke: #30363d }
.spread { stroke: #e6edf3 } .a { fill: #5b9cff } .b { fill: #f0883e } .other { fill: #6e7681 }
.line { fill: none } .line.a { stroke: #5b9cff } .line.b { stroke: #f0883e } }
"""
_WIDTH = 760


@dataclass(frozen=True)
class Bar:
    """One bar: the median of *runs*, with a whisker from the least to the most; *other* is not ours."""

    label: str
    median: float
    least: float
    most: float
    other: bool = False


def bars(title: str, unit: str, rows: Sequence[Bar]) -> str:
    """Draw horizontal bars on a linear axis from zero."""
    left, right, top, step = 260, 100, 58, 30
    width = _WIDTH - left - right
    ticks = _ticks(max(row.most for row in rows))
    height = top + step * len(rows) + 34
    scale = width / ticks[-1]
    parts = [f'<text class="title" x="16" y="26">{escape(title)}</text>']
    for tick in ticks:
        x = left + tick * scale
        parts.append(f'<line class="grid" x1="{x:.1f}" y1="{top - 8}" x2="{x:.1f}" y2="{height - 30}"/>')
        parts.append(f'<text class="faint" x="{x:.1f}" y="{height - 12}" text-anchor="middle">{number(tick)}</text>')
    parts.append(
        f'<text class="faint" x="{left}" y="44">{escape(unit)}; the line is from the least run to the most</text>'
    )
    for at, row in enumerate(rows):
        y = top + step * at
        middle = y + step / 2 - 3
        kind = "other" if row.other else "a"
        parts.append(
            f'<text x="{left - 10}" y="{middle + 4:.1f}" text-anchor="end">{escape(_clipped(row.label))}</text>'
        )
        length = max(1.0, row.median * scale)
        parts.append(f'<rect class="{kind}" x="{left}" y="{y}" width="{length:.1f}" height="{step - 8}" rx="3"/>')
        low, high = left + row.least * scale, left + row.most * scale
        if row.most > row.least:
            parts.append(f'<line class="spread" x1="{low:.1f}" y1="{middle:.1f}" x2="{high:.1f}" y2="{middle:.1f}"/>')
            for x in (low, high):
                parts.append(
                    f'<line class="spread" x1="{x:.1f}" y1="{middle - 5:.1f}" x2="{x:.1f}" y2="{middle + 5:.1f}"/>'
                )
        parts.append(f'<text x="{max(high, left + length) + 8:.1f}" y="{middle + 4:.1f}">{number(row.median)}</text>')
    return _page(height, title, parts)


def lines(title: str, x_label: str, y_label: str, series: dict[str, Sequence[tuple[float, float]]]) -> str:
    """Draw up to two lines through points, on logarithmic axes."""
    left, right, top, bottom, height = 84, 30, 76, 56, 380
    xs = [x for points in series.values() for x, _ in points]
    ys = [y for points in series.values() for _, y in points if y > 0] or [1.0]
    x_from, x_to = math.log10(min(xs)), math.log10(max(xs))
    y_from, y_to = math.floor(math.log10(min(ys))), math.ceil(math.log10(max(ys)))
    y_to += y_to == y_from

    def place(x: float, y: float) -> tuple[float, float]:
        across = (math.log10(x) - x_from) / ((x_to - x_from) or 1)
        up = (math.log10(max(y, 10.0**y_from)) - y_from) / (y_to - y_from)
        return left + across * (_WIDTH - left - right), height - bottom - up * (height - top - bottom)

    parts = [f'<text class="title" x="16" y="26">{escape(title)}</text>']
    for power in range(y_from, y_to + 1):
        _, y = place(min(xs), 10.0**power)
        parts.append(f'<line class="grid" x1="{left}" y1="{y:.1f}" x2="{_WIDTH - right}" y2="{y:.1f}"/>')
        parts.append(f'<text class="faint" x="{left - 8}" y="{y + 4:.1f}" text-anchor="end">{10.0**power:,g}</text>')
    for x in sorted(set(xs)):
        at, _ = place(x, 10.0**y_from)
        parts.append(
            f'<text class="faint" x="{at:.1f}" y="{height - bottom + 20}" text-anchor="middle">{number(x)}</text>'
        )
    parts.append(
        f'<text class="faint" x="{_WIDTH - right}" y="{height - 14}" text-anchor="end">{escape(x_label)}</text>'
    )
    parts.append(f'<text class="faint" x="16" y="{top - 14}">{escape(y_label)}</text>')
    for kind, (name, points) in zip("ab", series.items(), strict=False):
        drawn = [place(x, y) for x, y in points]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in drawn)
        parts.append(f'<polyline class="line {kind}" points="{path}"/>')
        parts += [f'<circle class="{kind}" cx="{x:.1f}" cy="{y:.1f}" r="4"/>' for x, y in drawn]
        x = 16 + 200 * "ab".index(kind)
        parts.append(f'<rect class="{kind}" x="{x}" y="36" width="14" height="12" rx="2"/>')
        parts.append(f'<text x="{x + 20}" y="47">{escape(name)}</text>')
    return _page(height, title, parts)


def number(value: float) -> str:
    """Write a number with as many digits as it deserves."""
    if value == 0:
        return "0"
    if abs(value) >= 1000 or value == round(value):
        return f"{value:,.0f}"
    return f"{value:.{max(0, 2 - math.floor(math.log10(abs(value))))}f}" if abs(value) < 100 else f"{value:.0f}"


def _clipped(label: str) -> str:
    return label if len(label) <= 32 else f"{label[:31]}…"


def _ticks(most: float) -> list[float]:
    rough = max(most, 1e-9) / 4
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * m for m in (1, 2, 2.5, 5, 10) if power * m >= rough)
    return [step * n for n in range(math.ceil(most / step) + 1)]


def _page(height: int, title: str, parts: Sequence[str]) -> str:
    body = "\n".join(parts)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" width="{_WIDTH}" height="{height}" '
        f'role="img" aria-label="{escape(title, {chr(34): "&quot;"})}">\n<style>{_STYLE}</style>\n'
        f'<rect class="page" width="{_WIDTH}" height="{height}" rx="6"/>\n{body}\n</svg>\n'
    )
