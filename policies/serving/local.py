"""A checkpoint as a `ServedPolicy`: torch behind, dicts of arrays in front."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ...datasets.features import ACTION, PAST
from ..checkpoint import load_checkpoint, read_train
from ..hooks.all import hooks_from_request
from ..hooks.hook import Hook
from ..recipe import Recipe
from ..request import TASK, Request
from .metadata import Metadata
from .protocol import BadRequest

MOST_STEPS = 1000  # of the sampler, that a request may ask for


class LocalPolicy:
    """Loads the checkpoint and warms it up with one inference, so that the first request is no slower than
    the others. CheckpointError where the folder holds none.

    sampling_steps: the recipe's by default. hooks: applied to every draw. change: gives
    the recipe other values of what counts when a policy runs: solver, steering, decoder, n_action_steps."""

    def __init__(
        self,
        folder: str | Path,
        device: str = "cpu",
        sampling_steps: int | None = None,
        hooks: Sequence[Hook] = (),
        change: Callable[[Recipe], Recipe] = lambda recipe: recipe,
    ) -> None:
        self.policy = load_checkpoint(folder, device)
        self.policy.recipe = change(self.policy.recipe)
        self.hooks, recipe = tuple(hooks), self.policy.recipe
        self.sampling_steps = sampling_steps or recipe.sampling_steps
        self.needs_past = recipe.n_past_actions > 0 and (
            recipe.needs_past or any(hook.needs_past for hook in self.hooks)
        )
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
            needs_past=self.needs_past,
        )
        self.infer(self._blank().to_wire())

    def infer(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """`actions` `(metadata.n_actions_ahead, A)` float32, the first for now, `nfe` and `checkpoint`; and
        `execute` and `memory` where the policy has them.

        `action.past` may be left out: the chunk is then drawn freely, and deltas are measured from the state.
        BadRequest names the key that does not fit, both sides shown; ProtocolError a request that no policy
        could read."""
        question = Request.from_wire(request)
        policy, device = self.policy, self.policy.device
        arrays = {k: self._observation(k, question.observation) for k in policy.observation_keys}
        arrays |= {k: self._condition(k, question.observation) for k in self._condition_arrays}
        batch: dict[str, Any] = {k: torch.from_numpy(v)[None].to(device) for k, v in arrays.items()}
        hooks, steps = self._options(question.options)
        past = None
        if self.needs_past and question.past is not None:
            past = torch.from_numpy(self._past(question.past))[None].to(device)
        previous = None
        if question.previous is not None:
            previous = torch.from_numpy(self._chunk("previous", question.previous))[None].to(device)
        memory = self._memory(question.memory)
        if TASK in policy.condition_keys and question.task is None:
            raise BadRequest(f"the request lacks {TASK}: the policy is told what to do in words")
        sampled = policy.sample(
            Request(
                batch,
                secrets.randbits(48) if question.seed is None else question.seed,
                past,
                None if question.task is None else [question.task],
                previous,
                question.delay,
                memory,
                question.options,
            ),
            (*self.hooks, *hooks),
            steps,
        )
        ahead = sampled.chunk[0, self.metadata.n_past_actions :]
        reply: dict[str, Any] = {
            "actions": ahead.float().cpu().numpy(),
            "nfe": int(sampled.nfe[0]),
            "checkpoint": self.metadata.checkpoint,
        }
        if sampled.execute is not None:
            reply["execute"] = int(sampled.execute[0])
        if sampled.memory is not None:
            values = sampled.memory[0].float().cpu().numpy()
            reply["memory"] = {"checkpoint": self.metadata.checkpoint, "values": values}
        return reply

    @property
    def _condition_arrays(self) -> tuple[str, ...]:
        return tuple(k for k in self.policy.condition_keys if k != TASK)

    def _blank(self) -> Request:
        """A request that fits, of zeros."""
        p, recipe = self.policy, self.policy.recipe
        blank = {k: np.zeros(p.features[k].shape, p.features[k].dtype) for k in p.observation_keys}
        for key in self._condition_arrays:
            feature = p.features[feature_of(key)]
            blank[key] = np.zeros(self._condition_shape(key, feature.shape), feature.dtype)
        past = np.zeros((recipe.n_past_actions, *p.features[ACTION].shape), np.float32)
        return Request(blank, 0, past if self.needs_past else None, "warm up")

    def _options(self, options: Mapping[str, Any]) -> tuple[list[Hook], int]:
        """(hooks, sampler steps) of one request."""
        steps = options.get("steps", self.sampling_steps)
        if type(steps) is not int or not 1 <= steps <= MOST_STEPS:
            raise BadRequest(f"options.steps is a whole number from 1 to {MOST_STEPS}, not {steps!r:.60}")
        if unknown := sorted(set(options) - {"steps", "steering"}):
            raise BadRequest(f"options has no {unknown[0]!r:.60}: there are steps and steering")
        try:
            self.policy.recipe.objective.path(steps)
            return hooks_from_request(options.get("steering", [])), steps
        except ValueError as error:
            raise BadRequest(str(error)) from error

    def _past(self, value: Any) -> np.ndarray:
        shape = (self.metadata.n_past_actions, *self.policy.features[ACTION].shape)
        past = np.asarray(value)
        if past.shape != shape or past.dtype.kind != "f" or not np.isfinite(past).all():
            raise BadRequest(f"{PAST} is {past.dtype} {past.shape}, the policy wants finite float {shape}")
        return np.array(past, np.float32)

    def _chunk(self, name: str, value: Any) -> np.ndarray:
        chunk, width = np.asarray(value), self.policy.features[ACTION].shape[0]
        if chunk.ndim != 2 or chunk.shape[1] != width or chunk.dtype.kind != "f":
            raise BadRequest(f"{name} is {chunk.dtype} {chunk.shape}, the policy wants float (n, {width})")
        if not np.isfinite(chunk).all():
            raise BadRequest(f"{name} holds a value that is not finite")
        return np.array(chunk, np.float32)

    def _memory(self, value: Any) -> torch.Tensor | None:
        """`(1, M)` of what the last reply gave. BadRequest for one of another checkpoint,
        both sides shown."""
        width = self.policy.context_net.memory_width
        if value is None:
            return None
        if not isinstance(value, Mapping) or set(value) != {"checkpoint", "values"}:
            raise BadRequest("memory is what the last reply gave under this name, unchanged")
        if value["checkpoint"] != self.metadata.checkpoint:
            raise BadRequest(
                f"the memory is of the checkpoint {str(value['checkpoint'])[:8]}, and this is "
                f"{self.metadata.checkpoint[:8]}: begin the episode anew, without a memory"
            )
        values = np.asarray(value["values"])
        if values.shape != (width,) or values.dtype.kind != "f" or not np.isfinite(values).all():
            raise BadRequest(
                f"memory is {values.dtype} {values.shape}, the policy's is finite float ({width},)"
            )
        return torch.from_numpy(np.array(values, np.float32))[None].to(self.policy.device)

    def _condition_shape(self, key: str, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Of one condition array: a label or goal has the feature's shape; of prompts there are P episodes of
        L ticks."""
        for part in self.policy.recipe.conditions:
            if key.startswith("prompt.") and key in part.keys(self.policy.features):
                needs = part.needs()
                return (needs["prompts"], needs["prompt_length"], *shape)
        return shape

    def _condition(self, key: str, observation: Mapping[str, Any]) -> np.ndarray:
        feature = self.policy.features[feature_of(key)]
        shape = self._condition_shape(key, feature.shape)
        wants = f"{feature.dtype} {shape}"
        if key not in observation:
            raise BadRequest(f"the request lacks {key}: the policy wants {wants}")
        return _fitting(key, observation[key], shape, feature.dtype, wants)

    def _observation(self, key: str, observation: Mapping[str, Any]) -> np.ndarray:
        """`(n_obs_steps, *shape)` of the feature `key`."""
        feature, n = self.policy.features[key], self.metadata.n_obs_steps
        wants = f"{feature.dtype} {feature.shape}, or ({n}, ...) with {n} observation steps"
        if key not in observation:
            raise BadRequest(f"the observation lacks {key}: the policy wants {wants}")
        value = _array(key, observation[key], wants)
        if value.shape == feature.shape:
            value = np.repeat(value[None], n, axis=0)
        return _fitting(key, value, (n, *feature.shape), feature.dtype, wants)


def feature_of(key: str) -> str:
    """The feature that a condition's key is about: `goal.observation.state` is about observation.state."""
    for prefix in ("goal.", "prompt."):
        if key.startswith(prefix):
            return key.removeprefix(prefix)
    return key


def _array(key: str, value: Any, wants: str) -> np.ndarray:
    try:
        return np.asarray(value)
    except ValueError:
        raise BadRequest(f"{key} is not an array: the policy wants {wants}") from None


def _fitting(key: str, value: Any, shape: tuple[int, ...], dtype: str, wants: str) -> np.ndarray:
    """A copy as `dtype` (decoded arrays are read-only views)."""
    array = _array(key, value, wants)
    if array.shape != shape or not np.can_cast(array.dtype, dtype, "same_kind"):
        raise BadRequest(f"{key} is {array.dtype} {array.shape}, the policy wants {wants}")
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise BadRequest(f"{key} holds a value that is not finite")
    return np.array(array, dtype=dtype)
