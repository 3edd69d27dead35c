"""Which array of a foreign dataset becomes which feature here: what the user says (`--map`, `--drop`), then
conventions that are well known, then the array's own name. One mechanism for every format.

Names of: openpi's converters (repository Physical-Intelligence/openpi, examples/libero and examples/droid),
DROID in LeRobot (huggingface/lerobot, examples/port_datasets), Octo's RLDS (`proprio`), ALOHA (`qpos`), and
Diffusion Policy's environments (`agent_pos`)."""

from __future__ import annotations

import difflib
import fnmatch
import itertools
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from ..episode import StoreError
from ..features import ACTION, DEPTH, IMAGES, STATE, Feature, is_depth, is_image, require_name

# aside: numbers that come in only where --map names them. other: what no store holds, such as text
Kind = Literal["image", "depth", "vector", "aside", "other"]

OBSERVATION = "observation."
# convention → its names for a feature, in the order in which they are joined. The first that is there counts
CONVENTIONS: tuple[tuple[str, dict[str, tuple[str, ...]]], ...] = (
    ("openpi", {ACTION: ("actions",), STATE: ("state",)}),
    ("openpi's DROID", {STATE: ("joint_position", "gripper_position")}),
    ("Octo's RLDS", {STATE: ("proprio",)}),
    ("ALOHA", {STATE: ("qpos",)}),
    ("Diffusion Policy", {STATE: ("agent_pos",)}),
)
PREFIX = re.compile(r"(?:observations?|obs)[./]")
ACTION_PART = re.compile(r"actions?[./](.+)")
CAMERA_PREFIX = re.compile(r"(?:(?:observations?|obs)[./])?(?:(?:images?|cameras?|videos?|depths?|rgb)[./])?")
# several ways to say one motion: parts like these are alternatives, not halves
QUANTITIES = re.compile(r"(?:^|_)(?:pos|position|vel|velocity|torque|effort|delta|abs|original|raw)s?$")
IN_JOINTS = re.compile(r"(?:^|_)joints?(?:_|$)")
IN_SPACE = re.compile(r"(?:^|_)(?:cartesian|eef|ee|tcp)(?:_|$)")


@dataclass(frozen=True)
class Naming:
    """What the user says. renames: name, or glob over names, of the source → key here; several with one key
    are joined in the order of their names. drops: names or globs, of the source or of keys here, of what
    stays out."""

    renames: Mapping[str, str] = field(default_factory=dict)
    drops: Sequence[str] = ()


@dataclass(frozen=True)
class Placement:
    """parts: key here → names in the source, joined in this order. left_out: names that stay out, in their
    order. notes: `renamed`, `joined`, `convention`, `left_out` for the provenance."""

    parts: dict[str, tuple[str, ...]]
    left_out: tuple[str, ...]
    notes: dict[str, Any]


