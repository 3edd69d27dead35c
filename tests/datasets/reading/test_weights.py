"""Which windows are drawn: weights, mixtures, augmentation, and that a resumed run draws the same."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from contracts.data import CAMERA, FEATURES, WITH_IMAGE, frame, write_store

from ulna.datasets.edit import relabel
from ulna.datasets.episode import StoreError
from ulna.datasets.features import ACTION, REQUESTED, REWARD, STATE, Feature, FeatureMismatch
from ulna.datasets.flags import DIRECTED, INTERVENTION
from ulna.datasets.reading.mixture import Mixture, common_features, window_weights
from ulna.datasets.reading.weights import correction_weights, episode_weights, weighted_indices
from ulna.datasets.reading.windows import Windows, WindowSpec
from ulna.datasets.recording.writer import EpisodeWriter
from ulna.datasets.store import EpisodeStore
from ulna.policies.parts import override
from ulna.policies.recipes.all import RECIPES
from ulna.policies.train.augment import augment_batch
from ulna.policies.train.data import DataOptions, TrainingData, TrainingWindows, open_data, policy_features
from ulna.policies.train.error import TrainingError
from ulna.policies.train.loop import train


def test_draws_follow_the_weights_and_only_the_step() -> None:
    weights = np.array([1.0, 0.0, 3.0, 6.0])
    cumulative = np.cumsum(weights)
    draws = np.concatenate([weighted_indices(cumulative, 20, 5, s) for s in range(100)])
    assert np.bincount(draws, minlength=4).tolist() == [
        200,
        0,
        600,
        1200,
    ]  # strata of 1/20 meet these shares exactly
    np.testing.assert_array_equal(weighted_indices(cumulative, 20, 5, 7), draws[140:160])
    odd = np.random.default_rng(0).random(50)
    draws = np.concatenate([weighted_indices(np.cumsum(odd), 16, 1, s) for s in range(4000)])
    np.testing.assert_allclose(np.bincount(draws) / len(draws), odd / odd.sum(), atol=0.002)


def test_weights_of_episodes(tmp_path: Path) -> None:
    store = write_store(tmp_path / "d", (4,) * 6)
    assert episode_weights(store.episodes, "uniform") is None
    assert episode_weights(store.episodes, "success") == pytest.approx([1, 0] * 3)  # type: ignore[comparison-overlap]
    for i, value in enumerate((0.0, 1.0, 2.0, 4.0, 4.0, 3.0)):
        relabel(store, [i], {"return": value, "weight": value})
    assert episode_weights(store.episodes, "stored") == pytest.approx([0, 1, 2, 4, 4, 3])  # type: ignore[comparison-overlap]
    rw = episode_weights(store.episodes, "return-rw", alpha=0.5)
    assert rw == pytest.approx(np.exp((np.array([0, 1, 2, 4, 4, 3]) / 4 - 1) / 0.5))
    with pytest.raises(StoreError, match="no episode can be drawn by its weight"):
        episode_weights(store.episodes[:1], "stored")
    without_labels = write_store(tmp_path / "u", (4,), meta={"success": None})
    relabel(without_labels, [0], {"success": None})
    with pytest.raises(StoreError, match="neither a return nor an outcome"):
        episode_weights(without_labels.episodes, "return-rw")


def corrected(path: Path, agent: str, flags: list[int], success: bool | None) -> EpisodeStore:
    """A recording with one more episode of these flags of `action`, a tick each."""
    new = not (path / "ulna.json").exists()
    store = EpisodeStore.create(path, FEATURES, 20.0) if new else EpisodeStore.open(path)
    rng = np.random.default_rng(0)
    with EpisodeWriter(store) as writer:
        writer.start({"agent": agent})
        for i, bits in enumerate(flags):
            times = dict.fromkeys(FEATURES, (i, i))
            writer.tick(frame(rng, FEATURES, i), times, {ACTION: bits} if bits else {})
        writer.end({"success": success})
    return EpisodeStore.open(path)


PERSON, DIRECTOR = INTERVENTION, DIRECTED


def test_corrections_weigh_each_tick_by_who_acted(tmp_path: Path) -> None:
    corrected(tmp_path / "d", "policy flow 1a2b with human leader", [0, 0, PERSON, PERSON, 0, DIRECTOR], True)
    corrected(tmp_path / "d", "policy flow 1a2b", [0, 0], False)
    store = corrected(tmp_path / "d", "human leader", [0, 0, 0], True)
    spec = WindowSpec(1, 2, 0, (STATE,))
    parts = [Windows(store, spec)]
    (iwr,) = correction_weights(parts, "iwr")
    assert iwr[[2, 3]].tolist() == [0.25, 0.25], "half of the draws are the person's"
    assert iwr[[0, 1, 4, 8, 9, 10]] == pytest.approx([0.5 / 6] * 6)
    assert iwr[[5, 6, 7]].tolist() == [0, 0, 0], "a director's, and a failed policy's"
    (hg,) = correction_weights(parts, "hg-dagger")
    assert hg.tolist() == [0, 0, 1, 1, 0, 0, 0, 0, 1, 1, 1]
    data = open_data(store.path, [STATE], DataOptions(weights="iwr")).windows(spec)
    drawn = np.concatenate([data.indices(12, 0, step) for step in range(20)])
    assert np.isin(drawn, [2, 3]).mean() == 0.5


def test_sirius_leaves_out_what_made_the_person_take_over(tmp_path: Path) -> None:
    policy = [0] * 20 + [PERSON] * 2 + [0] * 3 + [PERSON] * 2 + [0] * 4
    corrected(tmp_path / "d", "policy flow 1a2b with human leader", policy, True)
    corrected(tmp_path / "d", "policy flow 1a2b", [0] * 10, True)
    store = corrected(tmp_path / "d", "human leader", [0] * 9, True)
    (weights,) = correction_weights([Windows(store, WindowSpec(1, 2, 0, (STATE,)))], "sirius")
    assert len(weights) == 50
    kept, persons = [*range(5), *range(27, 41)], [20, 21, 25, 26]
    assert weights[persons] == pytest.approx([0.125] * 4), "half of the draws"
    assert weights[41:] == pytest.approx([0.02] * 9), "as often as they are"
    assert weights[kept] == pytest.approx([0.32 / 19] * 19)
    assert not weights[[*range(5, 20), 22, 23, 24]].any()
    alone = corrected(tmp_path / "alone", "policy x", [0, PERSON], True)
    demos = corrected(tmp_path / "demos", "expert", [0] * 8, True)
    parts = [Windows(s, WindowSpec(1, 2, 0, (STATE,))) for s in (demos, alone)]
    of_demos, of_alone = correction_weights(parts, "sirius")
    assert of_demos == pytest.approx([0.5 / 8] * 8), "where nothing of the policy's counts"
    assert of_alone == pytest.approx([0, 0.5])


def test_corrections_balance_over_several_datasets_and_need_somebody_who_corrected(tmp_path: Path) -> None:
    demos = corrected(tmp_path / "demos", "expert", [0] * 8, True)
    rollouts = corrected(tmp_path / "rollouts", "policy x", [0, PERSON], True)
    spec = WindowSpec(1, 2, 0, (STATE,))
    of_demos, of_rollouts = correction_weights([Windows(demos, spec), Windows(rollouts, spec)], "iwr")
    assert of_demos == pytest.approx([0.5 / 9] * 8)
    assert of_rollouts == pytest.approx([0.5 / 9, 0.5])
    with pytest.raises(StoreError, match="nobody took over"):
        open_data(demos.path, [STATE], DataOptions(weights="hg-dagger")).windows(spec)


def test_advantage_weighting_forgives_a_bad_start(tmp_path: Path) -> None:
    """Returns that the first state alone explains are no merit: then all count alike."""
    store = EpisodeStore.create(tmp_path / "d", FEATURES, 20.0)
    rng = np.random.default_rng(0)
    starts = rng.normal(size=(12, 3)).astype(np.float32)
    starts[7] = (-1.0, 1.0, -1.0)  # the start from which least is to be expected
    with EpisodeWriter(store) as writer:
        for i, start in enumerate(starts):
            merit = 1.0 if i == 7 else 0.0
            writer.start({"return": float(start @ [3, -2, 1] + 5 + merit)})
            writer.tick({**frame(rng, FEATURES, 0), STATE: start}, dict.fromkeys(FEATURES, (0, 0)))
            writer.end({})
    aw, rw = (episode_weights(store.episodes, weighting) for weighting in ("return-aw", "return-rw"))
    assert aw is not None
    assert rw is not None
    assert aw.argmax() == 7
    assert aw[7] > 3 * np.delete(aw, 7).max()
    assert rw.argmax() != 7


def test_a_mixture_matches_by_name(tmp_path: Path) -> None:
    a = write_store(tmp_path / "a", (6, 5), WITH_IMAGE)
    reordered = {
        **{k: Feature(f.shape, f.dtype, f.names[::-1], f.units) for k, f in FEATURES.items()},
        "observation.images.cam_high": WITH_IMAGE[CAMERA],
        "observation.images.wrist": WITH_IMAGE[CAMERA],
    }
    b = write_store(tmp_path / "b", (7,), reordered)
    renames = {"observation.images.cam_high": CAMERA}
    features = common_features([a, b], renames, None)
    assert set(features) == set(WITH_IMAGE)
    keys = tuple(k for k in features if k != ACTION)
    parts = [
        Windows(a, WindowSpec(2, 3, keys=keys)),
        Windows(b, WindowSpec(2, 3, keys=tuple(k.replace("front", "cam_high") for k in keys))),
    ]
    mixture = Mixture(parts, features, renames)
    assert len(mixture) == 18
    rows = np.array([13, 2, 17, 0])
    batch = mixture.batch(rows)
    second_batch = parts[1].batch(np.array([2, 6]))
    np.testing.assert_array_equal(batch[STATE][[0, 2]], second_batch[STATE][..., ::-1])
    np.testing.assert_array_equal(batch[CAMERA][[0, 2]], second_batch["observation.images.cam_high"])
    np.testing.assert_array_equal(batch[ACTION][[1, 3]], parts[0].batch(np.array([2, 0]))[ACTION])
    assert mixture.values(STATE).shape == (18, 3)
    weights = window_weights(parts, [None, None], (0.25, 0.75))
    assert weights is not None
    assert weights[:11].sum() == pytest.approx(0.25)
    # what does not fit is shown
    other = write_store(tmp_path / "c", (3,), {**FEATURES, STATE: Feature((3,), "float32", ("a", "b", "x"))})
    degrees = write_store(
        tmp_path / "e", (3,), {**FEATURES, STATE: Feature((3,), "float32", ("a", "b", "grip"), ("deg",) * 3)}
    )
    for store, keys_, says in (
        (other, None, "has no grip among a, b, x"),
        (degrees, None, "has a in deg, it is in rad"),
        (other, [CAMERA], "has none"),
    ):
        with pytest.raises(FeatureMismatch, match=says):
            common_features([a, store], {}, keys_)


@pytest.mark.parametrize("shares", [(float("nan"), 1.0), (1.0, float("inf")), (0.0, 1.0), (1.0,)])
def test_a_mix_needs_a_positive_share_of_each(tmp_path: Path, shares: tuple[float, ...]) -> None:
    parts = [Windows(write_store(tmp_path / name, (6,)), WindowSpec(1, 2)) for name in "ab"]
    with pytest.raises(StoreError, match="a mix of 2 datasets needs as many positive shares"):
        window_weights(parts, [None, None], shares)


def short_windows(data: TrainingData) -> TrainingWindows:
    return data.windows(WindowSpec(1, 2, keys=tuple(k for k in data.features if k != ACTION)))


def small(steps: int, **changes: Any) -> Any:
    features = policy_features(WITH_IMAGE)
    fields = {
        "training.steps": str(steps),
        "training.batch_size": "8",
        "training.checkpoint_every": "4",
        "training.warmup": "2",
    }
    return override(RECIPES["flow"](features), {**fields, **changes})


def test_training_on_a_weighted_augmented_mixture_resumes_exactly(tmp_path: Path) -> None:
    for name, lengths in (("a", (12, 9, 14, 8)), ("b", (10, 7, 9))):
        store = write_store(tmp_path / name, lengths, WITH_IMAGE)
        relabel(store, [0], {"weight": 3.0})
    lines: list[str] = []
    options = DataOptions(mix=(0.3, 0.7), weights="stored", validate=0.3, workers=1, cache="none")
    data = open_data([tmp_path / "a", tmp_path / "b"], options=options)
    common: dict[str, Any] = {
        "augment": ["crop", "color", "blur"],
        "device": "cpu",
        "say": lines.append,
    }
    whole = train(small(8), data, tmp_path / "whole", **common)
    whole_notes = json.loads((tmp_path / "whole" / "train.json").read_text())
    assert whole_notes["validation_losses"].keys() == {"4", "8"}
    assert whole_notes["options"]["mix"] == [0.3, 0.7]
    assert whole_notes["augment"] == ["crop", "color", "blur"]

    def stop(progress: Any) -> None:
        if progress.step == 6:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(small(8), data, tmp_path / "cut", **common, report=stop)
    resumed = train(small(8), data, tmp_path / "cut", **common, resume=True)
    assert resumed.losses == whole.losses
    resumed_notes = json.loads((tmp_path / "cut" / "train.json").read_text())
    assert resumed_notes["validation_losses"] == whole_notes["validation_losses"]
    assert resumed.content_hash == whole.content_hash
    plain = train(small(8), data, tmp_path / "plain", device="cpu")
    assert plain.losses != whole.losses


def test_a_resumed_run_must_see_and_draw_what_it_was_begun_with(tmp_path: Path) -> None:
    wrist = CAMERA.replace("front", "wrist")
    store = write_store(tmp_path / "d", (10, 9), {**WITH_IMAGE, wrist: WITH_IMAGE[CAMERA]})
    features = policy_features(store.features, [STATE, CAMERA])
    recipe = override(small(4), {"training.checkpoint_every": "1"})
    assert {k.replace("front", "wrist") for k in features} == {STATE, ACTION, wrist}, "of equal shape"

    def stop(progress: Any) -> None:
        if progress.step == 2:
            raise KeyboardInterrupt

    def run(camera: str, **how: Any) -> Any:
        data = open_data(store.path, [STATE, camera], DataOptions(weights="stored"))
        return train(recipe, data, tmp_path / "o", device="cpu", **how)

    for i in range(2):
        relabel(store, [i], {"weight": 1.0 + i})
    with pytest.raises(KeyboardInterrupt):
        run(CAMERA, report=stop)
    with pytest.raises(TrainingError, match=f"--observe was {STATE} {CAMERA}, not {STATE} {wrist}: "):
        run(wrist, resume=True)
    relabel(store, [0], {"weight": 50.0})
    with pytest.raises(TrainingError, match="the weights of the episodes are not those that it began with"):
        run(CAMERA, resume=True)
    relabel(store, [0], {"weight": 1.0})
    assert run(CAMERA, resume=True).steps == 4


def test_alignment_and_tolerance_reach_the_windows(tmp_path: Path) -> None:
    """Frame i is captured 5 ms after tick i, and received 20 ms later."""
    store = EpisodeStore.create(tmp_path / "d", WITH_IMAGE, 20.0)
    rng, ms = np.random.default_rng(0), 1_000_000
    with EpisodeWriter(store, own_rate=(CAMERA,)) as writer:
        writer.start({})
        for t in range(9):
            row = frame(rng, FEATURES, t)
            writer.tick(row, dict.fromkeys(row, (t * 50 * ms, t * 50 * ms)))
            image = np.full((24, 32, 3), t, np.uint8)
            writer.append(CAMERA, image, (t * 50 + 5) * ms, (t * 50 + 25) * ms)
        writer.end({})

    def newest(**how: Any) -> list[int]:
        windows = short_windows(open_data(store.path, None, DataOptions(**how))).train
        return windows.batch(np.arange(len(windows)))[CAMERA][:, -1, 0, 0, 0].tolist()

    assert newest() == [0, 1, 2, 3, 4, 5, 6, 7], "at tick i the frame before was the newest there"
    assert newest(align="nearest") == [0, 1, 2, 3, 4, 5, 6, 7, 8]
    with pytest.raises(StoreError, match="no ticks"):
        newest(tolerance_s=0.04)


def test_what_was_asked_for_is_learned_where_that_is_wanted(tmp_path: Path) -> None:
    store = EpisodeStore.create(tmp_path / "d", FEATURES, 20.0)
    rng = np.random.default_rng(0)
    for asks in (True, False):
        with EpisodeWriter(store) as writer:
            writer.start({})
            for t in range(6):
                row = frame(rng, FEATURES, t)
                if asks:
                    row[REQUESTED] = row[ACTION] + 1
                writer.tick(row, dict.fromkeys(row, (t * 50_000_000, t * 50_000_000)))
            writer.end({})

    def chunks(**how: Any) -> np.ndarray:
        data = open_data(store.path, None, DataOptions(**how))
        windows = short_windows(data)
        assert (how.get("actions") == "requested") == (windows.identity["options"]["actions"] == "requested")
        return windows.train.batch(np.arange(len(windows.train)))[ACTION]

    np.testing.assert_allclose(chunks(episodes=(0,), actions="requested"), chunks(episodes=(0,)) + 1)
    with pytest.raises(StoreError, match="episode 1 does not tell what was requested"):
        chunks(actions="requested")
    array = store.episodes[0].path / REQUESTED / "value" / "zarr.json"
    meta = json.loads(array.read_text())
    meta["shape"][1] += 1
    array.write_text(json.dumps(meta))
    data = open_data(store.path, None, DataOptions(episodes=(0,), actions="requested"))
    with pytest.raises(StoreError, match=r"action.requested holds .* run `ulna data check`"):
        data.windows(WindowSpec(1, 2))
    past = WindowSpec(1, 2, 1, actions="sent")
    with pytest.raises(TrainingError, match="leave out --actions requested"):
        open_data(store.path, None, DataOptions(episodes=(0,), actions="requested")).windows(past)


def test_episodes_that_were_cut_off_are_left_out_and_it_is_said(tmp_path: Path) -> None:
    store = write_store(tmp_path / "d", (9, 8), WITH_IMAGE)
    with EpisodeWriter(store) as writer:
        writer.start({"task": ""})
        row = frame(np.random.default_rng(0), WITH_IMAGE, 0)
        writer.tick(row, dict.fromkeys(row, (0, 0)))
        writer.interrupt("a cable came off")
    lines: list[str] = []
    train(small(2), tmp_path / "d", tmp_path / "out", device="cpu", say=lines.append)
    assert "1 of 3 episodes" in lines[0]
    assert json.loads((tmp_path / "out" / "train.json").read_text())["episodes"] == [0, 1]


def test_augmentation_is_alike_within_a_window_and_different_between(tmp_path: Path) -> None:
    image = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (1, 1, 42, 42, 3), dtype=np.uint8))
    batch = {CAMERA: image.expand(16, 3, -1, -1, -1).contiguous(), STATE: torch.zeros(16, 3, 3)}
    for name in ("crop", "color", "blur"):
        torch.manual_seed(3)
        once = augment_batch(batch, [name])
        torch.manual_seed(3)
        again = augment_batch(batch, [name])
        assert once[CAMERA].shape == batch[CAMERA].shape
        assert torch.equal(once[CAMERA], again[CAMERA])
        assert torch.equal(once[CAMERA][:, 0], once[CAMERA][:, 2])
        assert len({bytes(w.numpy().tobytes()) for w in once[CAMERA][:, 0]}) > 4
        assert once[STATE] is batch[STATE]
        torch.manual_seed(3)  # chains of three windows of one step
        chains = augment_batch({CAMERA: batch[CAMERA][:, :, None]}, [name])[CAMERA]
        assert torch.equal(chains[:, :, 0], once[CAMERA])
    with pytest.raises(ValueError, match="there is no augmentation 'flip'"):
        train(small(2), write_store(tmp_path / "d").path, tmp_path / "x", augment=["flip"])


def test_weights_are_on_one_scale_over_all_datasets(tmp_path: Path) -> None:
    """Only failures in one, only successes in the other: all draws come from the other."""
    for name, value in (("bad", 0.0), ("good", 1.0)):
        store = write_store(tmp_path / name, (10, 10, 10), FEATURES)
        relabel(store, [0, 1, 2], {"return": value, "success": value > 0})

    for weighting in ("return-rw", "success"):
        options = DataOptions(weights=weighting)  # type: ignore[arg-type]
        data = short_windows(open_data([tmp_path / "bad", tmp_path / "good"], None, options))
        draws = np.concatenate([data.indices(32, 0, s) for s in range(30)])
        assert (draws >= 30).mean() > 0.999


def test_what_only_some_datasets_have_is_said_or_refused(tmp_path: Path) -> None:
    a = write_store(tmp_path / "a", (6,), WITH_IMAGE)
    b = write_store(tmp_path / "b", (6,), FEATURES)
    lines: list[str] = []
    train(small(1), [a.path, b.path], tmp_path / "out", device="cpu", say=lines.append)
    assert lines == [f"not all datasets have {CAMERA}: left out (--observe names what to use)"]
    with pytest.raises(FeatureMismatch, match=f"{CAMERA}: .* has none"):
        common_features([b, a], {}, [CAMERA])
    four = {
        k: Feature((4,), "float32", ("a", "b", "grip", "x")) if k == ACTION else f
        for k, f in FEATURES.items()
    }
    with pytest.raises(FeatureMismatch, match="has x, which is not among a, b, grip"):
        common_features([b, write_store(tmp_path / "c", (6,), four)], {}, None)
    with pytest.raises(
        StoreError, match="episodes are too few to tell what a first state of 3 numbers promises"
    ):
        episode_weights(a.episodes * 3, "return-aw")


def test_what_all_datasets_have_and_no_policy_sees_is_not_missed(tmp_path: Path) -> None:
    rewarded = {**FEATURES, REWARD: Feature((1,), "float32")}
    folders = [write_store(tmp_path / name, features=rewarded).path for name in ("a", "b")]
    assert REWARD not in open_data(folders).features
    assert open_data(folders).notes == []
