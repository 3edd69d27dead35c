"""Agents: all keep one contract, and a policy's gets the history, seeds and images that it was trained on, or
is refused."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from contracts.agent import check_agent
from contracts.policy import Follow

from ulna.datasets.features import ACTION, IMAGES, STATE, Feature, FeatureMismatch
from ulna.policies.serving.metadata import Metadata
from ulna.robot.agent import ExpertAgent, HoldAgent, PolicyAgent
from ulna.robot.config import load_robot


def test_agents_keep_their_contract() -> None:
    with load_robot("sim:so101", "lift") as rig:
        observation = rig.robot.observe("lift it")
        policy = Follow(rig.robot.features)
        for agent in (HoldAgent(), ExpertAgent(rig.sim, 0.004), PolicyAgent(policy, rig.robot.features)):
            check_agent(agent, observation, 6)


def test_a_policy_agent_stacks_history_and_seeds_each_decision() -> None:
    with load_robot("sim:so101", "reach") as rig:
        policy = Follow(rig.robot.features, n_obs_steps=3)
        agent = PolicyAgent(policy, rig.robot.features)
        for seed in (1, 1, 2):
            agent.reset("go", seed)
            for t in range(6):
                observation = rig.robot.observe()
                observation.values[STATE][:] = t
                agent.act(observation)
        states = [r.observation[STATE][:, 0].tolist() for r in policy.requests]
        assert states == [[0, 0, 0], [2, 3, 4]] * 3
        seeds = [r.seed for r in policy.requests]
        assert seeds[:2] == seeds[2:4] != seeds[4:]
        assert len(set(seeds[:2])) == 2
        assert policy.requests[0].task == "go"
        assert agent.nfe == [1] * 6


def test_a_policy_agent_executes_as_much_of_a_chunk_as_the_policy_wants() -> None:
    with load_robot("sim:so101", "reach") as rig:
        policy = Follow(rig.robot.features)
        agent = PolicyAgent(policy, rig.robot.features)
        answer, wishes = policy.infer, [1, 6, 99, None]
        policy.infer = lambda request: (
            answer(request)
            | (  # type: ignore[method-assign]
                {} if (wish := wishes[len(policy.requests) - 1]) is None else {"execute": wish}
            )
        )
        agent.reset("go", 0)
        asked = []
        for _ in range(19):
            agent.act(rig.robot.observe())
            asked.append(len(policy.requests))
        # the chunk has 8 actions, of which 4 are executed where the policy does not say
        assert asked == [1] + [2] * 6 + [3] * 8 + [4] * 4


def test_a_policy_for_another_robot_is_refused_with_both_sides() -> None:
    with load_robot("sim:so101", "reach") as one, load_robot("sim:panda", "reach") as other:
        with pytest.raises(FeatureMismatch) as caught:
            PolicyAgent(Follow(other.robot.features), one.robot.features)
        assert "panda_joint1" in str(caught.value)
        assert "shoulder_pan" in str(caught.value)
        silent = Follow(one.robot.features)
        silent.metadata = Metadata()
        with pytest.raises(ValueError, match="is it an Ulna server"):
            PolicyAgent(silent, one.robot.features)


def test_larger_images_are_resized_and_smaller_ones_refused() -> None:
    with load_robot("sim:so101", "reach", ["front"]) as rig:
        features = rig.robot.features
        small = {**features, IMAGES + "front": type(features[STATE])((48, 64, 3), "uint8")}
        policy = Follow(small)
        PolicyAgent(policy, features).act(rig.robot.observe())
        assert policy.requests[0].observation[IMAGES + "front"].shape == (2, 48, 64, 3)
        large = {**features, IMAGES + "front": type(features[STATE])((480, 640, 3), "uint8")}
        with pytest.raises(FeatureMismatch, match=r"480, 640"):
            PolicyAgent(Follow(large), features)


def test_a_policy_of_another_rate_is_refused() -> None:
    with load_robot("sim:so101", "reach") as rig:
        policy = Follow(rig.robot.features)
        policy.metadata = replace(policy.metadata, control_hz=5.0)
        with pytest.raises(ValueError, match="5 Hz data and the robot runs at 20 Hz"):
            PolicyAgent(policy, rig.robot.features, rig.robot.control_hz)


def test_a_policy_agent_tells_its_policy_what_to_do_and_carries_its_memory() -> None:
    with load_robot("sim:so101", "reach") as rig:
        features = rig.robot.features
        policy = Follow(features, n_obs_steps=1)
        goal = f"goal.{STATE}"
        policy.metadata = replace(
            policy.metadata, conditions={"task": Feature((), "str"), goal: features[STATE]}
        )
        with pytest.raises(ValueError, match=f"must be told {goal}, .*give it as the agent's goal"):
            PolicyAgent(policy, features)
        observation = rig.robot.observe()
        there = observation.values[STATE] + 1
        replies = 0

        def infer(request: Mapping[str, Any]) -> dict[str, Any]:
            nonlocal replies
            replies += 1
            return Follow.infer(policy, request) | {
                "memory": {"checkpoint": "f", "values": np.full(2, replies)}
            }

        policy.infer = infer  # type: ignore[method-assign]
        agent = PolicyAgent(policy, features, goal={goal: there})
        for _ in range(2):
            agent.reset("go there", 1)
            for _ in range(5):  # of each chunk 4 actions are executed
                agent.act(observation)
        first, second, anew, _ = policy.requests
        assert first.task == "go there"
        np.testing.assert_array_equal(first.observation[goal], there)
        assert (first.memory, first.previous, anew.memory, anew.previous) == (None, None, None, None)
        assert second.memory["values"].tolist() == [1, 1]
        assert second.previous.shape == (4, features[ACTION].shape[0])

        observing = PolicyAgent(policy, {**features, goal: features[STATE]})
        observation.values[goal] = there
        observing.reset("go there", 1)
        observing.act(observation)
        np.testing.assert_array_equal(policy.requests[-1].observation[goal], there)