def place(
    arrays: Mapping[str, Kind],
    naming: Naming,
    source: str,
    known: Mapping[str, Sequence[str]] | None = None,
    needs_action: bool = True,
) -> Placement:
    """Where each of `arrays` (name in the source → what it is) goes. known: what the format itself says, key
    → names to join. Raises StoreError, which begins with `source`; also where nothing is the action and
    `needs_action`."""
    by_name = {d for d in naming.drops if d in arrays}
    dropped = {n for n in arrays for d in naming.drops if n == d or _matches(n, d)}
    names = [n for n in arrays if n not in dropped]
    mapped = _mapped(names, naming.renames, source, arrays, dropped)
    parts: dict[str, tuple[str, ...]] = {k: tuple(v) for k, v in mapped.items()}
    taken = {n for v in mapped.values() for n in v}
    conventions: dict[str, list[str]] = {}
    known_names = [("", {k: tuple(v) for k, v in (known or {}).items()}), *CONVENTIONS]
    for convention, table in known_names:
        for key, candidates in table.items():
            present = tuple(n for n in candidates if n in names and n not in taken and arrays[n] != "other")
            if present and key not in parts and (not convention or key not in names):
                parts[key] = present
                taken.update(present)
                conventions.setdefault(convention, []).extend(present)
    rest = [n for n in names if n not in taken and arrays[n] not in ("aside", "other")]
    for key, halves in _halves(rest, parts, source).items():
        parts[key] = halves
        taken.update(halves)
    alone = [n for n in rest if n not in taken and n != "actions" and not ACTION_PART.fullmatch(n)]
    for name, key in _own_keys(alone, arrays).items():
        if key in parts:
            raise StoreError(
                f"{source}: two arrays would be called {key}, {' and '.join((*parts[key], name))}: rename "
                f"one with --map {name}=FEATURE, or leave one out with --drop {name}"
            )
        parts[key] = (name,)
    key_drops = [d for d in naming.drops if d not in by_name]
    by_key = {k for k in parts for d in key_drops if k == d or _matches(k, d)} - mapped.keys()
    unused = [d for d in key_drops if not any(d == n or _matches(n, d) for n in (*arrays, *by_key))]
    if unused:
        raise StoreError(f"{source} has nothing that --drop {unused[0]} names{_near(unused[0], arrays)}")
    parts = {k: v for k, v in parts.items() if k not in by_key}
    _require_fit(parts, arrays, source)
    if needs_action and ACTION not in parts:
        raise StoreError(
            f"{source} has no {ACTION}; it has {', '.join(arrays) or 'nothing'}: name it with --map "
            f"NAME={ACTION}"
        )
    order = {n: i for i, n in enumerate(arrays)}
    parts = dict(sorted(parts.items(), key=lambda item: order[item[1][0]]))
    left_out = tuple(n for n in arrays if not any(n in v for v in parts.values()))
    notes: dict[str, Any] = {
        "renamed": {v[0]: k for k, v in parts.items() if len(v) == 1 and v[0] != k},
        "joined": {k: " + ".join(v) for k, v in parts.items() if len(v) > 1},
        "convention": [f"{c} ({', '.join(names)})" for c, names in conventions.items() if c],
        "left_out": list(left_out),
    }
    return Placement(parts, left_out, notes)


def joined(features: Mapping[str, Feature]) -> Feature:
    """The feature of several that are joined, by name in their order: a vector, each part flattened, float32
    unless all are of one dtype of whole numbers. One alone stays as it is.

    Elements keep their names where all parts have some and no two agree; else they are called by their part,
    `gripper` or `arm.0`."""
    if len(features) == 1:
        return next(iter(features.values()))
    width = sum(math.prod(f.shape) for f in features.values())
    names = [n for f in features.values() for n in f.names]
    if len(names) != width or len(set(names)) != width:
        shorts = {n: re.split(r"[./]", n)[-1] for n in features}
        if len(set(shorts.values())) < len(shorts):
            shorts = {n: re.sub(PREFIX, "", n) for n in features}
        names = []
        for name, f in features.items():
            count = math.prod(f.shape)
            own = f.names if len(f.names) == count > 1 else tuple(map(str, range(count)))
            names += [shorts[name]] if count == 1 else [f"{shorts[name]}.{n}" for n in own]
    units = [u for f in features.values() for u in f.units]
    dtypes = {f.dtype for f in features.values()}
    whole = len(dtypes) == 1 and np.dtype(min(dtypes)).kind != "f"
    return Feature(
        (width,),
        min(dtypes) if whole else "float32",
        tuple(names),
        tuple(units) if len(units) == width else (),
    )


def join_rows(blocks: Sequence[np.ndarray], feature: Feature) -> np.ndarray:
    """Rows of several arrays, each `(T, ...)`, as `(T, *feature.shape)` in the feature's dtype."""
    flat = [b.reshape(len(b), -1) for b in blocks]
    rows = flat[0] if len(flat) == 1 else np.concatenate(flat, 1)
    with np.errstate(over="ignore"):  # the writer refuses what is then not finite
        return rows.reshape(len(rows), *feature.shape).astype(feature.dtype, copy=False)


def natural(name: str) -> tuple[tuple[int, str], ...]:
    """To sort names by: numbers in them by their value."""
    return tuple((int(p), "") if p.isdecimal() else (-1, p) for p in re.split(r"(\d+)", name))


