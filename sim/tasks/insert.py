"""insert: take a square peg, and put it into a square hole that is hardly larger, down to the table."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import numpy as np

from ..expert import Expert, TipTarget, nearest_yaw, towards, yaw_of
from .boxes import FEATURE_UNITS, RED, WOOD, face_yaw, feature_names, make_box, make_fixture
from .picking import Picking
from .task import Task

TALL = 2.4  # of the peg, in its widths
DEEP = 0.8  # of the hole
GRASP = 0.4  # above the peg's centre: the fingers stay over the socket
OVER = 0.006  # m: from the socket to the peg's end while it is aligned
HIGHER = 0.008  # m: than that, on the way there
FAR = 0.05  # m: a peg that is this far from its place has a third of what being there gives
STEADY = 0.15  # of the tremor, at the hole
UPRIGHT = 0.995  # cosine of how far a peg that is pushed down may lean


class Insert(Task):
    name = "insert"
    instructions = (
        "put the red peg into the hole",
        "insert the peg into the wooden socket",
        "plug the red peg into the socket",
    )
    max_seconds = 30.0
    hold_s = 0.5
    randomisation: ClassVar = {
        "start": 0.05,
        "spread": 1.0,
        "yaw": 0.4,
        "turn": 0.3,
        "clearance": 0.002,
        "mass": 0.04,
        "friction": 0.9,
        "looks": 1.0,
    }
    names = (
        *feature_names("peg"),
        *("peg.tilt_x", "peg.tilt_y", "hole.x", "hole.y", "hole.cos4yaw", "hole.sin4yaw"),
        *("tip.x", "tip.y", "tip.z", "tip_to_peg.x", "tip_to_peg.y", "tip_to_peg.z"),
        *("end_to_hole.x", "end_to_hole.y", "end_to_hole.z"),
    )
    units = (*FEATURE_UNITS, "1", "1", "m", "m", "1", "1", *("m",) * 9)

    def start_pose(self, rng: np.random.Generator, xi: Mapping[str, float]) -> np.ndarray:
        q = super().start_pose(rng, xi)
        if self.robot.name == "so101":
            q[:4] += [0.0, -0.35, 0.1, 0.2]  # above the peg
        return q

    def reset(self, rng: np.random.Generator, xi: Mapping[str, float]) -> None:
        robot, looks, size = self.robot, self.world.looks, self.robot.object_size
        self.depth, self.clearance = DEEP * size, xi["clearance"]
        if not 0 < self.clearance < size:
            raise ValueError(f"insert: a clearance of {self.clearance} m is none that a peg of {size} m has")
        # one to the left, one to the right, so that the hand is in nobody's way
        side = rng.choice([-1.0, 1.0])
        ys = robot.extent[1] * np.array([0.65, -0.65]) * side
        jitter = xi["spread"] * rng.uniform(-1, 1, (2, 2)) * [robot.extent[0], 0.35 * robot.extent[1]]
        peg, self.hole = robot.centre + np.array([[0, ys[0]], [0, ys[1]]]) + jitter
        half = [size / 2, size / 2, TALL * size / 2]
        yaw = xi["yaw"] * rng.uniform(-1, 1)
        self.hole_yaw = xi["turn"] * rng.uniform(-1, 1)
        self.peg = make_box(self.world, half, peg, yaw, looks.tinted(RED, 0), xi["mass"], xi["friction"])
        inner, wall = size / 2 + self.clearance, 0.3 * size
        at, long, h = inner + wall, inner + 2 * wall, self.depth / 2
        make_fixture(
            self.world,
            [[wall, long, h], [wall, long, h], [inner, wall, h], [inner, wall, h]],
            [[at, 0, h], [-at, 0, h], [0, at, h], [0, -at, h]],
            self.hole,
            self.hole_yaw,
            looks.tinted(WOOD, 1),
        )

    def end(self) -> np.ndarray:
        """The middle of the peg's lower face, `(3,)`."""
        position, rotation = self.peg.pose()
        return position - rotation[:, 2] * self.peg.half[2]

    def to_hole(self) -> np.ndarray:
        """From the peg's end to the hole's bottom, `(3,)`."""
        return np.array([*self.hole, 0.0]) - self.end()

    def observe(self) -> np.ndarray:
        position, rotation = self.peg.pose()
        tip, _ = self.arm.tip()
        return np.concatenate(
            [
                self.peg.features(),
                rotation[:2, 2],
                self.hole,
                [np.cos(4 * self.hole_yaw), np.sin(4 * self.hole_yaw)],
                tip,
                position - tip,
                self.to_hole(),
            ]
        )

    def inserted(self) -> float:
        """How deep the peg's end is in the hole, 0 to 1."""
        away = self.to_hole()
        if np.linalg.norm(away[:2]) > 2 * self.clearance + 0.002:
            return 0.0
        return float(np.clip(1 + away[2] / self.depth, 0, 1))

    def achieved(self) -> bool:
        return self.inserted() > 0.9

    def score(self) -> float:
        """Three tenths for being there, the rest for the depth."""
        if self.achieved():
            return 1.0
        there = float(np.exp(-np.linalg.norm(self.to_hole()) / FAR))
        return 0.3 * there + 0.65 * self.inserted()

    def reward(self) -> float:
        """The score; a tenth of it for being at the peg."""
        if self.achieved():
            return 1.0
        near = float(np.exp(-10 * np.linalg.norm(self.peg.position - self.arm.tip()[0])))
        return 0.9 * self.score() + 0.1 * near * (1 - self.score())

    def expert(self, noise: float, mode: str | None) -> Expert:
        return _Expert(self, noise)


class _Expert(Picking):
    def __init__(self, task: Insert, noise: float) -> None:
        self.task = task
        size = task.robot.object_size
        super().__init__(task.arm, noise, up=GRASP * size, hover=2 * size, is_tall=True, width=size)

    def target(self) -> TipTarget:
        task, peg = self.task, self.task.peg
        self.boxes = [peg]
        if not self.holds(peg):
            return self.take(peg)
        tip, rotation = self.arm.tip()
        away = task.to_hole()
        beside = float(np.linalg.norm(away[:2]))
        turn = nearest_yaw(task.hole_yaw - face_yaw(peg.pose()[1]), 0.0, np.pi / 2)
        over = away + np.array([0, 0, task.depth + OVER])  # to where the peg is aligned
        step, tremor = 0.012, 1.0
        has_end = task.inserted() > 0.05
        if has_end or (beside < 0.75 * task.clearance and abs(turn) < 0.04 and over[2] > -2 * OVER):
            move, step, tremor = away - np.array([0, 0, 0.003]), 0.004, STEADY
            if has_end:  # where the peg is held is brought over the hole, which sets the peg upright
                move[:2] = task.hole - self.held_at(tip)[:2]
                if peg.pose()[1][2, 2] < UPRIGHT:
                    move[2] = 0.0
        elif beside > 0.02:  # well over the socket, and up first
            high = over + np.array([0, 0, HIGHER])
            move = np.array([0, 0, high[2]]) if high[2] > HIGHER else high
        else:
            move, step, tremor = over, 0.005, STEADY
        return TipTarget(towards(tip, tip + move, step), yaw_of(rotation) + turn, self.closed, 0.05, tremor)

    def held_at(self, tip: np.ndarray) -> np.ndarray:
        """The point of the peg's axis that is as high as the tip, `(3,)`."""
        position, rotation = self.task.peg.pose()
        axis = rotation[:, 2]
        return position + axis * (tip[2] - position[2]) / max(axis[2], 0.5)
