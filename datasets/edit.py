"""Safe edits of a store: trim, relabel, delete, restore.

Every edit holds the writer's lock, writes the new version beside the old one and swaps the two. Deleted
episodes, and versions that a trim replaced, lie in `DIR/trash` until `empty_trash`. When an edit is killed,
the next opening of the store concludes or undoes it."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import stat
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from . import inside
from .durable import exchange
from .episode import Episode, StoreError, require_steps, store_of
from .features import ACTION, is_frames
from .frames import DamagedFrames, FrameReader
from .layout import EPISODES, IN_PROGRESS, TRASH, to_trash
from .reading.align import row_per_tick
from .recording.in_progress import InProgress
from .recording.log import LOG, Sample, Stream
from .recording.recovery import conclude_edit
from .store import EpisodeStore

LABELS = ("task", "phrases", "success", "weight", "return", "steps")


@dataclass(frozen=True)
class TrashItem:
    """An episode in the trash. path: where it lies. name: of its folder in `episodes`. deleted_s: Unix
    time. replaced: whether another version is in its place."""

    path: Path
    name: str
    deleted_s: float
    replaced: bool


def delete(store: EpisodeStore, episodes: Sequence[int]) -> list[Path]:
    """Move episodes to the trash; their new paths. Raises StoreError, like all edits."""
    selection = store.choose(episodes)
    with _edit(store):
        return [to_trash(store.path, e.path, e.path.name) for e in selection]


def trash(store: EpisodeStore) -> list[TrashItem]:
    """The contents of the trash, oldest deletion first."""
    folder, items = store.path / TRASH, []
    try:
        entries = inside.scan(store.path, folder)
    except FileNotFoundError:
        return []
    except OSError as error:
        raise StoreError(f"the trash of {store.path} cannot be read: {error.strerror}") from None
    for entry, status in entries.items():
        name, _, when = entry.rpartition(".")
        if (
            name
            and not name.startswith(".")
            and when.isdecimal()
            and len(when) < 20
            and stat.S_ISDIR(status.st_mode)
        ):
            replaced = (store.path / EPISODES / name).exists()
            items.append(TrashItem(folder / entry, name, int(when) * 1e-9, replaced))
    return sorted(items, key=lambda t: t.deleted_s)


def restore(store: EpisodeStore, names: Sequence[str] | None = None) -> list[str]:
    """Take episodes out of the trash; the names of their folders.

    names: names of folders in `episodes`, or numbers of episodes, which stand for the version that was
    deleted last; or names of folders in the trash, for one version. By default all episodes that are not in
    place. A version that is in place goes to the trash instead."""
    with _edit(store):
        items = trash(store)
        newest = {t.name: t for t in items}
        if names is None:
            newest = {n: t for n, t in newest.items() if not t.replaced}
        else:
            by_number = {
                str(int(number)): t
                for n, t in newest.items()
                if (number := n.split("-")[0]).isdecimal() and len(number) < 10
            }
            by_name = {**by_number, **newest, **{t.path.name: t for t in items}}
            if unknown := [n for n in names if n not in by_name]:
                contents = ", ".join(newest) or "nothing"
                raise StoreError(
                    f"the trash of {store.path} holds no episode {unknown[0]}: there is {contents}"
                )
            newest = {by_name[n].name: by_name[n] for n in names}
        for name, item in newest.items():
            target = store.path / EPISODES / name
            if target.exists():
                _exchange(store.path, item.path, target)
                if item.path.exists():
                    to_trash(store.path, item.path, name)
            else:
                os.rename(item.path, target)
        return list(newest)


def empty_trash(store: EpisodeStore) -> int:
    """Remove the contents of the trash for good; how many episodes there were."""
    with _edit(store):
        items = trash(store)
        for t in items:
            # renamed first: after a kill, half a folder must not be taken for an episode
            hidden = store.path / IN_PROGRESS / f".discarded-{t.path.name}"
            os.rename(t.path, hidden)
            shutil.rmtree(hidden)
        return len(items)


def relabel(store: EpisodeStore, episodes: Sequence[int], labels: Mapping[str, Any]) -> None:
    """Set labels of episodes: `task` (words), `phrases` (what else the task may be called), `success` (True,
    False, None), `weight` (≥ 0), `return`, and `steps`, pairs of words and when the step was done, in seconds
    after the first control tick (None: never).
    Their old values are kept in the episode's attribute `relabelled`."""
    _require_labels(labels)
    selection = store.choose(episodes)
    with _edit(store):
        for e in selection:
            e = store.reopen(e)  # it may be from before another edit
            attrs, new = e.attrs, dict(labels)
            if "steps" in new:
                new["steps"] = _steps_in(e, new["steps"])
            before = {k: attrs.get(k) for k in new}
            if before == new:
                continue
            history = [*attrs.get("relabelled", []), {"at_s": round(time.time(), 3), "was": before}]
            write_attrs(e.path, {**new, "relabelled": history})


