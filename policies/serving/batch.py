"""A checkpoint that answers many questions with one inference, each as if it were asked alone.

Legend: B questions, n actions ahead, A action dimensions, M memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ..request import Request
from .local import LocalPolicy


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


class BatchPolicy:
    """Wraps a `LocalPolicy`: its checkpoint, device, steps and hooks. Requests are trusted."""

    def __init__(self, local: LocalPolicy) -> None:
        self.local, self.metadata = local, local.metadata

    def decide(self, requests: Sequence[Request]) -> Answers:
        """One answer to each, from its own seed. Either all or none have a past, and so with a memory."""
        policy, first = self.local.policy, requests[0]

        def stack(arrays: Sequence[Any]) -> torch.Tensor:
            return torch.from_numpy(np.stack(arrays)).to(policy.device)

        batch = Request(
            {k: stack([r.observation[k] for r in requests]) for k in first.observation},
            [int(r.seed) for r in requests],
            None if first.past is None else stack([r.past for r in requests]),
            None if first.task is None else [r.task for r in requests],
            memory=None if first.memory is None else stack([r.memory for r in requests]),
        )
        sampled = self.local.decide(batch, self.local.hooks, self.local.sampling_steps)
        return Answers(
            sampled.chunk[:, self.metadata.n_past_actions :].float().cpu().numpy(),
            sampled.nfe.numpy(),
            None if sampled.memory is None else sampled.memory.float().cpu().numpy(),
            None if sampled.execute is None else sampled.execute.cpu().numpy(),
        )
