"""One of Ulna's tasks in PyBullet, under the names that LeRobot gives what an environment shows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gymnasium
import numpy as np

from ulna.datasets.features import ACTION, ENVIRONMENT, IMAGES, STATE, Feature
from ulna.robot.lerobot_words import in_lerobots, usual_units
from ulna.sim.gym import TaskEnv


class LeRobotTask(gymnasium.Env):
    """Observation: `agent_pos`, `environment_state`, `pixels` by camera. Actions and `agent_pos` are joint
    positions in `units`. An episode ends with success, or after the task's time; `info["is_success"]` says
    which."""

    metadata: dict[str, Any] = {"render_modes": ["rgb_array"], "render_fps": 20}  # noqa: RUF012  (gymnasium's own declaration)

    def __init__(
        self,
        task: str,
        robot: str | None = None,
        cameras: Sequence[str] = (),
        image_size: int = 96,
        control_hz: float = 20.0,
        scene_state: bool = True,
        units: str = "degrees",
    ) -> None:
        self.render_mode = "rgb_array"
        self.env = TaskEnv(task, robot, cameras, (image_size, image_size), control_hz=control_hz)
        scene = self.env.scene
        self.task, self.metadata = task, {**self.metadata, "render_fps": round(control_hz)}
        self._max_episode_steps = round(scene.max_seconds * control_hz)
        joints = Feature((len(scene.joints.names),), "float32", scene.joints.names, scene.joints.units)
        features = {STATE: joints, ACTION: joints}
        self.words = in_lerobots(features, usual_units(features, units), robot=str(scene.built_from["robot"]))
        self._ours = self.words.inverse(features)
        space: Any = self.env.action_space
        ends = np.sort([self.words.values(ACTION, x) for x in (space.low, space.high)], axis=0)
        self.action_space = gymnasium.spaces.Box(*ends.astype(np.float32), dtype=np.float32)
        shown: Any = self.env.observation_space
        spaces: dict[str, gymnasium.Space[Any]] = {"agent_pos": shown[STATE]}
        if scene_state:
            spaces["environment_state"] = shown[ENVIRONMENT]
        if cameras:
            spaces["pixels"] = gymnasium.spaces.Dict({c: shown[IMAGES + c] for c in cameras})
        self.observation_space = gymnasium.spaces.Dict(spaces)
        self._cameras = tuple(cameras)
        self._film: Any = None

    @property
    def task_description(self) -> str:
        """The instruction of this episode, in words."""
        return self.env.scene.instruction

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        super().reset(seed=seed)
        observation, info = self.env.reset(seed=seed)
        return self._shown(observation), {"is_success": bool(info["success"])}

    def step(self, action: np.ndarray) -> tuple[dict[str, Any], float, bool, bool, dict[str, Any]]:
        ours = self._ours.values(ACTION, np.asarray(action, np.float64))
        observation, reward, terminated, truncated, info = self.env.step(ours)
        return self._shown(observation), reward, terminated, truncated, {"is_success": bool(info["success"])}

    def render(self) -> np.ndarray:  # type: ignore[override]
        if self._film is None:
            self._film = self.env.scene.film_camera()
        return self._film.latest().data

    def close(self) -> None:
        self.env.close()

    def _shown(self, observation: dict[str, np.ndarray]) -> dict[str, Any]:
        shown: dict[str, Any] = {"agent_pos": self.words.values(STATE, observation[STATE]).astype(np.float32)}
        if "environment_state" in self.observation_space.spaces:  # type: ignore[attr-defined]
            shown["environment_state"] = observation[ENVIRONMENT]
        if self._cameras:
            shown["pixels"] = {c: observation[IMAGES + c] for c in self._cameras}
        return shown
