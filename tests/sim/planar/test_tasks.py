"""What each planar task is made to show, and that its control takes it away."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ulna.sim.planar.body import columns
from ulna.sim.planar.catch import CLOSED, REACH, SPEED, Catch
from ulna.sim.planar.corridors import Corridors, CorridorsExpert
from ulna.sim.planar.cubes import Cubes
from ulna.sim.planar.cue import Cue
from ulna.sim.planar.demonstrations import demonstrations
from ulna.sim.planar.env import ENVIRONMENT, GOAL, PICTURE, STATE, PlanarEnv
from ulna.sim.planar.fork import Fork
from ulna.sim.planar.maze import CELL, LAYOUTS, Maze
from ulna.sim.planar.peg import DEPTH, Peg
from ulna.sim.planar.phrases import PHRASES, WAYS
from ulna.sim.planar.picture import TABLE
from ulna.sim.planar.trials import Trials, TrialsExpert
from ulna.sim.planar.twice import Twice
from ulna.sim.planar.words import PAIRS, PUCK_COLOURS, PUSH, VIEW, Words


def f32(rows: object) -> np.ndarray:
    return np.asarray(rows, np.float32)


def last_step(env: PlanarEnv, seeds: list[int], ways: np.ndarray) -> tuple[dict, np.ndarray, dict]:
    """Observation, `terminated` and info after actions `(T, n, 2)`."""
    observation, info = env.reset(seed=seeds)
    terminated = np.zeros(env.num_envs, bool)
    for actions in ways:
        observation, _, terminated, _, info = env.step(actions)
    return observation, terminated, info


def test_fork_starts_on_the_axis_exactly() -> None:
    for routes in (1, 2, 8):
        observation, info = Fork(200, routes).reset(seed=0)
        assert set(observation) == {STATE}
        assert not observation[STATE][:, 1].any()
        assert (info["route"] == -1).all()


@pytest.mark.parametrize("routes", [2, 8])
@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 1 << 31), data=st.integers(0, 1 << 31))
def test_fork_mirrored_actions_have_a_mirrored_outcome(routes: int, seed: int, data: int) -> None:
    rng = np.random.default_rng(data)
    ways = np.cumsum(rng.normal([0.05, 0], [0.01, 0.04], (60, 1, 2)), axis=0).astype(np.float32)
    ways = np.concatenate([ways, ways * f32([1, -1])], axis=1)
    env = Fork(2, routes)
    observation, _ = env.reset(seed=[seed, seed])
    for actions in ways:
        observation, reward, terminated, _, info = env.step(actions)
        (x, y), (mirrored_x, mirrored_y) = observation[STATE]
        assert (x, y) == (mirrored_x, -mirrored_y)
        assert reward[0] == reward[1]
        assert terminated[0] == terminated[1]
        if info["route"][0] >= 0:
            assert info["route"][0] + info["route"][1] == (1 if routes == 2 else 7)


def test_fork_the_mean_of_both_routes_collides() -> None:
    env = Fork(50)
    seeds = list(range(50))
    left, right = (demonstrations(Fork, seeds, route=r) for r in (0, 1))
    ways = np.stack([(a.action[:15] + b.action[:15]) / 2 for a, b in zip(left, right, strict=True)], axis=1)
    _, terminated, info = last_step(env, seeds, ways)
    assert terminated.all()
    assert not info["success"].any()
    chunk = ways[:8].copy()  # the first chunk alone, even when a little off the axis
    chunk[..., 1] += np.linspace(-0.02, 0.02, 50)
    assert last_step(env, seeds, chunk)[1].all()


@pytest.mark.parametrize("routes", [1, 2, 8])
def test_fork_routes_are_balanced(routes: int) -> None:
    env = Fork(80, routes)
    observation, info = env.reset(seed=0)
    script = env.expert(range(80), 0.005)
    for _ in range(env.max_ticks):
        observation, *_, info = env.step(script.act(observation))
    counts = Counter(info["route"][info["success"]].tolist())
    assert info["success"].all()
    assert counts == {route: 80 // routes for route in range(routes)}


def test_fork_nothing_is_jumped_over_and_progress_adds_up() -> None:
    env = Fork(1, dense=True)
    observation, _ = env.reset(seed=2)
    script, total = env.expert([2], 0.01), 0.0
    start = float(observation[STATE][0, 0])
    for _ in range(env.max_ticks):
        observation, reward, *_ = env.step(script.act(observation))
        total += float(reward[0])
    rest = np.hypot(*(observation[STATE][0] - [env.goal, 0]))
    assert total == pytest.approx(1 + env.goal - start - rest, abs=1e-5)


def test_twice_counts_visits_and_refuses_a_wrong_number() -> None:
    home, a, away, b = (0, 0), (0.3, 0), (0.15, 0), (0.3, 0.4)
    legs = {
        "none": [b],
        "once": [a, b],
        "twice": [a, away, a, b],
        "not left": [a, (0.3, 0.08), a, b],
        "thrice": [a, home, a, home, a],
    }
    outcome = {}
    for name, way in legs.items():
        ways = np.repeat(f32(way), 10, axis=0)[:, None]
        _, terminated, info = last_step(Twice(1), [0], ways)
        outcome[name] = (bool(terminated[0]), bool(info["success"][0]), int(info["visits"][0]))
    assert outcome == {
        "none": (True, False, 0),
        "once": (True, False, 1),
        "twice": (True, True, 2),
        "not left": (True, False, 1),
        "thrice": (True, False, 3),
    }


def test_twice_hides_its_stage_from_two_observations_and_not_from_sixteen() -> None:
    for episode in demonstrations(Twice, range(20)):
        state, action = episode.observation[STATE], episode.action
        at_a = np.flatnonzero(np.linalg.norm(state - [0.3, 0], axis=1) < 0.03)
        first, second = at_a[0], at_a[-1]
        assert np.linalg.norm(state[first - 1 : first + 1] - state[second - 1 : second + 1]) < 0.03
        assert np.linalg.norm(action[first] - action[second]) > 0.05
        assert second - first < 16


def test_twice_markov_is_a_plain_reach() -> None:
    straight = np.repeat(f32([(0.3, 0.4)]), 12, axis=0)[:, None]
    assert last_step(Twice(1, markov=True), [0], straight)[2]["success"][0]
    assert not last_step(Twice(1), [0], straight)[2]["success"][0]


def test_peg_enters_only_where_it_fits() -> None:
    offsets = np.array([-0.0095, -0.002, -0.0009, 0.0, 0.0009, 0.002, 0.0095])
    for clearance in (0.001, 0.010):
        env = Peg(7, clearance, drift=0.0)
        observation, _ = env.reset(seed=[4] * 7)
        x = observation[ENVIRONMENT][:, 0] + offsets
        inside = np.abs(offsets) < clearance
        ways = [np.stack([x, np.full(7, y)], axis=1) for y in [0.02] * 20 + [-0.005] * 5]
        observation, terminated, _ = last_step(env, [4] * 7, f32(ways))
        assert not terminated.any(), "probing is safe"
        assert np.array_equal(observation[STATE][:, 1] < 0, inside)
        ways += [np.stack([x, np.full(7, -0.03)], axis=1)] * 2
        observation, terminated, info = last_step(env, [4] * 7, f32(ways))
        assert terminated.all(), "in, or broken on the surface"
        assert np.array_equal(info["success"], inside)
        beside = ~inside
        assert not observation[STATE][beside, 1].any(), "the surface holds it"
        assert (observation[STATE][~beside, 1] <= -DEPTH).all()


def test_peg_pressed_hard_sticks_and_pressed_lightly_slides() -> None:
    env = Peg(2, drift=0.0)
    observation, _ = env.reset(seed=[4, 4])
    beside = float(observation[ENVIRONMENT][0, 0]) + 0.005
    down = [np.full((2, 2), (beside, 0.02))] * 20 + [np.full((2, 2), (beside, 0.0))] * 2
    back = [np.array([(beside - 0.002, -0.009), (beside - 0.002, -0.001)])] * 3
    observation, terminated, _ = last_step(env, [4, 4], f32(down + back))
    assert not terminated.any()
    assert observation[STATE][:, 0] == pytest.approx([beside, beside - 0.002], abs=1e-6)


def planned(env: PlanarEnv, ahead: int) -> float:
    """Success rate of the expert's own plans of `ahead` ticks, made for the hole as it lay at their start."""
    observation, info = env.reset(seed=0)
    script = env.expert(range(env.num_envs))
    over, plan = np.zeros(env.num_envs, bool), []
    while not over.all():
        if not plan:
            imagined = dict(observation)
            for _ in range(ahead):
                plan.append(script.act(imagined))
                imagined[STATE] = plan[-1]
        observation, _, terminated, truncated, info = env.step(plan.pop(0))
        over = terminated | truncated
    return float(info["success"].mean())


