"""A language model that reads and does not write: of tokens it gives each layer's keys and values, which an
action expert attends to.

Legend: B batch, S tokens, N layers, G heads of keys and values, E width of a head, D width."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..contexts.context import Layers
from .layers import Block, Family, attend, bias_of, frequencies, rotated, turns


@dataclass(frozen=True)
class Language:
    """Gemma's or Llama's layers. The defaults are those of PaliGemma's Gemma 2B."""

    family: Family = "gemma"
    """Whose layers: gemma, or llama, as SmolVLM2's."""
    width: int = 2048
    """Of a token."""
    depth: int = 18
    """Number of layers; of a published model the first so many are used."""
    heads: int = 8
    """Of the queries, in each layer; a multiple of kv_heads."""
    kv_heads: int = 1
    """Of the keys and values, in each layer."""
    head_dim: int = 256
    """Width of a head; even."""
    ffn: int = 16384
    """Hidden units of a layer."""
    vocabulary: int = 257152
    """Rows of the table of tokens."""

    def build(self) -> Reader:
        if self.heads % self.kv_heads or self.head_dim % 2:
            raise ValueError(
                f"Language heads {self.heads} must be a multiple of kv_heads {self.kv_heads}, and head_dim "
                f"{self.head_dim} even"
            )
        return Reader(self)

    @property
    def layers(self) -> Layers:
        return Layers(self.depth, self.heads, self.kv_heads, self.head_dim, self.family)


class Reader(nn.Module):
    def __init__(self, c: Language) -> None:
        super().__init__()
        self.part = c
        self.embed_tokens = nn.Embedding(c.vocabulary, c.width)
        nn.init.normal_(self.embed_tokens.weight, std=c.width**-0.5)
        sizes = (c.width, c.ffn, c.heads, c.kv_heads, c.head_dim, c.family)
        self.frequencies: Tensor
        self.register_buffer("frequencies", frequencies(c.head_dim), persistent=False)
        # what the last layer makes of its tokens nobody reads
        self.layers = nn.ModuleList(Block(*sizes, keys_only=i == c.depth - 1) for i in range(c.depth))

    def embed(self, ids: Tensor) -> Tensor:
        """Tokens `(..., D)` of their numbers `(...)`, times the root of their width, as published."""
        return self.embed_tokens(ids) * self.part.width**0.5

    def forward(self, tokens_BSD: Tensor, mask_BS: Tensor, blocks_S: Tensor) -> Tensor:
        """Keys, turned by their positions, and values of all layers `(B, S, N·2·G·E)`, see
        `contexts.context.Layers`. mask: False where there is no token; these count for no position. blocks:
        a token sees those of its own block and of lower ones."""
        seen = (blocks_S[None, :] <= blocks_S[:, None])[None] & mask_BS[:, None]
        # a token that is none sees itself, or its attention would be undefined
        seen = seen | torch.eye(len(blocks_S), dtype=torch.bool, device=seen.device)
        bias = bias_of(seen, tokens_BSD.dtype)
        by = turns(mask_BS.cumsum(1) - 1, self.frequencies)
        x, given = tokens_BSD, []
        for layer in self.layers:
            assert isinstance(layer, Block)
            normed = layer.input_layernorm(x)
            keys, values = layer.self_attn.keys_values(normed)
            keys = rotated(keys, by)
            given += [keys.transpose(1, 2).flatten(2), values.transpose(1, 2).flatten(2)]
            if len(given) < 2 * self.part.depth:
                queries = rotated(layer.self_attn.queries(normed), by)
                x = layer.after(x, attend(queries, keys, values, bias), None, None)
        return torch.cat(given, dim=-1)
