"""What a policy is asked and what is executed where nobody chooses a strategy is what it was before
there were strategies (at f89eebb).

`python tests/robot/strategies/test_golden.py` writes the file anew; what it says must then be argued for
anew."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ulna.datasets.features import ACTION, PAST, STATE, Feature
from ulna.policies.serving.metadata import Metadata
from ulna.robot.agent import PolicyAgent
from ulna.robot.robot import Observation

FILE = Path(__file__).parents[2] / "data" / "golden_receding.json"
FEATURES = {k: Feature((2,), "float32", ("x", "y"), ("m", "m")) for k in (STATE, ACTION)}
CASES = {
    "slice": {"decoder": "slice"},
    "slice with a past": {"decoder": "slice", "n_past_actions": 2, "needs_past": True},
    "slice that says how much": {"decoder": "slice", "says": True},
    "ensemble": {"decoder": "ensemble", "ensemble_decay": 0.2},
    "ensemble that says how much": {"decoder": "ensemble", "says": True},
}


class Noise:
    """A policy whose chunk is a function of the seed of the decision. says: how much of it to execute, and
    something to remember."""

    def __init__(self, says: bool = False, **metadata: Any) -> None:
        past = metadata.get("n_past_actions", 0)
        self.metadata = Metadata("noise", FEATURES, 2, 7 + past, n_action_steps=3, **metadata)
        self.says, self.asked = says, []

    def infer(self, request: Mapping[str, Any]) -> dict[str, Any]:
        extension, past = request["_rt"], request.get(PAST)
        left = extension.get("previous") if self.metadata.decoder == "slice" else None
        self.asked.append(
            {
                "seed": extension["seed"],
                "history": request[STATE].tolist(),
                "past": None if past is None else past.tolist(),
                "left": None if left is None else left.tolist(),
                "memory": extension.get("memory"),
            }
        )
        chunk = np.random.default_rng(extension["seed"]).normal(size=(7, 2)).astype(np.float32)
        if not self.says:
            return {"actions": chunk, "nfe": 1}
        count = 1 + (extension.get("memory") or 0)
        return {"actions": chunk, "nfe": 1, "memory": count, "execute": 1 + count * 5 % 9}


def measure(case: str) -> dict[str, Any]:
    policy = Noise(**CASES[case])
    agent, rng = PolicyAgent(policy, FEATURES), np.random.default_rng(1)
    actions = []
    for seed in (3, 4):
        agent.reset("go", seed)
        for _ in range(23):
            state = rng.normal(size=2).astype(np.float32)
            actions.append(np.asarray(agent.act(Observation({STATE: state}, {}))).tolist())
            agent.sent(np.array(actions[-1], np.float32) * np.float32(0.9))
    return {"asked": policy.asked, "actions": actions}


@pytest.mark.parametrize("case", CASES)
def test_receding_is_what_it_was(case: str) -> None:
    now, before = measure(case), json.loads(FILE.read_text())[case]
    assert now["asked"] == before["asked"]
    # weights of an ensemble are exponentials, whose last bit is the processor's
    np.testing.assert_allclose(now["actions"], before["actions"], rtol=1e-12)


if __name__ == "__main__":
    FILE.write_text(json.dumps({case: measure(case) for case in CASES}) + "\n")
    sys.stdout.write(f"{FILE}: {', '.join(CASES)}\n")
