"""One network that makes the weights of small ones of many sizes (HyperPPO, Hegde et al. 2023, arXiv
2309.16663), by a graph hypernetwork (Zhang et al. 2019, arXiv 1810.05749).

Legend: B batch, H horizon, A action dimensions, M small networks, L most hidden layers, N = L + 2 nodes of a
graph, E embedding, O and I outputs and inputs of a layer."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn

from ..contexts.context import Context
from .backbone import Head, Sizes, require_head
from .small_mlp import GeneratedLayer, Layer, noisy, through

Hidden = tuple[int, ...]
"""The widths of a small network's hidden layers."""


@dataclass(frozen=True)
class HyperPPO:
    """A `SmallMLP` of every size, at a training's price: each layer is a node of a graph that knows its
    width, nodes tell those beside them, and each makes its layer's weights of what it has heard. A call in
    training shares its rows among some sizes that are drawn; in use one size acts, which the hook `Hidden`
    chooses.

    Faithful: nodes pass on by a gated unit along the network and back; weights are made in the largest size
    and cut; each number of layers has the same share, whatever its choices; rows are shared among the sizes.
    Not: a layer's weights and biases are one node, and three linear heads (of the first, the inner and the
    last layers) make them, in the place of convolutions for all; what is cut is scaled up as its inputs get
    fewer. A decision generates its network anew, until `ulna export --hidden` writes it out."""

    widths: tuple[int, ...] = (4, 8, 16, 32, 64)
    """That a hidden layer may have."""
    depth: int = 3
    """Most hidden layers."""
    acts: tuple[int, ...] = (64, 64)
    """Widths of the hidden layers of the network that acts where no other is chosen."""
    at_once: int = 8
    """Sizes that share a batch in training."""
    embedding: int = 32
    """Width of a node."""

    def __post_init__(self) -> None:
        if not self.widths or min(*self.widths, self.depth, self.embedding) < 1 or self.at_once < self.depth:
            raise ValueError(
                "HyperPPO's widths are one or more, each at least 1, as are depth and embedding, and at_once "
                "is no less than depth"
            )
        self.require(self.acts)

    def require(self, hidden: Hidden) -> None:
        """ValueError unless there is a network of these hidden layers."""
        if not 1 <= len(hidden) <= self.depth or not {*hidden} <= {*self.widths}:
            raise ValueError(
                f"the policy has no network of hidden layers {' '.join(map(str, hidden)) or '(none)'}: they "
                f"are 1 to {self.depth}, each {' or '.join(map(str, self.widths))} wide"
            )

    def build(self, sizes: Sizes, head: Head) -> nn.Module:
        require_head(self, head, Head("chunk", 2, forward_mode=True, second_order=True))
        return HyperPPONet(self, sizes)


class HyperPPONet(nn.Module):
    def __init__(self, c: HyperPPO, sizes: Sizes) -> None:
        super().__init__()
        self.c, most, e = c, max(c.widths), c.embedding
        self.ends = sizes.pooled_width, sizes.horizon * sizes.action_dim
        self.place = nn.Parameter(torch.randn(c.depth + 2, e))  # of a node in its graph
        self.width = nn.Linear(1, e)
        self.message = nn.Sequential(nn.Linear(e, e), nn.ReLU(), nn.Linear(e, e))
        self.hear = nn.GRUCell(e, e)
        self.norm = nn.LayerNorm(e, elementwise_affine=False)
        self.first = GeneratedLayer(e, self.ends[0], most)
        self.inner = GeneratedLayer(e, most, most)
        self.last = GeneratedLayer(e, most, self.ends[1])
        self.enter = nn.Linear(self.ends[1] + 2, most, bias=False)

    def forward(self, x_BHA: Tensor, s: Tensor, t: Tensor, context: Context) -> Tensor:
        drawn = self.training and torch.is_grad_enabled()
        hidden = self.draw() if drawn else [context.hidden or self.c.acts]
        seen, own = (v.tensor_split(len(hidden)) for v in (context.pooled, noisy(x_BHA, s, t)))
        chunk = [
            through(layers, of, nn.functional.linear(noise, self.enter.weight[: len(layers[0][1])]))
            for layers, of, noise in zip(self.generate(hidden), seen, own, strict=True)
        ]
        return torch.cat(chunk).reshape(x_BHA.shape)

    def draw(self) -> list[Hidden]:
        """The sizes that share a batch: as many of each number of layers, of widths that are drawn."""
        c = self.c
        drawn = torch.randint(len(c.widths), (c.at_once, c.depth)).tolist()
        return [tuple(c.widths[i] for i in of[: 1 + n % c.depth]) for n, of in enumerate(drawn)]

    def generate(self, hidden: list[Hidden]) -> list[list[Layer]]:
        """The layers of M small networks."""
        nodes = self.nodes(hidden)
        depth, most = self.c.depth, max(self.c.widths)
        first, last = self.first(nodes[0]), self.last(nodes[-1])
        inner = [self.inner(node) for node in nodes[1:depth]]
        made = []
        for i, widths in enumerate(hidden):
            layers = [first, *inner[: len(widths) - 1], last]
            ends = [self.ends[0], *widths, self.ends[1]]
            scale = [1.0, *(math.sqrt(most / width) for width in widths)]
            made.append(
                [
                    (w[i, :outputs, :inputs] * by, b[i, :outputs])
                    for (w, b), (inputs, outputs), by in zip(layers, pairwise(ends), scale, strict=True)
                ]
            )
        return made

    def nodes(self, hidden: list[Hidden]) -> list[Tensor]:
        """What the nodes of layers have heard, each `(M, E)`: one for each hidden layer, of width 0 where
        there is none, and one for the last layer."""
        depth, (inputs, outputs), like = self.c.depth, self.ends, self.place
        widths = [w for of in hidden for w in (inputs, *of, *[0] * (depth - len(of)), outputs)]
        # filled on the device, as a CUDA graph of a decision can repeat
        logs = torch.stack([like.new_full((1,), math.log1p(w)) for w in widths])
        nodes = list((like + self.width(logs).unflatten(0, (len(hidden), depth + 2))).unbind(1))
        along = [(i, i - 1) for i in range(1, depth + 2)]
        for node, other in (*along, *((before, i) for i, before in reversed(along[1:]))):
            nodes[node] = self.hear(self.message(nodes[other]), nodes[node])
        return [self.norm(node) for node in nodes[1:]]

    @torch.no_grad()
    def weights(self, hidden: Hidden) -> dict[str, Tensor]:
        """Those of the `SmallMLP` of these hidden layers, by their names there."""
        named = {"enter.weight": self.enter.weight[: hidden[0]]}
        for i, (weight, bias) in enumerate(self.generate([hidden])[0]):
            named |= {f"layers.{i}.weight": weight, f"layers.{i}.bias": bias}
        return {name: value.clone() for name, value in named.items()}
