"""Every execution strategy by its name, on the command line and in studies: `--strategy NAME
--strategy.FIELD value`."""

from __future__ import annotations

import math
import types
import typing
from collections.abc import Mapping
from dataclasses import asdict, fields
from typing import Any, Literal

from ...drivers.config import require_known
from ...policies.serving.metadata import Metadata
from .ensemble import Ensemble
from .overlap import Overlap
from .receding import Receding
from .rtc import RTC, TrainedRTC
from .rti import RTI
from .slicing import Slicing
from .strategy import Strategy

STRATEGIES: dict[str, type[Strategy]] = {
    "receding": Receding,
    "async": Slicing,
    "ensemble": Ensemble,
    "overlap": Overlap,
    "rtc": RTC,
    "rtc-trained": TrainedRTC,
    "rti": RTI,
}


def strategy_named(name: str, settings: Mapping[str, Any] | None = None) -> Strategy:
    """The strategy `name` with `settings` in place of its fields' defaults; values may be text. DeviceError
    or ValueError in one sentence where there is none, or it has no such field or value."""
    require_known("strategy", name, STRATEGIES)
    kind = STRATEGIES[name]
    hints = typing.get_type_hints(kind)
    values = {}
    for field, value in (settings or {}).items():
        require_known(f"field of the strategy {name}:", field, [f.name for f in fields(kind)])
        values[field] = _value(value, hints[field], f"--strategy.{field}")
    return kind(**values)


def name_of(strategy: Strategy) -> str:
    """Its name here."""
    return next(name for name, kind in STRATEGIES.items() if kind is type(strategy))


def description(strategy: Strategy) -> dict[str, Any]:
    """Name and fields, JSON types only."""
    return {"name": name_of(strategy), **asdict(strategy)}


def usual_strategy(metadata: Metadata) -> Strategy:
    """What a policy is run by where nobody chooses, as its recipe's `decoder` says: each tick waits for the
    chunk that it needs. ValueError where there is no decoder of that name."""
    if metadata.decoder == "ensemble":
        return Ensemble(wait=True)
    if metadata.decoder != "slice":
        raise ValueError(f"no decoder is called {metadata.decoder!r}: there are slice and ensemble")
    return Receding()


def _value(value: Any, hint: Any, name: str) -> Any:
    if typing.get_origin(hint) is Literal:
        choices = typing.get_args(hint)
        if value not in choices:
            raise ValueError(f"{name} is one of {', '.join(map(str, choices))}, not {value!r}")
        return value
    if isinstance(hint, types.UnionType):  # of one kind and None
        if value is None or str(value).lower() == "none":
            return None
        hint = next(k for k in typing.get_args(hint) if k is not type(None))
    try:
        if hint is bool:
            words = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
            return words[str(value).lower()]
        number = hint(value)
        if not math.isfinite(number) or (hint is int and number != float(value)):
            raise ValueError
        return number
    except (KeyError, ValueError, TypeError, OverflowError):
        kinds = {int: "a whole number", bool: "true or false"}
        raise ValueError(f"{name} is {kinds.get(hint, 'a number')}, not {value!r}") from None
