"""Demonstrations of robosuite's Lift, collected by robosuite's DataCollectionWrapper and gathered by its own
script, then prepared by robomimic's scripts (convert_robosuite, dataset_states_to_obs) and read by its
SequenceDataset. The hand that demonstrates is a few lines below: reach, close, lift."""

from __future__ import annotations

import json
import runpy
import shutil
import sys
import types
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from sample import EPISODES, ROWS, SIDE, folder, save

# robomimic 0.3.0 imports mujoco_py for the type of one error, and egl_probe to choose among GPUs
sys.modules["mujoco_py"] = types.ModuleType("mujoco_py")
egl: Any = types.ModuleType("egl_probe")
egl.get_available_devices = list
sys.modules["egl_probe"] = egl

import robosuite
from robomimic.utils import obs_utils
from robomimic.utils.dataset import SequenceDataset
from robosuite.controllers import load_composite_controller_config
from robosuite.scripts.collect_human_demonstrations import gather_demonstrations_as_hdf5
from robosuite.wrappers import DataCollectionWrapper

NAMES = {
    "agentview_image": "observation.images.agentview_image",
    "object": "observation.environment_state",
    "robot0_joint_pos": "observation.robot0_joint_pos",
}
STATE = ("robot0_eef_pos", "robot0_eef_quat", "robot0_gripper_qpos")


def demonstrate(path: Path) -> Path:
    """robosuite's file, `demo.hdf5`."""
    config = {
        "env_name": "Lift",
        "robots": ["Panda"],
        "controller_configs": load_composite_controller_config(controller=None, robot="Panda"),
    }
    env = robosuite.make(
        **config,
        has_renderer=False,
        has_offscreen_renderer=False,
        use_camera_obs=False,
        control_freq=20,
        seed=0,
    )
    raw = path / "raw"
    env = DataCollectionWrapper(env, str(raw))
    for _ in range(EPISODES):
        observation = env.reset()
        held = succeeded = 0
        for _ in range(ROWS):
            gap = observation["cube_pos"] - observation["robot0_eef_pos"]
            held += bool(np.abs(gap).max() < 0.015)
            target = np.array([0, 0, 0.1]) if held > 4 else gap
            motion = np.clip(target / 0.05, -1, 1)
            observation = env.step(np.concatenate([motion, [0, 0, 0], [1.0 if held else -1.0]]))[0]
            succeeded += bool(env._check_success())
            if succeeded > 10:
                break
    env.close()
    gather_demonstrations_as_hdf5(str(raw), str(path), json.dumps(config))
    shutil.rmtree(raw)
    return path / "demo.hdf5"


def script(name: str, *argv: str) -> None:
    """One of robomimic's scripts, as if called by hand."""
    before, sys.argv = sys.argv, [name, *argv]
    runpy.run_module(f"robomimic.scripts.{name}", run_name="__main__")
    sys.argv = before


def read(path: Path) -> tuple[list[dict[str, np.ndarray]], list[bool]]:
    """(rows by our features, whether its rewards say success) of each episode."""
    keys = (*STATE, *NAMES)
    obs_utils.initialize_obs_utils_with_obs_specs(
        {"obs": {"rgb": ["agentview_image"], "low_dim": [k for k in keys if not k.endswith("image")]}}
    )
    dataset = SequenceDataset(
        str(path), obs_keys=keys, dataset_keys=("actions", "rewards", "dones"), load_next_obs=False
    )
    episodes, outcomes = [], []
    for demo in dataset.demos:
        whole = dataset.get_trajectory_at_index(dataset.demos.index(demo))
        obs = whole["obs"]
        arrays = {NAMES[k]: obs[k] for k in NAMES}
        episodes.append(
            {
                **arrays,
                "observation.state": np.concatenate([obs[k] for k in STATE], 1),
                "action": whole["actions"],
            }
        )
        outcomes.append(bool((whole["rewards"] == 1).any()))
    return episodes, outcomes


def main() -> None:
    path = folder("robomimic")
    demo = demonstrate(path)
    raw = folder("robosuite")
    script("conversion.convert_robosuite", "--dataset", str(demo))
    shutil.copy(demo, raw / "demo.hdf5")
    side = str(SIDE)
    script(
        "dataset_states_to_obs",
        *("--dataset", str(demo), "--output_name", "image.hdf5", "--done_mode", "2", "--compress"),
        *("--camera_names", "agentview", "--camera_height", side, "--camera_width", side),
    )
    demo.unlink()
    episodes, outcomes = read(path / "image.hdf5")
    save(
        path,
        path / "image.hdf5",
        episodes,
        ["robomimic", "robosuite", "mujoco"],
        "robosuite's Lift through robomimic's convert_robosuite and dataset_states_to_obs, gzip, one camera",
        "robomimic's SequenceDataset",
        attributes={"success": outcomes},
        options=["--fps", "20"],
        notes=["mujoco_py and egl_probe, which its scripts import, were replaced by empty modules"],
    )
    with h5py.File(raw / "demo.hdf5") as file:
        rows = [
            {"observation.state": file[f"data/{d}/states"][:], "action": file[f"data/{d}/actions"][:]}
            for d in sorted(file["data"])
        ]
    save(
        raw,
        raw / "demo.hdf5",
        rows,
        ["robosuite", "mujoco"],
        "robosuite's Lift by its collect_human_demonstrations: simulator states and actions, no observations",
        "h5py",
        ["--fps", "20", "--map", "states=observation.state"],
    )


if __name__ == "__main__":
    main()
