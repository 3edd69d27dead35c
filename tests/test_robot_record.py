"""Recording by hand: keys, and how images are kept."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from ulna.datasets.edit import trash
from ulna.datasets.features import ACTION
from ulna.datasets.store import EpisodeStore
from ulna.robot.agent import HoldAgent
from ulna.robot.config import load_robot
from ulna.robot.keys import Keys
from ulna.robot.record import record


def test_keys_end_repeat_and_drop_episodes(tmp_path: Path) -> None:
    """On a real terminal: s marks and ends, r repeats the seed, x drops the one before, q throws the present one away."""
    typed, file = os.openpty()
    pressed = iter([b"s", b"r", b"\x1b[C", b"x", b"", b"q"])

    class Typist(HoldAgent):
        def reset(self, task: str, seed: int) -> None:
            super().reset(task, seed)
            seeds.append(seed)
            os.write(typed, next(pressed, b""))

    seeds: list[int] = []
    try:
        with Keys(file) as keys, load_robot("sim:so101", "reach") as rig:
            rig.sim.max_seconds = 0.5  # type: ignore[union-attr]
            result = record(rig, Typist(), tmp_path / "d", 10, keys=keys)
    finally:
        os.close(typed)
        os.close(file)
    assert seeds == [0, 1, 1, 2, 3, 4]
    store = EpisodeStore.open(tmp_path / "d")
    # seed 0 was kept as a success, 1 ended at once the second time and was then dropped, 2 and 3 ran out
    assert [(e.attrs["seed"], e.attrs["success"]) for e in store.episodes] == [
        (0, True),
        (2, False),
        (3, False),
    ]
    assert [t.name[:6] for t in trash(store)] == ["000001"]
    assert (result.episodes, result.successes) == (3, 1)
    noted = store.episodes[0].attrs
    assert noted["limits"].keys() == set(store.features[ACTION].names)
    assert noted["robot_config"]["name"] == "sim:so101"
    assert noted["software"].startswith("ulna ")


def test_images_may_be_recorded_small_and_as_jpeg(tmp_path: Path) -> None:
    with load_robot("sim:so101", "reach", ["front"]) as rig:
        for _ in range(2):  # a store that is continued keeps its way
            first = not (tmp_path / "d").exists()
            how = {"storage": {"codec": "jpeg", "quality": 90}, "image_size": (48, 64)} if first else {}
            record(rig, HoldAgent(), tmp_path / "d", 1, **how)  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="leave the storage options out"):
            record(rig, HoldAgent(), tmp_path / "d", 1, image_size=(48, 64))
    store = EpisodeStore.open(tmp_path / "d")
    assert len(store) == 2
    assert store.episodes[1].read("observation.images.front", 0, 3).shape == (3, 48, 64, 3)
