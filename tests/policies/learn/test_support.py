"""A guard knows what data did where, and a shortcut that they never took is none of it."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from contracts.data import FEATURES, WITH_IMAGE, write_store
from contracts.recipes import small

from ulna.datasets.episode import StoreError
from ulna.datasets.features import ACTION, STATE, Feature, FeatureMismatch, Features
from ulna.datasets.recording.writer import EpisodeWriter
from ulna.datasets.store import EpisodeStore
from ulna.policies.checkpoint import load_checkpoint
from ulna.policies.guard import Guard
from ulna.policies.hashed import CheckpointError
from ulna.policies.hooks.all import hooks_from_request
from ulna.policies.hooks.supported import Supported
from ulna.policies.learn.support import learn_support
from ulna.policies.parts import override
from ulna.policies.policy import Policy
from ulna.policies.request import Request
from ulna.policies.train.data import open_data, window_spec
from ulna.policies.train.error import TrainingError

PLANE: Features = {
    STATE: Feature((2,), "float32", ("x", "y"), ("rad", "rad")),
    ACTION: Feature((2,), "float32", ("x", "y"), ("rad", "rad")),
}
STEP, START, GOAL = 0.05, np.array([-0.5, 0.0]), np.array([0.5, 0.0])
CORNERS = [np.array([-0.5, 0.5]), np.array([0.5, 0.5]), GOAL]


def walk(corners: list[np.ndarray], rng: np.random.Generator) -> list[tuple[np.ndarray, np.ndarray]]:
    """(where it is, where it goes next) of a way along the corners, a step a tick, in a trembling hand."""
    q, pairs = START + 0.01 * rng.normal(size=2), []
    for corner in corners:
        while np.linalg.norm(corner - q) > STEP:
            target = q + STEP * (corner - q) / np.linalg.norm(corner - q) + 0.004 * rng.normal(size=2)
            pairs.append((q, target))
            q = target
    return pairs


def recording(path: Path, ways: list[list[np.ndarray]], n: int = 30) -> Path:
    store, rng = EpisodeStore.create(path, PLANE, 20.0), np.random.default_rng(0)
    with EpisodeWriter(store) as writer:
        for i in range(n):
            writer.start({"agent": "test"})
            for t, (q, target) in enumerate(walk(ways[i % len(ways)], rng)):
                values = {STATE: q.astype(np.float32), ACTION: target.astype(np.float32)}
                writer.tick(values, {k: (t * 50_000_000, t * 50_000_000) for k in values})
            writer.end({"success": True})
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With a guard of ways around a square, whose straight side, the shortcut, nobody took."""
    folder = tmp_path_factory.mktemp("support")
    learn_support(recording(folder / "d", [CORNERS]), folder / "guard")
    return folder


def guarded(guard: Guard | None, corners: list[np.ndarray], seed: int) -> tuple[bool, int]:
    """(whether it arrived, at how many ticks the guard acted) of a walk that takes what the guard gives."""
    rng, q, acted = np.random.default_rng(seed), START.copy(), 0
    todo = list(corners)
    for _ in range(120):
        if np.linalg.norm(todo[0] - q) <= 1.5 * STEP:
            todo.pop(0)
            if not todo:
                return True, acted
        asked = q + STEP * (todo[0] - q) / np.linalg.norm(todo[0] - q) + 0.004 * rng.normal(size=2)
        if guard is not None and not guard.supports({STATE: q}, asked):
            acted += 1
            instead = guard.nearest({STATE: q}, asked)
            asked = q if instead is None or np.abs(instead - asked).max() > STEP else instead
        q = asked
    return False, acted


def test_a_shortcut_that_the_data_never_took_is_not_taken(folder: Path) -> None:
    guard = Guard(folder / "guard")
    assert guarded(None, [GOAL], 0) == (True, 0)
    for seed in range(10):
        arrived, acted = guarded(guard, [GOAL], seed)
        assert not arrived
        assert acted > 50


def test_an_action_that_was_done_elsewhere_is_not_supported_here(folder: Path) -> None:
    """Which a guard of actions alone could not know: to the right is where the data go, on the upper side."""
    guard, right = Guard(folder / "guard"), np.array([STEP, 0.0])
    up_there, here = np.array([0.0, 0.5]), np.array([0.0, 0.0])
    assert guard.supports({STATE: up_there}, up_there + right)
    assert not guard.supports({STATE: here}, here + right)
    assert guard.supports({STATE: START}, START + np.array([0, STEP]))
    assert not guard.supports({STATE: START}, START + right)


def test_with_data_that_took_every_way_the_guard_costs_nothing(tmp_path: Path) -> None:
    """The control: 60 walks along ways that are in the data arrive as without."""
    learn_support(recording(tmp_path / "d", [CORNERS, [GOAL]]), tmp_path / "guard")
    guard = Guard(tmp_path / "guard")
    arrived = [guarded(guard, way, seed)[0] for way in (CORNERS, [GOAL]) for seed in range(30)]
    assert np.mean(arrived) >= 0.98


