"""Whether what a robot's TOML file names is there and free. Part of `ulna doctor`.

The file is read leniently: this is for a file that does not work yet. `robot.config` reads it strictly.
"""

from __future__ import annotations

import os
import socket
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from ...drivers.arm import DeviceError
from ...drivers.devices import gamepads, spacemice
from ...drivers.sysfs import ROOT, access_problem, holder_names, links
from .doctor import Finding, Plugged, Wanted

UR_PORT = 30004  # RTDE
CONNECT_S = 2.0
KINDS = ("arms", "leaders", "cameras", "teleoperators")


def read(path: Path) -> dict[str, Any]:
    """DeviceError: no such file, or no TOML."""
    try:
        return tomllib.loads(path.read_text())
    except OSError as error:
        raise DeviceError(f"cannot read the robot file {path}: {error.strerror}") from None
    except ValueError as error:  # of TOML, of UTF-8, or a number of thousands of digits
        raise DeviceError(f"the robot file {path} is not TOML: {error}") from None


def _tables(config: Mapping[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for kind in KINDS:
        named = config.get(kind)
        for name, table in (named if isinstance(named, dict) else {}).items():
            if isinstance(table, dict):
                yield kind, name, table


def devices(config: Mapping[str, Any], plugged: Plugged, root: Path = ROOT) -> list[Finding]:
    """One finding or more for each device that the file names."""
    found: list[Finding] = []
    for kind, name, table in _tables(config):
        where, driver = f"[{kind}.{name}]", str(table.get("driver", name if kind == "teleoperators" else ""))
        if not driver:
            found.append(
                Finding("robot", "severe", f"{where} names no driver", 'write  driver = "…"  into it')
            )
        elif kind == "teleoperators":
            found += _teleoperator(where, driver, root)
        elif driver == "realsense" and (source := table.get("source", "live")) != "twin":
            if source == "recording":
                found.append(_recording(where, str(table.get("path", ""))))
            else:
                found += _realsense(where, str(table.get("serial", "")), plugged)
        elif address := table.get("host") or table.get("address"):
            found += _network(where, str(address), UR_PORT if driver == "ur" else None)
        elif "://" in str(device := table.get("device") or table.get("url") or table.get("port") or ""):
            found += _network(where, str(device), None)
        elif device:
            found += _node(where, str(device), root)
        elif driver not in ("sim", "twin"):
            says = f"{where} does not say where its device is"
            found.append(Finding("robot", "severe", says, "`ulna devices` lists what is plugged in"))
    if not found:
        found.append(Finding("robot", "good", "the file names no device of the real world"))
    return found


def _node(where: str, device: str, root: Path) -> list[Finding]:
    """A serial port or a camera by its path."""
    path = root / device.lstrip("/")
    if not path.exists():
        says = f"{where}: {device} is not there"
        return [Finding("robot", "severe", says, "plug it in; `ulna devices` lists what is there")]
    found = []
    real = "/" + os.path.relpath(path.resolve(), root.resolve())
    if problem := access_problem(real, root):
        says, _, mend = problem.partition(": ")
        found.append(Finding("robot", "severe", f"{where}: {says}", mend))
    if held := holder_names(real, root):
        says = f"{where}: {device} is open in {', '.join(held)}"
        found.append(Finding("robot", "severe", says, "end that first"))
    folders = [f"dev/serial/{by}" for by in ("by-id", "by-path")] + [
        f"dev/v4l/{by}" for by in ("by-id", "by-path")
    ]
    if not path.is_symlink() and (names := links(root, device, folders)):
        says = f"{where}: {device} may name another device after the next start"
        found.append(Finding("robot", "advice", says, f"write {names[0]}"))
    return found or [Finding("robot", "good", f"{where}: {device} is there and free")]


def _realsense(where: str, serial: str, plugged: Plugged) -> list[Finding]:
    seen = [d.serial for d in plugged.depth if d.serial]
    if serial in seen or (not serial and seen):
        return [Finding("robot", "good", f"{where}: RealSense {serial or seen[0]} is there")]
    says = f"{where}: there is no RealSense {serial}".rstrip()
    return [
        Finding(
            "robot", "severe", says, f"there is {', '.join(seen) or 'none'}; plug it in, or mend its serial"
        )
    ]


def _recording(where: str, path: str) -> Finding:
    if path and Path(path).is_file():
        return Finding("robot", "good", f"{where}: the recording {path} is there")
    return Finding("robot", "severe", f"{where}: there is no recording {path!r}", "mend its path")


def _network(where: str, address: str, port: int | None) -> list[Finding]:
    """A controller, a camera or a twin on the network: whether somebody takes the connection."""
    if address.startswith("unix:"):
        if Path(address[5:]).exists():
            return [Finding("robot", "good", f"{where}: {address} is there")]
        says = f"{where}: {address} is not there"
        return [Finding("robot", "severe", says, "start what makes it (`ulna twin`)")]
    address = address.removeprefix("tcp:")  # of a RealSense twin
    try:
        parts = urlsplit(address if "://" in address else f"//{address}")
        host, port = (
            parts.hostname or "",
            parts.port or port or {"https": 443, "rtsp": 554}.get(parts.scheme, 80),
        )
    except ValueError:
        return [
            Finding("robot", "severe", f"{where}: {address!r} is no address", "write it like 192.168.1.10")
        ]
    shown = f"{host}:{port}"  # the address itself may hold a password
    try:
        socket.create_connection((host, port), CONNECT_S).close()
    except OSError as error:
        mend = f"is it on, on this network (`ping {host}`), and is the port open?"
        return [Finding("robot", "severe", f"{where}: {shown} takes no connection: {error}", mend)]
    return [Finding("robot", "good", f"{where}: {shown} takes connections")]


def _teleoperator(where: str, driver: str, root: Path) -> list[Finding]:
    if driver not in ("gamepad", "spacemouse"):
        return []
    seen = gamepads(root) if driver == "gamepad" else spacemice(root)
    if not seen:
        return [
            Finding(
                "robot", "advice", f"{where}: no {driver} is plugged in", "plug it in before teleoperating"
            )
        ]
    if seen[0].problem:
        says, _, mend = seen[0].problem.partition(": ")
        return [Finding("robot", "severe", f"{where}: {says}", mend)]
    return [Finding("robot", "good", f"{where}: {seen[0].title} is there")]


def wants_realsense(config: Mapping[str, Any]) -> bool:
    """Whether the file names a RealSense camera, whatever its frames come from: all need librealsense."""
    return any(kind == "cameras" and table.get("driver") == "realsense" for kind, _, table in _tables(config))


def wanted(config: Mapping[str, Any], plugged: Plugged, root: Path = ROOT) -> list[Wanted]:
    """The modes that the file asks of cameras which hang on a USB bus."""
    modes = []
    for kind, name, table in _tables(config):
        if kind != "cameras":
            continue
        depth = table.get("driver") == "realsense"
        if depth:
            usb = next((d.usb for d in plugged.depth if d.serial == str(table.get("serial", ""))), None)
        else:
            path = root / str(table.get("device", "")).lstrip("/")
            node = path.resolve().name if path.exists() else ""
            usb = next((c.usb for c in plugged.cameras if c.device == f"/dev/{node}"), None)
        if usb is not None:
            width, height, fps = (
                _number(table.get(k), d) for k, d in (("width", 640), ("height", 480), ("fps", 30))
            )
            fourcc = str(table.get("fourcc", ""))
            modes.append(Wanted(name, usb.bus, usb.speed_mbps, int(width), int(height), fps, fourcc, depth))
    return modes


def _number(value: Any, default: float) -> float:
    return float(value) if isinstance(value, int | float) and 0 < value < 1e6 else default
