"""The report is one file that needs nothing else, and says what the numbers say."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest

from ulna.robot.plots import Line, chart, smooth, thin
from ulna.robot.report import write_report
from ulna.robot.video import write_mp4

TRAIN: dict[str, Any] = {
    "losses": [1.0 / (i + 1) for i in range(1000)],
    "parameters": 5_000_000,
    "steps": 1000,
    "episodes": [0, 1],
    "frames": 500,
    "seconds": 12.0,
    "device": "cpu",
    "versions": {"ulna": "0.1.0", "torch": "2"},
}


def closed(tmp_path: Path) -> dict[str, Any]:
    video = tmp_path / "seed-1000.mp4"
    write_mp4(video, [np.full((48, 64, 3), i, np.uint8) for i in range(10)], 20.0)
    return {
        "kind": "closed-loop", "task": "lift", "robot": "sim:so101", "agent": "policy flow", "recipe": "flow",
        "checkpoint": "abc" * 20, "joints": ["pan", "<b>"], "units": ["rad", "rad"], "control_hz": 20.0, "episodes": 2,
        "first_seed": 1000, "successes": 1, "success_rate": 0.5, "wilson_95": [0.09, 0.91],
        "outcomes": [
            {"seed": 1000, "success": True, "ticks": 10, "score": 1.0},
            {"seed": 1001, "success": False, "ticks": 200, "score": 0.1},
        ],
        "traces": [{"seed": 1000, "action": [[0.0, 1.0]] * 10, "state": [[0.0, 0.9]] * 10}],
        "videos": [str(video)], "decisions": 3, "nfe_per_decision": 10.0, "latency_ms": {"p50": 5.0, "p99": 9.0},
    }  # fmt: skip


def opened(better: bool) -> dict[str, Any]:
    names = ("policy", "hold", "extrapolate")
    interval = [-0.2, -0.1] if better else [-0.2, 0.1]
    return {
        "kind": "open-loop", "data": "runs/x/data", "recipe": "flow", "checkpoint": "abc", "episodes": [10, 11],
        "frames": 100, "horizon": 4, "fps": 30.0, "nfe_per_decision": 10, "block_s": 1.0, "joints": ["a"], "units": [""],
        "relative_error": {n: {"mean": 0.1, "bootstrap_95": [0.05, 0.2]} for n in names},
        "comparisons": {n: {"difference": -0.1, "bootstrap_95": interval, "better": better} for n in names[1:]},
        "per_joint": {n: [0.1] for n in names}, "per_step": {n: [0.1, 0.2, 0.3, 0.4] for n in names},
    }  # fmt: skip


def test_a_closed_loop_report_stands_alone(tmp_path: Path) -> None:
    page = write_report(
        tmp_path / "r.html", "Lift", closed(tmp_path), TRAIN, ["ulna train flow"], [("train", 12.0)]
    ).read_text()
    assert "1 of 2 episodes succeeded" in page
    assert "9 to 91 %" in page
    assert page.count("data:video/mp4;base64,") == 1
    assert not re.search(r'(src|href)="(?!data:)', page), "nothing is fetched"
    assert "<b>" not in page.split("seed 1000")[-1].replace("<b style", "") or "&lt;b&gt;" in page
    assert "ulna train flow" in page
    for svg in re.findall(r"<svg.*?</svg>", page, re.DOTALL):
        ElementTree.fromstring(svg)


@pytest.mark.parametrize("better", [True, False])
def test_an_open_loop_report_says_so_when_a_baseline_is_not_beaten(tmp_path: Path, better: bool) -> None:
    page = write_report(tmp_path / "r.html", "Real", opened(better), TRAIN, []).read_text()
    assert ("NOT shown to be better" in page) is not better
    assert ("exclude zero" in page) is better


def test_charts_survive_flat_and_single_values() -> None:
    for y in ([1.0, 1.0, 1.0], [0.0, 0.0, 0.0]):
        ElementTree.fromstring(chart("t", [Line("a", [1, 2, 3], y)], "x", "y"))
    ElementTree.fromstring(chart("t", [Line("a", [1], [5.0])], "x", "y", log_y=True))


def test_thinning_keeps_the_ends_and_smoothing_a_constant() -> None:
    x, y = thin([float(i) for i in range(1001)], 100)
    assert (x[0], y[0], x[-1], y[-1]) == (1.0, 0.0, 1001.0, 1000.0)
    assert len(x) <= 102
    assert smooth([2.0] * 5) == pytest.approx([2.0] * 5)
