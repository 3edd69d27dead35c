"""Weights: how often the windows of each episode, or each window, are drawn. The draws depend on the seed and
the step alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np

from ..episode import Episode, StoreError
from ..features import STATE
from ..flags import DIRECTED, INTERVENTION

if TYPE_CHECKING:
    from .windows import Windows

Weighting = Literal["uniform", "stored", "success", "return-rw", "return-aw", "iwr", "sirius", "hg-dagger"]
BY_TICK = ("iwr", "sirius", "hg-dagger")  # those of corrections, that weigh each window by itself
PROGRESS = "progress:"  # and the folder of a critic, by whose progress each window is weighed by itself
ALPHA = 0.1
BEFORE = 15  # ticks before a takeover that Sirius leaves out


def episode_weights(episodes: Sequence[Episode], weighting: str, alpha: float = ALPHA) -> np.ndarray | None:
    """The weight `(E,)` of every single window of each episode, None where all are equal.

    stored: the attribute `weight`, 1 where it is missing. success: 1, and 0 for what failed or is unknown.
    return-rw and return-aw: trajectory weighting for mixed-quality data (Hong et al., "Harnessing Mixed
    Offline Reinforcement Learning Datasets via Trajectory Weighting", ICLR 2023): exp(G̃/α) with G̃ the
    returns scaled to 0..1; for "aw" the return that a linear regression on the episode's first state predicts
    is subtracted from G first. The return of an episode is its attribute `return`, or 1 and 0 for success and
    failure. As in the paper, this is the weight of a step: a long episode gets more draws than a short one of
    the same return.
    """
    if weighting == "uniform" or weighting in BY_TICK or weighting.startswith(PROGRESS):
        return None
    if weighting == "stored":
        return _usable(np.array([float(e.attrs.get("weight", 1.0)) for e in episodes]), "weight")
    if weighting == "success":
        return _usable(np.array([float(e.attrs.get("success") is True) for e in episodes]), "success")
    if weighting not in ("return-rw", "return-aw"):
        raise StoreError(
            f"there is no weighting {weighting!r}: there is {', '.join(get_args(Weighting))}, and "
            f"{PROGRESS}FOLDER"
        )
    raw = returns = np.array([_return(e) for e in episodes])
    if weighting == "return-aw":
        firsts = np.stack([np.ravel(e.read(STATE, 0, 1)) for e in episodes]).astype(np.float64)
        design = np.hstack([firsts, np.ones((len(firsts), 1))])
        if len(design) < 2 * design.shape[1]:
            raise StoreError(
                f"{len(design)} episodes are too few to tell what a first state of {firsts.shape[1]} numbers "
                f"promises: it takes {2 * design.shape[1]}; use --weights return-rw"
            )
        returns = returns - design @ np.linalg.lstsq(design, returns, rcond=None)[0]
    span = np.ptp(returns)
    epsilon = 1e-9 * max(
        1.0, float(np.abs(raw).max())
    )  # what rounding leaves of returns that are all explained
    scores = (returns - returns.min()) / span if span > epsilon else np.zeros(len(returns))
    return np.exp((scores - 1) / alpha)


def correction_weights(parts: Sequence[Windows], weighting: str) -> list[np.ndarray]:
    """The weight of every window of each part, `(len,)`, by who acted in its tick.

    Recordings of a policy that a person corrected hold three kinds of ticks: the person's (INTERVENTION), the
    policy's, and those of a director (DIRECTED), which never count. Episodes without a policy are
    demonstrations.

    hg-dagger: the person's ticks and demonstrations count alike, the policy's not at all (Kelly et al., "HG-
    DAgger: Interactive Imitation Learning with Human Experts", ICRA 2019). iwr: half of the draws are the
    person's, the other half demonstrations and what the policy did in episodes that succeeded (intervention
    weighted regression, Mandlekar et al., "Human-in-the-Loop Imitation Learning using Remote Teleoperation",
    2020, which balances the two likewise; that the policy's own failures are left out is ours). sirius: half
    are the person's, demonstrations keep the share that they have of all ticks, and the rest is the policy's
    as in iwr, but for the `BEFORE` ticks before a person took over, since the person did because of these
    (Liu et al., "Robot Learning on the Job", RSS 2023). StoreError: nobody corrected anything."""
    persons, demonstrated, by_itself = [], [], []
    for part in parts:
        policies = np.array([str(e.attrs.get("agent", "")).startswith("policy") for e in part.episodes])
        succeeded = np.array([e.attrs.get("success") is True for e in part.episodes])
        persons.append(part.flags & INTERVENTION != 0)
        nobody = ~persons[-1] & (part.flags & DIRECTED == 0)
        demonstrated.append(nobody & ~policies[part.episode])
        by_itself.append(nobody & (policies & succeeded)[part.episode])
        if weighting == "sirius":
            by_itself[-1] &= ~_before(persons[-1], part.episode)
    n_person, n_demo, n_policy = (sum(int(m.sum()) for m in k) for k in (persons, demonstrated, by_itself))
    if not n_person:
        raise StoreError(
            f"--weights {weighting} counts corrections, and nobody took over in these episodes: record some "
            "with `ulna deploy --takeover`, or use another weighting"
        )
    of_person, of_demo, of_policy = 0.5 / n_person, 0.0, 0.0
    if weighting == "hg-dagger":
        of_person, of_demo = 1.0, 1.0
    elif weighting == "iwr":
        of_demo = of_policy = 0.5 / max(1, n_demo + n_policy)
    else:
        demos = min(0.5, n_demo / sum(len(p) for p in persons)) if n_policy else 0.5
        of_demo, of_policy = demos / max(1, n_demo), (0.5 - demos) / max(1, n_policy)
    return [
        of_person * p + of_demo * d + of_policy * o
        for p, d, o in zip(persons, demonstrated, by_itself, strict=True)
    ]


def _before(person: np.ndarray, episode: np.ndarray) -> np.ndarray:
    """Which ticks are among the `BEFORE` ones before a person's, of the same episode."""
    soon = np.zeros(len(person), bool)
    for n in range(1, min(BEFORE, len(person) - 1) + 1):
        soon[:-n] |= person[n:] & (episode[n:] == episode[:-n])
    return soon


def weighted_indices(cumulative: np.ndarray, batch_size: int, seed: int, step: int) -> np.ndarray:
    """The rows `(batch_size,)` int64 of batch `step`, drawn with replacement in proportion to weights of
    which `cumulative` `(n,)` is the running sum: a pure function.

    Within a batch the draws are stratified: each takes its own share of the total weight, so that a batch has
    as many of a kind as it should have, give or take one."""
    rng = np.random.default_rng([seed, step, 7])
    u = (rng.permutation(batch_size) + rng.random(batch_size)) / batch_size
    return np.minimum(np.searchsorted(cumulative, u * cumulative[-1], side="right"), len(cumulative) - 1)


def _return(e: Episode) -> float:
    if "return" in e.attrs:
        return float(e.attrs["return"])
    if e.attrs.get("success") is None:
        raise StoreError(
            f"episode {e.index} has neither a return nor an outcome: give it one with "
            "`ulna data relabel --episode-return`"
        )
    return float(e.attrs["success"])


def _usable(weights: np.ndarray, what: str) -> np.ndarray:
    if not (np.isfinite(weights).all() and (weights >= 0).all() and weights.sum() > 0):
        raise StoreError(f"no episode can be drawn by its {what}: label some with `ulna data relabel`")
    return weights
