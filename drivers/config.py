"""A table of a robot's TOML file as a driver's `Config` dataclass. Names, types and ranges are checked.

A field's range and unit are in its metadata: `watchdog_s: float = setting(0.5, 0.05, 5, "s")`.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, field, fields
from types import UnionType
from typing import Any, get_args, get_origin, get_type_hints

from .arm import DeviceError


def setting(
    default: Any = MISSING, low: float | None = None, high: float | None = None, unit: str = ""
) -> Any:
    """A dataclass field: a number in `[low, high]`, in `unit`. Without `default` the file must give it."""
    metadata = {"low": low, "high": high, "unit": unit}
    return field(metadata=metadata) if default is MISSING else field(default=default, metadata=metadata)


def parse[T](cls: type[T], table: Mapping[str, Any], where: str) -> T:
    """An instance of the dataclass `cls` with the values in `table`. where: file and table, for messages.
    DeviceError names the field that is unknown, missing or wrong."""
    if not isinstance(table, Mapping):
        raise DeviceError(f"{where} must be a table")
    hints = get_type_hints(cls)
    fields_by_name = {f.name: f for f in fields(cls)}  # type: ignore[arg-type]
    values: dict[str, Any] = {}
    for name, value in table.items():
        require_known(f"field in {where}:", name, fields_by_name)
        metadata = fields_by_name[name].metadata
        values[name] = _value(value, hints[name], metadata, f"{where}: {name}")
    for name, f in fields_by_name.items():
        if name not in values and f.default is MISSING and f.default_factory is MISSING:
            raise DeviceError(f"{where} lacks {name}")
    return cls(**values)


def _value(value: Any, kind: Any, metadata: Mapping[str, Any], where: str) -> Any:
    types = get_args(kind) if get_origin(kind) is UnionType or isinstance(kind, UnionType) else (kind,)
    for one in types:
        if one is float and isinstance(value, int) and not isinstance(value, bool):
            try:
                value = float(value)
            except OverflowError:  # hundreds of digits
                value = math.inf if value > 0 else -math.inf
        base = get_origin(one) or one
        if base is tuple and isinstance(value, list):
            value = tuple(value)
        if isinstance(value, base) and not (isinstance(value, bool) and base is not bool):
            break
    else:
        names = " or ".join(getattr(k, "__name__", str(k)) for k in types if k is not type(None))
        raise DeviceError(f"{where} is {value!r}, it must be of type {names}")
    if any(
        isinstance(v, float) and not math.isfinite(v)
        for v in (value if isinstance(value, tuple) else (value,))
    ):
        raise DeviceError(f"{where} is {value}, it must be finite")
    low, high = metadata.get("low"), metadata.get("high")
    if isinstance(value, int | float) and low is not None and high is not None and not low <= value <= high:
        unit = f" {metadata['unit']}" if metadata.get("unit") else ""
        raise DeviceError(f"{where} is {value}, it must lie in {low}..{high}{unit}")
    return value


def require_known(what: str, name: str, choices: Iterable[str], more: str = "") -> None:
    """DeviceError with the nearest names unless `name` is one of `choices`. what, more: kind of thing, and
    the end of the message."""
    choices = sorted(choices)
    if name not in choices:
        near = difflib.get_close_matches(name, choices, n=2, cutoff=0.4)
        hint = f"did you mean {' or '.join(near)}?" if near else f"there is {', '.join(choices) or 'none'}"
        raise DeviceError(f"there is no {what} {name!r}: {hint}{more}")
