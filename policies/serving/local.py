"""A checkpoint as a `ServedPolicy`: torch behind, dicts of arrays in front."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ...datasets.features import ACTION, PAST
from ..conditions.condition import feature_of, subgoals_of
from ..fast.decisions import decisions
from ..hashed import CheckpointError
from ..hooks.all import hooks_from_request
from ..hooks.hook import Hook
from ..opened import open_policy
from ..parts import recipe_to_json
from ..recipe import Recipe
from ..request import TASK, Request
from ..sampler import Sampled
from .fitting import finite, fit_conditions, fit_observation
from .metadata import Metadata
from .protocol import BadRequest
from .validations import FOLDER as VALIDATIONS
from .validations import read_validations

MOST_STEPS = 1000  # of the sampler, that a request may ask for


class NotFinite(BadRequest):
    """The policy's answer is not finite."""


class LocalPolicy:
    """Loads the checkpoint, or the policy of LeRobot that is named `lerobot:PATH`, and warms it up, so that
    the first request is no slower than the others. CheckpointError where the folder holds none.

    sampling_steps: the recipe's by default. hooks: applied to every draw; ValueError where one cannot steer
    this policy. change: gives the recipe other values of what counts when a policy runs: solver, steering,
    decoder, n_action_steps."""

    def __init__(
        self,
        folder: str | Path,
        device: str = "cpu",
        sampling_steps: int | None = None,
        hooks: Sequence[Hook] = (),
        change: Callable[[Recipe], Recipe] = lambda recipe: recipe,
    ) -> None:
        opened = open_policy(folder, device)
        self.policy = opened.policy
        self._folder, self._validated_ns = opened.folder, 0  # as of that change of its validations
        self.policy.recipe = change(self.policy.recipe)
        self.hooks, recipe = tuple(hooks), self.policy.recipe
        for hook in self.hooks:
            hook.require(recipe)
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
            control_hz=opened.control_hz,
            checkpoint=self.policy.content_hash,
            steering=tuple(_told(hook) for hook in self.hooks),
            needs_past=self.needs_past,
            conditions=self.policy.conditions_needed,
            optional=self.policy.conditions_optional,
            subgoals=subgoals_of(recipe.conditions),
        )
        self._shown: dict[str, np.ndarray] = {}
        self.decide = decisions(self.policy) if opened.is_ours else self.policy.sample
        try:
            self._warm_up()
        except NotFinite:
            raise CheckpointError(
                f"{folder} gives actions that are not finite for an observation of zeros: its weights or its "
                "statistics are broken; take another checkpoint"
            ) from None

    @property
    def metadata(self) -> Metadata:
        """With the validations that the checkpoint's folder holds by now, so each time it is looked at: those
        of the policy run as it is here, by the same hooks in as many steps. None where the weights are
        rounded, for they are of the checkpoint as it is."""
        if self._metadata.quantize:
            return self._metadata
        try:
            changed_ns = os.stat(self._folder / VALIDATIONS).st_mtime_ns
        except OSError:
            changed_ns = 0
        if changed_ns != self._validated_ns:
            found = read_validations(self._folder, self._metadata.checkpoint, self._ran_so)
            self._metadata, self._validated_ns = replace(self._metadata, validations=found), changed_ns
        return self._metadata

    @metadata.setter
    def metadata(self, value: Metadata) -> None:
        self._metadata = value

    def _ran_so(self, report: Mapping[str, Any]) -> bool:
        """Whether the report is of the policy run as it is here; older ones are of the recipe's own."""
        steps = report.get("sampling_steps") or self.policy.recipe.sampling_steps
        hooks = report.get("steering") or []
        return steps == self.sampling_steps and hooks == list(self._metadata.steering)

    def show(self, prompt: Mapping[str, np.ndarray]) -> None:
        """From now on requests need not show any demonstrations: those that do not are answered as if they
        showed `prompt`."""
        self._shown = dict(prompt)
        moved = {k: f for k, f in self._metadata.conditions.items() if k in prompt}
        rest = {k: f for k, f in self._metadata.conditions.items() if k not in prompt}
        optional = self._metadata.optional | moved
        self._metadata = replace(self._metadata, conditions=rest, optional=optional)

    def infer(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """`actions` `(metadata.n_actions_ahead, A)` float32, the first for now, `nfe` and `checkpoint`; and
        `execute` and `memory` where the policy has them.

        `action.past` may be left out: the chunk is then drawn freely, and deltas are measured from the state.
        BadRequest names the key that does not fit, both sides shown; ProtocolError a request that no policy
        could read."""
        question, hooks, steps = self.question(request)
        sampled = self.decide(stacked([question], self.policy.device), (*self.hooks, *hooks), steps)
        reply = self.replies(sampled)[0]
        if isinstance(reply, NotFinite):
            raise reply
        return reply

    def question(self, request: Mapping[str, Any]) -> tuple[Request, list[Hook], int]:
        """(what it asks, in arrays of this policy's, its hooks, sampler steps); raises as `infer` does."""
        question = Request.from_wire(request)
        policy = self.policy
        arrays = {k: self._observation(k, question.observation) for k in policy.observation_keys}
        arrays |= self._conditions(question.observation)
        hooks, steps = self.of_options(question.options)
        past = None
        asked = policy.recipe.n_past_actions > 0 and any(hook.needs_past for hook in hooks)
        if question.past is not None and (self.needs_past or asked):
            past = self._past(question.past)
        previous = None
        if question.previous is not None:
            previous = self._chunk("previous", question.previous)
        memory = self._memory(question.memory)
        if TASK in policy.conditions_needed and question.task is None:
            raise BadRequest(f"the request lacks {TASK}: the policy is told what to do in words")
        seed = secrets.randbits(48) if question.seed is None else question.seed
        known = replace(question, observation=arrays, seed=seed, past=past, previous=previous, memory=memory)
        return known, hooks, steps

    def replies(self, sampled: Sampled) -> list[dict[str, Any] | NotFinite]:
        """One for each row; where one's actions are not finite, the error."""
        chunks = sampled.chunk[:, self._metadata.n_past_actions :].float().cpu().numpy()
        replies: list[dict[str, Any] | NotFinite] = []
        for row, ahead in enumerate(chunks):
            if not np.isfinite(ahead).all():
                replies.append(
                    NotFinite(
                        "the policy gives no finite action for this observation: a value is far from all data"
                    )
                )
                continue
            reply: dict[str, Any] = {
                "actions": ahead,
                "nfe": int(sampled.nfe[row]),
                "checkpoint": self._metadata.checkpoint,
            }
            if sampled.execute is not None:
                reply["execute"] = int(sampled.execute[row])
            if flags := [name for name, rows in sampled.flags.items() if rows[row]]:
                reply["flags"] = flags
            if sampled.memory is not None:
                values = sampled.memory[row].float().cpu().numpy()
                reply["memory"] = {"checkpoint": self._metadata.checkpoint, "values": values}
            replies.append(reply)
        return replies

    def _warm_up(self) -> None:
        """Ask what an episode asks: on a GPU its first question, and one that goes on from another, each
        until it is fast (`decisions`)."""
        blank = self._blank()
        self.infer(blank.to_wire())
        if self.policy.device.type != "cuda":
            return
        for kind in (blank, replace(blank, past=None)):
            # the first question may be one that the policy refuses, as where deltas need the last command
            with contextlib.suppress(ValueError):
                reply = self.infer(kind.to_wire())
                more = replace(kind, memory=reply.get("memory"))
                for request in (kind, kind, more, more, more):
                    self.infer(request.to_wire())

    def _blank(self) -> Request:
        """A request that fits, of zeros."""
        p, recipe = self.policy, self.policy.recipe
        blank = {k: np.zeros(p.features[k].shape, p.features[k].dtype) for k in p.observation_keys}
        for key, feature in self._metadata.conditions.items():
            if key != TASK:
                blank[key] = np.zeros(feature.shape, feature.dtype)
        past = np.zeros((recipe.n_past_actions, *p.features[ACTION].shape), np.float32)
        return Request(blank, 0, past if self.needs_past else None, "warm up")

    def drawn(self, seed: int) -> Request:
        """A request that fits, of observations drawn within what the policy has seen."""
        rng, p, n = np.random.default_rng(seed), self.policy, self._metadata.n_obs_steps
        values = {}
        for key in (*p.observation_keys, *(k for k in p.condition_keys if k not in p.observation_keys)):
            if key in (TASK, *self._metadata.optional):
                continue
            feature = self._metadata.conditions.get(key) or p.features[key]
            shape = feature.shape if key in self._metadata.conditions else (n, *feature.shape)
            values[key] = self._draw(rng, feature_of(key), shape, np.dtype(feature.dtype))
        past = None
        if self.needs_past:
            shape = (p.recipe.n_past_actions, *p.features[ACTION].shape)
            past = self._draw(rng, ACTION, shape, np.dtype(np.float32))
        return Request(values, seed, past, "warm up")

    def _draw(
        self, rng: np.random.Generator, key: str, shape: tuple[int, ...], dtype: np.dtype[Any]
    ) -> np.ndarray:
        """Pictures of noise, vectors within the statistics of `key`, and 1 for what else there is."""
        stats = self.policy.stats.get(key)
        if dtype == np.uint8:
            return rng.integers(0, 256, shape, dtype=np.uint8)
        if dtype.kind != "f" or stats is None:
            return np.ones(shape, dtype)
        return rng.uniform(stats.min, np.maximum(stats.max, stats.min), shape).astype(dtype)

    def of_options(self, options: Mapping[str, Any]) -> tuple[list[Hook], int]:
        """(hooks, sampler steps) that one request asks for. BadRequest where they do not fit the policy."""
        steps = options.get("steps", self.sampling_steps)
        if type(steps) is not int or not 1 <= steps <= MOST_STEPS:
            raise BadRequest(f"options.steps is a whole number from 1 to {MOST_STEPS}, not {steps!r:.60}")
        if unknown := sorted(set(options) - {"steps", "steering"}):
            raise BadRequest(f"options has no {unknown[0]!r:.60}: there are steps and steering")
        try:
            self.policy.recipe.objective.path(steps)
            hooks = hooks_from_request(options.get("steering", []))
            for hook in hooks:
                hook.require(self.policy.recipe)
            return hooks, steps
        except ValueError as error:
            raise BadRequest(str(error)) from error

    def _past(self, value: Any) -> np.ndarray:
        shape = (self._metadata.n_past_actions, *self.policy.features[ACTION].shape)
        past = np.asarray(value)
        if past.shape != shape or past.dtype.kind != "f":
            raise BadRequest(f"{PAST} is {past.dtype} {past.shape}, the policy wants finite float {shape}")
        return finite(PAST, past, "float32")

    def _chunk(self, name: str, value: Any) -> np.ndarray:
        chunk, width = np.asarray(value), self.policy.features[ACTION].shape[0]
        if chunk.ndim != 2 or chunk.shape[1] != width or chunk.dtype.kind != "f":
            raise BadRequest(f"{name} is {chunk.dtype} {chunk.shape}, the policy wants float (n, {width})")
        return finite(name, chunk, "float32")

    def _memory(self, value: Any) -> np.ndarray | None:
        """`(M,)` of what the last reply gave. BadRequest for another checkpoint's, both sides shown."""
        width = self.policy.memory_width
        if value is None:
            return None
        if not isinstance(value, Mapping) or set(value) != {"checkpoint", "values"}:
            raise BadRequest("memory is what the last reply gave under this name, unchanged")
        if value["checkpoint"] != self._metadata.checkpoint:
            whose = value["checkpoint"][:8] if isinstance(value["checkpoint"], str) else "?"
            raise BadRequest(
                f"the memory is of the checkpoint {whose}, and this is "
                f"{self._metadata.checkpoint[:8]}: begin the episode anew, without a memory"
            )
        values = np.asarray(value["values"])
        if values.shape != (width,) or values.dtype.kind != "f":
            raise BadRequest(
                f"memory is {values.dtype} {values.shape}, the policy's is finite float ({width},)"
            )
        return finite("memory", values, "float32")

    def _conditions(self, observation: Mapping[str, Any]) -> dict[str, np.ndarray]:
        if self._shown and not any(k in observation for k in self._shown):
            observation = {**self._shown, **observation}
        return fit_conditions(observation, self._metadata.conditions, self._metadata.optional)

    def _observation(self, key: str, observation: Mapping[str, Any]) -> np.ndarray:
        return fit_observation(key, observation, self.policy.features[key], self._metadata.n_obs_steps)


def stacked(requests: Sequence[Request], device: torch.device) -> Request:
    """Questions that are alike as one of B rows, each drawn from its own seed."""
    first = requests[0]

    def stack(values: Sequence[Any]) -> torch.Tensor | None:
        return None if values[0] is None else torch.from_numpy(np.stack(values)).to(device)

    return Request(
        {k: stack([r.observation[k] for r in requests]) for k in first.observation},
        [int(r.seed) for r in requests] if len(requests) > 1 else first.seed,
        stack([r.past for r in requests]),
        None if first.task is None else [r.task for r in requests],
        stack([None if r.previous is None else np.float32(r.previous) for r in requests]),
        first.delay,
        stack([r.memory for r in requests]),
        first.options,
    )


def _told(hook: Hook) -> dict[str, Any]:
    """A hook in JSON, which knows no infinity, for whoever asks: of a path the last part, for where things
    lie here is nobody's business."""
    fields = json.loads(json.dumps(recipe_to_json(hook)), parse_constant=str)
    return {k: Path(v).name if isinstance(v, str) and "/" in v else v for k, v in fields.items()}
