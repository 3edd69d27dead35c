"""A store of demonstrations in which a policy looks up what was done where it is now (retrieval, Goyal et
al. 2022, arXiv 2202.08417).

Legend: B batch, P demonstrations, L ticks, h actions ahead, A action dimensions, D width."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ...datasets.features import ACTION, Features, image_keys, state_keys
from ..remembered import Remembered, acts
from .condition import ConditionNet
from .prompt import MASK, PROMPT, frames_of


@dataclass(frozen=True)
class Store:
    """Of each tick of up to `episodes` demonstrations two tokens: what was seen, by the policy's own
    encoder, by which it is found; and that with the commands that followed, which is what is found. In
    training they are other episodes of the task than the window's own, which would be copied. For the
    context `Retrieval`; requests hold `prompt.<key>`, `prompt.action` and `prompt.mask`."""

    episodes: int = 4
    """Demonstrations, at most."""
    length: int = 32
    """Ticks of each; a longer episode is thinned evenly."""
    ahead: int = 4
    """Commands that a tick is told with, its own the first."""
    drop: float = 0.0
    """Share of the training rows that have no store, 0 to 1."""

    def needs(self) -> dict[str, Any]:
        return {"prompts": self.episodes, "prompt_length": self.length}

    def keys(self, features: Features) -> tuple[str, ...]:
        return (*(PROMPT + k for k in (*state_keys(features), *image_keys(features), ACTION)), MASK)

    def hides(self, features: Features) -> tuple[str, ...]:
        return ()

    def build(self, features: Features, encoder: nn.Module, width: int) -> ConditionNet:
        if self.ahead < 1:
            raise ValueError(f"Store.ahead is {self.ahead}: a tick is told with 1 command at least")
        return StoreNet(self, self.keys(features)[:-1], encoder, width, features[ACTION].shape[0])


class StoreNet(ConditionNet):
    def __init__(
        self, part: Store, keys: tuple[str, ...], encoder: nn.Module, width: int, action: int
    ) -> None:
        super().__init__()
        self.part, self.keys = part, keys
        self._encoder = (encoder,)  # in a tuple, or its weights would count twice
        self.n_tokens = 2 * part.episodes * part.length
        self.value = nn.Sequential(
            nn.Linear(width + part.ahead * action, width), nn.Mish(), nn.Linear(width, width)
        )
        self._seen = Remembered()

    def forward(self, observation: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
        given = [*(observation[k] for k in self.keys), observation[MASK]]
        if acts(self, self._encoder[0]):  # by what is in the store alone, for all requests of an episode
            tokens = self._seen.rows(given, lambda rows: self._tokens([v[rows] for v in given]))
        else:
            tokens = self._tokens(given)
        return tokens, observation[MASK].flatten(1).repeat_interleave(2, dim=1)

    def _tokens(self, given: list[Tensor]) -> Tensor:
        """`(B, P·L·2, D)`, key and value in turn."""
        (frames, action), mask = frames_of(self.keys, given[:-1]), given[-1].flatten(0, 1)
        seen = of_tick(self._encoder[0](frames))
        ticks = torch.arange(mask.shape[1], device=mask.device)
        ahead = ticks[:, None] + torch.arange(self.part.ahead, device=mask.device)
        last = (mask.sum(1) - 1).clamp(min=0)
        at = torch.minimum(ahead, last[:, None, None])  # (B·P, L, h)
        rows = torch.arange(len(mask), device=mask.device)[:, None, None]
        value = self.value(torch.cat([seen, action[rows, at].flatten(2)], dim=-1))
        both = torch.stack([seen, value], dim=2)
        return both.flatten(1, 2).unflatten(0, (len(given[0]), -1)).flatten(1, 2)


def of_tick(z: Tensor) -> Tensor:
    """One vector of each tick `(..., L, D)`, of encodings `(..., L, D)` or `(N, L, K, D)`: their mean."""
    return z if z.ndim == 3 else z.mean(2)
