"""Demonstrations in context: the policy is shown episodes of its task, tick by tick, as it sees the present
(ICRT, Fu et al. 2024, arXiv 2408.15980).

Legend: B batch, P demonstrations, L ticks, K tokens of a tick, D width."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ...datasets.features import ACTION, Features, image_keys, state_keys
from ..codec import LAST
from ..remembered import Remembered, acts
from .condition import ConditionNet
from .prompt import MASK, PROMPT, frames_of


@dataclass(frozen=True)
class Demonstrations:
    """Every tick of up to `prompts` demonstrations as the policy's own encoder sees it: the observation, and
    the command before it, which the codec `Delta` lets it see. With the encoder `Apart` and the command as
    its first token that is a, s, a, s, … as published. For a context that reads them in their order, `ICRT`;
    where `Prompt` has a reader of its own and says it in a few tokens. Requests hold `prompt.<key>`,
    `prompt.action` and `prompt.mask`."""

    prompts: int = 2
    """Demonstrations, at most."""
    length: int = 32
    """Ticks of each; a longer episode is thinned evenly, and then looks faster than the present."""
    fewest: int = 1
    """Demonstrations that a training row is shown at least; how many, up to `prompts`, is drawn, so that the
    policy can do with each number. Those of 0 know nothing of the task."""
    drop: float = 0.0
    """Share of the training rows that are not shown any, 0 to 1."""

    def needs(self) -> dict[str, Any]:
        return {"prompts": self.prompts, "prompt_length": self.length}

    def keys(self, features: Features) -> tuple[str, ...]:
        return (*(PROMPT + k for k in (*state_keys(features), *image_keys(features), ACTION)), MASK)

    def hides(self, features: Features) -> tuple[str, ...]:
        return ()

    def build(self, features: Features, encoder: nn.Module, width: int) -> ConditionNet:
        if not 0 <= self.fewest <= self.prompts:
            raise ValueError(
                f"Demonstrations.fewest is {self.fewest}: it must lie in 0..{self.prompts}, their number"
            )
        if not any(LAST in getattr(m, "state_keys", ()) for m in encoder.modules()):
            raise ValueError(
                "Demonstrations show what was done, too, and the encoder sees no command: use --codec Delta "
                "--n-past-actions 1"
            )
        return DemonstrationsNet(self, self.keys(features)[:-1], encoder)


class DemonstrationsNet(ConditionNet):
    def __init__(self, part: Demonstrations, keys: tuple[str, ...], encoder: nn.Module) -> None:
        super().__init__()
        self.part, self.keys = part, keys
        self._encoder = (encoder,)  # in a tuple, or its weights would count twice
        self.per_tick = int(getattr(encoder, "tokens_per_frame", 1))
        self.n_tokens = part.prompts * part.length * self.per_tick
        self._seen = Remembered()

    def forward(self, observation: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
        shown, mask_BPL = [observation[k] for k in self.keys], observation[MASK]
        if self.training and self.part.fewest < self.part.prompts:
            b, p, _ = mask_BPL.shape
            number = torch.randint(self.part.fewest, p + 1, (b, 1, 1), device=mask_BPL.device)
            mask_BPL = mask_BPL & (torch.arange(p, device=mask_BPL.device)[:, None] < number)
        if acts(self, self._encoder[0]):  # by what is shown alone, for all requests of an episode
            tokens = self._seen.rows(shown, lambda rows: self._tokens([v[rows] for v in shown]))
        else:
            tokens = self._tokens(shown)
        return tokens, mask_BPL.flatten(1).repeat_interleave(self.per_tick, dim=1)

    def _tokens(self, shown: list[Tensor]) -> Tensor:
        """`(B, P·L·K, D)`."""
        z = self._encoder[0](frames_of(self.keys, shown)[0])
        return z.flatten(1, -2).unflatten(0, (len(shown[0]), -1)).flatten(1, 2)
