"""A checkpoint that answers many questions with one inference, each as if it were asked alone.

Legend: B questions, n actions ahead, A action dimensions, M memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..request import Request
from .local import LocalPolicy, stacked
from .metadata import Metadata
from .protocol import BadRequest, ProtocolError


@dataclass(frozen=True)
class Answers:
    """To B questions."""

    chunks: np.ndarray
    """`(B, n, A)` float32, the first action for now."""
    nfe: np.ndarray
    """`(B,)` int, network evaluations spent on each."""
    memory: np.ndarray | None = None
    """`(B, M)`, to be given back with the next question of the episode."""
    execute: np.ndarray | None = None
    """`(B,)` int, how many actions to use before asking again; None: as the recipe says."""
    wrote: np.ndarray | None = None
    """`(B,)` bool, whether the decision wrote to the memory; None where every one does, or none."""


class BatchPolicy:
    """Wraps a `LocalPolicy`: its checkpoint, device, steps and hooks. A `ServedPolicy`."""

    def __init__(self, local: LocalPolicy) -> None:
        self.local = local

    @property
    def metadata(self) -> Metadata:
        return self.local.metadata

    def decide(self, requests: Sequence[Request]) -> Answers:
        """One answer to each, from its own seed. They are trusted, of one `Request.kind`, and all have the
        options of the first. BadRequest where the options do not fit."""
        policy = self.local.policy
        hooks, steps = self.local.of_options(requests[0].options)
        sampled = self.local.decide(stacked(requests, policy.device), (*self.local.hooks, *hooks), steps)
        return Answers(
            sampled.chunk[:, policy.recipe.n_past_actions :].float().cpu().numpy(),
            sampled.nfe.numpy(),
            None if sampled.memory is None else sampled.memory.float().cpu().numpy(),
            None if sampled.execute is None else sampled.execute.cpu().numpy(),
            None if sampled.wrote is None else sampled.wrote.cpu().numpy(),
        )

    def infer(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """As `LocalPolicy.infer`."""
        return self.local.infer(request)

    def infer_many(
        self, requests: Sequence[Mapping[str, Any]]
    ) -> list[dict[str, Any] | BadRequest | ProtocolError]:
        """To each request what `infer` gives or raises for it alone, by one inference. They have the same
        keys, shapes and options; ValueError where they have not."""
        results: list[Any] = []
        for request in requests:
            try:
                results.append(self.local.question(request))
            except (BadRequest, ProtocolError) as error:
                results.append(error)
        good = [r for r in results if isinstance(r, tuple)]
        if good:
            questions, hooks, steps = [q for q, _, _ in good], good[0][1], good[0][2]
            policy = self.local.policy
            sampled = self.local.decide(stacked(questions, policy.device), (*self.local.hooks, *hooks), steps)
            replies = iter(self.local.replies(sampled))
            results = [next(replies) if isinstance(r, tuple) else r for r in results]
        return results
