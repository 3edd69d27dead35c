"""Masks over one network's weights, one for each task (HarmoDT, Hu et al. 2024, arXiv 2405.18080).

Legend: B batch, H horizon, A action dimensions, T masks, P weights of one matrix."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call

from ..contexts.context import Context
from .backbone import Backbone, Head, Sizes
from .mlp import ResidualMLP


@dataclass(frozen=True)
class HarmoDT:
    """The network `inner`, of whose matrices each task that the condition `Task` numbers has some entries,
    and not the others. Where tasks disagree about a weight, it leaves the mask of those that need it least,
    and they are given one about which they agree with the rest. What is none of the tasks has all weights.

    Faithful: random masks at first, denser in small matrices (ERK), 0.8 in all; the entries that leave have
    the least g_T² + γ·ḡ·g_T, those that come the largest ḡ·g_T, where g_T is the gradient of task T's loss
    at its masked weights and ḡ the mean of the tasks; every 500 calls, fewer each time along half a cosine.
    Not: a share of a matrix's entries moves, where it was 100 in all; gradients are of the training's own
    batch, of the tasks that are in it; biases, norms and tables are everybody's. Rows are parted by their
    task, so a decision is no CUDA graph."""

    inner: Backbone = ResidualMLP()
    """Whose matrices are masked; one that says a chunk and nothing besides."""
    density: float = 0.8
    """Share of the entries that a mask has, above 0 and up to 1; 1: there is one network for all."""
    share: float = 0.05
    """Of a matrix's entries, how many leave a mask and come into it the first time, 0 to 1; 0: masks stay."""
    every: int = 500
    """Calls of the network in training from one time to the next."""
    times: int = 20
    """How often masks change; after that they stay."""
    gamma: float = 10.0
    """γ, how much agreement with the other tasks counts beside a weight's importance for the task."""
    most: int = 16
    """Tasks that there is room for."""

    def build(self, sizes: Sizes, head: Head) -> nn.Module:
        if (
            not 0 < self.density <= 1
            or not 0 <= self.share <= 1
            or min(self.every, self.times, self.most) < 1
        ):
            raise ValueError(
                "HarmoDT's density lies above 0 and up to 1, its share in 0..1, and every, times and most "
                "are at least 1"
            )
        inner = self.inner.build(sizes, head)
        if hasattr(inner, "outputs") or head.output != "chunk":
            raise ValueError(
                f"HarmoDT masks a network that says a chunk and nothing besides, and "
                f"{type(self.inner).__name__} says more: take Transformer, UNet1D or ResidualMLP"
            )
        return HarmoDTNet(self, inner)


