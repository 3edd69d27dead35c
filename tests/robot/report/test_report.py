"""The report is one file that needs nothing else, and says what the numbers say."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest

from ulna.policies.train.record import TrainingRecord
from ulna.robot.report.evaluation import ClosedLoop, OpenLoop
from ulna.robot.report.plots import Line, chart, smooth, sparkline, thin
from ulna.robot.report.report import write_report
from ulna.robot.report.video import write_mp4

# as older versions wrote them: reports and train.json keep their keys
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


RECORD = TrainingRecord.from_json(TRAIN)


def closed(tmp_path: Path) -> ClosedLoop:
    video = tmp_path / "seed-1000.mp4"
    write_mp4(video, [np.full((48, 64, 3), i, np.uint8) for i in range(10)], 20.0)
    return ClosedLoop.from_json({
        "kind": "closed-loop", "task": "lift", "robot": "sim:so101", "agent": "policy flow", "recipe": "flow",
        "checkpoint": "abc" * 20, "joints": ["pan", "<b>"], "units": ["rad", "rad"],
        "control_hz": 20.0, "episodes": 2,
        "first_seed": 1000, "successes": 1, "success_rate": 0.5, "wilson_95": [0.09, 0.91],
        "outcomes": [
            {"seed": 1000, "success": True, "ticks": 10, "score": 1.0},
            {"seed": 1001, "success": False, "ticks": 200, "score": 0.1},
        ],
        "traces": [{"seed": 1000, "action": [[0.0, 1.0]] * 10, "state": [[0.0, 0.9]] * 10}],
        "videos": [str(video)], "decisions": 3, "nfe_per_decision": 10.0,
        "latency_ms": {"p50": 5.0, "p99": 9.0},
    })  # fmt: skip


BETTER, UNCLEAR, WORSE = [-0.2, -0.1], [-0.2, 0.1], [0.1, 0.2]


def opened(hold: list[float], extrapolate: list[float]) -> OpenLoop:
    """An open-loop result whose paired intervals are these."""
    names = ("policy", "hold", "extrapolate")
    intervals = {"hold": hold, "extrapolate": extrapolate}
    return OpenLoop.from_json({
        "kind": "open-loop", "data": "runs/x/data", "recipe": "flow", "checkpoint": "abc",
        "episodes": [10, 11],
        "frames": 100, "every": 5, "horizon": 4, "fps": 30.0, "nfe_per_decision": 10, "block_s": 1.0,
        "joints": ["a"], "units": [""],
        "relative_error": {
            n: {"mean": m, "bootstrap_95": [m - 0.05, m + 0.1]}
            for n, m in zip(names, (0.1, 0.4, 0.2), strict=True)
        },
        "comparisons": {
            n: {"difference": -0.1, "bootstrap_95": i, "better": i[1] < 0} for n, i in intervals.items()
        },
        "per_joint": {n: [0.1] for n in names}, "per_step": {n: [0.1, 0.2, 0.3, 0.4] for n in names},
        "per_step_95": {n: [[0.0, 0.5]] * 4 for n in names},
        "per_joint_and_step": {n: [[0.1], [0.2], [0.3], [0.4]] for n in names},
        "per_joint_difference": {n: [[-0.1, *i]] for n, i in intervals.items()},
        "trace": {
            "episode": 10, "recorded": [[0.0], [0.1], [0.3], [0.2]],
            "chunks": [{"at": 0, "actions": [[0.0], [0.1]]}, {"at": 2, "actions": [[0.3]]}],
        },
    })  # fmt: skip


def test_baselines_and_what_a_film_shows_are_said(tmp_path: Path) -> None:
    e = closed(tmp_path)
    hold = replace(e, agent="hold", outcomes=[replace(o, success=False) for o in e.outcomes])
    write = partial(write_report, tmp_path / "r.html", "Lift", train=RECORD, commands=[])
    page = write(evaluation=e, baselines=[hold]).read_text()
    assert "hold on the same seeds: 0 of 2 (0 to 66 %)" in page
    assert "second run" not in page
    again = replace(e, filmed=[replace(e.outcomes[0], success=False)])
    assert "ended otherwise than the counted one" in write(evaluation=again).read_text()


def test_a_closed_loop_report_stands_alone(tmp_path: Path) -> None:
    page = write_report(
        tmp_path / "r.html", "Lift", closed(tmp_path), RECORD, ["ulna train flow"], [("train", 12.0)]
    ).read_text()
    assert "1 of 2 episodes succeeded" in page
    assert "9 to 91 %" in page
    assert page.count("data:video/mp4;base64,") == 1
    assert not re.search(r'(src|href)="(?!data:)', page), "nothing is fetched"
    assert "<b>" not in page, "a name is text"
    assert "ulna train flow" in page
    for svg in re.findall(r"<svg.*?</svg>", page, re.DOTALL):
        ElementTree.fromstring(svg)


@pytest.mark.parametrize(
    ("hold", "extrapolate", "says"),
    [
        (BETTER, BETTER, "exclude zero"),
        (
            BETTER,
            UNCLEAR,
            "NOT shown to be better than linear extrapolation; better than holding the last command",
        ),
        (WORSE, WORSE, "WORSE than holding the last command and linear extrapolation."),
        (
            WORSE,
            UNCLEAR,
            "WORSE than holding the last command; NOT shown to be better than linear extrapolation.",
        ),
    ],
)  # fmt: skip
def test_an_open_loop_verdict_says_what_the_intervals_allow(
    tmp_path: Path, hold: list[float], extrapolate: list[float], says: str
) -> None:
    page = write_report(tmp_path / "r.html", "Real", opened(hold, extrapolate), RECORD, []).read_text()
    assert says in page
    assert ("exclude zero" in page) is (hold == extrapolate == BETTER)
    assert "0.50×" in page, "measured against the better baseline"
    assert "episode 10" in page
    charts = [ElementTree.fromstring(svg) for svg in re.findall(r"<svg.*?</svg>", page, re.DOTALL)]
    labels = [svg.attrib["aria-label"] for svg in charts]
    assert labels == [
        "Error over the horizon",
        "a over time",
        "Training loss",
        "error of a over the horizon",
    ]
    (over_horizon, over_time, _, small) = charts
    assert len(over_horizon.findall("polygon")) == len(over_horizon.findall("polyline")) == 3
    assert len(over_time.findall("polyline")) == 1 + 2, "what was recorded, and two chunks"
    assert len(small.findall("polyline")) == 3


def test_a_training_record_keeps_its_keys_on_disk() -> None:
    assert (RECORD.n_windows, RECORD.n_episodes, RECORD.control_hz) == (500, 2, None)
    written = RECORD.to_json()
    assert {k: written[k] for k in TRAIN} == TRAIN
    assert TrainingRecord.from_json(written | {"of a newer version": 1}) == RECORD
    several = TrainingRecord.from_json(TRAIN | {"episodes": [[0, 1], [2]], "fps": 20.0})
    assert (several.n_episodes, several.to_json()["fps"]) == (3, 20.0)
    assert several.to_json()["episodes"] == [[0, 1], [2]]


def test_what_is_no_evaluation_is_refused() -> None:
    for strange in (
        {},
        {"kind": "open-loop"},
        {"kind": "closed-loop"},
        {"kind": "closed-loop", "outcomes": 3},
    ):
        with pytest.raises(ValueError, match="no closed-loop report"):
            ClosedLoop.from_json(strange)
    with pytest.raises(ValueError, match="no open-loop report: KeyError"):
        OpenLoop.from_json({"kind": "open-loop", "data": "x"})


@pytest.mark.parametrize("name", ["demo", "demo_twin"])
def test_published_results_are_read_with_every_number(name: str) -> None:
    published = json.loads((Path(__file__).parents[3] / "benchmarks/results" / f"{name}.json").read_text())
    again = ClosedLoop.from_json(published).to_json()
    assert again.pop("wilson_95") == pytest.approx(published["wilson_95"], abs=1e-12)
    traces = again.pop("traces")  # are not published
    assert traces == []
    assert again == {key: published[key] for key in again}
    assert {"successes", "latency_ms", "outcomes", "checkpoint", "control_hz"} <= set(again)


def test_charts_survive_flat_and_single_values() -> None:
    for y in ([1.0, 1.0, 1.0], [0.0, 0.0, 0.0]):
        ElementTree.fromstring(chart("t", [Line("a", [1, 2, 3], y)], "x", "y"))
    ElementTree.fromstring(chart("t", [Line("a", [1], [5.0])], "x", "y", log_y=True))
    ElementTree.fromstring(sparkline("t", [Line("a", [1], [0.0])]))


def test_ticks_are_round_numbers_inside_the_plot() -> None:
    svg = ElementTree.fromstring(chart("t", [Line("", [0, 2500], [0.0, 0.3])], "x", "y", 480))
    ticks = [t for t in svg.findall("text") if "class" not in t.attrib]
    assert [t.text for t in ticks][-6:] == ["0", "500", "1000", "1500", "2000", "2500"]
    assert "0.3" in [t.text for t in ticks], "no 0.30000000000000004"
    assert all(float(t.attrib["x"]) + 16 <= 480 for t in ticks), "the last number is not cut off"


def test_thinning_keeps_the_ends_and_smoothing_a_constant() -> None:
    x, y = thin([float(i) for i in range(1001)], 100)
    assert (x[0], y[0], x[-1], y[-1]) == (1.0, 0.0, 1001.0, 1000.0)
    assert len(x) <= 102
    assert smooth([2.0] * 5) == pytest.approx([2.0] * 5)
