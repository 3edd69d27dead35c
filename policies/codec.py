"""Action codecs: what an action is to the network. Targets as they are, differences to the state, or
differences to the last command; normalised.

Legend: B batch, T = n_obs_steps, H horizon, d actions before now, A action dimensions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from ..datasets.features import ACTION, PAST, STATE, Feature, Features
from ..datasets.normalise import Mode as NormaliseMode
from ..datasets.normalise import affine, clip
from ..datasets.stats import Stats, vector_stats
from ..datasets.units import resolutions

RELATIVE = "action.relative"  # key of the statistics of chunks as differences
LAST = "observation.last_command"  # the newest action sent before now, as the encoder sees it


class Affine(nn.Module):
    """x·scale + offset and back, for one vector feature. Its numbers come from the statistics, not from
    training. clip: how far from 0 the result is left as it is; what lies beyond is drawn in smoothly, to at
    most twice that, so that a joint that never moved in training cannot drown the others."""

    def __init__(self, scale: np.ndarray, offset: np.ndarray, clip: float | None = None) -> None:
        super().__init__()
        self.clip = clip
        self.scale: Tensor
        self.offset: Tensor
        self.register_buffer("scale", torch.as_tensor(scale, dtype=torch.float32), persistent=False)
        self.register_buffer("offset", torch.as_tensor(offset, dtype=torch.float32), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        y = x.float() * self.scale + self.offset
        if self.clip is None:
            return y
        drawn_in = y.sign() * self.clip * (1 + torch.tanh(y.abs() / self.clip - 1))
        return torch.where(y.abs() <= self.clip, y, drawn_in)

    def inverse(self, x: Tensor) -> Tensor:
        """Of what is not clipped."""
        return (x - self.offset) / self.scale


def input_normaliser(stats: Stats, normalise: NormaliseMode) -> Affine:
    """Of a vector that a network sees."""
    return Affine(*affine(stats, normalise), clip(stats))


class Codec(nn.Module):
    """What a codec part builds: actions normalised as differences to `origin`. `width` is A as the network
    sees it. An observation is a map of tensors; `action.past` `(B, d, A)` in it are the actions sent before
    now. state: for each action element the index of its element of the state, where there is one."""

    def __init__(self, stats: Stats, normalise: NormaliseMode, state: Sequence[int] = ()) -> None:
        super().__init__()
        self.width, self.state = stats.mean.shape[-1], list(state)
        self.joints: Tensor  # the same, where the state is: a list would be copied there at every use
        self.register_buffer("joints", torch.tensor(self.state, dtype=torch.long), persistent=False)
        self.affine = Affine(*affine(stats, normalise, target=True))

    def origin(self, observation: Mapping[str, Any]) -> Tensor | float:
        """Where chunks are measured from, `(B, 1, A)`; ValueError where the observation does not say."""
        return 0.0

    def observe(self, observation: Mapping[str, Any], n_obs_steps: int) -> dict[str, Tensor]:
        """What the encoder sees because of the codec, `(B, T, W)` by key."""
        return {}

    def losses(self, action: Tensor, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """What a codec that learns adds to the training's loss: scalars by name, weighted. action, batch: as
        windows hold them."""
        return {}

    def encode(self, action: Tensor, observation: Mapping[str, Any]) -> Tensor:
        """A chunk `(B, H, A)` in the action's units as the network sees it."""
        return self.affine(action - self.origin(observation))

    def decode(self, x: Tensor, observation: Mapping[str, Any]) -> Tensor:
        """The inverse."""
        return self.affine.inverse(x) + self.origin(observation)

    def present(self, observation: Mapping[str, Any]) -> Tensor | None:
        """Where the robot is now, as the network would see it in the first action of a chunk, `(B, A)`; None
        where the observation does not say."""
        if not self.state or STATE not in observation:
            return None
        return self.affine(observation[STATE][:, -1].index_select(-1, self.joints))

    def encode_past(self, past_BdA: Tensor, observation: Mapping[str, Any]) -> Tensor:
        """The actions sent before now as the network sees the first ones of a chunk."""
        d = past_BdA.shape[1]
        scale, offset = (v[:d] if v.ndim == 2 else v for v in (self.affine.scale, self.affine.offset))
        return (past_BdA - self.origin(observation)) * scale + offset


class ActionCodec(Protocol):
    """A frozen dataclass: how actions are coded. It may also have `needs(horizon)`: fields of
    `datasets.reading.spec.WindowSpec` that training needs for it."""

    @property
    def needs_past(self) -> bool:
        """Whether it must know the last command: the policy then has n_past_actions of at least 1."""
        ...

    def observes(self, features: Features) -> Features:
        """Features that the encoder sees beside the observations."""
        ...

    def fit(self, windows: Any, features: Features, n_past_actions: int) -> dict[str, Stats]:
        """The statistics that it needs beside those of the features, by key, from windows to train on
        (`datasets.reading.loader.WindowSource`)."""
        ...

    def build(self, features: Features, stats: Mapping[str, Stats], n_past_actions: int) -> Codec: ...


