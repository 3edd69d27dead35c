"""Ulna's teleoperators as one of LeRobot's.

They move the robot of the same file, which `--robot.type=ulna` connects: an arm is brought to its leader
slowly, and a hand moves the tip through inverse kinematics, for which they look at it. A leader alone also
moves LeRobot's own robots, as LeRobot's leaders do."""

from __future__ import annotations

from contextlib import ExitStack, suppress
from typing import Any

import numpy as np
from lerobot.teleoperators.teleoperator import Teleoperator
from lerobot.utils.errors import DeviceAlreadyConnectedError, DeviceNotConnectedError

from ulna.datasets.features import ACTION, STATE, Feature
from ulna.datasets.units import Restated
from ulna.drivers.arm import Arm, DeviceError, joints_of
from ulna.drivers.config import require_known
from ulna.robot.agent import AGENTS, HearsSent
from ulna.robot.config import load_leaders, read_config
from ulna.robot.lerobot_words import in_lerobots, usual_units
from ulna.robot.people import agent_for, people
from ulna.robot.scene import RemoteScene

from .config_ulna import UlnaTeleoperatorConfig


class UlnaTeleoperator(Teleoperator):
    config_class = UlnaTeleoperatorConfig
    name = "ulna"

    def __init__(self, config: UlnaTeleoperatorConfig) -> None:
        super().__init__(config)
        self.config = config
        require_known("teleoperator", config.device, (*AGENTS, *people()))
        read_config(config.file)
        self._open: ExitStack | None = None
        self._agent: Any = None
        self._episode = 0
        self._leaders: dict[str, Arm] = {}

    @property
    def action_features(self) -> dict[str, type]:
        if (robot := _connected(self.config.file)) is not None:
            return robot.action_features
        words = self._words(load_leaders(self.config.file))
        return {e.name: float for e in words.elements[ACTION]}

    @property
    def feedback_features(self) -> dict[str, type]:
        return {}

    @property
    def is_connected(self) -> bool:
        return self._open is not None

    @property
    def is_calibrated(self) -> bool:
        return True  # its driver refuses to open otherwise, and says how to

    def calibrate(self) -> None:
        print("Ulna's leaders are calibrated by `ulna calibrate`, whose files are LeRobot's")

    def configure(self) -> None:
        pass

    def connect(self, calibrate: bool = True) -> None:
        """LeRobot connects it before the robot; its devices are opened when it is first asked."""
        if self._open is not None:
            raise DeviceAlreadyConnectedError(f"{self} is connected already")
        self._open = ExitStack()

    def get_action(self) -> dict[str, float]:
        """DeviceError in one sentence: a device is missing, or there is no robot that it could move."""
        if self._open is None:
            raise DeviceNotConnectedError(f"{self} is not connected")
        robot = _connected(self.config.file)
        if robot is None:
            return self._alone(self._open)
        rig = robot.rig
        if self._agent is None:
            self._agent = self._open.enter_context(agent_for(self.config.device, self.config.file, rig))
            if rig.remote is not None:
                self._open.callback(_rest, rig.remote)
        if self._episode != robot.episode:
            self._episode = robot.episode
            self._agent.reset(rig.scene.instruction if rig.scene is not None else "", robot.seed)
            if rig.remote is not None:
                rig.remote.begin()  # the scripted hand at a leader's twin
        elif robot.sent is not None and isinstance(self._agent, HearsSent):
            self._agent.sent(robot.sent)
        agent: Any = self._agent
        return robot.spoken_action(np.asarray(agent.act(rig.robot.observe())))

    def _alone(self, opened: ExitStack) -> dict[str, float]:
        if self.config.device != "leader":
            raise DeviceError(
                f"{self.config.device} moves the tip of a robot that it looks at: take --robot.type=ulna "
                f"with --robot.file={self.config.file}, or --teleop.device=leader"
            )
        if not self._leaders:
            leaders = load_leaders(self.config.file)
            for leader in leaders.values():
                leader.open()
                opened.callback(leader.close)
            self._leaders = leaders
        samples = [leader.read() for leader in self._leaders.values()]
        if not all(np.all(s.valid) for s in samples):
            raise DeviceError(f"the leader of {self.config.file} does not answer")
        words = self._words(self._leaders)
        values = words.values(ACTION, np.concatenate([s.data for s in samples]))
        names = [e.name for e in words.elements[ACTION]]
        return dict(zip(names, values.tolist(), strict=True))

    def _words(self, leaders: dict[str, Arm]) -> Restated:
        joints = joints_of(leaders)
        f = Feature((len(joints.names),), "float32", joints.names, joints.units)
        features = {STATE: f, ACTION: f}
        return in_lerobots(features, usual_units(features, self.config.units))

    def send_feedback(self, feedback: dict[str, Any]) -> None:
        pass

    def disconnect(self) -> None:
        if self._open is None:
            raise DeviceNotConnectedError(f"{self} is not connected")
        opened, self._open, self._agent, self._leaders = self._open, None, None, {}
        opened.close()


def _rest(scene: RemoteScene) -> None:
    with suppress(DeviceError):  # the twin may be gone by then
        scene.rest()


def _connected(file: str) -> Any:
    from lerobot_robot_ulna.ulna import CONNECTED

    return CONNECTED.get(file)
