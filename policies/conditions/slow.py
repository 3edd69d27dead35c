"""What a slow policy said some ticks ago (RoboDual, Bu et al. 2024, arXiv 2410.08001): its chunk, as actions
to refer to, and a latent of what it saw.

Legend: B batch, n actions of the slow policy's chunk from its tick on, A action dimensions, G its pooled
context, W = n·A, or n·A + G with the latent, M memory width."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from ...datasets.features import ACTION, Features, features_from_json
from ...datasets.stats import Stats
from ..contexts.context import Reference
from ..recipe import Recipe
from ..request import TASK, Request
from .condition import ConditionNet

EARLIER = "earlier."
SAID = "slow.said"  # key of the `Said` that the network is called with
OTHER = 0x5105A1D  # its draws are not those of the policy that asks it


@dataclass(frozen=True)
class Kept:
    """A policy inside another's checkpoint: all of it but its weights, which are among the other's. Training
    makes it of a checkpoint's folder, see `train.slow`."""

    recipe: Recipe
    """Its parts."""
    features: str
    """Its features, in JSON."""
    stats: str
    """The statistics behind its normalisers, in JSON."""
    content_hash: str
    """Of the checkpoint that it was."""

    def parts(self) -> tuple[Recipe, Features, dict[str, Stats]]:
        """What a `Policy` is made of."""
        stats = {k: Stats.from_json(v) for k, v in json.loads(self.stats).items()}
        return self.recipe, features_from_json(json.loads(self.features)), stats


@dataclass(frozen=True)
class Slow:
    """What another policy, a slow one, said some ticks ago: one token of its latent, its pooled context, and
    of the age of what it said; and its chunk, for the backbone `Referenced`. It is asked at an episode's
    first decision and whenever `every` ticks are over; what it said is carried from decision to decision in
    the memory. In training it is asked at a random earlier tick of each row's episode, its weights as they
    are. A decision counts as n_action_steps ticks, as one with the decoder `ensemble`: ages are off by as
    much as a strategy asks at other times. Its evaluations are not counted."""

    slow: str = ""
    """Folder of the slow policy's checkpoint, which the new checkpoint then holds whole."""
    every: int = 8
    """Ticks after which the slow policy is asked anew, at the next decision."""
    delay: int = 0
    """Ticks until its answer is there, up to `every`: until then what it said before counts, and at first
    nothing. 0: it answers at once."""
    latent: bool = True
    """Tell its latent; else its actions and their age only."""
    alone: tuple[str, ...] = ()
    """Observations that only the slow policy sees."""
    drop: float = 0.0
    """Share of the training rows that are not told, 0 to 1."""
    kept: Kept | None = None
    """The slow policy, in a checkpoint; made by training."""

    def needs(self) -> dict[str, Any]:
        earlier = {"earlier": self.every - 1 + self.delay, "earlier_from": self.delay}
        conditions = () if self.kept is None else self.kept.recipe.conditions
        return earlier | {name: value for c in conditions for name, value in c.needs().items()}

    def keys(self, features: Features) -> tuple[str, ...]:
        conditions = () if self.kept is None else self.kept.recipe.conditions
        return tuple(dict.fromkeys((*self.alone, *(k for c in conditions for k in c.keys(features)))))

    def hides(self, features: Features) -> tuple[str, ...]:
        return self.alone

    def build(self, features: Features, encoder: nn.Module, width: int) -> ConditionNet:
        if self.every < 1 or not 0 <= self.delay <= self.every:
            raise ValueError(
                f"Slow's every is {self.every} and its delay {self.delay}: every is at least 1, and delay "
                "lies in 0..every"
            )
        if self.kept is None:
            raise ValueError(
                "the policy asks a slow one: name its checkpoint, --conditions.Slow.slow FOLDER, when it is "
                "trained"
            )
        return SlowNet(self, width)


@dataclass(frozen=True)
class Said:
    """values `(B, W)`: chunk in its units, and latent. age `(B,)` int64, in ticks; negative: none."""

    values: Tensor
    age: Tensor

    def where(self, mask_B: Tensor, other: Said) -> Said:
        """Itself in the rows of the mask, else `other`."""
        values = torch.where(mask_B[:, None], self.values, other.values)
        return Said(values, torch.where(mask_B, self.age, other.age))

    def later(self, ticks: int) -> Said:
        return replace(self, age=torch.where(self.age < 0, self.age, self.age + ticks))


