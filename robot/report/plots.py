"""Small SVG line charts for reports: text, no library, readable in light and dark through the page's CSS
variables."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape


@dataclass(frozen=True)
class Line:
    """One curve. style: CSS class of the page (`a` to `c`, `faint`, and `thin` beside one of them); an empty
    label keeps it out of the legend. band: (low, high) at every x, drawn behind it."""

    label: str
    x: Sequence[float]
    y: Sequence[float]
    style: str = "a"
    band: Sequence[tuple[float, float]] = ()


def chart(
    title: str,
    lines: Sequence[Line],
    x_label: str,
    y_label: str,
    width: int = 640,
    height: int = 260,
    log_y: bool = False,
    zero: bool = False,
) -> str:
    """An `<svg>` with axes, grid, legend and a title for screen readers."""
    left, right, top, bottom = 58, 20, 12, 42
    ordinates = [v for line in lines for v in (*line.y, *(b for pair in line.band for b in pair))]
    values = [(math.log10(max(v, 1e-12)) if log_y else v) for v in ordinates]
    xs = [v for line in lines for v in line.x]
    x0, x1 = min(xs), max(xs)
    y0, y1 = min(values), max(values)
    if zero and not log_y:
        y0 = min(y0, 0.0)
    if y1 - y0 < 1e-9:
        y0, y1 = y0 - 0.5, y1 + 0.5
    y0, y1 = (y0 if zero else y0 - 0.05 * (y1 - y0)), y1 + 0.05 * (y1 - y0)
    x1 = x1 if x1 > x0 else x0 + 1

    def px(x: float) -> float:
        return left + (x - x0) / (x1 - x0) * (width - left - right)

    def py(y: float) -> float:
        v = math.log10(max(y, 1e-12)) if log_y else y
        return top + (y1 - v) / (y1 - y0) * (height - top - bottom)

    parts = [f'<svg class="chart" viewBox="0 0 {width} {height}" role="img" aria-label="{escape(title)}">']
    marks = [10.0**e for e in range(math.floor(y0), math.ceil(y1) + 1)] if log_y else _marks(y0, y1)
    if log_y and sum(y0 <= math.log10(t) <= y1 for t in marks) < 2:
        marks = [10**v for v in _marks(y0, y1, 4)]
    for t in marks:
        y = py(t)
        if top - 1 <= y <= height - bottom + 1:
            parts.append(f'<line class="grid" x1="{left}" x2="{width - right}" y1="{y:.1f}" y2="{y:.1f}"/>')
            parts.append(f'<text x="{left - 8}" y="{y + 4:.1f}" text-anchor="end">{_number(t)}</text>')
    for t in _marks(x0, x1, 6):
        parts.append(
            f'<text x="{px(t):.1f}" y="{height - bottom + 18}" text-anchor="middle">{_number(t)}</text>'
        )
    parts.append(
        f'<text class="axis" x="{(left + width - right) / 2}" y="{height - 6}" text-anchor="middle">'
        f"{escape(x_label)}</text>"
    )
    parts.append(
        f'<text class="axis" x="14" y="{(top + height - bottom) / 2}" text-anchor="middle" '
        f'transform="rotate(-90 14 {(top + height - bottom) / 2})">{escape(y_label)}</text>'
    )
    for line in lines:
        if line.band:
            upper = list(zip(line.x, (high for _, high in line.band), strict=True))
            lower = list(zip(line.x, (low for low, _ in line.band), strict=True))
            edge = " ".join(f"{px(x):.1f},{py(y):.1f}" for x, y in [*upper, *reversed(lower)])
            parts.append(f'<polygon class="band {line.style}" points="{edge}"/>')
    for line in lines:
        points = " ".join(f"{px(x):.1f},{py(y):.1f}" for x, y in zip(line.x, line.y, strict=True))
        parts.append(f'<polyline class="curve {line.style}" points="{points}"/>')
    parts.append("</svg>")
    labelled = [line for line in lines if line.label]
    if len(labelled) > 1:
        keys = "".join(f'<span class="key {line.style}">{escape(line.label)}</span>' for line in labelled)
        parts.append(f'<div class="legend">{keys}</div>')
    return "".join(parts)


def sparkline(title: str, lines: Sequence[Line], width: int = 150, height: int = 30) -> str:
    """A chart the size of a word, from zero, without axes: for comparing shapes down a table."""
    x0, x1 = min(v for line in lines for v in line.x), max(v for line in lines for v in line.x)
    top = max(v for line in lines for v in line.y) or 1.0
    across, down = (width - 4) / ((x1 - x0) or 1), (height - 4) / top
    parts = [f'<svg class="spark" viewBox="0 0 {width} {height}" role="img" aria-label="{escape(title)}">']
    for line in lines:
        points = " ".join(
            f"{2 + (x - x0) * across:.1f},{height - 2 - y * down:.1f}"
            for x, y in zip(line.x, line.y, strict=True)
        )
        parts.append(f'<polyline class="curve {line.style}" points="{points}"/>')
    return "".join([*parts, "</svg>"])


def smooth(values: Sequence[float], weight: float = 0.95) -> list[float]:
    """Exponential moving average without start-up bias."""
    out, total, norm = [], 0.0, 0.0
    for v in values:
        total, norm = weight * total + (1 - weight) * v, weight * norm + (1 - weight)
        out.append(total / norm)
    return out


def thin(values: Sequence[float], most: int = 400) -> tuple[list[float], list[float]]:
    """(positions counted from 1, values) of at most `most` evenly spaced entries, the last one kept."""
    step = max(1, math.ceil(len(values) / most))
    positions = sorted({*range(0, len(values), step), len(values) - 1})
    return [float(i + 1) for i in positions], [values[i] for i in positions]


def _marks(low: float, high: float, n: int = 5) -> list[float]:
    raw = (high - low) / n
    magnitude = 10.0 ** math.floor(math.log10(raw))
    step = min((m * magnitude for m in (1, 2, 2.5, 5, 10)), key=lambda s: abs(s - raw))
    first = math.ceil(low / step - 1e-9)
    return [i * step for i in range(first, math.floor(high / step + 1e-9) + 1)]


def _number(v: float) -> str:
    if abs(v) < 1e-12:
        return "0"
    return f"{v:.4g}" if abs(v) < 10000 else f"{v / 1000:g}k"
