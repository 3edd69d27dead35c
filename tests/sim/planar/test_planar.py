"""What every planar task keeps: the vector environment's contract, episodes of their seeds alone, experts."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
from gymnasium.error import ResetNeeded
from gymnasium.vector import AutoresetMode
from hypothesis import given, settings
from hypothesis import strategies as st

from ulna.sim.planar.all import TASKS
from ulna.sim.planar.catch import Catch
from ulna.sim.planar.corridors import Corridors
from ulna.sim.planar.cubes import Cubes
from ulna.sim.planar.cue import Cue
from ulna.sim.planar.demonstrations import Demonstration, demonstrations
from ulna.sim.planar.env import PlanarEnv
from ulna.sim.planar.fork import Fork
from ulna.sim.planar.gates import Gates
from ulna.sim.planar.maze import Maze
from ulna.sim.planar.peg import Peg
from ulna.sim.planar.places import Places
from ulna.sim.planar.stages import Stages
from ulna.sim.planar.trials import Trials
from ulna.sim.planar.twice import Twice
from ulna.sim.planar.words import Words

Make = Callable[[int], PlanarEnv]
VARIANTS: dict[str, Make] = {
    **TASKS,
    "fork, one route": partial(Fork, routes=1),
    "fork, eight routes": partial(Fork, routes=8, dense=True),
    "twice, markov": partial(Twice, markov=True),
    "catch, still": partial(Catch, speed=0.0),
    "peg, loose": partial(Peg, clearance=0.010),
    "peg, detour": partial(Peg, detour=True),
    "maze, any goals": partial(Maze, goals="any"),
    "maze, long": partial(Maze, layout="long"),
    "words, held out": partial(Words, pairs="held-out", goal=True),
    "words, scene": partial(Words, scene_identifies=True),
    "cue, keyed": partial(Cue, delay=10, cues=8),
    "corridors, uniform": partial(Corridors, uniform=True),
    "cue, visible": partial(Cue, delay=10, visible=True),
    "words, spread": partial(Words, pairs="left", spread=0.035),
    "gates, far": partial(Gates, spread=0.06),
    "gates, speeds": partial(Gates, speeds="train"),
    "stages, held out": partial(Stages, stages=4, orders="held-out"),
    "stages, shown": partial(Stages, stages=2, shown=True),
    "places, luck": partial(Places, luck=True),
    "trials, eight": partial(Trials, trials=8),
    "words, picture": partial(Words, pairs="left", picture=16, phrases="heard"),
}
NOISE = 0.005
each_variant = pytest.mark.parametrize("make", VARIANTS.values(), ids=list(VARIANTS))
each_task = pytest.mark.parametrize("make", TASKS.values(), ids=list(TASKS))


def equal(a: Demonstration, b: Demonstration) -> bool:
    first, second = (
        [*d.observation.values(), d.action, d.reward, *d.last_observation.values()] for d in (a, b)
    )
    same = all(np.array_equal(x, y) for x, y in zip(first, second, strict=True))
    return same and (a.success, a.task, a.terminated) == (b.success, b.task, b.terminated)


@each_variant
def test_the_vector_environment_contract(make: Make) -> None:
    env = make(3)
    assert env.metadata["autoreset_mode"] is AutoresetMode.DISABLED
    observation, info = env.reset(seed=5)
    assert set(info) >= {"success", "task"}
    assert env.action_space.shape == (3, len(env.action_names))
    assert set(env.action_names) <= set(env.state_names), "relative actions need them"
    for key, vector in env.observed.items():
        assert observation[key].shape == (3, len(vector.names))
        assert len(set(vector.names)) == len(vector.units) == len(vector.names)
    env.action_space.seed(0)
    for _ in range(5):
        assert env.observation_space.contains(observation)
        observation, reward, terminated, truncated, info = env.step(env.action_space.sample())
        assert reward.shape == terminated.shape == truncated.shape == info["success"].shape == (3,)
        assert (terminated.dtype, truncated.dtype, info["success"].dtype) == (np.bool_,) * 3
        assert all(isinstance(str(t), str) and t for t in info["task"])
        assert not (info["success"] & ~terminated).any()


@each_variant
def test_the_expert_succeeds_disturbed_or_not(make: Make) -> None:
    for noise in (0.0, NOISE):
        episodes = demonstrations(make, range(60), noise)
        assert np.mean([e.success for e in episodes]) >= 0.95
    assert all(e.terminated and e.reward[-1] >= 1 - 1e-6 for e in episodes if e.success)


@each_variant
def test_a_demonstration_replays(make: Make) -> None:
    """What is stored is what was sent: the same actions lead to the same observations."""
    (episode,) = demonstrations(make, [11], NOISE)
    env = make(1)
    observation, info = env.reset(seed=[11])
    for t, action in enumerate(episode.action):
        for key, rows in episode.observation.items():
            assert np.array_equal(observation[key][0], rows[t])
            assert rows.dtype == (np.uint8 if key in env.pictures else np.float32)
        observation, reward, terminated, truncated, info = env.step(action[None])
        assert np.float32(reward[0]) == episode.reward[t]
        assert (terminated[0] or truncated[0]) == (t == len(episode.action) - 1)
    assert info["success"][0] == episode.success
    assert info["task"][0] == episode.task


@each_task
@settings(max_examples=8, deadline=None)
@given(seeds=st.lists(st.integers(0, 2**31), min_size=7, max_size=7), place=st.integers(0, 6))
def test_an_episode_depends_on_its_seed_alone(make: Make, seeds: list[int], place: int) -> None:
    (alone,) = demonstrations(make, [seeds[place]], 0.01)
    assert equal(alone, demonstrations(make, seeds, 0.01)[place])


@each_task
def test_batches_change_nothing(make: Make) -> None:
    whole, parts = demonstrations(make, range(9), 0.01), demonstrations(make, range(9), 0.01, batch=4)
    assert all(equal(a, b) for a, b in zip(whole, parts, strict=True))


@each_variant
def test_what_is_over_stands_still_until_it_is_reset(make: Make) -> None:
    env = make(2)
    observation, info = env.reset(seed=[1, 2])
    script = env.expert([1, 2])
    terminated = truncated = np.zeros(2, bool)
    ticks = 0
    while not (terminated | truncated).all():
        observation, _, terminated, truncated, info = env.step(script.act(observation))
        ticks += 1
        assert ticks <= env.max_ticks
    rng = np.random.default_rng(0)
    for _ in range(3):
        again, reward, *flags, more = env.step(rng.uniform(env.low, env.high, env.action_space.shape))
        assert all(np.array_equal(again[key], observation[key]) for key in observation)
        assert not reward.any()
        assert np.array_equal(flags, [terminated, truncated])
        assert all(np.array_equal(more[key], info[key]) for key in info)

    mask = np.array([False, True])
    fresh, info = env.reset(seed=[-1, 9], options={"reset_mask": mask})  # the first seed is not read
    alone, _ = make(1).reset(seed=[9])
    for key in observation:
        assert np.array_equal(fresh[key][0], observation[key][0])
        assert np.array_equal(fresh[key][1], alone[key][0])
    _, _, terminated, truncated, _ = env.step(rng.uniform(env.low, env.high, env.action_space.shape))
    assert list(terminated | truncated) == [True, False]


@each_task
def test_time_runs_out(make: Make) -> None:
    env = make(1)
    observation, info = env.reset(seed=0)
    still, reward = observation["observation.state"], np.ones(1)
    for tick in range(1, env.max_ticks + 1):
        _, reward, terminated, truncated, info = env.step(still)
        assert not terminated[0]
        assert truncated[0] == (tick == env.max_ticks)
    assert not reward[0]
    assert not info["success"][0]


@each_task
def test_the_body_keeps_its_speed_limit(make: Make) -> None:
    env = make(4)
    observation, _ = env.reset(seed=3)
    far = np.zeros(env.action_space.shape, np.float32)  # type: ignore[arg-type]
    far[:, :2] = [[9, 9], [-9, 9], [-9, -9], [9, -9]]
    for _ in range(20):
        before = observation["observation.state"]
        observation, *_ = env.step(far)
        moved = (observation["observation.state"] - before)[:, :2]
        assert (np.linalg.norm(moved, axis=1) <= 0.05 + 1e-6).all()
        assert env.single_action_space.contains(observation["observation.state"][0])


def test_seeds_count_up_from_one_number_and_differ_without_any() -> None:
    env = Maze(3)

    def state(seed: int | list[int] | None) -> np.ndarray:
        return env.reset(seed=seed)[0]["observation.state"]

    assert np.array_equal(state(4), state([4, 5, 6]))
    assert not np.array_equal(state(None), state(None))
    state(4)
    drawn = state(None)
    state(4)
    assert np.array_equal(drawn, state(None)), "np_random follows the last seed given"


def test_what_does_not_fit_is_refused() -> None:
    env = Fork(2)
    with pytest.raises(ResetNeeded):
        env.step(np.zeros((2, 2), np.float32))
    for seed in ([1], [1, None], [1, -2]):
        with pytest.raises(ValueError, match="seed"):
            env.reset(seed=seed)
    for mask in (np.array([1, 0]), np.ones(3, bool)):
        with pytest.raises(ValueError, match="reset_mask"):
            env.reset(seed=0, options={"reset_mask": mask})
    env.reset(seed=0)
    for actions in (np.zeros((2, 3)), np.zeros(2), np.full((2, 2), np.nan)):
        with pytest.raises(ValueError, match="finite"):
            env.step(actions)
    refused: list[Callable[[], object]] = [
        lambda: Fork(0),
        lambda: Fork(1, routes=3),
        lambda: Peg(1, clearance=0.0),
        lambda: Maze(1, layout="V"),
        lambda: Maze(1, goals="near"),
        lambda: Words(1, pairs="some"),
        lambda: Cue(1, cues=0),
        lambda: Corridors(1, corridors=0),
        lambda: Cubes(1, moves=2.0),
        lambda: Trials(1, trials=0),
        lambda: Fork(1).expert([0], route=2),
        lambda: Peg(1).expert([0], side=0),
        lambda: Maze(1).expert([0], skill="fair"),
        lambda: demonstrations(Fork, [0], batch=0),
    ]
    for make in refused:
        with pytest.raises(ValueError, match=r"must|choose|there are"):
            make()
