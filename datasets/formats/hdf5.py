"""HDF5 files of others, read with care: groups and arrays that stay inside the file, pictures that are stored
as bytes, sizes that are believable. The layouts are in `robomimic` and `aloha`.

What points out of the file (external links, virtual or external storage) is refused: a dataset from elsewhere
must not read other files of this machine."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..episode import StoreError
from ..features import Feature, Features, is_depth, is_image
from ..video import Picture, still_frames, still_picture
from .importing import MOST_BYTES, MOST_ROW_BYTES, ImageOrder, Read, require_believable
from .naming import Kind, join_rows, joined

DEEPEST, MOST_ARRAYS = 12, 2000  # of groups in an episode, and arrays in them
MAGIC = (b"\xff\xd8\xff", b"\x89PNG")
LEAST_SIDE = 16  # px: a smaller array of whole numbers is no depth image
DEPTH_UNIT = "mm"  # of pictures with 16 bits of grey; nothing in these formats says it


@dataclass(frozen=True)
class Arrays:
    """Where the features of a store come from. features: ours. parts: our key → paths of arrays that are
    joined. pictures: of keys whose rows are PNG or JPEG bytes, how the first one is."""

    features: Features
    parts: Mapping[str, Sequence[str]]
    pictures: Mapping[str, Picture]

    @property
    def notes(self) -> dict[str, Any]:
        """For the provenance: what was assumed of pictures that nothing in the file says."""
        depths = [k for k in self.features if is_depth(k)]
        return (
            {"pictures": [f"{k}: 16 bits of grey are taken for depth in {DEPTH_UNIT}" for k in depths]}
            if depths
            else {}
        )

    def columns(self, group: Any, src: Path, swapped: frozenset[str] = frozenset()) -> dict[str, Read]:
        """Readers of the rows of an episode in `group`. swapped: keys of images whose red and blue are
        swapped back. StoreError: an array is missing, or of another shape than in the first episode."""
        columns: dict[str, Read] = {}
        for key, paths in self.parts.items():
            if key in self.pictures:
                read = _still_rows(dataset_of(group, paths[0], src, True), src, self.pictures[key])
            else:
                read = _rows(group, paths, self.features[key], src)
            columns[key] = _swapped(read) if key in swapped else read
        return columns


def arrays(
    group: Any, places: Mapping[str, str], placement: Mapping[str, Sequence[str]], src: Path
) -> Arrays:
    """Of a placement (our key → names). places: name → path in `group`, of the first episode."""
    features: Features = {}
    pictures: dict[str, Picture] = {}
    for key, names in placement.items():
        datasets = {n: dataset_of(group, places[n], src, True) for n in names}
        first = datasets[names[0]]
        if (is_image(key) or is_depth(key)) and is_encoded(first):
            pictures[key] = picture = _first_picture(first, src)
            size = (picture.height, picture.width)
        elif is_depth(key):
            size = tuple(first.shape[1:3])
        else:
            features[key] = joined({n: _feature(dataset_of(group, places[n], src)) for n in names})
            continue
        features[key] = (
            Feature(size, "uint16", (), (DEPTH_UNIT,)) if is_depth(key) else Feature((*size, 3), "uint8")
        )
    return Arrays(features, {k: [places[n] for n in v] for k, v in placement.items()}, pictures)


def walk(group: Any, src: Path, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(path, array) of every array below `group`, whatever it holds. StoreError: a link leads out of the
    file, or there is no end of them."""
    import h5py

    stack, count = [(prefix, 0)], 0
    while stack:
        path, depth = stack.pop()
        at = inside(group, path, src) if path else group
        if not isinstance(at, h5py.Group):
            count += 1
            if count > MOST_ARRAYS:
                raise StoreError(f"{src}: an episode has more than {MOST_ARRAYS} arrays: refused")
            if isinstance(at, h5py.Dataset):
                yield path, at
            continue
        if depth > DEEPEST:
            raise StoreError(f"{src}: the groups in {path} are nested too deeply: refused")
        stack += [(f"{path}/{name}" if path else name, depth + 1) for name in reversed(list(at))]


def kind_of(dataset: Any, src: Path) -> Kind:
    """What the rows of an array are. Numbers in the form of images that no store holds (float depth, RGBA)
    are `aside`."""
    if is_encoded(dataset):
        try:
            kind = _first_picture(dataset, src).kind
        except StoreError:
            return "image"  # a damaged one, which is told where it comes in
        return "image" if kind == "colour" else "depth" if kind == "depth" else "other"
    if dataset.dtype.kind not in "fiub" or dataset.ndim < 1:
        return "other"
    shape = dataset.shape[1:]
    if len(shape) == 3 and shape[-1] == 3:
        return "image"
    deep = shape[:2] if len(shape) == 3 and shape[-1] == 1 else shape
    if len(deep) == 2 and min(deep) >= LEAST_SIDE and dataset.dtype == np.uint16:
        return "depth"
    return "aside" if len(shape) == 3 and min(shape[:2]) >= LEAST_SIDE else "vector"


