"""Subgoals found in how far things look from the end (UVD), in windows and while they are followed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from contracts.data import write_store

from ulna.datasets.features import STATE
from ulna.datasets.reading.windows import Windows, WindowSpec
from ulna.datasets.uvd import DEMONSTRATION, Decompose, Subgoals, next_subgoals, subgoals

THERE_AND_BACK = np.abs((np.arange(121) + 40) % 80 - 40)[:, None] / 40  # 0, 1 at 40, 0 at 80, 1 at 120


def test_a_phase_ends_where_the_distance_to_its_goal_stops_growing_backwards() -> None:
    z, end = THERE_AND_BACK, Decompose(rule="end")
    assert subgoals(z, Decompose()).tolist() == [40, 80, 120]
    assert subgoals(z, Decompose(least=41)).tolist() == [120], "no piece is so long, and none is passed over"
    assert subgoals(z[:100], Decompose()).tolist() == [40, 80, 99]
    assert subgoals(z[:98], Decompose()).tolist() == [40, 97], "17 ticks from the end are too few"
    assert subgoals(z[:41], Decompose()).tolist() == subgoals(z[:41], end).tolist() == [40], "straight on"
    assert subgoals(z[:90], Decompose(rule="uniform", pieces=4)).tolist() == [22, 44, 67, 89]
    assert subgoals(z[:1], Decompose(rule="uniform")).tolist() == subgoals(z[:1], Decompose()).tolist() == [0]
    told = next_subgoals(z, Decompose())
    assert told[[0, 39, 40, 79, 80, 119, 120]].tolist() == [40, 40, 80, 80, 120, 120, 120]
    # what trembles is smoothed: without the kernel a tremble would end a phase
    shaken = z + 0.02 * (-1.0) ** np.arange(121)[:, None]
    assert np.abs(subgoals(shaken, Decompose()) - [40, 80, 120]).max() <= 1
    assert len(subgoals(shaken, Decompose(smooth=50.0))) > 3
    for wrong in ({"smooth": 0.0}, {"least": -1}, {"pieces": 0}, {"reached": 1.0}, {"rule": "guess"}):
        with pytest.raises(ValueError, match=next(iter(wrong)) if "rule" not in wrong else "uniform or end"):
            Decompose(**wrong)  # type: ignore[arg-type]


def test_a_window_has_the_next_subgoal_of_its_own_episode(tmp_path: Path) -> None:
    store, how = write_store(tmp_path / "d", lengths=(12, 7)), Decompose("uniform", pieces=2)
    spec = WindowSpec(1, 1, keys=(STATE,), goal="subgoal", goal_keys=(STATE,), decompose=how)
    windows = Windows(store, spec)
    batch, every = windows.batch(np.array([0, 6, 11, 12, 15, 18])), windows.values(STATE)
    np.testing.assert_array_equal(batch[f"goal.{STATE}"], every[[6, 11, 11, 15, 18, 18]])
    assert batch["goal.ticks"].tolist() == [6, 5, 0, 3, 3, 0]


def test_a_subgoal_stays_until_it_is_near_and_was_there_for_a_while() -> None:
    padded = np.concatenate([THERE_AND_BACK, np.repeat(THERE_AND_BACK[-1:], 30, axis=0)])
    followed = Subgoals({STATE: padded}, Decompose(reached=0.2, dwell=3))
    assert followed.ticks.tolist() == [40, 80, 120], "what repeats is beyond the end"
    at = [
        0.0,
        0.5,
        0.9,
        0.9,
        0.1,
        0.1,
        0.1,
        0.9,
        1.0,
    ]  # 0.9 is within 0.2 of the way to 1, and 0.1 of that to 0
    goals = [float(followed.goal({STATE: np.array([x])})[f"goal.{STATE}"][0]) for x in at]
    assert goals == [1, 1, 1, 0, 0, 0, 1, 1, 1], "the last one stays"
    with pytest.raises(ValueError, match="3 of a, 2 of b"):
        Subgoals({"a": np.zeros((3, 1)), "b": np.zeros((2, 1))}, Decompose())
    assert DEMONSTRATION + STATE == "demonstration.observation.state"