@dataclass(frozen=True)
class Absolute:
    """Actions as they are: targets."""

    normalise: NormaliseMode = "minmax"
    """Scale actions to [-1, 1] by their range (minmax) or by their 1 % and 99 % quantiles, to mean 0 and
    deviation 1 (meanstd), or not (none)."""

    @property
    def needs_past(self) -> bool:
        return False

    def observes(self, features: Features) -> Features:
        return {}

    def fit(self, windows: Any, features: Features, n_past_actions: int) -> dict[str, Stats]:
        return {}

    def build(self, features: Features, stats: Mapping[str, Stats], n_past_actions: int) -> Codec:
        return Codec(stats[ACTION], self.normalise, state_of_action(features, required=False))


@dataclass(frozen=True)
class Relative:
    """Differences to the state now, joint by joint (openpi's delta actions, UMI's relative trajectory). Each
    step of the horizon has its own scale: near ones differ little from the state, far ones much, and with one
    scale for all the near ones would drown in what the network leaves of the noise."""

    normalise: NormaliseMode = "quantile"
    """Scale differences to [-1, 1] by their range (minmax) or by their 1 % and 99 % quantiles, to mean 0 and
    deviation 1 (meanstd), or not (none)."""

    @property
    def needs_past(self) -> bool:
        return False

    def observes(self, features: Features) -> Features:
        return {}

    def fit(self, windows: Any, features: Features, n_past_actions: int) -> dict[str, Stats]:
        batch = some_windows(windows)
        return {
            RELATIVE: difference_stats(
                batch[ACTION], batch[STATE][:, -1:, state_of_action(features)], features[ACTION]
            )
        }

    def build(self, features: Features, stats: Mapping[str, Stats], n_past_actions: int) -> Codec:
        return _RelativeCodec(stats[RELATIVE], self.normalise, state_of_action(features))


class _RelativeCodec(Codec):
    def __init__(self, stats: Stats, normalise: NormaliseMode, base: list[int]) -> None:
        super().__init__(stats, normalise, base)

    def origin(self, observation: Mapping[str, Any]) -> Tensor:
        return observation[STATE][:, -1:].index_select(-1, self.joints)

    def present(self, observation: Mapping[str, Any]) -> Tensor | None:
        return _no_difference(self.affine, observation[STATE])


@dataclass(frozen=True)
class Delta:
    """Differences to the last command, which the policy then also sees: a command leads the state by what the
    arm lags and sags, and only the sender knows it. Needs n_past_actions of at least 1. Where the last
    command is not given, at an episode's first tick, the state stands for it."""

    normalise: NormaliseMode = "quantile"
    """Scale differences to [-1, 1] by their range (minmax) or by their 1 % and 99 % quantiles, to mean 0 and
    deviation 1 (meanstd), or not (none)."""
    normalise_last: NormaliseMode = "minmax"
    """The same of the last command, as the policy sees it."""

    @property
    def needs_past(self) -> bool:
        return True

    def observes(self, features: Features) -> Features:
        return {LAST: features[ACTION]}

    def fit(self, windows: Any, features: Features, n_past_actions: int) -> dict[str, Stats]:
        batch = some_windows(windows)
        chunk, sent = batch[ACTION], batch["mask"][:, n_past_actions - 1, None, None]
        origin = chunk[:, n_past_actions - 1 : n_past_actions]
        if base := state_of_action(features, required=False):
            origin = np.where(sent, origin, batch[STATE][:, -1:, base])
        return {RELATIVE: difference_stats(chunk, origin, features[ACTION])}

    def build(self, features: Features, stats: Mapping[str, Stats], n_past_actions: int) -> Codec:
        last = input_normaliser(stats[ACTION], self.normalise_last)
        base = state_of_action(features, required=False)
        return _DeltaCodec(stats[RELATIVE], self.normalise, last, base, n_past_actions)


