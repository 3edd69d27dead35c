"""Directors by name: `--director Retry,Done --Retry.attempts 3`. Installed packages offer theirs in the entry
point group `ulna.directors`."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import is_dataclass
from typing import Any

from ...drivers.config import parse, require_known
from ...drivers.plugins import PluginError, lookup
from .backup import Backup
from .director import Director
from .done import Done
from .progress import Progress
from .retry import Retry
from .spoken import Spoken
from .steps import Steps
from .supported import Supported

DIRECTORS: dict[str, type[Any]] = {
    d.__name__: d for d in (Retry, Done, Steps, Spoken, Backup, Supported, Progress)
}
PLUGINS = "ulna.directors"


def directors_named(names: Sequence[str], fields: Mapping[str, str]) -> list[Director]:
    """The directors `names`, which may be `package.module:Name`, with fields by `NAME.field`. ValueError or
    DeviceError in one sentence: there is no such director or field, or its value does not fit."""
    stray = [f for f in fields if f.partition(".")[0] not in names]
    if stray:
        raise ValueError(
            f"--{stray[0]} belongs to no director of --director, which names {', '.join(names) or 'none'}"
        )
    return [
        _director(name, {f.partition(".")[2]: v for f, v in fields.items() if f.startswith(f"{name}.")})
        for name in names
    ]


def _director(name: str, fields: Mapping[str, str]) -> Director:
    part = lookup(PLUGINS, DIRECTORS, name)
    if part is None:
        require_known("director", name, DIRECTORS, "; any other is named by package.module:Name")
    if not (is_dataclass(part) and callable(getattr(part, "direct", None)) and isinstance(part, type)):
        raise PluginError(f"{name} is no director: it is a dataclass with open, close, reset and direct")
    director: Any = parse(part, {k: _plain(v) for k, v in fields.items()}, f"--director {name}")
    return director


def _plain(text: str) -> Any:
    """A number or true or false as TOML has them, else the words as they are."""
    try:
        value = tomllib.loads(f"v = {text}")["v"]
    except tomllib.TOMLDecodeError:
        return text
    return value if isinstance(value, int | float) else text
