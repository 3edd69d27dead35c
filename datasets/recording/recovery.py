"""What a killed recorder left: made into episodes when the store is next opened.

Every step may itself be killed and is repeated by the next opening: rows are replayed by their sequence
number, the folder of an episode is finished in place, and it moves into `episodes/` by one rename. Everything
is synced before what it was made of goes: what a power cut left, a second one must not take."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

from ..layout import EPISODES, IN_PROGRESS, to_trash
from . import mending
from .drain import Drain
from .finishing import KILLED, finish_cut_off
from .log import UnreadableLog
from .ring import POINTER, remove_ring, ring_of


def recover(store: Path) -> tuple[list[Path], list[str]]:
    """Call with the store's lock held. (episodes that came back, a sentence for each folder that could not be
    read)."""
    folder, episodes = store / IN_PROGRESS, store / EPISODES
    found: list[Path] = []
    problems: list[str] = []
    for path in folder.glob(f"{mending.PREFIX}*"):
        try:
            mending.conclude(path)
        except OSError as error:
            return found, [f"{path}, left by a recovery, cannot be put away: {_why(error)}"]
    try:
        ring = ring_of(folder)
    except (OSError, ValueError) as error:
        # nothing is finished without it: what it holds belongs to the episodes that wait here
        problems.append(
            f"{store}: the shared memory that a killed recorder filled cannot be read: {error}; it stays until it can be, until this "
            f"computer is started again, or until you give it up by removing {folder / POINTER}"
        )
        return found, problems
    if ring is not None:
        drain = Drain(store, ring, power=True)
        try:
            found += drain.run_dry(interrupted=KILLED)
            remove_ring(folder)
        except (OSError, ValueError) as error:
            problems.append(f"{store}: what a killed recorder still held cannot be written: {_why(error)}")
        finally:
            drain.close()
            ring.close()
        if problems:
            return found, problems
    for path in sorted(folder.iterdir()):
        if path.name.startswith(".discarded-"):
            shutil.rmtree(path, ignore_errors=True)
        elif path.name.startswith(".edit-"):
            try:
                conclude_edit(path)
            except OSError as error:
                problems.append(f"{path}, left by an edit, cannot be put away: {_why(error)}")
        elif path.is_dir() and not path.name.startswith("."):
            try:
                found += finish_cut_off(path, episodes, KILLED)
            except FileNotFoundError as error:
                problems.append(
                    f"{path} has no log of a recording ({error.filename}): look at it, and remove it"
                )
            except (OSError, UnreadableLog) as error:
                problems.append(f"{path} cannot be recovered: {_why(error)}")
    return found, problems


def conclude_edit(work: Path) -> None:
    """`work`, `in-progress/.edit-<token>-<episode>`, holds the new version of an episode until the swap, and
    the old one after it: the new one is taken away, or put where none is; the old one goes to the trash. See
    edit.py."""
    _, token, name = work.name.removeprefix(".").split("-", 2)
    store = work.parent.parent
    try:
        attrs = json.loads((work / "zarr.json").read_text())["attributes"]
    except FileNotFoundError:
        shutil.rmtree(work, ignore_errors=True)  # the new version was not finished, so the swap never came
        return
    except (ValueError, KeyError):
        attrs = {}  # a version that cannot be read was not written by the edit: keep it
    if attrs.get("edit") != token:
        to_trash(store, work, name)
    elif (store / EPISODES / name).exists():
        shutil.rmtree(work, ignore_errors=True)
    else:
        os.rename(work, store / EPISODES / name)


def _why(error: Exception) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error)
