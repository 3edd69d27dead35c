"""Episodes as a file for the rerun viewer: each episode one recording, each stream at its own capture times.

Entities: `images/<camera>` (JPEG), `depth/<camera>` (16-bit PNG, exact), and one scalar an element of every
vector, such as `state/shoulder_pan`, `action/shoulder_pan`, `action.requested/shoulder_pan`. Timelines:
`time`, the capture in seconds after the episode's first action, and `received`, when the recorder learned it.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ...datasets.checks.findings import zero_ns
from ...datasets.episode import Episode, StoreError
from ...datasets.features import ACTION, depth_scale_m, is_depth, is_frames
from ...datasets.store import EpisodeStore
from .pictures import picture
from .series import Timeline, panels, read_timeline

APPLICATION = "ulna"
FRAMES_AT_ONCE = 32
LABELS = ("task", "agent", "success", "weight", "return", "seed", "interrupted")


def write_rrd(
    store: EpisodeStore,
    path: str | Path,
    episodes: Sequence[int] | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, int]:
    """Write `episodes` (all by default) as the .rrd file `path`, which appears whole or not at all;
    `episodes` and `rows` written.

    A stream that cannot be read raises StoreError. progress(done, total) is called after each episode.
    """
    path = Path(path)
    chosen = store.choose(episodes)
    if not chosen:
        raise StoreError(f"{store.path} has no episode to write")
    if path.is_dir():
        raise StoreError(f"{path} is a folder: name a file, like {path / 'episodes.rrd'}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as work:
            rows, parts = 0, []
            for done, e in enumerate(chosen, 1):
                parts.append(Path(work) / f"{e.path.name}.rrd")
                rows += _write_episode(store, e, parts[-1], first=done == 1)
                progress(done, len(chosen))
            os.replace(_joined(parts, Path(work)), path)
    except OSError as error:
        raise StoreError(f"cannot write {path}: {error.strerror or error}") from error
    return {"episodes": len(chosen), "rows": rows}


def _write_episode(store: EpisodeStore, e: Episode, path: Path, first: bool) -> int:
    import rerun as rr

    timeline = read_timeline(e, store.features)
    for said in timeline.damaged.values():
        raise StoreError(f"episode {e.index}: {said}")
    recording = rr.RecordingStream(APPLICATION, recording_id=e.path.name)
    recording.save(path)
    recording.send_recording_name(f"{store.path.resolve().name} episode {e.index}")
    labels: dict[str, Any] = {k: str(e.attrs[k]) for k in LABELS if e.attrs.get(k) not in (None, "")}
    recording.send_property("episode", rr.AnyValues(**labels, fps=store.control_hz, robot=store.robot))
    if first:
        recording.send_blueprint(_blueprint(e, timeline))
    rows, zero = 0, zero_ns({key: e.times_ns(key)[0] for key in e.streams})
    for key in e.streams:
        capture, receive = e.times_ns(key)
        indexes = {"time": capture - zero, "received": receive - zero}
        if is_frames(key):
            _send_frames(recording, store, e, key, indexes)
        else:
            _send_vector(recording, timeline, key, indexes)
        rows += len(capture)
    recording.flush()
    recording.disconnect()
    return rows


def _send_vector(recording: Any, timeline: Timeline, key: str, ns: dict[str, np.ndarray]) -> None:
    import rerun as rr

    vector = timeline.vectors[key]
    for column, (name, unit) in enumerate(zip(vector.names, vector.units, strict=True)):
        entity = _entity(key, name)
        label = f"{name} {_short(key)}, {unit}" if unit else f"{name} {_short(key)}"
        recording.log(entity, rr.SeriesLines(names=label), static=True)
        values = rr.Scalars.columns(scalars=vector.values[:, column])
        recording.send_columns(entity, indexes=_columns(ns, slice(None)), columns=values)


def _send_frames(
    recording: Any, store: EpisodeStore, e: Episode, key: str, ns: dict[str, np.ndarray]
) -> None:
    import rerun as rr

    feature = store.features.get(key)
    scale_m = depth_scale_m(feature.units[0]) if feature and feature.units else None
    for rows in _pieces(e.rows(key)):
        files = [picture(e, key, row, "raw" if is_depth(key) else "jpeg", None) for row in rows]
        blobs, kinds = [np.frombuffer(f, np.uint8) for f, _ in files], [kind for _, kind in files]
        if is_depth(key):
            metres = None if scale_m is None else [scale_m] * len(files)
            columns = rr.EncodedDepthImage.columns(blob=blobs, media_type=kinds, meter=metres)
        else:
            columns = rr.EncodedImage.columns(blob=blobs, media_type=kinds)
        span = slice(rows.start, rows.stop)
        recording.send_columns(_entity(key), indexes=_columns(ns, span), columns=columns)


def _blueprint(e: Episode, timeline: Timeline) -> Any:
    """Cameras beside plots, a plot a joint, as the page has them."""
    import rerun.blueprint as rrb

    cameras = [rrb.Spatial2DView(origin=_entity(k), name=_short(k)) for k in e.streams if is_frames(k)]
    plots = []
    for panel in panels(timeline.vectors):
        names = [timeline.vectors[c["stream"]].names[c["column"]] for c in panel["curves"]]
        contents = [_entity(c["stream"], n) for c, n in zip(panel["curves"], names, strict=True)]
        plots.append(rrb.TimeSeriesView(origin="/", contents=contents, name=panel["title"]))
    parts = [rrb.Grid(*part) for part in (cameras, plots) if part]
    return rrb.Blueprint(rrb.Horizontal(*parts), rrb.TimePanel(timeline="time"), collapse_panels=True)


def _joined(parts: list[Path], work: Path) -> Path:
    """One file of several recordings. Every file ends in an index of its own, so rerun's own tool has to join
    them; it holds them in memory meanwhile."""
    if len(parts) == 1:
        return parts[0]
    out = work / "joined.rrd"
    command = [sys.executable, "-m", "rerun_cli", "rrd", "merge", *map(str, parts), "-o", str(out)]
    # it would ask about usage statistics, and note the answer in the user's home
    environment = {**os.environ, "HOME": str(work)}
    done = subprocess.run(command, check=False, capture_output=True, text=True, env=environment)
    if done.returncode or not out.is_file():
        last = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise StoreError(f"rerun could not join the episodes into one file: {last}")
    return out


def _pieces(rows: int) -> Iterator[range]:
    for first in range(0, rows, FRAMES_AT_ONCE):
        yield range(first, min(first + FRAMES_AT_ONCE, rows))


def _columns(ns: dict[str, np.ndarray], rows: slice) -> list[Any]:
    import rerun as rr

    return [rr.TimeColumn(name, duration=t[rows].astype("timedelta64[ns]")) for name, t in ns.items()]


def _short(key: str) -> str:
    return key if key.startswith(ACTION) else key.removeprefix("observation.")


def _entity(key: str, name: str = "") -> str:
    import rerun as rr

    kind, _, camera = _short(key).partition(".") if is_frames(key) else (_short(key), "", "")
    return rr.new_entity_path([p for p in (kind, camera, name) if p])
