"""The composition: encoder, context, backbone, objective and sampler as one module that trains and acts.

Legend: B batch, T = n_obs_steps, H horizon, A action dimensions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from ..datasets.features import ACTION, PAST, STATE, Features, image_keys, state_keys
from ..datasets.normalise import affine
from ..datasets.stats import Stats
from .contexts.context import Context
from .hooks.hook import Hook
from .recipe import NormaliseMode, Recipe
from .sampler import Draw, sample

RELATIVE = "action.relative"  # key of the statistics of chunks as differences
LAST = "observation.last_command"  # the newest action sent before now, as the encoder sees it


def state_of_action(features: Features, required: bool = True) -> list[int]:
    """For each action element the index of the state element of the same name, or of the same place where
    neither side has names. When there is none: ValueError if `required`, else an empty list."""
    state, action = features.get(STATE), features[ACTION]
    if state is not None and action.names and set(action.names) <= set(state.names):
        return [state.names.index(n) for n in action.names]
    if state is not None and not action.names and not state.names and state.shape == action.shape:
        return list(range(action.shape[0]))
    if not required:
        return []
    raise ValueError(
        "relative actions need every action to be an element of observation.state: "
        "use --action-space absolute"
    )


class Affine(nn.Module):
    """x·scale + offset and back, for one vector feature. Its numbers come from the statistics, not from
    training."""

    def __init__(self, scale: np.ndarray, offset: np.ndarray) -> None:
        super().__init__()
        self.scale: Tensor
        self.offset: Tensor
        self.register_buffer("scale", torch.as_tensor(scale, dtype=torch.float32), persistent=False)
        self.register_buffer("offset", torch.as_tensor(offset, dtype=torch.float32), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return x.float() * self.scale + self.offset

    def inverse(self, x: Tensor) -> Tensor:
        return (x - self.offset) / self.scale


class Policy(nn.Module):
    """A recipe made real for the features and statistics of one dataset.

    Observations are `{key: (B, T, *shape)}` in their own units (images uint8 HWC); actions `(B, H, A)` in
    theirs."""

    def __init__(self, recipe: Recipe, features: Features, stats: Mapping[str, Stats]) -> None:
        super().__init__()
        self.recipe, self.features, self.stats = recipe, dict(features), dict(stats)
        self.observation_keys = (*state_keys(features), *image_keys(features))
        if not self.observation_keys:
            raise ValueError("the features hold no observation: a policy needs a state or an image")
        self.action_dim = features[ACTION].shape[0]
        self.space, self.n_past = recipe.action_space, recipe.n_past_actions
        self.base = state_of_action(features, required=self.space == "relative")
        inputs = self.features | ({LAST: features[ACTION]} if self.space == "delta" else {})
        modes: dict[str, NormaliseMode] = dict.fromkeys(state_keys(inputs), recipe.normalise_state)
        modes[ACTION] = recipe.normalise_action
        stats_key = {LAST: ACTION, **({} if self.space == "absolute" else {ACTION: RELATIVE})}
        self.normalisers = nn.ModuleDict(
            {
                module_name(key): Affine(*affine(stats[stats_key.get(key, key)], mode))
                for key, mode in modes.items()
            }
        )
        self.encoder = recipe.encoder.build(inputs)
        self.net = recipe.backbone.build(
            self.action_dim,
            recipe.horizon,
            self.encoder.width,
            recipe.context.pooled_width(self.encoder.width, recipe.n_obs_steps),
        )
        self.content_hash = ""  # set by loading a checkpoint

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    def encode(self, observation: Mapping[str, Tensor]) -> Context:
        """What the backbone sees of an observation. Besides the observation keys it may hold `action.past`
        `(B, n_past_actions, A)`, of which `action_space` delta needs the newest."""
        inputs = {
            k: self.normaliser(k)(observation[k]) if module_name(k) in self.normalisers else observation[k]
            for k in self.observation_keys
        }
        if self.space == "delta":
            last = self.normaliser(LAST)(self._origin(observation))
            inputs[LAST] = last.expand(-1, self.recipe.n_obs_steps, -1)
        return self.recipe.context(self.encoder(inputs))

    def loss(self, batch: Mapping[str, Tensor], progress: float = 1.0) -> Tensor:
        """Scalar loss on windows: the observation keys, `action` `(B, H, A)` and `mask` `(B, H)` (True =
        real). progress: the share of the training that is done, 0 to 1."""
        mask = batch["mask"]
        if not self.recipe.mask_padding:
            mask = torch.ones_like(mask)
        action = self.normalise_action(batch[ACTION], batch)
        return self.recipe.objective.loss(self.net, action, self.encode(batch), mask)

    forward = loss  # so that wrappers for several GPUs, which intercept forward, see it

    def sample(
        self,
        observation: Mapping[str, Tensor],
        seed: int,
        hooks: Sequence[Hook] = (),
        steps: int | None = None,
    ) -> Draw:
        """One chunk per observation, `Draw.chunk` `(B, H, A)` in the action's units. Hooks work on normalised
        chunks: use `normalise_action` for what they are given. steps: the recipe's by default."""
        with torch.no_grad():
            context = self.encode(observation)
        shape = (len(context.pooled), self.recipe.horizon, self.action_dim)
        steps = steps or self.recipe.sampling_steps
        draw = sample(self.net, self.recipe.objective, context, shape, steps, seed, hooks)
        return Draw(self.normaliser(ACTION).inverse(draw.chunk) + self._origin(observation), draw.nfe)

    def normalise_action(self, action: Tensor, observation: Mapping[str, Tensor]) -> Tensor:
        """A chunk `(B, H, A)` in the action's units as the network sees it. observation: the one that the
        chunk answers."""
        return self.normaliser(ACTION)(action - self._origin(observation))

    def normalise_past(self, past_BdA: Tensor, observation: Mapping[str, Tensor]) -> Tensor:
        """The actions sent before now, in their units, as the network sees the first ones of a chunk: for
        `Inpaint`."""
        norm, d = self.normaliser(ACTION), past_BdA.shape[1]
        scale, offset = (v[:d] if v.ndim == 2 else v for v in (norm.scale, norm.offset))
        return (past_BdA - self._origin(observation)) * scale + offset

    def _origin(self, observation: Mapping[str, Tensor]) -> Tensor:
        """Where chunks are measured from, `(B, 1, A)`: zero, the present state, or the last command.

        The last command is `action.past`'s, or in a training batch the chunk's newest action before now.
        Where there is neither (at an episode's first tick) the state stands for it."""
        if self.space == "delta" and PAST in observation:
            return observation[PAST][:, -1:]
        if self.space == "delta" and ACTION in observation:
            return observation[ACTION][:, self.n_past - 1 : self.n_past]
        if self.space == "absolute":
            return torch.zeros(1, 1, self.action_dim, device=self.device)
        if not self.base:
            raise ValueError(f"the policy needs {PAST}: its actions are differences to the last command")
        return observation[STATE][:, -1:, self.base]

    def normaliser(self, key: str) -> Affine:
        module = self.normalisers[module_name(key)]
        assert isinstance(module, Affine)
        return module


def module_name(key: str) -> str:
    """Of the normaliser of the feature `key`: names of modules may hold no dots."""
    return key.replace(".", "/")
