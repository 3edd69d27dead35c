"""The weights of a policy as one vector, so that policies can be data.

Two policies whose hidden units are numbered otherwise do the same and have other vectors: `aligned` numbers
those of one as it fits another best, as in git re-basin (Ainsworth et al. 2022, arXiv 2209.04836).

Legend: W weights of a policy."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

from ..datasets.features import features_to_json
from .blend import ASIDE
from .parts import recipe_to_json
from .policy import Policy

Units = Sequence[tuple[str, int]]
"""Of one hidden layer: the tensors, by name, and which of their axes numbers its units."""
ROUNDS = 20  # of finding numbers for each layer in turn; a small network's are found in two or three


def floating(policy: Policy) -> dict[str, Tensor]:
    """What `to_vector` takes, by name."""
    return {name: v for name, v in policy.state_dict().items() if v.is_floating_point()}


def to_vector(policy: Policy) -> np.ndarray:
    """`(W,)` float32."""
    return np.concatenate([v.detach().cpu().float().numpy().ravel() for v in floating(policy).values()])


def names_of(policy: Policy) -> tuple[str, ...]:
    """Of the W weights: that of their tensor, a colon, and their number in it."""
    return tuple(f"{name}:{i}" for name, v in floating(policy).items() for i in range(v.numel()))


def set_vector(policy: Policy, vector_W: np.ndarray) -> None:
    """The inverse of `to_vector`. ValueError where there are more or fewer weights."""
    tensors = floating(policy)
    count = sum(v.numel() for v in tensors.values())
    if vector_W.shape != (count,):
        raise ValueError(f"the policy has {count} weights, and is given {vector_W.shape[0]}")
    state, first = policy.state_dict(), 0
    for name, v in tensors.items():
        part = torch.as_tensor(vector_W[first : first + v.numel()]).reshape(v.shape)
        state[name], first = part.to(v), first + v.numel()
    policy.load_state_dict(state)


def meaning(policy: Policy) -> str:
    """A digest of all that decides what a policy's weights do: parts, features, statistics."""
    parts = {k: v for k, v in recipe_to_json(policy.recipe).items() if k not in ASIDE}
    stats = {k: s.to_json() for k, s in policy.stats.items()}
    text = json.dumps([parts, features_to_json(policy.features), stats], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def hidden_units(net: nn.Module) -> list[Units]:
    """Of the layers within `net` whose units may be numbered otherwise without a change of what it does; none
    of networks that do not say (`hidden_units` of their own)."""
    layers: list[Units] = []
    for name, module in net.named_modules():
        own: Any = getattr(module, "hidden_units", None)
        prefix = f"{name}." if name else ""
        layers += [[(prefix + tensor, axis) for tensor, axis in units] for units in (own() if own else ())]
    return layers


def renumbered(state: Mapping[str, Tensor], units: Units, order: np.ndarray) -> dict[str, Tensor]:
    """`state` with the units of one layer in another order, `order[i]` the old number of unit i."""
    index = torch.as_tensor(order)
    return {**state, **{name: state[name].index_select(axis, index) for name, axis in units}}


def aligned(policy: Policy, reference_W: np.ndarray) -> np.ndarray:
    """The vector `(W,)` of a policy that does what `policy` does, with its hidden units numbered so that it
    lies as near to `reference` `(W,)` as can be found: layer by layer, the best numbers given the other
    layers', until none changes."""
    state, layers = floating(policy), hidden_units(policy)
    sizes = [v.numel() for v in state.values()]
    parts = np.split(reference_W, np.cumsum(sizes)[:-1])
    want = {n: p.reshape(state[n].shape) for n, p in zip(state, parts, strict=True)}
    for _ in range(ROUNDS):
        changed = False
        for units in layers:
            alike: Any = sum(_rows(want[n], axis) @ _rows(state[n].numpy(), axis).T for n, axis in units)
            rows, order = linear_sum_assignment(alike, maximize=True)
            if alike[rows, order].sum() > np.trace(alike) + 1e-6 * abs(np.trace(alike)):
                state, changed = renumbered(state, units, order), True
        if not changed:
            break
    return np.concatenate([v.numpy().ravel() for v in state.values()]).astype(np.float32)


def _rows(array: np.ndarray, axis: int) -> np.ndarray:
    """`(units, everything else)`."""
    return np.moveaxis(array, axis, 0).reshape(array.shape[axis], -1).astype(np.float64)
