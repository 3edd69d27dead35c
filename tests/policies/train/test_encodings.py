"""A frozen encoder that sees every frame once: the same losses, the same policy, and whom it does not fit."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from contracts.data import CAMERA, FEATURES, WITH_IMAGE, write_store
from contracts.recipes import small

from ulna.datasets.features import ACTION
from ulna.datasets.reading.mixture import Mixture
from ulna.datasets.reading.windows import Windows, WindowSpec
from ulna.datasets.store import EpisodeStore
from ulna.policies.checkpoint import load_checkpoint
from ulna.policies.conditions.backward_plan import BackwardPlan
from ulna.policies.conditions.change import Change
from ulna.policies.parts import override
from ulna.policies.policy import ENCODING, Policy
from ulna.policies.recipe import Recipe
from ulna.policies.train.data import open_data, tensors, window_spec
from ulna.policies.train.encodings import EncodedWindows
from ulna.policies.train.error import TrainingError
from ulna.policies.train.loop import train

KEYS = tuple(k for k in WITH_IMAGE if k != ACTION)
DIMENSIONS = {k: len(f.shape) for k, f in WITH_IMAGE.items()}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("encodings")
    write_store(folder / "data", features=WITH_IMAGE)
    train(
        recipe(n_obs_steps=2, n_past_actions=1, horizon=16), folder / "data", folder / "first", device="cpu"
    )
    return folder


def recipe(crop: float = 1.0, **changes: Any) -> Recipe:
    cnn = {"encoder.image": "SmallCNN", "encoder.image.crop": crop, "encoder.state": "MLP"}
    return override(small("ptp", WITH_IMAGE), {**cnn, "backbone.dropout": 0.0, **changes})


def second_stage(folder: Path, cached: bool = True, **changes: Any) -> Recipe:
    training = {"start": str(folder / "first"), "freeze": "encoder.*", "cache_encodings": cached}
    return recipe(**{**{f"training.{k}": v for k, v in training.items()}, **changes})


def test_training_on_encodings_gives_the_losses_of_training_on_images(folder: Path) -> None:
    runs = {
        name: train(second_stage(folder, name == "cached"), folder / "data", folder / name, device="cpu")
        for name in ("images", "cached")
    }
    np.testing.assert_allclose(runs["cached"].losses, runs["images"].losses, atol=1e-5)
    policies = {name: load_checkpoint(folder / name).state_dict() for name in ("first", *runs)}
    for key, value in policies["images"].items():
        torch.testing.assert_close(policies["cached"][key], value, atol=1e-4, rtol=1e-4)
        if key.startswith("encoder."):
            assert torch.equal(policies["cached"][key], policies["first"][key])


def test_a_training_on_encodings_resumes_exactly(folder: Path, tmp_path: Path) -> None:
    def stop(progress: Any) -> None:
        if progress.step == 5:
            raise KeyboardInterrupt

    whole = train(second_stage(folder), folder / "data", tmp_path / "whole", device="cpu")
    with pytest.raises(KeyboardInterrupt):
        train(second_stage(folder), folder / "data", tmp_path / "cut", device="cpu", report=stop)
    resumed = train(second_stage(folder), folder / "data", tmp_path / "cut", device="cpu", resume=True)
    assert resumed.losses == whole.losses


@pytest.mark.parametrize("chain", [1, 3])
def test_every_window_holds_the_encodings_of_its_frames(folder: Path, tmp_path: Path, chain: int) -> None:
    """Of two datasets, whose keys differ; where the encoder crops, at the centre as when it acts."""
    policy = load_checkpoint(train(recipe(0.8), folder / "data", tmp_path / "p", device="cpu").checkpoint)
    other = {CAMERA + "_2" if k == CAMERA else k: f for k, f in WITH_IMAGE.items()}
    stores = {CAMERA: folder / "data", CAMERA + "_2": write_store(tmp_path / "d", (9,), other).path}
    parts = [
        Windows(EpisodeStore.open(path), WindowSpec(16, 32, 15, (*KEYS[:-1], camera), chain=chain))
        for camera, path in stores.items()
    ]
    windows = Mixture(parts, WITH_IMAGE, {CAMERA + "_2": CAMERA})
    policy.train()
    encoded = EncodedWindows(windows, policy)
    assert policy.training
    assert len(encoded) == len(windows) == encoded.n_ticks == 42
    policy.eval()
    indices = np.array([40, 3, 19, 20, 32, 33, 0, 41])
    images, encodings = windows.batch(indices), encoded.batch(indices)
    assert CAMERA in images
    assert CAMERA not in encodings
    flat = {
        k: torch.from_numpy(v).flatten(0, v.ndim - DIMENSIONS[k] - 2) for k, v in images.items() if k in KEYS
    }
    expected = policy.encodings(flat)
    torch.testing.assert_close(torch.from_numpy(encodings[ENCODING]).reshape(expected.shape), expected)
    for key in encodings.keys() - {ENCODING}:
        np.testing.assert_array_equal(encodings[key], images[key])


def test_conditions_see_the_vectors_of_now_beside_encodings(folder: Path) -> None:
    told = replace(recipe(), conditions=(Change(), BackwardPlan(hidden=16, width=8)))
    data = open_data(folder / "data")
    windows = data.windows(window_spec(told, data.features))
    policy = Policy(told, data.features, windows.stats()).eval()
    losses = []
    for source in (windows.train, EncodedWindows(windows.train, policy)):
        torch.manual_seed(0)
        losses.append(policy.loss(tensors(source.batch(np.array([3, 8, 21])), "cpu")))
    torch.testing.assert_close(losses[1], losses[0])


def test_the_ticks_of_a_window_are_those_that_it_observes(folder: Path) -> None:
    windows = Windows(EpisodeStore.open(folder / "data"), WindowSpec(3, 4, 0, KEYS))
    np.testing.assert_array_equal(
        windows.observed_ticks(np.array([0, 5, 21])), [[0, 0, 0], [3, 4, 5], [20, 20, 21]]
    )
    batch, ticks = windows.batch(np.array([7, 22])), windows.observed_ticks(np.array([7, 22]))
    for key, value in windows.observations(ticks).items():
        np.testing.assert_array_equal(value, batch[key])


@pytest.mark.parametrize(
    ("changes", "augment", "says"),
    [
        ({"training.freeze": ()}, (), r"encoder\..* is trained: freeze the encoder"),
        ({"training.freeze": "encoder.images.*"}, (), r"encoder\.state\..* is trained"),
        ({}, ("crop", "color"), "--augment crop,color changes a frame"),
        ({"codec": "Delta"}, (), "with Delta the encoder also sees the last command"),
    ],
    ids=["nothing frozen", "half frozen", "augmented", "last command"],
)
def test_what_changes_an_encoding_is_refused(
    folder: Path, tmp_path: Path, changes: dict[str, Any], augment: tuple[str, ...], says: str
) -> None:
    with pytest.raises(TrainingError, match=says):
        train(second_stage(folder, **changes), folder / "data", tmp_path / "p", augment=augment, device="cpu")
    assert not (tmp_path / "p").exists()


def test_a_policy_without_images_has_nothing_to_keep(tmp_path: Path) -> None:
    write_store(tmp_path / "d", features=FEATURES)
    state = override(small("ptp"), {"training.cache_encodings": True, "encoder.state": "MLP"})
    with pytest.raises(TrainingError, match="sees no image"):
        train(state, tmp_path / "d", tmp_path / "p", device="cpu")
