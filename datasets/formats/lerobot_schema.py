"""What the features of a LeRobot folder become here: by its `meta/`, by what its pictures are, and by what
the user says."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..episode import StoreError
from ..features import ACTION, REWARD, Feature, Features, is_depth, is_image
from ..video import Picture, still_bytes, still_picture, video_header
from .foreign_files import whole
from .lerobot_export import FLAGS, REQUEST, TIMES, UNITS
from .lerobot_folder import MALFORMED, EpisodeSource, LeRobotFolder, Modality, why
from .naming import ACTION_PART, PREFIX, Kind, Naming, joined, place
from .parquet import column_names, first_value

BOOKKEEPING = ("timestamp", "frame_index", "episode_index", "index", "task_index", "next.success")
ULNA_COLUMNS = (TIMES, FLAGS, REQUEST)  # of our own export
TEXT_TASKS = ("task", "language_instruction")  # columns of words
# numbers that no robot observes, as LeRobot, DROID and GR00T name them
NOT_OBSERVED = re.compile(
    r"(next|annotation|annotations|meta|camera_(in|ex)trinsics|language)[._].*|is_(first|last|terminal)"
    r"|rewards?|discount|dones?|success|terminat(ed|ion)s?|truncat(ed|ion)s?|timestamps?|.*_index|index|task"
    r"|actions?_.*"
)
MOST_PIXELS = 1 << 24  # of pictures that are not of the size that meta/info.json says
MOST_DECLARED_PIXELS = 1 << 26
PROBES = 20  # episodes in which to look for a picture


@dataclass(frozen=True)
class Schema:
    """features: ours. parts: our key → names in LeRobot. columns: by such a name, the feature that is read.
    pictures: how the pictures of a name are. videos: those names that are videos. task_columns: that say the
    task, before `task_index`. timed_names: the streams whose times our own export carries. notes: for the
    provenance."""

    features: Features
    parts: dict[str, tuple[str, ...]]
    columns: Features
    pictures: dict[str, Picture]
    videos: tuple[str, ...]
    task_columns: tuple[str, ...]
    timed_names: tuple[str, ...]
    notes: dict[str, Any]


def schema_of(
    folder: LeRobotFolder,
    sources: Sequence[EpisodeSource],
    naming: Naming,
    image_size: tuple[int, int] | None,
) -> Schema:
    """The schema of `sources`. Raises StoreError."""
    modality = folder.modality() or Modality()
    named = any(PREFIX.match(n) for n in folder.features)
    columns: Features = {}
    kinds: dict[str, Kind] = {}
    pictures: dict[str, Picture] = {}
    sizes: dict[str, Picture] = {}  # as meta/info.json says
    remarks: dict[str, list[str]] = {}
    for name, said in folder.features.items():
        if name in (*BOOKKEEPING, *ULNA_COLUMNS):
            continue
        try:
            declared = _declared(name, said, modality)
        except MALFORMED as error:
            raise StoreError(
                f"a feature in meta/info.json cannot be understood: {name}: {why(error)}"
            ) from None
        if isinstance(declared, Feature):
            columns[name] = declared
            is_action = name in (ACTION, "actions") or ACTION_PART.fullmatch(name)
            observed = is_action or PREFIX.match(name) or not named
            spare = NOT_OBSERVED.fullmatch(name) or is_image(name) or is_depth(name)
            kinds[name] = "vector" if observed and not spare else "aside"
        elif declared is not None and _is_unused(name, said, modality, sources):
            kinds[name], remarks[name] = "other", ["no video of it is there, nor in meta/modality.json"]
        elif declared is not None:
            picture = _probe(folder, sources, name, said) or declared
            kinds[name], columns[name], remarks[name] = _picture_kind(said, picture, declared, image_size)
            pictures[name], sizes[name] = picture, declared
        else:
            kinds[name] = "other"
    known = dict(_joins(modality, kinds))
    if REWARD in columns and columns[REWARD].shape == (1,):
        known[REWARD] = (REWARD,)
    placement = place(kinds, naming, str(folder.path), known)
    used = [n for names in placement.parts.values() for n in names]
    for name in used:
        if name in pictures:
            _require_bearable(f"{folder.path}: the pictures of {name}", pictures[name], sizes[name])
    features = {k: joined({n: columns[n] for n in names}) for k, names in placement.parts.items()}
    notes = dict(placement.notes)
    if modality.slices:
        notes["convention"] = [*notes["convention"], "GR00T (meta/modality.json)"]
    task_columns = tuple(n for n in modality.task_columns if n != "task_index")
    if task_columns:
        notes["task"] = f"as {task_columns[0]} says"
    told = [n for n in remarks if n in used or kinds[n] == "other"]
    if sentences := [f"{n}: {r}" for n in told for r in remarks[n]]:
        notes["pictures"] = sentences
    return Schema(
        features,
        placement.parts,
        columns,
        {n: p for n, p in pictures.items() if n in used},
        tuple(n for n in used if folder.features[n].get("dtype") == "video"),
        task_columns,
        tuple(_flat((folder.features.get(FLAGS) or {}).get("names"))),
        notes,
    )


def require_size(place: str, name: str, own: Picture, first: Picture, resized: bool) -> None:
    """Raise StoreError unless pictures like `own` can follow those like `first`. resized: all become of one
    size."""
    if own.kind != first.kind or (not resized and own != first):
        raise StoreError(
            f"{place}: the pictures of {name} are {own.kind} of {own.width}×{own.height} pixels, those of "
            f"the first episode {first.kind} of {first.width}×{first.height}"
        )
    if own.width * own.height > max(MOST_PIXELS, first.width * first.height):
        raise StoreError(f"{place}: the pictures of {name} have {own.width}×{own.height} pixels: refused")


def _declared(name: str, said: Mapping[str, Any], modality: Modality) -> Feature | Picture | None:
    """What meta/info.json says of a feature; None for what a store cannot hold, such as text."""
    dtype = str(said["dtype"])
    shape = tuple(whole(n, "a number of its shape") for n in said.get("shape") or (1,))
    if not 0 < math.prod(shape) <= 1 << 40:
        raise StoreError(f"its shape is {shape}")
    names = _flat(said.get("names"))
    if dtype in ("video", "image"):
        return Picture(*_declared_size(shape, names))
    try:
        numeric = np.dtype(dtype).kind in "fiub"
    except TypeError:
        numeric = False
    if not numeric:
        return None
    own_names = _sliced(names, modality.slices.get(name, ()), math.prod(shape))
    size, units = math.prod(shape), tuple(map(str, (said.get("info") or {}).get(UNITS) or ()))
    return Feature(
        shape,
        dtype,
        own_names if len(own_names) == size else (),
        units if len(units) == size else (),
    )


def _declared_size(shape: tuple[int, ...], names: Sequence[str]) -> tuple[int, int]:
    """(height, width) of an image by its shape and the names of its axes; (0, 0) where they do not tell."""
    if len(shape) == 2:
        return shape[0], shape[1]
    if len(shape) != 3:
        return 0, 0
    first_letters = [n[:1].lower() for n in names]
    if sorted(first_letters) == ["c", "h", "w"]:
        return shape[first_letters.index("h")], shape[first_letters.index("w")]
    channels_first = shape[0] in (1, 3) and shape[2] not in (1, 3)
    return (shape[1], shape[2]) if channels_first else (shape[0], shape[1])


def _sliced(names: Sequence[str], slices: Sequence[tuple[str, int, int]], width: int) -> tuple[str, ...]:
    """`names`, or names by GR00T's slices where those say nothing, as `motor_0` does."""
    if not slices or (len(names) == width and not all(re.fullmatch(r"(\w*_)?\d+", n) for n in names)):
        return tuple(names)
    own = list(names) if len(names) == width else [str(i) for i in range(width)]
    for name, start, stop in slices:
        own[start:stop] = [name] if stop - start == 1 else [f"{name}.{i}" for i in range(stop - start)]
    return tuple(own)


