"""Imports ALOHA's episodes: a folder of HDF5 files, each with `action` and `observations/qpos`.

tonyzhaozh/act and MarkFzp/act-plus-plus: `observations/{qpos,qvel,effort,images}`, `action`, 50 Hz; images
as pixels, or as padded JPEG bytes with their lengths in `compress_len`. Others (RDT's Cobot Magic) keep the
bytes as strings. These tools encode RGB pixels by `cv2.imencode`, which takes them for BGR: in other programs
the pictures have red and blue swapped."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ..episode import StoreError
from ..features import ACTION, STATE, Feature
from ..store import EpisodeStore
from ..units import Restate, plain
from . import hdf5
from .foreign_files import without_litter
from .hdf5 import Arrays
from .importing import ForeignEpisode, ImageOrder, build, require_control_hz
from .naming import Kind, Naming, place

HZ = 50.0
JOINTS = ("waist", "shoulder", "elbow", "forearm_roll", "wrist_angle", "wrist_rotate", "gripper")
UNITS = (*("rad",) * 6, "1") * 2  # grippers 0 closed, 1 open
VECTORS = ("qpos", "qvel", "effort")


def is_aloha(path: Path) -> bool:
    files = aloha_files(path)
    if not files or not hdf5.is_hdf5(files[0]):
        return False
    with hdf5.opened(files[0]) as file:
        return "qpos" in hdf5.own_group(file, "observations")


def aloha_files(path: Path) -> list[Path]:
    """The files of the episodes in the folder `path` (or `path` itself if it is a file), by their numbers."""
    found = (*path.glob("*.hdf5"), *path.glob("*.h5"))
    files = [path] if path.is_file() else without_litter(path, found)
    return sorted(files, key=lambda p: (int((re.findall(r"\d+", p.stem) or ["0"])[-1]), p.name))


def import_aloha(
    src: str | Path,
    dst: str | Path,
    control_hz: float | None = None,
    task: str = "",
    naming: Naming | None = None,
    image_size: tuple[int, int] | None = None,
    progress: Callable[[int, int], None] = lambda count, total: None,
    image_order: ImageOrder = "auto",
    restate: Restate = plain,
) -> EpisodeStore:
    """Bring a folder of ALOHA episodes (or one file) into a new store at `dst`. Raises StoreError.

    observation.state is qpos (rad; grippers 0..1), qvel and effort are kept beside it. Images that are pixels
    keep the order of their channels; those that are bytes have red and blue swapped back, unless image_order
    says `rgb`. Without `control_hz` it is 50, at which ALOHA records."""
    src, dst = Path(src), Path(dst)
    files = aloha_files(src)
    if not files:
        raise StoreError(f"{src} holds no .hdf5 file")
    with hdf5.opened(files[0]) as file:
        arrays, notes = _arrays(file, naming or Naming(), files[0])
        by_tools = "compress_len" in file or bool(file.attrs.get("compress", False))
    swapped = hdf5.swapped_keys(arrays, image_order, True)

    def episodes() -> Iterator[ForeignEpisode]:
        for path in files:
            with hdf5.opened(path) as file:
                rows = len(hdf5.dataset_of(file, arrays.parts[ACTION][0], path))
                columns = arrays.columns(file, path, swapped)
                for names in arrays.parts.values():
                    for name in names:
                        if (others := len(hdf5.inside(file, name, path))) != rows:
                            raise StoreError(f"{path} has {rows} actions but {others} rows of {name}")
                meta = {
                    "task": task,
                    "agent": "",
                    "simulated": bool(file.attrs.get("sim", False)),
                    "source_episode": path.name,
                }
                if (success := hdf5.outcome(file)) is not None:
                    meta["success"] = success
                yield ForeignEpisode(rows, columns, meta)

    provenance = {
        "imported_from": str(src),
        "format": "aloha",
        **notes,
        **arrays.notes,
        "rate": "50 Hz, as ALOHA records" if control_hz is None else "as given",
    }
    if arrays.pictures and image_order == "auto":
        sign = "their mark is there" if by_tools else "assumed from the layout alone"
        provenance["image_order"] = (
            f"bgr: red and blue of encoded images are swapped back, since ALOHA's tools encode RGB as if BGR "
            f"({sign}); --image-order rgb leaves them"
        )
    elif image_order != "auto":
        provenance["image_order"] = f"{image_order}, as given"
    rate = require_control_hz(control_hz, HZ, src)
    features = arrays.features
    return build(
        dst, features, rate, "aloha", provenance, episodes(), image_size, progress, len(files), restate
    )


def _arrays(file: Any, naming: Naming, path: Path) -> tuple[Arrays, dict[str, Any]]:
    places: dict[str, str] = {}
    kinds: dict[str, Kind] = {}
    for at, dataset in hdf5.walk(file, path):
        if at == "compress_len":
            continue
        parent, _, last = at.rpartition("/")
        name = (
            last if parent == "observations/images" or (parent == "observations" and last in VECTORS) else at
        )
        kind = hdf5.kind_of(dataset, path)
        known = at == ACTION or name != at
        places[name], kinds[name] = at, "aside" if kind == "vector" and not known else kind
    placement = place(kinds, naming, str(path), {STATE: ["qpos"]})
    arrays = hdf5.arrays(file, places, placement.parts, path)
    for key, names in placement.parts.items():
        if arrays.features[key].shape == (2 * len(JOINTS),) and len(names) == 1:
            joints = tuple(f"{side}_{j}" for side in ("left", "right") for j in JOINTS)
            units = UNITS if key in (ACTION, STATE) else ()
            feature = arrays.features[key]
            arrays.features[key] = Feature(feature.shape, feature.dtype, joints, units)
    return arrays, placement.notes
