"""A tiny one learns from pictures and words, is saved, loaded and served."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from contracts.recipes import small
from contracts.vla import NAMES

from ulna.datasets.features import ACTION, IMAGES, STATE, Feature, Features
from ulna.datasets.recording.writer import EpisodeWriter
from ulna.datasets.store import EpisodeStore
from ulna.policies.checkpoint import load_checkpoint
from ulna.policies.parts import override
from ulna.policies.serving.local import LocalPolicy
from ulna.policies.serving.protocol import BadRequest
from ulna.policies.train.loop import train

CAMERA = IMAGES + "front"
FEATURES: Features = {
    STATE: Feature((2,), "float32", ("a", "b"), ("rad", "rad")),
    CAMERA: Feature((16, 24, 3), "uint8"),
    ACTION: Feature((2,), "float32", ("a", "b"), ("rad", "rad")),
}
TASKS = {"go left": -1.0, "go right": 1.0}


def picture(bright: bool) -> np.ndarray:
    frame = np.zeros((16, 24, 3), np.uint8)
    frame[4:12, 6:18] = 230 if bright else 20
    return frame


def write(path: Path) -> None:
    """The words say where the first joint goes, the picture where the second."""
    store = EpisodeStore.create(path, FEATURES, 20.0, "test robot")
    writer = EpisodeWriter(store)
    rng = np.random.default_rng(0)
    for i in range(8):
        task, bright = list(TASKS)[i % 2], i % 4 < 2
        writer.start({"task": task, "seed": i, "agent": "test"})
        for t in range(20):
            values = {
                STATE: rng.uniform(-1, 1, 2).astype(np.float32),
                CAMERA: picture(bright),
                ACTION: np.array([TASKS[task], 1.0 if bright else -1.0], np.float32),
            }
            writer.tick(values, {k: (t * 50_000_000, t * 50_000_000 + 1000) for k in values})
        writer.end({"success": True})


@pytest.mark.parametrize("name", NAMES)
def test_words_and_pictures_say_what_to_do(name: str, tmp_path: Path) -> None:
    write(tmp_path / "d")
    recipe = override(
        small(name, FEATURES, steps=120, batch_size=16, warmup=10, learning_rate=3e-3, ema_power=0.5),
        {"horizon": 4, "n_action_steps": 4, "encoder.vision.shuffle": 1},
    )
    result = train(recipe, tmp_path / "d", tmp_path / "c", device="cpu", track=())
    assert np.mean(result.losses[-20:]) < 0.4 * np.mean(result.losses[:5])
    assert load_checkpoint(tmp_path / "c").content_hash == result.content_hash
    served = LocalPolicy(tmp_path / "c")

    def means(task: str, bright: bool) -> np.ndarray:
        request = {STATE: np.zeros(2, np.float32), CAMERA: picture(bright), "task": task}
        chunks = [served.infer({**request, "_rt": {"seed": i}})["actions"] for i in range(4)]
        return np.mean(chunks, axis=(0, 1))

    for task, sign in TASKS.items():
        for bright in (False, True):
            first, second = means(task, bright)
            assert first * sign > 0.3, f"{task}: {first}"
            assert second * (1 if bright else -1) > 0.3, f"bright {bright}: {second}"
    with pytest.raises(BadRequest, match="lacks task"):
        served.infer({STATE: np.zeros(2, np.float32), CAMERA: picture(True)})


def test_an_instruction_that_cannot_be_read_ends_the_training_before_it_begins(tmp_path: Path) -> None:
    write(tmp_path / "d")
    recipe = override(small("pi0_small", FEATURES), {"conditions.Instruction.most": 3})
    with pytest.raises(ValueError, match="reads at most 3"):
        train(recipe, tmp_path / "d", tmp_path / "c", device="cpu", track=())
    assert not (tmp_path / "c").exists()
