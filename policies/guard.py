"""A guard: whether what is asked for, where the robot is, is something that the data did. A checkpoint of its
own kind, small enough for the robot's computer: it runs in numpy.

model.safetensors   pairs of state and action in their units, and the scale of each element
guard.json          how near a pair must be to others, measured on episodes that it does not hold
features.json       what it sees, and the action
hash.json           SHA-256 of the first three

The guard of offline guarded safe reinforcement learning, OGSRL, as a density of its own: a pair is supported
where its `neighbours`-th nearest of the data is no further than `radius`, which all but a share of the pairs
of episodes that were held out are. `policies.learn.support` makes it. It knows what was done, not what is
safe: what the data never show is refused, harmless or not, and a collision that they show is supported.

Distances are in standard deviations of the data (of what hardly moves, in multiples of its noise), root mean
square over the elements of the state, and of the action, which count alike. An action that is a target of
joints is measured from where they are, so that the way it leads counts; and to go there more slowly, or to
stand still, is supported, too."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..datasets.features import ACTION, STATE, Features, features_from_json, require_same
from .hashed import WEIGHTS, CheckpointError, read_json, verify_hashed

HASHED = (WEIGHTS, "guard.json", "features.json")
NEAR = 8  # pairs among which a supported action is looked for


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
            self._pairs = Pairs(self.features, arrays["pairs"], arrays["scale"])
            if not (self.radius > 0 and self.neighbours > 0 and self.control_hz > 0):
                raise ValueError("its radius, neighbours and control_hz are not above 0")
        except (SafetensorError, ValueError, KeyError, TypeError) as error:
            raise CheckpointError(f"{folder} holds a guard that this version cannot load: {error}") from error
        if features is not None:
            require_same(features, self.features, "the robot", "the guard")

    @property
    def keys(self) -> tuple[str, ...]:
        """Of the observations that it sees."""
        return self._pairs.keys

    def distance(self, values: Mapping[str, Any], action: np.ndarray) -> np.ndarray:
        """`(...)`, to the `neighbours`-th nearest pair of the data; to be compared with `radius`."""
        return self._pairs.distance(self._pairs.rows(values, action), self.neighbours)

    def supports(self, values: Mapping[str, Any], action: np.ndarray) -> np.ndarray:
        """`(...)` bool. Quicker than `distance`."""
        return self._pairs.within(self._pairs.rows(values, action), self.radius, self.neighbours)

    def nearest(self, values: Mapping[str, Any], action: np.ndarray) -> np.ndarray | None:
        """The supported action nearest to `action` `(A,)`, of those of the nearest pairs; None where none of
        these is supported here."""
        pairs, row = self._pairs, self._pairs.rows(values, action)
        squared = pairs.squared(row)
        near = np.argpartition(squared, NEAR)[:NEAR] if len(squared) > NEAR else np.arange(len(squared))
        here = np.tile(row, (len(near), 1))
        here[:, pairs.width :] = pairs.ways[near]
        away = np.linalg.norm(here[:, pairs.width :] - row[pairs.width :], axis=1)
        for i in np.argsort(away):
            if pairs.within(here[i], self.radius, self.neighbours):
                return pairs.action(here[i], values)
        return None


class Pairs:
    """The data, and how states and actions become rows `(..., S + A)` to measure distances between. features:
    the vectors that are seen, and the action. pairs: `(N, S + A)`, as `raw` gives them. scale: `(S + A,)`,
    what counts as 1."""

    def __init__(self, features: Features, pairs: np.ndarray, scale: np.ndarray) -> None:
        self.keys = tuple(k for k in features if k != ACTION)
        self.joints = joints_of_action(features)
        self.width, a = sum(features[k].shape[0] for k in self.keys), features[ACTION].shape[0]
        fits = pairs.ndim == 2 and pairs.shape[1:] == scale.shape == (self.width + a,)
        if not fits or not (scale > 0).all():
            raise ValueError("its pairs and scale do not fit its features")
        if not len(pairs) or not np.isfinite(pairs).all():
            raise ValueError("its pairs are none, or not finite")
        # each half's mean square counts alike, however many elements it has
        self._factor = 1 / (scale.astype(np.float64) * np.sqrt(np.repeat([self.width, a], [self.width, a])))
        # so that no digits are lost: only differences of states count, and ways begin at 0
        self._middle = np.concatenate([pairs.astype(np.float64).mean(0)[: self.width], np.zeros(a)])
        rows = self.scaled(pairs)
        states, self.ways = rows[:, : self.width], rows[:, self.width :].copy()
        # one column a pair, six times as quick to multiply as one row
        self._states = np.concatenate([-2 * states.T, (states**2).sum(1)[None]])
        self._ways2 = (self.ways**2).sum(1)

    def rows(self, values: Mapping[str, Any], action: np.ndarray) -> np.ndarray:
        return self.scaled(raw(values, action, self.keys, self.joints))

    def scaled(self, pairs: np.ndarray) -> np.ndarray:
        """Pairs in their own units as rows, float32."""
        return ((pairs - self._middle) * self._factor).astype(np.float32)

    def action(self, row: np.ndarray, values: Mapping[str, Any]) -> np.ndarray:
        """`(A,)`, that of a row."""
        action = row[self.width :] / self._factor[self.width :]
        return action + np.asarray(values[STATE], np.float64)[self.joints] if self.joints else action

    def squared(self, row: np.ndarray) -> np.ndarray:
        """The squared distance of a row `(S + A,)` from every pair, `(N,)`."""
        squared, whole = self._of_states(row)
        return squared + whole + self._of_ways(row, self.ways, self._ways2)

    def within(self, rows: np.ndarray, radius: float, neighbours: int) -> np.ndarray:
        """`(...)` bool, whether so many pairs lie within the radius of each row."""
        enough, most = min(neighbours, len(self.ways)), radius * radius
        flat, inside = rows.reshape(-1, rows.shape[-1]), []
        for row in flat:
            squared, whole = self._of_states(row)
            near = np.flatnonzero(squared <= most - whole)  # few, as a rule
            ways = self._of_ways(row, self.ways[near], self._ways2[near])
            inside.append(np.count_nonzero(squared[near] + ways <= most - whole) >= enough)
        return np.array(inside, bool).reshape(rows.shape[:-1])

    def _of_states(self, row: np.ndarray) -> tuple[np.ndarray, float]:
        """`(N,)`, and what is to be added to each."""
        state = row[: self.width]
        return np.append(state, np.float32(1)) @ self._states, float(state @ state)

    def _of_ways(self, row: np.ndarray, ways: np.ndarray, ways2: np.ndarray) -> np.ndarray:
        """From the nearest part of each way; of actions that are none from the whole."""
        way = row[self.width :]
        along = ways @ way
        share = np.minimum(np.maximum(along / np.maximum(ways2, 1e-12), 0), 1) if self.joints else 1.0
        return share * (share * ways2 - 2 * along) + way @ way

    def distance(self, rows: np.ndarray, neighbours: int) -> np.ndarray:
        """`(...)`, from each row to its neighbour of that number."""
        k = min(neighbours, len(self.ways)) - 1
        flat = rows.reshape(-1, rows.shape[-1])
        squared = np.array([np.partition(self.squared(row), k)[k] for row in flat])
        return np.sqrt(np.maximum(squared, 0)).reshape(rows.shape[:-1])


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
