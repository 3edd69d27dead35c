"""Meta-World's reach, moved by Meta-World's own expert, in a LeRobot v3.0 folder by LeRobotDataset, with the
features of LeRobot's Meta-World data."""

from __future__ import annotations

from typing import Any

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


def demonstrate() -> list[list[dict[str, Any]]]:
    """The frames of episodes as LeRobotDataset takes them."""
    env = gymnasium.make(
        "Meta-World/MT1", env_name=TASK, seed=0, render_mode="rgb_array", camera_name="corner2"
    )
    env.unwrapped.mujoco_renderer.width = env.unwrapped.mujoco_renderer.height = SIDE
    expert, episodes = ENV_POLICY_MAP[TASK](), []
    for e in range(EPISODES):
        observation, _ = env.reset()
        frames = []
        for _ in range(2 * ROWS if e else 10):  # the first ends before it can be there
            action = expert.get_action(observation).astype(np.float32)
            picture = np.ascontiguousarray(np.flip(env.render(), (0, 1)))  # that camera is upside down
            before = observation.astype(np.float32)
            observation, reward, _, _, info = env.step(np.clip(action, -1, 1))
            frames.append(
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
        episodes.append(frames)
    return episodes


def write(name: str, dtype: str, how: str, episodes: list[list[dict[str, Any]]]) -> None:
    path = folder(name)
    features = {
        "observation.image": {
            "dtype": dtype,
            "shape": (SIDE, SIDE, 3),
            "names": ["height", "width", "channels"],
        },
        "observation.state": {"dtype": "float32", "shape": (4,), "names": ["x", "y", "z", "gripper"]},
        "observation.environment_state": {"dtype": "float32", "shape": (39,), "names": None},
        "action": {"dtype": "float32", "shape": (4,), "names": ["x", "y", "z", "gripper"]},
        "next.reward": {"dtype": "float32", "shape": (1,), "names": None},
        "next.success": {"dtype": "bool", "shape": (1,), "names": None},
    }
    dataset = LeRobotDataset.create(
        f"ulna/{name}", FPS, features, root=path / "data", robot_type="sawyer", use_videos=dtype == "video"
    )
    for frames in episodes:
        for frame in frames:
            dataset.add_frame(dict(frame))  # it takes the task out
        dataset.save_episode()
    dataset.finalize()
    rows = LeRobotDataset(f"ulna/{name}", root=path / "data", video_backend="pyav", return_uint8=True)
    arrays = []
    for e in range(EPISODES):
        own = [rows[i] for i in range(len(rows)) if int(rows[i]["episode_index"]) == e]
        read = {NAMES[n]: np.stack([r[n].numpy() for r in own]) for n in NAMES}
        pictures = read["observation.images.image"].transpose(0, 2, 3, 1)
        if pictures.dtype != np.uint8:
            pictures = np.round(pictures * 255).astype(np.uint8)
        arrays.append({**read, "observation.images.image": pictures})
    outcomes = [any(bool(f["next.success"][0]) for f in frames) for frames in episodes]
    save(
        path,
        path / "data",
        arrays,
        ["metaworld", "lerobot", "mujoco"],
        f"Meta-World's {TASK} by its own expert, a LeRobot v3.0 folder by LeRobotDataset ({how})",
        "LeRobotDataset" + (" (PyAV)" if dtype == "video" else ""),
        attributes={"task": ["Reach a goal position"] * EPISODES, "success": outcomes},
    )


if __name__ == "__main__":
    demonstrations = demonstrate()
    write("metaworld", "video", "AV1", demonstrations)
    write("metaworld_images", "image", "PNG in Parquet", demonstrations)
