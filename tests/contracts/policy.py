"""Policies without a network, as a server serves them and as an agent asks them."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ulna.datasets.features import ACTION, STATE, Feature
from ulna.policies.request import Request
from ulna.policies.serving.metadata import Metadata
from ulna.policies.serving.protocol import BadRequest


class Follow:
    """A policy without a network: it holds the newest state, so its chunk is right for a robot that rests."""

    def __init__(self, features: Mapping[str, Feature], n_obs_steps: int = 2) -> None:
        self.metadata = Metadata(
            recipe="follow",
            features=dict(features),
            n_obs_steps=n_obs_steps,
            horizon=8,
            n_action_steps=4,
            checkpoint="f" * 64,
        )
        self.requests: list[Request] = []
        self.die_after = 10**9

    def infer(self, request: Mapping[str, Any]) -> dict[str, Any]:
        self.requests.append(Request.from_wire(request))
        if len(self.requests) > self.die_after:
            raise RuntimeError("died")
        return {"actions": np.repeat(request[STATE][-1:], 8, 0), "nfe": 1}


class Linear:
    """A policy in numpy: actions are multiples of the state. `slow` holds it up, `fail` breaks it."""

    def __init__(self) -> None:
        features = {ACTION: Feature((2,), "float32")}
        self.metadata = Metadata(features=features, horizon=4, n_action_steps=4, checkpoint="abc")
        self.gate = threading.Event()
        self.gate.set()
        self.waiting = threading.Event()

    def infer(self, request: Mapping[str, Any]) -> dict[str, Any]:
        if STATE not in request:
            raise BadRequest("the observation lacks observation.state: the policy wants float32 (2,)")
        if request.get("fail"):
            raise RuntimeError("a secret of the server")
        if request.get("slow"):
            self.waiting.set()
            assert self.gate.wait(20)
        state = request[STATE]
        if request.get("odd"):
            return {"actions": state, "nfe": {1, 2}}
        seed = Request.from_wire(request).seed
        actions = np.arange(1, 5, dtype=np.float32)[:, None] * state
        return {"actions": actions, "nfe": 3, "seed": -1 if seed is None else seed}


class Batched:
    """A policy that answers any number of requests in the same time: the state, once. It keeps what it
    computed together, by the requests' `who`. Closed, its `gate` holds it up."""

    def __init__(self, seconds: float = 0.0, checkpoint: str = "b" * 64) -> None:
        features = {ACTION: Feature((2,), "float32")}
        self.metadata = Metadata(features=features, horizon=1, checkpoint=checkpoint)
        self.seconds, self.batches = seconds, list[list[Any]]()
        self.gate, self.busy = threading.Event(), threading.Event()
        self.gate.set()

    def infer(self, request: Mapping[str, Any]) -> dict[str, Any]:
        result = self.infer_many([request])[0]
        if isinstance(result, BadRequest):
            raise result
        return result

    def infer_many(self, requests: Sequence[Mapping[str, Any]]) -> list[Any]:
        self.batches.append([r.get("who") for r in requests])
        self.busy.set()
        assert self.gate.wait(20)
        time.sleep(self.seconds)
        if any(r.get("fail") for r in requests):
            raise RuntimeError("a secret of the server")
        wrong = BadRequest("the observation lacks observation.state")
        return [
            {"actions": r[STATE][None], "nfe": 1, "checkpoint": self.metadata.checkpoint}
            if STATE in r
            else wrong
            for r in requests
        ]
