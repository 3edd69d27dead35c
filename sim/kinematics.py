"""Forward and inverse kinematics of a serial chain read from a URDF, in numpy.

Rotations are 3×3 matrices; positions metres in the base frame; joints rad or m. The rotations are written
out, since an expert makes hundreds of them a tick: scipy's take five to nine times as long.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

import numpy as np

ITERATIONS, TOLERANCE = 30, 2e-4  # of the inverse: at most so many; m, and m that rotations count


@dataclass(frozen=True)
class Pose:
    """position: `(3,)` m. rotation: `(3, 3)`."""

    position: np.ndarray
    rotation: np.ndarray


def rotation_about(axis: np.ndarray, angle: float) -> np.ndarray:
    """Rodrigues' formula; `axis` is a unit vector."""
    x, y, z = axis
    c, s, t = np.cos(angle), np.sin(angle), 1 - np.cos(angle)
    return np.array(
        [
            [t * x * x + c, t * x * y - s * z, t * x * z + s * y],
            [t * x * y + s * z, t * y * y + c, t * y * z - s * x],
            [t * x * z - s * y, t * y * z + s * x, t * z * z + c],
        ]
    )


def rotation_vector(rotation: np.ndarray) -> np.ndarray:
    """The rotation as axis times angle `(3,)`, angle in [0, pi]."""
    angle = np.arccos(np.clip((np.trace(rotation) - 1) / 2, -1.0, 1.0))
    v = np.array(
        [rotation[2, 1] - rotation[1, 2], rotation[0, 2] - rotation[2, 0], rotation[1, 0] - rotation[0, 1]]
    )
    if angle < 1e-9:
        return v / 2
    if np.pi - angle < 1e-4:  # the antisymmetric part vanishes; take the axis from the symmetric one
        column = int(np.argmax(np.diag(rotation)))
        axis = rotation[:, column] + np.eye(3)[column]
        return angle * axis / np.linalg.norm(axis)
    return angle * v / (2 * np.sin(angle))


def pointing_down(yaw: float) -> np.ndarray:
    """The tip rotation that points z at the table, with the closing direction y at `yaw` from the y axis."""
    c, s = np.cos(yaw), np.sin(yaw)
    return np.array([[-c, -s, 0.0], [-s, c, 0.0], [0.0, 0.0, -1.0]])


class Chain:
    """The joints from the URDF's root to `tip`, those in `names` moving and all others at zero."""

    def __init__(self, urdf: Path, tip: str, names: tuple[str, ...]) -> None:
        joints = {j.find("child").get("link"): j for j in ElementTree.parse(urdf).getroot().iter("joint")}  # type: ignore[union-attr]
        self.links: list[tuple[np.ndarray, np.ndarray, np.ndarray | None, int]] = []
        link = tip
        while link in joints:
            joint = joints[link]
            origin = joint.find("origin")
            xyz = _floats(None if origin is None else origin.get("xyz"))
            roll, pitch, yaw = _floats(None if origin is None else origin.get("rpy"))
            ex, ey, ez = np.eye(3)
            rotation = rotation_about(ez, yaw) @ rotation_about(ey, pitch) @ rotation_about(ex, roll)
            axis, index = None, -1
            if joint.get("name") in names and joint.get("type") in ("revolute", "continuous"):
                axis_tag = joint.find("axis")
                axis = _floats(None if axis_tag is None else axis_tag.get("xyz"), "1 0 0")
                index = names.index(str(joint.get("name")))
            self.links.append((xyz, rotation, axis, index))
            link = joint.find("parent").get("link")  # type: ignore[union-attr]
        self.links.reverse()
        self.moving = [i for *_, i in self.links if i >= 0]

    def forward(self, q: np.ndarray) -> Pose:
        """The tip with the joints at `q`, in the order of `names`."""
        return self._forward(q)[0]

    def _forward(self, q: np.ndarray) -> tuple[Pose, np.ndarray]:
        """The tip's pose and its Jacobian `(6, len(moving))`: linear over angular."""
        position, rotation = np.zeros(3), np.eye(3)
        anchors, axes = [], []
        for xyz, fixed, axis, index in self.links:
            position = position + rotation @ xyz
            rotation = rotation @ fixed
            if axis is not None:
                anchors.append(position)
                axes.append(rotation @ axis)
                rotation = rotation @ rotation_about(axis, q[index])
        w = np.array(axes)
        jacobian = np.concatenate([np.cross(w, position - np.array(anchors)).T, w.T])
        return Pose(position, rotation), jacobian

    def inverse(
        self,
        goal: Pose,
        q: np.ndarray,
        lower: np.ndarray,
        upper: np.ndarray,
        rotation_weight: float = 0.1,
        rest: np.ndarray | None = None,
    ) -> np.ndarray:
        """Joint positions near `q` whose tip is at `goal`, by damped least squares within the limits.

        rotation_weight: metres that one radian of rotation error counts; a small weight lets an arm of five
        joints give up orientation rather than position. rest: posture that a redundant arm drifts to."""
        q = np.clip(q, lower, upper)
        m = self.moving
        for _ in range(ITERATIONS):
            pose, jacobian = self._forward(q)
            error = np.concatenate(
                [
                    goal.position - pose.position,
                    rotation_weight * rotation_vector(goal.rotation @ pose.rotation.T),
                ]
            )
            if np.abs(error).max() < TOLERANCE:
                break
            weighted = jacobian * np.array([1.0, 1.0, 1.0, *[rotation_weight] * 3])[:, None]
            drift = np.zeros(len(m)) if rest is None else 0.1 * (rest[m] - q[m])
            free, step = np.ones(len(m), bool), drift
            # a joint that would cross its limit stays out, and the others solve without it
            for _ in range(3):
                j = weighted * free
                damped = j.T @ np.linalg.inv(j @ j.T + 1e-6 * np.eye(6))
                step = free * np.clip(damped @ (error - j @ drift) + drift, -0.3, 0.3)
                crossing = free & ((q[m] + step < lower[m]) | (q[m] + step > upper[m]))
                if not crossing.any():
                    break
                free &= ~crossing
            q = q.copy()
            q[m] = np.clip(q[m] + step, lower[m], upper[m])
        return q


def _floats(text: str | None, default: str = "0 0 0") -> np.ndarray:
    return np.array([float(v) for v in (text or default).split()])
