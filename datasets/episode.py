"""One finished episode of a store: its attributes, and its streams read on demand."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from . import inside
from .arrays import ArrayReader
from .features import ACTION, Features, is_frames
from .frames import DamagedFrames, FrameReader
from .sizes import count_of

MAY_BE_MISSING = 1 << 20  # rows of zeros
MOST_STEPS = 64  # of an episode's task


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
        self._root = store_of(path)
        self._readers: dict[str, FrameReader] = {}

    @cached_property
    def streams(self) -> tuple[str, ...]:
        """Its streams by name; a link in the place of one is named, too, and every read of it refuses."""
        if self.damage:
            return ()
        try:
            entries = inside.scan(self._root, self.path)
        except OSError as error:
            raise StoreError(f"episode {self.path.name} cannot be opened: {error.strerror}") from None
        return tuple(
            name
            for name, status in entries.items()
            if not name.startswith(".") and not stat.S_ISREG(status.st_mode)
        )

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
        status = (self.path / "zarr.json").lstat()
        return f"{self.path.name}-{status.st_size}-{status.st_mtime_ns}"

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

    def frame_reader(self, key: str) -> FrameReader:
        """Reads the frames of a stream, one after the other. Raises StoreError."""
        return self._reader(key)

    def verify_frames(self, key: str) -> None:
        """Raise StoreError where the checksum of a stored frame is wrong."""
        with self._reading(key):
            self._reader(key).verify()

    def times_ns(self, key: str) -> tuple[np.ndarray, np.ndarray]:
        """(t_capture_ns, t_receive_ns), each `(T,)` int64."""
        return self._column(key, "t_capture_ns", "int64"), self._column(key, "t_receive_ns", "int64")

    def flags(self, key: str) -> np.ndarray:
        """The bits STALE, INTERPOLATED, … (see flags.py) of each row, `(T,)` uint8."""
        self._require_stream(key)
        with self._reading(key):
            has_flags = (self.path / key / "flags").exists(follow_symlinks=False)
        return self._column(key, "flags", "uint8") if has_flags else np.zeros(self.rows(key), np.uint8)

    def _column(self, key: str, part: str, dtype: str) -> np.ndarray:
        values = self._read(key, part, slice(None))
        if values.ndim != 1 or values.dtype.name != dtype:
            raise StoreError(
                f"episode {self.path.name}: stream {key} cannot be read: {part} is {values.dtype.name} "
                f"{values.shape}, not one {dtype} a row"
            )
        return values

    def _reader(self, key: str) -> FrameReader:
        if key not in self._readers:
            self._require_stream(key)
            with self._reading(key):
                reader = FrameReader(self.path / key / "value", self._root)
            self._readers[key] = reader
        return self._readers[key]

    def _read(self, key: str, part: str, rows: slice) -> np.ndarray:
        self._require_stream(key)
        with self._reading(key):
            try:
                array = ArrayReader(self._root, self.path / key / part)
                if not array.shape:
                    raise ValueError(f"{part} has no rows")
                # a missing chunk stands for zeros in zarr, as if it had never been written; our writer writes
                # all, but did not always
                written = "streams" in self.attrs or array.shape[0] > MAY_BE_MISSING
                return array.read(*rows.indices(array.shape[0])[:2], require_all=written)
            except Exception as error:  # codecs raise all kinds on damaged bytes
                why = (error.strerror if isinstance(error, OSError) else None) or str(error)
                raise StoreError(f"episode {self.path.name}: stream {key} cannot be read: {why}") from error

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

    def require_fit(self, features: Features, keys: Iterable[str]) -> None:
        """Raise StoreError unless it has as many actions as its `length`, and its streams `keys` hold what
        `features` say: before memory is taken for as many rows of such a size."""
        ticks = self.rows(ACTION)
        if ticks != self.length:
            raise StoreError(
                f"episode {self.path.name} has {ticks} actions and says {self.length}: run `ulna data check`"
            )
        for key in keys:
            reader, feature = self._reader(key), features[key]
            shape, dtype = reader.shape[1:], reader.dtype.name
            if (shape, dtype) != (feature.shape, feature.dtype):
                raise StoreError(
                    f"episode {self.path.name}: {key} holds {dtype} {shape}, the dataset's features say "
                    f"{feature.dtype} {feature.shape}: run `ulna data check`"
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


def store_of(episode: Path) -> Path:
    """The folder of the store that the folder `episode` lies in, out of which nothing is followed."""
    return episode.parent.parent


def version_of(folder: Path) -> tuple[int, int]:
    """Differs between an episode's folder and one that replaces it; a change of labels makes no
    difference."""
    try:
        status = os.lstat(folder / ACTION)
    except OSError:
        return 0, 0
    return status.st_ino, status.st_mtime_ns


def episode_of(folder: Path, index: int, version: tuple[int, int]) -> Episode:
    try:
        return Episode(folder, index, attrs_of(folder), version)
    except StoreError as error:
        return Episode(folder, index, {"length": 0}, version, str(error))


def attrs_of(folder: Path) -> dict[str, Any]:
    """The attributes of the episode in `folder`. Raises StoreError where they cannot be read, or are not what
    they should be."""
    try:
        group = inside.read_json(store_of(folder), folder / "zarr.json")
        attrs = group["attributes"]
        if not isinstance(attrs, dict):
            raise ValueError("its attributes are no object")  # noqa: TRY004  a file said it
        _require_attrs(attrs)
        return attrs
    except (OSError, ValueError, KeyError, TypeError) as error:
        why = (error.strerror if isinstance(error, OSError) else None) or (
            str(error) if isinstance(error, ValueError) else repr(error)
        )
        raise StoreError(
            f"episode {folder.name} has no readable zarr.json ({why}): bring it back from a copy, or "
            "`ulna data delete` the episode"
        ) from None


def _require_attrs(attrs: Mapping[str, Any]) -> None:
    """Raise ValueError unless what Ulna computes with is what it wrote."""
    count_of(attrs["length"], "its length")
    if attrs.get("success") not in (True, False, None):
        raise ValueError(f"its success is {str(attrs['success'])[:40]!r}, not true, false or null")
    for key in ("weight", "return"):
        value = attrs.get(key, 0.0)
        if value is not None and (isinstance(value, bool) or not isinstance(value, int | float)):
            raise ValueError(f"its {key} is {str(value)[:40]!r}, no number")
    for key in ("dropped", "streams", "limits"):
        if not isinstance(attrs.get(key) or {}, dict):
            raise ValueError(f"its {key} is no object")  # noqa: TRY004
    for stream, rows in (attrs.get("dropped") or {}).items():
        count_of(rows, f"the count of lost rows of {stream}")
    for stream, facts in (attrs.get("streams") or {}).items():
        if not isinstance(facts, dict):
            raise ValueError(f"what it says of {stream} is no object")  # noqa: TRY004
        if "rows" in facts:
            count_of(facts["rows"], f"the count of rows of {stream}")
    if not isinstance(attrs.get("notes") or [], list):
        raise ValueError("its notes are no list")  # noqa: TRY004
    trimmed_to = attrs.get("trimmed_to") or [0, 0]
    if not isinstance(trimmed_to, list) or len(trimmed_to) != 2:
        raise ValueError("the rows that it was trimmed to are no pair")
    for row in trimmed_to:
        count_of(row, "a row that it was trimmed to")
    require_steps(attrs.get("steps") or [])
    phrases = attrs.get("phrases") or []
    if not isinstance(phrases, list) or not all(isinstance(p, str) for p in phrases):
        raise ValueError("its phrases are no list of texts")


def require_steps(value: Any) -> None:
    """ValueError in one sentence unless it can be an episode's attribute `steps`, see `steps.py`."""
    if not isinstance(value, list) or len(value) > MOST_STEPS:
        raise ValueError(f"its steps are no list of at most {MOST_STEPS}")
    for step in value:
        if not isinstance(step, dict) or not isinstance(step.get("words"), str) or not step["words"].strip():
            raise ValueError(f"a step is {str(step)[:40]!r}, without words")
        changes = step.get("changes_ns")
        if not isinstance(changes, list) or any(
            isinstance(t, bool) or not isinstance(t, int) or abs(t) >= 1 << 63 for t in changes
        ):
            raise ValueError(f"the step {step['words'][:40]!r} has no list of times in ns")
        if changes != sorted(changes):
            raise ValueError(f"the times of the step {step['words'][:40]!r} are not in order")
