"""The policies that a server serves, by name, and how one takes another's place while requests go on."""

from __future__ import annotations

import logging
import re
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from ..hashed import CheckpointError
from ..lerobot.folder import checkpoint_folder
from ..request import ServedPolicy
from .metadata import Metadata, difference
from .protocol import BadRequest

log = logging.getLogger("ulna.serving")

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
RESERVED = ("healthz", "readyz", "metrics", "models")  # paths of the server's own
Load = Callable[[str], ServedPolicy]
Contents = tuple[tuple[str, int, int], ...]  # name, time and size of files


class NoModel(BadRequest):
    """There is no model of this name."""


class Refused(ValueError):
    """A model was not loaded, and what was served before is served on; the message is one sentence."""


@dataclass(frozen=True)
class _Entry:
    policy: ServedPolicy
    source: str = ""
    """The folder that it was loaded from; empty where it was made in this process."""
    seen: Contents = ()
    """What lay in the folder before it was loaded."""
    pending: Contents = ()
    """What lay there at the last look, perhaps half written."""


class Models:
    """The first one has no name to be asked by: it is the default. For any thread.

    load: makes a policy of a folder, warm; None where nothing can be loaded."""

    def __init__(self, policies: Mapping[str, ServedPolicy], load: Load | None = None) -> None:
        if not policies:
            raise ValueError("serve at least one policy")
        for name in policies:
            require_name(name)
        self._entries = {name: _Entry(policy) for name, policy in policies.items()}
        self._load = load
        self._loading = threading.Lock()  # one at a time: each wants memory and processor
        self.default = next(iter(policies))

    @classmethod
    def loaded(cls, folders: Mapping[str, str], load: Load) -> Models:
        """Every one from its folder; what `load` raises."""
        seen = {name: _contents(folder) for name, folder in folders.items()}
        models = cls({name: load(folder) for name, folder in folders.items()}, load)
        for name, folder in folders.items():
            models._entries[name] = replace(models._entries[name], source=folder, seen=seen[name])
        return models

    def __getitem__(self, name: str) -> ServedPolicy:
        """The policy that `name` stands for now; "" is the default. NoModel names those that there are."""
        entry = self._entries.get(name or self.default)
        if entry is None:
            raise NoModel(f"there is no model {name!r:.80} here: there is {', '.join(self._entries)}")
        return entry.policy

    def metadata(self) -> dict[str, Metadata]:
        return {name: entry.policy.metadata for name, entry in list(self._entries.items())}

    def policies(self) -> list[ServedPolicy]:
        """Those that are served now."""
        return [entry.policy for entry in list(self._entries.values())]

    def load(self, name: str, folder: str) -> Metadata:
        """Load `folder` beside what is served, and put it in its place; blocks until it is warm. A new name
        is added. Refused, and nothing changed, where it cannot be loaded or would answer differently from
        what the clients of this name were told."""
        if self._load is None:
            raise Refused("this server cannot load models: it was started without `ulna serve`")
        require_name(name)
        with self._loading:
            seen = _contents(folder)
            try:
                policy = self._load(folder)
            except Exception as error:  # whatever a folder makes a loader do
                sentence = str(error) or type(error).__name__
                raise Refused(f"{name} was not loaded: {sentence}") from error
            before = self._entries.get(name)
            if before is not None and (changed := difference(before.policy.metadata, policy.metadata)):
                raise Refused(
                    f"{folder} cannot take the place of {name}, whose clients were told {changed[0]}: it has "
                    f"{changed[1]}; serve it under a name of its own"
                )
            self._entries[name] = _Entry(policy, folder, seen)
        return policy.metadata

    def changed(self) -> list[str]:
        """The names whose folders hold something else than what was loaded, and have not changed since the
        last call: a folder that is being written is left alone. Each change is named once."""
        names = []
        for name, entry in list(self._entries.items()):
            if not entry.source:
                continue
            now = _contents(entry.source)
            settled = bool(now) and now == entry.pending and now != entry.seen
            self._entries[name] = replace(entry, pending=now, seen=now if settled else entry.seen)
            if settled:
                names.append(name)
        return names

    def source(self, name: str) -> str:
        """The folder that `name` was loaded from."""
        return self._entries[name].source


def require_name(name: str) -> None:
    """ValueError where `name` cannot be a path of the server's address."""
    if not NAME.fullmatch(name) or name in RESERVED:
        raise ValueError(
            f"{name!r:.80} cannot be the name of a model: use letters, digits, dots, dashes and underscores, "
            f"and none of {', '.join(RESERVED)}"
        )


def _contents(folder: str) -> Contents:
    """Of the files in it, or of the one file that it is; none of what is not there, or is being replaced."""
    try:
        path = checkpoint_folder(folder)
        inside = [path] if path.is_file() else path.iterdir()
        files = sorted(p for p in inside if p.is_file() and not p.name.startswith("."))
        return tuple((p.name, p.stat().st_mtime_ns, p.stat().st_size) for p in files)
    except (OSError, CheckpointError):
        return ()
