"""Recovery: makes episodes of what a killed recorder left, when the store is next opened.

Recovery itself may be killed at any step; the next opening repeats that step. Rows that were replayed before
are known by their sequence number, an episode is finished in its folder, and the folder moves into
`episodes/` by one rename. New files are synced to disk before those that they were made of are removed, so
that a second power cut cannot take what survived the first."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from .. import inside
from ..layout import EPISODES, IN_PROGRESS, to_trash
from . import mending
from .drain import Drain
from .finishing import KILLED, finish_cut_off
from .log import UnreadableLog
from .ring import POINTER, remove_ring, ring_of


def recover(store: Path) -> tuple[list[Path], list[str]]:
    """Recover all that can be recovered. Call with the store's lock held.

    Returns (the folders of the episodes that came back, one sentence for each thing that could not be
    recovered)."""
    folder = store / IN_PROGRESS
    episodes: list[Path] = []
    problems: list[str] = []
    try:
        inside.require_own(store, folder)
    except OSError as error:
        problems.append(
            f"{folder} holds what no recorder makes: {error.strerror}; nothing of it is touched: look at "
            f"{error.filename}, and remove it"
        )
        return episodes, problems
    for path in folder.glob(f"{mending.PREFIX}*"):
        try:
            mending.conclude(path)
        except OSError as error:
            return episodes, [f"{path}, left by a recovery, cannot be put away: {_why(error)}"]
    try:
        ring = ring_of(folder)
    except (OSError, ValueError) as error:
        # finish no episode yet: rows in the ring belong to the episodes that wait here
        problems.append(
            f"{store}: the shared memory that a killed recorder filled cannot be read: {error}; it stays "
            "until it can be, until this computer is started again, or until you give it up by removing "
            f"{folder / POINTER}"
        )
        return episodes, problems
    if ring is not None:
        drain = Drain(store, ring, power=True)
        try:
            episodes += drain.run_dry(KILLED)
            remove_ring(folder)
        except (OSError, ValueError) as error:
            problems.append(f"{store}: what a killed recorder still held cannot be written: {_why(error)}")
        finally:
            drain.close()
            ring.close()
        if problems:
            return episodes, problems
    for path in sorted(folder.iterdir() if folder.is_dir() else ()):
        if path.name.startswith(".discarded-"):
            shutil.rmtree(path, ignore_errors=True)
        elif path.name.startswith(".edit-"):
            try:
                conclude_edit(path)
            except OSError as error:
                problems.append(f"{path}, left by an edit, cannot be put away: {_why(error)}")
        elif path.is_dir() and not path.name.startswith("."):
            try:
                episodes += finish_cut_off(path, store / EPISODES, KILLED)
            except FileNotFoundError as error:
                problems.append(
                    f"{path} has no log of a recording ({error.filename}): look at it, and remove it"
                )
            except (OSError, UnreadableLog) as error:
                problems.append(f"{path} cannot be recovered: {_why(error)}")
    return episodes, problems


def conclude_edit(work: Path) -> None:
    """Conclude an edit (see edit.py) that ended or was killed. Until the swap, `work`, which is
    `in-progress/.edit-<token>-<episode>`, holds the new version of an episode: it is removed, or put in place
    if the episode is missing. After the swap it holds the old version, which goes to the trash."""
    _, token, name = work.name.removeprefix(".").split("-", 2)
    store = work.parent.parent
    try:
        attrs = dict(inside.read_json(store, work / "zarr.json")["attributes"])
    except FileNotFoundError:
        shutil.rmtree(work, ignore_errors=True)  # the new version was not finished, so the swap never came
        return
    except (ValueError, KeyError, TypeError):
        attrs = {}  # the edit did not write a version that cannot be read: keep it
    if attrs.get("edit") != token:
        to_trash(store, work, name)
    elif (store / EPISODES / name).exists():
        shutil.rmtree(work, ignore_errors=True)
    else:
        os.rename(work, store / EPISODES / name)


def _why(error: Exception) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error)
