"""A checkpoint that answers many questions with one inference, each as if it were asked alone.

Legend: B questions, n actions ahead, A action dimensions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ...datasets.features import PAST
from ..hooks.hook import Hook, Start
from ..hooks.inpaint import Inpaint
from ..objectives.objective import Objective, Path
from ..sampler import stream
from .local import LocalPolicy


@dataclass(frozen=True)
class RowNoise(Hook):
    """Start every row from the noise of its own seed, whatever rows stand beside it.

    A sampler that draws more noise at its steps (DDPM) still shares that among the rows."""

    objective: Objective
    seeds: tuple[int, ...]

    def initialise(self, start: Start, path: Path, rng: torch.Generator) -> Start:
        shape, device = start.noise.shape[1:], start.noise.device
        rows = [
            torch.randn((1, *shape), generator=stream(s, "sampler", device), device=device)
            for s in self.seeds
        ]
        noise = torch.cat(rows)
        return Start(self.objective.start(noise), noise)


class BatchPolicy:
    """Wraps a `LocalPolicy`: its checkpoint, device, steps and hooks."""

    def __init__(self, local: LocalPolicy) -> None:
        self.local, self.metadata = local, local.metadata

    def decide(self, observation: Mapping[str, np.ndarray], seeds: Sequence[int]) -> tuple[np.ndarray, int]:
        """Chunks `(B, n, A)` float32, their first actions for now, and the network evaluations spent on each.

        observation: `(B, n_obs_steps, *shape)` by key, and where the policy needs them, `action.past`
        `(B, n_past_actions, A)`. seeds: of the B draws."""
        policy, hooks = self.local.policy, tuple(self.local.hooks)
        keys = (*policy.observation_keys, *([PAST] if PAST in observation else []))
        batch: dict[str, Tensor] = {
            k: torch.from_numpy(np.ascontiguousarray(observation[k])).to(policy.device) for k in keys
        }
        if PAST in batch and policy.recipe.inpaint_past:
            hooks = (*hooks, Inpaint(policy.normalise_past(batch[PAST], batch)))
        hooks = (RowNoise(policy.recipe.objective, tuple(seeds)), *hooks)
        draw = policy.sample(batch, int(seeds[0]), hooks, self.local.sampling_steps)
        return draw.chunk[:, self.metadata.n_past_actions :].float().cpu().numpy(), draw.nfe
