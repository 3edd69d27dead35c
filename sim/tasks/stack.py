"""stack: three cubes upon each other, red at the bottom, green on it, blue on top; and let go of."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import numpy as np

from ..expert import Expert, TipTarget
from .boxes import BLUE, FEATURE_UNITS, GREEN, RED, feature_names, make_box, scattered
from .picking import CLEARS, FINGER, Picking
from .task import Task

NAMES = ("red", "green", "blue")
ASIDE = 0.4  # of a cube's size: centres of two that stand upon each other may be that far apart
ALOFT = 0.005  # m, of height
FAR = 0.05  # m: a cube that is this far from its place counts a third


class Stack(Task):
    name = "stack"
    instructions = (
        "stack the cubes: red, then green, then blue on top",
        "build a tower with the red cube at the bottom, the green one on it and the blue one on top",
        "put the green cube on the red cube and the blue cube on the green one",
    )
    max_seconds = 40.0
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
        *("tip.x", "tip.y", "tip.z"),
        *(f"tip_to_{cube}.{axis}" for cube in NAMES for axis in "xyz"),
    )
    units = (*FEATURE_UNITS * 3, *("m",) * 12)

    def reset(self, rng: np.random.Generator, xi: Mapping[str, float]) -> None:
        robot, looks = self.robot, self.world.looks
        self.size = robot.object_size
        extent = xi["spread"] * robot.extent
        places = scattered(rng, 3, robot.centre, extent, 2.8 * self.size, self.name)
        self.cubes = [
            make_box(
                self.world,
                [self.size / 2] * 3,
                places[i],
                xi["yaw"] * rng.uniform(-1, 1),
                looks.tinted(colour, i),
                xi["mass"],
                xi["friction"],
            )
            for i, colour in enumerate((RED, GREEN, BLUE))
        ]

    def observe(self) -> np.ndarray:
        tip, _ = self.arm.tip()
        features = [cube.features() for cube in self.cubes]
        return np.concatenate([*features, tip, *(np.array(f[:3]) - tip for f in features)])

    def place(self, i: int) -> np.ndarray:
        """Where the centre of cube i belongs, `(3,)`: on the one below, wherever that is."""
        return self.cubes[i - 1].position + np.array([0, 0, self.size])

    def is_placed(self, i: int) -> bool:
        """Whether cube i lies on the one below."""
        off = self.cubes[i].position - self.place(i)
        return bool(np.linalg.norm(off[:2]) < ASIDE * self.size and abs(off[2]) < ALOFT)

    def first_missing(self) -> int:
        """The cube that must be placed next; 3 where the tower stands."""
        return next((i for i in (1, 2) if not self.is_placed(i)), 3)

    def is_let_go(self) -> bool:
        return not any(cube.is_touched(self.arm) for cube in self.cubes)

    def achieved(self) -> bool:
        return self.first_missing() == 3 and self.is_let_go()

    def steps(self) -> dict[str, bool]:
        return {
            "put the green cube on the red one": self.is_placed(1),
            "put the blue cube on the green one": self.is_placed(2),
            "let go of the tower": self.achieved(),
        }

    def score(self) -> float:
        """A half for each cube on another; as long as it is not there, less the farther it is."""
        i = self.first_missing()
        if i == 3:
            return 1.0 if self.is_let_go() else 0.95
        away = float(np.linalg.norm(self.cubes[i].position - self.place(i)))
        return (i - 1) / 2 + 0.45 * float(np.exp(-away / FAR))

    def reward(self) -> float:
        """The score; a tenth of it for being at the cube that is next."""
        if self.achieved():
            return 1.0
        cube = self.cubes[min(self.first_missing(), 2)]
        near = float(np.exp(-10 * np.linalg.norm(cube.position - self.arm.tip()[0])))
        return 0.9 * self.score() + 0.1 * near * (1 - self.score())

    def expert(self, noise: float, mode: str | None) -> Expert:
        return _Expert(self, noise)


class _Expert(Picking):
    def __init__(self, task: Stack, noise: float) -> None:
        self.task = task
        super().__init__(task.arm, noise, width=task.robot.object_size)

    def target(self) -> TipTarget:
        task, size = self.task, self.task.size
        self.boxes = task.cubes
        # of the tip, with its fingers over the tower
        clear = max(cube.position[2] for cube in task.cubes) + size / 2 + FINGER + CLEARS
        for i in (1, 2):
            cube, place = task.cubes[i], task.place(i)
            if self.holds(cube):
                if self.is_at(cube, place):
                    return self.let_go(place)
                return self.carry(cube, place, task.cubes[i - 1].yaw, place[2] + CLEARS)
            if not task.is_placed(i):
                return self.take(cube, clear)
            if self.is_opening(cube):
                return self.let_go(place)
        return self.rise(clear)
