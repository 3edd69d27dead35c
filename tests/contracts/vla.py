"""Tiny vision-language-action policies of random weights, and what they see."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from contracts.recipes import small
from torch import Tensor

from ulna.datasets.features import ACTION, IMAGES, STATE, Feature, Features
from ulna.datasets.stats import Stats, vector_stats
from ulna.policies.parts import override
from ulna.policies.policy import Policy

FEATURES: Features = {
    STATE: Feature((3,), "float32"),
    IMAGES + "front": Feature((24, 32, 3), "uint8"),
    IMAGES + "wrist": Feature((32, 32, 3), "uint8"),
    ACTION: Feature((3,), "float32"),
}
EXPERTS = ("pi0_small", "pi05_small", "smolvla_small")
FIELDS = (*EXPERTS, "gr00t_small")
WRITERS = ("openvla_small", "litevlp_small")
NAMES = (*FIELDS, *WRITERS, "pi0_fast_small", "pi05_ki_small", "openvla_oft_small")
STATS: dict[str, Stats] = {
    k: vector_stats(np.random.default_rng(0).uniform(-1, 1, (500, 3))) for k in (STATE, ACTION)
}


def policy(name: str, features: Features = FEATURES, changes: Mapping[str, Any] | None = None) -> Policy:
    torch.manual_seed(0)
    if name in (*WRITERS, "pi0_fast_small"):  # words that are drawn show small changes of what is likely
        changes = {"objective.temperature": 1.0, **(changes or {})}
    made = Policy(override(small(name, features), dict(changes or {})), features, STATS).eval()
    with torch.no_grad():  # adaptive norms begin as shut gates
        for key, p in made.named_parameters():
            if "dense" in key:
                p.add_(0.3 * torch.randn_like(p))
    return made


def noise_for(of: Policy, rows: int = 1) -> Tensor:
    return torch.randn(rows, of.recipe.horizon, of.codec.width)


def observation(rows: int = 1, seed: int = 0) -> dict[str, Tensor]:
    rng = torch.Generator().manual_seed(seed)
    pictures = {
        k: torch.randint(0, 256, (rows, 1, *f.shape), generator=rng, dtype=torch.uint8)
        for k, f in FEATURES.items()
        if k.startswith(IMAGES)
    }
    return {STATE: torch.rand(rows, 1, 3, generator=rng) * 2 - 1, **pictures}
