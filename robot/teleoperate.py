"""People as agents: a leader arm, or a hand at a gamepad, a SpaceMouse, a keyboard or a browser page, from the robot's file."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import numpy as np

from ..drivers.arm import DeviceError
from ..drivers.config import require_known
from .agent import Agent
from .config import TELEOPERATOR_DRIVERS, Rig, load_leaders, load_teleoperator
from .record import AGENTS, make_agent

PEOPLE = ("leader", *TELEOPERATOR_DRIVERS)


@contextlib.contextmanager
def agent_for(
    name: str, robot_file: str, rig: Rig, noise: float = 0.0, mode: str | None = None, **options: Any
) -> Iterator[Agent]:
    """The agent `name`, its devices open for the length of a `with` block. options: fields of a teleoperator's `Config`.
    DeviceError: there is none of that name, its device is missing, or does not fit the robot."""
    require_known("agent", name, (*AGENTS, *PEOPLE))
    if name in AGENTS:
        yield make_agent(name, rig, noise, mode)
        return
    from .teleoperation import LeaderAgent, TeleoperatorAgent

    if name == "leader":
        leaders = load_leaders(robot_file)
        if missing := [arm for arm in rig.robot.arms if arm not in leaders]:
            raise DeviceError(
                f"{robot_file} names no leader for the arm {missing[0]}: add [leaders.{missing[0]}]"
            )
        with contextlib.ExitStack() as opened:
            for arm in rig.robot.arms:
                leaders[arm].open()
                opened.callback(leaders[arm].close)
            yield LeaderAgent({arm: leaders[arm] for arm in rig.robot.arms}, rig.robot)
        return
    if len(rig.robot.arms) != 1:
        raise DeviceError(
            f"a {name} moves one arm, and {rig.robot.name} has {len(rig.robot.arms)}: use leader arms"
        )
    teleoperator = load_teleoperator(robot_file, name, **options)
    agent = TeleoperatorAgent(teleoperator, rig.robot, _model(rig))
    teleoperator.open()
    try:
        yield agent
    finally:
        teleoperator.close()


def _model(rig: Rig) -> str:
    """The kinematic model of the arm: the simulated robot with the same joints."""
    from ..sim.robots import ROBOTS

    arm = next(iter(rig.robot.arms.values()))
    names = {name: make() for name, make in ROBOTS.items()}
    for name, robot in names.items():
        same = robot.joints.names == arm.joints.names
        if same and np.allclose(robot.joints.lower, arm.joints.lower, atol=0.5):
            return name
    raise DeviceError(
        f"no kinematic model fits an arm of joints {', '.join(arm.joints.names)}: the tip can be moved of {', '.join(names)}; "
        "use a leader arm"
    )
