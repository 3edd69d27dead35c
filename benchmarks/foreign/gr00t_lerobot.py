"""A LeRobot v2.1 folder with GR00T's meta/modality.json, written by a LeRobot of that time, and GR00T's own
demonstrations (v2.0, in the package nvidia-gr00t-sdk); both read by GR00T's LeRobotSingleDataset."""

from __future__ import annotations

import json
import shutil
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
from sample import EPISODES, ROWS, SIDE, folder, save, scene

# its transforms of rotations alone use PyTorch3D, which no registry has for this Python
for name in ("pytorch3d", "pytorch3d.transforms"):
    sys.modules[name] = types.ModuleType(name)
STOOD_IN = "PyTorch3D, which reading does not use, was replaced by an empty module"

STATE, ACTION = "observation.state", "action"


def read(path: Path, states: list[str], camera: str, tasks: str, decoder: str) -> tuple[list[Any], list[str]]:
    """(rows by our features, task) of the first EPISODES episodes, by GR00T. Its dataset takes the frame that
    is nearest to a row's timestamp, and those of its demonstrations are one period late: the pictures are
    read by their number."""
    from gr00t.data.dataset import LeRobotSingleDataset, ModalityConfig
    from gr00t.utils.video import get_all_frames

    groups = {
        "state": [f"state.{n}" for n in states],
        "action": [f"action.{n}" for n in states],
        "language": [f"annotation.{tasks}"],
    }
    dataset = LeRobotSingleDataset(
        path,
        {g: ModalityConfig(delta_indices=[0], modality_keys=keys) for g, keys in groups.items()},
        "new_embodiment",
        video_backend="decord",
    )
    episodes, words = [], []
    for i in range(EPISODES):
        length = int(dataset.trajectory_lengths[i])
        steps = [dataset.get_step_data(int(dataset.trajectory_ids[i]), row) for row in range(length)]
        arrays = {
            key: np.stack([np.concatenate([s[k][0] for k in groups[g]]) for s in steps])
            for g, key in (("state", STATE), ("action", ACTION))
        }
        video = dataset.get_video_path(int(dataset.trajectory_ids[i]), camera)
        arrays[f"observation.images.{camera}"] = get_all_frames(str(video), video_backend=decoder)
        episodes.append(arrays)
        words.append(steps[0][groups["language"][0]][0])
    return episodes, words


def demonstrations() -> None:
    import gr00t

    path = folder("gr00t_demo")
    source = Path(gr00t.__file__).parents[1] / "demo_data" / "robot_sim.PickNPlace"
    copy = path / source.name
    shutil.copytree(source, copy)
    lines = copy / "meta" / "episodes.jsonl"
    lines.write_text("".join(lines.read_text().splitlines(keepends=True)[:EPISODES]))
    states = list(json.loads((copy / "meta" / "modality.json").read_text())["state"])
    episodes, tasks = read(copy, states, "ego_view", "human.action.task_description", "decord")
    save(
        path,
        copy,
        episodes,
        ["nvidia-gr00t-sdk", "decord"],
        f"GR00T's robot_sim.PickNPlace (LeRobot v2.0) from its package, {EPISODES} of its episodes",
        "GR00T's LeRobotSingleDataset and its reader of videos with decord",
        attributes={"task": tasks},
        notes=[STOOD_IN],
    )


def written() -> None:
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    path, rng = folder("gr00t_lerobot_v21"), np.random.default_rng(0)
    vector = {"dtype": "float32", "shape": (7,), "names": [f"motor_{i}" for i in range(7)]}
    camera = {"dtype": "video", "shape": (SIDE, SIDE, 3), "names": ["height", "width", "channels"]}
    features = {STATE: vector, ACTION: vector, "observation.images.front": camera}
    dataset = LeRobotDataset.create("ulna/sample", 20, features, root=path / "data", robot_type="so100")
    for e in range(EPISODES):
        for i, frame in enumerate(scene(rng, ROWS, 40 * e)):
            state = np.sin(0.1 * i + np.arange(7)).astype(np.float32)
            dataset.add_frame(
                {STATE: state, ACTION: state + np.float32(0.05), "observation.images.front": frame},
                task=f"pick up cube {e}",
            )
        dataset.save_episode()
    parts = {"arm": {"start": 0, "end": 6}, "gripper": {"start": 6, "end": 7}}
    modality = {
        "state": parts,
        "action": parts,
        "video": {"front": {"original_key": "observation.images.front"}},
        "annotation": {"human.task_description": {"original_key": "task_index"}},
    }
    (path / "data" / "meta" / "modality.json").write_text(json.dumps(modality, indent=1))
    episodes, tasks = read(path / "data", list(parts), "front", "human.task_description", "pyav")
    save(
        path,
        path / "data",
        episodes,
        ["lerobot", "nvidia-gr00t-sdk"],
        "a LeRobot v2.1 folder by LeRobotDataset (AV1), with a modality.json as GR00T asks for",
        "GR00T's LeRobotSingleDataset and its reader of videos with PyAV",
        attributes={"task": tasks},
        notes=[STOOD_IN],
    )


if __name__ == "__main__":
    demonstrations()
    written()
