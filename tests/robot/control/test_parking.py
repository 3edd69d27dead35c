"""How an arm is put down: a link that gravity pulls at, over a table."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import pytest

from ulna.robot.control.parking import FAST, GENTLE, Parking, Phase
from ulna.robot.kinematics import tip_chain
from ulna.sim.scene import SimScene
from ulna.sim.twin import TwinArm
from ulna.sim.world import PHYSICS_HZ

DT = 0.01
WEIGHT = 0.2  # share of its full load that the motor of a level link holds
STIFF = 30.0  # share of its full load a radian, of what is pressed onto the table


@dataclass
class Link:
    """Angle 0 is level, and the table is `table` below that; the motor sags by `sag` at its full load."""

    q: float
    table: float = -10.0
    sag: float = 0.0
    stuck: bool = False
    command: float = 0.0
    fastest: float = field(default=0.0)

    def load(self) -> float:
        pressed = max(self.table - self.command, 0.0)
        return WEIGHT * np.cos(self.q) - STIFF * pressed

    def move(self, target: float) -> None:
        self.fastest = max(self.fastest, abs(target - self.command) / DT)
        self.command = target
        if not self.stuck:
            self.q = max(target - self.sag * self.load(), self.table)


def park(link: Link, rest: float | None, tells_load: bool = True, **options: float) -> tuple[Parking, float]:
    link.command = link.q
    goal = None if rest is None else np.array([rest])
    parking = Parking(np.array([link.q]), goal, np.array([-2.0]), np.array([2.0]), 0.0, **options)  # type: ignore[arg-type]
    t = 0.0
    while parking.phase in (Phase.GOING, Phase.SINKING):
        t += DT
        load = np.array([link.load()]) if tells_load else None
        link.move(float(parking.step(t, np.array([link.command]), np.array([link.q]), load)[0]))
        assert t < 60
    return parking, t


def fall(link: Link, friction: float = 0.08) -> float:
    """How far it falls when its motor lets go."""
    held = WEIGHT * abs(np.cos(link.q)) <= friction or link.q <= link.table + 1e-3
    return 0.0 if held else link.q - max(link.table, -np.pi / 2)


def test_it_goes_to_its_rest_pose_and_lies_there() -> None:
    link = Link(0.8, table=-0.5)
    parking, t = park(link, -0.5)
    assert (parking.phase, parking.at_rest) == (Phase.DOWN, True)
    assert fall(link) < 0.01
    assert link.fastest <= 1.01 * GENTLE
    assert t < 6


def test_fast_is_faster_and_still_no_drop() -> None:
    slow, fast = Link(0.8, table=-0.5), Link(0.8, table=-0.5)
    _, t_slow = park(slow, -0.5)
    _, t_fast = park(fast, -0.5, speed=FAST)
    assert t_fast < 0.8 * t_slow
    assert fast.fastest <= 1.01 * FAST
    assert fall(fast) < 0.01


@pytest.mark.parametrize("rest", [None, 0.1])
@pytest.mark.parametrize("sag", [0.0, 0.2])
@pytest.mark.parametrize("tells_load", [True, False])
def test_where_nothing_carries_it_it_goes_down_until_something_does(
    rest: float | None, sag: float, tells_load: bool
) -> None:
    if not (tells_load or sag):
        pytest.skip("an arm that tells neither is not known to be heavy")
    link = Link(0.8, table=-0.6, sag=sag)
    parking, _ = park(link, rest, tells_load)
    assert parking.phase is Phase.DOWN
    assert fall(link) < 0.02
    assert link.load() > -0.6, "it is not pressed onto the table"


def test_an_arm_that_hangs_needs_nothing() -> None:
    link = Link(-np.pi / 2 + 0.1)
    parking, t = park(link, None)
    assert parking.phase is Phase.DOWN
    assert t < 1


def test_what_is_in_the_way_of_the_rest_pose_is_not_pushed_at_for_long() -> None:
    link = Link(0.8, stuck=True)
    parking, t = park(link, -0.5)
    assert parking.phase in (Phase.STUCK, Phase.DOWN)
    assert not parking.at_rest
    assert t < 30


def test_an_arm_that_is_not_let_down_is_stuck_and_not_dropped() -> None:
    class Refused(Link):
        def move(self, target: float) -> None: ...

    parking, _ = park(Refused(0.0), None)
    assert parking.phase is Phase.STUCK


@pytest.fixture(scope="module")
def follower() -> Iterator[tuple[SimScene, TwinArm]]:
    """The SO-101's physics, without a clock."""
    scene = SimScene("so101", "lift", (), (64, 64), 100.0, arm_type=TwinArm)
    arm = scene.arms["arm"]
    assert isinstance(arm, TwinArm)
    with contextlib.closing(scene):
        yield scene, arm


# from rest poses in the air; on their way down their elbows pass the pose in which the forearm is balanced
@pytest.mark.parametrize(
    ("start", "rest"),
    [
        ([0.14, -0.92, 0.96, 1.46, 0.22, 0.6], [-0.12, -0.68, 0.23, 1.54, 0.04, 0.6]),
        ([-0.23, -0.31, 0.38, 1.32, -0.09, 0.6], [-0.39, -0.78, 0.23, 1.53, 0.42, 0.6]),
        ([0.46, -1.08, 0.36, 0.91, -0.41, 0.6], [0.09, -0.78, 0.31, 1.51, 0.3, 0.6]),
    ],
)
def test_a_link_that_passes_its_balance_has_not_met_anything(
    follower: tuple[SimScene, TwinArm], start: list[float], rest: list[float]
) -> None:
    scene, arm = follower
    plant, home = arm.plant, np.array(arm.robot.home)
    plant.position[:], plant.goal[:], plant.torque[:] = home, home, True
    scene.reset(0)
    tip = tip_chain("so101", tuple(plant.names))
    for w in np.clip(np.arange(480) / 360, 0, 1):
        plant.goal[:] = home + w * (np.array(start) - home)
        scene.world.step()
    command, steps = plant.goal.copy(), 0
    parking = Parking(command, np.array(rest), arm.joints.lower, arm.joints.upper, 0.0)
    while parking.phase in (Phase.GOING, Phase.SINKING):
        scene.world.step()
        scene.world.step()
        steps += 2
        load = plant.effort / plant.max_effort
        plant.goal[:] = command = parking.step(steps / PHYSICS_HZ, command, plant.position.copy(), load)
    before = tip.forward(plant.position.copy()).position
    plant.torque[:] = False
    for _ in range(PHYSICS_HZ):
        scene.world.step()
    assert parking.phase is Phase.DOWN
    assert np.linalg.norm(tip.forward(plant.position.copy()).position - before) < 0.005
