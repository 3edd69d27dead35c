"""A prompt: the policy is shown what to do by demonstrations of the task.

Legend: B batch, P demonstrations, L ticks, K tokens, D width."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ...datasets.features import ACTION, Features, state_keys
from ..codec import LAST
from .condition import ConditionNet

PROMPT = "prompt."
MASK = PROMPT + "mask"


@dataclass(frozen=True)
class Prompt:
    """Demonstrations of the same task, states and actions, as in ICRT (Fu et al. 2024, arXiv 2408.15980), but
    read by a transformer of their own and pooled to a few tokens, where ICRT has them in one long sequence
    with the present. Requests hold `prompt.<key>`, `prompt.action` and `prompt.mask`, of up to `prompts`
    demonstrations of up to `length` ticks each."""

    prompts: int = 1
    """Demonstrations."""
    length: int = 16
    """Ticks of each; a longer episode is thinned evenly."""
    tokens: int = 4
    """That the demonstrations become."""
    width: int = 64
    """Of the transformer; a multiple of heads."""
    depth: int = 2
    """Its layers."""
    heads: int = 4
    """Of its attention."""
    drop: float = 0.0
    """Share of the training rows that are not shown any, 0 to 1."""

    def needs(self) -> dict[str, Any]:
        return {"prompts": self.prompts, "prompt_length": self.length}

    def keys(self, features: Features) -> tuple[str, ...]:
        if not state_keys(features):
            raise ValueError(
                "prompts are of vectors, and the data has none: a policy of images alone takes none"
            )
        return (*(PROMPT + k for k in state_keys(features)), PROMPT + ACTION, MASK)

    def hides(self, features: Features) -> tuple[str, ...]:
        return ()

    def build(self, features: Features, encoder: nn.Module, width: int) -> ConditionNet:
        keys = (*state_keys(features), ACTION)
        return PromptNet(
            self, tuple(PROMPT + k for k in keys), sum(features[k].shape[0] for k in keys), width
        )


def frames_of(keys: Sequence[str], shown: Sequence[Tensor]) -> tuple[dict[str, Tensor], Tensor]:
    """(what the policy's encoder sees of demonstrations `{key: (B·P, L, *shape)}`, the commands
    `(B·P, L, A)`). keys, shown: of prompts, `(B, P, L, *shape)`."""
    frames = {k.removeprefix(PROMPT): v.flatten(0, 1) for k, v in zip(keys, shown, strict=True)}
    action = frames.pop(ACTION)
    # with each tick the command before it, as the present's; at the first its own
    frames[LAST] = torch.cat([action[:, :1], action[:, :-1]], dim=1)
    return frames, action


class PromptNet(ConditionNet):
    def __init__(self, part: Prompt, keys: tuple[str, ...], inputs: int, width: int) -> None:
        super().__init__()
        self.keys, self.n_tokens = keys, part.tokens
        self.enter = nn.Linear(inputs, part.width)
        self.begin = nn.Parameter(0.02 * torch.randn(1, part.width))
        self.ticks = nn.Parameter(0.02 * torch.randn(part.length, part.width))
        self.which = nn.Parameter(0.02 * torch.randn(part.prompts, 1, part.width))
        layer = nn.TransformerEncoderLayer(
            part.width, part.heads, 2 * part.width, 0.0, "gelu", batch_first=True, norm_first=True
        )
        self.reader = nn.TransformerEncoder(layer, part.depth, enable_nested_tensor=False)
        self.queries = nn.Parameter(0.02 * torch.randn(part.tokens, part.width))
        self.pool = nn.MultiheadAttention(part.width, part.heads, batch_first=True)
        self.leave = nn.Linear(part.width, width)

    def forward(self, observation: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
        mask_BPL = observation[MASK]
        b = len(mask_BPL)
        ticks = self.enter(torch.cat([observation[k] for k in self.keys], dim=-1)) + self.ticks + self.which
        sequence = torch.cat([self.begin.expand(b, 1, -1), ticks.flatten(1, 2)], dim=1)
        # the first token is always there, since attention to nothing is no number
        unseen = torch.cat([torch.zeros_like(mask_BPL[:, 0, :1]), ~mask_BPL.flatten(1)], dim=1)
        read = self.reader(sequence, src_key_padding_mask=unseen)
        pooled, _ = self.pool(self.queries.expand(b, -1, -1), read, read, key_padding_mask=unseen)
        tokens = self.leave(pooled)
        return tokens, mask_BPL.flatten(1).any(1, keepdim=True).expand(b, self.n_tokens)