def is_encoded(dataset: Any) -> bool:
    """Whether the rows are pictures as PNG or JPEG bytes: strings of one length or of any, or padded rows of
    uint8."""
    import h5py

    if not dataset.size or dataset.is_virtual or dataset.external:
        return False
    of_any_length = h5py.check_vlen_dtype(dataset.dtype) in (np.dtype(np.uint8), np.dtype(np.int8))
    strings = dataset.dtype.kind in "SV" or h5py.check_string_dtype(dataset.dtype) is not None
    padded = dataset.ndim == 2 and dataset.dtype.itemsize == 1 and dataset.dtype.kind in "iu"
    if not (padded or (dataset.ndim == 1 and (of_any_length or strings))):
        return False
    if dataset.dtype.itemsize > MOST_ROW_BYTES or (padded and dataset.shape[1] > MOST_ROW_BYTES):
        return False
    with contextlib.suppress(OSError, RuntimeError, TypeError):
        return _bytes(dataset[0]).startswith(MAGIC)
    return False


def swapped_keys(arrays: Arrays, order: ImageOrder, encoded_as_bgr: bool) -> frozenset[str]:
    """Keys of images whose red and blue must be swapped, so that they are RGB. encoded_as_bgr: whether those
    that are bytes are, where `order` is `auto`; others are RGB then."""
    images = {k for k in arrays.features if is_image(k)}
    encoded = images & set(arrays.pictures)
    return frozenset({"rgb": set[str](), "bgr": images, "auto": encoded if encoded_as_bgr else set()}[order])


def outcome(group: Any) -> bool | None:
    """The attribute `success` of a demo; None where there is none that can be understood."""
    try:
        value = np.asarray(group.attrs["success"])
    except (KeyError, OSError, TypeError, ValueError):
        return None
    if value.size != 1:
        return None
    item = value.ravel()[0]
    text = item.decode(errors="replace") if isinstance(item, bytes) else str(item)
    return {"true": True, "1": True, "1.0": True, "false": False, "0": False, "0.0": False}.get(text.lower())


def _feature(dataset: Any) -> Feature:
    if len(dataset.shape) == 4 and dataset.shape[-1] == 3:
        return Feature(tuple(dataset.shape[1:]), "uint8")
    return Feature(tuple(dataset.shape[1:]) or (1,), dataset.dtype.newbyteorder("=").name)


def _rows(group: Any, parts: Sequence[str], feature: Feature, src: Path) -> Read:
    datasets = [dataset_of(group, p, src) for p in parts]
    for dataset in datasets:
        size, stored = int(dataset.size) * dataset.dtype.itemsize, dataset.id.get_storage_size()
        require_believable(size, stored, f"{src}: {dataset.name}")
    wide = sum(math.prod(d.shape[1:]) for d in datasets)
    flat = feature.dtype == "uint16" and datasets[0].shape[1:] == (*feature.shape, 1)
    if wide != math.prod(feature.shape) or (
        len(datasets) == 1 and not flat and tuple(datasets[0].shape[1:] or (1,)) != feature.shape
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


def _still_rows(dataset: Any, src: Path, picture: Picture) -> Read:
    place = f"{src}: {dataset.name}"
    if not is_encoded(dataset):
        raise StoreError(f"{place} holds no PNG or JPEG, as the first episode does")

    def read(start: int, stop: int) -> np.ndarray:
        try:
            rows = [_bytes(row) for row in dataset[start:stop]]
        except (OSError, RuntimeError, TypeError) as error:
            raise StoreError(f"{place}: rows {start} to {stop} cannot be read: {error}") from None
        return np.stack(list(still_frames(rows, place, picture, start)))

    return read


def _first_picture(dataset: Any, src: Path) -> Picture:
    return still_picture(_bytes(dataset[0]), f"{src}: {dataset.name}: the image of row 0")


def _bytes(row: Any) -> bytes:
    """The bytes of one picture. Text is none: TypeError."""
    if isinstance(row, bytes):
        return row
    if isinstance(row, np.ndarray | np.void | np.bytes_):
        return row.tobytes()
    raise TypeError(f"{type(row).__name__} is no picture")


def _swapped(read: Read) -> Read:
    return lambda start, stop: read(start, stop)[..., ::-1]


def own_group(file: Any, name: str) -> Any:
    """The group `name` of the file itself, () where there is none or it is a link to elsewhere."""
    import h5py

    own = isinstance(file.get(name, getlink=True), h5py.HardLink)
    return file[name] if own and file.get(name, getclass=True) is h5py.Group else ()


def is_hdf5(path: Path) -> bool:
    import h5py

    return bool(h5py.is_hdf5(path))


@contextlib.contextmanager
def opened(path: Path) -> Iterator[Any]:
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


def inside(group: Any, name: str, src: Path) -> Any:
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


def group_of(group: Any, name: str, src: Path) -> Any:
    import h5py

    item = inside(group, name, src)
    if not isinstance(item, h5py.Group):
        raise StoreError(f"{src}: {name} is no group")
    return item


def dataset_of(group: Any, name: str, src: Path, pictures: bool = False) -> Any:
    """The array `name`, of numbers, or of pictures in bytes where those are allowed, written to its end.
    Raises StoreError."""
    import h5py

    item = inside(group, name, src)
    if not isinstance(item, h5py.Dataset) or item.ndim < 1:
        raise StoreError(f"{src}: {name} is no array of numbers")
    if item.dtype.kind not in "fiub" and not (pictures and (not item.size or is_encoded(item))):
        raise StoreError(f"{src}: {name} is no array of numbers" + " or pictures" * pictures)
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
