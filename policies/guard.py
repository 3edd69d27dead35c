"""A guard: whether what is asked for, where the robot is, is something that the data did. A checkpoint of its
own kind, small enough for the robot's computer: it runs in numpy and scipy.

model.safetensors   the pairs of state and action, and the scale of each element
guard.json          how near a pair must be to others, and how it was measured on episodes that it does not hold
features.json       what it sees, and the action
hash.json           SHA-256 of the first three

The guard of offline guarded safe reinforcement learning, OGSRL, as a density of its own: a pair is supported
where its `neighbours`-th nearest of the data is no further than `radius`, which all but a share of the pairs
of episodes that were held out are. `policies.learn.support` makes it. It knows what was done, not what is
safe: what the data never show is refused, harmless or not, and a collision that they show is supported.

Distances are in standard deviations of the data (of what hardly moves, in multiples of its noise), root mean
square over the elements of the state, and of the action, which count alike. An action that is a target of joints is measured from where they are, so that the
way it leads counts; and to go there more slowly, or to stand still, is supported, too."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..datasets.features import ACTION, STATE, Features, features_from_json, require_same
from .hashed import WEIGHTS, CheckpointError, read_json, verify_hashed

HASHED = (WEIGHTS, "guard.json", "features.json")
SLOWER = (1.0, 0.75, 0.5, 0.25, 0.0)  # shares of a way that are supported where all of it is
NEAR = 16  # pairs among which a supported action is looked for


class Guard:
    """`distance`, `supports` and `nearest`, of observations by key `(..., D)` and actions `(..., A)` in their
    units. features: of the robot; FeatureMismatch, both sides shown, where it differs from what the guard
    knows. CheckpointError in one sentence: the folder holds none.

    begin: `(S,)`, the median of what its episodes began with. control_hz: at which they were recorded; its
    actions are for one period."""

    def __init__(self, folder: str | Path, features: Features | None = None) -> None:
        from safetensors import SafetensorError
        from safetensors.numpy import load_file

        folder = Path(folder)
        self.content_hash = verify_hashed(folder, "guard", HASHED)
        try:
            document = read_json(folder / "guard.json")
            self.measured = dict(document["measured"])
            self.control_hz = float(document["control_hz"])
            self.radius, self.neighbours = float(document["radius"]), int(document["neighbours"])
            self.features = features_from_json(read_json(folder / "features.json"))
            arrays = load_file(folder / WEIGHTS)
            self.begin = arrays["begin"].astype(np.float64)
            self._pairs = Pairs(self.features, arrays["mean"], arrays["scale"])
            rows = arrays["pairs"]
            if rows.ndim != 2 or rows.shape[1] != len(self._pairs.mean) or not np.isfinite(rows).all():
                raise ValueError(f"its pairs have the shape {rows.shape}, or are not finite")
            if not (self.radius > 0 and self.neighbours > 0 and self.control_hz > 0):
                raise ValueError("its radius, neighbours and control_hz are not above 0")
        except (SafetensorError, ValueError, KeyError, TypeError) as error:
            raise CheckpointError(f"{folder} holds a guard that this version cannot load: {error}") from error
        if features is not None:
            require_same(features, self.features, "the robot", "the guard")
        self._tree = self._pairs.tree(rows)

    @property
    def keys(self) -> tuple[str, ...]:
        """Of the observations that it sees."""
        return self._pairs.keys

    def distance(self, values: Mapping[str, Any], action: np.ndarray) -> np.ndarray:
        """`(...)`, to the `neighbours`-th nearest pair of the data; to be compared with `radius`."""
        return self._pairs.distance(self._tree, self._pairs.of(values, action), self.neighbours)

    def supports(self, values: Mapping[str, Any], action: np.ndarray) -> np.ndarray:
        """`(...)` bool. Quicker than `distance`."""
        pair = self._pairs.of(values, action)
        return np.isfinite(self._pairs.distance(self._tree, pair, self.neighbours, self.radius))

    def nearest(self, values: Mapping[str, Any], action: np.ndarray) -> np.ndarray | None:
        """The supported action nearest to `action` `(A,)`, of those that the data did near here; None where
        they did none."""
        pair = self._pairs.of(values, action)
        _, rows = self._tree.query(pair, k=min(NEAR, self._tree.n))
        others = np.array(self._tree.data[np.atleast_1d(rows)])
        n = len(self._pairs.state)
        here = np.concatenate([np.broadcast_to(pair[:n], (len(others), n)), others[:, n:]], axis=1)
        near = self._pairs.distance(self._tree, here, self.neighbours, self.radius)
        away = np.where(np.isfinite(near), np.linalg.norm(others[:, n:] - pair[n:], axis=1), np.inf)
        best = int(away.argmin())
        return self._pairs.action(here[best], values) if np.isfinite(away[best]) else None


class Pairs:
    """How states and actions become rows `(..., S + A)` to measure distances between. features: the vectors
    that are seen, and the action. mean, scale: `(S + A,)`."""

    def __init__(self, features: Features, mean: np.ndarray, scale: np.ndarray) -> None:
        self.keys = tuple(k for k in features if k != ACTION)
        self.state = np.arange(sum(features[k].shape[0] for k in self.keys))
        a = features[ACTION].shape[0]
        if mean.shape != (len(self.state) + a,) or scale.shape != mean.shape or not (scale > 0).all():
            raise ValueError("its mean and scale do not fit its features")
        self.joints = joints_of_action(features)
        self.mean = mean.astype(np.float64)
        # each half's mean square counts alike, however many elements it has
        sizes = np.repeat([len(self.state), a], [len(self.state), a])
        self._factor = 1 / (scale.astype(np.float64) * np.sqrt(sizes))

    def of(self, values: Mapping[str, Any], action: np.ndarray) -> np.ndarray:
        return self.scaled(raw(values, action, self.keys, self.joints))

    def scaled(self, rows: np.ndarray) -> np.ndarray:
        """Of rows in their own units, see `raw`."""
        return (rows - self.mean) * self._factor

    def action(self, row: np.ndarray, values: Mapping[str, Any]) -> np.ndarray:
        """`(A,)`, that of a row at another observation."""
        n = len(self.state)
        action = row[n:] / self._factor[n:] + self.mean[n:]
        return action + np.asarray(values[STATE], np.float64)[self.joints] if self.joints else action

    def slower(self, rows: np.ndarray) -> np.ndarray:
        """The pairs of `rows` `(N, S + A)`, and where actions are ways those of going slower."""
        if not self.joints:
            return rows
        still = -self.mean[len(self.state) :] * self._factor[len(self.state) :]
        all_rows = []
        for share in SLOWER:
            part = rows.copy()
            part[:, len(self.state) :] = still + share * (part[:, len(self.state) :] - still)
            all_rows.append(part)
        return np.concatenate(all_rows)

    def tree(self, rows: np.ndarray) -> Any:
        from scipy.spatial import cKDTree

        return cKDTree(self.slower(rows.astype(np.float64)))

    @staticmethod
    def distance(tree: Any, rows: np.ndarray, neighbours: int, bound: float = np.inf) -> np.ndarray:
        """`(...)` from each row to its neighbour of that number; inf beyond `bound`."""
        distances, _ = tree.query(rows, k=[min(neighbours, tree.n)], distance_upper_bound=bound)
        return distances[..., 0]


def raw(
    values: Mapping[str, Any], action: np.ndarray, keys: tuple[str, ...], joints: list[int]
) -> np.ndarray:
    """`(..., S + A)` in their own units: what is seen, and the action, from where the joints are if it is a
    target of these. The action may have leading axes that the observation has not."""
    action = np.asarray(action, np.float64)
    seen = [np.asarray(values[k], np.float64) for k in keys]
    if joints:
        action = action - np.asarray(values[STATE], np.float64)[..., joints]
    if seen[0].shape[:-1] != action.shape[:-1]:
        seen = [np.broadcast_to(s, (*action.shape[:-1], s.shape[-1])) for s in seen]
    return np.concatenate([*seen, action], axis=-1)


def joints_of_action(features: Features) -> list[int]:
    """Of each element of the action the index of the joint whose target it is, in the state; empty where the
    actions are no such targets, as far as names and units tell."""
    state, action = features.get(STATE), features[ACTION]
    if state is None or not action.names or not set(action.names) <= set(state.names):
        return []
    joints = [state.names.index(n) for n in action.names]
    if state.units and action.units and [state.units[j] for j in joints] != list(action.units):
        return []
    return joints
