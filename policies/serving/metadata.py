"""What a served policy says of itself before the first request: all that a client needs to feed the policy
and to execute its chunks. No torch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

from ...datasets.features import ACTION, IMAGES, Features, features_from_json, features_to_json
from ...datasets.uvd import Decompose
from .validations import Validation, validations_from_json, validations_to_json

REQUIRED = ("n_obs_steps", "horizon", "n_action_steps")  # where `features` are named
# what clients act upon; which checkpoint it is, and how long it thinks, may change
RELIED_ON = (
    *("features", "conditions", "n_obs_steps", "horizon", "n_past_actions", "n_action_steps", "needs_past"),
    *("decoder", "ensemble_decay", "control_hz", "subgoals"),
)
FEATURES = ("features", "conditions", "optional")  # fields that are such
LEAST = {"n_obs_steps": 1, "horizon": 1, "n_past_actions": 0, "n_action_steps": 1, "sampling_steps": 1}


@dataclass(frozen=True)
class Metadata:
    """The defaults are those of a server that does not describe its policy, such as openpi's: it has no
    `features`."""

    recipe: str = ""
    """Name of the recipe."""
    features: Features = field(default_factory=dict)
    """The observations that the policy needs, and `action`."""
    n_obs_steps: int = 1
    """Observations of history; the newest is now."""
    horizon: int = 1
    """Actions in the predicted chunk, those before now included."""
    n_past_actions: int = 0
    """How many of them, the first, lie before now."""
    n_action_steps: int = 1
    """Actions to execute of each chunk (slice decoder)."""
    decoder: str = "slice"
    """How it is run where nobody chooses: `slice`, the first n_action_steps of each chunk, or `ensemble`, the
    mean of all chunks that reach a tick (`robot.strategies`)."""
    ensemble_decay: float = 0.01
    """Of the weights of `ensemble`."""
    sampling_steps: int = 1
    """Integration steps of the sampler."""
    control_hz: float | None = None
    """Rate of the data that the policy was trained on; None: unknown."""
    checkpoint: str = ""
    """Content hash of the checkpoint."""
    quantize: str = ""
    """How its weights are rounded while it is served, `int8` or `int4`: what the checkpoint names is then
    not quite what answers. Empty: not at all."""
    steering: tuple[dict[str, Any], ...] = ()
    """Hooks that act on every draw where it is served, each by its `part` and fields."""
    needs_past: bool = False
    """Whether requests are to hold `action.past`: the `n_past_actions` actions sent before now."""
    conditions: Features = field(default_factory=dict)
    """What requests are to hold beside the observations, so that the policy knows what to do: `task`, of the
    dtype `str`, the instruction in words; `goal.<key>`; and `prompt.<key>` of up to so many demonstrations
    and ticks. Empty for a policy that is not asked, and where a server does not tell."""
    optional: Features = field(default_factory=dict)
    """What requests may hold besides, as in `conditions`, and need not."""
    subgoals: Decompose | None = None
    """Where the goals that it is told were subgoals of a demonstration: how they were found, so that whoever
    asks finds them likewise. None for a policy that was told others, or none."""
    validations: tuple[Validation, ...] = ()
    """What evaluation has found of the checkpoint; `ulna deploy` asks a real robot's policy for one."""

    @property
    def n_actions_ahead(self) -> int:
        """How many actions a reply holds: those of the chunk from now on."""
        return self.horizon - self.n_past_actions

    @property
    def cameras(self) -> list[str]:
        """Names of the cameras whose pictures the policy needs."""
        return [k.removeprefix(IMAGES) for k in self.features if k.startswith(IMAGES)]

    def to_json(self) -> dict[str, Any]:
        """JSON types only."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        documents = {name: features_to_json(getattr(self, name)) for name in FEATURES}
        subgoals = None if self.subgoals is None else asdict(self.subgoals)
        validations = validations_to_json(self.validations)
        own = {"subgoals": subgoals, "validations": validations, "steering": list(self.steering)}
        return {**values, **documents, **own}

    @staticmethod
    def from_json(d: Mapping[str, Any]) -> Metadata:
        """The inverse; unknown keys are ignored, and so is everything where no `features` are named.

        ValueError says in a few words what does not fit."""
        if d.get("features", {}) == {}:
            return Metadata()
        if missing := [name for name in REQUIRED if name not in d]:
            raise ValueError(f"it lacks {missing[0]}")
        values = {f.name: d[f.name] for f in fields(Metadata) if f.name in d}
        for name, value in values.items():
            if not _fits(name, value):
                raise ValueError(f"its {name} cannot be {value!r:.60}")
        both = {name: features_from_json(d.get(name, {})) for name in FEATURES}
        validations = validations_from_json(d.get("validations", ()))
        subgoals = None if d.get("subgoals") is None else Decompose(**d["subgoals"])
        steering = tuple(d.get("steering", ()))
        own = {"subgoals": subgoals, "validations": validations, "steering": steering}
        metadata = Metadata(**{**values, **both, **own})
        if "needs_past" not in d:
            # a server from before this key: its horizon began now, and it gave n_past_actions only where it
            # needed them
            past = metadata.n_past_actions
            metadata = replace(metadata, horizon=metadata.horizon + past, needs_past=past > 0)
        if metadata.n_actions_ahead < 1:
            raise ValueError(f"its horizon {metadata.horizon} leaves no action ahead")
        if metadata.needs_past and not metadata.n_past_actions:
            raise ValueError("it needs past actions, but none of its chunk's actions are past")
        return metadata


def difference(before: Metadata, after: Metadata) -> tuple[str, str] | None:
    """Both sides of the first thing that a client of `before` relies on and `after` has otherwise; None where
    there is none."""
    old, new = before.to_json(), after.to_json()
    for name in RELIED_ON:
        if old[name] == new[name]:
            continue
        if name not in FEATURES:
            return f"{name} {old[name]!r:.200}", f"{name} {new[name]!r:.200}"
        key = next(k for k in (*old[name], *new[name]) if old[name].get(k) != new[name].get(k))
        return tuple(f"{key} {_shown(of[name].get(key))}" for of in (old, new))  # type: ignore[return-value]
    return None


def _shown(feature: Mapping[str, Any] | None) -> str:
    """Of JSON."""
    if feature is None:
        return "not at all"
    names = ", ".join(feature["names"])
    return f"as {feature['dtype']} {tuple(feature['shape'])}" + (f" of {names:.200}" if names else "")


def _fits(name: str, value: Any) -> bool:
    if name == "validations":
        return isinstance(value, list | tuple)
    if name == "steering":
        return isinstance(value, list | tuple) and all(isinstance(hook, dict) for hook in value)
    if name == "subgoals":
        return value is None or _decomposes(value)
    if name in LEAST:
        return type(value) is int and value >= LEAST[name]
    if name == "features":
        return _are_features(value) and _has_action(features_from_json(value))
    if name in FEATURES:
        return _are_features(value)
    if name == "needs_past":
        return isinstance(value, bool)
    if name == "control_hz":
        return value is None or (_is_number(value) and value > 0)
    return _is_number(value) if name == "ensemble_decay" else isinstance(value, str)


def _decomposes(value: Any) -> bool:
    try:
        Decompose(**value)
    except (TypeError, ValueError):
        return False
    return True


def _are_features(value: Any) -> bool:
    try:
        features = features_from_json(value)
    except (KeyError, TypeError, ValueError, AttributeError):
        return False
    shapes = [f.shape for f in features.values()]
    return all(type(n) is int and n >= 0 for shape in shapes for n in shape)


def _has_action(features: Features) -> bool:
    return ACTION in features and len(features[ACTION].shape) == 1


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
