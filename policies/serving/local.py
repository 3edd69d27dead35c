"""A checkpoint as a `ServedPolicy`: torch behind, dicts of arrays in front."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ...datasets.features import ACTION, PAST
from ..checkpoint import load_checkpoint, read_train
from ..hooks.hook import Hook
from ..hooks.inpaint import Inpaint
from .metadata import Metadata
from .protocol import BadRequest
from ..request import Request


class LocalPolicy:
    """Loads the checkpoint and warms it up with one inference, so that the first request is no slower than
    the others. CheckpointError where the folder holds none.

    sampling_steps: the recipe's by default. hooks: applied to every draw."""

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
        uses_past = recipe.inpaint_past or recipe.action_space == "delta"
        self.metadata = Metadata(
            recipe=recipe.name,
            features={k: self.policy.features[k] for k in (*self.policy.observation_keys, ACTION)},
            n_obs_steps=recipe.n_obs_steps,
            horizon=recipe.horizon,
            n_past_actions=recipe.n_past_actions,
            n_action_steps=recipe.n_action_steps,
            decoder=recipe.decoder,
            ensemble_decay=recipe.ensemble_decay,
            sampling_steps=self.sampling_steps,
            control_hz=read_train(folder).control_hz,
            checkpoint=self.policy.content_hash,
            needs_past=uses_past and recipe.n_past_actions > 0,
        )
        features = {k: self.policy.features[k] for k in self.policy.observation_keys}
        blank = {k: np.zeros(f.shape, f.dtype) for k, f in features.items()}
        past = np.zeros((recipe.n_past_actions, self.policy.action_dim), np.float32)
        self.infer(Request(blank, 0, past if uses_past else None).to_wire())

    def infer(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """`actions` `(metadata.n_actions_ahead, A)` float32, the first for now, `nfe` and `checkpoint`.

        `action.past` may be left out: the chunk is then drawn freely, and deltas are measured from the state.
        BadRequest names the key that does not fit, both sides shown; ProtocolError a request that no policy
        could read."""
        question = Request.from_wire(request)
        arrays = {k: self._observation(k, question.observation) for k in self.policy.observation_keys}
        batch = {k: torch.from_numpy(v)[None].to(self.policy.device) for k, v in arrays.items()}
        seed = secrets.randbits(48) if question.seed is None else question.seed
        hooks = self.hooks
        if self.metadata.needs_past and question.past is not None:
            batch[PAST] = torch.from_numpy(self._past(question.past))[None].to(self.policy.device)
            if self.policy.recipe.inpaint_past:
                hooks = (*hooks, Inpaint(self.policy.normalise_past(batch[PAST], batch)))
        draw = self.policy.sample(batch, seed, hooks, self.sampling_steps)
        ahead = draw.chunk[0, self.metadata.n_past_actions :]
        return {
            "actions": ahead.float().cpu().numpy(),
            "nfe": draw.nfe,
            "checkpoint": self.metadata.checkpoint,
        }

    def _past(self, value: Any) -> np.ndarray:
        shape = (self.metadata.n_past_actions, *self.policy.features[ACTION].shape)
        past = np.asarray(value)
        if past.shape != shape or past.dtype.kind != "f" or not np.isfinite(past).all():
            raise BadRequest(f"{PAST} is {past.dtype} {past.shape}, the policy wants finite float {shape}")
        return np.array(past, np.float32)

    def _observation(self, key: str, observation: Mapping[str, Any]) -> np.ndarray:
        """`(n_obs_steps, *shape)` of the feature `key`."""
        feature, n = self.policy.features[key], self.metadata.n_obs_steps
        wants = f"{feature.dtype} {feature.shape}, or ({n}, ...) with {n} observation steps"
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