def _joins(modality: Modality, kinds: Mapping[str, Kind]) -> dict[str, tuple[str, ...]]:
    """Of GR00T, features of other columns than the one of their name."""
    return {k: names for k, names in modality.joins.items() if k not in kinds}


def _is_unused(
    name: str, said: Mapping[str, Any], modality: Modality, sources: Sequence[EpisodeSource]
) -> bool:
    """Whether a video is a leftover of meta/info.json: GR00T's own demonstrations say `egoview` there, while
    modality.json and the files only have `ego_view`. Where nothing names the videos, one that is missing was
    lost."""
    if said["dtype"] != "video" or not modality.videos or name in modality.videos:
        return False
    return not any(name in s.videos and os.path.lexists(s.videos[name][0]) for s in sources)


def _probe(
    folder: LeRobotFolder, sources: Sequence[EpisodeSource], name: str, said: Mapping[str, Any]
) -> Picture | None:
    """How the pictures of a feature are in the first episode that shows it, None where none does."""
    for source in sources[:PROBES]:
        try:
            if said["dtype"] == "video":
                if name in source.videos:
                    folder.root.require_file(source.videos[name][0])
                    return video_header(source.videos[name][0], name)[0]
                continue
            folder.root.require_file(source.table)
            if name in column_names(source.table):
                return still_picture(still_bytes(first_value(source.table, name), name), name)
        except (StoreError, OSError, IndexError):
            continue  # whoever reads the episode says what is wrong
    return None