def test_peg_chunks_lose_to_the_drift_and_the_control_forgives() -> None:
    assert planned(Peg(400), 1) > 0.95
    assert planned(Peg(400), 8) < 0.6
    assert planned(Peg(400, clearance=0.010), 8) > 0.99
    assert planned(Peg(400, drift=0.0), 8) > 0.99


def test_peg_detour_has_two_routes_and_a_post() -> None:
    episodes = demonstrations(partial(Peg, detour=True), range(40), 0.005)
    sides = [
        np.sign(e.observation[STATE][np.abs(e.observation[STATE][:, 1] - 0.15).argmin(), 0]) for e in episodes
    ]
    assert Counter(sides) == {1: 20, -1: 20}
    straight = np.repeat(f32([(0.0, 0.02)]), 15, axis=0)[:, None]
    _, terminated, info = last_step(Peg(1, detour=True), [0], straight)
    assert terminated[0]
    assert not info["success"][0]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_maze_ways_are_whole_and_far_goals_far(layout: str) -> None:
    env = Maze(300, layout)
    assert not np.concatenate([env.free[[0, -1]].ravel(), env.free[:, [0, -1]].ravel()]).any()
    assert (env.steps >= 0).all(), "every free cell can be reached from every other"
    assert np.array_equal(env.steps, env.steps.T)
    observation, _ = env.reset(seed=0)
    length = env.path_length(observation[STATE], observation[GOAL])
    assert length.min() > 0.7 * CELL * env.steps.max()
    assert length.max() < CELL * (env.steps.max() + 1)


