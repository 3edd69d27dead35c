"""What windows hold besides observations and actions, against episodes whose values are their ticks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from ulna.datasets.edit import relabel
from ulna.datasets.episode import StoreError
from ulna.datasets.features import ACTION, IMAGES, REWARD, STATE, Feature, Features
from ulna.datasets.reading.loader import batches, step_rng
from ulna.datasets.reading.mixture import Mixture, spec_in
from ulna.datasets.reading.spec import Begin
from ulna.datasets.reading.windows import Windows, WindowSpec
from ulna.datasets.recording.writer import EpisodeWriter
from ulna.datasets.store import EpisodeStore

CAMERA = IMAGES + "front"
RAMP: Features = {
    STATE: Feature((2,), "float32", ("episode", "tick")),
    CAMERA: Feature((4, 5, 3), "uint8"),
    ACTION: Feature((2,), "float32", ("episode", "tick")),
}
# (ticks, task, success)
EPISODES = (
    (6, "push", True),
    (4, "push", False),
    (9, "lift the long red block", True),
    (1, "push", None),
    (7, "push", True),
)
LENGTHS = np.array([e[0] for e in EPISODES])
BEGINS = np.cumsum(LENGTHS) - LENGTHS
EVERY = WindowSpec(
    2,
    3,
    keys=(STATE, CAMERA),
    task=True,
    next_after=3,
    goal="future",
    future=(1, 4),
    prompts=2,
    prompt_length=4,
    chain=3,
    chain_stride=2,
)


def write_ramp(
    path: Path,
    episodes: Sequence[tuple[int, str, bool | None]] = EPISODES,
    reward: Callable[[int, int], float] | None = None,
    features: Features = RAMP,
) -> EpisodeStore:
    """States and actions are (episode, tick), pixels 10 * episode + tick."""
    features = {**features, REWARD: Feature((1,), "float32", ("reward",))} if reward else features
    store = EpisodeStore.create(path, features, 20.0)
    with EpisodeWriter(store) as writer:
        for e, (length, task, success) in enumerate(episodes):
            writer.start({"task": task})
            for t in range(length):
                values: dict[str, np.ndarray] = {
                    k: np.full(f.shape, 10 * e + t, np.uint8)
                    if f.dtype == "uint8"
                    else np.array([{"episode": e, "tick": t}[n] for n in f.names], np.float32)
                    for k, f in features.items()
                    if k != REWARD
                }
                if reward:
                    values[REWARD] = np.array([reward(e, t)], np.float32)
                writer.tick(values, dict.fromkeys(values, (t * 50_000_000, t * 50_000_000)))
            writer.end({"success": success})
    return store


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> EpisodeStore:
    return write_ramp(tmp_path_factory.mktemp("ramp") / "d")


def ticks_of(states: np.ndarray) -> list[Any]:
    return states[..., 1].astype(int).tolist()


def all_rows(windows: Windows | Mixture) -> np.ndarray:
    return np.arange(len(windows))


def test_next_window_reward_and_what_ends(store: EpisodeStore) -> None:
    windows = Windows(store, WindowSpec(2, 1, keys=(STATE, CAMERA), next_after=3))
    batch = windows.batch(np.arange(10))  # a success of 6 ticks, a failure of 4
    following = f"next.{STATE}"
    assert ticks_of(batch[following])[:6] == [[2, 3], [3, 4], [4, 5], [4, 5], [4, 5], [4, 5]]
    assert ticks_of(batch[following])[6:] == [[2, 3]] * 4
    np.testing.assert_array_equal(batch[following][:, :, 0], batch[STATE][:, :, 0])
    assert batch["next.ticks"].tolist() == [3, 3, 3, 2, 1, 0, 3, 2, 1, 0]
    assert batch["reward"].dtype == batch["alive"].dtype == np.float32
    assert batch["reward"].tolist() == [
        [0, 0, 0],
        [0, 0, 0],
        [0, 0, 0],  # ticks 2, 3, 4; the next window is the last one, whose command earns the reward
        [0, 0, 1],
        [0, 1, 0],
        [1, 0, 0],
        *[[0, 0, 0]] * 4,
    ]
    assert batch["alive"].tolist() == [1, 1, 1, 0, 0, 0, 1, 1, 1, 1], "a failure was cut off: it never ends"
    assert batch[f"next.{CAMERA}"][:, :, 0, 0, 0].tolist()[5:7] == [[4, 5], [12, 13]]


def test_bootstrapped_returns_agree_with_the_returns_of_whole_episodes(store: EpisodeStore) -> None:
    """With the true value at the next window, every target is the discounted return to the end, 0 for those
    that never succeed."""
    discount = 0.9
    for n in (1, 2, 5, 20):
        windows = Windows(store, WindowSpec(1, 1, keys=(STATE,), next_after=n))
        batch = windows.batch(all_rows(windows))

        def value(states: np.ndarray) -> np.ndarray:
            episode, tick = states[:, -1].astype(int).T
            succeeded = np.array([e[2] is True for e in EPISODES])[episode]
            return succeeded * discount ** (LENGTHS[episode] - 1 - tick)

        ahead = batch["alive"] * discount ** batch["next.ticks"] * value(batch[f"next.{STATE}"])
        target = batch["reward"] @ discount ** np.arange(n) + ahead
        np.testing.assert_allclose(target, value(batch[STATE]), rtol=1e-6)


def test_a_stored_reward_is_used_and_must_be_one_number_a_tick(tmp_path: Path) -> None:
    store = write_ramp(tmp_path / "d", EPISODES[:2], lambda e, t: -1.0 - t)
    batch = Windows(store, WindowSpec(1, 1, keys=(STATE,), next_after=2)).batch(np.array([0, 4, 5]))
    assert batch["reward"].tolist() == [[-1, -2], [-5, -6], [-6, 0]]
    assert batch["alive"].tolist() == [1, 0, 0]
    array: Any = zarr.open_group(str(store.episodes[1].path), mode="r+")[f"{REWARD}/value"]
    array[2] = np.nan
    with pytest.raises(StoreError, match=r"episode 1: next.reward is not finite in row 2"):
        Windows(store, WindowSpec(1, 1, next_after=2))
    wide = EpisodeStore.create(tmp_path / "wide", {**RAMP, REWARD: Feature((2,), "float32")}, 20.0)
    with EpisodeWriter(wide) as writer:
        writer.start({})
        values = {k: np.zeros(f.shape, f.dtype) for k, f in wide.features.items()}
        writer.tick(values, dict.fromkeys(values, (0, 0)))
        writer.end({})
    with pytest.raises(StoreError, match="a reward is one number for each of 1 ticks"):
        Windows(wide, WindowSpec(1, 1, next_after=2))


def test_goals_lie_ahead_in_the_same_episode_and_reach_every_tick(store: EpisodeStore) -> None:
    last = Windows(store, WindowSpec(1, 1, keys=(STATE, CAMERA), goal="last", goal_keys=(CAMERA,)))
    batch = last.batch(all_rows(last))
    ends = np.repeat(LENGTHS - 1, LENGTHS)
    assert f"goal.{STATE}" not in batch
    assert batch["goal.ticks"].tolist() == (ends - batch[STATE][:, 0, 1]).tolist()
    np.testing.assert_array_equal(batch[f"goal.{CAMERA}"][:, 0, 0, 0], 10 * last.episode + ends)

    future = Windows(store, WindowSpec(1, 1, keys=(STATE,), goal="future", goal_keys=(STATE, CAMERA)))
    rows = np.tile(all_rows(future), 200)
    batch = future.batch(rows, np.random.default_rng(1))
    state, goal = batch[STATE][:, 0], batch[f"goal.{STATE}"]
    np.testing.assert_array_equal(goal[:, 0], state[:, 0])
    np.testing.assert_array_equal(goal[:, 1] - state[:, 1], batch["goal.ticks"])
    np.testing.assert_array_equal(batch[f"goal.{CAMERA}"][:, 0, 0, 0], goal @ [10, 1])
    at_end = state[:, 1] == np.repeat(LENGTHS - 1, LENGTHS)[rows]
    np.testing.assert_array_equal(batch["goal.ticks"] == 0, at_end)
    drawn = np.bincount(batch["goal.ticks"][rows == 0], minlength=6)  # of 5 ticks ahead each 1 in 5
    assert drawn[0] == 0
    assert np.abs(drawn[1:] - 40).max() < 20, "uniform"


def test_future_frames_and_their_mask(store: EpisodeStore) -> None:
    windows = Windows(store, WindowSpec(2, 1, keys=(STATE, CAMERA), future=(0, 2, 4)))
    batch = windows.batch(np.array([0, 3, 5]))
    assert ticks_of(batch[f"future.{STATE}"]) == [[0, 2, 4], [3, 5, 5], [5, 5, 5]]
    assert batch[f"future.{CAMERA}"][..., 0, 0, 0].tolist() == [[0, 2, 4], [3, 5, 5], [5, 5, 5]]
    assert batch["future.mask"].tolist() == [[True] * 3, [True, True, False], [True, False, False]]


def test_prompts_are_other_episodes_of_the_task_whole_and_thinned_evenly(store: EpisodeStore) -> None:
    windows = Windows(store, WindowSpec(1, 1, keys=(STATE,), prompts=2, prompt_length=4))
    rows = np.tile(all_rows(windows), 20)
    batch = windows.batch(rows, np.random.default_rng(0))
    states, own = batch[f"prompt.{STATE}"], windows.episode[rows]
    assert states.shape == (len(rows), 2, 4, 2)
    np.testing.assert_array_equal(batch["prompt.action"], states)
    shown = states[..., 0].astype(int)
    assert (shown == shown[..., :1]).all(), "a prompt is one episode"
    shown = shown[..., 0]
    tasks = np.array([e[1] for e in EPISODES])
    assert (tasks[shown] == tasks[own][:, None]).all()
    assert (shown[own != 2] != own[own != 2][:, None]).all()
    assert (shown[own == 2] == 2).all(), "the only one of its task"
    assert (shown[own != 2, 0] != shown[own != 2, 1]).all(), "none twice while there are others"
    assert set(shown[own == 0].ravel()) == {1, 3, 4}
    thinned = {0: [0, 2, 3, 5], 1: [0, 1, 2, 3], 2: [0, 3, 5, 8], 3: [0, 0, 0, 0], 4: [0, 2, 4, 6]}
    for episode, mask, ticks in zip(
        shown.ravel(), batch["prompt.mask"].reshape(-1, 4), states[..., 1].reshape(-1, 4), strict=True
    ):
        assert ticks.tolist() == thinned[episode]
        assert mask.tolist() == ([True, False, False, False] if episode == 3 else [True] * 4)


def test_more_prompts_than_episodes_show_each_before_any_twice(store: EpisodeStore) -> None:
    windows = Windows(store, WindowSpec(1, 1, keys=(STATE,), prompts=7, prompt_length=1))
    counts = np.bincount(windows.batch(np.array([0]))[f"prompt.{STATE}"][0, :, 0, 0].astype(int), minlength=5)
    assert sorted(counts.tolist()) == [0, 0, 2, 2, 3]


@settings(max_examples=8, deadline=None)
@given(st.integers(2, 4), st.integers(1, 3), st.integers(1, 3), st.integers(0, 2), st.booleans())
def test_a_chain_is_the_windows_one_by_one(
    store: EpisodeStore, links: int, stride: int, n_obs_steps: int, past: int, whole: bool
) -> None:
    plain = WindowSpec(
        n_obs_steps, 3, past, (STATE, CAMERA), task=True, next_after=2, goal="last", future=(1,)
    )
    single = Windows(store, plain)
    begin: Begin = "episode" if whole else "anywhere"
    chained = Windows(store, replace(plain, chain=links, chain_stride=stride, chain_begin=begin))
    batch = chained.batch(all_rows(chained))
    ticks = (single.tick % stride if whole else single.tick)[:, None] + stride * np.arange(links)
    inside = ticks < LENGTHS[single.episode][:, None]
    rows = BEGINS[single.episode][:, None] + np.minimum(ticks, LENGTHS[single.episode][:, None] - 1)
    np.testing.assert_array_equal(batch["index"], rows)
    assert batch["fresh"].tolist() == [[True] + [False] * (links - 1)] * len(single)
    assert not batch["mask"][~inside].any()
    assert not batch["future.mask"][~inside].any()
    assert not batch["reward"][~inside].any()
    one_by_one = single.batch(rows.ravel())
    assert batch.keys() == {*one_by_one, "fresh"}
    for key, value in one_by_one.items():
        value = value.reshape(batch[key].shape)
        np.testing.assert_array_equal(batch[key][inside], value[inside], key)
        if key not in ("mask", "future.mask", "reward"):
            np.testing.assert_array_equal(batch[key][~inside], value[~inside], key)


def test_a_chain_has_one_goal_and_the_same_prompts(store: EpisodeStore) -> None:
    windows = Windows(store, EVERY)
    batch = windows.batch(all_rows(windows), np.random.default_rng(3))
    for key in (f"goal.{STATE}", f"goal.{CAMERA}", f"prompt.{STATE}", "prompt.action", "prompt.mask"):
        assert (batch[key] == batch[key][:, :1]).all(), key
    assert (batch["goal.ticks"] >= 0).all(), "ahead of the last link, so of all"
    now = batch[STATE][:, :, -1, 1]
    np.testing.assert_array_equal(batch["goal.ticks"], batch[f"goal.{STATE}"][..., 1] - now)


def test_a_task_is_told_in_all_its_wordings_and_a_chain_in_one(store: EpisodeStore, tmp_path: Path) -> None:
    named = write_ramp(tmp_path / "named")
    relabel(named, [0], {"phrases": ["shove", "push", "press on"]})
    windows = Windows(named, WindowSpec(1, 2, keys=(STATE,), task=True))
    told = windows.batch(np.repeat([0, 5, 6], 300), np.random.default_rng(0))["task"]
    for words in ("push", "shove", "press on"):
        assert 150 < (told[:600] == words).sum() < 250, "each as often"
    assert set(told[600:]) == {"push"}, "another episode has no others"

    links = Windows(named, EVERY).batch(np.repeat(3, 50), np.random.default_rng(0))
    assert (links["task"] == links["task"][:, :1]).all()
    assert len(set(links["task"][:, 0])) == 3
    without = Windows(named, replace(EVERY, task=False)).batch(np.repeat(3, 50), np.random.default_rng(0))
    np.testing.assert_array_equal(links["goal.ticks"], without["goal.ticks"])


def test_a_step_is_told_until_it_is_done(tmp_path: Path) -> None:
    store = write_ramp(tmp_path / "d")
    relabel(store, [0], {"steps": [("open", 0.1), ("put it in", 0.2)], "phrases": ["never told"]})
    windows = Windows(store, WindowSpec(1, 2, keys=(STATE,), task=True, told="steps"))
    told = windows.batch(np.arange(len(windows)), np.random.default_rng(0))["task"].tolist()
    assert told[:6] == ["open", "open", "put it in", "put it in", "put it in", "put it in"]
    assert told[6:10] == ["push"] * 4, "without the label its task is the only step"
    with pytest.raises(ValueError, match="leave out --told steps"):
        replace(EVERY, told="steps")


def test_a_link_at_a_tick_left_out_teaches_no_action(tmp_path: Path) -> None:
    """The camera of its own rate is silent during ticks 3 to 5."""
    store = EpisodeStore.create(tmp_path / "d", RAMP, 20.0)
    with EpisodeWriter(store, own_rate=(CAMERA,)) as writer:
        writer.start({})
        for t in range(9):
            values = {STATE: np.array([0, t], np.float32), ACTION: np.array([0, t], np.float32)}
            writer.tick(values, dict.fromkeys(values, (t * 50_000_000, t * 50_000_000)))
            if t not in (2, 3, 4, 5):
                writer.append(CAMERA, np.full((4, 5, 3), t, np.uint8), t * 50_000_000, t * 50_000_000)
        writer.end({})
    windows = Windows(store, WindowSpec(1, 1, keys=(STATE, CAMERA), tolerance_s=0.06, chain=4))
    assert windows.tick.tolist() == [0, 1, 2, 6, 7, 8]
    batch = windows.batch(np.array([1, 3]))
    assert ticks_of(batch[STATE])[0] == [[1], [2], [3], [4]]
    assert batch["mask"][..., 0].tolist() == [[True, True, False, False], [True, True, True, False]]
    assert batch["index"].tolist() == [[1, 2, 2, 2], [3, 4, 5, 5]]


@settings(max_examples=8, deadline=None)
@given(
    st.lists(st.sampled_from(["task", "next_after", "goal", "future", "prompts"]), unique=True, max_size=5),
    st.integers(0, 99),
)
def test_what_is_switched_on_changes_nothing_else(store: EpisodeStore, names: list[str], seed: int) -> None:
    plain = WindowSpec(2, 3, 1, (STATE, CAMERA))
    extras = replace(plain, **{n: getattr(EVERY, n) for n in names}, prompt_length=4)
    rows = np.random.default_rng(seed).integers(0, LENGTHS.sum(), 8)
    bare = Windows(store, plain).batch(rows)
    assert list(bare) == [STATE, CAMERA, ACTION, "valid", "mask", "index"]
    batch = Windows(store, extras).batch(rows, np.random.default_rng(seed))
    for key, value in bare.items():
        assert batch[key].dtype == value.dtype
        np.testing.assert_array_equal(batch[key], value)
    assert (batch.keys() == bare.keys()) == (not names)


@pytest.mark.parametrize("cache", ["none", "disk"])
def test_draws_come_from_the_generator_alone(store: EpisodeStore, cache: Any, tmp_path: Path) -> None:
    windows = Windows(store, EVERY)
    rows = np.array([26, 10, 13, 5, 10])
    first = windows.batch(rows, np.random.default_rng(5))
    read_anew = Windows(store, EVERY, cache=cache, cache_dir=tmp_path).batch(rows, np.random.default_rng(5))
    assert first.keys() == read_anew.keys()
    for key, value in first.items():
        np.testing.assert_array_equal(read_anew[key], value)
    vectors = windows.vectors(rows, np.random.default_rng(5))
    assert vectors.keys() == {k for k in first if IMAGES not in k}
    for key, value in vectors.items():
        np.testing.assert_array_equal(first[key], value)
    without, default = windows.vectors(rows), windows.vectors(rows, np.random.default_rng(0))
    np.testing.assert_array_equal(without["goal.ticks"], default["goal.ticks"])
    others = [windows.vectors(rows, np.random.default_rng(s))["goal.ticks"].tolist() for s in range(5)]
    assert any(o != others[0] for o in others)


def test_batches_are_the_same_resumed_and_with_any_number_of_workers(store: EpisodeStore) -> None:
    windows = Windows(store, EVERY)

    def rows(step: int) -> np.ndarray:
        return np.random.default_rng(step).integers(0, len(windows), 6)

    whole = list(batches(windows, rows, 0, 5, rng_of=step_rng(7)))
    resumed = list(batches(windows, rows, 2, 5, rng_of=step_rng(7)))
    by_workers = list(batches(windows, rows, 2, 5, workers=2, rng_of=step_rng(7)))
    for expected, a, b in zip(whole[2:], resumed, by_workers, strict=True):
        assert expected.keys() == a.keys() == b.keys()
        for key, value in expected.items():
            assert a[key].dtype == b[key].dtype == value.dtype
            np.testing.assert_array_equal(a[key], value)
            np.testing.assert_array_equal(b[key], value)
    assert whole[0]["task"].dtype.kind == "U"

    def draws(seed: int, process: int, step: int) -> list[int]:
        return step_rng(seed, process)(step).integers(0, 1000, 8).tolist()

    assert len({tuple(draws(*place)) for place in ((7, 0, 1), (8, 0, 1), (7, 1, 1), (7, 0, 2))}) == 4


def test_a_mixture_gives_each_part_in_its_words(tmp_path: Path) -> None:
    """The second store calls its camera otherwise, and its state the other way round."""
    high = IMAGES + "high"
    turned: Features = {
        STATE: Feature((2,), "float32", ("tick", "episode")),
        high: RAMP[CAMERA],
        ACTION: RAMP[ACTION],
    }
    renames = {high: CAMERA}
    a = write_ramp(tmp_path / "a", EPISODES[:2])
    b = write_ramp(tmp_path / "b", EPISODES[2:], features=turned)
    spec = replace(EVERY, goal_keys=(STATE, CAMERA), chain=1)
    parts = [Windows(s, spec_in(spec, renames, s.features)) for s in (a, b)]
    assert parts[1].spec.goal_keys == (STATE, high)
    mixture = Mixture(parts, RAMP, renames)
    batch = mixture.batch(np.array([12, 3, 26, 9]), np.random.default_rng(0))
    assert batch["task"].tolist() == [EPISODES[e][1] for e in (2, 0, 4, 1)], "none is cut short"
    assert batch["index"].tolist() == [12, 3, 26, 9]
    alone = Windows(a, spec).batch(np.array([3, 9]), np.random.default_rng(0))
    assert batch.keys() == alone.keys()
    for key, value in alone.items():
        np.testing.assert_array_equal(batch[key][[1, 3]], value)
    for prefix in ("next.", "goal.", "future.", "prompt."):
        pixels, state = batch[f"{prefix}{CAMERA}"][..., 0, 0, 0], batch[prefix + STATE]
        np.testing.assert_array_equal(pixels, state @ [10, 1])
    vectors = mixture.vectors(np.array([12, 3, 26, 9]), np.random.default_rng(0))
    assert vectors.keys() == {k for k in batch if IMAGES not in k}
    whole = mixture.batch(all_rows(mixture))
    assert whole["index"].tolist() == list(range(27)), "one name for each window, as in every run"
    chained = Mixture([Windows(s, spec_in(EVERY, renames, s.features)) for s in (a, b)], RAMP, renames)
    assert chained.batch(np.array([9, 10]))["index"].tolist() == [[9, 9, 9], [10, 12, 14]]
    with pytest.raises(StoreError, match="give all parts one WindowSpec"):
        Mixture([parts[0], Windows(b, replace(parts[1].spec, task=False))], RAMP, renames)


@pytest.mark.parametrize(
    ("field", "sentence"),
    [
        ({"prompts": 2}, "prompts need a prompt_length of at least 1 tick, not 0"),
        ({"prompts": -1}, "prompts is at least 0, not -1"),
        ({"chain": 0}, "chain is at least 1, not 0"),
        ({"chain_stride": 0}, "chain_stride is at least 1, not 0"),
        ({"next_after": -2}, "next_after is at least 0, not -2"),
        ({"future": (3, -1)}, "future lies ahead: give it in ticks of at least 0, not -1"),
        ({"goal": "first"}, "goal is none, last, future or subgoal, not 'first'"),
    ],
)
def test_a_window_that_cannot_be_is_said(field: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        WindowSpec(1, 1, **field)


def test_an_unknown_goal_is_said(store: EpisodeStore) -> None:
    with pytest.raises(StoreError, match=r"has no feature observation.images.top; it has observation"):
        Windows(store, WindowSpec(1, 1, goal="last", goal_keys=("observation.images.top",)))
