"""A long vector as a row of tokens: networks over the ticks of a chunk become networks over the layers of the
policy that they draw (G.pt, Peebles et al. 2022, arXiv 2209.12892). Legend: B batch, H horizon, A action
dimensions, P pieces, D width."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from ..contexts.context import Context
from .backbone import Backbone, Head, Sizes, require_head
from .transformer import Transformer


@dataclass(frozen=True)
class Pieces:
    """The chunk, all its elements in a row, is cut into pieces, each of which a linear layer of its own makes
    a token. The `inner` network sees the tokens as the actions of a chunk, and other linear layers make
    pieces of what it gives."""

    inner: Backbone = field(default_factory=lambda: Transformer(width=128, depth=4))
    """Any network of chunks that gives one chunk."""
    lengths: tuple[int, ...] = ()
    """Elements of each piece, in their order; empty: `count` pieces that are as long as each other, but for
    one element."""
    count: int = 8
    """Pieces, where no lengths are given."""
    width: int = 128
    """Of a token."""
    present: bool = False
    """Each token is also told of its own piece of where the chunk starts: the weights, say, that a policy has
    now. For codecs and data that say so, see `Context.present`; of a horizon of 1."""

    def build(self, sizes: Sizes, head: Head) -> nn.Module:
        offers = Head("chunk", 2, forward_mode=head.forward_mode, second_order=head.second_order)
        require_head(self, head, offers)
        if type(self.inner) is Pieces:
            raise ValueError("Pieces wraps a plain network, not another Pieces")
        elements = sizes.horizon * sizes.action_dim
        lengths = self.lengths or equal(elements, self.count)
        if sum(lengths) != elements or min(lengths, default=0) < 1:
            raise ValueError(
                f"the {len(lengths)} pieces of Pieces have {sum(lengths)} elements, each at least one, and "
                f"the chunk has {elements}: set --backbone.lengths, or --backbone.count of up to {elements}"
            )
        if self.present and sizes.horizon > 1:
            raise ValueError("Pieces are told where a chunk of one action starts: set --horizon 1")
        chunk = replace(sizes, action_dim=self.width, horizon=len(lengths), n_past_actions=0)
        return PiecesNet(lengths, self.width, self.present, self.inner.build(chunk, head))


def equal(elements: int, count: int) -> tuple[int, ...]:
    """Lengths of `count` pieces of `elements`, the longer ones first."""
    each, more = divmod(elements, max(count, 1))
    return tuple(each + (i < more) for i in range(max(count, 1)))


def layers_in(names: Sequence[str]) -> tuple[int, ...]:
    """How many elements are of each layer of a policy, in their order. names: as `weights.names_of` gives
    them, `net.out.weight:3`; the weights and biases of one module are one layer."""
    lengths: dict[str, int] = {}
    for name in names:
        layer = name.rpartition(":")[0].rpartition(".")[0]
        lengths[layer] = lengths.get(layer, 0) + 1
    return tuple(lengths.values())


class PiecesNet(nn.Module):
    def __init__(self, lengths: tuple[int, ...], width: int, present: bool, inner: nn.Module) -> None:
        super().__init__()
        self.lengths, self.present, self.inner = list(lengths), present, inner
        self.evaluations = int(getattr(inner, "evaluations", 1))
        self.enter = nn.ModuleList(nn.Linear((1 + present) * n, width) for n in lengths)
        self.leave = nn.ModuleList(nn.Linear(width, n) for n in lengths)

    def forward(self, x_BHA: Tensor, s: Tensor, t: Tensor, context: Context) -> Tensor:
        pieces = x_BHA.flatten(1).split(self.lengths, dim=-1)
        if self.present:
            if context.present is None:
                raise ValueError(
                    "Pieces are told where the chunk starts, and the data do not say: use --backbone.present "
                    "false"
                )
            own = context.present.to(x_BHA.dtype).split(self.lengths, dim=-1)
            pieces = [torch.cat(pair, dim=-1) for pair in zip(pieces, own, strict=True)]
        tokens = [layer(piece) for layer, piece in zip(self.enter, pieces, strict=True)]
        drawn = self.inner(torch.stack(tokens, dim=1), s, t, replace(context, present=None)).unbind(1)
        whole = [layer(token) for layer, token in zip(self.leave, drawn, strict=True)]
        return torch.cat(whole, dim=-1).reshape(x_BHA.shape)
