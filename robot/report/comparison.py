"""The page of a comparison of methods (`benchmarks/head_to_head.py`): success, paired differences, and
learning curves against demonstrations and against the wall clock of training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from .plots import Line, chart
from .report import commit, machine

STYLES = "abcdefg"
AXES = {"demonstrations": "demonstrations", "seconds": "training, s"}
BASELINES = ("hold", "extrapolate")


def write_comparison(path: str | Path, result: Mapping[str, Any], title: str = "Head to head") -> Path:
    """Write the page of `result`: `sizes`, by size the `tasks`, by task a list of `demonstrations`,
    `seconds`, `arms` and `pairs`, and the `baselines`; and `real`, by dataset."""
    from jinja2 import Environment, FileSystemLoader, select_autoescape

    templates = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"), autoescape=select_autoescape()
    )
    tasks = [
        {
            "title": f"{task}, {size}",
            "charts": learning_curves(cells),
            "cells": [_cell(c) for c in cells],
            "baselines": found.get("baselines", {}).get(task, {}),
        }
        for size, found in result["sizes"].items()
        for task, cells in found["tasks"].items()
    ]
    page = templates.get_template("comparison.html").render(
        title=title,
        tasks=tasks,
        real=[_real(name, r) for name, r in result["real"].items()],
        machine=machine(),
        commit=commit(),
        date=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
    )
    path = Path(path)
    path.write_text(page)
    return path


def learning_curves(cells: Sequence[Mapping[str, Any]]) -> list[str]:
    """One chart for each of `AXES` along which the cells of a task differ while the other stays: that of the
    other's value with most cells."""
    charts = []
    for axis, other in (("demonstrations", "seconds"), ("seconds", "demonstrations")):
        values = [c[other] for c in cells]
        fixed = max(values, key=lambda v: (values.count(v), v), default=None)
        along = sorted((c for c in cells if c[other] == fixed), key=lambda c: c[axis])
        if len(along) < 2:
            continue
        methods = list(dict.fromkeys(a["method"] for c in along for a in c["arms"].values()))
        lines = []
        for style, method in zip(STYLES * len(methods), methods, strict=False):
            points = [(c[axis], c["arms"][method]) for c in along if method in c["arms"]]
            if len(points) > 1:
                lines.append(
                    Line(
                        method,
                        [float(x) for x, _ in points],
                        [100 * arm["success_rate"] for _, arm in points],
                        style,
                        [(100 * arm["interval_95"][0], 100 * arm["interval_95"][1]) for _, arm in points],
                    )
                )
        if lines:
            what = f"{fixed:g} {'s of training' if other == 'seconds' else other}"
            charts.append(
                chart(f"Success by {axis}, {what}", lines, f"{AXES[axis]} ({what})", "success, %", zero=True)
            )
    return charts


def _cell(cell: Mapping[str, Any]) -> dict[str, Any]:
    title = (
        f"{cell['demonstrations']} demonstrations, {cell['seconds']:g} s, {cell['episodes']} episodes a seed"
    )
    return {
        "title": title,
        "arms": [{"name": name, **a} for name, a in cell["arms"].items()],
        "pairs": cell["pairs"],
    }


def _real(name: str, real: Mapping[str, Any]) -> dict[str, Any]:
    rows = [
        {"name": method, "error": m["error"]["policy"], "differences": [m["minus"][b] for b in BASELINES]}
        for method, m in real["methods"].items()
    ]
    return {**real, "name": name, "methods": rows}
