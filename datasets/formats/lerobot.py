"""Imports LeRobot datasets: format v2.0 and v2.1 (one parquet and one video per episode) and v3.0 (many
episodes per file).

Reads the files with pyarrow and PyAV; LeRobot itself is not imported. Every row keeps its recorded timestamp,
and has a video frame of its own, the one at its time; where that is impossible the import says so. All
episodes are looked through before anything is written, so that all that is wrong is told at once."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from pathlib import Path

import numpy as np

from ..episode import StoreError
from ..features import is_frames
from ..making import making
from ..recording.writer import EpisodeWriter
from ..store import EpisodeStore
from ..units import Restate, plain
from ..video import resize, still_frames, video_frames
from .broken import Broken
from .importing import add_provenance
from .lerobot_export import TIMES
from .lerobot_folder import EpisodeSource, LeRobotFolder
from .lerobot_reader import LeRobotReader, place_of, success_of, ulna_columns
from .lerobot_schema import schema_of
from .naming import Naming


def import_lerobot(
    src: str | Path,
    dst: str | Path,
    image_size: tuple[int, int] | None = None,
    episodes: Sequence[int] | None = None,
    progress: Callable[[int, int], None] = lambda count, total: None,
    naming: Naming | None = None,
    skip_broken: bool = False,
    restate: Restate = plain,
) -> EpisodeStore:
    """Bring the LeRobot folder `src` into a new store at `dst`, which appears whole or not at all.

    image_size: (height, width) to resize images to by area; as recorded by default. episodes: indices, all by
    default. naming: what its features become, and what stays out. skip_broken: leave episodes out that cannot
    be imported, instead of failing. restate: what its vectors are to be called and measured in; `.pos` drops
    from names in any case. Kept: the numeric observations, images, 16-bit depth, actions, tasks,
    success where it is recorded; t_capture_ns is the timestamp column (LeRobot writes frame_index / fps
    unless the recorder knew better). What is not kept, what was assumed and what stayed out is listed in the
    store's provenance. Raises StoreError that tells everything that is wrong."""
    src, dst = Path(src), Path(dst)
    folder = LeRobotFolder(src)
    sources = folder.episodes([n for n, f in folder.features.items() if f.get("dtype") == "video"])
    if episodes is not None:
        if unknown := sorted(set(episodes) - {s.index for s in sources}):
            raise StoreError(f"{src} has no episode {unknown[0]}; it has {len(sources)}")
        sources = [s for s in sources if s.index in set(episodes)]
    schema = schema_of(folder, sources, naming or Naming(), image_size)
    restated = restate(schema.features, folder.robot)
    features = restated.features(schema.features)
    reader = LeRobotReader(folder, schema, restated, folder.tasks(), image_size)
    broken = Broken(len(sources), skip_broken)
    for source in sources:
        try:
            reader.require_whole(source)
        except StoreError as error:
            broken.add(source.index, error)
    broken.require()
    with making(dst) as work:
        provenance = {
            "imported_from": str(src),
            "format": f"lerobot v{folder.version[0]}.{folder.version[1]}",
            **schema.notes,
            **restated.notes,
        }
        store = EpisodeStore.create(work, features, folder.fps, folder.robot, provenance)
        with EpisodeWriter(store) as writer:
            for index, source in enumerate(sources):
                try:
                    if source.index not in broken.errors:
                        _write(reader, source, writer)
                except StoreError as error:  # in what only decoding shows
                    broken.add(source.index, error)
                progress(index + 1, len(sources))
        broken.require()
        if broken.errors:
            add_provenance(work, {"stayed_out": broken.stayed_out()})
    return EpisodeStore.open(dst)


def _write(reader: LeRobotReader, source: EpisodeSource, writer: EpisodeWriter) -> None:
    """Write the episode. After a StoreError it is not in the store."""
    place, schema = place_of(source), reader.schema
    table = reader.table(source, place, with_stills=True)
    times = reader.times(table, source, place)
    vectors = reader.vectors(table, place)
    notes = []
    images: dict[str, Generator[np.ndarray]] = {}
    for key in (k for k in schema.features if is_frames(k)):
        (name,) = schema.parts[key]
        # what is resized may differ from episode to episode
        picture = schema.pictures[name]
        if name in schema.videos:
            path, start, stop = source.videos[name]
            count = reader.frame_count(source, name, times, place)
            if count is not None and count > len(times):
                notes.append(f"the video of {name} has {count} frames for {len(times)} rows: others are lost")
            shift = reader.shift(source, name, times, place)
            if shift:
                notes.append(
                    f"the timestamps are {shift:g} s later than the video of {name}; it has as many "
                    "frames as there are rows, and each row gets the frame of its number"
                )
            own = reader.header(path, place)[0] if reader.image_size else picture
            images[key] = video_frames(path, start + times - shift, stop, reader.folder.fps, place, own)
        else:
            images[key] = still_frames(table[name], place, None if reader.image_size else picture)
    extras = ulna_columns(table, schema, reader.restated, place) if TIMES in table.column_names else None
    attrs = reader.attrs(source, table, place)
    if notes:
        attrs["notes"] = [*notes, *(attrs.get("notes") or ())]
    writer.start({k: v for k, v in attrs.items() if k != "success"})
    try:
        for row, t_ns in enumerate(np.round(times * 1e9).astype(np.int64).tolist()):
            values = {k: v[row] for k, v in vectors.items()}
            for key, frames in images.items():
                values[key] = resize(next(frames), reader.image_size)
            if extras is None:
                writer.tick(values, dict.fromkeys(values, (t_ns, t_ns)))
            else:
                writer.tick({**values, **extras.extra(row)}, extras.times(row), extras.flags(row))
        writer.end({"success": source.attrs.get("success", success_of(table))})
    finally:
        writer.discard()
        for frames in images.values():
            frames.close()  # its video stays open otherwise
