"""A twin in a process of its own, which takes orders in lines of JSON on stdin.

The first line describes the twin; the answer says where it is. Then come lines `{"faults": {…}}`,
`{"reset": true}` (power off and on again) and, of servos, `{"plug": [joint, …]}` (only these are on the bus),
each answered by `{"ok": true}` or `{"error": …}`, until stdin ends."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from ..arm import DeviceError
from .faults import BusFaults, CameraFaults, set_faults

WRONG = (DeviceError, OSError, AttributeError, TypeError, ValueError)  # what a wrong line of JSON can raise


class Twin(Protocol):
    """What a process runs. `power_cycle`: it forgets what a device forgets without power."""

    @property
    def faults(self) -> BusFaults | CameraFaults: ...

    def start(self) -> None: ...

    def stop(self) -> None: ...

    def power_cycle(self) -> None: ...


def run[T: Twin](make: Callable[[dict[str, Any]], T], where: Callable[[T], Mapping[str, str]]) -> int:
    """Run a twin until stdin ends; returns the exit status, 1 when the twin cannot be made. make: the twin,
    not started, from the first line. where: the answer to that line."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that started this one
    try:
        return _run(make, where)
    except BrokenPipeError:
        os._exit(0)  # no reader any more; an ordinary exit would try to write the rest


def _run[T: Twin](make: Callable[[dict[str, Any]], T], where: Callable[[T], Mapping[str, str]]) -> int:
    try:
        twin = make(json.loads(sys.stdin.readline()))
        twin.start()
    except KeyError as error:
        _say({"error": f"the twin is described without {error}"})
        return 1
    except WRONG as error:
        _say({"error": str(error)})
        return 1
    try:
        _say(where(twin))
        for line in sys.stdin:
            _say(_obey(twin, line))
    finally:
        twin.stop()
    return 0


def _obey(twin: Twin, line: str) -> Mapping[str, Any]:
    try:
        order = json.loads(line)
        if "faults" in order:
            set_faults(twin.faults, order["faults"])
        elif order.get("reset"):
            twin.power_cycle()
        elif "plug" in order and (plug := getattr(twin, "plug", None)) is not None:
            plug([int(joint) for joint in order["plug"]])
        else:
            raise DeviceError(
                f"a twin understands faults and reset, and one of servos plug, not {line.strip()!r}"
            )
    except WRONG as error:
        return {"error": str(error)}
    return {"ok": True}


def _say(answer: Mapping[str, Any]) -> None:
    print(json.dumps(answer), flush=True)
