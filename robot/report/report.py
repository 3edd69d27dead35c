"""The report: one self-contained HTML page that says how good a policy is and how that is known."""

from __future__ import annotations

import base64
import math
import platform
import subprocess
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .evaluation import ClosedLoop, Comparison, OpenLoop
from .plots import Line, chart, smooth, sparkline, thin

if TYPE_CHECKING:
    from ...policies.train.record import TrainingRecord

STYLES = "abc"
PREDICTORS = {
    "policy": "policy",
    "hold": "holding the last command",
    "extrapolate": "linear extrapolation",
}


def write_report(
    path: str | Path,
    title: str,
    evaluation: ClosedLoop | OpenLoop,
    train: TrainingRecord,
    commands: Sequence[str],
    phases: Sequence[tuple[str, float]] = (),
    notes: Sequence[str] = (),
    baselines: Sequence[ClosedLoop] = (),
) -> Path:
    """Write the page. commands: what was run, to be pasted. phases: (name, seconds). notes: paragraphs.
    baselines: other agents on the same scenes, such as the expert, and one that holds still."""
    from jinja2 import Environment, FileSystemLoader, select_autoescape

    templates = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"), autoescape=select_autoescape()
    )
    page = templates.get_template("report.html").render(
        title=title,
        closed=isinstance(evaluation, ClosedLoop),
        e=evaluation,
        train=train,
        commands=commands,
        phases=phases,
        notes=notes,
        baselines=baselines,
        machine=machine(),
        commit=commit(),
        date=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        loss=_loss(train.losses),
        trained_on=_trained_on(train),
        **(_closed(evaluation) if isinstance(evaluation, ClosedLoop) else _open(evaluation)),
    )
    path = Path(path)
    path.write_text(page)
    return path


def _loss(losses: Sequence[float]) -> str:
    x, y = thin(list(losses))
    xs, ys = thin(smooth(losses))
    lines = [Line("each step", x, y, "faint"), Line("smoothed", xs, ys, "a")]
    return chart("Training loss", lines, "optimiser step", "loss (log scale)", 480, 250, log_y=True)


def _trained_on(train: TrainingRecord) -> str:
    return (
        f"{train.n_episodes} episodes of {train.n_windows} ticks in all, {train.steps} steps in "
        f"{train.seconds:.0f} s on {train.device}, {train.parameters / 1e6:.2f} M parameters."
    )


def _closed(e: ClosedLoop) -> dict[str, Any]:
    low, high = e.wilson_95
    videos = []
    for path in e.videos:
        data = base64.b64encode(Path(path).read_bytes()).decode()
        seed = int(Path(path).stem.split("-")[1])
        judged, shown = (
            next((o for o in outcomes if o.seed == seed), None) for outcomes in (e.outcomes, e.filmed)
        )
        shown = shown or judged
        assert shown is not None
        other = judged is not None and judged.success != shown.success
        videos.append(
            {"seed": seed, "success": shown.success, "ticks": shown.ticks, "other": other, "data": data}
        )
    plots = []
    if e.traces:
        trace = e.traces[0]
        time = [i / e.control_hz for i in range(len(trace.action))]
        for j, (name, unit) in enumerate(zip(e.joints, e.units, strict=True)):
            lines = [
                Line("action sent", time, [row[j] for row in trace.action], "a"),
                Line("joint position", time, [row[j] for row in trace.state], "b"),
            ]
            plots.append(chart(f"{name} over time", lines, "time, s", _with_unit(name, unit), 480, 220))
    return {
        "low": low,
        "high": high,
        "videos": videos,
        "joint_plots": plots,
        "trace_seed": e.traces[0].seed if e.traces else None,
    }


