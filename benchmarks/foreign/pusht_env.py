"""gym-pusht's PushT-v0 for `external_rows.py`.

A task file has `ABOUT`, with the names and units of what is observed and commanded, and `make`, which makes
an environment: `reset(seed)` and `step(action)` as gymnasium has them, observations by our keys, `success` in
the info and any other numbers; and where its package brings a demonstrator, `expert()`, the next action.

A policy sees the agent and the corners of the T, as published. An episode ends with success, more than 95 %
of the goal covered, or after its 300 steps. `coverage` in the info is the largest so far."""

from __future__ import annotations

import gym_pusht  # noqa: F401  (registers its environment)
import gymnasium
import numpy as np

ABOUT = {
    "task_name": "gym_pusht",
    "instruction": "push the T onto its outline",
    "control_hz": 10.0,
    "max_ticks": 300,
    "observed": {
        "observation.state": (("x", "y"), ("px", "px")),
        "observation.environment_state": (
            tuple(f"corner_{i}.{axis}" for i in range(8) for axis in "xy"),
            ("px",) * 16,
        ),
    },
    "action": (("x", "y"), ("px", "px")),
}


class PushT:
    def __init__(self):
        self.env = gymnasium.make("gym_pusht/PushT-v0", obs_type="environment_state_agent_pos")
        self.action_space = self.env.action_space
        self.coverage = 0.0

    def reset(self, seed):
        seen, _ = self.env.reset(seed=seed)
        self.coverage = 0.0
        return self.observe(seen), {"success": False, "coverage": 0.0}

    def step(self, action):
        seen, reward, terminated, truncated, info = self.env.step(action)
        self.coverage = max(self.coverage, float(info["coverage"]))
        numbers = {"success": bool(info["is_success"]), "coverage": self.coverage}
        return self.observe(seen), reward, terminated, truncated, numbers

    def observe(self, seen):
        corners = np.asarray(seen["environment_state"])
        return {"observation.state": seen["agent_pos"], "observation.environment_state": corners}


make = PushT
