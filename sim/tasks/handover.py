"""handover: the left arm takes a stick from the table and passes it to the right one, which then holds it
alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from ..arm import SimArm
from ..expert import TipTarget, Together, nearest_yaw, towards, yaw_of
from ..world import World
from .boxes import RED, Box, make_box
from .picking import Picking
from .task import Task

LONG = 5.6  # of the stick, in its widths
GRASP = 1.6  # from its middle to where an arm takes it, in widths: two grippers have room beside each other
HEIGHT = 0.055  # m: of the stick's middle when it is passed; an SO-101 still points straight down there
OVER = 0.09  # m: of a tip whose open fingers are over a stick that is passed
AWAY = 0.03  # m: the right arm waits so far from there, and goes back so far with the stick
CLEAR = 0.03  # m: a hand that is so far from the stick is off it
ALOFT = 0.02  # m: so far over where it lay it counts as held up
FAR = 0.1  # m: a stick, or a hand, that is this far from its place has a third of what being there gives
LEFT, RIGHT = 0, 1
NAMES = ("left", "right")


@dataclass(frozen=True)
class End(Box):
    """Where the arm of this number takes the stick; of all that a `Box` has the place only is its own."""

    arm: int

    def pose(self) -> tuple[np.ndarray, np.ndarray]:
        position, rotation = super().pose()
        # the left arm has the end that is nearer to its base, whichever that is
        sign = (1 if rotation[1, 0] >= 0 else -1) * (1 if self.arm == LEFT else -1)
        return position + sign * 2 * GRASP * self.half[1] * rotation[:, 0], rotation


class Handover(Task):
    """passed: whether both arms have touched the stick at once since it was last on the table; so the right
    arm cannot fetch it by itself."""

    name = "handover"
    n_arms = 2
    instructions = (
        "pass the red stick from the left arm to the right arm",
        "hand the red stick over to the right arm",
        "take the red stick with the left arm and give it to the right arm",
    )
    max_seconds = 20.0
    hold_s = 0.5
    randomisation: ClassVar = {
        "start": 0.05,
        "spread": 1.0,
        "yaw": 0.5,
        "mass": 0.03,
        "friction": 0.9,
        "looks": 1.0,
    }
    names = (
        *("stick.x", "stick.y", "stick.z", "stick.cos2yaw", "stick.sin2yaw", "stick.slope"),
        *(f"{arm}.tip.{axis}" for arm in NAMES for axis in "xyz"),
        *(f"{arm}.tip_to_end.{axis}" for arm in NAMES for axis in "xyz"),
        *("left.touches", "right.touches", "passed"),
    )
    units = ("m", "m", "m", "1", "1", "1", *("m",) * 12, "1", "1", "1")

    def __init__(self, world: World, *arms: SimArm) -> None:
        super().__init__(world, *arms)
        world.after_step.append(self._watch)

    def reset(self, rng: np.random.Generator, xi: Mapping[str, float]) -> None:
        robot, looks = self.robot, self.world.looks
        size = robot.object_size
        extent = np.array([0.5, 0.6]) * robot.extent
        xy = robot.stand.to_scene(robot.centre + xi["spread"] * extent * rng.uniform(-1, 1, 2))
        yaw = robot.stand.yaw + xi["yaw"] * rng.uniform(-1, 1)
        half = [LONG * size / 2, size / 2, size / 2]
        self.stick = make_box(self.world, half, xy, yaw, looks.tinted(RED, 0), xi["mass"], xi["friction"])
        self.ends = [End(self.world, self.stick.body, self.stick.half, i) for i in (LEFT, RIGHT)]
        stands = np.array([[arm.robot.stand.x, arm.robot.stand.y] for arm in self.arms])
        self.middle = np.array([*stands.mean(0), HEIGHT])
        self.passed = False

    def touched(self) -> tuple[bool, bool]:
        """By the left arm, and by the right one."""
        return self.stick.is_touched(self.arms[LEFT]), self.stick.is_touched(self.arms[RIGHT])

    def lies(self) -> bool:
        """Whether it touches the table."""
        p = self.world.bullet
        return bool(p.getContactPoints(self.stick.body, self.world.table, physicsClientId=self.world.client))

    def _watch(self) -> None:
        """After each step of the physics."""
        self.passed = not self.lies() and (self.passed or all(self.touched()))

    def observe(self) -> np.ndarray:
        position, rotation = self.stick.pose()
        along = rotation[:, 0]
        yaw = np.arctan2(along[1], along[0])
        tips = [arm.tip()[0] for arm in self.arms]
        return np.concatenate(
            [
                position,
                # the slope is that of the way to the left arm's end
                [np.cos(2 * yaw), np.sin(2 * yaw), along[2] if along[1] >= 0 else -along[2]],
                *tips,
                *(end.position - tip for end, tip in zip(self.ends, tips, strict=True)),
                np.array([*self.touched(), self.passed], np.float64),
            ]
        )

    def is_aloft(self) -> bool:
        return bool(self.stick.position[2] > self.stick.half[2] + ALOFT)

    def achieved(self) -> bool:
        return self.passed and self.is_aloft() and self.touched() == (False, True)

    def _near(self, arm: int) -> float:
        """1 where the arm's tip is at its end of the stick."""
        return float(np.exp(-np.linalg.norm(self.ends[arm].position - self.arms[arm].tip()[0]) / FAR))

    def score(self) -> float:
        """A quarter for the stick in the left hand, another one for that in the middle, a third one for both
        hands at it, and the last for the right hand alone."""
        if self.achieved():
            return 1.0
        if self.passed:
            return 0.75
        if self.is_aloft() and self.touched()[LEFT]:
            away = float(np.linalg.norm(self.stick.position - self.middle))
            return 0.25 + 0.25 * float(np.exp(-away / FAR))
        return 0.2 * self._near(LEFT)

    def reward(self) -> float:
        """The score; a tenth of it for the hand that is next being at the stick."""
        if self.achieved():
            return 1.0
        score = self.score()
        return 0.9 * score + 0.1 * self._near(RIGHT if score >= 0.25 else LEFT) * (1 - score)

    def is_gripped(self, arm: int) -> bool:
        """Whether the arm's fingers are closed on its end of the stick."""
        robot, tip = self.robot, self.arms[arm].tip()[0]
        off = float(np.linalg.norm(self.ends[arm].position - tip))
        closed = self.arms[arm].read().data[-1] < robot.grip_held
        return bool(closed and off < 0.8 * robot.object_size and self.touched()[arm])

    def expert(self, noise: float, mode: str | None) -> Together:
        return Together([_Giver(self, LEFT, noise), _Taker(self, RIGHT, noise)])