def _open(e: OpenLoop) -> dict[str, Any]:
    steps = [(i + 1) / e.control_hz for i in range(e.n_actions_ahead)]
    lines = [
        Line(PREDICTORS[n], steps, e.per_step[n], style, [(low, high) for low, high in e.per_step_95[n]])
        for n, style in zip(PREDICTORS, STYLES, strict=True)
    ]
    per_step = chart(
        "Error over the horizon", lines, "time ahead, s", "error / spread of the joint", 480, 300, zero=True
    )
    mean = {n: v.mean for n, v in e.relative_error.items()}
    best = min((n for n in mean if n != "policy"), key=lambda n: mean[n])
    joints = []
    for j, (name, unit) in enumerate(zip(e.joints, e.units, strict=True)):
        curves = [
            Line("", steps, [row[j] for row in e.per_joint_and_step[n]], style)
            for n, style in zip(PREDICTORS, STYLES, strict=True)
        ]
        difference, low, high = e.per_joint_difference[best][j]
        joints.append(
            {
                "name": _with_unit(name, unit),
                "spark": sparkline(f"error of {name} over the horizon", curves),
                "difference": difference,
                "low": low,
                "high": high,
                **{n: e.per_joint[n][j] for n in PREDICTORS},
            }
        )
    return {
        "better": all(c.better for c in e.comparisons.values()),
        "verdict": verdict(e.comparisons),
        "ratio": mean["policy"] / mean[best] if mean[best] > 0 else math.inf,
        "best": best,
        "per_step": per_step,
        "joints": joints,
        "names": PREDICTORS,
        "chunk_plots": _chunks(e),
    }


def _chunks(e: OpenLoop, most: int = 6) -> list[str]:
    """The joints that moved most in the first episode: what was recorded, and the chunks predicted along the
    way."""
    time = [i / e.control_hz for i in range(len(e.trace.recorded))]
    columns = list(zip(*e.trace.recorded, strict=True))
    most_moved = sorted(range(len(columns)), key=lambda j: min(columns[j]) - max(columns[j]))[:most]
    plots = []
    for j in sorted(most_moved):
        lines = [Line("recorded", time, columns[j], "faint wide")]
        for i, chunk in enumerate(e.trace.chunks):
            times = [(chunk.at + k) / e.control_hz for k in range(len(chunk.actions))]
            lines.append(
                Line("" if i else "policy's chunks", times, [row[j] for row in chunk.actions], "a thin")
            )
        name = e.joints[j]
        plots.append(chart(f"{name} over time", lines, "time, s", _with_unit(name, e.units[j]), 480, 220))
    return plots


def verdict(comparisons: Mapping[str, Comparison]) -> str:
    """What the paired intervals allow one to say, and no more. comparisons: by baseline."""
    groups: dict[str, list[str]] = {"better": [], "unclear": [], "worse": []}
    for name, c in comparisons.items():
        low, high = c.bootstrap_95
        groups["better" if high < 0 else "worse" if low > 0 else "unclear"].append(PREDICTORS[name])
    if not groups["unclear"] and not groups["worse"]:
        return (
            "On episodes it has not seen, the policy predicts the next commands better than both baselines: "
            "the intervals of both paired differences exclude zero."
        )
    clauses = []
    if groups["worse"]:
        clauses.append(f"WORSE than {' and '.join(groups['worse'])}")
    if groups["unclear"]:
        clauses.append(f"NOT shown to be better than {' and '.join(groups['unclear'])}")
    if groups["better"]:
        clauses.append(f"better than {' and '.join(groups['better'])}")
    return f"On episodes it has not seen, the policy's predictions are {'; '.join(clauses)}."


def _with_unit(name: str, unit: str) -> str:
    return f"{name}, {unit}" if unit else name


def machine() -> str:
    """The processor and its number of cores, in words."""
    import os

    model = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        pass
    return f"{model}, {os.cpu_count()} cores, {platform.system()}, Python {platform.python_version()}"


def commit() -> str:
    """The checkout's commit, marked when files differ from it; empty outside a checkout."""
    try:
        name, changes = (
            subprocess.run(
                ["git", *words], cwd=Path(__file__).parent, capture_output=True, text=True, check=True
            ).stdout.strip()
            for words in (["rev-parse", "--short", "HEAD"], ["status", "--porcelain"])
        )
        return name + (" with changes" if changes else "")
    except (OSError, subprocess.CalledProcessError):
        return ""


def summary(e: ClosedLoop | OpenLoop) -> str:
    """What matters, for a terminal."""
    if isinstance(e, ClosedLoop):
        low, high = (100 * v for v in e.wilson_95)
        return f"{e.successes} of {e.episodes} succeeded (95 % interval {low:.0f} to {high:.0f} %)"
    errors = ", ".join(f"{PREDICTORS[n]} {v.mean:.3f}" for n, v in e.relative_error.items())
    return f"error relative to the joints' spread: {errors}\n{verdict(e.comparisons)}"
