"""Plans of states, and the actions read out of them (Decision Diffuser, Ajay et al. 2023, arXiv 2211.15657).

Legend: B batch, H horizon, D elements of what is planned, A action dimensions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..datasets.features import ACTION, STATE, Features, state_keys
from ..datasets.normalise import Mode as NormaliseMode
from ..datasets.normalise import affine
from ..datasets.stats import ARRAYS, Stats
from .codec import Affine, Codec, difference_stats, some_windows, state_of_action

AHEAD = "ahead."  # before a feature, of the statistics of its differences to now, for each tick ahead
STEP = "action.step"  # of the statistics of actions as differences to the state that they are taken in
FUTURE = "future."


@dataclass(frozen=True)
class InverseDynamics:
    """What the network draws is not actions but the states of the H ticks to come, as differences to the one
    now; a small network, learned beside, says for each two states in a row which action leads from the one to
    the other. So states can be planned of data whose actions are ragged, and a plan can be looked at. Hooks
    that hold a chunk to actions do not fit."""

    of: tuple[str, ...] = (STATE,)
    """Vectors of the observation that are planned, of which the actions are read."""
    width: int = 256
    """Of the hidden layers of the network that gives the actions."""
    depth: int = 2
    """Number of its hidden layers."""
    weight: float = 1.0
    """Of its squared error in the loss."""
    normalise: NormaliseMode = "minmax"
    """Scale differences and actions to [-1, 1] by their range (minmax) or by their 1 % and 99 % quantiles, to
    mean 0 and deviation 1 (meanstd), or not (none)."""

    @property
    def needs_past(self) -> bool:
        return False

    def needs(self, horizon: int) -> dict[str, Any]:
        return {"future": tuple(range(1, horizon + 1))}

    def observes(self, features: Features) -> Features:
        return {}

    def fit(self, windows: Any, features: Features, n_past_actions: int) -> dict[str, Stats]:
        self._require(features, n_past_actions)
        batch = some_windows(windows)
        stats = {
            AHEAD + k: difference_stats(batch[FUTURE + k], batch[k][:, -1:], features[k]) for k in self.of
        }
        # of one scale for all ticks: they are taken one at a time
        states = [np.concatenate([batch[k][:, -1:], batch[FUTURE + k][:, :-1]], axis=1) for k in self.of]
        origin = np.concatenate(states, axis=-1)[..., self._joints(features)]
        steps = batch[ACTION] - (origin if origin.shape[-1] else 0.0)
        step = difference_stats(steps.reshape(-1, 1, steps.shape[-1]), np.zeros(1), features[ACTION])
        arrays = {name: getattr(step, name)[0] for name in (*ARRAYS, "resolution")}
        return {**stats, STEP: replace(step, **arrays)}

    def build(self, features: Features, stats: Mapping[str, Stats], n_past_actions: int) -> Codec:
        self._require(features, n_past_actions)
        return _InverseCodec(self, features, stats)

    def _joints(self, features: Features) -> list[int]:
        """For each action element that of what is planned of which it is the next value; none where there is
        none."""
        if STATE not in self.of:
            return []
        before = sum(features[k].shape[0] for k in self.of[: self.of.index(STATE)])
        return [before + i for i in state_of_action(features, required=False)]

    def _require(self, features: Features, n_past_actions: int) -> None:
        if n_past_actions:
            raise ValueError("InverseDynamics plans from now on: set n_past_actions to 0")
        if unknown := [k for k in self.of if k not in state_keys(features)]:
            raise ValueError(
                f"what is planned is {unknown[0]}, and the vectors of the data are "
                f"{', '.join(state_keys(features)) or 'none'}: choose from them (--codec.of)"
            )


class _InverseCodec(Codec):
    def __init__(self, part: InverseDynamics, features: Features, stats: Mapping[str, Stats]) -> None:
        nn.Module.__init__(self)
        self.of, self.weight, mode = part.of, part.weight, part.normalise
        self.width, self.state = sum(features[k].shape[0] for k in part.of), []
        self.joints: Tensor
        joints = torch.tensor(part._joints(features), dtype=torch.long)
        self.register_buffer("joints", joints, persistent=False)
        pairs = [affine(stats[AHEAD + k], mode, target=True) for k in part.of]
        self.ahead = _side_by_side(pairs)
        now = [affine(stats[k], mode) for k in part.of]
        self.now = _side_by_side(now)
        self.first = Affine(self.ahead.scale[0].numpy(), self.ahead.offset[0].numpy())
        self.affine = Affine(*affine(stats[STEP], mode, target=True))
        layers: list[nn.Module] = []
        width = 2 * self.width
        for _ in range(part.depth):
            layers += [nn.Linear(width, part.width), nn.Mish()]
            width = part.width
        self.inverse = nn.Sequential(*layers, nn.Linear(width, features[ACTION].shape[0]))

    def encode(self, action: Tensor, observation: Mapping[str, Any]) -> Tensor:
        """The states ahead `(B, H, D)`; the action is not looked at."""
        if FUTURE + self.of[0] not in observation:
            raise ValueError(
                "the chunk is of states to come, not of actions: a hook that holds it to actions does not "
                "fit InverseDynamics"
            )
        future = torch.cat([observation[FUTURE + k] for k in self.of], dim=-1)
        return self.ahead(future - self._present(observation)[:, None])

    def decode(self, x: Tensor, observation: Mapping[str, Any]) -> Tensor:
        present = self._present(observation)
        states = torch.cat([present[:, None], self.ahead.inverse(x) + present[:, None]], dim=1)
        step = self.affine.inverse(self._step(states))
        return step + self._origin_of(states)

    def losses(self, action: Tensor, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        future = torch.cat([batch[FUTURE + k] for k in self.of], dim=-1)
        states = torch.cat([self._present(batch)[:, None], future], dim=1)
        step = self.affine(action - self._origin_of(states))
        error = (self._step(states) - step) ** 2
        mask = (batch["mask"] & batch[FUTURE + "mask"])[..., None].to(error.dtype)
        mean = (error * mask).sum() / (mask.sum() * error.shape[-1]).clamp(min=1.0)
        return {"inverse dynamics": self.weight * mean}

    def encode_past(self, past_BdA: Tensor, observation: Mapping[str, Any]) -> Tensor:
        return self.encode(past_BdA, {})

    def present(self, observation: Mapping[str, Any]) -> Tensor | None:
        return None

    def _step(self, states_BHD: Tensor) -> Tensor:
        """The actions `(B, H, A)`, normalised, between H + 1 states in a row."""
        states = states_BHD.float()
        change = self.first(states[:, 1:] - states[:, :-1])
        return self.inverse(torch.cat([self.now(states[:, :-1]), change], dim=-1))

    def _origin_of(self, states_BHD: Tensor) -> Tensor | float:
        return states_BHD[:, :-1].index_select(-1, self.joints) if len(self.joints) else 0.0

    def _present(self, observation: Mapping[str, Any]) -> Tensor:
        return torch.cat([observation[k][:, -1] for k in self.of], dim=-1)


def _side_by_side(pairs: Sequence[tuple[np.ndarray, np.ndarray]]) -> Affine:
    """One normaliser of several vectors, each of which has a scale and an offset."""
    scales, offsets = zip(*pairs, strict=True)
    return Affine(np.concatenate(scales, axis=-1), np.concatenate(offsets, axis=-1))