def _mapped(
    names: Sequence[str],
    renames: Mapping[str, str],
    source: str,
    arrays: Mapping[str, Kind],
    dropped: Iterable[str],
) -> dict[str, list[str]]:
    mapped: dict[str, list[str]] = {}
    seen: set[str] = set()
    exact_first = sorted(renames.items(), key=lambda item: item[0] not in arrays)
    for pattern, key in exact_first:
        hits = [pattern] if pattern in names else [n for n in names if _matches(n, pattern)]
        hits = [n for n in hits if n not in seen]
        if not hits and pattern in dropped:
            raise StoreError(f"{source}: {pattern} cannot be both renamed by --map and left out by --drop")
        if not hits:
            raise StoreError(f"{source} has no array {pattern} to rename{_near(pattern, arrays)}")
        try:
            require_name(key)
        except ValueError as error:
            raise StoreError(f"--map {pattern}={key}: {error}") from None
        if key != ACTION and not (key.startswith(OBSERVATION) and key not in (OBSERVATION, IMAGES, DEPTH)):
            raise StoreError(
                f"--map {pattern}={key}: a feature is called {ACTION}, {OBSERVATION}<name>, {IMAGES}<camera> "
                f"or {DEPTH}<camera>"
            )
        mapped.setdefault(key, []).extend(hits)
        seen.update(hits)
    return {key: sorted(hits, key=natural) for key, hits in mapped.items()}


def _halves(
    names: Sequence[str], parts: Mapping[str, tuple[str, ...]], source: str
) -> dict[str, tuple[str, ...]]:
    """Actions and states that come in parts (`action.arm`, `action.gripper`), where there is no whole."""
    halves = {}
    patterns = ((ACTION, ACTION_PART), (STATE, re.compile(re.escape(STATE) + r"\.(.+)")))
    for key, pattern in patterns:
        own = sorted((n for n in names if pattern.fullmatch(n)), key=natural)
        if not own or key in parts or key in names:
            continue
        if _alternatives([m[1] for n in own if (m := pattern.fullmatch(n))]):
            if key == STATE:
                continue  # each stays an observation of its own
            raise StoreError(
                f"{source} has no {key} but several ways to say it, {', '.join(own)}: say which with --map "
                f"{own[0]}={key} (several are joined)"
            )
        halves[key] = tuple(own)
    return halves


def _alternatives(suffixes: Sequence[str]) -> bool:
    """Whether two of the parts say one thing in two ways, like joint_position and cartesian_position."""
    bare = [QUANTITIES.sub("", s) for s in suffixes]
    in_both = all(any(f.search(s) for s in suffixes) for f in (IN_JOINTS, IN_SPACE))
    return len(set(bare)) < len(bare) or in_both


def _own_keys(names: Sequence[str], arrays: Mapping[str, Kind]) -> dict[str, str]:
    """name → key, from the name alone. Cameras are called by the last part of their name, or by all of it
    where two would get the same."""
    keys, cameras = {}, {}
    for name in names:
        if arrays[name] in ("image", "depth"):
            cameras[name] = re.sub(r"[./]", ".", CAMERA_PREFIX.sub("", name)) or name
        elif name == ACTION:
            keys[name] = ACTION
        else:
            keys[name] = OBSERVATION + PREFIX.sub("", name).replace("/", ".")
    shorts = {n: c if is_image(n) or is_depth(n) else c.rsplit(".", 1)[-1] for n, c in cameras.items()}
    for name, full in cameras.items():
        same = [n for n in cameras if shorts[n] == shorts[name] and arrays[n] == arrays[name]]
        camera = shorts[name] if len(same) == 1 or is_image(name) else full.replace(".", "_")
        keys[name] = (DEPTH if arrays[name] == "depth" else IMAGES) + camera
    return keys


def _require_fit(parts: Mapping[str, tuple[str, ...]], arrays: Mapping[str, Kind], source: str) -> None:
    wanted = {"image": "images", "depth": "depth images", "vector": "numbers", "aside": "numbers"}
    for key, names in parts.items():
        place_kind = "image" if is_image(key) else "depth" if is_depth(key) else "vector"
        for name in names:
            kind = "vector" if arrays[name] == "aside" else arrays[name]
            if kind == "other":
                raise StoreError(f"{source}: {name} holds no numbers, and cannot become {key}")
            if kind != place_kind:
                raise StoreError(f"{source}: {name} holds {wanted[kind]}, and cannot become {key}")
        if place_kind != "vector" and len(names) > 1:
            raise StoreError(f"{source}: two arrays would be called {key}, {' and '.join(names)}")


def _matches(name: str, pattern: str) -> bool:
    return fnmatch.fnmatchcase(name, pattern)


def _near(name: str, names: Iterable[str]) -> str:
    names = list(names)
    near = difflib.get_close_matches(name, names, n=2, cutoff=0.5)
    some = ", ".join(itertools.islice(names, 40)) or "nothing"
    return f": did you mean {' or '.join(near)}?" if near else f"; it has {some}"
