"""A checkpoint as something to serve: torch behind, dicts of arrays in front (`ServedPolicy` in
`protocol`)."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ...datasets.features import ACTION, features_to_json
from ..checkpoint import load_checkpoint, read_train
from ..hooks.hook import Hook, Inpaint
from ..policy import PAST
from .protocol import BadRequest


class LocalPolicy:
    """Loads the checkpoint and warms it up with one inference, so that the first request is no slower than
    others.

    metadata: JSON types only; what a client needs to feed the policy and to execute its chunks.
    """

    def __init__(
        self,
        folder: str | Path,
        device: str = "cpu",
        sampling_steps: int | None = None,
        hooks: Sequence[Hook] = (),
    ) -> None:
        self.policy = load_checkpoint(folder, device)
        self.hooks, recipe = hooks, self.policy.recipe
        self.sampling_steps = sampling_steps or recipe.sampling_steps
        knows_past = recipe.inpaint_past or recipe.action_space == "delta"
        train = read_train(folder)
        used = (*self.policy.observation_keys, ACTION)
        self.metadata: dict[str, Any] = {
            "recipe": recipe.name,
            "features": features_to_json({k: self.policy.features[k] for k in used}),
            "n_obs_steps": recipe.n_obs_steps,
            "horizon": recipe.horizon - recipe.n_past_actions,
            "n_past_actions": recipe.n_past_actions if knows_past else 0,
            "n_action_steps": recipe.n_action_steps,
            "decoder": recipe.decoder,
            "ensemble_decay": recipe.ensemble_decay,
            "sampling_steps": self.sampling_steps,
            "control_hz": train.get("fps"),
            "checkpoint": self.policy.content_hash,
        }
        blank = {
            k: np.zeros(f.shape, f.dtype)
            for k in self.policy.observation_keys
            for f in [self.policy.features[k]]
        }
        if knows_past:
            blank[PAST] = np.zeros((recipe.n_past_actions, self.policy.action_dim), np.float32)
        self.infer(blank, seed=0)

    def infer(
        self, observation: Mapping[str, Any], seed: int | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Actions `(horizon ahead, A)` float32, the first for now, and what it took.

        Each observation key is `(n_obs_steps, *shape)`, oldest first, or one frame `(*shape)`, which then
        stands for all of them. `action.past` `(n_past_actions, A)`, what was sent before now, may come with
        them. Without a seed the draw is random. BadRequest names the key that does not fit, both sides shown.
        """
        batch = {
            k: torch.from_numpy(self._frames(k, observation))[None] for k in self.policy.observation_keys
        }
        batch = {k: v.to(self.policy.device) for k, v in batch.items()}
        seed = secrets.randbits(48) if seed is None else seed
        hooks = self.hooks
        if self.metadata["n_past_actions"] and PAST in observation:
            batch[PAST] = torch.from_numpy(self._past(observation[PAST]))[None].to(self.policy.device)
            if self.policy.recipe.inpaint_past:
                hooks = (*hooks, Inpaint(self.policy.normalise_past(batch[PAST], batch)))
        drawn = self.policy.sample(batch, seed, hooks, self.sampling_steps)
        ahead = drawn.chunk[0, self.policy.recipe.n_past_actions :]
        return ahead.float().cpu().numpy(), {"nfe": drawn.nfe, "checkpoint": self.policy.content_hash}

    def _past(self, value: Any) -> np.ndarray:
        want = (self.policy.recipe.n_past_actions, *self.policy.features[ACTION].shape)
        sent = np.asarray(value)
        if sent.shape != want or sent.dtype.kind != "f" or not np.isfinite(sent).all():
            raise BadRequest(f"{PAST} is {sent.dtype} {sent.shape}, the policy wants finite float {want}")
        return np.array(sent, np.float32)

    def _frames(self, key: str, observation: Mapping[str, Any]) -> np.ndarray:
        feature, n = self.policy.features[key], self.policy.recipe.n_obs_steps
        wants = f"{feature.dtype} {feature.shape}, or ({n}, ...) with {n} frames"
        if key not in observation:
            raise BadRequest(f"the observation lacks {key}: the policy wants {wants}")
        try:
            value = np.asarray(observation[key])
        except ValueError:
            raise BadRequest(f"{key} is not an array: the policy wants {wants}") from None
        if value.shape == feature.shape:
            value = np.repeat(value[None], n, axis=0)
        if value.shape != (n, *feature.shape) or not np.can_cast(value.dtype, feature.dtype, "same_kind"):
            raise BadRequest(f"{key} is {value.dtype} {value.shape}, the policy wants {wants}")
        if value.dtype.kind == "f" and not np.isfinite(value).all():
            raise BadRequest(f"{key} holds a value that is not finite")
        return np.array(value, dtype=feature.dtype)  # a copy: decoded arrays are read-only views
