"""Chunk decoders: from predicted action chunks to the one action of this control tick. numpy only, for the
control side.

At every tick: where `wants_chunk()`, `push` a chunk whose first action is for now; then `next` is the action.
Legend: n actions ahead, A action dimensions."""

from __future__ import annotations

from collections import deque
from typing import Protocol

import numpy as np

from .serving.metadata import Metadata


class Decoder(Protocol):
    def reset(self) -> None:
        """Forget all chunks: an episode begins."""
        ...

    def wants_chunk(self) -> bool:
        """Whether this tick's action needs a new chunk."""
        ...

    def push(self, chunk_nA: np.ndarray, execute: int | None = None) -> None:
        """Take a chunk whose first action is for this tick. execute: how many of its actions the policy wants
        used; None: as many as the decoder uses. More than the chunk has: all. ValueError for less than one."""
        ...

    def next(self) -> np.ndarray:
        """The action `(A,)` of this tick; advances by one. LookupError where no chunk has one."""
        ...


class SliceDecoder:
    """Receding horizon (Diffusion Policy): the first `n_action_steps` of a chunk, or as many as the policy
    wants executed, be it more or fewer; then a new one."""

    def __init__(self, n_action_steps: int) -> None:
        if n_action_steps < 1:
            raise ValueError(f"n_action_steps must be at least 1, not {n_action_steps}")
        self.n_action_steps = n_action_steps
        self.reset()

    def reset(self) -> None:
        self._remaining: deque[np.ndarray] = deque()

    def wants_chunk(self) -> bool:
        return not self._remaining

    def push(self, chunk_nA: np.ndarray, execute: int | None = None) -> None:
        self._remaining = deque(chunk_nA[: _count(execute, self.n_action_steps)])

    def next(self) -> np.ndarray:
        if not self._remaining:
            raise LookupError("the chunk is used up and no new one was given")
        return self._remaining.popleft()


class TemporalEnsemble:
    """ACT's ensemble: a chunk every tick; the action is the mean of all predictions made for now, weighted
    exp(-decay·i) with i = 0 the *oldest* (Zhao et al. 2023, m = 0.01). Actions beyond those that the policy wants
    executed have no part in the mean."""

    def __init__(self, decay: float = 0.01) -> None:
        self.decay = decay
        self.reset()

    def reset(self) -> None:
        self._chunks: deque[np.ndarray] = deque()  # oldest first, each cut to start at the coming tick
        self._fresh = False

    def wants_chunk(self) -> bool:
        return not self._fresh

    def push(self, chunk_nA: np.ndarray, execute: int | None = None) -> None:
        self._chunks.append(np.asarray(chunk_nA)[: _count(execute, len(chunk_nA))])
        self._fresh = True

    def next(self) -> np.ndarray:
        if not self._chunks:
            raise LookupError("no chunk predicts an action for now")
        predictions = np.stack([c[0] for c in self._chunks])
        weights = np.exp(-self.decay * np.arange(len(predictions)))
        self._chunks = deque(c[1:] for c in self._chunks if len(c) > 1)
        self._fresh = False
        return (weights[:, None] * predictions).sum(0) / weights.sum()


def _count(execute: int | None, usual: int) -> int:
    if execute is None:
        return usual
    if execute < 1:
        raise ValueError(f"the policy wants {execute} actions executed: a decision is worth at least one")
    return execute


def decoder_for(metadata: Metadata) -> Decoder:
    """The decoder that a served policy's metadata asks for; ValueError where there is none of that name."""
    if metadata.decoder == "ensemble":
        return TemporalEnsemble(metadata.ensemble_decay)
    if metadata.decoder != "slice":
        raise ValueError(f"no decoder is called {metadata.decoder!r}: there are slice and ensemble")
    return SliceDecoder(metadata.n_action_steps)
