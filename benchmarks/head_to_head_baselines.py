"""What the methods of `head_to_head.py` lie between, on the same episodes: the expert, and an arm that holds
still."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ulna.datasets.features import ACTION, STATE
from ulna.policies.request import Request
from ulna.policies.serving.batch import Answers
from ulna.policies.serving.metadata import Metadata
from ulna.robot.rollout import env_features, rollout
from ulna.robot.session import can_stand, standing
from ulna.robot.study.arms import task_maker
from ulna.robot.study.study import Study
from ulna.sim.planar.demonstrations import demonstrations

ROWS = 50


class Hold:
    """A `Decider` whose every action is where the arm is."""

    def __init__(self, env: Any) -> None:
        self._features = env_features(env)
        own = {k: self._features[k] for k in (STATE, ACTION)}
        self.metadata = Metadata(recipe="hold", features=own, control_hz=env.control_hz)

    def decide(self, requests: Sequence[Request]) -> Answers:
        chunks = [standing(self._features, {STATE: r.observation[STATE][-1]}) for r in requests]
        return Answers(np.array(chunks, np.float32)[:, None], np.zeros(len(requests), int))


def baselines(task: str, episodes: int) -> dict[str, list[int]]:
    """By baseline, the successes of the episodes on which the methods are tried. Holding is left out where
    the state does not say which action holds."""
    make, seeds = task_maker(task, {}), range(Study.evaluation_seed, Study.evaluation_seed + episodes)
    found = {"expert": [int(d.success) for d in demonstrations(make, seeds, batch=ROWS)]}
    env = make(min(ROWS, episodes))
    try:
        features = env_features(env)
        if STATE in features and can_stand(features):
            found["hold"] = [int(o.success) for o in rollout(Hold(env), env, seeds).outcomes]
    finally:
        env.close()
    return found