class _DeltaCodec(Codec):
    def __init__(
        self, stats: Stats, normalise: NormaliseMode, last: Affine, base: list[int], n_past_actions: int
    ) -> None:
        super().__init__(stats, normalise, base)
        self.last, self.n_past = last, n_past_actions

    def origin(self, observation: Mapping[str, Any]) -> Tensor:
        if PAST in observation:
            return observation[PAST][:, -1:]
        # of a training batch the chunk's newest action before now
        last = observation[ACTION][:, self.n_past - 1 : self.n_past] if ACTION in observation else None
        if not self.state:
            if last is None:
                raise ValueError(f"the policy needs {PAST}: its actions are differences to the last command")
            return last
        state = observation[STATE][:, -1:].index_select(-1, self.joints)
        if last is None:
            return state
        # before an episode's first tick lies none, and what stands there is the very action to be learned
        return torch.where(observation["mask"][:, self.n_past - 1, None, None], last, state)

    def present(self, observation: Mapping[str, Any]) -> Tensor | None:
        """The last command, from which the chunk goes on."""
        return _no_difference(self.affine, self.origin(observation))

    def observe(self, observation: Mapping[str, Any], n_obs_steps: int) -> dict[str, Tensor]:
        return {LAST: self.last(self.origin(observation)).expand(-1, n_obs_steps, -1)}


@dataclass(frozen=True)
class Padded:
    """Another codec's actions with zeros after them, up to a fixed width, as the released
    vision-language-action models take every robot's. What the network gives there is drawn with the rest, and
    dropped."""

    inner: ActionCodec = Absolute("meanstd")
    """How the actions themselves are coded."""
    width: int = 32
    """Elements of an action as the network sees it; at least as many as the robot's."""

    @property
    def needs_past(self) -> bool:
        return self.inner.needs_past

    @property
    def normalise(self) -> NormaliseMode:
        """The inner codec's."""
        return getattr(self.inner, "normalise", "none")

    def observes(self, features: Features) -> Features:
        return self.inner.observes(features)

    def fit(self, windows: Any, features: Features, n_past_actions: int) -> dict[str, Stats]:
        return self.inner.fit(windows, features, n_past_actions)

    def build(self, features: Features, stats: Mapping[str, Stats], n_past_actions: int) -> Codec:
        inner = self.inner.build(features, stats, n_past_actions)
        if inner.width > self.width:
            raise ValueError(
                f"an action has {inner.width} elements, and the network is given {self.width}: set "
                f"--codec.width {inner.width} (published weights have 32)"
            )
        return _PaddedCodec(inner, self.width)


class _PaddedCodec(Codec):
    def __init__(self, inner: Codec, width: int) -> None:
        nn.Module.__init__(self)  # it has no statistics of its own
        self.inner, self.width, self.state = inner, width, inner.state

    def _padded(self, x: Tensor) -> Tensor:
        return nn.functional.pad(x, (0, self.width - x.shape[-1]))

    def origin(self, observation: Mapping[str, Any]) -> Tensor | float:
        return self.inner.origin(observation)

    def observe(self, observation: Mapping[str, Any], n_obs_steps: int) -> dict[str, Tensor]:
        return self.inner.observe(observation, n_obs_steps)

    def encode(self, action: Tensor, observation: Mapping[str, Any]) -> Tensor:
        return self._padded(self.inner.encode(action, observation))

    def decode(self, x: Tensor, observation: Mapping[str, Any]) -> Tensor:
        return self.inner.decode(x[..., : self.inner.width], observation)

    def present(self, observation: Mapping[str, Any]) -> Tensor | None:
        present = self.inner.present(observation)
        return None if present is None else self._padded(present)

    def encode_past(self, past_BdA: Tensor, observation: Mapping[str, Any]) -> Tensor:
        return self._padded(self.inner.encode_past(past_BdA, observation))


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
        "relative actions need every action to be an element of observation.state: use --codec Absolute"
    )


def _no_difference(affine: Affine, like: Tensor) -> Tensor:
    """`(B, A)`: 0 in the scale of a chunk's first action, for as many rows as `like` has."""
    offset = affine.offset if affine.offset.ndim == 1 else affine.offset[0]
    return offset.expand(len(like), -1)


def some_windows(windows: Any, most: int = 8192) -> dict[str, np.ndarray]:
    """Up to `most` evenly spaced windows, without their images; of chains those that lie within an
    episode."""
    links = int(np.prod(windows.vectors(np.zeros(1, np.int64))[ACTION].shape[:-2]))
    rows = np.unique(np.linspace(0, len(windows) - 1, max(most // links, 1)).round().astype(np.int64))
    batch = windows.vectors(rows)
    if links == 1:
        return batch
    there = batch["mask"].any(-1)
    return {k: v[there] for k, v in batch.items()}


def difference_stats(chunk: np.ndarray, origin: np.ndarray, feature: Feature) -> Stats:
    """Statistics `(H, A)`."""
    stats = vector_stats((chunk - origin).astype(np.float64))
    size = np.abs(chunk).max((0, 1))
    return replace(stats, resolution=np.broadcast_to(resolutions(feature, size), stats.mean.shape))
