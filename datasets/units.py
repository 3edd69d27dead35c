"""Units of vectors: what the smallest and the largest number of each is, and vectors restated in other
names and units."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from .episode import StoreError
from .features import ACTION, POSITION, REQUESTED, STATE, Feature, FeatureMismatch, Features, bare, units_of


@dataclass(frozen=True)
class Unit:
    """resolution: the smallest difference that means something. largest: the size that no reading of a robot
    has."""

    resolution: float
    largest: float


UNITS = {
    "rad": Unit(0.0015, 13.0),  # a servo's count is 2π/4096; two turns, and wrists turn once either way
    "deg": Unit(0.088, 745.0),
    "%": Unit(0.1, 400.0),
    "m": Unit(1e-4, 1e4),
    "mm": Unit(0.1, 1e7),
    "1": Unit(2.5e-5, 1e6),
}
LARGEST = 1e6  # in any unit
RELATIVE = 5e-4  # of an element's size: its resolution where its unit is not known


def resolutions(feature: Feature, size: np.ndarray) -> np.ndarray:
    """The smallest difference that means something, of each element `(D,)`. size `(D,)`: how large the
    elements' numbers get, which says it where the unit does not."""
    units = feature.units if len(feature.units) == len(size) else ("",) * len(size)
    relative = np.maximum(RELATIVE * np.abs(size), UNITS["1"].resolution)
    return np.array([UNITS[u].resolution if u in UNITS else r for u, r in zip(units, relative, strict=True)])


@dataclass(frozen=True)
class Element:
    """One element of a vector as it is to be: `value · scale + offset`, in `unit` ("": nobody said). lowest,
    highest: between which the source's values lie if they are in `stated`, the unit that was stated for
    them."""

    name: str
    unit: str = ""
    scale: float = 1.0
    offset: float = 0.0
    stated: str = field(default="", compare=False)
    lowest: float | None = field(default=None, compare=False)
    highest: float | None = field(default=None, compare=False)

    @property
    def converts(self) -> bool:
        return (self.scale, self.offset) != (1.0, 0.0)


@dataclass(frozen=True)
class Restated:
    """Vectors in other names and units than their source's."""

    elements: Mapping[str, tuple[Element, ...]] = field(default_factory=dict)
    """By feature; those that are not named stay as they are."""
    first_of_chunk: bool = False
    """Of each row of `action` `(n, A)`, a chunk, only its first action is kept."""
    notes: Mapping[str, str] = field(default_factory=dict)
    """What was stated or assumed, for the provenance."""

    def features(self, features: Features) -> Features:
        """The features as they are to be. StoreError for an action that is no vector."""
        result = dict(features)
        shape = features[ACTION].shape
        if self.first_of_chunk and len(shape) == 2:
            names = features[ACTION].names
            result[ACTION] = replace(
                features[ACTION], shape=shape[1:], names=names if len(names) == shape[1] else ()
            )
        require_action(result, self.first_of_chunk)
        for key, elements in self.elements.items():
            names, units = tuple(e.name for e in elements), tuple(e.unit for e in elements)
            result[key] = replace(
                result[key],
                dtype=_dtype(elements, result[key].dtype),
                names=names if all(names) else (),
                units=units if any(units) else (),
            )
        return result

    def values(self, key: str, rows: np.ndarray) -> np.ndarray:
        """`rows` `(T, *shape)` of the feature `key` (or of `action.requested`) as they are to be. StoreError
        where more than a glitch of them is beyond what an element's stated unit allows."""
        if key == REQUESTED:
            key = ACTION
        if key == ACTION and self.first_of_chunk and rows.ndim == 3:
            rows = rows[:, 0]
        elements = self.elements.get(key, ())
        _require_in_units(key, rows, elements)
        if not any(e.converts for e in elements):
            return rows
        scale, offset = (np.array([getattr(e, name) for e in elements]) for name in ("scale", "offset"))
        with np.errstate(over="ignore"):
            return (rows * scale + offset).astype(_dtype(elements, rows.dtype.name))

    def limits(self, names: Sequence[str], limits: Mapping[str, Sequence[float]]) -> dict[str, list[float]]:
        """`{joint: [lower, upper]}` of joints called `names` in the source's `action`, as they are to be."""
        elements = dict(zip(names, self.elements.get(ACTION, ()), strict=False))
        changed = {}
        for name, ends in limits.items():
            x = elements.get(name, Element(name))
            changed[x.name] = sorted(v * x.scale + x.offset for v in ends)
        return changed

    def inverse(self, source: Features) -> Restated:
        """The way back, to the names and units of `source`."""
        elements = {}
        for key, of_key in self.elements.items():
            f = source[key]
            names = f.names or ("",) * len(of_key)
            units = f.units or ("",) * len(of_key)
            elements[key] = tuple(
                Element(name, unit, 1 / e.scale, -e.offset / e.scale)
                for name, unit, e in zip(names, units, of_key, strict=True)
            )
        return Restated(elements)

    def trusting(self) -> Restated:
        """The same for numbers that are taken as they come, such as a policy's."""
        elements = {
            key: tuple(replace(e, stated="", lowest=None, highest=None) for e in of_key)
            for key, of_key in self.elements.items()
        }
        return replace(self, elements=elements)

    @property
    def converts(self) -> bool:
        """Whether numbers change, and not only what they are called."""
        return self.first_of_chunk or any(e.converts for es in self.elements.values() for e in es)


