"""Features: the one schema that goes from the devices through the episode store into the checkpoint.

Keys are LeRobot's: `observation.state`, `observation.environment_state`, `observation.images.<camera>`,
`observation.depth.<camera>`, `action`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from .sizes import dtype_of, require_row, shape_of

STATE = "observation.state"
ENVIRONMENT = "observation.environment_state"
IMAGES = "observation.images."
DEPTH = "observation.depth."  # uint16 (H, W); the unit of one step is in `units`
ACTION = "action"  # the command that was sent
REWARD = "next.reward"  # what the command of the same row earned, one number
PAST = "action.past"  # commands sent before now, oldest first; in requests and batches, in no schema
REQUESTED = "action.requested"  # before limits changed it; in no schema, its feature is that of `action`


WORDS = "str"  # dtype of what is told in words; in no dataset


class FeatureMismatch(ValueError):
    """Two schemas that must agree do not; the message shows both sides."""


@dataclass(frozen=True)
class Feature:
    """One array per row of a stream. shape: without time, images HWC. dtype: numpy name. names: one per
    element of a vector (empty for images). units: one per name, SI."""

    shape: tuple[int, ...]
    dtype: str
    names: tuple[str, ...] = ()
    units: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        return {
            "shape": list(self.shape),
            "dtype": self.dtype,
            "names": list(self.names),
            "units": list(self.units),
        }

    @staticmethod
    def from_json(d: Mapping[str, Any]) -> Feature:
        """Raises ValueError where shape, type, names or units are none that an array can have."""
        shape = shape_of(d["shape"])
        dtype = WORDS if d["dtype"] == WORDS else dtype_of(d["dtype"])
        if dtype != WORDS:
            require_row(shape, dtype)
        return Feature(shape, dtype, _words_of(d.get("names")), _words_of(d.get("units")))


Features = dict[str, Feature]


def _words_of(value: Any) -> tuple[str, ...]:
    if not isinstance(value or [], list | tuple) or not all(isinstance(v, str) for v in value or ()):
        raise ValueError(f"names and units are lists of words, not {str(value)[:60]}")
    return tuple(value or ())


def unit_of_depth(scale_m: float) -> str:
    """The unit of depth whose steps are `scale_m` metres, as in `Feature.units`: `mm`, `0.1 mm`."""
    mm = f"{1000 * scale_m:.6g}"
    return "mm" if mm == "1" else f"{mm} mm"


def depth_scale_m(unit: str) -> float | None:
    """Metres a step for a unit as `unit_of_depth` writes it (or `cm`, `m`); None for any other unit."""
    number, _, length = unit.rpartition(" ")
    try:
        return float(number or 1) * {"mm": 0.001, "cm": 0.01, "m": 1.0}[length]
    except (KeyError, ValueError):
        return None


def features_to_json(features: Mapping[str, Feature]) -> dict[str, Any]:
    return {key: feature.to_json() for key, feature in features.items()}


def features_from_json(d: Mapping[str, Any]) -> Features:
    """Raises ValueError that names the feature which is none."""
    features = {}
    for key, value in d.items():
        try:
            features[key] = Feature.from_json(value)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            why = str(error) if isinstance(error, ValueError) else f"{error!r}"
            raise ValueError(f"the feature {key!r}: {why}") from None
    return features


def is_image(key: str) -> bool:
    return key.startswith(IMAGES)


def is_depth(key: str) -> bool:
    return key.startswith(DEPTH)


def is_frames(key: str) -> bool:
    """Whether a stream is stored frame by frame: images and depth."""
    return is_image(key) or is_depth(key)


def rename(features: Mapping[str, Feature], renames: Mapping[str, str], owner: str) -> Features:
    """`features` under new keys. Raises FeatureMismatch, which names `owner`, when two would get the same."""
    keys = [renames.get(k, k) for k in features]
    if twice := [k for k in keys if keys.count(k) > 1]:
        raise FeatureMismatch(f"{owner}: two features would be called {twice[0]}")
    return dict(zip(keys, features.values(), strict=True))


def require_same(
    have: Mapping[str, Feature], want: Mapping[str, Feature], have_is: str, want_is: str
) -> None:
    """Raise FeatureMismatch unless `have` offers every feature of `want` with the same shape, dtype and
    names.

    Extra features in `have` are no mismatch; units are compared where both sides give them.
    """
    differences = [
        f"  {key}: {have_is} {_describe(have.get(key))}; {want_is} {_describe(want[key])}"
        for key in want
        if not _same(have.get(key), want[key])
    ]
    if differences:
        raise FeatureMismatch(f"{have_is} and {want_is} differ in their features:\n" + "\n".join(differences))


def _same(a: Feature | None, b: Feature) -> bool:
    if a is None or a.shape != b.shape or a.dtype != b.dtype:
        return False
    return (not a.names or not b.names or a.names == b.names) and (
        not a.units or not b.units or a.units == b.units
    )


def _describe(f: Feature | None) -> str:
    if f is None:
        return "has none"
    names = f" [{', '.join(f.names)}]" if f.names else ""
    units = f" in {', '.join(dict.fromkeys(f.units))}" if f.units else ""
    return f"has {f.dtype} {f.shape}{names}{units}"


def require_name(key: str) -> None:
    """Raise ValueError unless `key` can be the name of a folder."""
    if not key or "/" in key or "\\" in key or key.startswith("."):
        raise ValueError(
            f"the feature name {key!r} cannot be a folder's: leave out slashes and a leading dot"
        )


def state_keys(features: Iterable[str]) -> list[str]:
    """Vector observations, in a fixed order."""
    return sorted(k for k in features if k.startswith("observation.") and not is_frames(k))


def image_keys(features: Iterable[str]) -> list[str]:
    return sorted(k for k in features if is_image(k))
