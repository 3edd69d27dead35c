"""Features: the one schema that goes from the devices through the episode store into the checkpoint.

Keys are LeRobot's: `observation.state`, `observation.environment_state`, `observation.images.<camera>`,
`observation.depth.<camera>`, `action`; and ours: `observation.camera_pose.<camera>`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from .sizes import dtype_of, require_row, shape_of

STATE = "observation.state"
ENVIRONMENT = "observation.environment_state"
IMAGES = "observation.images."
DEPTH = "observation.depth."  # uint16 (H, W); the unit of one step is in `units`
CAMERA_POSE = "observation.camera_pose."  # (7,) in the robot's frame, see `is_camera_pose`
ACTION = "action"  # the command that was sent
REWARD = "next.reward"  # what the command of the same row earned, one number
PAST = "action.past"  # commands sent before now, oldest first; in requests and batches, in no schema
POSITION = ".pos"  # what LeRobot's names of joints end in
REQUESTED = "action.requested"  # before limits changed it; in no schema, its feature is that of `action`


WORDS = "str"  # dtype of what is told in words; in no dataset


class FeatureMismatch(ValueError):
    """Two schemas that must agree do not; the message shows both sides."""


@dataclass(frozen=True)
class Feature:
    """One array per row of a stream. shape: without time, images HWC. dtype: numpy name. names: one per
    element of a vector (empty for images). units: one per element, SI; "" or none: nobody said."""

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


def is_camera_pose(key: str) -> bool:
    """Whether a vector says where a camera is: x, y, z in m of its optical centre, and the unit quaternion x,
    y, z, w that turns the camera's axes (x right, y down, z ahead) into the robot's. A policy does not see
    it."""
    return key.startswith(CAMERA_POSE)


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
    have: Mapping[str, Feature], want: Mapping[str, Feature], have_is: str, want_is: str, stated: bool = True
) -> None:
    """Raise FeatureMismatch unless `have` offers every feature of `want` with the same shape, dtype, names
    and units. Extra features in `have` are no mismatch.

    In what an arm is moved by (`observation.state`, `action`, and either as a goal or prompt) a name or unit
    that one side lacks is a mismatch: degrees would be sent as radians. Elsewhere, and there too unless
    `stated`, what one side lacks is taken for equal."""
    if lines := differences(have, want, have_is, want_is, stated):
        raise FeatureMismatch(f"{have_is} and {want_is} differ in their features:\n" + "\n".join(lines))


def differences(
    have: Mapping[str, Feature], want: Mapping[str, Feature], have_is: str, want_is: str, stated: bool = True
) -> list[str]:
    """The lines of `require_same`'s message, by feature; the last says what to do where a side is silent."""
    lines, silent = [], False
    for key, feature in want.items():
        offer, strict = have.get(key), stated and moves_an_arm(key)
        if offer is None or (offer.shape, offer.dtype) != (feature.shape, feature.dtype):
            same = False
        else:
            both = ((bare(offer.names), bare(feature.names)), (units_of(offer), units_of(feature)))
            different = [(a, b) for a, b in both if not _agree(a, b, strict)]
            same = not different
            silent |= any(not (a and b) or "" in (*a, *b) for a, b in different)
        if not same:
            lines.append(f"  {key}: {have_is} {_describe(key, offer)}; {want_is} {_describe(key, feature)}")
    return [*lines, STATE_THEM] if silent else lines


def _agree(a: tuple[str, ...], b: tuple[str, ...], strict: bool) -> bool:
    """Whether names or units are the same; unless `strict`, what one side does not state agrees."""
    if strict or not (a and b):
        return a == b or not strict
    return len(a) == len(b) and all(x == y or not (x and y) for x, y in zip(a, b, strict=True))


STATE_THEM = (
    "  whose names or units are not stated: state them with `ulna data units FOLDER --units "
    "radians|degrees|percent [--names …]`, which takes a dataset or a checkpoint"
)


def moves_an_arm(key: str) -> bool:
    """Whether a feature is the arm's state or command, also as a goal or in a prompt."""
    return key.endswith((STATE, ACTION)) or key == REQUESTED


def bare(names: tuple[str, ...]) -> tuple[str, ...]:
    """`names` without LeRobot's `.pos`, where they stay distinct: it is only another spelling."""
    short = [n.removesuffix(POSITION) for n in names]
    counts = Counter(short)
    return tuple(s if s and counts[s] == 1 else n for s, n in zip(short, names, strict=True))


def units_of(f: Feature) -> tuple[str, ...]:
    """The units that are stated; () where none is."""
    return f.units if any(f.units) else ()


def _describe(key: str, f: Feature | None) -> str:
    if f is None:
        return "has none"
    vector = len(f.shape) == 1 and moves_an_arm(key)
    names = f" [{', '.join(f.names)}]" if f.names else " without names" if vector else ""
    kinds = [u or "an unknown unit" for u in dict.fromkeys(f.units)] if any(f.units) else []
    units = f" in {', '.join(kinds)}" if kinds else " of no stated unit" if vector else ""
    return f"has {f.dtype} {f.shape}{names}{units}"


def require_name(key: str) -> None:
    """Raise ValueError unless `key` can be the name of a folder."""
    if not key or "/" in key or "\\" in key or key.startswith("."):
        raise ValueError(
            f"the feature name {key!r} cannot be a folder's: leave out slashes and a leading dot"
        )


def state_keys(features: Iterable[str]) -> list[str]:
    """Vector observations that a policy may see, in a fixed order."""
    return sorted(
        k for k in features if k.startswith("observation.") and not (is_frames(k) or is_camera_pose(k))
    )


def image_keys(features: Iterable[str]) -> list[str]:
    return sorted(k for k in features if is_image(k))