def test_held_out_episodes_lie_outside_by_the_share_that_was_asked_for(folder: Path) -> None:
    guard, rng = Guard(folder / "guard"), np.random.default_rng(7)
    pairs = [pair for _ in range(40) for pair in walk(CORNERS, rng)]
    q, target = (np.array(column) for column in zip(*pairs, strict=True))
    outside = ~guard.supports({STATE: q}, target)
    assert 0.002 < outside.mean() < 0.15
    assert ((guard.distance({STATE: q}, target) > guard.radius) == outside).all()


def test_going_slower_and_standing_still_are_supported(folder: Path) -> None:
    guard, q = Guard(folder / "guard"), np.array([-0.5, 0.2])
    for share in np.linspace(0, 1, 9):
        assert guard.supports({STATE: q}, q + np.array([0.0, share * STEP]))
    assert not guard.supports({STATE: q}, q - np.array([0.0, STEP]))


def test_the_nearest_supported_action_is_one_that_was_done_here(folder: Path) -> None:
    guard, q = Guard(folder / "guard"), np.array([-0.5, 0.2])
    instead = guard.nearest({STATE: q}, q + np.array([STEP, STEP]))
    assert instead is not None
    assert guard.supports({STATE: q}, instead)
    assert np.allclose(instead - q, [0.0, STEP], atol=0.02)
    assert guard.nearest({STATE: np.array([0.0, -0.3])}, np.array([0.0, -0.3])) is None
    assert np.allclose(guard.begin, START, atol=0.02)


def test_what_cannot_be_learned_from_is_named(tmp_path: Path) -> None:
    write_store(tmp_path / "d", features=WITH_IMAGE)
    with pytest.raises(StoreError, match="1 episodes that neither failed"):
        learn_support(tmp_path / "d", tmp_path / "g")
    with pytest.raises(TrainingError, match=r"images\.front is a picture"):
        learn_support(tmp_path / "d", tmp_path / "g", ["observation.images.front"])
    with pytest.raises(TrainingError, match="quantile lies"):
        learn_support(tmp_path / "d", tmp_path / "g", quantile=1.5)


def test_a_guard_that_is_none_or_another_robots_is_named(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(FeatureMismatch, match="the guard"):
        Guard(folder / "guard", FEATURES)
    with pytest.raises(CheckpointError, match="holds a guard, and a policy is needed"):
        load_checkpoint(folder / "guard")
    shutil.copytree(folder / "guard", tmp_path / "g")
    (tmp_path / "g" / "guard.json").write_text(json.dumps({"radius": 100.0}))
    with pytest.raises(CheckpointError, match="not as it was saved"):
        Guard(tmp_path / "g")


def test_a_guard_runs_without_torch(folder: Path) -> None:
    code = (
        "import sys, numpy; from ulna.policies.guard import Guard; "
        f"g = Guard({str(folder / 'guard')!r}); "
        f"assert g.supports({{{STATE!r}: numpy.array([-0.5, 0.2])}}, numpy.array([-0.5, 0.25])); "
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_candidates_that_are_not_supported_are_dropped(folder: Path) -> None:
    """Of an untrained policy, whose chunks lie all over: near the data some survive, far from them none."""
    data = open_data(folder / "d")
    recipe = override(small("flow", PLANE), {"codec": "Relative"})
    windows = data.windows(window_spec(recipe, data.features))
    stats = windows.stats() | recipe.codec.fit(windows.train, data.features, recipe.n_past_actions)
    torch.manual_seed(0)
    policy = Policy(recipe, data.features, stats).eval()
    guard, n = Guard(folder / "guard"), recipe.n_obs_steps
    places = np.array([[-0.5, 0.3], [0.0, 0.5], [0.0, -0.4]])
    observation = {STATE: torch.tensor(np.repeat(places[:, None], n, 1), dtype=torch.float32)}
    sampled = policy.sample(Request(observation, 3), [Supported(str(folder / "guard"), 64)])
    chosen = sampled.chunk[:, recipe.n_past_actions].numpy()
    candidates = sampled.candidates[:, :, recipe.n_past_actions].numpy()
    inside = guard.supports({STATE: places[:, None]}, candidates)
    assert sampled.flags["unsupported"].tolist() == (~inside.any(1)).tolist()
    assert inside[:2].any(), "something to choose"
    assert not inside[:2].all(), "and something to drop"
    assert sampled.flags["unsupported"][2]
    for row, place in enumerate(places):
        distances = guard.distance({STATE: place[None]}, candidates[row])
        distance = float(guard.distance({STATE: place}, chosen[row]))
        assert distance <= guard.radius or distance == pytest.approx(distances.min())
    assert policy.sample(Request(observation, 3)).flags == {}


def test_strangers_may_not_name_a_guard() -> None:
    with pytest.raises(ValueError, match="names files"):
        hooks_from_request([{"part": "Supported", "guard": "/"}])
    with pytest.raises(ValueError, match="at least 2"):
        Supported(candidates=1)
