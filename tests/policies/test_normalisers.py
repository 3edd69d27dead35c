"""What enters a network is clipped softly; what leaves it is not, and training says what stood still."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from contracts.data import FEATURES, write_store
from contracts.recipes import small

from ulna.datasets.features import ACTION, STATE, Feature
from ulna.datasets.reading.spec import WindowSpec
from ulna.datasets.reading.windows import Windows
from ulna.datasets.recording.writer import EpisodeWriter
from ulna.datasets.store import EpisodeStore
from ulna.policies.codec import RELATIVE, ActionCodec, Affine, Delta, Relative
from ulna.policies.request import Request
from ulna.policies.serving.local import LocalPolicy
from ulna.policies.serving.protocol import BadRequest
from ulna.policies.train.data import open_data
from ulna.policies.train.error import TrainingError
from ulna.policies.train.loop import train


def test_a_soft_clip_is_nothing_within_and_bounded_beyond() -> None:
    normaliser = Affine(np.ones(1, np.float32), np.zeros(1, np.float32), clip=10.0)
    x = torch.linspace(-10, 10, 101)[:, None]
    assert torch.equal(normaliser(x), x)
    x = torch.tensor([[10.0], [10.1], [12], [65], [10_175], [1e30], [3e38], [torch.inf]])
    y = normaliser(torch.cat([x, -x]))
    assert torch.equal(y[: len(x)], -y[len(x) :])
    assert (y[: len(x)].diff(dim=0) >= 0).all()
    assert float(y[1]) == pytest.approx(10.1, abs=1e-4)
    assert float(y.max()) <= 20


@pytest.mark.parametrize("codec", [Delta(), Relative()], ids=lambda c: type(c).__name__)
def test_differences_have_the_same_statistics_alone_and_in_a_chain(
    codec: ActionCodec, tmp_path: Path
) -> None:
    """The links of a chain are windows, but those that lie beyond the episode's end."""
    spec = WindowSpec(2, 4, n_past_actions=1, keys=(STATE,))
    store = write_store(tmp_path / "d", (9, 6))
    alone, chained = (
        codec.fit(Windows(store, s), FEATURES, 1)[RELATIVE] for s in (spec, replace(spec, chain=3))
    )
    assert chained.mean.shape == (4, 3)
    np.testing.assert_array_equal(chained.min, alone.min)
    np.testing.assert_array_equal(chained.max, alone.max)


@pytest.fixture(scope="module")
def resting(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """A policy of joints of which `b` only wavers by a count, and what its training said."""
    root = tmp_path_factory.mktemp("resting")
    features = {k: FEATURES[k] for k in (STATE, ACTION)}
    rng = np.random.default_rng(0)
    store = EpisodeStore.create(root / "data", features, 20.0)
    with EpisodeWriter(store) as writer:
        writer.start({"task": "rest"})
        for t in range(40):
            row = np.array([np.sin(t / 5), 0.7 + 0.0015 * rng.integers(0, 2), np.cos(t / 7)], np.float32)
            writer.tick({STATE: row, ACTION: row}, dict.fromkeys(features, (t * 50_000_000, t * 50_000_000)))
        writer.end({})
    said: list[str] = []
    train(
        small("flow", features),
        root / "data",
        root / "policy",
        seed=0,
        device="cpu",
        track=(),
        say=said.append,
    )
    return root / "policy", said


def test_training_says_what_stood_still(resting: tuple[Path, list[str]]) -> None:
    about = [s for s in resting[1] if "stood still" in s]
    assert len(about) == 2
    for sentence, key in zip(about, (STATE, ACTION), strict=True):
        assert sentence.startswith(f"of {key} b (moves less than 0.006 rad) stood still")


@pytest.mark.parametrize("size", [0.05, 60.0, 1e30, 3e38])
def test_a_reading_far_off_leaves_the_actions_finite(resting: tuple[Path, list[str]], size: float) -> None:
    policy = LocalPolicy(resting[0])
    row = np.array([0, 0.7 + size, 0], np.float32)
    actions = policy.infer(Request({STATE: row}, 1).to_wire())["actions"]
    assert np.isfinite(actions).all()
    seen = policy.policy.normaliser(STATE)(torch.from_numpy(row))
    assert float(seen.abs().max()) <= 20


def test_a_double_that_float32_cannot_hold_is_refused(resting: tuple[Path, list[str]]) -> None:
    with pytest.raises(BadRequest, match="not finite"):
        LocalPolicy(resting[0]).infer(Request({STATE: np.array([0, 1e308, 0])}, 1).to_wire())


def test_data_that_float32_cannot_hold_are_refused(tmp_path: Path) -> None:
    features = {k: Feature((1,), "float64", ("a",), ("rad",)) for k in (STATE, ACTION)}
    store = EpisodeStore.create(tmp_path / "data", features, 20.0)
    with EpisodeWriter(store) as writer:
        writer.start({})
        for t in range(20):
            row = np.array([1e308 if t == 7 else 0.1 * t])
            writer.tick({STATE: row, ACTION: row}, dict.fromkeys(features, (t * 50_000_000, t * 50_000_000)))
        writer.end({})
    with pytest.raises(ValueError, match=r"episode 0: .* is not finite in row 7"):
        train(small("flow", features), tmp_path / "data", tmp_path / "policy", device="cpu", track=())


def test_chunks_and_matrices_are_refused_before_training(tmp_path: Path) -> None:
    chunk = {**FEATURES, ACTION: Feature((3, 3), "float32")}
    with pytest.raises(TrainingError, match=r"action has the shape \(3, 3\).*--first-of-chunk"):
        open_data(write_store(tmp_path / "a", (3,), chunk).path)
    matrix = {**FEATURES, "observation.matrix": Feature((3, 3), "float32")}
    data = write_store(tmp_path / "b", (3,), matrix).path
    with pytest.raises(TrainingError, match=r"observation.matrix has rows of \(3, 3\).*--observe"):
        open_data(data)
    open_data(data, [STATE])
