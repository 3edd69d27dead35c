"""Policies without a network, and a way to ask one without a server."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any

import numpy as np

from ulna.datasets.features import STATE, features_to_json
from ulna.policies.serving.protocol import BadRequest


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


class Linear:
    """A policy in numpy: actions are multiples of the state. `slow` holds it up, `fail` breaks it."""

    def __init__(self) -> None:
        feature = {"shape": [2], "dtype": "float32", "names": [], "units": []}
        self.metadata: dict[str, Any] = {"features": {"action": feature}, "checkpoint": "abc"}
        self.gate = threading.Event()
        self.gate.set()
        self.waiting = threading.Event()

    def infer(
        self, observation: Mapping[str, Any], seed: int | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        if "observation.state" not in observation:
            raise BadRequest("the observation lacks observation.state: the policy wants float32 (2,)")
        if observation.get("fail"):
            raise RuntimeError("a secret of the server")
        if observation.get("slow"):
            self.waiting.set()
            assert self.gate.wait(20)
        state = observation["observation.state"]
        if observation.get("odd"):
            return state, {"nfe": {1, 2}}
        return np.arange(1, 5, dtype=np.float32)[:, None] * state, {
            "nfe": 3,
            "seed": -1 if seed is None else seed,
        }
