"""The layers of decoder-only language models (Gemma's and Llama's), for the models and for the action experts
beside them. Names of weights are those of the published checkpoints.

Legend: B batch, L queries, S keys, H heads, G heads of keys and values, E width of a head, D width."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Family = Literal["gemma", "llama"]
"""Gemma: norms are told as 1 + weight, GELU gates. Llama (SmolLM2's kind, too): norms by weight, SiLU
gates."""


class RMSNorm(nn.Module):
    """Root mean square normalisation, computed in float32."""

    def __init__(self, width: int, family: Family) -> None:
        super().__init__()
        self.offset, self.eps = (1.0, 1e-6) if family == "gemma" else (0.0, 1e-5)
        self.weight = nn.Parameter(torch.full((width,), 1.0 - self.offset))

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x.float(), x.shape[-1:], self.offset + self.weight.float(), self.eps).to(x.dtype)


class AdaptiveNorm(nn.Module):
    """The same, scaled, shifted and with a gate for what follows, all by a condition `(B, 1 or L, D)` (pi0.5,
    Black et al. 2025, arXiv 2504.16054)."""

    def __init__(self, width: int, family: Family) -> None:
        super().__init__()
        self.eps = 1e-6 if family == "gemma" else 1e-5
        self.dense = nn.Linear(width, 3 * width)
        nn.init.zeros_(self.dense.weight)
        nn.init.zeros_(self.dense.bias)

    def forward(self, x: Tensor, condition: Tensor) -> tuple[Tensor, Tensor]:
        """(normalised, the gate of the branch)."""
        scale, shift, gate = self.dense(condition).chunk(3, dim=-1)
        normed = F.rms_norm(x.float(), x.shape[-1:], None, self.eps)
        return (normed * (1 + scale.float()) + shift.float()).to(x.dtype), gate


class SelfAttention(nn.Module):
    """The four projections. source: width of what keys and values are made of."""

    def __init__(
        self, width: int, heads: int, kv_heads: int, head_dim: int, source: int, queries: bool = True
    ) -> None:
        super().__init__()
        self.kv_heads, self.head_dim = kv_heads, head_dim
        self.k_proj = nn.Linear(source, kv_heads * head_dim, bias=False)
        self.v_proj = nn.Linear(source, kv_heads * head_dim, bias=False)
        if queries:
            self.q_proj = nn.Linear(width, heads * head_dim, bias=False)
            self.o_proj = nn.Linear(heads * head_dim, width, bias=False)

    def queries(self, x: Tensor) -> Tensor:
        """`(B, H, L, E)`."""
        return self.q_proj(x).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)

    def keys_values(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """`(B, G, S, E)` both."""
        shape = (self.kv_heads, self.head_dim)
        keys, values = self.k_proj(x).unflatten(-1, shape), self.v_proj(x).unflatten(-1, shape)
        return keys.transpose(1, 2), values.transpose(1, 2)


class GatedMLP(nn.Module):
    def __init__(self, width: int, ffn: int, family: Family) -> None:
        super().__init__()
        self.gelu = family == "gemma"
        self.gate_proj = nn.Linear(width, ffn, bias=False)
        self.up_proj = nn.Linear(width, ffn, bias=False)
        self.down_proj = nn.Linear(ffn, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        gate = self.gate_proj(x)
        gate = F.gelu(gate, approximate="tanh") if self.gelu else F.silu(gate)
        return self.down_proj(gate * self.up_proj(x))


class Block(nn.Module):
    """One layer. adaptive: its norms are told a condition. source: width of what its keys and values are made
    of, where that is not the layer's own tokens. keys_only: nothing attends in it, it is there for those who
    read its keys and values."""

    def __init__(
        self,
        width: int,
        ffn: int,
        heads: int,
        kv_heads: int,
        head_dim: int,
        family: Family,
        *,
        adaptive: bool = False,
        source: int | None = None,
        keys_only: bool = False,
    ) -> None:
        super().__init__()
        norm = AdaptiveNorm if adaptive else RMSNorm
        self.input_layernorm = norm(width, family)
        self.self_attn = SelfAttention(width, heads, kv_heads, head_dim, source or width, not keys_only)
        if not keys_only:
            self.post_attention_layernorm = norm(width, family)
            self.mlp = GatedMLP(width, ffn, family)

    def after(
        self, x: Tensor, attended_BHLE: Tensor, gate: Tensor | None, condition: Tensor | None
    ) -> Tensor:
        """The tokens after this layer, of those before it and of what they attended to."""
        attended = self.self_attn.o_proj(attended_BHLE.transpose(1, 2).flatten(2))
        x = residual(x, attended, gate)
        normed, gate = normalised(self.post_attention_layernorm, x, condition)
        return residual(x, self.mlp(normed), gate)


def normalised(norm: nn.Module, x: Tensor, condition: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """(x normalised, the gate of the branch or None)."""
    return (norm(x), None) if condition is None else norm(x, condition)


def residual(x: Tensor, branch: Tensor, gate: Tensor | None) -> Tensor:
    return x + branch if gate is None else x + branch * gate


def frequencies(head_dim: int, base: float = 10_000.0) -> Tensor:
    """`(E,)` float32, by how much each place of a head turns from one position to the next."""
    once = 1.0 / base ** (torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim)
    return torch.cat([once, once])


def turns(positions_BL: Tensor, frequencies_E: Tensor) -> tuple[Tensor, Tensor]:
    """The cosines and, signed for `rotated`, the sines `(B, 1, L, E)` float32 of rotary positions (Su et al.
    2021, arXiv 2104.09864)."""
    angles = positions_BL[:, None, :, None].float() * frequencies_E
    first, second = angles.sin().chunk(2, dim=-1)
    return angles.cos(), torch.cat([-first, second], dim=-1)


def rotated(x_BHLE: Tensor, by: tuple[Tensor, Tensor]) -> Tensor:
    """Its halves turned against each other, as in the released models, computed in float32."""
    cos, sin = by
    x = x_BHLE.float()
    return torch.addcmul(x * cos, x.roll(x.shape[-1] // 2, -1), sin).to(x_BHLE.dtype)


def attend(q_BHLE: Tensor, k_BGSE: Tensor, v_BGSE: Tensor, bias: Tensor | None) -> Tensor:
    """`(B, H, L, E)`. bias: `(B or 1, 1, L, S)`, 0 where a query sees a key, -inf where not; every query must
    see one."""
    shared = q_BHLE.shape[1] != k_BGSE.shape[1]
    return F.scaled_dot_product_attention(q_BHLE, k_BGSE, v_BGSE, attn_mask=bias, enable_gqa=shared)


def bias_of(seen: Tensor, dtype: torch.dtype) -> Tensor:
    """Of a mask `(B or 1, L, S)` bool what `attend` takes."""
    return torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill(~seen, -torch.inf)[:, None]
