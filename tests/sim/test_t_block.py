"""The overlap of two Ts against sampling, and its invariants."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ulna.sim.tasks.t_block import AREA, RECTANGLES, contacts, overlap, rotation2

poses = st.tuples(st.floats(-1.5, 1.5), st.floats(-1.5, 1.5), st.floats(-3.1, 3.1)).map(np.array)


def inside(points: np.ndarray, pose: np.ndarray) -> np.ndarray:
    local = (points - pose[:2]) @ rotation2(pose[2])
    return np.any([(np.abs(local - c) <= h).all(1) for c, h in RECTANGLES], axis=0)


@settings(max_examples=25, deadline=None)
@given(poses, poses)
def test_overlap_matches_sampling_and_is_symmetric(a: np.ndarray, b: np.ndarray) -> None:
    # a grid: random points would miss by more than they should now and then
    along = (np.arange(800) + 0.5) / 80 - 5
    points = np.stack(np.meshgrid(along, along), -1).reshape(-1, 2)
    both = (inside(points, a) & inside(points, b)).mean() * 100 / AREA
    assert overlap(a, b) == pytest.approx(both, abs=0.03)
    assert overlap(a, b) == pytest.approx(overlap(b, a), abs=1e-9)


@given(poses)
def test_a_t_overlaps_itself_wholly_and_nothing_far_away(a: np.ndarray) -> None:
    assert overlap(a, a) == pytest.approx(1.0)
    assert overlap(a, a + np.array([20.0, 0.0, 0.0])) == 0.0


def test_contacts_lie_on_the_outline_and_push_inwards() -> None:
    edges = contacts(0.3)
    here = np.zeros(3)
    assert len(edges.points) > 15
    assert inside(edges.points + 0.01 * edges.normals, here).all()
    assert not inside(edges.points - 0.01 * edges.normals, here).any()
