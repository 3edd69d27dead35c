"""The edits that the page's buttons make in the store, each with the edit that undoes it."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from typing import Any

from ...datasets.edit import LABELS, delete, relabel, restore, trim, write_attrs
from ...datasets.episode import Episode, StoreError
from ...datasets.store import EpisodeStore
from .library import Library

BEFORE_A_LABEL = {"task": "", "weight": 1.0}  # the value of a label that was never set
DONE = "reviewed_s"  # Unix time; set by "keep"


class Changed(StoreError):
    """The episode or the trash has changed since the page showed it."""


class Edits:
    """One edit at a time, under the store's lock."""

    def __init__(self, library: Library) -> None:
        self._library = library
        self._guard = threading.Lock()

    def do(self, edit: Mapping[str, Any]) -> dict[str, Any]:
        """Make an edit. edit: as the page sends it: `do`, `episode` (its folder's name) and the fields that
        this kind of edit needs. Returns `said`, one sentence, and `undo`, an edit. StoreError: another
        process writes, or the edit is not possible. NotThere, Changed. ValueError: `edit` is malformed."""
        kinds = {
            "delete": self._delete,
            "restore": self._restore,
            "trim": self._trim,
            "relabel": self._relabel,
            "review": self._review,
        }
        kind = kinds.get(str(edit.get("do")))
        if kind is None:
            raise ValueError(f"an edit is one of {', '.join(kinds)}")
        with self._guard, self._library.store.writing():
            return kind(edit)

    def _delete(self, edit: Mapping[str, Any]) -> dict[str, Any]:
        e, store = self._find(edit)
        (version,) = delete(store, [e.index])
        return {
            "said": f"Episode {e.index} is in the trash.",
            "undo": {"do": "restore", "version": version.name},
        }

    def _restore(self, edit: Mapping[str, Any]) -> dict[str, Any]:
        version = str(edit.get("version"))
        trash = {t["version"]: t for t in self._library.trash()}
        if version not in trash:
            raise Changed("It is not in the trash any more: it was restored, or the trash was emptied.")
        name = trash[version]["episode"]
        restore(self._library.store, [version])
        e = self._library.episode(name)
        if trash[version]["replaced"]:  # the version that was in its place lies in the trash now
            newer = next(t["version"] for t in self._library.trash() if t["episode"] == name)
            undo: dict[str, Any] = {"do": "restore", "version": newer}
        else:
            undo = {"do": "delete", "episode": name}
        return {"said": f"Episode {e.index} is back.", "undo": undo, "episode": name}

    def _trim(self, edit: Mapping[str, Any]) -> dict[str, Any]:
        e, store = self._find(edit)
        start_s, end_s = _seconds(edit.get("start_s")), _seconds(edit.get("end_s"))
        before, now = trim(store, e.index, start_s, end_s)
        if now == before:
            return {"said": f"All {before} frames lie between the marks: nothing was cut.", "undo": None}
        whole = next(t["version"] for t in self._library.trash() if t["episode"] == e.path.name)
        message = f"Episode {e.index}: {now} of {before} frames kept."
        return {"said": message, "undo": {"do": "restore", "version": whole}, "episode": e.path.name}

    def _relabel(self, edit: Mapping[str, Any]) -> dict[str, Any]:
        e, store = self._find(edit)
        labels = edit.get("labels")
        if not isinstance(labels, dict):
            raise StoreError(f"labels are {', '.join(LABELS)} and their values")
        before = {k: e.attrs.get(k, BEFORE_A_LABEL.get(k)) for k in labels}
        relabel(store, [e.index], labels)
        outcomes = {True: "marked as a success", False: "marked as a failure", None: "not judged"}
        changes = [outcomes[v] if k == "success" else f"now of {k} “{v}”" for k, v in labels.items()]
        undo = {"do": "relabel", "episode": e.path.name, "labels": before}
        return {"said": f"Episode {e.index} is {', '.join(changes)}.", "undo": undo, "episode": e.path.name}

    def _review(self, edit: Mapping[str, Any]) -> dict[str, Any]:
        e, store = self._find(edit)
        reviewed = bool(edit.get("reviewed", True))
        write_attrs(e.path, {DONE: round(time.time(), 3) if reviewed else None})
        store.refresh()
        undo = {"do": "review", "episode": e.path.name, "reviewed": not reviewed}
        message = f"Episode {e.index} is {'reviewed and kept' if reviewed else 'to be reviewed'}."
        return {"said": message, "undo": undo, "episode": e.path.name}

    def _find(self, edit: Mapping[str, Any]) -> tuple[Episode, EpisodeStore]:
        """(The episode as it is now, the store). Changed: `edit` says which rows the page showed, and the
        episode has others now. Call it under the lock."""
        e = self._library.episode(str(edit.get("episode")))
        if edit.get("content") not in (None, e.content):
            raise Changed(f"Episode {e.index} was changed meanwhile: look at it again before you edit it.")
        return e, self._library.store


def _seconds(value: Any) -> float | None:
    if value is None or (isinstance(value, int | float) and not isinstance(value, bool)):
        return value
    raise ValueError(f"a time is a number of seconds, not {value!r}")
