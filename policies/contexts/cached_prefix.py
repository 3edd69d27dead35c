"""A prefix that is read once a decision: pictures, words and state by a language model, whose keys and values
the network attends to at every step of the sampler (pi0, Black et al. 2024, arXiv 2410.24164)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from .context import Conditions, Context, ContextNet, Layers


@dataclass(frozen=True)
class CachedPrefix:
    """All tokens of the observation steps, then those of the conditions, which see each other both ways. For
    the encoder `VisionLanguage`, whose language model reads them, and the backbone `ActionExpert`."""

    state: Literal["token", "apart", "unsaid"] = "apart"
    """Where the state goes: into a token after all others, which they do not see, as SmolVLA's; apart, to the
    action expert, as pi0's; nowhere, where the words tell it, as pi0.5's."""

    def build(
        self, width: int, tokens_per_frame: int, n_obs_steps: int, conditions: int, condition_tokens: int
    ) -> ContextNet:
        return CachedPrefixNet(self, width, tokens_per_frame, n_obs_steps, condition_tokens)


class CachedPrefixNet(ContextNet):
    def __init__(
        self, part: CachedPrefix, width: int, per_frame: int, n_obs_steps: int, condition_tokens: int
    ) -> None:
        super().__init__()
        self.part, self.width, self.steps = part, width, n_obs_steps
        self.tokens = per_frame * n_obs_steps + condition_tokens

    def use(self, encoder: nn.Module) -> None:
        model: Any = encoder
        if not (hasattr(model, "language") and hasattr(model, "state_width")):
            raise ValueError(
                "CachedPrefix reads with the encoder's language model, and this encoder has none: use "
                "--encoder VisionLanguage, or --context Stack"
            )
        self._encoder = (encoder,)  # in a tuple, or its weights would count twice
        self.state_width = int(model.state_width)
        layers: Layers = model.language.part.layers
        self.layers, self.token_width = layers, layers.token_width
        self.pooled_width = self.state_width * self.steps if self.part.state == "apart" else 0
        if self.part.state == "token" and self.state_width:
            self.state_proj = nn.Linear(self.state_width, self.width)

    def forward(
        self,
        z_BTKD: Tensor,
        conditions: Conditions | None = None,
        memory: Tensor | None = None,
        fresh: Tensor | None = None,
    ) -> Context:
        b, t, device = len(z_BTKD), z_BTKD.shape[1], z_BTKD.device
        state = z_BTKD[:, :, -1, : self.state_width] if self.state_width else z_BTKD.new_zeros(b, t, 0)
        seen = z_BTKD[:, :, :-1] if self.state_width else z_BTKD
        tokens = [seen.flatten(1, 2)]
        masks = [torch.ones(b, seen.shape[1] * seen.shape[2], dtype=torch.bool, device=device)]
        if conditions is not None:
            tokens.append(conditions.tokens)
            masks.append(conditions.mask)
        together = sum(m.shape[1] for m in masks)
        last = torch.zeros(0, device=device)
        if self.part.state == "token" and self.state_width:
            tokens.append(self.state_proj(state))
            masks.append(torch.ones(b, t, dtype=torch.bool, device=device))
            last = torch.arange(1, t + 1, device=device)
        mask = torch.cat(masks, dim=1)
        if not mask.shape[1]:
            raise ValueError(
                "the language model has nothing to read: the policy sees no pictures and is told no words"
            )
        blocks = torch.cat([torch.zeros(together, device=device), last])
        language: Any = self._encoder[0].language
        read = language(torch.cat(tokens, dim=1), mask, blocks)
        pooled = state.flatten(1) if self.part.state == "apart" else state[:, 0, :0]
        everywhere = torch.full((mask.shape[1],), -1, device=device)
        return Context(read, pooled, mask, everywhere, memory)
