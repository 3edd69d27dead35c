"""The contract of `robot.agent.Agent`: `check_agent(agent, observation, width)`."""

from __future__ import annotations

import numpy as np

from ulna.robot.agent import Agent
from ulna.robot.robot import Observation


def check_agent(agent: Agent, observation: Observation, width: int) -> None:
    assert agent.tag

    def actions(seed: int) -> np.ndarray:
        agent.reset(observation.task, seed)
        return np.stack([np.asarray(agent.act(observation)) for _ in range(3)])

    first = actions(1)
    assert first.shape == (3, width)
    assert np.isfinite(first).all()
    np.testing.assert_array_equal(first, actions(1), "the same seed gives the same behaviour")
