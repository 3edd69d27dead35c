"""Meta-World's pick-place-v3 for `external_rows.py`, with Meta-World's own scripted expert.

The goal is seen, and the seed draws goal and puck, as in its benchmark of one task (MT1). A policy sees the
hand, the puck and the goal; the zeros and the frame before that Meta-World appends are left out. An episode
ends with success (Meta-World counts one at any time), or after its 500 steps."""

from __future__ import annotations

import warnings

import numpy as np
from metaworld.env_dict import ALL_V3_ENVIRONMENTS_GOAL_OBSERVABLE
from metaworld.policies import ENV_POLICY_MAP

TASK = "pick-place-v3"
HAND = (("hand.x", "hand.y", "hand.z", "hand.opening"), ("m", "m", "m", "1"))
PUCK = ("x", "y", "z", "qx", "qy", "qz", "qw")
SCENE = (
    (*(f"puck.{n}" for n in PUCK), "goal.x", "goal.y", "goal.z"),
    ("m", "m", "m", "1", "1", "1", "1", "m", "m", "m"),
)
ABOUT = {
    "task_name": f"metaworld {TASK}",
    "instruction": "pick the puck up and carry it to the goal",
    "control_hz": 80.0,  # five steps of 2.5 ms
    "max_ticks": 500,
    "observed": {"observation.state": HAND, "observation.environment_state": SCENE},
    # shares of a centimetre that the hand is moved by, and how hard the fingers close
    "action": (("step.x", "step.y", "step.z", "grip"), ("1", "1", "1", "1")),
}


class PickPlace:
    def __init__(self):
        warnings.simplefilter("ignore")  # of its expert: that its actions are cut
        self.env = ALL_V3_ENVIRONMENTS_GOAL_OBSERVABLE[f"{TASK}-goal-observable"](seed=0)
        self.env._freeze_rand_vec, self.env.seeded_rand_vec = False, True  # else every episode is the same
        self.action_space = self.env.action_space
        self.policy = ENV_POLICY_MAP[TASK]()

    def reset(self, seed):
        self.env.seed(seed)
        self.seen, _ = self.env.reset()
        return self.observe(), {"success": False}

    def step(self, action):
        self.seen, reward, _, truncated, info = self.env.step(action)
        success = bool(info["success"])
        numbers = {"success": success, "puck_to_goal": float(info["obj_to_target"])}
        return self.observe(), reward, success, truncated, numbers

    def observe(self):
        scene = np.concatenate([self.seen[4:11], self.seen[-3:]])
        return {"observation.state": self.seen[:4], "observation.environment_state": scene}

    def expert(self):
        return self.policy.get_action(self.seen)


make = PickPlace
