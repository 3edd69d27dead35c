"""How far the parts of an arm are moved by its joints, at most."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np


def levers_of(model: Any, joint: int, at: np.ndarray, radius: float) -> dict[int, float]:
    """By joint of `model` that moves a thing of `radius` m at `at` `(3,)` in the frame of `joint`: how far
    it is from that joint at most, m (1 where the joint slides: m per m)."""
    levers: dict[int, float] = {}
    length = float(np.linalg.norm(at)) + radius
    while joint:
        slides = model.joints[joint].shortname().startswith("JointModelP")
        levers[joint] = 1.0 if slides else length
        if slides:
            ends = model.lowerPositionLimit[joint - 1], model.upperPositionLimit[joint - 1]
            length += float(np.abs(ends).max())
        length += float(np.linalg.norm(model.jointPlacements[joint].translation))
        joint = model.parents[joint]
    return levers


def relative(a: dict[int, float], b: dict[int, float]) -> dict[int, float]:
    """Of two things of one arm, what moves one and not the other."""
    return {j: lever for j, lever in (a | b).items() if (j in a) != (j in b)}


def turns_about_vertical(model: Any, pin: Any, joint: int) -> bool:
    """Whether a joint on the base turns about z, which changes no height."""
    if model.parents[joint] != 0:
        return False
    data = model.createData()
    pin.computeJointJacobians(model, data, pin.neutral(model))
    column = data.J[:, model.joints[joint].idx_v]
    return bool(abs(abs(column[5]) - 1) < 1e-9 and np.abs(column[:3]).max() < 1e-9)


def rows(
    by_pair: Sequence[dict[int, float]], columns: Sequence[int], n: int
) -> tuple[np.ndarray, np.ndarray]:
    """`(K, n)` of each pair, m per rad or m of the arm's joints (`columns`: which one each joint of the model
    is, -1: none); and the rows of it that others do not exceed everywhere."""
    every = np.zeros((len(by_pair), n))
    for k, levers in enumerate(by_pair):
        for joint, lever in levers.items():
            if (column := columns[joint - 1]) >= 0:
                every[k, column] = max(every[k, column], lever)
    kept: list[np.ndarray] = []
    for row in every[np.argsort(-every.sum(1), kind="stable")]:
        if not any((row <= other + 1e-12).all() for other in kept):
            kept.append(row)
    return every, np.array(kept).reshape(len(kept), n)


def radius_of(shape: Any) -> float:
    """Of the ball around a shape's middle, m."""
    if hasattr(shape, "halfSide"):
        return float(np.linalg.norm(shape.halfSide))
    if hasattr(shape, "halfLength"):
        return float(shape.radius + shape.halfLength)
    shape.computeLocalAABB()
    return float(shape.aabb_radius)