def trim(store: EpisodeStore, episode: int, start_s: float | None, end_s: float | None) -> tuple[int, int]:
    """Keep only the control ticks from `start_s` to `end_s`, in seconds after the first, and the rows of
    other streams that belong to them (see `rows_between`). Frames are copied as they are stored, and the old
    version goes to the trash. Returns (ticks before, ticks now)."""
    (e,) = store.choose([episode])
    with _edit(store):
        e = store.reopen(e)  # `e` may be from before another edit
        ticks = e.times_ns(ACTION)[0]
        seconds = (ticks - ticks[0]) * 1e-9 if len(ticks) else np.zeros(0)
        begin, end = (0.0 if start_s is None else start_s), (np.inf if end_s is None else end_s)
        indices = np.flatnonzero((seconds >= begin - 1e-9) & (seconds <= end + 1e-9))
        if not len(indices):
            last = seconds[-1] if len(seconds) else 0.0
            raise StoreError(
                f"episode {episode} runs from 0 to {last:.3f} s: nothing of it lies from {begin:g} to "
                f"{end:g} s"
            )
        if len(indices) == len(ticks):
            return len(ticks), len(ticks)
        token = secrets.token_hex(6)
        work = store.path / IN_PROGRESS / f".edit-{token}-{e.path.name}"
        try:
            _copy_rows(e, work, token, rows_between(e, int(indices[0]), int(indices[-1])))
            _exchange(store.path, work, e.path)
        finally:
            if work.exists():
                conclude_edit(work)
        return len(ticks), len(indices)


def rows_between(e: Episode, first: int, last: int) -> dict[str, range]:
    """The rows of each stream that belong to the control ticks `first` to `last`: from the newest row that
    had arrived at the first tick to the newest that had arrived at the last."""
    ticks = e.times_ns(ACTION)[1]
    begin, end = int(ticks[first]), int(ticks[last])
    rows = {}
    for key in e.streams:
        capture, receive = e.times_ns(key)
        if row_per_tick(e.by_tick(key), e.times_ns(ACTION)[0], capture, receive):
            rows[key] = range(first, last + 1)
            continue
        arrival = np.maximum.accumulate(receive)
        start = max(0, int(np.searchsorted(arrival, begin, side="right")) - 1)
        rows[key] = range(start, int(np.searchsorted(arrival, end, side="right")))
    return rows


def write_attrs(folder: Path, changes: Mapping[str, Any]) -> None:
    """Change attributes of the episode in `folder`; the new file appears by one rename."""
    group = inside.read_json(store_of(folder), folder / "zarr.json")
    group["attributes"].update(changes)
    new = folder / f".zarr.json.{secrets.token_hex(4)}"
    try:
        with new.open("w") as file:
            file.write(json.dumps(group, indent=1))
            file.flush()
            os.fsync(file.fileno())  # else a power cut may leave it empty under its final name
        os.replace(new, folder / "zarr.json")
    finally:
        new.unlink(missing_ok=True)


