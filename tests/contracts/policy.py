"""Policies without a network, as a server serves them and as an agent asks them."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from contracts.vector_env import XY

from ulna.datasets.features import ACTION, PAST, STATE, Feature
from ulna.policies.request import Request
from ulna.policies.serving.metadata import Metadata
from ulna.policies.serving.protocol import BadRequest

if TYPE_CHECKING:
    from ulna.policies.serving.batch import Answers


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


POINT = {k: Feature((2,), "float32", XY.names, XY.units) for k in (STATE, ACTION)}


class Drawn:
    """A policy whose chunk is a function of all that it is told: history, past, task and seed. It moves
    towards zero. counts: it remembers how often it was asked, and says how much to execute by that. `asked`:
    how many rows each inference had."""

    def __init__(
        self, features: Mapping[str, Feature], decoder: str = "slice", past: int = 0, counts: bool = False
    ) -> None:
        self.counts = counts
        self.metadata = Metadata(
            features={k: features[k] for k in (STATE, ACTION)},
            n_obs_steps=3,
            horizon=6 + past,
            n_past_actions=past,
            n_action_steps=4,
            decoder=decoder,
            needs_past=past > 0,
        )
        self.asked: list[int] = []

    def infer(self, request: Mapping[str, Any]) -> dict[str, Any]:
        history, past = request[STATE], request.get(PAST)
        noise = np.random.default_rng([request["_rt"]["seed"], len(request["task"])]).normal(size=(6, 1))
        far = history.mean(0) if past is None else 0.9 * past[-1]
        reply = {"actions": (far * 0.8 + 0.02 * noise).astype(np.float32), "nfe": 3}
        if self.counts:
            count = 1 + request["_rt"].get("memory", 0)
            reply |= {"memory": count, "execute": 1 + count % 3}
        return reply

    def decide(self, requests: Sequence[Request]) -> Answers:
        from ulna.policies.serving.batch import Answers  # loads torch

        self.asked.append(len(requests))
        assert len({(r.past is None, r.memory is None) for r in requests}) == 1
        replies = [self.infer(r.to_wire()) for r in requests]
        chunks, nfe = np.stack([r["actions"] for r in replies]), np.full(len(requests), 3)
        if not self.counts:
            return Answers(chunks, nfe)
        memory, execute = ([r[k] for r in replies] for k in ("memory", "execute"))
        return Answers(chunks, nfe, np.array(memory), np.array(execute))
