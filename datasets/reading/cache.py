"""The frames of one camera over many episodes: decoded when read, or kept decoded in memory or on disk.

Files on disk are read with `pread`, not mapped: pages of a mapping count as this process's memory, of which a
machine that trains is short first. A file is named by the episode's place and content, written under another
name and renamed. Several processes can therefore share it, and an edited episode gets another file; another
dataset that claims the same content does not: what a dataset from elsewhere claims need not be so."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import secrets
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from ..episode import Episode, StoreError

Cache = Literal["auto", "ram", "disk", "none"]
AUTO_BYTES = 256 << 20  # kept in memory by "auto": reading any dataset stays below 600 MB
MOST_AUTO_BYTES = 8 << 30  # for training: to decode as much takes a minute or two, before the first step
OPEN_FILES = 128
WRITE_FRAMES = 64
log = logging.getLogger("ulna.datasets")


class Frames:
    """`frames[rows]`: `(..., H, W[, C])` for any array of rows, counted over all `episodes` end to end."""

    def __init__(self, episodes: Sequence[Episode], key: str, shape: tuple[int, ...], dtype: str) -> None:
        self.episodes, self.key, self.shape, self.dtype = list(episodes), key, shape, np.dtype(dtype)
        counts = np.array([e.rows(key) for e in episodes], np.int64)
        self.ends = np.cumsum(counts)
        self.frame_bytes = int(np.prod(shape)) * self.dtype.itemsize
        self.nbytes = int(counts.sum()) * self.frame_bytes
        self._memory: np.ndarray | None = None
        self._files: list[Path] | None = None
        self._open: OrderedDict[int, int] = OrderedDict()
        self._owner = os.getpid()

    def __getitem__(self, rows: np.ndarray) -> np.ndarray:
        if self._memory is not None:
            return self._memory[rows]
        if self._files is not None:
            return self._read_files(rows)
        unique, inverse = np.unique(rows, return_inverse=True)
        return self._decode(unique)[inverse.reshape(rows.shape)]

    @property
    def kept(self) -> bool:
        """Whether they are not decoded anew whenever they are read."""
        return self._memory is not None or self._files is not None

    def keep_in_memory(self) -> None:
        self._memory = self._decode(np.arange(self.ends[-1] if len(self.ends) else 0))

    def keep_on_disk(self, folder: str | Path | None = None) -> None:
        """Write files that do not exist yet. If the disk is full, warn once and decode frames as they are
        read."""
        folder = Path(folder) if folder else cache_folder()
        files: list[Path] = []
        new_files: list[Path] = []
        for i, e in enumerate(self.episodes):
            what = f"{e.path.resolve()} {e.content} {self.key} {self.shape} {self.dtype}"
            name = hashlib.sha256(what.encode()).hexdigest()[:32]
            path = folder / name[:2] / f"{name}.raw"
            size = (int(self.ends[i]) - (int(self.ends[i - 1]) if i else 0)) * self.frame_bytes
            if not path.is_file() or path.stat().st_size != size:
                new = path.with_suffix(f".{secrets.token_hex(4)}")
                try:
                    path.parent.mkdir(parents=True, exist_ok=True)
                    self._write(e, new)
                    os.replace(new, path)
                    new_files.append(path)
                except OSError as error:
                    for path_written in new_files:  # leave the room to checkpoints
                        path_written.unlink(missing_ok=True)
                    log.warning(
                        "the cache of decoded images in %s cannot be written (%s): "
                        "images are decoded as they are read",
                        folder,
                        error.strerror or error,
                    )
                    return
                finally:
                    with contextlib.suppress(OSError):
                        new.unlink()
            files.append(path)
        self._files = files

    def _write(self, e: Episode, path: Path) -> None:
        with path.open("wb") as file:
            for start in range(0, e.rows(self.key), WRITE_FRAMES):
                stop = min(start + WRITE_FRAMES, e.rows(self.key))
                file.write(e.read_frames(self.key, range(start, stop)).data)

    def _read_files(self, rows: np.ndarray) -> np.ndarray:
        flat = rows.reshape(-1)
        out = np.empty((len(flat), *self.shape), self.dtype)
        if not len(flat):
            return out.reshape(*rows.shape, *self.shape)
        which = np.searchsorted(self.ends, flat, side="right")
        places = (flat - np.concatenate([[0], self.ends])[which]) * self.frame_bytes
        # a window's frames are contiguous: one read for all of them
        begins = np.concatenate([[0], np.flatnonzero((np.diff(flat) != 1) | (np.diff(which) != 0)) + 1])
        ends = np.append(begins[1:], len(flat))
        order = np.argsort(flat[begins], kind="stable")  # ascending, for disks that turn
        columns = (which[begins], places[begins], begins * self.frame_bytes, ends * self.frame_bytes)
        raw = memoryview(out).cast("B")
        for episode, offset, begin, end in zip(*(c[order].tolist() for c in columns), strict=True):
            if os.preadv(self._file(episode), [raw[begin:end]], offset) != end - begin:
                raise StoreError(
                    f"the cache file {(self._files or [])[episode]} is cut short: remove it, and it is made "
                    "again"
                )
        return out.reshape(*rows.shape, *self.shape)

    def _file(self, episode: int) -> int:
        if self._owner != os.getpid():  # a forked worker must not share the bookkeeping of open files
            self._open, self._owner = OrderedDict(), os.getpid()
        if episode in self._open:
            self._open.move_to_end(episode)
            return self._open[episode]
        assert self._files is not None
        file = os.open(self._files[episode], os.O_RDONLY | os.O_CLOEXEC)
        self._open[episode] = file
        if len(self._open) > OPEN_FILES:
            os.close(self._open.popitem(last=False)[1])
        return file

    def __del__(self) -> None:
        if getattr(self, "_owner", None) == os.getpid():
            for file in self._open.values():
                os.close(file)

    def _decode(self, rows: np.ndarray) -> np.ndarray:
        """Decode `rows`, which ascend."""
        frames = np.empty((len(rows), *self.shape), self.dtype)
        which, starts = np.unique(np.searchsorted(self.ends, rows, side="right"), return_index=True)
        for i, start, stop in zip(which.tolist(), starts, [*starts[1:], len(rows)], strict=True):
            begin = self.ends[i - 1] if i else 0
            self.episodes[i].read_frames(self.key, rows[start:stop] - begin, frames[start:stop])
        return frames


def auto_bytes(root: Path = Path("/")) -> int:
    """How much of decoded images training may keep in memory without being asked: a quarter of what is free,
    from `AUTO_BYTES` to `MOST_AUTO_BYTES`; of several processes that were launched together on this machine
    each its share of that. root: where /proc and /sys are."""
    together = max(1, int(os.environ.get("LOCAL_WORLD_SIZE") or 1))  # as torchrun and accelerate say it
    return int(np.clip(_free_memory(root) // 4 // together, AUTO_BYTES, MOST_AUTO_BYTES))


def _free_memory(root: Path) -> int:
    """Bytes that this process could take without swapping: the machine's, or what is left of the limit of one
    of its control groups (a container's), where that is less. 0 where the system does not tell."""
    free = _number(root / "proc/meminfo", "MemAvailable:") << 10
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return free
    for line in lines:
        _, controllers, group = line.split(":", 2)
        if controllers == "":  # version 2
            top, files = root / "sys/fs/cgroup", ("memory.max", "memory.current", "inactive_file")
        elif "memory" in controllers.split(","):  # version 1
            top = root / "sys/fs/cgroup/memory"
            files = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
        else:
            continue
        limit, usage, reclaimable = files
        own = top / group.strip("/")
        for folder in (own, *own.parents[: len(own.parts) - len(top.parts)]):
            if most := _number(folder / limit):  # `max` is no number
                used = _number(folder / usage) - _number(folder / "memory.stat", reclaimable)
                free = min(free, max(0, most - used))
    return free


def _number(path: Path, *name: str) -> int:
    """Of the line `name number`, or of the line that is a number; 0 where there is none."""
    with contextlib.suppress(OSError):
        for line in path.read_text().splitlines():
            words = line.removesuffix(" kB").split()
            if words[:-1] == list(name) and words[-1:] and words[-1].isdigit():
                return int(words[-1])
    return 0


def cache_folder() -> Path:
    """Where decoded images are kept: `$ULNA_CACHE`, else `ulna/frames` in the user's cache folder."""
    if folder := os.environ.get("ULNA_CACHE"):
        return Path(folder)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ulna" / "frames"
