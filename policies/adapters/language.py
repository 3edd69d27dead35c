"""A language model that reads, and goes on where it is to write itself: of tokens it gives each layer's keys
and values, to which an action expert or the model's own next tokens attend, or what the last layer makes of
them.

Legend: B batch, S tokens, L more tokens, N layers, G heads of keys and values, E width of a head, D width, V
vocabulary."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from ..contexts.context import Layers
from .layers import Block, Family, RMSNorm, attend, bias_of, frequencies, rotated, turns

KeysValues = list[tuple[Tensor, Tensor]]
"""Of each layer, `(B, G, S, E)` both, the keys turned by their positions."""


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
    gives: Literal["keys", "tokens", "words"] = "keys"
    """What is wanted of it: each layer's keys and values, of which its last layer makes nothing more (keys);
    its last layer's tokens (tokens); or the keys and values, and to go on from them itself (words)."""

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
        # where keys are wanted, nobody reads what the last layer makes of its tokens
        last = c.depth - 1 if c.gives == "keys" else c.depth
        self.layers = nn.ModuleList(Block(*sizes, keys_only=i == last) for i in range(c.depth))
        if c.gives == "words":
            self.norm = RMSNorm(c.width, c.family)

    def embed(self, ids: Tensor) -> Tensor:
        """Tokens `(..., D)` of their numbers `(...)`, times the root of their width, as published."""
        return self.embed_tokens(ids) * self.part.width**0.5

    def forward(self, tokens_BSD: Tensor, mask_BS: Tensor, blocks_S: Tensor) -> Tensor:
        """Keys, turned by their positions, and values of all layers `(B, S, N·2·G·E)`, see
        `contexts.context.Layers`; where it gives tokens, what the last layer makes of them `(B, S, D)`. mask:
        False where there is no token; these count for no position. blocks: a token sees those of its own
        block and of lower ones."""
        seen = (blocks_S[None, :] <= blocks_S[:, None])[None] & mask_BS[:, None]
        # a token that is none sees itself, or its attention would be undefined
        seen = seen | torch.eye(len(blocks_S), dtype=torch.bool, device=seen.device)
        bias = bias_of(seen, tokens_BSD.dtype)
        by = turns(mask_BS.cumsum(1) - 1, self.frequencies)
        x, given, last = tokens_BSD, [], self.layers[-1]
        for layer in self.layers:
            assert isinstance(layer, Block)
            normed = layer.input_layernorm(x)
            keys, values = layer.self_attn.keys_values(normed)
            keys = rotated(keys, by)
            given += [keys.transpose(1, 2).flatten(2), values.transpose(1, 2).flatten(2)]
            if layer is not last or self.part.gives == "tokens":
                queries = rotated(layer.self_attn.queries(normed), by)
                x = layer.after(x, attend(queries, keys, values, bias), None, None)
        return x if self.part.gives == "tokens" else torch.cat(given, dim=-1)

    def further(
        self, tokens_BLD: Tensor, before: KeysValues, mask_BS: Tensor, causal: bool
    ) -> tuple[Tensor, KeysValues]:
        """(what the model makes of L tokens after those that it read, normalised `(B, L, D)`; the keys and
        values of all S + L). before, mask: of what it read. causal: of the L each sees itself and those
        before it; else all of them. For a model that gives words."""
        b, length = tokens_BLD.shape[:2]
        own = torch.ones(length, length, dtype=torch.bool, device=mask_BS.device)
        own = own.tril() if causal else own
        seen = torch.cat([mask_BS[:, None].expand(-1, length, -1), own.expand(b, -1, -1)], dim=2)
        bias = bias_of(seen, tokens_BLD.dtype)
        places = mask_BS.sum(1, keepdim=True) + torch.arange(length, device=mask_BS.device)
        by = turns(places, self.frequencies)
        x, after = tokens_BLD, []
        for layer, (keys, values) in zip(self.layers, before, strict=True):
            assert isinstance(layer, Block)
            normed = layer.input_layernorm(x)
            own_keys, own_values = layer.self_attn.keys_values(normed)
            keys = torch.cat([keys, rotated(own_keys, by)], dim=2)
            values = torch.cat([values, own_values], dim=2)
            queries = rotated(layer.self_attn.queries(normed), by)
            x = layer.after(x, attend(queries, keys, values, bias), None, None)
            after.append((keys, values))
        return self.norm(x), after

    def logits(self, tokens_BLD: Tensor) -> Tensor:
        """`(B, L, V)` float32 of the next word, by the table that words are read by."""
        return nn.functional.linear(tokens_BLD, self.embed_tokens.weight).float()
