"""Any robot of Ulna's as one of LeRobot's: its drivers, limits, safety filter and watchdog, be it real, a
twin or in PyBullet."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import numpy as np
from lerobot.robots.robot import Robot
from lerobot.utils.errors import DeviceAlreadyConnectedError, DeviceNotConnectedError

from ulna.datasets.features import ACTION, IMAGES, STATE
from ulna.robot.config import load_robot, read_config
from ulna.robot.lerobot_words import in_lerobots, servo_arms, usual_units
from ulna.robot.motion import go_to

from .config_ulna import UlnaRobotConfig

CONNECTED: dict[str, UlnaRobot] = {}  # by file: a teleoperator of ours moves the robot of its own file


class UlnaRobot(Robot):
    """`send_action` returns what the robot's limits and its safety filter let through. In simulation every
    action takes one control period, so LeRobot's `fps` is to be the robot's `control_hz`."""

    config_class = UlnaRobotConfig
    name = "ulna"

    def __init__(self, config: UlnaRobotConfig) -> None:
        super().__init__(config)
        self.config = config
        self._open: ExitStack | None = None
        self.episode = 0  # of the scenes that were set up
        self.sent: np.ndarray | None = None  # by the last action, in the robot's own words
        self._load()

    def _load(self) -> None:
        config = self.config
        table = read_config(config.file)
        views = [v.strip() for v in config.views.split(",") if v.strip()] or list(table.get("cameras", {}))
        self.rig = load_robot(config.file, config.task, views, trackers=False)
        calibrations, kind = servo_arms(table)
        features = {k: self.rig.robot.features[k] for k in (STATE, ACTION)}
        units = usual_units(features, config.units)
        self.words = in_lerobots(features, units, calibrations, kind, self.rig.robot.name)
        self._ours = self.words.inverse(features)
        self._joints = self.words.features(features)[ACTION].names

    @property
    def cameras(self) -> dict[str, Any]:
        return self.rig.robot.cameras

    @property
    def observation_features(self) -> dict[str, type | tuple[int, int, int]]:
        shapes = {name: (c.height, c.width, 3) for name, c in self.cameras.items()}
        return {**dict.fromkeys(self._joints, float), **shapes}

    @property
    def action_features(self) -> dict[str, type]:
        return dict.fromkeys(self._joints, float)

    @property
    def is_connected(self) -> bool:
        return self._open is not None

    @property
    def is_calibrated(self) -> bool:
        return True  # its driver refuses to open otherwise, and says how to

    def calibrate(self) -> None:
        print("Ulna's arms are calibrated by `ulna calibrate`, whose files are LeRobot's")

    def configure(self) -> None:
        pass

    def connect(self, calibrate: bool = True) -> None:
        if self._open is not None:
            raise DeviceAlreadyConnectedError(f"{self} is connected already")
        with ExitStack() as stack:
            stack.enter_context(self.rig)
            self.reset(self.config.seed)
            self._open = stack.pop_all()
        CONNECTED[self.config.file] = self

    def reset(self, seed: int) -> None:
        """Go to where episodes begin, and set the scene of `seed` up, where there is one."""
        if self.rig.home is not None:
            go_to(self.rig.robot, self.rig.home)
        if self.rig.scene is not None:
            self.rig.scene.reset(seed)
        self.seed, self.episode, self.sent = seed, self.episode + 1, None

    def get_observation(self) -> dict[str, Any]:
        self._require_connected()
        values = self.rig.robot.observe().values
        state = self.words.values(STATE, values[STATE])
        pictures = {name: values[IMAGES + name] for name in self.cameras}
        return {**self._spoken(state), **pictures}

    def send_action(self, action: dict[str, Any]) -> dict[str, float]:
        """ValueError, and nothing is sent, where a joint is missing or is no number."""
        self._require_connected()
        if missing := [n for n in self._joints if n not in action]:
            raise ValueError(f"the action lacks {missing[0]}: it is to have {', '.join(self._joints)}")
        asked = np.array([float(action[n]) for n in self._joints])
        robot = self.rig.robot
        began = robot.clock.now_ns()
        sent = robot.command(self._ours.values(ACTION, asked))
        if self.rig.sim is not None:
            robot.clock.sleep_until(began + robot.period_ns)
        self.sent = sent
        return self._spoken(self.words.values(ACTION, sent))

    def _spoken(self, values: np.ndarray) -> dict[str, float]:
        return dict(zip(self._joints, values.tolist(), strict=True))

    def spoken_action(self, action: np.ndarray) -> dict[str, float]:
        """`action` `(A,)` of the robot's, in LeRobot's words."""
        return self._spoken(self.words.values(ACTION, action))

    def disconnect(self) -> None:
        self._require_connected()
        opened, self._open = self._open, None
        CONNECTED.pop(self.config.file, None)
        assert opened is not None
        opened.close()
        self._load()  # a scene that was closed is not opened again

    def _require_connected(self) -> None:
        if self._open is None:
            raise DeviceNotConnectedError(f"{self} is not connected")