@settings(max_examples=20, deadline=None)
@given(data=st.integers(0, 1 << 31))
def test_maze_walls_hold(data: int) -> None:
    env, rng = Maze(20), np.random.default_rng(data)
    observation, _ = env.reset(seed=data)
    aims = rng.uniform(env.low, env.high, (4, 20, 2)).astype(np.float32)
    for tick in range(60):
        before = env.cell_of(*columns(observation[STATE]))
        observation, *_ = env.step(aims[tick // 15])
        cell = env.cell_of(*columns(observation[STATE]))
        assert (cell >= 0).all()
        assert (env.steps[before, cell] <= 2).all(), "no way through a wall"


def test_maze_path_length_falls_along_the_shortest_way() -> None:
    env = Maze(1, "long")
    for episode in demonstrations(partial(Maze, layout="long"), range(4)):
        length = env.path_length(episode.observation[STATE], episode.observation[GOAL])
        assert (length[16:] < length[:-16]).all()
        walked = 0.0125 * len(episode.action)
        assert 0.85 * length[0] < walked <= length[0], "the expert cuts corners, a little"


def test_maze_mixed_data_is_one_part_good_in_twenty() -> None:
    make = partial(Maze, goals="any")
    env = make(100)
    assert env.expert(range(100), skill="mixed").good.sum() == 5  # type: ignore[attr-defined]
    good, poor = (
        np.array(
            [e.reward.sum() / len(e.reward) for e in demonstrations(Maze, range(40), 0.005, skill=skill)]
        )
        for skill in ("good", "poor")
    )
    assert good.mean() > 5 * poor.mean()


def test_words_instructions_are_balanced_and_held_out_apart() -> None:
    tasks = {pairs: Counter(Words(96, pairs).reset(seed=0)[1]["task"].tolist()) for pairs in PAIRS}
    assert {pairs: set(counts.values()) for pairs, counts in tasks.items()} == {
        "all": {6},
        "train": {8},
        "held-out": {24},
        "left": {24},
        "right": {24},
    }
    assert set(tasks["train"]) | set(tasks["held-out"]) == set(tasks["all"])
    assert not set(tasks["train"]) & set(tasks["held-out"])
    assert "push the red puck left" in tasks["left"]
    assert "push the red puck right" in tasks["right"]


def test_words_the_scene_says_nothing_unless_it_is_the_control() -> None:
    observation, info = Words(1600).reset(seed=0)
    scene = observation[ENVIRONMENT]
    features = np.concatenate([scene, np.sign(scene)], axis=1)
    colour = np.array([task.split()[2] for task in info["task"]])
    for name in np.unique(colour):
        gap = features[colour == name].mean(axis=0) - features[colour != name].mean(axis=0)
        assert (np.abs(gap) < 5 * features.std(axis=0) * np.sqrt(1 / 400 + 1 / 1200)).all()

    observation, info = Words(160, scene_identifies=True).reset(seed=0)
    scene = observation[ENVIRONMENT].reshape(-1, 4, 2)
    there = (np.abs(scene) < 0.5).all(axis=2)
    assert (there.sum(axis=1) == 1).all()
    corners = np.sign(scene[there])
    meaning: dict[tuple, set[str]] = {}
    for puck, corner, task in zip(there.argmax(axis=1), corners, info["task"], strict=True):
        meaning.setdefault((int(puck), *corner.tolist()), set()).add(str(task))
    assert len(meaning) == 16
    assert all(len(tasks) == 1 for tasks in meaning.values())


def test_words_that_are_shuffled_say_nothing() -> None:
    told, counts = (Words(400, "left", shuffled=s).reset(seed=0) for s in (True, False))
    key = "observation.environment_state"
    np.testing.assert_array_equal(told[0][key], counts[0][key])
    assert 0.18 < (told[1]["task"] == counts[1]["task"]).mean() < 0.32


def test_words_sentences_are_kept_back() -> None:
    said: dict[str, set[str]] = {}
    for kind in PHRASES:
        info = Words(400, phrases=kind).reset(seed=0)[1]
        plain = Words(400).reset(seed=0)[1]["task"].tolist()
        said[kind] = set(info["task"].tolist())
        assert max(map(len, said[kind])) < 64, "the environment holds as many letters"
        for sentence, same in zip(info["task"].tolist(), plain, strict=True):
            _, _, colour, _, direction = same.split()
            assert any(name in sentence for name in PHRASES[kind][1][colour])
            assert any(way in sentence for way in WAYS[direction])
    assert not said["heard"] & (said["held-out"] | said["unheard"])
    names = [name for kind in ("heard", "unheard") for of in PHRASES[kind][1].values() for name in of]
    assert len(set(names)) == len(names)


def test_words_a_picture_shows_which_puck_is_where() -> None:
    side = 48
    observation, _ = Words(50, picture=side).reset(seed=0)
    picture = observation[PICTURE].astype(float)
    assert picture.shape == (50, side, side, 3)
    pixel = 2 * VIEW / side
    across = (np.arange(side) + 0.5) * pixel - VIEW
    pucks = observation[ENVIRONMENT].reshape(-1, 4, 2)
    for i, colour in enumerate(PUCK_COLOURS):
        for n in range(50):
            x, y = pucks[n, i]
            near = (np.abs(across - x) < 0.06)[None, :] & (np.abs(-across - y) < 0.06)[:, None]
            share = np.abs(picture[n] - 255 * np.array(TABLE)).sum(-1) * near
            centre = (share.sum(0) @ across, share.sum(1) @ -across) / share.sum()
            assert np.allclose(centre, (x, y), atol=0.002), "to a tenth of a pixel"
            row, column = round((VIEW - y) / pixel - 0.5), round((x + VIEW) / pixel - 0.5)
            assert np.allclose(picture[n, row, column], 255 * np.array(colour), atol=1)


def test_words_distractors_are_seen_and_nothing_else() -> None:
    side, n = 32, 20
    plain, info = Words(n, picture=side).reset(seed=0)
    crowded, same = Words(n, picture=side, distractors=3).reset(seed=0)
    assert np.array_equal(plain[ENVIRONMENT], crowded[ENVIRONMENT])
    assert np.array_equal(info["task"], same["task"])
    moved = np.abs(plain[PICTURE].astype(int) - crowded[PICTURE]).sum(-1) > 30
    assert moved.any(axis=(1, 2)).all()
    pixel = 2 * VIEW / side
    for i, colour in enumerate(PUCK_COLOURS):
        x, y = plain[ENVIRONMENT].reshape(-1, 4, 2)[:, i].T
        rows, columns = np.round((VIEW - y) / pixel - 0.5), np.round((x + VIEW) / pixel - 0.5)
        shown = crowded[PICTURE][np.arange(n), rows.astype(int), columns.astype(int)]
        assert np.allclose(shown, 255 * np.array(colour), atol=1), "they lie under the pucks"
    with pytest.raises(ValueError, match="only with a picture"):
        Words(1, distractors=1)


def test_words_only_the_named_push_counts() -> None:
    """Pushes as another instruction would have them succeed for that instruction alone."""
    make = partial(Words, pairs="all")
    env, seeds = make(16), list(range(16))
    instructions = [env.pair(s) for s in seeds]
    assert len(set(instructions)) == 16
    for told in (0, 7):
        observation, info = env.reset(seed=seeds)
        script, terminated = env.expert([told] * 16), np.zeros(16, bool)
        for _ in range(env.max_ticks):
            observation, _, terminated, _, info = env.step(script.act(observation))
        assert terminated.all()
        assert np.flatnonzero(info["success"]).tolist() == [told]


def test_words_goal_is_where_the_pucks_are_to_lie() -> None:
    for episode in demonstrations(partial(Words, goal=True), range(16)):
        goal, end = episode.last_observation[GOAL], episode.last_observation[ENVIRONMENT]
        assert (episode.observation[GOAL] == goal).all()
        assert np.abs(goal - end).max() < 0.035
        assert np.abs(goal - episode.observation[ENVIRONMENT][0]).max() == pytest.approx(PUSH, abs=1e-6)


def late(env: Catch, delay: int) -> float:
    """Success of the expert's rule, shown what was seen `delay` ticks ago: on seeds 500 to 599."""
    n = env.num_envs
    observation, info = env.reset(seed=list(range(500, 500 + n)))
    rule, seen, over = env.expert(list(range(n))), [observation], np.zeros(n, bool)
    while not over.all():
        now = seen[max(len(seen) - 1 - delay, 0)]
        # the hand is where it is now: what is late is the sight of the target
        known = {STATE: seen[-1][STATE], ENVIRONMENT: now[ENVIRONMENT]}
        observation, _, terminated, truncated, info = env.step(rule.act(known))
        seen.append(observation)
        over = terminated | truncated
    return float(info["success"].mean())


def test_catch_is_lost_to_delay_and_the_control_forgives() -> None:
    assert late(Catch(100), 0) > 0.99
    assert late(Catch(100), 6) < 0.5
    assert late(Catch(100, speed=0.0), 6) > 0.99


def test_catch_is_to_close_the_hand_with_the_target_in_reach() -> None:
    env = Catch(2, speed=0.0)
    observation, _ = env.reset(seed=[1, 2])
    target = observation[ENVIRONMENT][:, :2]
    there = np.concatenate([target + f32([[0.5 * REACH, 0], [1.5 * REACH, 0]]), f32([[0], [0]])], axis=1)
    closed = there + f32([0, 0, 1])
    ways = [*[there] * 40, closed, closed]
    _, terminated, info = last_step(env, [1, 2], np.stack(ways))
    assert info["success"].tolist() == [True, False]
    assert terminated.tolist() == [True, False], "who misses may open the hand and try again"
    # a hand that is closed already catches nothing by passing over the target
    observation, terminated, info = last_step(env, [1, 2], np.stack([closed] * 70))
    assert observation[STATE][1, 2] >= CLOSED
    assert not info["success"].any()
    nearer = closed - f32([REACH, 0, 0])
    assert not last_step(env, [1, 2], np.stack([closed] * 40 + [nearer] * 20))[2]["success"].any()
    opened = nearer - f32([0, 0, 1])
    ways = [*[closed] * 40, *[opened] * 4, *[nearer] * 2]
    assert last_step(env, [1, 2], np.stack(ways))[2]["success"][1]
    with pytest.raises(ValueError, match="half of the hand's"):
        Catch(1, speed=1.0)
    with pytest.raises(ValueError, match="turns"):
        Catch(1, turns=2.0)


def test_catch_the_target_keeps_its_speed_and_stays_in_the_field() -> None:
    env = Catch(50)
    observation, _ = env.reset(seed=0)
    turned = 0
    for _ in range(env.max_ticks):
        before = observation[ENVIRONMENT]
        observation, *_ = env.step(np.zeros((50, 3), np.float32))
        np.testing.assert_allclose(np.hypot(*before[:, 2:].T), SPEED, rtol=1e-5)
        np.testing.assert_allclose(observation[ENVIRONMENT][:, :2], before[:, :2] + before[:, 2:], atol=1e-6)
        turned += int((np.abs(observation[ENVIRONMENT][:, 2:] - before[:, 2:]).max(1) > 1e-6).sum())
    assert np.abs(observation[ENVIRONMENT][:, :2]).max() <= 0.3 + 1e-6
    assert 0.02 < turned / (50 * env.max_ticks) < 0.07


def sides(env: Cue, seeds: list[int]) -> np.ndarray:
    """Where the expert ends."""
    ends = demonstrations(lambda n: Cue(n, env.delay, env.cues, env.visible, env.irrelevant), seeds)
    assert all(d.success for d in ends)
    return np.array([np.sign(d.action[-1, 0]) for d in ends])


def test_cue_nothing_but_the_past_says_which_way() -> None:
    """Two episodes that end on different sides look alike from the last cue on, but for distractors."""
    env, seeds = Cue(60, delay=10, cues=2), list(range(60))
    assert sides(env, seeds).sum() == 0, "chance is one half exactly"
    seen = {key: [] for key in ("cue", "between", "due")}
    observation, _ = env.reset(seed=seeds)
    for t in range(env.due + 3):
        kind = "cue" if t < 6 else "due" if t >= env.due else "between"
        seen[kind].append(observation[ENVIRONMENT])
        observation, *_ = env.step(np.zeros((60, 2), np.float32))
    keys, values = np.stack(seen["cue"])[..., :2], np.stack(seen["cue"])[..., 2]
    assert (keys.sum(-1) == 1).all()
    assert (np.abs(values) == 1).all()
    between, due = np.stack(seen["between"]), np.stack(seen["due"])
    assert not between[..., [0, 1, 3]].any(), "a distractor has no key"
    assert 0.1 < np.abs(between[..., 2]).mean() < 0.5
    assert not due[..., 2].any()
    assert (due[..., 3] == 1).all()
    # what the key of the turn was shown with is where it leads
    asked = due[0, :, :2].argmax(-1)
    first = keys[..., 0].astype(bool)
    told = np.where(asked == 0, np.where(first, values, 0).sum(0), np.where(first, 0, values).sum(0)) / 3
    assert np.array_equal(told, sides(env, seeds))
    assert len({tuple(row) for row in due[-1]}) == 2


def test_cue_controls_need_no_memory_and_leaving_early_fails() -> None:
    env = Cue(20, delay=10, visible=True)
    observation, _ = env.reset(seed=0)
    terminated = np.zeros(20, bool)
    for _ in range(env.due + 2):
        observation, _, terminated, _, _ = env.step(np.zeros((20, 2), np.float32))
        assert (np.abs(observation[ENVIRONMENT][:, 1]) == 1).all()
    assert not terminated.any()
    assert (sides(Cue(1, delay=10, irrelevant=True), list(range(20))) == 1).all()
    way = np.tile(f32([0.2, 0.0]), (3, 20, 1))
    _, terminated, info = last_step(Cue(20, delay=10), list(range(20)), way)
    assert terminated.all()
    assert not info["success"].any()


def test_corridors_the_last_cue_counts_and_no_other() -> None:
    """Whoever keeps the first cue, or forgets it, passes as many corridors as chance lets them."""

    def passed(env: Corridors, side: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
        observation, info = env.reset(seed=list(range(n)))
        script = CorridorsExpert(env, range(n), 0.0)
        for _ in range(env.max_ticks):
            script.act(observation)
            held = side(script._cue)
            x, junction = observation[STATE][:, 0], observation[ENVIRONMENT][:, 1]
            there = (np.abs(x - junction) < 0.03) & (np.abs(observation[STATE][:, 1]) < 0.12)
            observation, _, _, _, info = env.step(np.stack([junction, 0.18 * held * there], axis=1))
        return info["passed"]

    n = 200
    first = np.zeros(n)

    def keep_first(cue: np.ndarray) -> np.ndarray:
        first[:] = np.where(first == 0, cue, first)
        return first

    assert (passed(Corridors(n), lambda cue: cue) == 3).all()
    assert 0.4 < np.mean(passed(Corridors(n), keep_first) >= 2) < 0.6
    assert np.mean(passed(Corridors(n), keep_first) >= 1) == 1
    assert 0.4 < np.mean(passed(Corridors(n), np.ones_like) >= 1) < 0.6
    observation, _ = Corridors(n, visible=True, uniform=True).reset(seed=0)
    assert len(set(observation[ENVIRONMENT][:, 1])) == n, "lengths are drawn"


def test_trials_are_right_for_who_remembers_and_by_chance_for_who_does_not() -> None:
    """Its expert has found the place by the last trial; who tries the first place again and again has not."""

    def right(env: Trials, remembers: bool) -> tuple[np.ndarray, np.ndarray]:
        observation, info = env.reset(seed=list(range(n)))
        script = TrialsExpert(env, range(n), 0.0)
        for _ in range(env.max_ticks):
            if not remembers:
                script._next[:] = 0
            observation, _, _, _, info = env.step(script.act(observation))
        return info["success"], info["right"]

    n = 200
    success, found = right(Trials(n), remembers=True)
    assert success.all()
    assert found.min() == 1
    assert 2.3 < found.mean() < 2.7, "found in any of the trials alike, and kept"
    assert 0.15 < right(Trials(n), remembers=False)[0].mean() < 0.35
    assert 0.15 < right(Trials(n, anew=True), remembers=True)[0].mean() < 0.4, "nothing is worth remembering"


def test_cubes_that_moved_are_no_longer_where_they_were() -> None:
    n, seeds = 100, list(range(100))
    env = Cubes(n)
    observation, info = env.reset(seed=seeds)
    first = observation[ENVIRONMENT][:, :9].reshape(n, 3, 3)[:, :, 1:]
    assert (observation[ENVIRONMENT][:, [0, 3, 6]] == 1).all()
    shown = []
    for t in range(env.max_ticks):
        wanted = observation[ENVIRONMENT][:, 9:].argmax(1)
        observation, _, _, _, info = env.step(first[np.arange(n), wanted])
        seen = observation[ENVIRONMENT][:, [0, 3, 6]] == 1
        if t >= 3:
            shown.append(seen)
        at = observation[ENVIRONMENT][:, :9].reshape(n, 3, 3)[:, :, 1:]
        assert not at[~seen].any(), "what is not seen is not told"
    assert 0.01 < np.mean(shown) < 0.3
    stale = info["success"].mean()
    assert stale < 0.2, "the map of the beginning is out of date"
    assert np.mean([d.success for d in demonstrations(Cubes, seeds)]) >= 0.95
    always = Cubes(n, visible=True)
    always.reset(seed=seeds)
    for _ in range(5):
        observation, *_ = always.step(np.zeros((n, 2)))
    assert (observation[ENVIRONMENT][:, [0, 3, 6]] == 1).all()