class HarmoDTNet(nn.Module):
    masks_weights = True  # it computes with others than those that it holds

    def __init__(self, c: HarmoDT, inner: nn.Module) -> None:
        super().__init__()
        self.c, self.inner = c, inner
        weights = dict(inner.named_parameters())
        self.masked = [n for n, w in weights.items() if w.ndim > 1 and n.endswith("weight")]
        dense = densities([tuple(weights[n].shape) for n in self.masked], c.density)
        for name, density in zip(self.masked, dense, strict=True):
            shape = weights[name].shape
            n, kept = shape.numel(), round(density * shape.numel())
            rows = torch.rand(c.most, n).argsort(1) < kept
            self.register_buffer(_buffer(name), rows.reshape(c.most, *shape))
        self.calls: Tensor
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))
        self._gradients: dict[int, dict[str, Tensor]] = {}  # of the tasks of the batch that changes the masks

    def mask(self, name: str) -> Tensor:
        """`(T, *shape)` bool, of the weight `name`; the first is that of the task with the number 1."""
        return getattr(self, _buffer(name))

    def forward(self, x_BHA: Tensor, s: Tensor, t: Tensor, context: Context) -> Tensor:
        task = context.task
        if task is None:
            return self.inner(x_BHA, s, t, context)
        learns = self.training and torch.is_grad_enabled()
        changes = learns and self._count()
        if (most := int(task.max())) > self.c.most:
            raise ValueError(
                f"there are {most} tasks and masks for {self.c.most}: train with --backbone.most {2 * most}"
            )
        present = task.unique().tolist()
        expected = {i: len(self.masked) for i in present if i} if changes else {}
        parts: list[tuple[Tensor, Tensor]] = []
        for number in present:
            rows = (task == number).nonzero()[:, 0]
            weights: dict[str, Tensor] = self._weights(number, expected) if number else {}
            own = (x_BHA[rows], s[rows], t[rows], context.take(rows))
            parts.append((rows, functional_call(self.inner, weights, own)))
        out = torch.cat([part for _, part in parts])
        return out[torch.cat([rows for rows, _ in parts]).argsort()]

    def _count(self) -> bool:
        """One more call; whether the masks change after it."""
        self.calls += 1
        self._gradients = {}
        at, c = int(self.calls), self.c
        return c.share > 0 and c.density < 1 and at % c.every == 0 and at // c.every <= c.times

    def _weights(self, number: int, expected: dict[int, int]) -> dict[str, Tensor]:
        """Those of a task. expected: how many of each task's gradients are to come before the masks
        change."""
        weights = dict(self.inner.named_parameters())
        masked = {n: weights[n] * self.mask(n)[number - 1].to(weights[n].dtype) for n in self.masked}
        if expected:
            own = self._gradients.setdefault(number, {})
            for name, weight in masked.items():
                if weight.requires_grad:
                    weight.register_hook(lambda g, name=name: self._heard(own, name, g, expected))
                else:
                    expected[number] -= 1
        return masked

    def _heard(self, own: dict[str, Tensor], name: str, gradient: Tensor, expected: dict[int, int]) -> None:
        own[name] = gradient.detach()
        if all(len(self._gradients[i]) == n for i, n in expected.items()):
            self._change()

    @torch.no_grad()
    def _change(self) -> None:
        c, tasks = self.c, sorted(self._gradients)
        round_ = int(self.calls) // c.every - 1
        share = c.share * 0.5 * (1 + math.cos(math.pi * round_ / c.times))
        for name in self._gradients[tasks[0]]:
            of_task = torch.stack([self._gradients[i][name].float() for i in tasks])
            mask = self.mask(name)
            places = torch.tensor([i - 1 for i in tasks], device=mask.device)
            mask[places] = exchanged(mask[places], of_task, share, c.gamma)
        self._gradients = {}


def exchanged(mask_TP: Tensor, gradient_TP: Tensor, share: float, gamma: float) -> Tensor:
    """The masks of T tasks once `share` of a matrix's entries, rounded, has left each and as many that were
    not in it have come; fewer where there are not as many. gradient_TP: of each task's loss, in all entries.
    Both `(T, *shape)`."""
    mask, g = mask_TP.flatten(1), gradient_TP.flatten(1)
    agrees = g.mean(0) * g
    n = torch.minimum(mask.sum(1), (~mask).sum(1)).clamp(max=round(share * mask.shape[1]))
    least = (g**2 + gamma * agrees).masked_fill(~mask, torch.inf).argsort(1).argsort(1)
    largest = agrees.masked_fill(mask, -torch.inf).argsort(1, descending=True).argsort(1)
    return ((mask & (least >= n[:, None])) | (largest < n[:, None])).reshape(mask_TP.shape)


def densities(shapes: list[tuple[int, ...]], density: float) -> list[float]:
    """Of each matrix the share of its entries, `density` of them all: as the sum of its sides to their
    product, and 1 where that would be more (Erdős-Rényi kernel, Evci et al. 2020, arXiv 1911.11134)."""
    sizes = [math.prod(shape) for shape in shapes]
    full: set[int] = set()
    while True:
        rest = [i for i in range(len(shapes)) if i not in full]
        left = density * sum(sizes) - sum(sizes[i] for i in full)
        scale = left / max(sum(sum(shapes[i]) for i in rest), 1)
        over = {i for i in rest if scale * sum(shapes[i]) > sizes[i]}
        if not over:
            return [1.0 if i in full else scale * sum(s) / sizes[i] for i, s in enumerate(shapes)]
        full |= over


def _buffer(name: str) -> str:
    """Names of buffers may hold no dots."""
    return "mask_" + name.replace(".", "/")
