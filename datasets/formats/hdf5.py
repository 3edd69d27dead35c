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
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..episode import StoreError
from ..features import ACTION, ENVIRONMENT, IMAGES, STATE, Feature, Features
from ..store import EpisodeStore
from ..units import Restate, plain
from .importing import MOST_BYTES, MOST_ROW_BYTES, ForeignEpisode, Read, build, key_for, require_control_hz

ALOHA_HZ = 50.0
ALOHA_JOINTS = ("waist", "shoulder", "elbow", "forearm_roll", "wrist_angle", "wrist_rotate", "gripper")
ALOHA_UNITS = (*("rad",) * 6, "1") * 2  # grippers 0 closed, 1 open
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
    files = [path] if path.is_file() else [*path.glob("*.hdf5"), *path.glob("*.h5")]
    return sorted(files, key=lambda p: (int((re.findall(r"\d+", p.stem) or ["0"])[-1]), p.name))


def import_robomimic(
    src: str | Path,
    dst: str | Path,
    control_hz: float | None = None,
    task: str = "",
    renames: Mapping[str, str] | None = None,
    image_size: tuple[int, int] | None = None,
    progress: Progress = lambda count, total: None,
    restate: Restate = plain,
) -> EpisodeStore:
    """Bring a robomimic file into a new store at `dst`. Raises StoreError.

    observation.state is end effector position, quaternion and gripper, `object` is
    observation.environment_state, the rest observation.<key>. Actions stay as robomimic has them: for its
    usual controller, end effector motions scaled to -1..1. success: whether a sparse reward of 1 came;
    unknown where rewards are shaped (`dones` mark ends, not successes)."""
    src, dst, renames = Path(src), Path(dst), dict(renames or {})
    with _open(src) as file:
        data = _group(file, "data", src)
        demos = sorted(
            (k for k in data if k.startswith("demo")), key=lambda k: int((re.findall(r"\d+", k) or ["0"])[-1])
        )
        if not demos:
            raise StoreError(f"{src} has no group data/demo_0: it is no robomimic dataset")
        first = _group(data, demos[0], src)
        features, sources = _robomimic_features(first, renames, src)
        left_out = [k for k in file if k != "data"] + [k for k in first if k not in ("actions", "obs")]
        environment = _env_args(data)
        kwargs = environment.get("env_kwargs")
        stored_hz = kwargs.get("control_freq") if isinstance(kwargs, dict) else None
        stored_hz = stored_hz if isinstance(stored_hz, int | float) else None

        def episodes() -> Iterator[ForeignEpisode]:
            for name in demos:
                demo = _group(data, name, src)
                actions = _dataset(demo, "actions", src)
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
            "left_out": left_out,
            "action": "as in the file; robosuite's operational space controller takes motions scaled to "
            "-1..1",
        }
        rate = require_control_hz(control_hz, float(stored_hz) if stored_hz else None, src)
        return build(
            dst, features, rate, "", provenance, episodes(), image_size, progress, len(demos), restate
        )


def import_aloha(
    src: str | Path,
    dst: str | Path,
    control_hz: float | None = None,
    task: str = "",
    renames: Mapping[str, str] | None = None,
    image_size: tuple[int, int] | None = None,
    progress: Progress = lambda count, total: None,
    restate: Restate = plain,
) -> EpisodeStore:
    """Bring a folder of ALOHA episodes (or one file) into a new store at `dst`. Raises StoreError.

    observation.state is qpos (rad; grippers 0..1), qvel and effort are kept beside it. Images keep the order
    of their channels. Without `control_hz` it is 50, at which ALOHA records."""
    src, dst, renames = Path(src), Path(dst), dict(renames or {})
    files = aloha_files(src)
    if not files:
        raise StoreError(f"{src} holds no .hdf5 file")
    with _open(files[0]) as file:
        features, sources, left_out = _aloha_features(file, renames, files[0])

    def episodes() -> Iterator[ForeignEpisode]:
        for path in files:
            with _open(path) as file:
                actions = _dataset(file, "action", path)
                columns: dict[str, Read] = {}
                for key, name in sources.items():
                    dataset = _dataset(file, name, path)
                    if len(dataset) != len(actions):
                        raise StoreError(
                            f"{path} has {len(actions)} actions but {len(dataset)} rows of {name}"
                        )
                    is_jpeg = key.startswith(IMAGES) and dataset.ndim == 2
                    columns[key] = (
                        _jpeg_frames(dataset, path, features[key].shape)
                        if is_jpeg
                        else _rows(file, [name], features[key], path)
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
        "left_out": left_out,
        "rate": "50 Hz, as ALOHA records" if control_hz is None else "as given",
    }
    if unknown := [
        k
        for k in renames
        if k != "qpos"
        and f"observations/{k}" not in sources.values()
        and f"observations/images/{k}" not in sources.values()
    ]:
        raise StoreError(
            f"{files[0]} has no array {unknown[0]} to rename; it has {', '.join(sources.values())}"
        )
    rate = require_control_hz(control_hz, ALOHA_HZ, src)
    return build(
        dst, features, rate, "aloha", provenance, episodes(), image_size, progress, len(files), restate
    )


