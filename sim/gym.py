"""The tasks as gymnasium environments: `gymnasium.make("ulna/Lift-v0", robot="panda")` after `import
ulna.sim.gym`."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import gymnasium
import numpy as np

from .scene import SimScene
from .tasks.all import task_names

DEPTH, CAMERA_POSE = "observation.depth.", "observation.camera_pose."


class TaskEnv(gymnasium.Env):
    """One step is one control period. Action: joint targets `(A,)` float32 of all arms, rad or m, within the
    joints' limits. robot, cameras: as of `SimScene`.

    Observation: `observation.state` `(A,)`, `observation.environment_state`, and
    `observation.images.<camera>` uint8 HWC; with `depth` also `observation.depth.<camera>` uint16 `(H, W)` in
    mm and `observation.camera_pose.<camera>` `(7,)`, see `SimCamera`. The reward is the task's dense one; an
    episode terminates on success and truncates after the task's `max_seconds`. info: `success`, `score`,
    `instruction`, and after a step `sent`, the action as the joints' limits allowed it. Same seed and
    actions, same episode as that of a robot in the episode loop, bit for bit."""

    metadata: dict[str, Any] = {"render_modes": ["rgb_array"], "render_fps": 20}  # noqa: RUF012  (gymnasium's own declaration)

    def __init__(
        self,
        task: str,
        robot: str | None = None,
        cameras: Sequence[str] = (),
        image_size: tuple[int, int] = (96, 96),
        randomisation: Mapping[str, float] | None = None,
        render_mode: str | None = None,
        control_hz: float = 20.0,
        depth: bool = False,
    ) -> None:
        self.render_mode = render_mode
        self.scene = SimScene(robot, task, cameras, image_size, control_hz, randomisation)
        self.scene.enable()
        for camera in self.scene.cameras.values():
            camera.open()
        self._film = self.scene.film_camera() if render_mode else None
        joints = self.scene.joints
        self.action_space = gymnasium.spaces.Box(
            joints.lower.astype(np.float32), joints.upper.astype(np.float32), dtype=np.float32
        )
        spaces: dict[str, gymnasium.Space[Any]] = {
            # measured positions may lie a little outside the limits: contact pushes, and float32 rounds
            "observation.state": gymnasium.spaces.Box(-np.inf, np.inf, (len(joints),), np.float32),
            "observation.environment_state": gymnasium.spaces.Box(
                -np.inf, np.inf, (len(self.scene.task.names),), np.float32
            ),
        }
        for name in cameras:
            spaces[f"observation.images.{name}"] = gymnasium.spaces.Box(0, 255, (*image_size, 3), np.uint8)
            if depth:
                spaces[DEPTH + name] = gymnasium.spaces.Box(0, 65535, tuple(image_size), np.uint16)
                spaces[CAMERA_POSE + name] = gymnasium.spaces.Box(-np.inf, np.inf, (7,), np.float32)
        self.depth = depth
        self.observation_space = gymnasium.spaces.Dict(spaces)
        self._ticks, self._began_ns = 0, 0

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        super().reset(seed=seed)
        self.scene.reset(seed if seed is not None else int(self.np_random.integers(1 << 31)))
        self._ticks, self._began_ns = 0, self.scene.clock.now_ns()
        return self._observe(), self._info()

    def step(self, action: np.ndarray) -> tuple[dict[str, np.ndarray], float, bool, bool, dict[str, Any]]:
        clock, hz = self.scene.clock, self.scene.control_hz
        period_ns = round(1e9 / hz)
        sent = self.scene.command(np.asarray(action), clock.now_ns() + period_ns)
        self._ticks += 1
        clock.sleep_until(self._began_ns + self._ticks * period_ns)  # absolute: rounding does not add up
        truncated = self._ticks >= round(self.scene.max_seconds * hz)
        info = {**self._info(), "sent": sent.astype(np.float32)}
        return self._observe(), self.scene.reward(), self.scene.success(), truncated, info

    def render(self) -> np.ndarray | None:  # type: ignore[override]
        return None if self._film is None else self._film.latest().data

    def close(self) -> None:
        self.scene.close()

    def _observe(self) -> dict[str, np.ndarray]:
        out = {
            "observation.state": self.scene.read().astype(np.float32),
            "observation.environment_state": self.scene.task.observe().astype(np.float32),
        }
        for name, camera in self.scene.cameras.items():
            out[f"observation.images.{name}"] = camera.latest().data
            if self.depth:
                out[DEPTH + name] = camera.depth_rendered()
                out[CAMERA_POSE + name] = camera.pose()
        return out

    def _info(self) -> dict[str, Any]:
        return {
            "success": self.scene.success(),
            "score": self.scene.score(),
            "instruction": self.scene.instruction,
        }


for _task in task_names():  # push_t is ulna/PushT-v0; those of installed packages are imported when made
    _id = f"ulna/{''.join(word[:1].upper() + word[1:] for word in re.split(r'[^a-zA-Z0-9]', _task))}-v0"
    if _id not in gymnasium.registry:
        gymnasium.register(_id, entry_point="ulna.sim.gym:TaskEnv", kwargs={"task": _task})
