"""What a policy is asked for, beside what it sees: an instruction, a goal, a label, a prompt. Each has a file
of its own beside this one.

Legend: B batch, K tokens of the condition, D width."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from torch import Tensor, nn

from ...datasets.features import Features


class ConditionNet(nn.Module):
    """What a condition part builds: called with the observations (and tasks, goals, labels) of B rows, it
    gives tokens `(B, K, D)` and their mask `(B, K)` bool."""

    n_tokens: int
    """K."""

    def forward(self, observation: Mapping[str, Any]) -> tuple[Tensor, Tensor]:  # pragma: no cover
        raise NotImplementedError


class ConditionPart(Protocol):
    """A frozen dataclass: how one condition is read from data and from requests."""

    @property
    def drop(self) -> float:
        """Share of the training rows that are not told, 0 to 1, so that the policy can also be asked without
        (classifier-free guidance)."""
        ...

    def needs(self) -> dict[str, Any]:
        """Fields of `datasets.reading.windows.WindowSpec` that training needs for it."""
        ...

    def keys(self, features: Features) -> tuple[str, ...]:
        """Keys that a request must have for it, such as `task` or `goal.observation.state`."""
        ...

    def hides(self, features: Features) -> tuple[str, ...]:
        """Observations that only the condition sees, not the encoder, such as a label."""
        ...

    def build(self, features: Features, encoder: nn.Module, width: int) -> ConditionNet:
        """A network whose tokens are `width` wide. features: of the policy. encoder: the policy's, from
        normalised observations `{key: (B, T, *shape)}` to `(B, T, K, width)`; a condition may use it and must
        not own it."""
        ...
