"""Taking a box and putting it somewhere: the rules that experts share. Each looks at where box and gripper
are now; which of them applies says the task's expert."""

from __future__ import annotations

import numpy as np

from ..arm import SimArm
from ..expert import Expert, TipTarget, nearest_yaw, towards, yaw_of
from .boxes import Box, face_yaw

CLOSING = 0.15  # of the gripper's way from open to closed: from there on it counts as closing
STEADY = 0.4  # of the tremor, where a box is put down: people, too, are steadier there
CLEARS = 0.015  # between what is carried over an obstacle, and that
SQUEEZE = 0.0005  # m, that each finger would go into what it holds
FINGER = 0.01  # from between the fingertips to the end of the fingers


class Picking(Expert):
    """boxes: all that stand about, which a gripper that rises between them must not take along. turned: of
    the gripper, from its neutral yaw. up: from a box's centre to where it is grasped, m: fingertips clear the
    table, and what is around the box. hover: above that, on the way to it. is_tall: a finger that comes down
    on the box would knock it over. width: of what is taken, m; two fingers that move close to a little less,
    so that what is between them cannot go from side to side (0: as far as they go)."""

    def __init__(
        self,
        arm: SimArm,
        noise: float,
        turned: float = 0.0,
        up: float = 0.003,
        hover: float = 0.06,
        is_tall: bool = False,
        width: float = 0.0,
        stream: int = 7,
    ) -> None:
        self.turned, self.up, self.hover, self.is_tall = turned, np.array([0, 0, up]), hover, is_tall
        robot = arm.robot
        both_move = width > 0 and robot.joints.units[-1] == "m"
        self.closed = width / 2 - SQUEEZE if both_move else robot.grip_closed
        self.boxes: list[Box] = []
        super().__init__(arm, noise, stream)

    def grip(self) -> float:
        return float(self.arm.read().data[-1])

    def holds(self, box: Box) -> bool:
        robot = self.arm.robot
        off = np.linalg.norm(box.position + self.up - self.arm.tip()[0])
        return bool(self.grip() < robot.grip_held and off < 0.6 * robot.object_size)

    def surrounds(self, box: Box) -> bool:
        """Whether the fingers are beside the box, closed or not."""
        away = self.arm.tip()[0] - box.position
        return bool(np.linalg.norm(away[:2]) < 0.8 * 2 * box.half[0] and away[2] < box.half[2] + FINGER)

    def yaw_to(self, box: Box) -> float:
        """The gripper's, to take the box by two faces: those nearest to its neutral yaw, along the arm."""
        position, box_rotation = box.pose()
        neutral = float(np.arctan2(position[1], position[0])) + self.turned
        yaw = nearest_yaw(face_yaw(box_rotation), neutral, np.pi / 2)
        return nearest_yaw(yaw, yaw_of(self.arm.tip()[1]), np.pi)

    def take(self, box: Box, clear: float = 0.0) -> TipTarget:
        """Come down on a box that is not held, and close. clear: height of the tip over which nothing stands
        in its way."""
        robot = self.arm.robot
        tip, rotation = self.arm.tip()
        grip, yaw = self.grip(), self.yaw_to(box)
        grasp = box.position + self.up
        # come down with the fixed finger clear of the cube: the moving one will push the cube against it
        above = grasp - robot.grip_clearance * rotation[:, 1] * [1, 1, 0]
        beside = float(np.linalg.norm((above - tip)[:2]))
        if clear and beside > 0.02 and tip[2] < clear - 0.01:
            return self.rise(clear, yaw)
        closing = robot.grip_open - grip > CLOSING * (robot.grip_open - robot.grip_closed)
        # a gripper that is closing does not stop for a tremor; two moving fingers, though, must stay centred
        slack = 2.0 if closing and robot.grip_clearance else 1.0
        if beside < slack * 0.009 and abs(grasp[2] - tip[2]) < slack * 0.005:
            tremor = STEADY if self.is_tall else 1.0
            return TipTarget(np.array([tip[0], tip[1], grasp[2]]), yaw, self.closed, tremor=tremor)
        # a funnel: the tip may only be as low as it is centred and turned
        turned_by = abs(yaw - yaw_of(rotation))
        width = 0.004 if self.is_tall else 0.02
        height = max(self.hover, clear - grasp[2]) * np.clip(
            max((beside - 0.004) / width, (turned_by - 0.1) / 0.3), 0, 1
        )
        tremor = STEADY if self.is_tall and beside < 0.03 else 1.0
        way = towards(tip, above + np.array([0, 0, height]), 0.012)
        return TipTarget(way, yaw, robot.grip_open, tremor=tremor)

    def carry(self, box: Box, place: np.ndarray, yaw: float, clear: float) -> TipTarget:
        """Move a box that is held to where its centre is at `place` `(3,)`: up, across, and down. yaw: of its
        faces there. clear: height of its centre over which nothing stands in its way."""
        tip, rotation = self.arm.tip()
        position, box_rotation = box.pose()
        beside = float(np.linalg.norm((place - position)[:2]))
        turn = nearest_yaw(yaw - face_yaw(box_rotation), 0.0, np.pi / 2)
        goal, step, tremor = np.array([*position[:2], clear]), 0.012, 1.0
        if beside < 0.02 or position[2] > clear - 0.01:
            height = (clear - place[2]) * np.clip(
                max((beside - 0.003) / 0.015, (abs(turn) - 0.06) / 0.3), 0, 1
            )
            goal = place + np.array([0, 0, height])
            if beside < 0.02:
                step, tremor = 0.006, STEADY
        way = towards(tip, tip + goal - position, step)
        return TipTarget(way, yaw_of(rotation) + turn, self.closed, 0.03, tremor)

    def is_at(self, box: Box, place: np.ndarray) -> bool:
        """Whether it may be let go of there."""
        off = box.position - place
        return bool(np.linalg.norm(off[:2]) < 0.005 and abs(off[2]) < 0.003)

    def is_opening(self, box: Box) -> bool:
        """Whether the fingers are around the box and not as far apart yet as they go."""
        robot = self.arm.robot
        open_enough = robot.grip_open - 0.1 * (robot.grip_open - robot.grip_closed)
        return self.surrounds(box) and self.grip() < open_enough

    def let_go(self, place: np.ndarray) -> TipTarget:
        """Open the gripper around a box at `place`, and move the fixed finger off it."""
        robot, (tip, rotation) = self.arm.robot, self.arm.tip()
        goal = np.array([*place[:2], tip[2]])
        if self.grip() > robot.grip_held:
            goal -= robot.grip_clearance * rotation[:, 1] * [1, 1, 0]
        return TipTarget(towards(tip, goal, 0.003), yaw_of(rotation), robot.grip_open, 0.03, STEADY)

    def rise(self, clear: float, yaw: float | None = None) -> TipTarget:
        """Straight up to `clear`, the gripper open; past a box between the fingers without touching it."""
        robot, (tip, rotation) = self.arm.robot, self.arm.tip()
        goal, tremor = np.array([tip[0], tip[1], clear]), 1.0
        for box in self.boxes:
            if self.surrounds(box):
                yaw, tremor = None, STEADY
                goal[:2] = (box.position - robot.grip_clearance * rotation[:, 1])[:2]
                if np.linalg.norm(goal[:2] - tip[:2]) > 0.004:
                    goal[2] = tip[2]
        turned = yaw_of(rotation) if yaw is None else yaw
        return TipTarget(towards(tip, goal, 0.012), turned, robot.grip_open, 0.03, tremor)
