"""What a training was told, by the names of the options of `ulna train`: written into every checkpoint as
`config.toml`, and what a resumed run is compared by."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..parts import recipe_from_json, recipe_to_json
from ..recipe import Recipe
from .data import DataOptions, TrainingData, batch_options

CONFIG_FILE = "config.toml"
OPTION = {"tolerance_s": "tolerance", "cache_bytes": "cache_gb"}  # field of DataOptions -> option
NOT_SEEN = ("data", "device", "track", "workers", "cache", "cache_gb")  # they may differ on another machine
NOT_OPTIONS = ("name", "paper", "part", "package")  # of a recipe as a whole
REASONS = {
    "data": "the episodes to train on (--data, --episodes) are not those that it began with",
    "frames": "the ticks to train on are not those that it began with",
    "weighting": "the weights of the episodes are not those that it began with",
    "words": "the labels that say what the policy is told are not those that it began with",
    "start": "the checkpoint of --training.start is not the one that it began with",
}


def run_config(
    recipe: Recipe,
    data: TrainingData,
    augment: Sequence[str],
    seed: int,
    device: str | None,
    track: Sequence[str],
    called: str = "",
) -> dict[str, Any]:
    """All of a run but its folder, as `--config` reads it; what is None is left out. called: how the recipe
    is found, where that is not by its name."""
    options = {OPTION.get(k, k): v for k, v in asdict(data.options).items() if k != "cache_dir"}
    if data.options.cache_bytes is not None:
        options["cache_gb"] = data.options.cache_bytes / (1 << 30)
    config = {
        "recipe": called or recipe.name,
        "data": data.paths,
        "observe": data.keys,
        **options,
        "augment": list(augment),
        "seed": seed,
        "device": device or None,
        "track": list(track) or ["none"],
        **_fields(recipe_to_json(recipe)),
    }
    return _present(config)


def write_config(out: Path, config: Mapping[str, Any]) -> None:
    """Into the folder `out`."""
    write_atomically(out / CONFIG_FILE, to_toml(config))


def write_atomically(path: Path, text: str) -> None:
    """By one rename: there is the whole file or none."""
    new = path.with_name(f".{path.name}")
    new.write_text(text)
    os.replace(new, path)


def flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """By dotted name: `{"backbone": {"part": "UNet1D", "groups": 8}}` → `{"backbone": "UNet1D",
    "backbone.groups": 8}`."""
    values: dict[str, Any] = {}
    for key, value in config.items():
        if key == "part" and prefix:
            values[prefix[:-1]] = value
        elif isinstance(value, Mapping):
            values |= flat(value, f"{prefix}{key}.")
        elif not (key == "package" and "part" in config):
            values[prefix + key] = value
    return values


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What differs between two identities of runs (see `loop.train`): `--seed was 0, not 1`, or, where all
    options agree, a sentence on the data."""
    was, given = _options(before), _options(now)
    if changes := changed(was, given):
        return changes
    return [reason for key, reason in REASONS.items() if before.get(key, "") != now[key]]


def changed(was: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """The options, by dotted name, that differ: `--seed was 0, not 1`."""
    if was.get("recipe") != now["recipe"]:
        return [f"the recipe was {was.get('recipe')}, not {now['recipe']}"]
    names: list[str] = []
    for name in now:
        # the fields of another part differ of themselves
        if was.get(name) != now[name] and not any(name.startswith(f"{n}.") for n in names):
            names.append(name)
    return [f"--{n.replace('_', '-')} was {_text(was.get(n))}, not {_text(now[n])}" for n in names]


def seen(config: Mapping[str, Any]) -> dict[str, Any]:
    """Of `run_config`, those options by dotted name that decide what is computed."""
    return {k: v for k, v in flat(config).items() if k not in NOT_SEEN}


def _options(identity: Mapping[str, Any]) -> dict[str, Any]:
    """Of an identity, those fields that are options, by dotted name; what an older one lacks has its
    default."""
    try:
        recipe = recipe_to_json(recipe_from_json(identity["recipe"]))
    except ValueError:  # of another version
        recipe = identity["recipe"]
    options: dict[str, Any] = {**batch_options(DataOptions()), **identity["options"]}
    return {
        "recipe": recipe["name"],
        "seed": identity["seed"],
        "augment": identity["augment"],
        "observe": identity["observation"],
        **{OPTION.get(k, k): v for k, v in options.items()},
        **flat(_fields(recipe)),
    }


def _fields(recipe: Mapping[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in recipe.items() if k not in NOT_OPTIONS}


def _present(value: Any) -> Any:
    """Without what is None, which TOML cannot say."""
    if isinstance(value, Mapping):
        return {k: _present(v) for k, v in value.items() if v is not None}
    return [_present(v) for v in value] if isinstance(value, list | tuple) else value


def _text(value: Any) -> str:
    """As one would write it on the command line."""
    if isinstance(value, list | tuple):
        return " ".join(map(_text, value)) or "nothing"
    if isinstance(value, Mapping) and "part" in value:
        return str(recipe_from_json(dict(value)))
    if isinstance(value, Mapping):
        return ",".join(f"{k}={_text(v)}" for k, v in value.items()) or "nothing"
    if isinstance(value, bool):
        return str(value).lower()
    return "nothing" if value in (None, "") else str(value)


def to_toml(values: Mapping[str, Any]) -> str:
    """A document that `tomllib` reads back as `values`: nested mappings with text keys, lists, texts, numbers
    and truth values."""
    return "\n".join(_table(values, ())).lstrip("\n") + "\n"


def _table(values: Mapping[str, Any], path: tuple[str, ...]) -> list[str]:
    """Plain values first: what follows a table's head belongs to it."""
    tables = {k: v for k, v in values.items() if isinstance(v, Mapping) or _are_tables(v)}
    lines = [f"{_key(k)} = {_value(v)}" for k, v in values.items() if k not in tables]
    for key, value in tables.items():
        head = (*path, _key(key))
        name = ".".join(head)
        for table in [value] if isinstance(value, Mapping) else value:
            lines += ["", f"[{name}]" if table is value else f"[[{name}]]", *_table(table, head)]
    return lines


def _are_tables(value: Any) -> bool:
    return isinstance(value, list | tuple) and bool(value) and all(isinstance(v, Mapping) for v in value)


def _key(key: str) -> str:
    return key if re.fullmatch(r"[A-Za-z0-9_-]+", key) else _value(key)


def _value(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_key(k)} = {_value(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_value, value)) + "]"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):  # JSON's escapes are TOML's, which will have DEL escaped, too
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, int | float):
        return repr(value)
    raise TypeError(f"TOML has no {type(value).__name__}")
