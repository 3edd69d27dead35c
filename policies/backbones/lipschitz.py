"""A network whose output cannot change faster than its input by more than a factor that is chosen beforehand.
Legend: B batch, H horizon, A action dimensions, G pooled context, D width, n layers."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..contexts.context import Context
from .backbone import Head, Sizes, require_head
from .time import TimeEmbedding


@dataclass(frozen=True)
class LipschitzMLP:
    """Linear layers of a bounded spectral norm, with what was before and after each hidden one averaged. For
    two inputs at the same time, `|net(x, c) - net(x', c')| <= bound · |(x, c) - (x', c')|`, x the noisy chunk
    and c the pooled context, each flat, normalised, in Euclidean norm.

    Each of n = depth + 2 layers keeps a factor of bound^(1/n): the averages keep 1. The product of the
    layers' norms is what is guaranteed, in training and after it; the Jacobian at data is smaller, as a rule
    by far, so choose a larger bound than the factor that is wanted. A task in which two observations that lie
    close want two answers that do not is not learned with a bound below their ratio.

    What lies before this network, the encoder, is not bounded: `--encoder.state.depth 0` passes vectors on as
    they are, so that the bound is the policy's, from normalised vectors to the normalised chunk, where one
    pass gives it. A chunk that is refined in several steps passes through several times.

    Layers are kept in bounds by the scale of their columns or rows (almost-orthogonal layers, Prach and
    Lampert 2022, arXiv 2208.03160), which needs no iteration, and holds of averaged weights, too; one more
    product of matrices for each layer and call. The averaged residuals are our own."""

    bound: float = 10.0
    """Of the whole network, above 0."""
    width: int = 256
    """Of the hidden layers."""
    depth: int = 3
    """Number of hidden layers."""
    time_width: int = 64
    """Of the embedding of the time; even. It is not part of what the bound is about."""

    def __post_init__(self) -> None:
        if self.bound <= 0 or self.depth < 1:
            raise ValueError("LipschitzMLP's bound is above 0, and its depth at least 1")

    def build(self, sizes: Sizes, head: Head) -> nn.Module:
        require_head(self, head, Head("chunk", 2, forward_mode=True, second_order=True))
        return LipschitzNet(self, sizes, head)


class LipschitzNet(nn.Module):
    def __init__(self, c: LipschitzMLP, sizes: Sizes, head: Head) -> None:
        super().__init__()
        share = c.bound ** (1 / (c.depth + 2))
        chunk = sizes.horizon * sizes.action_dim
        self.time = TimeEmbedding(c.time_width, head.times == 2)
        self.of_time = nn.Linear(c.time_width, c.width)
        self.enter = BoundedLinear(chunk + sizes.pooled_width, c.width, share)
        self.hidden = nn.ModuleList(BoundedLinear(c.width, c.width, share) for _ in range(c.depth))
        self.out = BoundedLinear(c.width, chunk, share)
        self.share = share

    def forward(self, x_BHA: Tensor, s: Tensor, t: Tensor, context: Context) -> Tensor:
        seen = torch.cat([x_BHA.flatten(1), context.pooled], dim=-1)
        x = self.enter(seen) + self.of_time(self.time(s, t))
        for layer in self.hidden:
            # an average of two maps of factors share and share has no more than that
            x = (self.share * x + layer(nn.functional.relu(x))) / 2
        return self.out(nn.functional.relu(x)).reshape(x_BHA.shape)


class BoundedLinear(nn.Linear):
    """A linear layer `(..., inputs) -> (..., outputs)` whose matrix has a spectral norm of at most
    `bound`."""

    def __init__(self, inputs: int, outputs: int, bound: float) -> None:
        super().__init__(inputs, outputs)
        self.bound = bound
        nn.init.orthogonal_(self.weight)

    def bounded(self) -> Tensor:
        """The matrix that acts. |W D| <= 1 where D_jj is one over the root of the sum over i of |W^T W|_ij;
        the same holds of rows, and the fewer of the two are scaled: theirs is the tighter bound."""
        outputs, inputs = self.weight.shape
        of_rows = outputs < inputs
        gram = self.weight @ self.weight.T if of_rows else self.weight.T @ self.weight
        scale = self.bound * (gram.abs().sum(0) + 1e-12).rsqrt()
        return self.weight * (scale[:, None] if of_rows else scale)

    def forward(self, input: Tensor) -> Tensor:
        return nn.functional.linear(input, self.bounded(), self.bias)
