"""What a policy's side of one episode remembers: the observations it has seen, the actions sent, and what is
left of its chunk. The agent of one robot has one, a batch of running episodes one a row, so that both ask the
same questions."""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Mapping
from typing import Any

import numpy as np

from ..datasets.features import ACTION
from ..policies.decoders import decoder_for
from ..policies.request import TASK, Request
from ..policies.serving.metadata import Metadata


class Session:
    """Every tick: `request`, where there is one `answer` it, `next`, and `sent`. Larger camera images are
    resized to the policy's by area. ValueError for a decoder that does not exist.

    goal: what the policy's conditions need beside the task and is not observed, by key."""

    def __init__(self, metadata: Metadata, goal: Mapping[str, np.ndarray] | None = None) -> None:
        self.metadata, self._goal = metadata, dict(goal or {})
        self._observed_goal = [k for k in metadata.conditions if k != TASK and k not in self._goal]
        self._features = {k: f for k, f in metadata.features.items() if k != ACTION}
        self._decoder = decoder_for(metadata)
        self.reset("", 0)

    def reset(self, task: str, seed: int) -> None:
        """An episode begins: task is its instruction, and seed that of all its decisions."""
        self.task, self.seed, self.decisions = task, seed, 0
        self._history: deque[dict[str, np.ndarray]] = deque(maxlen=self.metadata.n_obs_steps)
        self._past: deque[np.ndarray] = deque(maxlen=self.metadata.n_past_actions)
        self._memory: Any = None
        self._left: np.ndarray | None = None  # of the last answer's actions, the first for now
        self._decoder.reset()

    def request(self, values: Mapping[str, np.ndarray]) -> Request | None:
        """Take the observation of this tick, by key. What to ask the policy, where a new chunk is needed: its
        observations are `(n_obs_steps, *shape)`."""
        self._see(values)
        if not self._decoder.wants_chunk():
            return None
        known = {k: np.stack([step[k] for step in self._history]) for k in self._features}
        known |= {k: values[k] for k in self._observed_goal} | self._goal
        left = self._left if self._left is not None and len(self._left) else None
        seed, past = self._decision_seed(), self._complete_past()
        return Request(known, seed, past, self.task, left, memory=self._memory)

    def answer(self, chunk_nA: np.ndarray, memory: Any = None, execute: int | None = None) -> None:
        """The policy's chunk; its first action is for this tick. memory: what it will want back. execute: use
        no more of its actions than this before it is asked again."""
        self.decisions += 1
        self._memory, self._left = memory, np.asarray(chunk_nA)
        self._decoder.push(self._left, execute)

    def next(self) -> np.ndarray:
        """The action `(A,)` of this tick."""
        if self._left is not None:
            self._left = self._left[1:]
        return self._decoder.next()

    def watch(self, values: Mapping[str, np.ndarray]) -> None:
        """Take the observation of a tick in which somebody else acts. What is left of the chunk is
        dropped."""
        self._see(values)
        self._left = None
        self._decoder.reset()

    def sent(self, action: np.ndarray) -> None:
        """What the robot made of the last action, limits applied: the past that the policy learned from."""
        self._past.append(action)

    def _see(self, values: Mapping[str, np.ndarray]) -> None:
        latest = {k: _at_size(values[k], f.shape) for k, f in self._features.items()}
        # before the first tick the world stood still
        while len(self._history) < self.metadata.n_obs_steps - 1:
            self._history.append(latest)
        self._history.append(latest)

    def _complete_past(self) -> np.ndarray | None:
        """`Request.past`, `(n_past_actions, A)` float32; None where the policy does not need it, or where the
        episode has sent fewer actions so far."""
        n = self.metadata.n_past_actions
        if not self.metadata.needs_past or len(self._past) < n:
            return None
        return np.stack(self._past).astype(np.float32)

    def _decision_seed(self) -> int:
        digest = hashlib.sha256(f"{self.seed} {self.decisions}".encode()).digest()
        return int.from_bytes(digest[:6], "big")


def _at_size(value: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    if value.ndim != 3 or value.shape == shape:
        return value
    import cv2

    return cv2.resize(value, (shape[1], shape[0]), interpolation=cv2.INTER_AREA)
