"""Policies that are learned to act smoothly: CAPS, conditioning for action policy smoothness (Mysore,
Mabsout, Mancuso and Saenko 2021, arXiv 2012.06644). Legend: B batch, H horizon, A action dimensions.

Two terms beside the loss, both options of training (`recipe.Training`). caps_temporal asks that what is
decided at one tick is near what is decided at the next, |pi(s_t) - pi(s_t+1)|²; caps_spatial that it is near
what would be decided if the vectors that are observed were a little otherwise, |pi(s) - pi(s + xi)|², xi
normal with the deviation caps_spread, in normalised units.

Faithful: both terms, added to the loss. Not: published for reinforcement learning, and there as norms, here
beside any loss on demonstrations and as squares; published for single actions, here for chunks, the action in
each place of the one against that in the same place of the other. So with targets of position the temporal
term is paid for speed, too, and draws a large weight's policy to slow ones.

A policy that is refined out of noise is compared as it is trained: at the level and the noise that the loss
drew, by what the network gives there (a velocity, a clean chunk), as the loss is, so that a weight means the
same at every level. What it acts like is smoother as far as the network is, which is to be measured. What a
codec measures from the state (`Relative`) is compared so, not in the frame of the robot. What a network
draws by itself in training (dropout, the noise of a gate) is drawn anew for what is compared.

Costs one pass through the encoder and one through the network for each term, in training only."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ..datasets.features import Features, image_keys, is_image
from .backbones.backbone import Output, outputs
from .codec import Affine
from .contexts.context import Context
from .objectives.objective import masked_mean
from .recipe import Recipe


class Learning(Protocol):
    """What is asked of the policy that learns, see `policies.policy.Policy`."""

    recipe: Recipe
    encoded_keys: tuple[str, ...]
    observation_keys: tuple[str, ...]

    def encode(self, observation: Mapping[str, Any]) -> Context: ...

    def has_normaliser(self, key: str) -> bool: ...

    def normaliser(self, key: str) -> Affine: ...


class Heard(nn.Module):
    """A network that remembers what the objective asked it, and what it gave."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net
        self.calls: list[tuple[Tensor, Tensor, Tensor, Context, Tensor]] = []

    def forward(self, x: Tensor, s: Tensor, t: Tensor, context: Context) -> Tensor:
        chunk = self.net(x, s, t, context)
        self.calls.append((x, s, t, context, chunk))
        return chunk

    def outputs(self, x: Tensor, s: Tensor, t: Tensor, context: Context) -> Output:
        output = outputs(self.net, x, s, t, context)
        self.calls.append((x, s, t, context, output.chunk))
        return output


def wants(recipe: Recipe) -> bool:
    """Whether its training has one of the terms."""
    return recipe.training.caps_temporal > 0 or recipe.training.caps_spatial > 0


def require_caps(recipe: Recipe, features: Features, augment: Collection[str] = ()) -> None:
    """ValueError in one sentence where the recipe's training asks for what cannot be compared. augment: how
    pictures are changed in training."""
    t, needs = recipe.training, recipe.objective.needs
    if t.caps_temporal < 0 or t.caps_spatial < 0 or t.caps_spread <= 0:
        raise ValueError("caps_temporal and caps_spatial are not negative, and caps_spread is above 0")
    if not wants(recipe):
        return
    name = type(recipe.objective).__name__
    if needs.output != "chunk" or needs.forward_mode or needs.second_order or needs.words:
        raise ValueError(
            f"caps compares the chunks that a network gives in one pass, and {name} learns otherwise: leave "
            "out caps_temporal and caps_spatial"
        )
    remembers = any(getattr(c, "kept", None) is not None for c in recipe.conditions)
    if remembers or int(getattr(recipe.context, "chain", 1)) > 1:
        raise ValueError("caps compares decisions by what is seen alone, and this policy carries a memory")
    if t.cache_encodings:
        raise ValueError("caps shows the encoder more than it has seen before: leave out cache_encodings")
    if dropped := [type(c).__name__ for c in recipe.conditions if c.drop]:
        raise ValueError(
            f"caps would compare decisions that were told {dropped[0]} with some that were not: set its drop "
            "to 0"
        )
    if t.caps_temporal and recipe.codec.needs_past:
        raise ValueError(
            "caps_temporal does not know the command before the next tick, which "
            f"{type(recipe.codec).__name__} needs: take another codec, or caps_spatial alone"
        )
    if t.caps_temporal and augment and image_keys(features):
        raise ValueError("caps_temporal compares pictures as they are: leave out --augment")
    if t.caps_spatial and not [k for k in features if k.startswith("observation.") and not is_image(k)]:
        raise ValueError("caps_spatial shakes the vectors that are observed, and there are none")


def smoothness(
    policy: Learning,
    heard: Heard,
    batch: Mapping[str, Any],
    mask: Tensor,
    weight: Tensor | None,
) -> dict[str, Tensor]:
    """The terms of a training step, scalars by name, weighted. heard: through which the objective has just
    asked about `batch`, which holds `next.<key>` `(B, T, *shape)` of each observation for the temporal one.
    mask, weight: as `masked_mean`'s."""
    t, terms = policy.recipe.training, {}

    def apart(observation: Mapping[str, Any]) -> Tensor:
        other = policy.encode(observation)
        total = mask.new_zeros((), dtype=torch.float32)
        for x, s, times, context, chunk in heard.calls:
            n = len(chunk) // len(mask)  # of times that it asked about the whole batch in one call
            told = replace(Context.cat([other] * n), prefix=context.prefix, shown=context.shown)
            error = (chunk - heard.net(x, s, times, told)).float() ** 2
            total = total + masked_mean(error.unflatten(0, (n, len(mask))).mean(0), mask, weight)
        return total / len(heard.calls)

    if t.caps_temporal:
        if missing := [k for k in policy.observation_keys if f"next.{k}" not in batch]:
            raise ValueError(
                f"caps_temporal needs what is observed a tick later, and the batch has no next.{missing[0]}"
            )
        later = {k: batch[f"next.{k}"] for k in policy.observation_keys}
        terms["caps_temporal"] = t.caps_temporal * apart({**batch, **later})
    if t.caps_spatial:
        shaken = {k: _shaken(policy, k, batch[k]) for k in policy.encoded_keys if policy.has_normaliser(k)}
        terms["caps_spatial"] = t.caps_spatial * apart({**batch, **shaken})
    return terms


def _shaken(policy: Learning, key: str, value: Tensor) -> Tensor:
    noise = policy.recipe.training.caps_spread * torch.randn_like(value.float())
    return value + noise / policy.normaliser(key).scale
