"""Recordings in progress whose files were damaged after they were written: all that is whole is kept, the
rest is counted.

A log that merely ends too soon is what every kill leaves, and `InProgress.resume` cuts it. Where whole rows
follow what is not, cutting would destroy them: the recording is made anew, beside, from all that can be read,
and takes its place by one step. The files as they were found lie in `DIR/damaged` from then on."""

from __future__ import annotations

import logging
import os
import shutil
import time
from dataclasses import replace
from pathlib import Path

from ..durable import exchange, sync_folders, sync_tree
from ..flags import AFTER_DROP
from ..layout import DAMAGED
from .in_progress import InProgress
from .log import END, SAMPLES, DamagedLog, Log, UnreadableLog

PREFIX = ".mending-"
log = logging.getLogger("ulna.datasets")


def resume(folder: Path, power: bool = False) -> InProgress:
    """As `InProgress.resume`, mended before if need be."""
    try:
        return InProgress.resume(folder, power)
    except DamagedLog:
        mend(folder)
        return InProgress.resume(folder, power)


def mend(folder: Path) -> None:
    """The recording `folder` of `in-progress`, made anew from what is whole. How much is lost is noted in the
    episode's attribute `damaged`, and each stream's next row is marked AFTER_DROP."""
    found = Log.read(folder)
    work = folder.with_name(PREFIX + folder.name)
    shutil.rmtree(work, ignore_errors=True)
    said = _lost(found)
    made = InProgress.create(work, found.streams, {**found.meta, "damaged": said})
    try:
        marked = [False] * len(found.streams)
        last = found.end
        for begin, end, kind, seq, payload in found.records(past_damage=True):
            if begin != last:
                marked = [True] * len(marked)
            last = end
            if kind == END:
                made.note_end(seq, payload)
            elif kind == SAMPLES:
                kept = []
                for s in found.samples(payload):
                    frame = found.frame(s) if found.streams[s.stream].kind else s.data
                    if frame is not None:
                        flags = s.flags | AFTER_DROP if marked[s.stream] else s.flags
                        kept.append(replace(s, flags=flags, data=frame))
                    marked[s.stream] = frame is None
                made.append(seq, kept)
    finally:
        made.close()
    sync_tree(work)
    if not exchange(work, folder):
        _put_aside(folder)  # a kill between these two: see `conclude`
        os.rename(work, folder)
    else:
        _put_aside(work)
    sync_folders(folder.parent)
    log.warning("%s was damaged: %s; its files as they were are in %s", folder, said, _aside(folder))


def conclude(work: Path) -> None:
    """`work`, `in-progress/.mending-<id>`, was left by one who was killed: what is in it is half made, the
    mended recording that has no place yet, or the damaged one that gave its place up. OSError."""
    folder = work.with_name(work.name.removeprefix(PREFIX))
    try:
        mended = "damaged" in Log.read(work).meta
    except (FileNotFoundError, UnreadableLog):
        shutil.rmtree(work)
        return
    if not mended:
        _put_aside(work)
    elif folder.exists():
        shutil.rmtree(work)
    else:
        os.rename(work, folder)


def _lost(found: Log) -> str:
    """What cannot be read, in words."""
    entries, frames = 0, [0] * len(found.streams)
    last, last_seq = found.end, None
    for begin, end, kind, seq, payload in found.records(past_damage=True):
        if begin != last:
            entries += 1 if last_seq is None else max(1, seq - last_seq - 1)
        last, last_seq = end, seq
        if kind == SAMPLES:
            for s in found.samples(payload):
                frames[s.stream] += found.streams[s.stream].kind is not None and found.frame(s) is None
    lost = [f"{entries} {'entry' if entries == 1 else 'entries'} of its log"] if entries else []
    named = zip(frames, found.streams, strict=True)
    lost += [f"{n} {'frame' if n == 1 else 'frames'} of {s.key}" for n, s in named if n]
    return f"{' and '.join(lost)} cannot be read"


def _put_aside(found: Path) -> None:
    aside = _aside(found)
    aside.parent.mkdir(exist_ok=True)
    os.rename(found, aside.with_name(f"{aside.name}.{time.time_ns()}") if aside.exists() else aside)
    sync_folders(aside.parent, aside.parent.parent)


def _aside(found: Path) -> Path:
    return found.parent.parent / DAMAGED / found.name.removeprefix(PREFIX)