GLITCHES = 0.05  # share of rows that may lie where no reading does


def _require_in_units(key: str, rows: np.ndarray, elements: tuple[Element, ...]) -> None:
    for j, e in enumerate(elements):
        if e.lowest is None or e.highest is None:
            continue
        values = rows[..., j]
        outside = (values < e.lowest) | (values > e.highest)
        if outside.size and outside.mean() > GLITCHES:  # the same words for every episode
            raise StoreError(
                f"{key}: {e.name or f'element {j}'} goes beyond {e.lowest:.0f} to {e.highest:.0f}, which it "
                f"cannot in {e.stated}: say what it is in, with --units radians|degrees|percent"
            )


def _dtype(elements: tuple[Element, ...], dtype: str) -> str:
    """Whole degrees are no whole radians."""
    whole = np.dtype(dtype).kind != "f" and any(e.converts for e in elements)
    return "float32" if whole else dtype


Restate = Callable[[Features, str], Restated]  # from a source's features and the robot that it names


def plain(features: Features, robot: str = "") -> Restated:
    """Nothing is stated: LeRobot's `.pos` drops from the names of joints, and that is all."""
    elements = {}
    for key in (STATE, ACTION):
        f = features.get(key)
        if f is not None and any(n.endswith(POSITION) for n in f.names):
            units = f.units or ("",) * len(f.names)
            elements[key] = tuple(Element(n, u) for n, u in zip(bare(f.names), units, strict=True))
    return Restated(elements)


def require_action(features: Features, first_of_chunk: bool = False) -> None:
    """Raise StoreError unless `action` is a vector: a chunk in each row is nothing an arm can be sent."""
    shape = features[ACTION].shape
    if len(shape) == 2 and not first_of_chunk:
        raise StoreError(
            f"each row of {ACTION} is a chunk {shape} of {shape[0]} actions, and a dataset holds the one "
            "that was sent: take the first of each with --first-of-chunk"
        )
    if len(shape) != 1:
        raise StoreError(f"each row of {ACTION} has the shape {shape}, and an action is a vector")


def unstated_keys(features: Features) -> list[str]:
    """What moves an arm and does not state its units."""
    return [k for k in (STATE, ACTION) if k in features and not units_of(features[k])]


UNLIKE = 15.0  # times: a radian is 57 degrees


def require_alike(key: str, values: Mapping[str, np.ndarray]) -> None:
    """Raise FeatureMismatch where datasets that do not state their units can hardly share one. values: of
    each dataset by its path, `(N, D)`."""
    sizes = {
        path: np.maximum(np.quantile(np.abs(rows.astype(np.float64)), 0.99, axis=0), 1e-6)
        for path, rows in values.items()
        if len(rows)
    }
    for path, size in list(sizes.items())[1:]:
        first = next(iter(sizes))
        ratio = float(np.median(size / sizes[first]))
        if not 1 / UNLIKE < ratio < UNLIKE:
            factor = ratio if ratio > 1 else 1 / ratio
            raise FeatureMismatch(
                f"{key} of {path} is {factor:.0f} times as {'large' if ratio > 1 else 'small'} as that of "
                f"{first}, and neither states its unit, as if one were in degrees: state them with `ulna "
                "data units FOLDER --units radians|degrees|percent`"
            )
