"""The report: one self-contained HTML page that says how good a policy is and how that is known."""

from __future__ import annotations

import base64
import html
import platform
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .plots import Line, chart, smooth, thin
from .statistics import wilson

STYLES = "abcd"


def write_report(
    path: str | Path,
    title: str,
    evaluation: Mapping[str, Any],
    train: Mapping[str, Any],
    commands: Sequence[str],
    phases: Sequence[tuple[str, float]] = (),
    notes: Sequence[str] = (),
) -> Path:
    """Write the page for a closed-loop or an open-loop `evaluation` (as `ulna evaluate --json` prints it).

    train: the checkpoint's train.json. commands: what was run, to be pasted. phases: (name, seconds).
    """
    from jinja2 import Environment, FileSystemLoader, select_autoescape

    templates = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"), autoescape=select_autoescape()
    )
    closed = evaluation["kind"] == "closed-loop"
    page = templates.get_template("report.html").render(
        title=title,
        closed=closed,
        e=evaluation,
        train=train,
        commands=commands,
        phases=phases,
        notes=notes,
        machine=machine(),
        commit=commit(),
        loss=_loss(train["losses"]),
        **(_closed(evaluation) if closed else _open(evaluation)),
    )
    path = Path(path)
    path.write_text(page)
    return path


def _loss(losses: Sequence[float]) -> str:
    x, y = thin(list(losses))
    xs, ys = thin(smooth(losses))
    lines = [Line("each step", x, y, "faint"), Line("smoothed", xs, ys, "a")]
    return chart("Training loss", lines, "optimiser step", "loss (log scale)", log_y=True)


def _closed(e: Mapping[str, Any]) -> dict[str, Any]:
    low, high = e["wilson_95"]
    videos = []
    for path in e["videos"]:
        data = base64.b64encode(Path(path).read_bytes()).decode()
        seed = int(Path(path).stem.split("-")[1])
        outcome = next(o for o in e["outcomes"] if o["seed"] == seed)
        videos.append({"seed": seed, "success": outcome["success"], "ticks": outcome["ticks"], "data": data})
    plots = []
    if e["traces"]:
        trace = e["traces"][0]
        time = [i / e["control_hz"] for i in range(len(trace["action"]))]
        for j, (name, unit) in enumerate(zip(e["joints"], e["units"], strict=True)):
            lines = [
                Line("action sent", time, [row[j] for row in trace["action"]], "a"),
                Line("joint position", time, [row[j] for row in trace["state"]], "b"),
            ]
            plots.append(chart(f"{name} over time", lines, "time, s", f"{name}, {unit}", 420, 200))
    return {
        "low": low,
        "high": high,
        "videos": videos,
        "joint_plots": plots,
        "trace_seed": e["traces"][0]["seed"] if e["traces"] else None,
    }


def _open(e: Mapping[str, Any]) -> dict[str, Any]:
    better = all(c["better"] for c in e["comparisons"].values())
    names = {"policy": "policy", "hold": "hold the last command", "extrapolate": "linear extrapolation"}
    steps = [(i + 1) / e["fps"] for i in range(e["horizon"])]
    lines = [Line(names[n], steps, e["per_step"][n], s) for n, s in zip(names, STYLES, strict=False)]
    per_step = chart(
        "Error over the horizon", lines, "time ahead, s", "error / spread of the joint", 640, 280, zero=True
    )
    verdict = (
        "On episodes it has not seen, the policy predicts the operator's next commands better than both baselines; "
        "the intervals of the differences exclude zero."
        if better
        else "The policy is NOT shown to be better than every baseline: see the intervals below."
    )
    joints = [
        {"name": name, "unit": unit, **{n: e["per_joint"][n][j] for n in names}}
        for j, (name, unit) in enumerate(zip(e["joints"], e["units"], strict=True))
    ]
    return {"better": better, "verdict": verdict, "per_step": per_step, "joints": joints, "names": names}


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


def summary_line(e: Mapping[str, Any]) -> str:
    """One line for a terminal."""
    if e["kind"] == "closed-loop":
        low, high = wilson(e["successes"], e["episodes"])
        return f"{e['successes']} of {e['episodes']} succeeded ({100 * low:.0f} to {100 * high:.0f} %)"
    errors = ", ".join(f"{n} {v['mean']:.3f}" for n, v in e["relative_error"].items())
    return html.unescape(f"error / spread: {errors}")
