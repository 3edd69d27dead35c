"""Replay buffers as Diffusion Policy and UMI write them, by zarr 2, numcodecs and imagecodecs: a folder with
Blosc, and a zip with UMI's keys and JPEG XL. Their own ReplayBuffer is on no registry; these are its calls of
zarr (real-stanford/diffusion_policy, diffusion_policy/common/replay_buffer.py)."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from imagecodecs.numcodecs import Jpegxl, register_codecs
from numcodecs import Blosc
from sample import EPISODES, ROWS, SIDE, folder, save, scene, sway

RNG = np.random.default_rng(0)
LENGTHS = [ROWS, ROWS + 7][:EPISODES]
ENDS = np.cumsum(LENGTHS)
TOTAL = int(ENDS[-1])


def write(path: Path, data: dict[str, np.ndarray], codec: Any, zipped: bool) -> None:
    """An empty buffer that grows by an episode at a time; a zip is copied from memory, as UMI does."""
    root = zarr.group(store=zarr.MemoryStore() if zipped else zarr.DirectoryStore(str(path)))
    root.create_group("data")
    root.create_group("meta").zeros(
        "episode_ends", shape=(0,), chunks=(1024,), dtype=np.int64, compressor=None
    )
    start = 0
    for end in ENDS:
        for key, rows in data.items():
            image = rows.dtype == np.uint8
            chunks = (1, *rows.shape[1:]) if image else (512, *rows.shape[1:])
            compressor = codec if image else Blosc("zstd", clevel=5, shuffle=Blosc.BITSHUFFLE)
            if key not in root["data"]:
                root["data"].zeros(
                    key, shape=(0, *rows.shape[1:]), chunks=chunks, dtype=rows.dtype, compressor=compressor
                )
            array = root["data"][key]
            array.resize(int(end), *rows.shape[1:])
            array[start:end] = rows[start:end]
        root["meta/episode_ends"].resize(root["meta/episode_ends"].shape[0] + 1)
        root["meta/episode_ends"][-1] = end
        start = end
    if zipped:
        with zarr.ZipStore(str(path), mode="w") as store:
            zarr.copy_store(source=root.store, dest=store)


def read(path: Path) -> list[dict[str, np.ndarray]]:
    root = zarr.open(str(path), "r")
    bounds = [0, *root["meta/episode_ends"][:].tolist()]
    return [{k: array[a:b] for k, array in root["data"].arrays()} for a, b in itertools.pairwise(bounds)]


def diffusion_policy() -> None:
    path = folder("diffusion_policy")
    data = {
        "img": scene(RNG, TOTAL).astype(np.float32),  # whole numbers as float32, as PushT's
        "state": sway(RNG, TOTAL, 5, size=200),
        "action": sway(RNG, TOTAL, 2, size=200),
        "keypoint": sway(RNG, TOTAL, 9, 2, size=200),
        "n_contacts": RNG.integers(0, 3, (TOTAL, 1)).astype(np.float32),
    }
    write(path / "pusht.zarr", data, None, False)
    names = {
        "img": "observation.images.img",
        "state": "observation.state",
        "action": "action",
        "keypoint": "observation.keypoint",
        "n_contacts": "observation.n_contacts",
    }
    truth = [{names[k]: v for k, v in e.items()} for e in read(path / "pusht.zarr")]
    save(
        path,
        path / "pusht.zarr",
        truth,
        ["zarr", "numcodecs"],
        "a replay buffer with PushT's keys: a zarr v2 folder, Blosc zstd with bit shuffle, images as float32",
        "zarr 2",
        ["--fps", "10"],
    )


def umi() -> None:
    register_codecs(verbose=False)
    path = folder("umi")
    size = (TOTAL, SIDE, SIDE, 3)
    data: dict[str, np.ndarray] = {}
    for i in range(2):
        data[f"camera{i}_rgb"] = scene(RNG, TOTAL, 60 * i).reshape(size)
        data[f"robot{i}_eef_pos"] = sway(RNG, TOTAL, 3)
        data[f"robot{i}_eef_rot_axis_angle"] = sway(RNG, TOTAL, 3)
        data[f"robot{i}_gripper_width"] = np.float32(0.04) + sway(RNG, TOTAL, 1, size=0.04)
        data[f"robot{i}_demo_start_pose"] = sway(RNG, TOTAL, 6).astype(np.float64)
        data[f"robot{i}_demo_end_pose"] = sway(RNG, TOTAL, 6).astype(np.float64)
    write(path / "dataset.zarr.zip", data, Jpegxl(level=99, numthreads=1), True)
    truth = []
    for e in read(path / "dataset.zarr.zip"):
        parts = ("eef_pos", "eef_rot_axis_angle", "gripper_width")
        state = np.concatenate([e[f"robot{i}_{p}"] for i in range(2) for p in parts], 1)
        truth.append(
            {
                "observation.state": state,
                "action": np.concatenate([state[1:], state[-1:]]),
                **{f"observation.images.camera{i}_rgb": e[f"camera{i}_rgb"] for i in range(2)},
                **{
                    f"observation.robot{i}_demo_{end}_pose": e[f"robot{i}_demo_{end}_pose"]
                    for i in range(2)
                    for end in ("start", "end")
                },
            }
        )
    save(
        path,
        path / "dataset.zarr.zip",
        truth,
        ["zarr", "numcodecs", "imagecodecs"],
        "a replay buffer with the keys of two UMI grippers: a zarr v2 zip, images as JPEG XL (level 99)",
        "zarr 2 with imagecodecs",
        ["--fps", "59.94"],
    )


if __name__ == "__main__":
    diffusion_policy()
    umi()
