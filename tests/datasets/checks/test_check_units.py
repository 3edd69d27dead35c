"""Numbers that cannot be in their unit, and a leader that stands otherwise than its follower."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from ulna.datasets.checks.check import Finding, check
from ulna.datasets.features import ACTION, STATE, Feature
from ulna.datasets.recording.writer import EpisodeWriter
from ulna.datasets.store import EpisodeStore

NAMES = ("shoulder_pan", "shoulder_lift", "elbow_flex", "gripper")
HZ = 30
Change = Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]


def store_of(path: Path, change: Change, unit: str = "rad", names: tuple[str, ...] = NAMES) -> EpisodeStore:
    """Three episodes of joints that follow their commands 0.1 s later and sag, with `change(command, state)`
    made to them."""
    feature = Feature((4,), "float32", names, (unit,) * 4 if unit else ())
    store = EpisodeStore.create(path, {STATE: feature, ACTION: feature}, HZ)
    with EpisodeWriter(store) as writer:
        for i in range(3):
            rng = np.random.default_rng(i)
            t = np.arange(6 * HZ) / HZ
            phase, pace = rng.uniform(0, 6, 4), rng.uniform(0.8, 2.0, 4)
            command = 0.6 * np.sin(t[:, None] * pace + phase)
            state = 0.6 * np.sin((t[:, None] - 0.1) * pace + phase) - [0, 0.05, 0.03, 0.3]
            state += rng.normal(0, 0.0007, state.shape)
            command, state = change(command, state)
            writer.start({"task": "wave"})
            for k in range(len(t)):
                at = round(k * 1e9 / HZ)
                values = {STATE: state[k].astype(np.float32), ACTION: command[k].astype(np.float32)}
                writer.tick(values, dict.fromkeys(values, (at, at)))
            writer.end({"success": True})
    return store


def findings(store: EpisodeStore) -> list[Finding]:
    return [f for f in check(store) if f.check in ("units", "offset")]


def in_degrees(command: np.ndarray, state: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return np.degrees(command), np.degrees(state)


@pytest.mark.parametrize(
    ("unit", "scale"), [("rad", 1.0), ("deg", 180 / np.pi), ("", 180 / np.pi), ("", 1.0)]
)
@pytest.mark.parametrize(("by", "severity"), [(np.radians(10), "warning"), (np.radians(-17), "severe")])
def test_a_leader_that_stands_apart(
    tmp_path: Path, unit: str, scale: float, by: float, severity: str
) -> None:
    def change(command: np.ndarray, state: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return command * scale, (state - [0, 0, by, 0]) * scale

    (f,) = [f for f in findings(store_of(tmp_path / "d", change, unit)) if f.check == "offset"]
    assert f.message.startswith("elbow_flex is sent")
    assert f.severity == severity
    assert f.value == pytest.approx((by + 0.03) * scale, abs=0.02 * scale)


@pytest.mark.parametrize("unit", ["rad", "deg"])
def test_clean_joints_give_no_finding(tmp_path: Path, unit: str) -> None:
    change = in_degrees if unit == "deg" else lambda command, state: (command, state)
    assert not findings(store_of(tmp_path / "d", change, unit))


def test_commands_that_are_differences_are_no_offset(tmp_path: Path) -> None:
    def change(command: np.ndarray, state: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return np.gradient(command, axis=0), state + 1.0

    assert not findings(store_of(tmp_path / "d", change))


def test_degrees_taken_for_radians(tmp_path: Path) -> None:
    every = findings(store_of(tmp_path / "d", in_degrees))
    assert {(f.check, f.severity) for f in every} == {("units", "severe")}
    assert all("degrees taken for radians?" in f.message for f in every)


def test_small_motions_in_degrees_are_told_by_their_speed(tmp_path: Path) -> None:
    def change(command: np.ndarray, state: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        t = np.arange(len(state))[:, None] / HZ
        wave = 4 * np.sin(t * [9, 8, 7, 6] + 1)
        return wave, wave

    every = findings(store_of(tmp_path / "d", change))
    assert every
    assert all("as no arm does: degrees taken for radians?" in f.message for f in every)


@pytest.mark.parametrize("unit", ["rad", "m", "1", "%", "deg", "furlong", ""])
def test_no_joint_is_at_1e38(tmp_path: Path, unit: str) -> None:
    def change(command: np.ndarray, state: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return command, state * np.where(np.arange(len(state)) == 50, 1e38, 1.0)[:, None]

    every = findings(store_of(tmp_path / "d", change, unit))
    severe = [f for f in every if f.severity == "severe"]
    assert {f.stream for f in severe} == {STATE}
    assert {f.message.split()[0] for f in severe} == set(NAMES)


def test_what_is_not_stated_is_said(tmp_path: Path) -> None:
    every = findings(store_of(tmp_path / "d", lambda command, state: (command, state), "", ()))
    assert {(f.severity, f.episode) for f in every} == {("info", -1)}
    assert any("ulna data units" in f.message for f in every)
