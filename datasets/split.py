"""Splitting episodes into parts, such as for training and validation."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from .episode import Episode, StoreError


def split_by_episode(
    episodes: Sequence[Episode], fractions: Sequence[float], seed: int = 0
) -> list[list[int]]:
    """The numbers of the episodes of each part; fractions must sum to 1.

    An episode's part follows from its own id and the seed alone, so it stays where it is when others are
    added or taken away; shares are therefore met on average, and exactly only for the part that would
    otherwise be empty."""
    if not fractions or min(fractions) <= 0 or abs(sum(fractions) - 1) > 1e-6:
        raise StoreError(f"the parts must be positive and sum to 1, not {', '.join(map(str, fractions))}")
    if len(episodes) < len(fractions):
        raise StoreError(f"{len(episodes)} episodes cannot be parted into {len(fractions)}")
    draws = [_uniform(e, seed) for e in episodes]
    bounds = [sum(fractions[: i + 1]) for i in range(len(fractions) - 1)]
    parts: list[list[int]] = [[] for _ in fractions]
    for i, u in enumerate(draws):
        parts[sum(u >= b for b in bounds)].append(i)
    for k, part in enumerate(parts):
        if not part:  # of the largest part, the episode that is nearest to this one's share
            donor = max(parts, key=len)
            middle = sum(fractions[:k]) + fractions[k] / 2
            part.append(donor.pop(min(range(len(donor)), key=lambda j: abs(draws[donor[j]] - middle))))
    return parts


def _uniform(episode: Episode, seed: int) -> float:
    """A number in [0, 1) that depends on the seed and the episode's id, not on where it lies."""
    name = episode.path.name.split("-", 1)[-1]
    digest = hashlib.sha256(f"{seed} {name}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64
