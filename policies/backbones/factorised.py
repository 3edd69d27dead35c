"""A network that acts on some observations alone, and another that corrects it by all (Factorised Diffusion
Policies, Patil et al. 2025, arXiv 2509.16830).

Legend: B batch, H horizon, A action dimensions, T = n_obs_steps, D width."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.func import functional_call

from ..contexts.context import Context
from .backbone import Head, Output, Sizes, require_head
from .mlp import ResidualMLP, ResidualMLPNet

NOT_SO = (
    "Factorised wants two tokens of each step, as the encoder Apart gives them (--encoder Apart), and an "
    "inner network with film"
)


@dataclass(frozen=True)
class Factorised:
    """The score of an action given two observations is that given the first, and what the second adds. The
    base network sees the first token of each step alone, which the encoder `Apart` makes of what is to be
    relied on; the residual one, a copy of its blocks, sees both, and adds to what every block of the base
    gives through a layer that begins at zero.

    Faithful: block by block, zero layers, the base as it is while the residual learns. Not: residual MLPs in
    the place of a U-Net and a diffusion transformer; both learn side by side, the base by its own loss alone,
    in the place of one after the other. Conditions are told both; a memory, which is made of all, is the
    residual's."""

    inner: ResidualMLP = ResidualMLP()
    """The base; the residual has as many blocks, as wide."""
    scale: float = 1.0
    """Of what the residual adds, 0 to 1; 0: the base alone."""

    def build(self, sizes: Sizes, head: Head) -> nn.Module:
        require_head(self, head, Head("chunk", 2))
        if len(sizes.places) != 2 or sizes.layers is not None or not self.inner.film:
            raise ValueError(NOT_SO)
        if sizes.pooled_width < sizes.token_width * (sizes.conditions + 2 * sizes.steps):
            raise ValueError("Factorised wants the tokens of all steps side by side: use --context Stack")
        if not 0 <= self.scale <= 1:
            raise ValueError(f"Factorised's scale is {self.scale}: it must lie in 0..1")
        return FactorisedNet(self, sizes, head)


class FactorisedNet(nn.Module):
    def __init__(self, c: Factorised, sizes: Sizes, head: Head) -> None:
        super().__init__()
        self.scale, d = c.scale, sizes.token_width
        # the pooled context is the conditions, then two tokens of each step; a memory after them is of both
        first = [*range(sizes.conditions), *(sizes.conditions + 2 * i for i in range(sizes.steps))]
        kept = [j for i in first for j in range(i * d, (i + 1) * d)]
        self.first: Tensor
        self.register_buffer("first", torch.tensor(kept), persistent=False)
        self.of_base: Tensor
        of_base = torch.zeros(sizes.pooled_width, dtype=torch.bool)
        of_base[kept] = True
        self.register_buffer("of_base", of_base, persistent=False)
        self.base = ResidualMLPNet(c.inner, replace(sizes, pooled_width=len(kept)), head)
        self.residual = ResidualMLPNet(c.inner, sizes, head)
        self.zero = nn.ModuleList(nn.Linear(c.inner.width, c.inner.width) for _ in self.base.blocks)
        for layer in self.zero:
            for weight in layer.parameters():
                nn.init.zeros_(weight)

    def forward(self, x_BHA: Tensor, s: Tensor, t: Tensor, context: Context) -> Tensor:
        if not self.scale:
            return self._base(x_BHA, s, t, context)
        return self._whole(x_BHA, s, t, context)

    def outputs(self, x_BHA: Tensor, s: Tensor, t: Tensor, context: Context) -> Output:
        every = torch.ones(x_BHA.shape[1], device=x_BHA.device)
        base = self._base(x_BHA, s, t, context)
        return Output(self._whole(x_BHA, s, t, context, learns=True), ((base, every),))

    def _of_first(self, context: Context) -> Tensor:
        return context.pooled.index_select(-1, self.first)

    def _base(self, x_BHA: Tensor, s: Tensor, t: Tensor, context: Context) -> Tensor:
        return self.base(x_BHA, s, t, replace(context, pooled=self._of_first(context)))

    def _whole(self, x_BHA: Tensor, s: Tensor, t: Tensor, context: Context, learns: bool = False) -> Tensor:
        """learns: gradients pass through the base, and not to its weights, nor to what it is told."""
        base, residual = self.base, self.residual
        pooled, first, time = context.pooled, self._of_first(context), base.time(s, t)
        if learns:
            pooled = torch.where(self.of_base, pooled.detach(), pooled)
            first, time = first.detach(), time.detach()
        told = torch.cat([residual.time(s, t), pooled], dim=-1)
        own = torch.cat([time, first], dim=-1)
        h = _held(base.enter, learns, x_BHA.flatten(1))
        correction = residual.enter(x_BHA.flatten(1))
        for block, other, zero in zip(base.blocks, residual.blocks, self.zero, strict=True):
            correction = other(correction + h, told)
            h = _held(block, learns, h, own) + self.scale * zero(correction)
        return _held(base.out, learns, h).reshape(x_BHA.shape)


def _held(module: nn.Module, learns: bool, *inputs: Tensor) -> Tensor:
    """The module of `inputs`, where `learns` with weights that take no gradient."""
    if not learns:
        return module(*inputs)
    return functional_call(module, {k: v.detach() for k, v in module.named_parameters()}, inputs)
