"""An action of many elements, such as the weights of a policy, as few numbers: its principal components.

Legend: N chunks, H horizon, A action dimensions, W components."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..datasets.features import ACTION, Features
from ..datasets.stats import Stats
from .codec import Codec

LEAST = 1e-3  # of the first component's deviation: what varies less is scaled as if it varied so much


@dataclass(frozen=True)
class PrincipalComponents:
    """What the network draws is how far an action lies from the mean along the directions in which the
    actions of the training differ most, each scaled to deviation 1. They are found when a training begins,
    and lie in the checkpoint. What an action has beside them is lost: what training says then."""

    components: int = 32
    """Directions, at most as many as an action has elements."""

    @property
    def needs_past(self) -> bool:
        return False

    @property
    def normalise(self) -> str:
        """Elements are not scaled one by one."""
        return "none"

    def observes(self, features: Features) -> Features:
        return {}

    def fit(self, windows: Any, features: Features, n_past_actions: int) -> dict[str, Stats]:
        return {}

    def build(self, features: Features, stats: Mapping[str, Stats], n_past_actions: int) -> Codec:
        if self.components < 1:
            raise ValueError(f"PrincipalComponents has {self.components} components: it needs at least 1")
        return ComponentsCodec(min(self.components, len(stats[ACTION].mean)), stats[ACTION])


class ComponentsCodec(Codec):
    """Before it has learned, the first elements of the action stand for the components."""

    def __init__(self, width: int, stats: Stats) -> None:
        super().__init__(stats, "none")
        self.width = width
        elements = len(stats.mean)
        self.mean: Tensor
        self.basis: Tensor  # `(A, W)`, columns of length 1
        self.deviation: Tensor  # `(W,)` of the actions along them
        self.learned: Tensor  # bool
        self.register_buffer("mean", torch.as_tensor(stats.mean, dtype=torch.float32))
        self.register_buffer("basis", torch.eye(elements, width))
        self.register_buffer("deviation", torch.ones(width))
        self.register_buffer("learned", torch.tensor(False))

    def learn(self, actions_NA: np.ndarray) -> str:
        """Find the directions; says in a sentence how much of the actions' variance they hold."""
        mean = actions_NA.mean(0, dtype=np.float64)
        _, sizes, directions = np.linalg.svd(actions_NA - mean, full_matrices=False)
        found = min(self.width, len(sizes))
        basis = np.zeros(self.basis.shape)
        basis[:, :found] = directions[:found].T
        deviation = np.zeros(self.width)
        deviation[:found] = sizes[:found] / len(actions_NA) ** 0.5
        deviation = np.maximum(deviation, max(LEAST * deviation[0], 1e-12))
        self.mean.copy_(torch.as_tensor(mean))
        self.basis.copy_(torch.as_tensor(basis))
        self.deviation.copy_(torch.as_tensor(deviation))
        self.learned.fill_(True)
        share = (sizes[:found] ** 2).sum() / max((sizes**2).sum(), 1e-30)
        return (
            f"{found} components stand for the {actions_NA.shape[-1]} elements of an action, with "
            f"{100 * share:.1f} % of how they vary"
        )

    def encode(self, action: Tensor, observation: Mapping[str, Any]) -> Tensor:
        return (action.float() - self.mean) @ self.basis / self.deviation

    def decode(self, x: Tensor, observation: Mapping[str, Any]) -> Tensor:
        return (x * self.deviation) @ self.basis.T + self.mean

    def encode_past(self, past_BdA: Tensor, observation: Mapping[str, Any]) -> Tensor:
        return self.encode(past_BdA, observation)

    def present(self, observation: Mapping[str, Any]) -> Tensor | None:
        return None