class _Hand(Picking):
    """What both arms know of the stick. Each looks at the scene for itself; they agree since it is the
    same."""

    def __init__(self, task: Handover, i: int, noise: float) -> None:
        self.task, self.end = task, task.ends[i]
        arm = task.arms[i]
        super().__init__(arm, noise, hover=0.03, width=arm.robot.object_size, stream=7 + i)
        self.boxes = [self.end]

    def yaw_to(self, box: Box) -> float:
        """Across the stick."""
        along = box.pose()[1][:, 0]
        return nearest_yaw(float(np.arctan2(along[1], along[0])), yaw_of(self.arm.tip()[1]), np.pi)

    def bring(self, place: np.ndarray) -> TipTarget:
        """The stick, along the line between the arms, with its middle to `place`."""
        return self.carry(self.task.stick, place, np.pi / 2, place[2])


class _Giver(_Hand):
    def target(self) -> TipTarget:
        task, end = self.task, self.end
        if task.is_gripped(RIGHT):
            return self.let_go(end.position) if self.is_opening(end) else self.rise(OVER)
        if task.is_gripped(LEFT):
            return self.bring(task.middle)
        return self.take(end)


class _Taker(_Hand):
    def target(self) -> TipTarget:
        task, end = self.task, self.end
        back = np.array([0.0, -AWAY, 0.0])
        if task.is_gripped(RIGHT):
            is_alone = np.linalg.norm(task.ends[LEFT].position - task.arms[LEFT].tip()[0]) > CLEAR
            return self.bring(task.middle + back if is_alone else task.middle)
        off = float(np.linalg.norm(task.stick.position - task.middle))
        if task.is_gripped(LEFT) and off < (0.03 if self.surrounds(end) else 0.01):
            return self.take(end)
        tip, _ = self.arm.tip()
        wait = task.middle - [0.0, 2 * GRASP * end.half[1] + AWAY, HEIGHT - OVER]
        return TipTarget(towards(tip, wait, 0.012), np.pi / 2, self.arm.robot.grip_open)
