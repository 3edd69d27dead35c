"""Attention by what is asked (Stepputtis et al. 2020, arXiv 2010.12083): of all that is seen the policy is
told what the words are about.

Legend: B batch, T = n_obs_steps, K tokens of one frame, D width."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from .context import Conditions, Context, ContextNet
from .stack import stacked


@dataclass(frozen=True)
class Focus:
    """The conditions ask, the tokens of each step answer: their mean, weighted by how well each fits the
    question (one head), is told beside the step's first token, which is of the joints, and the conditions.
    Networks of tokens find the means before all other tokens."""

    def build(
        self, width: int, tokens_per_frame: int, n_obs_steps: int, conditions: int, condition_tokens: int
    ) -> ContextNet:
        if tokens_per_frame < 2 or not conditions:
            raise ValueError(
                "Focus picks among several tokens of a step by what the policy is told: use it with an "
                "encoder of tokens (--encoder Objects, FeatureMaps) and a condition (--conditions Words)"
            )
        net = FocusNet(width, conditions)
        net.token_width = width
        net.tokens = (tokens_per_frame + 1) * n_obs_steps + condition_tokens
        net.pooled_width = width * (2 * n_obs_steps + conditions)
        return net


class FocusNet(ContextNet):
    def __init__(self, width: int, conditions: int) -> None:
        super().__init__()
        self.ask = nn.Linear(conditions * width, width)
        self.answer = nn.Linear(width, width)
        self.give = nn.Linear(width, width)

    def forward(
        self,
        z_BTKD: Tensor,
        conditions: Conditions | None = None,
        memory: Tensor | None = None,
        fresh: Tensor | None = None,
    ) -> Context:
        assert conditions is not None
        share_BTK = self.shares(z_BTKD, conditions)
        focus_BTD = (self.give(z_BTKD) * share_BTK[..., None]).sum(2)
        plain = stacked(z_BTKD, conditions)
        pooled = torch.cat([conditions.pooled, focus_BTD.flatten(1), z_BTKD[:, :, 0].flatten(1)], dim=-1)
        return replace(plain.first(focus_BTD, pooled[:, :0]), pooled=pooled)

    def shares(self, z_BTKD: Tensor, conditions: Conditions) -> Tensor:
        """How much of each token is told, `(B, T, K)`; they sum to 1 over the tokens of a step."""
        question_BD = self.ask(conditions.pooled)
        fit = torch.einsum("btkd,bd->btk", self.answer(z_BTKD), question_BD)
        return (fit / z_BTKD.shape[-1] ** 0.5).softmax(-1)
