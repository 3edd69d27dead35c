"""Recordings in progress whose files were damaged after they were written: every whole row is kept, and the
lost ones are counted.

Every kill leaves a log that ends too soon; `InProgress.resume` cuts off such an end. Where whole rows follow
damaged bytes, cutting would destroy them. Then the recording is copied, from all that can be read, into a
folder beside it, and the copy takes its place in one step. The damaged files move to `DIR/damaged`."""

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
    """`InProgress.resume`, after mending the recording if its log is damaged."""
    try:
        return InProgress.resume(folder, power)
    except DamagedLog:
        mend(folder)
        return InProgress.resume(folder, power)


def mend(folder: Path) -> None:
    """Replace the recording `folder` of `in-progress` by a copy of its whole rows. The episode's attribute
    `damaged` says how much is lost; in each stream the first row after a loss is marked AFTER_DROP."""
    original = Log.read(folder)
    work = folder.with_name(PREFIX + folder.name)
    shutil.rmtree(work, ignore_errors=True)
    loss = _loss(original)
    copy = InProgress.create(work, original.streams, {**original.meta, "damaged": loss})
    try:
        after_loss = [False] * len(original.streams)
        last = original.end
        for begin, end, kind, seq, payload in original.records(past_damage=True):
            if begin != last:
                after_loss = [True] * len(after_loss)
            last = end
            if kind == END:
                copy.note_end(seq, payload)
            elif kind == SAMPLES:
                samples = []
                for s in original.samples(payload):
                    frame = original.frame(s) if original.streams[s.stream].kind else s.data
                    if frame is not None:
                        flags = s.flags | AFTER_DROP if after_loss[s.stream] else s.flags
                        samples.append(replace(s, flags=flags, data=frame))
                    after_loss[s.stream] = frame is None
                copy.append(seq, samples)
    finally:
        copy.close()
    sync_tree(work)
    if not exchange(work, folder):
        _put_aside(folder)  # a kill between these two: see `conclude`
        os.rename(work, folder)
    else:
        _put_aside(work)
    sync_folders(folder.parent)
    log.warning("%s was damaged: %s; its files as they were are in %s", folder, loss, _aside(folder))


def conclude(work: Path) -> None:
    """Conclude a mending that was killed. `work`, `in-progress/.mending-<id>`, is an unfinished copy
    (removed), a finished copy (put in place, if the place is free), or the damaged original (moved to
    `DIR/damaged`). Raises OSError."""
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


def _loss(original: Log) -> str:
    """How much of a recording cannot be read, in words."""
    entries, frames = 0, [0] * len(original.streams)
    last, last_seq = original.end, None
    for begin, end, kind, seq, payload in original.records(past_damage=True):
        if begin != last:
            entries += 1 if last_seq is None else max(1, seq - last_seq - 1)
        last, last_seq = end, seq
        if kind == SAMPLES:
            for s in original.samples(payload):
                frames[s.stream] += original.streams[s.stream].kind is not None and original.frame(s) is None
    phrases = [f"{entries} {'entry' if entries == 1 else 'entries'} of its log"] if entries else []
    counts = zip(frames, original.streams, strict=True)
    phrases += [f"{n} {'frame' if n == 1 else 'frames'} of {s.key}" for n, s in counts if n]
    return f"{' and '.join(phrases)} cannot be read"


def _put_aside(folder: Path) -> None:
    """Move damaged files to `DIR/damaged`."""
    aside = _aside(folder)
    aside.parent.mkdir(exist_ok=True)
    os.rename(folder, aside.with_name(f"{aside.name}.{time.time_ns()}") if aside.exists() else aside)
    sync_folders(aside.parent, aside.parent.parent)


def _aside(folder: Path) -> Path:
    return folder.parent.parent / DAMAGED / folder.name.removeprefix(PREFIX)
