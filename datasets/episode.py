"""One finished episode of a store: its attributes, and its streams read on demand."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from .features import ACTION, is_frames
from .frames import DamagedFrames, FrameReader


class StoreError(ValueError):
    """A folder is no episode store, or its contents cannot be used; the message is one sentence."""


def require_finite(place: str, key: str, values: np.ndarray) -> None:
    """Raise StoreError that names the first row of `values` `(T, ...)` with NaN or infinity."""
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        finite = np.isfinite(values).reshape(len(values), -1).all(1)
        raise StoreError(f"{place}: {key} is not finite in row {int(np.flatnonzero(~finite)[0])}")


class Episode:
    """One finished episode, read on demand. A trim or a restore puts another version, with other rows, in its
    place; every read after that raises StoreError.

    damage: a sentence if its zarr.json cannot be read, else "". Such an episode is listed with no rows, and
    every read raises that sentence."""

    def __init__(
        self,
        path: Path,
        index: int,
        attrs: Mapping[str, Any],
        version: tuple[int, int] | None = None,
        damage: str = "",
    ) -> None:
        self.damage = damage
        self.path, self.index, self.attrs = path, index, dict(attrs)
        self._version = version or version_of(path)
        self.length = int(attrs["length"])
        self.task = str(attrs.get("task", ""))
        self._readers: dict[str, FrameReader] = {}

    @cached_property
    def _group(self) -> Any:
        import zarr

        try:
            return zarr.open_group(str(self.path), mode="r")
        except Exception as error:
            raise StoreError(f"episode {self.path.name} cannot be opened: {error}") from error

    @cached_property
    def streams(self) -> tuple[str, ...]:
        if self.damage:
            return ()
        return tuple(sorted(p.name for p in self.path.iterdir() if p.is_dir() and not p.name.startswith(".")))

    @property
    def interrupted(self) -> bool:
        """Whether it was cut off (by a kill, a failing device, Ctrl-C); attrs["interrupted"] says by what."""
        return bool(self.attrs.get("interrupted"))

    @property
    def content(self) -> str:
        """A digest of all rows, times and flags, independent of the folder's name; for episodes without one,
        made from the size and date of zarr.json."""
        if "content" in self.attrs:
            return str(self.attrs["content"])
        if self.damage:
            return f"{self.path.name}-damaged"
        stat = (self.path / "zarr.json").stat()
        return f"{self.path.name}-{stat.st_size}-{stat.st_mtime_ns}"

    def rows(self, key: str) -> int:
        """How many rows a stream has."""
        return len(self._reader(key))

    def by_tick(self, key: str) -> bool | None:
        """Whether the stream has a row per control tick (else rows at its own rate); None where this was not
        recorded."""
        by_tick = self.attrs.get("streams", {}).get(key, {}).get("by_tick")
        return None if by_tick is None else bool(by_tick)

    def read(self, key: str, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Rows `[start, stop)` of a stream `(T, *shape)` in its stored dtype."""
        if is_frames(key):
            return self.read_frames(key, range(*slice(start, stop).indices(len(self._reader(key)))))
        return self._read(key, "value", slice(start, stop))

    def read_frames(
        self, key: str, rows: Sequence[int] | np.ndarray, out: np.ndarray | None = None
    ) -> np.ndarray:
        """The frames of `rows` `(N,)`, in any order, of a stream of images or depth, as `(N, H, W[, C])`,
        written into `out` if given. Only those frames are read."""
        with self._reading(key):
            return self._reader(key).read(rows, out)

    def verify_frames(self, key: str) -> None:
        """Raise StoreError where the checksum of a stored frame is wrong."""
        with self._reading(key):
            self._reader(key).verify()

    def times_ns(self, key: str) -> tuple[np.ndarray, np.ndarray]:
        """(t_capture_ns, t_receive_ns), each `(T,)` int64."""
        return self._read(key, "t_capture_ns", slice(None)), self._read(key, "t_receive_ns", slice(None))

    def flags(self, key: str) -> np.ndarray:
        """The bits STALE, INTERPOLATED, … (see flags.py) of each row, `(T,)` uint8."""
        self._require_stream(key)
        with self._reading(key):
            has_flags = (self.path / key / "flags").is_dir()
        return self._read(key, "flags", slice(None)) if has_flags else np.zeros(self.rows(key), np.uint8)

    def _reader(self, key: str) -> FrameReader:
        if key not in self._readers:
            self._require_stream(key)
            with self._reading(key):
                reader = FrameReader(self.path / key / "value")
            self._readers[key] = reader
        return self._readers[key]

    def _read(self, key: str, part: str, rows: slice) -> np.ndarray:
        self._require_stream(key)
        with self._reading(key):
            try:
                array = self._group[f"{key}/{part}"]
                # zarr gives zeros for a missing chunk, as if it had never been written; our writer writes all
                chunk = (self.path / key / part).joinpath("c", *("0" for _ in array.shape))
                if "streams" in self.attrs and array.shape[0] and not chunk.is_file():
                    raise FileNotFoundError(f"its file {chunk.relative_to(self.path)} is missing")
                return np.asarray(array[rows])
            except StoreError:
                raise
            except Exception as error:  # zarr raises whatever its codecs raise on a damaged chunk
                raise StoreError(f"episode {self.path.name}: stream {key} cannot be read: {error}") from error

    @contextlib.contextmanager
    def _reading(self, key: str) -> Iterator[None]:
        """Raise StoreError if an edit replaced the episode since it was opened. Checked after the read,
        because an edit may come at any moment."""
        try:
            yield
        except DamagedFrames as error:
            raise StoreError(f"episode {self.path.name}: stream {key}: {error}") from error
        finally:
            if version_of(self.path) != self._version:
                raise StoreError(
                    f"episode {self.path.name} was edited or deleted while it was in use: open the dataset "
                    "again, or bring back with `ulna data restore` what was there"
                )

    def require_readable(self) -> None:
        """Raise StoreError if it is damaged."""
        if self.damage:
            raise StoreError(self.damage)

    def _require_stream(self, key: str) -> None:
        self.require_readable()
        if key not in self.streams:
            raise StoreError(
                f"episode {self.path.name} has no stream {key}; it has {', '.join(self.streams)}"
            )


def version_of(folder: Path) -> tuple[int, int]:
    """Differs between an episode's folder and one that replaces it; a change of labels makes no
    difference."""
    try:
        stat = os.stat(folder / ACTION)
    except OSError:
        return 0, 0
    return stat.st_ino, stat.st_mtime_ns


def episode_of(folder: Path, index: int, version: tuple[int, int]) -> Episode:
    try:
        return Episode(folder, index, attrs_of(folder), version)
    except StoreError as error:
        return Episode(folder, index, {"length": 0}, version, str(error))


def attrs_of(folder: Path) -> dict[str, Any]:
    try:
        attrs = json.loads((folder / "zarr.json").read_text())["attributes"]
        int(attrs["length"])
        return attrs
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StoreError(
            f"episode {folder.name} has no readable zarr.json ({error!r}): bring it back from a copy, or "
            "`ulna data delete` the episode"
        ) from None
