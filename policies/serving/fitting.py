"""Whether a request's arrays fit a policy, and copies of them that do. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ...datasets.features import Feature, Features
from ..request import TASK
from .protocol import BadRequest


def fit_observation(
    key: str, observation: Mapping[str, Any], feature: Feature, n_obs_steps: int
) -> np.ndarray:
    """`(n_obs_steps, *shape)` of the feature `key`. BadRequest with both sides shown."""
    wants = f"{feature.dtype} {feature.shape}, or ({n_obs_steps}, ...) with {n_obs_steps} observation steps"
    if key not in observation:
        raise BadRequest(f"the observation lacks {key}: the policy wants {wants}")
    value = _array(key, observation[key], wants)
    if value.shape == feature.shape:
        value = np.repeat(value[None], n_obs_steps, axis=0)
    return _fitting(key, value, (n_obs_steps, *feature.shape), feature.dtype, wants)


def fit_conditions(
    observation: Mapping[str, Any], conditions: Features, optional: Features | None = None
) -> dict[str, np.ndarray]:
    """Goals and prompts, by key, and of what is optional that which is there. BadRequest with both sides
    shown."""
    arrays = {}
    conditions = conditions | {k: f for k, f in (optional or {}).items() if k in observation}
    prompt: tuple[int, ...] | None = None  # (demonstrations, ticks) of the first prompt's
    for key, feature in conditions.items():
        if key == TASK:
            continue
        wants = f"{feature.dtype} {feature.shape}"
        if key not in observation:
            raise BadRequest(f"the request lacks {key}: the policy wants {wants}")
        if not key.startswith("prompt."):
            arrays[key] = _fitting(key, observation[key], feature.shape, feature.dtype, wants)
            continue
        value = _array(key, observation[key], wants)
        prompt = prompt or value.shape[:2]
        arrays[key] = _prompt(key, value, feature, prompt)
    return arrays


def _prompt(key: str, value: np.ndarray, feature: Feature, size: tuple[int, ...]) -> np.ndarray:
    """Demonstrations `(P, L, *shape)`, padded to the policy's number and length. size: (P, L) of the other
    arrays of the prompt."""
    most, wants = feature.shape[:2], f"{feature.dtype} {feature.shape}"
    if value.ndim >= 2 and any(n > m for n, m in zip(value.shape, most, strict=False)):
        raise BadRequest(
            f"the prompt is too long: {key} is of {value.shape[0]} demonstrations of {value.shape[1]} ticks, "
            f"and the policy reads up to {most[0]} of {most[1]}: choose fewer, and thin them evenly"
        )
    fitting = _fitting(key, value, (*size, *feature.shape[2:]), feature.dtype, f"{wants} or less of it")
    return np.pad(fitting, [(0, m - n) for n, m in zip(fitting.shape, feature.shape, strict=True)])


def _array(key: str, value: Any, wants: str) -> np.ndarray:
    try:
        return np.asarray(value)
    except ValueError:
        raise BadRequest(f"{key} is not an array: the policy wants {wants}") from None


def _fitting(key: str, value: Any, shape: tuple[int, ...], dtype: str, wants: str) -> np.ndarray:
    """A copy as `dtype` (decoded arrays are read-only views)."""
    array = _array(key, value, wants)
    if array.shape != shape or not np.can_cast(array.dtype, dtype, "same_kind"):
        raise BadRequest(f"{key} is {array.dtype} {array.shape}, the policy wants {wants}")
    return finite(key, array, dtype)


def finite(key: str, array: np.ndarray, dtype: str) -> np.ndarray:
    """A copy as `dtype`; BadRequest for what is not finite in it, as 1e308 is not in float32."""
    with np.errstate(over="ignore"):
        copy = np.array(array, dtype=dtype)
    if copy.dtype.kind == "f" and not np.isfinite(copy).all():
        raise BadRequest(f"{key} holds a value that is not finite in {dtype}")
    return copy
