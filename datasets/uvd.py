"""Subgoals of a demonstration, found in how things look alone (universal visual decomposer, UVD, Zhang et al.
2023, arXiv 2310.08581), and when one is reached.

Legend: L ticks of a demonstration, D elements of what stands for a frame, its embedding; N subgoals."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

DEMONSTRATION = "demonstration."  # of the keys `(L, *shape)` of a demonstration that somebody is shown


@dataclass(frozen=True)
class Decompose:
    """How a demonstration comes apart, and when a subgoal counts as reached. ValueError where a number is out
    of its range."""

    rule: Literal["uvd", "uniform", "end"] = "uvd"
    """At phase shifts of the distance; into equal pieces; or not at all, the end is the only goal."""
    smooth: float = 0.08
    """γ of the kernel exp(-γ Δt²) over ticks by which distances are smoothed."""
    least: int = 18
    """Ticks that a piece has more than."""
    pieces: int = 3
    """Of equal length, where they are uniform."""
    reached: float = 0.15
    """A subgoal is reached within this share of the distance at which it was set."""
    dwell: int = 2
    """Ticks for which a subgoal stays at least."""

    def __post_init__(self) -> None:
        if self.rule not in ("uvd", "uniform", "end"):
            raise ValueError(f"a demonstration is decomposed by uvd, uniform or end, not {self.rule!r}")
        if not 0 < self.smooth < np.inf or not 0 < self.reached < 1:
            raise ValueError("UVD's smooth is above 0, and its reached lies between 0 and 1")
        for name, fewest in (("least", 0), ("pieces", 1), ("dwell", 0)):
            if type(value := getattr(self, name)) is not int or value < fewest:
                raise ValueError(f"UVD's {name} is a whole number from {fewest}, not {value!r:.60}")


def subgoals(z_LD: np.ndarray, how: Decompose) -> np.ndarray:
    """The ticks `(N,)` int64 of the subgoals, ascending; the last is the demonstration's last tick.

    From a goal back the distance to it grows as long as one phase lasts. The latest tick at which it does
    not, a local maximum of the smoothed distance, ends the phase before, and is the next goal to go back
    from."""
    goal = len(z_LD) - 1
    if how.rule == "end":
        return np.array([goal])
    if how.rule == "uniform":
        pieces = min(how.pieces, max(goal, 1))
        return np.round(goal * np.arange(1, pieces + 1) / pieces).astype(np.int64)
    found = [goal]
    while goal > how.least:
        peaks = _peaks(_smoothed(np.linalg.norm(z_LD[: goal + 1] - z_LD[goal], axis=1), how.smooth))
        fit = peaks[(goal - peaks > how.least) & (peaks > how.least)]
        if not len(fit):
            break
        goal = int(fit[-1])
        found.append(goal)
    return np.array(found[::-1])


def next_subgoals(z_LD: np.ndarray, how: Decompose) -> np.ndarray:
    """`(L,)` int64: of each tick the tick of the first subgoal after it; of the last one, itself."""
    ticks = subgoals(z_LD, how)
    place = np.searchsorted(ticks, np.arange(len(z_LD)), side="right")
    return ticks[np.minimum(place, len(ticks) - 1)]


def embedded(values: Mapping[str, np.ndarray], lead: int) -> np.ndarray:
    """Vectors joined into one after their `lead` leading axes, float64."""
    return np.concatenate([v.reshape(*v.shape[:lead], -1) for v in values.values()], axis=-1).astype(float)


class Subgoals:
    """Those of one demonstration, one after the other, as they are reached.

    demonstration: `(L, *shape)` by key; rows that repeat the last one are beyond its end. ValueError where it
    is of different lengths or of none."""

    def __init__(self, demonstration: Mapping[str, np.ndarray], how: Decompose) -> None:
        if len({len(v) for v in demonstration.values()}) != 1 or not len(next(iter(demonstration.values()))):
            raise ValueError(
                "a demonstration has as many rows of one key as of every other, and at least one, not "
                + ", ".join(f"{len(v)} of {k}" for k, v in demonstration.items())
            )
        z_LD = embedded(demonstration, 1)
        end = int(np.flatnonzero((z_LD != z_LD[-1]).any(1)).max(initial=-1)) + 2
        self.ticks = subgoals(z_LD[:end], how)
        """Of the demonstration `(N,)`."""
        self._how, self._demonstration, self._z_ND = how, demonstration, z_LD[self.ticks]
        self.at = 0
        """Which of them is to be reached."""
        self._since, self._first = 0, 0.0

    def goal(self, values: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """What is to be reached at this tick, `goal.<key>`, now that `values` are seen. To be asked once a
        tick."""
        z_D = embedded({k: np.asarray(values[k]) for k in self._demonstration}, 0)
        distance = float(np.linalg.norm(z_D - self._z_ND[self.at]))
        if self._since == 0:
            self._first = distance
        near = distance <= self._how.reached * self._first
        if near and self._since >= self._how.dwell and self.at + 1 < len(self.ticks):
            self.at, self._since = self.at + 1, 0
            self._first = float(np.linalg.norm(z_D - self._z_ND[self.at]))
        self._since += 1
        tick = self.ticks[self.at]
        return {f"goal.{k}": v[tick] for k, v in self._demonstration.items()}


def _smoothed(d_L: np.ndarray, gamma: float) -> np.ndarray:
    """The mean of `d_L` around each tick, by the kernel (Nadaraya and Watson)."""
    reach = min(int(np.sqrt(40 / gamma)), len(d_L))  # beyond it the kernel is less than 1e-17
    weight = np.exp(-gamma * np.arange(-reach, reach + 1) ** 2)
    here = slice(reach, reach + len(d_L))
    return np.convolve(d_L, weight)[here] / np.convolve(np.ones(len(d_L)), weight)[here]


def _peaks(d_L: np.ndarray) -> np.ndarray:
    """The ticks at which `d_L` is larger than at both ticks beside."""
    return 1 + np.flatnonzero((d_L[1:-1] > d_L[:-2]) & (d_L[1:-1] > d_L[2:]))
