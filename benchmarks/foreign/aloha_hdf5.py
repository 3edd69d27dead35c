"""Episodes of gym-aloha's simulated bimanual arm in HDF5, laid out as ALOHA's record scripts do: pixels as
tonyzhaozh/act (record_sim_episodes.py), padded JPEG as MarkFzp/act-plus-plus. Those scripts are on no
registry; simulation, h5py and OpenCV are theirs."""

from __future__ import annotations

from pathlib import Path

import cv2
import gymnasium
import h5py
import numpy as np
from sample import EPISODES, ROWS, SIDE, folder, save

import gym_aloha  # noqa: F401  (registers its environments)  # isort: skip

NAMES = {
    "action": "action",
    "observations/qpos": "observation.state",
    "observations/qvel": "observation.qvel",
    "observations/images/top": "observation.images.top",
}


def simulate() -> list[dict[str, np.ndarray]]:
    """Episodes in which both arms sway about their pose at the start."""
    env = gymnasium.make(
        "gym_aloha/AlohaTransferCube-v0",
        obs_type="pixels_agent_pos",
        observation_width=SIDE,
        observation_height=SIDE,
        disable_env_checker=True,
    )
    episodes = []
    for seed in range(EPISODES):
        observation, _ = env.reset(seed=seed)
        base, rows = observation["agent_pos"].copy(), []
        for i in range(ROWS):
            action = (base + 0.2 * np.sin(0.3 * i + np.arange(len(base)))).astype(np.float32)
            qvel = env.unwrapped._env.task.get_qvel(env.unwrapped._env.physics)
            rows.append((action, observation["agent_pos"], qvel, observation["pixels"]["top"]))
            observation = env.step(action)[0]
        episodes.append({n: np.stack(v) for n, v in zip(NAMES, zip(*rows, strict=True), strict=True)})
    return episodes


def write(path: Path, arrays: dict[str, np.ndarray], compressed: bool) -> None:
    images = "observations/images/top"
    with h5py.File(path, "w", rdcc_nbytes=2 * 1024**2) as file:
        file.attrs["sim"] = True
        if compressed:
            file.attrs["compress"] = True
        for name, rows in arrays.items():
            if name != images:
                file.create_dataset(name, data=rows)
        frames = arrays[images]
        if not compressed:
            file.create_dataset(images, data=frames, dtype="uint8", chunks=(1, *frames.shape[1:]))
            return
        # RGB is handed over as if it were BGR, which is what these tools do
        encoded = [cv2.imencode(".jpg", f, [int(cv2.IMWRITE_JPEG_QUALITY), 50])[1].ravel() for f in frames]
        lengths = np.array([[len(e) for e in encoded]])
        padded = np.zeros((len(encoded), lengths.max()), np.uint8)
        for row, e in zip(padded, encoded, strict=True):
            row[: len(e)] = e
        file.create_dataset(images, data=padded, dtype="uint8", chunks=(1, padded.shape[1]))
        file.create_dataset("compress_len", data=lengths)


def read(path: Path) -> dict[str, np.ndarray]:
    """As ACT's loader does: bytes by cv2.imdecode, whose BGR is the RGB that was handed over."""
    with h5py.File(path) as file:
        arrays = {key: file[name][:] for name, key in NAMES.items()}
    top = arrays["observation.images.top"]
    if top.ndim == 2:
        arrays["observation.images.top"] = np.stack([cv2.imdecode(b, cv2.IMREAD_COLOR) for b in top])
    return arrays


def main() -> None:
    episodes = simulate()
    for name, compressed in (("aloha", False), ("aloha_compressed", True)):
        path = folder(name)
        (path / "task").mkdir()
        for i, arrays in enumerate(episodes):
            write(path / "task" / f"episode_{i}.hdf5", arrays, compressed)
        save(
            path,
            path / "task",
            [read(path / "task" / f"episode_{i}.hdf5") for i in range(EPISODES)],
            ["gym-aloha", "h5py", *(["opencv-python-headless"] if compressed else [])],
            "gym-aloha's transfer cube, one HDF5 file an episode, images as "
            + ("padded JPEG of RGB taken for BGR, with compress_len" if compressed else "pixels"),
            "h5py" + (" and cv2.imdecode" if compressed else ""),
        )


if __name__ == "__main__":
    main()
