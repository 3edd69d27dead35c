"""People as agents: a leader arm, or a hand at a gamepad, a SpaceMouse, a keyboard or a browser page, from the robot's file."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from ..drivers.arm import DeviceError
from ..drivers.config import require_known
from .agent import Agent
from .config import ARM_MODELS, TELEOPERATOR_DRIVERS, Rig, load_leaders, load_teleoperator
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
                if getattr(leaders[arm], "sprung", False):
                    leaders[arm].enable()  # its gripper springs open like a trigger
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
    """The kinematic model of the arm: the simulated robot itself, or the one that its driver is for."""
    if rig.sim is not None:
        return rig.config["model"]
    ((name, table),) = rig.config["arms"].items()
    if (driver := table["driver"]) not in ARM_MODELS:
        raise DeviceError(
            f"the tip of {name} cannot be moved: no kinematic model of a {driver} is here (but of {', '.join(ARM_MODELS)}); use a leader arm"
        )
    return ARM_MODELS[driver]
