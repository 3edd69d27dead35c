"""sort: of three cubes put the one into the tray that the instruction names."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import ClassVar

import numpy as np

from ..expert import Expert, TipTarget
from .boxes import BLUE, FEATURE_UNITS, GREEN, RED, WOOD, feature_names, make_box, make_fixture, scattered
from .picking import CLEARS, FINGER, Picking
from .task import Task

NAMES = ("red", "green", "blue")
INNER = 1.4  # half of the tray's inner width, in cubes
WALL = 0.5  # its height
FLOOR = 0.001  # m
DROP = 0.45  # over the tray's floor, in cubes: open fingers stay over its walls
FAR = 0.1  # m: a cube that is this far from the tray has a third of what being there gives


class Sort(Task):
    """The state has which one is wanted, for a policy that reads no words."""

    name = "sort"
    instructions = tuple(
        words.format(colour)
        for words in ("put the {} cube into the tray", "sort out the {} one", "drop the {} cube in the tray")
        for colour in NAMES
    )
    max_seconds = 20.0
    hold_s = 0.5
    randomisation: ClassVar = {
        "start": 0.08,
        "spread": 1.0,
        "yaw": 0.6,
        "mass": 0.03,
        "friction": 0.9,
        "looks": 1.0,
    }
    names = (
        *(name for cube in NAMES for name in feature_names(cube)),
        *("tray.x", "tray.y", *(f"wanted.{colour}" for colour in NAMES)),
        *("tip.x", "tip.y", "tip.z", "tip_to_wanted.x", "tip_to_wanted.y", "tip_to_wanted.z"),
    )
    units = (*FEATURE_UNITS * 3, "m", "m", "1", "1", "1", *("m",) * 6)

    def reset(self, rng: np.random.Generator, xi: Mapping[str, float]) -> None:
        robot, looks, size = self.robot, self.world.looks, self.robot.object_size
        self.size, self.wanted = size, 0
        side = rng.choice([-1.0, 1.0])
        sideways = np.array([0.0, side * size])
        self.tray = robot.centre + 4.4 * sideways + xi["spread"] * 0.3 * size * rng.uniform(-1, 1, 2)
        extent = xi["spread"] * np.array([robot.extent[0], 2.5 * size])
        places = scattered(rng, 3, robot.centre - 1.1 * sideways, extent, 2.5 * size, self.name)
        self.cubes = [
            make_box(
                self.world,
                [size / 2] * 3,
                places[i],
                xi["yaw"] * rng.uniform(-1, 1),
                looks.tinted(colour, i),
                xi["mass"],
                xi["friction"],
            )
            for i, colour in enumerate((RED, GREEN, BLUE))
        ]
        inner, wall, h = INNER * size, 0.06 * size, WALL * size / 2
        at, long = inner + wall, inner + 2 * wall
        make_fixture(
            self.world,
            [
                [inner, inner, FLOOR / 2],
                *([wall, long, h], [wall, long, h], [inner, wall, h], [inner, wall, h]),
            ],
            [[0, 0, FLOOR / 2], *([at, 0, h], [-at, 0, h], [0, at, h], [0, -at, h])],
            self.tray,
            0.0,
            looks.tinted(WOOD, 3),
        )

    def told(self, instruction: str) -> None:
        said = [i for i, colour in enumerate(NAMES) if re.search(rf"\b{colour}\b", instruction.lower())]
        if len(said) != 1:
            raise ValueError(
                f"sort: {instruction!r} names {len(said)} of {', '.join(NAMES)}, not one of them"
            )
        self.wanted = said[0]

    def observe(self) -> np.ndarray:
        tip, _ = self.arm.tip()
        features = [cube.features() for cube in self.cubes]
        to_wanted = np.array(features[self.wanted][:3]) - tip
        return np.concatenate([*features, self.tray, np.eye(3)[self.wanted], tip, to_wanted])

    def is_in_tray(self, i: int) -> bool:
        position = self.cubes[i].position
        inside = np.abs(position[:2] - self.tray).max() < (INNER - 0.3) * self.size
        return bool(inside and position[2] < 0.8 * self.size)

    def is_spoilt(self) -> bool:
        """Whether a cube that nobody named lies in the tray."""
        return any(self.is_in_tray(i) for i in range(3) if i != self.wanted)

    def achieved(self) -> bool:
        cube = self.cubes[self.wanted]
        return self.is_in_tray(self.wanted) and not self.is_spoilt() and not cube.is_touched(self.arm)

    def steps(self) -> dict[str, bool]:
        colour = NAMES[self.wanted]
        return {
            f"put the {colour} cube into the tray": self.is_in_tray(self.wanted) and not self.is_spoilt(),
            "let go of it": self.achieved(),
        }

    def score(self) -> float:
        """1 for the cube in the tray, less the farther it is; half of that beside another one."""
        away = float(np.linalg.norm(self.cubes[self.wanted].position[:2] - self.tray))
        there = 1.0 if self.is_in_tray(self.wanted) else 0.9 * float(np.exp(-away / FAR))
        return there / 2 if self.is_spoilt() else there

    def reward(self) -> float:
        """The score; a tenth of it for being at the cube."""
        if self.achieved():
            return 1.0
        near = float(np.exp(-10 * np.linalg.norm(self.cubes[self.wanted].position - self.arm.tip()[0])))
        return 0.9 * self.score() + 0.1 * near * (1 - self.score())

    def expert(self, noise: float, mode: str | None) -> Expert:
        return _Expert(self, noise)


class _Expert(Picking):
    def __init__(self, task: Sort, noise: float) -> None:
        self.task = task
        super().__init__(task.arm, noise, width=task.robot.object_size)

    def target(self) -> TipTarget:
        task, size = self.task, self.task.size
        self.boxes = task.cubes
        cube = task.cubes[task.wanted]
        clear = size + FINGER + CLEARS
        over = np.array([*task.tray, FLOOR + (0.5 + DROP) * size])
        if self.holds(cube):
            off = cube.position - over
            if np.linalg.norm(off[:2]) < 0.3 * size and off[2] < 0.005:
                return self.let_go(over)
            return self.carry(cube, over, cube.yaw, 1.5 * size + CLEARS)
        if self.is_opening(cube) and np.linalg.norm((cube.position - over)[:2]) < 0.6 * size:
            return self.let_go(over)
        if not task.is_in_tray(task.wanted):
            return self.take(cube, clear)
        return self.rise(clear)
