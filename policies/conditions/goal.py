"""A goal: the policy is told by an observation how things shall come to look.

Legend: B batch, K tokens of a frame, D width."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ...datasets.features import Features, image_keys, state_keys
from .condition import ConditionNet

GOAL = "goal."


@dataclass(frozen=True)
class Goal:
    """An observation of the end, or for hindsight relabelling (Andrychowicz et al. 2017, arXiv 1707.01495) of
    any later tick of the episode: play data need no labels. Requests hold it as `goal.<key>`."""

    of: tuple[str, ...] = ()
    """Vectors whose values at the goal are given, which a network of its own reads; empty: all observations,
    read by the policy's encoder."""
    mode: Literal["last", "future"] = "last"
    """Which tick's observation is the goal in training: the episode's last, or one drawn from those ahead."""
    hide: bool = False
    """What `of` names is seen at the goal only, not now."""
    drop: float = 0.1
    """Share of the training rows that are not told, 0 to 1."""

    def needs(self) -> dict[str, Any]:
        return {"goal": self.mode, "goal_keys": self.of}

    def keys(self, features: Features) -> tuple[str, ...]:
        require_vectors(self, self.of, features)
        return tuple(GOAL + k for k in self.of or (*state_keys(features), *image_keys(features)))

    def hides(self, features: Features) -> tuple[str, ...]:
        return self.of if self.hide else ()

    def build(self, features: Features, encoder: nn.Module, width: int) -> ConditionNet:
        if self.of:
            return VectorGoal(self.keys(features), sum(features[k].shape[0] for k in self.of), width)
        return SeenGoal(encoder)


def require_vectors(part: object, of: tuple[str, ...], features: Features) -> None:
    """ValueError unless all that the goal is `of` are vectors of the data."""
    if unknown := [k for k in of if k not in state_keys(features)]:
        raise ValueError(
            f"the goal is of {unknown[0]}, and the vectors of the data are "
            f"{', '.join(state_keys(features)) or 'none'}: choose from them "
            f"(--conditions.{type(part).__name__}.of)"
        )


class SeenGoal(ConditionNet):
    """Through the policy's encoder, which it does not own: one frame's tokens."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self._encoder = (encoder,)  # in a tuple, or its weights would count twice
        self.n_tokens = getattr(encoder, "tokens_per_frame", 1)

    def forward(self, observation: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
        goal = {k.removeprefix(GOAL): v[:, None] for k, v in observation.items() if k.startswith(GOAL)}
        # what has no goal, such as the last command of a codec, is as it is now
        now = {k: v[:, -1:] for k, v in observation.items() if isinstance(v, Tensor) and v.ndim > 2}
        z = self._encoder[0](now | goal)
        tokens = z[:, 0] if z.ndim == 4 else z
        return tokens, torch.ones(tokens.shape[:2], dtype=torch.bool, device=tokens.device)


class VectorGoal(ConditionNet):
    """Vectors through an MLP of its own: one token."""

    n_tokens = 1

    def __init__(self, keys: tuple[str, ...], inputs: int, width: int) -> None:
        super().__init__()
        self.keys = keys
        self.net = nn.Sequential(nn.Linear(inputs, width), nn.Mish(), nn.Linear(width, width))

    def forward(self, observation: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
        token = self.net(torch.cat([observation[k] for k in self.keys], dim=-1))[:, None]
        return token, torch.ones(token.shape[:2], dtype=torch.bool, device=token.device)