class SlowNet(ConditionNet):
    """The memory `(B, M)` is one answer or, where answers have a delay, the last and the one before: of each
    the age, then the values."""

    n_tokens = 1

    def __init__(self, part: Slow, width: int) -> None:
        super().__init__()
        self.part, self.width = part, width
        self.age = nn.Embedding(part.every + part.delay, width)

    def use(self, policy: Any) -> None:
        """Called once, with the slow policy. ValueError says in one sentence why it cannot be asked."""
        recipe, name = policy.recipe, policy.recipe.name
        if recipe.needs_past or policy.memory_width:
            what = "the actions sent before now" if recipe.needs_past else "a memory of its own"
            raise ValueError(f"the slow policy is a {name} that wants {what}: take one that does not")
        self.policy = policy.eval().requires_grad_(False)
        self.shape = recipe.horizon - recipe.n_past_actions, policy.features[ACTION].shape[0]
        latent = policy.context_net.pooled_width if self.part.latent else 0
        self.values = self.shape[0] * self.shape[1] + latent
        self.memory_width = (1 + self.values) * (2 if self.part.delay else 1)
        self.latent = nn.Linear(latent, self.width) if latent else None

    def train(self, mode: bool = True) -> SlowNet:
        super().train(mode)
        self.policy.eval()
        return self

    def forward(self, observation: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
        said: Said = observation[SAID]
        token = self.age(said.age.clamp(0, self.age.num_embeddings - 1))
        if self.latent is not None:
            latent = said.values[:, self.shape[0] * self.shape[1] :]
            token = token + self.latent(nn.functional.layer_norm(latent, latent.shape[1:]))
        return token[:, None], (said.age >= 0)[:, None]

    def reference(self, observation: Mapping[str, Any]) -> Reference:
        said: Said = observation[SAID]
        chunk = said.values[:, : self.shape[0] * self.shape[1]].unflatten(1, self.shape)
        return Reference(chunk, said.age, said.age >= 0)

    def carry(
        self, observation: Mapping[str, Any], memory: Tensor | None, ticks: int, seed: Any, drop: bool
    ) -> tuple[dict[str, Any], Tensor | None]:
        like = next(v for v in observation.values() if isinstance(v, Tensor))
        nothing = Said(
            torch.zeros(len(like), self.values, device=like.device),
            torch.full((len(like),), -1, device=like.device),
        )
        if drop:  # nobody need be asked
            return {SAID: nothing}, memory
        if EARLIER + "ticks" in observation:
            seen = {k: observation[EARLIER + k] for k in self.policy.observation_keys}
            age = torch.where(observation[EARLIER + "mask"], observation[EARLIER + "ticks"], -1)
            return {SAID: Said(self.ask({**observation, **seen}), age)}, None
        last, before = self._answers(memory, nothing)
        due = (last.age < 0) | (last.age >= self.part.every)
        answered = last.where(
            ~due, Said(self._asked(observation, due, last.values, seed), torch.zeros_like(last.age))
        )
        if not self.part.delay:
            return {SAID: answered}, _packed(answered.later(ticks))
        before = last.where(due, before)
        told = answered.where(answered.age >= self.part.delay, before)
        return {SAID: told}, torch.cat([_packed(answered.later(ticks)), _packed(before.later(ticks))], dim=1)

    def _answers(self, memory: Tensor | None, nothing: Said) -> tuple[Said, Said]:
        """(the last answer, the one before)."""
        if memory is None:
            return nothing, nothing
        each = [Said(m[:, 1:], m[:, 0].round().long()) for m in memory.float().split(1 + self.values, dim=1)]
        return each[0], each[-1] if self.part.delay else nothing

    def _asked(self, observation: Mapping[str, Any], due: Tensor, values: Tensor, seed: Any) -> Tensor:
        """`values` `(B, W)`, with those of new answers in the rows that are due."""
        rows = due.nonzero().flatten()
        if not len(rows):
            return values
        numbers = rows.tolist()
        own = {
            k: v[rows] if isinstance(v, Tensor) else [v[i] for i in numbers] for k, v in observation.items()
        }
        seeds = seed if seed is None or isinstance(seed, int) else [seed[i] for i in numbers]
        return values.index_copy(0, rows, self.ask(own, seeds))

    @torch.no_grad()
    def ask(self, observation: Mapping[str, Any], seed: Any = None) -> Tensor:
        """What the slow policy says of B rows, `(B, W)`. seed: of its draws, one or B; None: torch's own."""
        policy, recipe = self.policy, self.policy.recipe
        known = {k: observation[k] for k in policy.condition_keys if k in observation}
        known |= {k: observation[k][:, -recipe.n_obs_steps :] for k in policy.observation_keys}
        task = known.pop(TASK, None)
        seeds = (
            OTHER if seed is None else seed ^ OTHER if isinstance(seed, int) else [s ^ OTHER for s in seed]
        )
        request = Request(known, seeds, task=task)
        context = policy.context(request)
        rows = len(context.pooled) * max((h.wants_candidates for h in recipe.steering), default=1)
        shape = rows, recipe.horizon, policy.codec.width

        def drawn() -> Tensor:
            return torch.randn(shape, device=context.pooled.device)

        sampled = policy.sample(request, context=context, noise=drawn if seed is None else None)
        values = [sampled.chunk[:, recipe.n_past_actions :].flatten(1)]
        if self.latent is not None:
            values.append(context.pooled)
        return torch.cat([v.float() for v in values], dim=1)


def _packed(said: Said) -> Tensor:
    return torch.cat([said.age[:, None].to(said.values.dtype), said.values], dim=1)