def _picture_kind(
    said: Mapping[str, Any],
    picture: Picture,
    declared: Picture,
    image_size: tuple[int, int] | None,
) -> tuple[Kind, Feature, list[str]]:
    """(what the pictures are, our feature, remarks on what meta/info.json says otherwise)."""
    info = {**(said.get("video_info") or {}), **(said.get("info") or {})}
    marked = bool(info.get("is_depth_map") or info.get("video.is_depth_map"))
    size = image_size or (picture.height, picture.width)
    if marked and picture.kind != "depth":
        return "other", Feature(size, "uint16"), []
    if picture.kind == "codes":
        return (
            "other",
            Feature(size, "uint16"),
            ["grey of more than 8 and not 16 bits, whose steps are unknown"],
        )
    remarks = []
    if (picture.height, picture.width) != (declared.height, declared.width):
        remarks.append(
            f"meta/info.json says {said.get('shape')} {_flat(said.get('names')) or ''}, its pixels are "
            f"{picture.width}×{picture.height} (width × height), and count"
        )
    if picture.kind == "colour":
        return "image", Feature((*size, 3), "uint8"), remarks
    unit = info.get("depth_unit")
    if unit is None:
        remarks.append("16 bits of grey are taken for depth in mm")
    return "depth", Feature(size, "uint16", (), (str(unit or "mm"),)), remarks


def _require_bearable(what: str, own: Picture, declared: Picture) -> None:
    is_declared = (own.height, own.width) == (declared.height, declared.width)
    if own.width * own.height > (MOST_DECLARED_PIXELS if is_declared else MOST_PIXELS):
        raise StoreError(
            f"{what} have {own.width}×{own.height} pixels, where meta/info.json says "
            f"{declared.width}×{declared.height}: refused"
        )


def _flat(names: Any) -> list[str]:
    """Names as a list; LeRobot has had them as a list, nested lists, a dict of lists, and a dict of
    positions."""
    if isinstance(names, dict):
        if names and all(isinstance(v, int) for v in names.values()):
            return sorted(names, key=lambda n: names[n])
        return [n for v in names.values() for n in _flat(v)]
    if isinstance(names, list):
        return [n for v in names for n in _flat(v)]
    return [] if names is None else [str(names)]
