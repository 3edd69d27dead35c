"""Imports HDF5 datasets: robomimic's (one file, `data/demo_<i>`) and ALOHA's (one file an episode,
`observations/qpos`).

Layouts: robomimic.github.io, "Dataset overview" (`obs`, `actions`, `dones`, `rewards`, `env_args` with
`control_freq`); tonyzhaozh/act and MarkFzp/act-plus-plus (`observations/{qpos,qvel,effort,images}`, `action`,
images as pixels or as JPEG bytes of length `compress_len`, 50 Hz). What points out of the file (external
links, virtual or external storage) is refused: a dataset from elsewhere must not read other files of this
machine."""

from __future__ import annotations

import contextlib
import json
import math
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ..episode import StoreError
from ..features import ACTION, ENVIRONMENT, STATE, Feature, Features, is_image
from ..store import EpisodeStore
from .foreign_files import without_litter
from .importing import MOST_BYTES, MOST_ROW_BYTES, ForeignEpisode, Read, build, require_control_hz
from .naming import Kind, Naming, join_rows, joined, place

ALOHA_HZ = 50.0
ALOHA_JOINTS = ("waist", "shoulder", "elbow", "forearm_roll", "wrist_angle", "wrist_rotate", "gripper")
# robomimic's own default for low-dimensional policies
ROBOMIMIC_STATE = ("robot0_eef_pos", "robot0_eef_quat", "robot0_gripper_qpos")
Progress = Callable[[int, int], None]


def is_robomimic(path: Path) -> bool:
    if not path.is_file() or not _is_hdf5(path):
        return False
    with _open(path) as file:
        return any(k.startswith("demo") for k in _own_group(file, "data"))


def is_aloha(path: Path) -> bool:
    files = aloha_files(path)
    if not files or not _is_hdf5(files[0]):
        return False
    with _open(files[0]) as file:
        return "qpos" in _own_group(file, "observations")


def aloha_files(path: Path) -> list[Path]:
    """The files of the episodes in the folder `path` (or `path` itself if it is a file), by their numbers."""
    found = (*path.glob("*.hdf5"), *path.glob("*.h5"))
    files = [path] if path.is_file() else without_litter(path, found)
    return sorted(files, key=lambda p: (int((re.findall(r"\d+", p.stem) or ["0"])[-1]), p.name))


def import_robomimic(
    src: str | Path,
    dst: str | Path,
    control_hz: float | None = None,
    task: str = "",
    naming: Naming | None = None,
    image_size: tuple[int, int] | None = None,
    progress: Progress = lambda count, total: None,
) -> EpisodeStore:
    """Bring a robomimic file into a new store at `dst`. Raises StoreError.

    observation.state is end effector position, quaternion and gripper, `object` is
    observation.environment_state, the rest observation.<key>. Actions stay as robomimic has them: for its
    usual controller, end effector motions scaled to -1..1. success: whether a sparse reward of 1 came;
    unknown where rewards are shaped (`dones` mark ends, not successes)."""
    src, dst = Path(src), Path(dst)
    with _open(src) as file:
        data = _group(file, "data", src)
        demos = sorted(
            (k for k in data if k.startswith("demo")), key=lambda k: int((re.findall(r"\d+", k) or ["0"])[-1])
        )
        if not demos:
            raise StoreError(f"{src} has no group data/demo_0: it is no robomimic dataset")
        first = _group(data, demos[0], src)
        features, sources, notes = _robomimic_features(first, naming or Naming(), src)
        left_out = [k for k in file if k != "data"] + [k for k in first if k not in ("actions", "obs")]
        environment = _env_args(data)
        kwargs = environment.get("env_kwargs")
        stored_hz = kwargs.get("control_freq") if isinstance(kwargs, dict) else None
        stored_hz = stored_hz if isinstance(stored_hz, int | float) else None

        def episodes() -> Iterator[ForeignEpisode]:
            for name in demos:
                demo = _group(data, name, src)
                actions = _dataset(demo, sources[ACTION][0], src)
                columns = {k: _rows(demo, parts, features[k], src) for k, parts in sources.items()}
                for k, parts in sources.items():
                    if any(len(_dataset(demo, p, src)) != len(actions) for p in parts):
                        raise StoreError(f"{src}: {name} has {len(actions)} actions but other rows of {k}")
                success = (
                    _success(np.asarray(_dataset(demo, "rewards", src)[:])) if "rewards" in demo else None
                )
                yield ForeignEpisode(
                    len(actions),
                    columns,
                    {"task": task, "agent": "", "success": success, "source_episode": name},
                )

        provenance = {
            "imported_from": str(src),
            "format": "robomimic",
            "environment": str(environment.get("env_name", "")),
            **notes,
            "left_out": left_out + notes["left_out"],
            "action": "as in the file; robosuite's operational space controller takes motions scaled to "
            "-1..1",
        }
        rate = require_control_hz(control_hz, float(stored_hz) if stored_hz else None, src)
        return build(dst, features, rate, "", provenance, episodes(), image_size, progress, len(demos))


