"""Which serial port is an arm's: the only one, or the one that goes away when its cable is pulled."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from ...drivers.arm import DeviceError
from ...drivers.devices import living_twins, serial_ports
from ...drivers.sysfs import ROOT
from .guide import POLL_S, Guide

UDEV_S = 3.0  # within which udev lets the user at what was plugged in


@dataclass(frozen=True)
class Candidate:
    """A port by its most lasting name. title: what it is. problem: why this user cannot open it; empty when
    it can be opened."""

    name: str
    title: str
    problem: str = ""


def candidates(root: Path = ROOT) -> list[Candidate]:
    """Serial ports that are there now, and the servo buses of twins that run."""
    found = []
    for port in serial_ports(root):
        # adapters without a serial number have one name between them; the socket's tells them apart
        by_path = [n for n in port.names if "/by-path/" in n]
        name = by_path[0] if by_path and port.usb is not None and not port.usb.serial else port.name
        found.append(Candidate(name, port.usb.name if port.usb else "a port of the board", port.problem))
    for twin in living_twins():
        for device, port in twin.ports.items():
            if isinstance(port, str) and port.startswith("/") and Path(port).is_char_device():
                found.append(Candidate(port, f"the twin {twin.name}'s {device}"))
    return found


def lasting_name(port: str, root: Path = ROOT) -> str:
    """The name that stays of the port that was said as `port`; `port` itself where there is none."""
    device = os.path.realpath(root / port.lstrip("/"))
    names = (c.name for c in candidates(root))
    return next((n for n in names if os.path.realpath(root / n.lstrip("/")) == device), port)


def find(guide: Guide, arm: str, taken: Collection[str], root: Path = ROOT) -> str:
    """The name of the port of the `arm` (`follower`), none of `taken`. DeviceError: it cannot be opened, or
    must be said."""

    def free() -> list[Candidate]:
        return [c for c in candidates(root) if c.name not in taken]

    there = free()
    if not there:
        guide.say(f"Plug the USB cable of the {arm}'s adapter in.")
        there = guide.wait(lambda: free() or None, f"a serial adapter of the {arm}")
    if len(there) == 1:
        (only,) = there
        guide.say(f"There is one port: {only.name} ({only.title}).")
        if guide.confirm(f"Is it the {arm}'s?"):
            return _usable(only)
    elif guide.yes:
        names = ", ".join(c.name for c in there)
        option = "--leader-port" if arm == "leader" else "--port"
        raise DeviceError(f"there are several ports: say which is the {arm}'s with {option}: {names}")
    return _usable(_by_pulling(guide, arm, free))


def _by_pulling(guide: Guide, arm: str, free: Callable[[], Sequence[Candidate]]) -> Candidate:
    """The port that goes away when its cable is pulled, once it is back."""
    before = {c.name: c for c in free()}
    names = "".join(f"\n  {c.name} ({c.title})" for c in before.values())
    guide.say(
        f"Now pull the USB cable of the {arm}'s adapter out (where it is not in yet: in, then out).{names}"
    )

    last: list[str] = []
    several = False

    def one_gone() -> str | None:
        nonlocal last, several
        now = {c.name: c for c in free()}
        before.update(now)  # what is plugged in meanwhile may be pulled as well
        gone = [name for name in before if name not in now]
        last, was_gone = gone, last
        # until all are back: whichever comes back last is not the one that was meant
        several = len(gone) > 1 or (several and bool(gone))
        if several:
            guide.say(f"Several ports went away: put them back, and pull the {arm}'s alone.")
        # twice the same: of a hub that is pulled, one port may go before the others
        return gone[0] if len(gone) == 1 and gone == was_gone and not several else None

    name = guide.wait(one_gone, f"the {arm}'s cable to be pulled")
    guide.say(f"It is {name}. Put it back in.")
    back = guide.wait(lambda: next((c for c in free() if c.name == name), None), f"{name} to come back")
    end = time.monotonic() + UDEV_S
    while back.problem and time.monotonic() < end:
        time.sleep(POLL_S)
        back = next((c for c in free() if c.name == name), back)
    return back


def _usable(port: Candidate) -> str:
    if port.problem:
        raise DeviceError(port.problem)
    return port.name
