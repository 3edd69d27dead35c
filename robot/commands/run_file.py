"""The config file of a training: every option and every field of the recipe by its name, and phases.

A run is told by layers, of which a later one wins: the file, one of its phases, the command line."""

from __future__ import annotations

import tomllib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .errors import UsageError

PHASES_FILE = "phases.toml"  # in the folder of a run of several phases
NOT_IN_A_FILE = ("config", "resume")


@dataclass(frozen=True)
class Layer:
    source: str
    """The file, for complaints; empty for the command line."""
    options: Mapping[str, Any]
    """Options of the command by the names of its `Args`."""
    fields: Mapping[str, Any]
    """Fields of the recipe by their dotted names, or short ones that are clear."""


def read_run(path: Path, own: Collection[str]) -> tuple[Layer, list[Layer]]:
    """(the file's own options and fields, those of its phases). own: the options of the command. UsageError
    where it is no such file; what no option or field is called so is only known with the recipe."""
    try:
        values = tomllib.loads(path.read_text())
    except OSError as error:
        raise UsageError(f"cannot read the config file {path}: {error.strerror}") from None
    except (ValueError, RecursionError) as error:  # of TOML, or of UTF-8
        raise UsageError(f"the config file {path} is not TOML: {error}") from None
    phases = values.pop("phase", [])
    if not isinstance(phases, list) or not all(isinstance(p, dict) for p in phases):
        raise UsageError(f"{path}: phases are written [[phase]], a table each")
    return _layer(str(path), values, own), [
        _layer(f"{path}, phase {i + 1}", phase, own) for i, phase in enumerate(phases)
    ]


def _layer(source: str, values: Mapping[str, Any], own: Collection[str]) -> Layer:
    from ...policies.train.config import flat

    options = {k.replace("-", "_"): v for k, v in values.items() if k.replace("-", "_") in own}
    if wrong := [k for k in NOT_IN_A_FILE if k in options]:
        raise UsageError(f"{source}: {wrong[0]} belongs on the command line")
    fields = flat({k: v for k, v in values.items() if k.replace("-", "_") not in own})
    return Layer(source, options, {k.replace("-", "_"): _field(source, v) for k, v in fields.items()})


def _field(source: str, value: Any) -> Any:
    """A value as the recipe has it: parts in a list are named as in recipe.json."""
    from ...policies.parts import recipe_from_json

    if isinstance(value, list) and any(isinstance(v, dict) and "part" in v for v in value):
        try:
            return recipe_from_json(value)
        except ValueError as error:
            raise UsageError(f"{source}: {error}") from None
    return value


def options_of(words: Sequence[str], flags: Collection[str], several: Collection[str]) -> dict[str, Any]:
    """The words of a command line by option: flags are True, and options of `several` values lists, as is
    `recipe`, the words that belong to no option."""
    options: dict[str, Any] = {}
    name = ""
    for word in words:
        if word.startswith("--"):
            name = word[2:].replace("-", "_")
            options[name] = True if name in flags else []
            name = "" if name in flags else name
        elif not name:
            options.setdefault("recipe", []).append(word)
        else:
            options[name].append(word)
            name = name if name in several else ""
    return options


def words_of(layers: Sequence[Layer]) -> list[str]:
    """One command line of all layers."""
    options: dict[str, Any] = {}
    for layer in layers:
        options |= layer.options
    words = [str(w) for w in _several(options.pop("recipe", []))]
    for name, value in options.items():
        option = f"--{name.replace('_', '-')}"
        if isinstance(value, bool):
            words += [option] if value else []
        elif name == "data":
            words += [option, *map(str, _several(value))]
        elif isinstance(value, Mapping):
            words += [option, ",".join(f"{k}={v}" for k, v in value.items())] if value else []
        elif value != []:
            words += [option, ",".join(map(str, _several(value)))]
    return words


def _several(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]