def import_aloha(
    src: str | Path,
    dst: str | Path,
    control_hz: float | None = None,
    task: str = "",
    naming: Naming | None = None,
    image_size: tuple[int, int] | None = None,
    progress: Progress = lambda count, total: None,
) -> EpisodeStore:
    """Bring a folder of ALOHA episodes (or one file) into a new store at `dst`. Raises StoreError.

    observation.state is qpos (rad; grippers 0..1), qvel and effort are kept beside it. Images keep the order
    of their channels. Without `control_hz` it is 50, at which ALOHA records."""
    src, dst = Path(src), Path(dst)
    files = aloha_files(src)
    if not files:
        raise StoreError(f"{src} holds no .hdf5 file")
    with _open(files[0]) as file:
        features, sources, notes = _aloha_features(file, naming or Naming(), files[0])

    def episodes() -> Iterator[ForeignEpisode]:
        for path in files:
            with _open(path) as file:
                actions = _dataset(file, sources[ACTION][0], path)
                columns: dict[str, Read] = {}
                for key, names in sources.items():
                    for name in names:
                        if (rows := len(_dataset(file, name, path))) != len(actions):
                            raise StoreError(f"{path} has {len(actions)} actions but {rows} rows of {name}")
                    is_jpeg = is_image(key) and _dataset(file, names[0], path).ndim == 2
                    columns[key] = (
                        _jpeg_frames(_dataset(file, names[0], path), path, features[key].shape)
                        if is_jpeg
                        else _rows(file, names, features[key], path)
                    )
                is_simulated = bool(file.attrs.get("sim", False))
                yield ForeignEpisode(
                    len(actions),
                    columns,
                    {"task": task, "agent": "", "simulated": is_simulated, "source_episode": path.name},
                )

    provenance = {
        "imported_from": str(src),
        "format": "aloha",
        **notes,
        "rate": "50 Hz, as ALOHA records" if control_hz is None else "as given",
    }
    rate = require_control_hz(control_hz, ALOHA_HZ, src)
    return build(dst, features, rate, "aloha", provenance, episodes(), image_size, progress, len(files))


Sources = dict[str, list[str]]  # our key → datasets that are joined


def _robomimic_features(demo: Any, naming: Naming, src: Path) -> tuple[Features, Sources, dict[str, Any]]:
    observations = _group(demo, "obs", src)
    places = {"actions": "actions"}
    places |= {(f"obs/{k}" if k in places else k): f"obs/{k}" for k in observations}
    arrays: dict[str, Kind] = {}
    for name, at in places.items():
        arrays[name] = _kind(_dataset(demo, at, src))
    known = {ACTION: ["actions"], STATE: ROBOMIMIC_STATE, ENVIRONMENT: ["object"]}
    placement = place(arrays, naming, str(src), known)
    features = {
        k: joined({n: _feature(_dataset(demo, places[n], src)) for n in names})
        for k, names in placement.parts.items()
    }
    sources = {k: [places[n] for n in names] for k, names in placement.parts.items()}
    return features, sources, placement.notes


def _success(rewards: np.ndarray) -> bool | None:
    return bool((rewards == 1).any()) if np.isin(rewards, (0, 1)).all() else None


