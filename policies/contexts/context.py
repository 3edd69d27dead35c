"""Temporal context: what the backbone sees of the past and of the conditions, made of the encodings of the
observation steps. Each way to make it has a file of its own beside this one.

Legend: B batch, L links of a chain, T = n_obs_steps, K tokens of one frame, C condition tokens, S all tokens,
D width, G pooled width, M memory width.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Reference:
    """Actions that another policy gave some ticks ago. actions `(B, n, A)` in their units, the first for the
    tick at which it was asked, which was `age` `(B,)` int ticks ago. told `(B,)` bool: where False, there are
    none."""

    actions: Tensor
    age: Tensor
    told: Tensor

    def ahead(self, horizon: int, n_past_actions: int) -> tuple[Tensor, Tensor]:
        """(the actions of the ticks of a chunk `(B, horizon, A)`, of which the first n_past_actions lie
        before now, those that are over shifted out; for which of these ticks there is one
        `(B, horizon)` bool)."""
        n, device = self.actions.shape[1], self.actions.device
        at = self.age[:, None] + torch.arange(horizon, device=device) - n_past_actions
        there = (at >= 0) & (at < n) & self.told[:, None]
        return self.actions.take_along_dim(at.clamp(0, n - 1)[..., None], dim=1), there


@dataclass(frozen=True)
class Conditions:
    """What is asked for, beside what is seen: words, goals, labels, prompts. tokens `(B, C, D)`, mask `(B,
    C)` bool (False: no token), pooled `(B, n·D)`, one mean for each of the n conditions, task `(B,)` int,
    which of the tasks that are known by number, 0: none of them; None where nobody numbers them. reference:
    actions that another policy gave; None where nobody was asked; left out of `rows`."""

    tokens: Tensor
    mask: Tensor
    pooled: Tensor
    task: Tensor | None = None
    reference: Reference | None = None

    def rows(self, of: slice) -> Conditions:
        task = None if self.task is None else self.task[of]
        return Conditions(self.tokens[of], self.mask[of], self.pooled[of], task)


@dataclass(frozen=True)
class Shown:
    """A demonstrated chunk that a network is shown while it learns to tell it by a latent, see
    `Head.latent`."""

    actions: Tensor
    """`(B, H, A)`, as the network is to give them."""
    mask: Tensor
    """`(B, H)` bool, those that count."""
    noise: Tensor
    """`(B, Z)` standard normal, of which the latent is drawn."""
    weight: Tensor | None = None
    """`(B,)`, how much each row counts in what the latent costs; None: all alike."""

    def mean(self, cost_B: Tensor) -> Tensor:
        """Over the rows, as they count."""
        return (cost_B if self.weight is None else cost_B * self.weight).mean()


@dataclass(frozen=True)
class Layers:
    """Of a language model whose keys and values are a context's tokens: of each layer its keys, then its
    values, heads side by side, `(B, S, depth·2·kv_heads·head_dim)`."""

    depth: int
    heads: int
    kv_heads: int
    head_dim: int
    family: Literal["gemma", "llama"]

    @property
    def token_width(self) -> int:
        return self.depth * 2 * self.kv_heads * self.head_dim

    def of(self, tokens_BSW: Tensor) -> list[tuple[Tensor, Tensor]]:
        """For each layer its keys and values `(B, S, kv_heads, head_dim)`."""
        parts = tokens_BSW.unflatten(-1, (self.depth, 2, self.kv_heads, self.head_dim))
        return [(parts[:, :, i, 0], parts[:, :, i, 1]) for i in range(self.depth)]


ROWS = ("tokens", "pooled", "mask", "present", "cost", "wrote", "task", "reference")
"""Fields of a `Context` that have a row for each question, and that contexts which are put together keep."""


@dataclass(frozen=True)
class Context:
    """tokens `(B, S, D)` for attention; pooled `(B, G)` for FiLM.

    mask: `(B, S)` bool, False where there is no token; None: all are. frame: `(S,)` int, which observation
    step each token is of, -1 for those of all times, such as conditions; None: token j is of step j. memory:
    `(B, M)`, to be carried to the next decision of the episode; None where nothing is. present: `(B, A)`,
    where the robot is now, as the network would see it in the first action of a chunk; None where the
    observation does not say. prefix: `(B, n, A)`, the first actions of the chunk, where they are given to a
    policy that goes on from them (`Prefixed`). shown: the chunk itself, in the training of a latent. cost:
    `(B,)`, what the context itself asks training to pay, such as the price of writing to a memory. wrote:
    `(B,)` bool, whether the decision wrote to the memory, of one that does so now and then. task: `(B,)` int,
    of a network that has something for each task, see `Conditions`. hidden: the widths of the hidden layers,
    of a network that has several sizes (`HyperPPO`); None: its own. reference: `(B, H, A)`, what another
    policy would do, as the network is to give actions, 0 where it does not say; None where nobody was
    asked. extras: what the encoder adds to the training's loss, scalars by name, weighted; None: nothing."""

    tokens: Tensor
    pooled: Tensor
    mask: Tensor | None = None
    frame: Tensor | None = None
    memory: Tensor | None = None
    present: Tensor | None = None
    prefix: Tensor | None = None
    shown: Shown | None = None
    cost: Tensor | None = None
    wrote: Tensor | None = None
    task: Tensor | None = None
    hidden: tuple[int, ...] | None = None
    reference: Tensor | None = None
    extras: Mapping[str, Tensor] | None = None

    def repeat(self, n: int) -> Context:
        """Each row n times in a row: the context of n candidates per observation."""
        return self if n == 1 else self._map(lambda v: v.repeat_interleave(n, dim=0))

    def take(self, rows: Tensor) -> Context:
        """Those `rows` `(b,)` only, indices or bool."""
        return self._map(lambda v: v[rows])

    @staticmethod
    def cat(parts: Sequence[Context]) -> Context:
        """The rows of several contexts of one kind, end to end; their memory is left out."""
        if len(parts) == 1:
            return parts[0]
        shown = [p.shown for p in parts if p.shown is not None]
        joined: dict[str, Any] = {}
        for name in ROWS:
            values = [v for p in parts if (v := getattr(p, name)) is not None]
            joined[name] = torch.cat(values) if values else None
        return replace(
            parts[0],
            **joined,
            memory=None,
            prefix=None,
            shown=_each(torch.cat, shown) if shown else None,
        )

    def first(self, tokens: Tensor, pooled: Tensor) -> Context:
        """With more `tokens` `(B, n, D)`, of all times, before its own, and with `pooled` `(B, g)` after its
        own."""
        n, device = tokens.shape[1], tokens.device
        mask, frame = self.mask, self.frame
        if mask is not None:
            mask = torch.cat([torch.ones_like(mask[:, :1]).expand(-1, n), mask], dim=1)
        if frame is None:
            frame = torch.arange(self.tokens.shape[1], device=device)
        return replace(
            self,
            tokens=torch.cat([tokens, self.tokens], dim=1),
            pooled=torch.cat([self.pooled, pooled], dim=-1),
            mask=mask,
            frame=torch.cat([torch.full((n,), -1, device=device), frame]),
        )

    def _map(self, f: Callable[[Tensor], Tensor]) -> Context:
        rows = (*ROWS, "memory", "prefix")
        mapped: dict[str, Any] = {n: f(v) for n in rows if (v := getattr(self, n)) is not None}
        if self.shown is not None:
            mapped["shown"] = _each(lambda v: f(v[0]), [self.shown])
        return replace(self, **mapped)


