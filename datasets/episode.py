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
    """The folder is no episode store, or what lies in it cannot be used; the message is one sentence."""


def require_finite(where: str, key: str, values: np.ndarray) -> None:
    """StoreError naming the first frame of `values` `(T, ...)` that holds NaN or infinity."""
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        good = np.isfinite(values).reshape(len(values), -1).all(1)
        raise StoreError(f"{where}: {key} is not finite in frame {int(np.flatnonzero(~good)[0])}")


class Episode:
    """One finished episode, read on demand. A trim or a restore puts another version in its place: what is
    read then would be other rows than those that were counted before, so every read after it is refused with
    a StoreError.

    damaged: a sentence where its own zarr.json cannot be read; it is listed, with no rows, and every read
    raises that."""

    def __init__(
        self,
        path: Path,
        index: int,
        attrs: Mapping[str, Any],
        version: tuple[int, int] | None = None,
        damaged: str = "",
    ) -> None:
        self.damaged = damaged
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
        if self.damaged:
            return ()
        return tuple(sorted(p.name for p in self.path.iterdir() if p.is_dir() and not p.name.startswith(".")))

    @property
    def interrupted(self) -> bool:
        """It was cut off (by a kill, a failing device, Ctrl-C); attrs["interrupted"] says by what."""
        return bool(self.attrs.get("interrupted"))

    @property
    def content(self) -> str:
        """A digest of all rows, times and flags, whatever the folder is called; of older episodes, of its
        files' dates."""
        if "content" in self.attrs:
            return str(self.attrs["content"])
        if self.damaged:
            return f"{self.path.name}-damaged"
        stat = (self.path / "zarr.json").stat()
        return f"{self.path.name}-{stat.st_size}-{stat.st_mtime_ns}"

    def rows(self, key: str) -> int:
        """How many rows a stream has."""
        return len(self._reader(key))

    def by_tick(self, key: str) -> bool | None:
        """Whether the stream's rows were written with the control ticks, else at its own rate; None where it
        was not noted."""
        noted = self.attrs.get("streams", {}).get(key, {}).get("by_tick")
        return None if noted is None else bool(noted)

    def read(self, key: str, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Rows `[start, stop)` of a stream `(T, *shape)` in its stored dtype."""
        if is_frames(key):
            return self.read_frames(key, range(*slice(start, stop).indices(len(self._reader(key)))))
        return self._read(key, "value", slice(start, stop))

    def read_frames(
        self, key: str, rows: Sequence[int] | np.ndarray, out: np.ndarray | None = None
    ) -> np.ndarray:
        """Any `rows` `(N,)` of a stream of images or depth, as `(N, H, W[, C])`, into `out` where given.
        Reads only those frames."""
        with self._reading(key):
            return self._reader(key).read(rows, out)

    def verify_frames(self, key: str) -> None:
        """StoreError where the stored bytes of a stream's frames are not those that were written."""
        with self._reading(key):
            self._reader(key).verify()

    def times_ns(self, key: str) -> tuple[np.ndarray, np.ndarray]:
        """(t_capture_ns, t_receive_ns), each `(T,)` int64."""
        return self._read(key, "t_capture_ns", slice(None)), self._read(key, "t_receive_ns", slice(None))

    def flags(self, key: str) -> np.ndarray:
        """STALE, INTERPOLATED, … of each row, `(T,)` uint8."""
        self._require_stream(key)
        with self._reading(key):
            there = (self.path / key / "flags").is_dir()
        return self._read(key, "flags", slice(None)) if there else np.zeros(self.rows(key), np.uint8)

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
                # zarr takes a chunk that is gone for one that was never written, and gives zeros. Our writer
                # leaves none out.
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
        """What was read is of the version that was opened: looked at afterwards, since an edit may come at
        any moment."""
        try:
            yield
        except DamagedFrames as error:
            raise StoreError(f"episode {self.path.name}: stream {key}: {error}") from error
        finally:
            if version_of(self.path) != self._version:
                raise StoreError(
                    f"episode {self.path.name} was edited or deleted while it was in use: open the dataset again, or bring "
                    "back with `ulna data restore` what was there"
                )

    def require_readable(self) -> None:
        """StoreError when it is damaged."""
        if self.damaged:
            raise StoreError(self.damaged)

    def _require_stream(self, key: str) -> None:
        self.require_readable()
        if key not in self.streams:
            raise StoreError(
                f"episode {self.path.name} has no stream {key}; it has {', '.join(self.streams)}"
            )


def version_of(folder: Path) -> tuple[int, int]:
    """Tells an episode's folder from one that was put in its place; labels make no difference."""
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
            f"episode {folder.name} has no readable zarr.json ({error!r}): bring it back from a copy, or `ulna data delete` the episode"
        ) from None