def _copy_rows(e: Episode, work: Path, token: str, rows: Mapping[str, range]) -> None:
    try:
        streams = [_stream_of(e, key) for key in e.streams]
        meta = {k: v for k, v in e.attrs.items() if k not in ("length", "streams", "content")}
        span, (before, _) = rows[ACTION], meta.get("trimmed_to") or (0, 0)
        trimmed_to = [before + span.start, before + span.stop]  # rows of what was recorded
        copy = InProgress.create(work, streams, {**meta, "edit": token, "trimmed_to": trimmed_to})
        try:
            seq = 0
            for i, stream in enumerate(streams):
                stream_rows = rows[stream.key]
                capture, receive = e.times_ns(stream.key)
                flags = e.flags(stream.key)
                reader = FrameReader(e.path / stream.key / "value", store_of(e.path)) if stream.kind else None
                values = None if reader else e.read(stream.key)
                for row in stream_rows:
                    data = reader.read_encoded([row])[0] if reader else values[row].tobytes()  # type: ignore[index]
                    sample = Sample(i, int(flags[row]), int(capture[row]), int(receive[row]), data)
                    copy.append(seq, [sample])
                    seq += 1
            copy.complete({})
            shutil.rmtree(work / LOG.parent)
        finally:
            copy.close()
    except DamagedFrames as error:
        raise StoreError(f"episode {e.path.name} cannot be trimmed: {error}") from error


def _stream_of(e: Episode, key: str) -> Stream:
    if not is_frames(key):
        values = e.read(key, 0, 0)
        return Stream(key, values.shape[1:], values.dtype.name, by_tick=e.by_tick(key))
    reader = FrameReader(e.path / key / "value", store_of(e.path))
    return Stream(key, reader.shape[1:], reader.dtype.name, reader.kind, reader.quality, e.by_tick(key))


def _require_labels(labels: Mapping[str, Any]) -> None:
    if not labels or set(labels) - set(LABELS):
        raise StoreError(f"labels are {', '.join(LABELS)}; it was given {', '.join(labels) or 'none'}")
    if not isinstance(labels.get("task", ""), str):
        raise StoreError("a task is an instruction in words")
    if not all(isinstance(p, str) and p.strip() for p in labels.get("phrases", ())):
        raise StoreError("phrases are other words for the task, none of them empty")
    if labels.get("success") not in (True, False, None):
        raise StoreError(f"success is true, false or none, not {labels['success']!r}")
    for words, seconds in labels.get("steps", ()):
        if not words.strip() or not (seconds is None or np.isfinite(seconds)):
            raise StoreError(
                f"a step has words, and perhaps a time in seconds, not {words!r} and {seconds!r}"
            )
    for key in ("weight", "return"):
        value = labels.get(key, 0.0)
        if not isinstance(value, int | float) or not np.isfinite(value) or (key == "weight" and value < 0):
            raise StoreError(
                f"a {key} is a number{' of at least 0' if key == 'weight' else ''}, not {value!r}"
            )


def _steps_in(e: Episode, steps: Sequence[tuple[str, float | None]]) -> list[dict[str, Any]]:
    """The attribute of steps whose times are in seconds after the first control tick."""
    begin = int(e.times_ns(ACTION)[0][0]) if e.length else 0
    label = [
        {"words": words, "changes_ns": [] if seconds is None else [begin + round(seconds * 1e9)]}
        for words, seconds in steps
    ]
    try:
        require_steps(label)
    except ValueError as error:
        raise StoreError(f"episode {e.index}: {error}") from None
    return label


@contextlib.contextmanager
def _edit(store: EpisodeStore) -> Iterator[None]:
    with store.writing():
        try:
            yield
        except OSError as error:
            raise StoreError(
                f"cannot edit {store.path}: {error.strerror or error}; finished episodes are intact"
            ) from error
        finally:
            store.refresh()


def _exchange(store: Path, new: Path, place: Path) -> None:
    """Swap two folders in one step. Where the file system cannot do that, the folder `place` goes to the
    trash first; if we are killed then, `conclude_edit` does the second step."""
    if exchange(new, place):
        return
    to_trash(store, place, place.name)
    os.rename(new, place)
