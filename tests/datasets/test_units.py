"""Names and units that two sides must share, merging under other names, and scales that fit a unit."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from contracts.data import CAMERA, FEATURES, WITH_IMAGE, write_store

from ulna.datasets.episode import StoreError
from ulna.datasets.features import ACTION, ENVIRONMENT, STATE, Feature, FeatureMismatch, require_same
from ulna.datasets.merge import merge
from ulna.datasets.normalise import Mode, affine, clip, still
from ulna.datasets.reading.mixture import common_features
from ulna.datasets.reading.spec import WindowSpec
from ulna.datasets.recording.writer import EpisodeWriter
from ulna.datasets.stats import Stats, vector_stats
from ulna.datasets.store import EpisodeStore
from ulna.datasets.units import resolutions
from ulna.policies.train.data import open_data
from ulna.robot.cli import main

STATED = Feature((2,), "float32", ("a", "b"), ("rad", "rad"))


@pytest.mark.parametrize("key", [STATE, ACTION, f"goal.{STATE}", f"prompt.{ACTION}"])
@pytest.mark.parametrize(
    "other",
    [
        replace(STATED, units=()),
        replace(STATED, units=("", "")),
        replace(STATED, units=("rad", "")),
        replace(STATED, names=()),
        replace(STATED, names=(), units=()),
    ],
)
def test_what_one_side_does_not_state_is_a_mismatch_and_says_the_way(key: str, other: Feature) -> None:
    for have, want in ((STATED, other), (other, STATED)):
        with pytest.raises(FeatureMismatch, match="state them with `ulna data units FOLDER"):
            require_same({key: have}, {key: want}, "the robot", "the policy")
        require_same({ENVIRONMENT: have}, {ENVIRONMENT: want}, "the robot", "the policy")
        require_same({key: have}, {key: want}, "the environment", "the policy", stated=False)


def test_what_both_sides_state_otherwise_needs_no_advice() -> None:
    degrees = replace(STATED, units=("deg", "deg"))
    with pytest.raises(FeatureMismatch, match=r"in rad; the policy has .* in deg$"):
        require_same({ACTION: STATED}, {ACTION: degrees}, "the robot", "the policy")
    require_same({ACTION: STATED}, {ACTION: replace(STATED, names=("a.pos", "b.pos"))}, "one", "the other")


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"units": ()}, "does not state its units"),
        ({"names": (), "units": ()}, "does not state its names"),
        ({"units": ("deg",) * 3}, "has a in deg, it is in rad"),
    ],
)
def test_degrees_are_not_mixed_or_merged_with_radians(tmp_path: Path, changes: dict, says: str) -> None:
    a = write_store(tmp_path / "a", (4,))
    other = {**FEATURES, ACTION: replace(FEATURES[ACTION], **changes)}
    b = write_store(tmp_path / "b", (3,), other)
    with pytest.raises(FeatureMismatch, match=says):
        common_features([a, b], {}, None)
    with pytest.raises(FeatureMismatch, match="cannot be merged"):
        merge([a, b], tmp_path / "ab")
    assert not (tmp_path / "ab").exists()


def test_a_merge_renames_cameras_and_joints(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = ("a.pos", "b.pos", "hand.pos")
    top = "observation.images.top"
    other = {{CAMERA: top}.get(k, k): f for k, f in WITH_IMAGE.items()}
    other |= {k: replace(other[k], names=names) for k in (STATE, ACTION)}
    a = write_store(tmp_path / "a", (4,), WITH_IMAGE)
    meta = {"limits": {"a": [-1, 1], "hand.pos": [0, 2]}, "cameras": {"top": {"depth_scale_m": None}}}
    b = write_store(tmp_path / "b", (3, 2), other, meta)
    words = ["data", "merge", str(a.path), str(b.path), "--out", str(tmp_path / "ab")]
    assert main(words) == 1
    assert "cannot be merged" in capsys.readouterr().err
    assert main([*words, "--rename", f"{top}={CAMERA},hand=grip"]) == 0
    renames = {top: CAMERA, "hand": "grip"}
    ab = merge([a, b], tmp_path / "again", renames=renames)
    assert ab.features == WITH_IMAGE
    assert ab.provenance["renamed"] == renames
    for e, was in zip(ab.episodes[1:], b.episodes, strict=True):
        np.testing.assert_array_equal(e.read(CAMERA), was.read(top))
        np.testing.assert_array_equal(e.read(STATE), was.read(STATE))
        assert set(e.streams) == set(e.attrs["streams"]) == set(WITH_IMAGE)
        assert e.attrs["limits"] == {"a": [-1, 1], "grip": [0, 2]}
        assert set(e.attrs["cameras"]) == {"front"}
    with pytest.raises(StoreError, match="no dataset has a feature or element arm to rename"):
        merge([a, b], tmp_path / "no", renames={"arm": "grip"})
    with pytest.raises(FeatureMismatch, match=r"two elements of .* would be called grip"):
        merge([a], tmp_path / "no", renames={"a": "grip"})
    assert not (tmp_path / "no").exists()


def test_two_that_say_nothing_and_differ_by_a_unit_are_not_joined(tmp_path: Path) -> None:
    silent = {k: replace(f, units=()) for k, f in FEATURES.items()}
    a, b = (write_store(tmp_path / name, (9,), silent) for name in "ab")
    words = ["data", "units", str(b.path), "--units", "radians,grip=1"]
    assert main(words) == 0
    assert main([*words[:2], str(b.path), "--undo"]) == 0
    assert "units" in merge([a, EpisodeStore.open(b.path)], tmp_path / "ab", same_twice=True).provenance
    wide = EpisodeStore.create(tmp_path / "wide", silent, 20.0)
    with EpisodeWriter(wide) as writer:
        writer.start({})
        for t, rows in enumerate(zip(*(a.episodes[0].read(k) for k in silent), strict=True)):
            values = {k: np.float32(60) * row for k, row in zip(silent, rows, strict=True)}
            writer.tick(values, dict.fromkeys(values, (t * 50_000_000, t * 50_000_000)))
        writer.end({})
    with pytest.raises(FeatureMismatch, match=r"60 times as large .* neither states its unit"):
        merge([a, wide], tmp_path / "no")
    with pytest.raises(FeatureMismatch, match=r"60 times as large .* neither states its unit"):
        open_data([a.path, wide.path]).windows(WindowSpec(1, 4, keys=(STATE,)))


def test_stated_degrees_are_converted_too(tmp_path: Path) -> None:
    stated = {k: replace(f, units=("deg",) * 3) if k in (STATE, ACTION) else f for k, f in FEATURES.items()}
    a = write_store(tmp_path / "a", (5,), stated, {"limits": {"a": [-90, 90]}})
    words = ["data", "units", str(a.path), "--units", "degrees", "--out", str(tmp_path / "b")]
    assert main(words) == 0
    b = EpisodeStore.open(tmp_path / "b")
    assert b.features == FEATURES
    np.testing.assert_allclose(b.episodes[0].read(ACTION), np.radians(a.episodes[0].read(ACTION)), rtol=1e-6)
    assert b.episodes[0].attrs["limits"]["a"] == pytest.approx([-np.pi / 2, np.pi / 2])
    np.testing.assert_array_equal(b.episodes[0].read(ENVIRONMENT), a.episodes[0].read(ENVIRONMENT))
    assert main(words) == 1  # it is there already


def of(x: np.ndarray, *units: str) -> Stats:
    stats = vector_stats(x)
    feature = Feature((x.shape[1],), "float32", (), units)
    size = np.maximum(np.abs(stats.min), np.abs(stats.max))
    return replace(stats, resolution=resolutions(feature, size))


RNG = np.random.default_rng(0)
COUNT = 2 * np.pi / 4096
DEGREES = 180 / np.pi
WAVERS = COUNT * RNG.integers(0, 2, 4000)[:, None]  # an encoder between two counts


@pytest.mark.parametrize("mode", ["minmax", "meanstd", "quantile"])
@pytest.mark.parametrize(
    ("unit", "factor"), [("rad", 1.0), ("deg", 180 / np.pi), ("", 1.0), ("", 180 / np.pi)]
)
def test_an_encoder_at_rest_is_not_blown_up(mode: Mode, unit: str, factor: float) -> None:
    stats = of((1.5 + WAVERS) * factor, unit)
    scale, offset = affine(stats, mode)
    assert still(stats, mode).all()
    assert np.abs((1.5 + 0.05) * factor * scale + offset).max() < 3
    moving = of(RNG.uniform(-1, 1, (4000, 1)) * factor, unit)
    assert not still(moving, mode).any()


def test_a_gripper_that_opens_rarely_is_scaled_by_its_whole_range() -> None:
    x = WAVERS.copy()
    x[:20] = 1.7
    stats = of(x, "rad")
    for target in (False, True):
        scale, offset = affine(stats, "quantile", target)
        assert np.abs(x * scale + offset).max() == pytest.approx(1, abs=1e-3)


def test_actions_at_rest_are_scaled_by_their_resolution_and_decode_exactly() -> None:
    stats = of(WAVERS, "rad")
    scale, offset = affine(stats, "minmax", target=True)
    assert 1 / scale[0] == pytest.approx(COUNT / 2, rel=0.05)
    assert np.abs(WAVERS * scale + offset).max() < 1.1
    np.testing.assert_allclose((WAVERS * scale + offset - offset) / scale, WAVERS, atol=1e-9)


def test_a_checkpoint_keeps_the_normaliser_it_was_trained_with() -> None:
    stats = vector_stats(WAVERS)
    old, new = Stats.from_json(stats.to_json()), Stats.from_json(of(WAVERS, "rad").to_json())
    assert old.resolution is None
    assert affine(old, "minmax")[0] == pytest.approx(2 / COUNT, rel=1e-3)
    assert clip(old) > 1e5
    assert affine(new, "minmax")[0] == 1
    assert clip(new) == 10
