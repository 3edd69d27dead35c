"""A policy without a network, and a way to ask it without a server."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ulna.datasets.features import STATE, features_to_json


class Follow:
    """A policy without a network: it holds the newest state, so its chunk is right for a robot that rests."""

    def __init__(self, features: Mapping[str, Any], n_obs_steps: int = 2) -> None:
        self.metadata: dict[str, Any] = {
            "recipe": "follow",
            "features": features_to_json(dict(features)),
            "n_obs_steps": n_obs_steps,
            "horizon": 8,
            "n_action_steps": 4,
            "decoder": "slice",
            "checkpoint": "f" * 64,
        }
        self.requests: list[tuple[dict[str, np.ndarray], int | None]] = []
        self.die_after = 10**9

    def infer(
        self, observation: Mapping[str, Any], seed: int | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        self.requests.append((dict(observation), seed))
        if len(self.requests) > self.die_after:
            raise RuntimeError("died")
        return np.repeat(observation[STATE][-1:], 8, 0), {"nfe": 1}


class Source:
    """A served policy asked without a server."""

    def __init__(self, policy: Follow) -> None:
        self.policy, self.metadata = policy, policy.metadata

    def infer(self, observation: Mapping[str, Any], seed: int | None = None) -> dict[str, Any]:
        actions, info = self.policy.infer(observation, seed)
        return {"actions": actions, **info}