def _robomimic_features(
    demo: Any, renames: Mapping[str, str], src: Path
) -> tuple[Features, dict[str, list[str]]]:
    observations = _group(demo, "obs", src)
    sources: dict[str, list[str]] = {ACTION: ["actions"]}
    state = [k for k in ROBOMIMIC_STATE if k in observations and k not in renames]
    if state:
        sources[STATE] = [f"obs/{k}" for k in state]
    for key in observations:
        if key in state:
            continue
        dataset = _dataset(observations, key, src)
        image = dataset.ndim == 4 and dataset.shape[-1] == 3
        name = ENVIRONMENT if key == "object" and key not in renames else key_for(key, renames, image)
        if name in sources:
            raise StoreError(f"{src}: two arrays would be called {name}: rename one with --map")
        sources[name] = [f"obs/{key}"]
    if unknown := [k for k in renames if k not in observations]:
        raise StoreError(f"{src} has no observation {unknown[0]}; it has {', '.join(observations)}")
    return {k: _feature([_dataset(demo, p, src) for p in parts]) for k, parts in sources.items()}, sources


def _success(rewards: np.ndarray) -> bool | None:
    return bool((rewards == 1).any()) if np.isin(rewards, (0, 1)).all() else None


def _aloha_features(
    file: Any, renames: Mapping[str, str], path: Path
) -> tuple[Features, dict[str, str], list[str]]:
    observations = _group(file, "observations", path)
    sources = {ACTION: "action", renames.get("qpos", STATE): "observations/qpos"}
    left_out = [k for k in file if k not in ("action", "observations", "compress_len")]
    for key in observations:
        if key in ("qvel", "effort"):
            sources[key_for(key, renames, False)] = f"observations/{key}"
        elif key not in ("qpos", "images"):
            left_out.append(f"observations/{key}")
    cameras = _group(observations, "images", path) if "images" in observations else {}
    for camera in cameras:
        if key_for(camera, renames, True) in sources:
            raise StoreError(
                f"{path}: two arrays would be called {key_for(camera, renames, True)}: rename one with --map"
            )
        sources[key_for(camera, renames, True)] = f"observations/images/{camera}"
    features = {}
    for key, name in sources.items():
        dataset = _dataset(file, name, path)
        if key.startswith(IMAGES) and dataset.ndim == 2:
            features[key] = Feature(_jpeg_frames(dataset, path)(0, 1).shape[1:], "uint8")
            continue
        feature = _feature([dataset])
        if feature.shape == (2 * len(ALOHA_JOINTS),):
            names = tuple(f"{side}_{j}" for side in ("left", "right") for j in ALOHA_JOINTS)
            units = ALOHA_UNITS if name in ("action", "observations/qpos") else ()
            feature = Feature(feature.shape, feature.dtype, names, units)
        features[key] = feature
    return features, sources, left_out


def _feature(parts: list[Any]) -> Feature:
    first = parts[0]
    if first.ndim == 4 and first.shape[-1] == 3:
        return Feature(tuple(first.shape[1:]), "uint8")
    if len(parts) == 1:
        return Feature(tuple(first.shape[1:]) or (1,), first.dtype.newbyteorder("=").name)
    return Feature((sum(math.prod(p.shape[1:]) for p in parts),), "float32")


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
        return np.concatenate([f.reshape(len(f), -1) for f in blocks], 1)

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
