"""The encodings of all frames of a dataset, made once, for trainings whose encoder is frozen (as in
past-token prediction, Torne et al. 2025, arXiv 2505.09561).

A policy of 16 observations reads every frame 16 times in an epoch, and the encoder's work outweighs all
else; frozen, it gives the same every time. Legend: B batch, K links of a chain, T = n_obs_steps, D width."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from ...datasets.features import is_image
from ...datasets.reading.loader import Batch, WindowSource
from ..policy import ENCODING, Policy
from .error import TrainingError

FRAMES = 64  # that the encoder sees at once


class EncodedWindows:
    """Windows that hold what the policy's encoder makes of their observations, `ENCODING` `(B, T, D)` or,
    with several tokens of a frame, `(B, T, tokens, D)` (in chains with a second axis K), in the place of
    images.

    Every tick is encoded here, as when the policy acts: without dropout, crops at the centre. The encodings
    are kept in memory, as float32."""

    def __init__(self, windows: WindowSource, policy: Policy) -> None:
        self.windows = windows
        training, device = policy.training, policy.device
        policy.eval()
        parts = []
        with torch.no_grad():
            for first in range(0, windows.n_ticks, FRAMES):
                ticks = np.arange(first, min(first + FRAMES, windows.n_ticks))
                frames = windows.observations(ticks[:, None])
                observation = {k: torch.from_numpy(v).to(device) for k, v in frames.items()}
                parts.append(policy.encodings(observation)[:, 0].float().cpu().numpy())
        policy.train(training)
        self._encodings = np.concatenate(parts)

    def __len__(self) -> int:
        return len(self.windows)

    def batch(self, indices: np.ndarray, rng: np.random.Generator | None = None) -> Batch:
        encodings = self._encodings[self.windows.observed_ticks(indices)]
        return {**self.windows.vectors(indices, rng), ENCODING: encodings}

    def vectors(self, indices: np.ndarray, rng: np.random.Generator | None = None) -> Batch:
        return self.windows.vectors(indices, rng)

    def values(self, key: str) -> np.ndarray:
        return self.windows.values(key)

    @property
    def n_ticks(self) -> int:
        return self.windows.n_ticks

    def observed_ticks(self, indices: np.ndarray) -> np.ndarray:
        return self.windows.observed_ticks(indices)

    def observations(self, ticks: np.ndarray) -> Batch:
        return self.windows.observations(ticks)

    def left_out_sentence(self) -> str:
        return self.windows.left_out_sentence()


def require_cacheable(policy: Policy, augment: Sequence[str]) -> None:
    """TrainingError in one sentence unless every frame has one encoding, whenever it is read, and the
    encoding is all that is read of it."""
    images = [k for k in policy.observation_keys if is_image(k)]
    trained = [n for n, p in policy.encoder.named_parameters() if p.requires_grad]
    if not images:
        reason = "the policy sees no image, and reading vectors costs as little as reading encodings"
    elif trained:
        reason = f"encoder.{trained[0]} is trained: freeze the encoder (--training.freeze encoder.*)"
    elif augment:
        reason = f"--augment {','.join(augment)} changes a frame each time it is read: leave it out"
    elif policy.recipe.codec.observes(policy.features):
        reason = (
            f"with {type(policy.recipe.codec).__name__} the encoder also sees the last command, which is no "
            "part of a frame: use --codec Absolute or Relative"
        )
    elif pictured := [k for k in policy.condition_keys if any(k.endswith(f".{i}") for i in images)]:
        reason = f"{pictured[0]} is an image that the encoder must still see"
    elif any(c.needs().get("earlier") for c in policy.recipe.conditions):
        reason = "a condition must still see the images of earlier ticks"
    else:
        return
    raise TrainingError(f"the encodings cannot be kept (--training.cache-encodings): {reason}")