def _aloha_features(file: Any, naming: Naming, path: Path) -> tuple[Features, Sources, dict[str, Any]]:
    observations = _group(file, "observations", path)
    places = {k: k for k in file if k not in ("observations", "compress_len")}
    for key in observations:
        at = f"observations/{key}"
        places |= {(key if key in ("qpos", "qvel", "effort") else at): at} if key != "images" else {}
    cameras = list(_group(observations, "images", path)) if "images" in observations else []
    places |= {c: f"observations/images/{c}" for c in cameras}
    arrays: dict[str, Kind] = {}
    for name, at in places.items():
        if name in ("action", "qpos", "qvel", "effort", *cameras):
            arrays[name] = "image" if name in cameras else _kind(_dataset(file, at, path))
        else:
            arrays[name] = "aside" if _is_numeric(file, at) else "other"
    placement = place(arrays, naming, str(path), {STATE: ["qpos"]})
    features = {}
    for key, names in placement.parts.items():
        datasets = {n: _dataset(file, places[n], path) for n in names}
        first = datasets[names[0]]
        if is_image(key) and first.ndim == 2:
            features[key] = Feature(_jpeg_frames(first, path)(0, 1).shape[1:], "uint8")
            continue
        feature = joined({n: _feature(d) for n, d in datasets.items()})
        if feature.shape == (2 * len(ALOHA_JOINTS),) and len(names) == 1:
            joints = tuple(f"{side}_{j}" for side in ("left", "right") for j in ALOHA_JOINTS)
            feature = Feature(feature.shape, feature.dtype, joints)
        features[key] = feature
    return features, {k: [places[n] for n in v] for k, v in placement.parts.items()}, placement.notes


def _kind(dataset: Any) -> Kind:
    return "image" if dataset.ndim == 4 and dataset.shape[-1] == 3 else "vector"


def _is_numeric(file: Any, name: str) -> bool:
    import h5py

    own = isinstance(file.get(name, getlink=True), h5py.HardLink)
    return own and file.get(name, getclass=True) is h5py.Dataset and file[name].dtype.kind in "fiub"


def _feature(dataset: Any) -> Feature:
    if _kind(dataset) == "image":
        return Feature(tuple(dataset.shape[1:]), "uint8")
    return Feature(tuple(dataset.shape[1:]) or (1,), dataset.dtype.newbyteorder("=").name)


def _rows(group: Any, parts: list[str], feature: Feature, src: Path) -> Read:
    datasets = [_dataset(group, p, src) for p in parts]
    wide = sum(math.prod(d.shape[1:]) for d in datasets)
    if wide != math.prod(feature.shape) or (
        len(datasets) == 1 and tuple(datasets[0].shape[1:] or (1,)) != feature.shape
    ):
        raise StoreError(
            f"{src}: {datasets[0].name} has rows of {datasets[0].shape[1:]}, the first episode of "
            f"{feature.shape}"
        )

    def read(start: int, stop: int) -> np.ndarray:
        try:
            blocks = [np.asarray(d[start:stop]) for d in datasets]
        except (OSError, RuntimeError) as error:
            raise StoreError(f"{src}: rows {start} to {stop} of {parts[0]} cannot be read: {error}") from None
        if len(blocks) == 1:
            return blocks[0].reshape(-1, *feature.shape)
        return join_rows(blocks, feature)

    return read


def _jpeg_frames(dataset: Any, src: Path, shape: tuple[int, ...] | None = None) -> Read:
    """A reader of frames that are stored as padded JPEG bytes. shape: the expected one, where it is known."""
    import cv2

    def read(start: int, stop: int) -> np.ndarray:
        frames = []
        for row, data in enumerate(dataset[start:stop], start):
            if bytes(data[:2]) != b"\xff\xd8":
                raise StoreError(f"{src}: the image of row {row} of {dataset.name} is no JPEG")
            frame = cv2.imdecode(np.asarray(data, np.uint8), cv2.IMREAD_COLOR)
            if frame is None:
                raise StoreError(f"{src}: the image of row {row} of {dataset.name} cannot be decoded")
            if shape is not None and frame.shape != shape:
                raise StoreError(
                    f"{src}: the image of row {row} of {dataset.name} has {frame.shape[1]}×{frame.shape[0]} "
                    f"pixels, the first image {shape[1]}×{shape[0]}"
                )
            frames.append(frame)
        return np.stack(frames)

    return read


