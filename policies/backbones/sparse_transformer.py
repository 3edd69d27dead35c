"""The transformer of Diffusion Policy with experts for feed-forward layers (Sparse Diffusion Policy, Wang et
al. 2024, arXiv 2407.01531). Legend: B batch, H horizon, A action dimensions, S context tokens, D width."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from ..contexts.context import Context
from .backbone import Head, Output, Sizes, require_head
from .experts import TaskExperts
from .transformer import Transformer, TransformerNet


@dataclass(frozen=True)
class SparseTransformer:
    """Pre-LN decoder layers as of `Transformer`, whose feed-forward layer is a sum of the two experts, of
    eight, that a router picks, one for each task that the condition `Task` numbers. The loss pays for
    experts that do not tell tasks apart. A new task can be learned by its router alone: `--training.start`
    at the checkpoint, `--training.freeze "*" --training.unfreeze "net.*router_*" conditions.*`."""

    width: int = 256
    """Of a token; even, and a multiple of heads."""
    depth: int = 8
    """Number of layers."""
    heads: int = 4
    """Of the attention, in each layer."""
    hidden: int = 512
    """Width of an expert's hidden units."""
    experts: int = 8
    """In each layer."""
    top: int = 2
    """Experts that a token is given to, 1 to experts."""
    routers: int = 17
    """In each layer: one for each task that there is room for, and one for what is none of them."""
    dropout: float = 0.0
    """Share of units that training switches off, 0 to 1, in the attention."""
    causal: bool = False
    """An action sees only earlier actions and observations."""
    information: float = 5e-4
    """Weight of the loss for experts that do not tell tasks apart, summed over the layers."""

    def build(self, sizes: Sizes, head: Head) -> nn.Module:
        require_head(self, head, Head("chunk", 2, forward_mode=True, second_order=True))
        if self.width % self.heads or self.width % 2:
            raise ValueError(
                f"SparseTransformer width {self.width} must be even and a multiple of heads {self.heads}"
            )
        if not 1 <= self.top <= self.experts or self.routers < 1:
            raise ValueError(f"SparseTransformer's top lies in 1..{self.experts}, and routers is at least 1")
        return SparseTransformerNet(self, sizes, head)


class SparseTransformerNet(TransformerNet):
    masks_actions = False

    def __init__(self, c: SparseTransformer, sizes: Sizes, head: Head) -> None:
        super().__init__(Transformer(c.width, 0, c.heads, 1, c.dropout, c.causal), sizes, head)
        self.information, self.routers = c.information, c.routers
        self.layers = nn.ModuleList(SparseLayer(c) for _ in range(c.depth))

    def forward(self, x_BHA: Tensor, s: Tensor, t: Tensor, context: Context) -> Tensor:  # type: ignore[override]
        return self._read(x_BHA, s, t, context)[0]

    def outputs(self, x_BHA: Tensor, s: Tensor, t: Tensor, context: Context) -> Output:
        chunk, gates, task = self._read(x_BHA, s, t, context)
        each = [layer.experts.information(g, task) for layer, g in zip(self.layers, gates, strict=True)]  # type: ignore[union-attr, operator]
        return Output(chunk, extras={"mutual information": self.information * torch.stack(each).sum()})

    def _read(
        self, x_BHA: Tensor, s: Tensor, t: Tensor, context: Context
    ) -> tuple[Tensor, list[Tensor], Tensor]:
        """(the chunk, the gates of each layer, the tasks)."""
        task = context.task
        if task is None:
            task = torch.zeros(len(x_BHA), dtype=torch.long, device=x_BHA.device)
        elif self.routers <= 1:
            task = torch.zeros_like(task)
        x, memory = self.embedded(x_BHA, s, t, context)
        masks = self.masks(x_BHA.shape[1], context)
        gates = []
        with sdpa_kernel(SDPBackend.MATH) if self.plain_attention else contextlib.nullcontext():
            for layer in self.layers:
                x, of_layer = layer(x, memory, task, *masks)
                gates.append(of_layer)
        return self.out(self.decoder.norm(x)), gates, task  # type: ignore[misc]


class SparseLayer(nn.Module):
    def __init__(self, c: SparseTransformer) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(c.width) for _ in range(3))
        self.actions = nn.MultiheadAttention(c.width, c.heads, c.dropout, batch_first=True)
        self.context = nn.MultiheadAttention(c.width, c.heads, c.dropout, batch_first=True)
        self.experts = TaskExperts(c.width, c.hidden, c.experts, c.top, c.routers)

    def forward(
        self,
        x_BHD: Tensor,
        memory_BSD: Tensor,
        task_B: Tensor,
        actions_mask: Tensor | None,
        memory_mask: Tensor | None,
        padding: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        """(tokens, the gates of the experts)."""
        y = self.norms[0](x_BHD)
        x = x_BHD + self.actions(y, y, y, attn_mask=actions_mask, need_weights=False)[0]
        y, m = self.norms[1](x), memory_BSD
        attended = self.context(y, m, m, padding, need_weights=False, attn_mask=memory_mask)[0]
        x = x + attended
        added, gates = self.experts(self.norms[2](x), task_B)
        return x + added, gates