def _each(f: Callable[[list[Tensor]], Tensor], parts: Sequence[Shown]) -> Shown:
    """`f` of each field of all parts."""
    names = [n for n in ("actions", "mask", "noise", "weight") if getattr(parts[0], n) is not None]
    return Shown(**{n: f([getattr(p, n) for p in parts]) for n in names})


class ContextNet(nn.Module):
    """What a context part builds: called with z `(B, T, K, D)`, conditions or None, memory `(B, M)` or None,
    and fresh `(B,)` bool, True where an episode begins and the memory is to be forgotten (None: where there
    is no memory, all; else nobody)."""

    token_width: int
    """Last dimension of `Context.tokens`."""
    tokens: int
    """Most tokens that a context can have."""
    pooled_width: int
    """Last dimension of `Context.pooled`."""
    memory_width: int = 0
    """Last dimension of `Context.memory`; 0: none."""
    layers: Layers | None = None
    """Whose keys and values `Context.tokens` are; None: they are no layers'."""
    told_once: bool = False
    """Whether `along` looks at the conditions of a chain's first decision only: then it is given no
    others."""
    backprop: int = 0
    """Decisions that a gradient goes back through along the memory; 0: all of a chain."""

    def along(self, z: Tensor, conditions: Conditions | None, fresh: Tensor) -> Context:
        """The contexts of L decisions in a row of each of B episodes, as training sees them.

        z `(L·B, T, K, D)`, and the rows of the conditions: all of the first decision, then all of the second
        and so on, and so are those of what comes back. fresh `(L, B)` bool: True at the first decision, where
        the memory is empty, and nowhere else. A net that need not go one by one has its own way, with the
        same result."""
        contexts, memory = list[Context](), None
        for i, new in enumerate(fresh):
            rows = slice(i * len(new), (i + 1) * len(new))
            if memory is not None and self.backprop and i % self.backprop == 0:
                memory = memory.detach()
            told = None if conditions is None else conditions.rows(rows)
            contexts.append(self(z[rows], told, memory, new))
            memory = contexts[-1].memory
        return Context.cat(contexts)

    def use(self, encoder: nn.Module) -> None:
        """Called once, with the policy's encoder, for a context that has need of it and must not own it.
        ValueError says in one sentence what it lacks."""


def carried(memory: Tensor | None, fresh: Tensor | None, empty: Tensor) -> tuple[Tensor, Tensor]:
    """(the memory `(B, M)`, or `empty` where there is none or it is to be forgotten; where it is empty
    `(B,)` bool)."""
    if memory is None:
        return empty, torch.ones(len(empty), dtype=torch.bool, device=empty.device)
    if fresh is None:
        return memory, torch.zeros(len(empty), dtype=torch.bool, device=empty.device)
    return torch.where(fresh[:, None], empty, memory), fresh


class ContextPart(Protocol):
    """A frozen dataclass that makes the context of a policy from the encodings of its observations. One that
    carries a memory is trained on windows in a row, `chain` of them (an attribute; none: one), which begin
    where `begin` says (an attribute; none: anywhere), see `WindowSpec`."""

    def build(
        self, width: int, tokens_per_frame: int, n_obs_steps: int, conditions: int, condition_tokens: int
    ) -> ContextNet:
        """width: D of encodings and condition tokens. conditions: how many there are, condition_tokens: how
        many tokens they have together."""
        ...
