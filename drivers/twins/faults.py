"""Faults of a device on demand. One thread sets them and another reads them, so a field is replaced and never
mutated."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from ..arm import DeviceError
from ..config import require_known


@dataclass
class BusFaults:
    """Faults of a servo bus, or of the link to a controller. The defaults are those of a sound one."""

    drop: float = 0.0
    """Share of the replies, 0 to 1, that never come."""
    corrupt: float = 0.0
    """Share of the replies that come garbled."""
    late: float = 0.0
    """Share of the replies that come `late_s` too late, when the next request may be under way."""
    late_s: float = 0.05
    """How late those are, s."""
    delay_s: float = 0.0
    """Before every reply, s."""
    dead: tuple[int, ...] = ()
    """Ids that are silent."""
    overload: tuple[int, ...] = ()
    """Ids whose overload protection has latched, until power is cycled or they are rebooted."""
    voltage: float | None = None
    """Of the supply, V; None: the nominal one."""
    unplugged: bool = False
    """The cable is out."""
    stuck: tuple[int, ...] = ()
    """Numbers of the joints, from 0, that are blocked."""
    clock_step_s: float = 0.0
    """Added to the device's own clock, s, where it has one."""


@dataclass
class CameraFaults:
    """Faults of a camera. The defaults are those of a sound one."""

    black: bool = False
    """Frames without light."""
    frozen: bool = False
    """The same frame again and again, with new numbers."""
    stalled: bool = False
    """Connected, but without frames."""
    slow: float = 1.0
    """Share of the nominal rate; 1: as promised."""
    corrupt: float = 0.0
    """Share of the frames, 0 to 1, whose bytes are garbled."""
    unplugged: bool = False
    """The connection is closed, and new ones are refused."""
    clock_step_s: float = 0.0
    """Added to the device's own clock, s."""


def set_faults(faults: BusFaults | CameraFaults, values: Mapping[str, Any]) -> None:
    """Set the fields of `faults` that are in `values` (from JSON or the command line). DeviceError: an
    unknown name or a wrong type; nothing is set then."""
    by_name = {f.name: f for f in fields(faults)}
    new_values: dict[str, Any] = {}
    for name, value in values.items():
        require_known("fault", name, by_name)
        default = getattr(type(faults)(), name)
        if isinstance(default, tuple):
            numbers = value if isinstance(value, list | tuple) else [value]
            if not all(isinstance(v, int) and not isinstance(v, bool) for v in numbers):
                raise DeviceError(f"the fault {name} is a list of whole numbers, not {value!r}")
            new_values[name] = tuple(numbers)
        elif isinstance(default, bool):
            if not isinstance(value, bool):
                raise DeviceError(f"the fault {name} is true or false, not {value!r}")
            new_values[name] = value
        elif value is None and default is None:
            new_values[name] = None
        elif isinstance(value, int | float) and not isinstance(value, bool):
            new_values[name] = float(value)
        else:
            raise DeviceError(f"the fault {name} is a number, not {value!r}")
    for name, value in new_values.items():
        setattr(faults, name, value)


def parse_fault(text: str) -> tuple[str, Any]:
    """`drop=0.05`, `dead=3,4`, `unplugged` → name and value, for `set_faults`."""
    name, equals, value = text.partition("=")
    if not equals:
        return name, True
    try:
        numbers = [float(v) if "." in v else int(v) for v in value.split(",")]
    except ValueError:
        if value in ("true", "false"):
            return name, value == "true"
        raise DeviceError(f"the fault {text!r} is not of the form drop=0.05, dead=3,4 or unplugged") from None
    return name, numbers if len(numbers) > 1 else numbers[0]
