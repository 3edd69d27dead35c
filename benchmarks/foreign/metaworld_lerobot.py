"""Meta-World's reach, moved by Meta-World's own expert, in a LeRobot v3.0 folder by LeRobotDataset, with the
features of LeRobot's Meta-World data."""

# pyright: reportMissingImports=false

from __future__ import annotations

import gymnasium
import metaworld  # noqa: F401  (registers its environments)
import numpy as np
from lerobot.datasets.lerobot_dataset import LeRobotDataset
from metaworld.policies import ENV_POLICY_MAP
from sample import EPISODES, ROWS, SIDE, folder, save

TASK, FPS = "reach-v3", 80
NAMES = {
    "observation.image": "observation.images.image",
    "observation.state": "observation.state",
    "observation.environment_state": "observation.environment_state",
    "action": "action",
}


def main() -> None:
    path = folder("metaworld")
    env = gymnasium.make(
        "Meta-World/MT1", env_name=TASK, seed=0, render_mode="rgb_array", camera_name="corner2"
    )
    env.unwrapped.mujoco_renderer.width = env.unwrapped.mujoco_renderer.height = SIDE
    expert = ENV_POLICY_MAP[TASK]()
    image = {"dtype": "video", "shape": (SIDE, SIDE, 3), "names": ["height", "width", "channels"]}
    features = {
        "observation.image": image,
        "observation.state": {"dtype": "float32", "shape": (4,), "names": ["x", "y", "z", "gripper"]},
        "observation.environment_state": {"dtype": "float32", "shape": (39,), "names": None},
        "action": {"dtype": "float32", "shape": (4,), "names": ["x", "y", "z", "gripper"]},
        "next.reward": {"dtype": "float32", "shape": (1,), "names": None},
        "next.success": {"dtype": "bool", "shape": (1,), "names": None},
    }
    dataset = LeRobotDataset.create("ulna/sample", FPS, features, root=path / "data", robot_type="sawyer")
    outcomes = []
    for e in range(EPISODES):
        observation, _ = env.reset()
        succeeded = False
        for _ in range(2 * ROWS if e else 10):  # the first ends before it can be there
            action = expert.get_action(observation).astype(np.float32)
            picture = np.ascontiguousarray(np.flip(env.render(), (0, 1)))  # that camera is upside down
            before = observation.astype(np.float32)
            observation, reward, _, _, info = env.step(np.clip(action, -1, 1))
            succeeded |= bool(info["success"])
            dataset.add_frame(
                {
                    "observation.image": picture,
                    "observation.state": before[:4],
                    "observation.environment_state": before,
                    "action": action,
                    "next.reward": np.float32([reward]),
                    "next.success": np.array([bool(info["success"])]),
                    "task": "Reach a goal position",
                }
            )
        dataset.save_episode()
        outcomes.append(succeeded)
    dataset.finalize()
    rows = LeRobotDataset("ulna/sample", root=path / "data", video_backend="pyav", return_uint8=True)
    episodes = []
    for e in range(EPISODES):
        own = [rows[i] for i in range(len(rows)) if int(rows[i]["episode_index"]) == e]
        arrays = {NAMES[n]: np.stack([r[n].numpy() for r in own]) for n in NAMES}
        arrays["observation.images.image"] = arrays["observation.images.image"].transpose(0, 2, 3, 1)
        episodes.append(arrays)
    save(
        path,
        path / "data",
        episodes,
        ["metaworld", "lerobot", "mujoco"],
        f"Meta-World's {TASK} by its own expert, a LeRobot v3.0 folder by LeRobotDataset (AV1)",
        "LeRobotDataset (PyAV)",
        attributes={"task": ["Reach a goal position"] * EPISODES, "success": outcomes},
    )


if __name__ == "__main__":
    main()
