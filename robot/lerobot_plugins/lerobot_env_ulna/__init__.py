"""`--env.type=ulna`: Ulna's tasks in PyBullet, for `make_env`, `lerobot-eval` and `lerobot-train`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import gymnasium
from lerobot.configs import FeatureType, PolicyFeature
from lerobot.envs.configs import EnvConfig
from lerobot.envs.utils import freeze_after_episode_end

if TYPE_CHECKING:
    from .task import LeRobotTask

ACTION, STATE, ENVIRONMENT = "action", "agent_pos", "environment_state"  # as LeRobot names what an env shows
OBSERVED = {STATE: "observation.state", ENVIRONMENT: "observation.environment_state"}


@EnvConfig.register_subclass("ulna")
@dataclass
class UlnaEnvConfig(EnvConfig):
    task: str | None = "lift"
    fps: int = 20
    robot: str = ""
    """so101, panda, ur5e, so101-pair; by default the first that the task is for."""
    views: str = "front,wrist"
    """Cameras, with commas; empty: none."""
    image_size: int = 96
    """Height and width of their pictures, pixels."""
    scene_state: bool = True
    """Show where things are, as `observation.environment_state`."""
    units: str = "degrees"
    """What the joints of an SO-101 are in: degrees, as LeRobot's own drivers have them, or radians. Other
    arms are in radians and metres."""
    features: dict[str, PolicyFeature] = field(default_factory=dict)
    features_map: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.features:  # as a checkpoint has them
            return
        env = self.make()
        spaces: Any = env.observation_space
        for key, space in spaces.spaces.items():
            if key == "pixels":
                for view, box in space.spaces.items():
                    self.features[f"pixels/{view}"] = PolicyFeature(FeatureType.VISUAL, box.shape)
                    self.features_map[f"pixels/{view}"] = f"observation.images.{view}"
            else:
                kind = FeatureType.STATE if key == STATE else FeatureType.ENV
                self.features[key] = PolicyFeature(kind, space.shape)
                self.features_map[key] = OBSERVED[key]
        width: Any = env.action_space.shape
        self.features[ACTION] = PolicyFeature(FeatureType.ACTION, width)
        self.features_map[ACTION] = ACTION
        env.close()

    @property
    def gym_kwargs(self) -> dict[str, Any]:
        return {
            "task": self.task or "lift",
            "robot": self.robot or None,
            "cameras": tuple(v.strip() for v in self.views.split(",") if v.strip()),
            "image_size": self.image_size,
            "control_hz": float(self.fps),
            "scene_state": self.scene_state,
            "units": self.units,
        }

    def make(self) -> LeRobotTask:
        """One environment."""
        from .task import LeRobotTask  # PyBullet only where it is asked for

        return LeRobotTask(**self.gym_kwargs)

    def create_envs(
        self, n_envs: int, use_async_envs: bool = False
    ) -> dict[str, dict[int, gymnasium.vector.VectorEnv]]:
        one: Callable[[], gymnasium.Env] = freeze_after_episode_end(partial(_make, self.gym_kwargs))
        if use_async_envs and n_envs > 1:
            env: Any = gymnasium.vector.AsyncVectorEnv([one] * n_envs, context="forkserver")
        else:
            env = gymnasium.vector.SyncVectorEnv([one] * n_envs)
        return {self.type: {0: env}}


def _make(options: dict[str, Any]) -> gymnasium.Env:
    from .task import LeRobotTask

    return LeRobotTask(**options)
