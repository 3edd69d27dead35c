"""The episodes of a study: each as it would be alone, with what methods ask for."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from ulna.datasets.features import STATE, Feature
from ulna.policies.decoders import SliceDecoder
from ulna.policies.request import Request
from ulna.robot.study_rollout import Decision, Needs, run_episodes
from ulna.sim.planar.fork import Fork
from ulna.sim.planar.maze import Maze

XY = Feature((2,), "float32")
SEEDS = [500, 501, 502, 503]


@dataclass
class Drift:
    """From where the body is, straight on with a sideways step that its seed decides; counts its decisions in
    its memory, and asks again after `steps` actions."""

    needs: Needs
    steps: int | None = None
    requests: list[Request] = field(default_factory=list)

    def decide(self, request: Request) -> Decision:
        self.requests.append(request)
        now = request.observation[STATE][:, -1]
        side = np.array([s % 7 - 3 for s in request.seed]) * 0.002
        step = np.stack([np.full(len(now), 0.04), side], axis=1)
        chunk = now[:, None] + step[:, None] * np.arange(1, 9)[:, None]
        memory = np.zeros((len(now), 1)) if request.memory is None else request.memory
        execute = None if self.steps is None else np.full(len(now), self.steps)
        return Decision(chunk.astype(np.float32), np.full(len(now), 3), execute, memory + 1)


def drift(**needs: Any) -> Drift:
    return Drift(Needs({STATE: XY}, (STATE,), n_obs_steps=2, n_action_steps=4, **needs))


def test_every_episode_is_what_it_would_be_alone() -> None:
    together = run_episodes(drift(), Fork(4), SEEDS)
    for i, seed in enumerate(SEEDS):
        alone = run_episodes(drift(), Fork(1), [seed])
        assert (alone.success[0], alone.ticks[0]) == (together.success[i], together.ticks[i])
        assert alone.roughness[0] == together.roughness[i]
        assert alone.info["route"][0] == together.info["route"][i]
    assert together.nfe == 3


def test_actions_are_those_of_the_slice_decoder() -> None:
    env, decider, decoder = Fork(1), drift(), SliceDecoder(4)
    result = run_episodes(decider, env, [500])
    sent = []
    for request in decider.requests:
        decoder.push(decider.decide(request).chunk[0])
        while not decoder.wants_chunk():
            sent.append(decoder.next())
        if len(sent) >= result.ticks[0]:
            break
    other = Fork(1)
    other.reset(seed=[500])
    for action in sent[: result.ticks[0]]:
        _, _, terminated, truncated, info = other.step(action[None])
    assert bool(info["success"][0]) == bool(result.success[0])
    assert bool(terminated[0] | truncated[0])


def test_past_memory_and_remainder_are_sent() -> None:
    decider = drift(n_past_actions=3, wants_previous=True)
    run_episodes(decider, Fork(2), SEEDS[:2])
    first, second = decider.requests[:2]
    assert (first.past, first.memory, first.previous) == (None, None, None)
    assert first.observation[STATE].shape == (2, 2, 2)
    assert first.task == ["go round the obstacle"] * 2
    assert second.past.shape == (2, 3, 2)
    assert second.previous.shape == (2, 4, 2)
    assert second.memory.tolist() == [[1], [1]]
    chunk = decider.decide(first).chunk
    np.testing.assert_allclose(second.past, chunk[:, 1:4])
    np.testing.assert_array_equal(second.previous, chunk[:, 4:])


def test_a_policy_says_how_much_to_execute() -> None:
    eager, plain = Drift(drift().needs, steps=1), drift()
    often, seldom = (run_episodes(d, Fork(1), [500]) for d in (eager, plain))
    assert often.decisions == often.ticks[0]
    assert seldom.decisions == -(-seldom.ticks[0] // 4)


def test_a_delayed_chunk_counts_from_its_tick_on() -> None:
    @dataclass
    class Numbered(Drift):
        """Commands say which decision they are of, and which action of the chunk."""

        def decide(self, request: Request) -> Decision:
            self.requests.append(request)
            k = len(self.requests)
            chunk = np.array([[[-0.001 * k, 0.01 * j] for j in range(8)]], np.float32)
            return Decision(chunk, np.ones(1, int))

    decider = Numbered(drift(wants_previous=True).needs)
    sent: list[np.ndarray] = []

    class Listening(Fork):
        def step(self, actions: np.ndarray) -> Any:
            sent.append(actions[0].copy())
            return super().step(actions)

    run_episodes(decider, Listening(1), [500], delay=2)
    which = [(round(-1000 * x), round(100 * y)) for x, y in np.array(sent)[:10]]
    # the first chunk is waited for; the second is asked for at tick 4 and used from tick 6 on
    assert which == [(1, 0), (1, 1), (1, 2), (1, 3), (1, 4), (1, 5), (2, 2), (2, 3), (2, 4), (2, 5)]
    assert decider.requests[1].delay == 2
    np.testing.assert_array_equal(decider.requests[1].previous[0, 0], np.float32([-0.001, 0.04]))


def test_goals_prompts_and_given_arrays_are_told() -> None:
    features = {STATE: XY, "label": Feature((1,), "float32")}
    needs = Needs(
        features,
        (STATE,),
        ("goal.observation.state", "label", "prompt.action", "prompt.mask"),
        prompts=(3, 4),
    )
    decider = Drift(needs, steps=8)
    shown = [{"action": np.arange(2 * n, dtype=np.float32).reshape(n, 2)} for n in (2, 7)]
    env = Maze(2)
    run_episodes(decider, env, [500, 501], given={"label": [1.0]}, prompts={"go to the goal": shown})
    observation = decider.requests[0].observation
    np.testing.assert_array_equal(
        observation["goal.observation.state"], env.reset(seed=[500, 501])[0]["observation.goal"]
    )
    assert observation["label"].tolist() == [[1], [1]]
    assert observation["prompt.action"].shape == (2, 3, 4, 2)
    assert observation["prompt.mask"].sum(-1).max() == 4
    assert 2 in observation["prompt.mask"].sum(-1)
    last = observation["prompt.action"][:, :, -1, 0]
    assert set(last.ravel()) == {2.0, 12.0}
    with pytest.raises(ValueError, match="no demonstration of"):
        run_episodes(decider, Maze(1), [500], given={"label": [1.0]})
    with pytest.raises(ValueError, match="label: say in"):
        run_episodes(decider, Maze(1), [500])
    with pytest.raises(ValueError, match=r"shows no observation\.goal"):
        run_episodes(decider, Fork(1), [500], given={"label": [1.0]})