def _env_args(data: Any) -> dict[str, Any]:
    try:
        arguments = json.loads(data.attrs.get("env_args", "{}"))
    except (TypeError, ValueError):
        return {}
    return arguments if isinstance(arguments, dict) else {}


def _own_group(file: Any, name: str) -> Any:
    """The group `name` of the file itself, () where there is none or it is a link to elsewhere."""
    import h5py

    own = isinstance(file.get(name, getlink=True), h5py.HardLink)
    return file[name] if own and file.get(name, getclass=True) is h5py.Group else ()


def _is_hdf5(path: Path) -> bool:
    import h5py

    return bool(h5py.is_hdf5(path))


@contextlib.contextmanager
def _open(path: Path) -> Iterator[Any]:
    import h5py

    if not path.exists():
        raise StoreError(f"there is no file {path}")
    try:
        file = h5py.File(path, "r")
    except OSError as error:
        why = error.strerror or "it is damaged, or no HDF5 file"
        raise StoreError(f"{path} cannot be opened: {why}") from None
    with file:
        yield file


def _inside(group: Any, name: str, src: Path) -> Any:
    """`group[name]`. Raises StoreError if it is missing or a link leads out of the file."""
    import h5py

    at = group
    for step in name.split("/"):
        try:
            link = at.get(step, getlink=True)
        except (KeyError, AttributeError):
            link = None
        if link is None:
            raise StoreError(f"{src} has no {at.name.rstrip('/') if hasattr(at, 'name') else ''}/{step}")
        if isinstance(link, h5py.ExternalLink):
            raise StoreError(f"{src}: {name} points to another file, {link.filename}: refused")
        try:
            at = at[step]
        except (KeyError, OSError) as error:
            raise StoreError(f"{src}: {name} cannot be read: {error}") from None
        if at.file.id != group.file.id and at.file.filename != group.file.filename:  # by way of another link
            raise StoreError(f"{src}: {name} points to another file, {at.file.filename}: refused")
    return at


def _group(group: Any, name: str, src: Path) -> Any:
    import h5py

    item = _inside(group, name, src)
    if not isinstance(item, h5py.Group):
        raise StoreError(f"{src}: {name} is no group")
    return item


def _dataset(group: Any, name: str, src: Path) -> Any:
    import h5py

    item = _inside(group, name, src)
    if not isinstance(item, h5py.Dataset) or item.dtype.kind not in "fiub" or item.ndim < 1:
        raise StoreError(f"{src}: {name} is no array of numbers")
    if item.is_virtual or item.external:
        raise StoreError(f"{src}: {name} lies in another file: refused")
    chunk = (math.prod(item.chunks) if item.chunks else 0) * item.dtype.itemsize
    row = math.prod(item.shape[1:]) * item.dtype.itemsize
    if chunk > MOST_BYTES or row > MOST_ROW_BYTES or int(item.size or 0) > 1 << 42:
        raise StoreError(f"{src}: {name} has a shape of {item.shape}, which is no robot's data")
    if not item.size:
        raise StoreError(f"{src}: {item.name} is empty")
    _require_written(item, src)
    return item


def _require_written(dataset: Any, src: Path) -> None:
    """Raise StoreError if parts were never written, as in a recording that was cut off; HDF5 reads them as
    zeros."""
    if dataset.chunks:
        parts = math.prod(-(-n // c) for n, c in zip(dataset.shape, dataset.chunks, strict=True))
        present = dataset.id.get_num_chunks()
    else:
        parts, present = 1, int(dataset.id.get_storage_size() > 0)
    if present < parts:
        raise StoreError(
            f"{src}: {parts - present} of {parts} parts of {dataset.name} were never written, and would read "
            "as zeros: leave that episode out"
        )
