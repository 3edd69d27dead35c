"""Whether the devices that a robot's TOML file names are there and free. Part of `ulna doctor`.

The file is read leniently, because it may be one that does not work yet; `robot.config` reads it strictly.
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
from .doctor import CameraMode, Finding, Hardware

UR_PORT = 30004  # RTDE
CONNECT_S = 2.0
KINDS = ("arms", "leaders", "cameras", "teleoperators")


def read(path: Path) -> dict[str, Any]:
    """The robot file at `path` as a dict. DeviceError: it cannot be read, or is not TOML."""
    try:
        return tomllib.loads(path.read_text())
    except OSError as error:
        raise DeviceError(f"cannot read the robot file {path}: {error.strerror}") from None
    except (ValueError, RecursionError) as error:  # of TOML, of UTF-8, or a number of thousands of digits
        raise DeviceError(f"the robot file {path} is not TOML: {error}") from None


def _tables(config: Mapping[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for kind in KINDS:
        tables = config.get(kind)
        for name, table in (tables if isinstance(tables, dict) else {}).items():
            if isinstance(table, dict):
                yield kind, name, table


def devices(config: Mapping[str, Any], hardware: Hardware, root: Path = ROOT) -> list[Finding]:
    """One finding or more for each device that the file names."""
    findings: list[Finding] = []
    for kind, name, table in _tables(config):
        where, driver = f"[{kind}.{name}]", str(table.get("driver", name if kind == "teleoperators" else ""))
        if not driver:
            findings.append(
                Finding("robot", "severe", f"{where} names no driver", 'write  driver = "…"  into it')
            )
        elif kind == "teleoperators":
            findings += _teleoperator(where, driver, root)
        elif driver == "realsense" and (source := table.get("source", "live")) != "twin":
            if source == "recording":
                findings.append(_recording(where, str(table.get("path", ""))))
            else:
                findings += _realsense(where, str(table.get("serial", "")), hardware)
        elif address := table.get("host") or table.get("address"):
            findings += _network(where, str(address), UR_PORT if driver == "ur" else None)
        elif "://" in str(device := table.get("device") or table.get("url") or table.get("port") or ""):
            findings += _network(where, str(device), None)
        elif device:
            findings += _node(where, str(device), root)
        elif driver not in ("sim", "twin"):
            says = f"{where} does not say where its device is"
            findings.append(Finding("robot", "severe", says, "`ulna devices` lists what is plugged in"))
    if not findings:
        findings.append(Finding("robot", "good", "the file names no device of the real world"))
    return findings


def _node(where: str, device: str, root: Path) -> list[Finding]:
    """Findings on a serial port or a camera that is named by its path."""
    path = root / device.lstrip("/")
    if not path.exists():
        says = f"{where}: {device} is not there"
        return [Finding("robot", "severe", says, "plug it in; `ulna devices` lists what is there")]
    findings = []
    real = "/" + os.path.relpath(path.resolve(), root.resolve())
    if problem := access_problem(real, root):
        says, _, mend = problem.partition(": ")
        findings.append(Finding("robot", "severe", f"{where}: {says}", mend))
    if holders := holder_names(real, root):
        says = f"{where}: {device} is open in {', '.join(holders)}"
        findings.append(Finding("robot", "severe", says, "end that first"))
    folders = [f"dev/serial/{by}" for by in ("by-id", "by-path")] + [
        f"dev/v4l/{by}" for by in ("by-id", "by-path")
    ]
    if not path.is_symlink() and (names := links(root, device, folders)):
        says = f"{where}: {device} may name another device after the next start"
        findings.append(Finding("robot", "advice", says, f"write {names[0]}"))
    return findings or [Finding("robot", "good", f"{where}: {device} is there and free")]


def _realsense(where: str, serial: str, hardware: Hardware) -> list[Finding]:
    serials = [d.serial for d in hardware.depth if d.serial]
    if serial in serials or (not serial and serials):
        return [Finding("robot", "good", f"{where}: RealSense {serial or serials[0]} is there")]
    says = f"{where}: there is no RealSense {serial}".rstrip()
    return [
        Finding(
            "robot",
            "severe",
            says,
            f"there is {', '.join(serials) or 'none'}; plug it in, or mend its serial",
        )
    ]


def _recording(where: str, path: str) -> Finding:
    if path and Path(path).is_file():
        return Finding("robot", "good", f"{where}: the recording {path} is there")
    return Finding("robot", "severe", f"{where}: there is no recording {path!r}", "mend its path")


def _network(where: str, address: str, port: int | None) -> list[Finding]:
    """Findings on a controller, a camera or a twin on the network: whether it accepts a connection."""
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
    endpoint = f"{host}:{port}"  # without a password, which the address may hold
    try:
        socket.create_connection((host, port), CONNECT_S).close()
    except OSError as error:
        mend = f"is it on, on this network (`ping {host}`), and is the port open?"
        return [Finding("robot", "severe", f"{where}: {endpoint} takes no connection: {error}", mend)]
    return [Finding("robot", "good", f"{where}: {endpoint} takes connections")]


def _teleoperator(where: str, driver: str, root: Path) -> list[Finding]:
    if driver not in ("gamepad", "spacemouse"):
        return []
    inputs = gamepads(root) if driver == "gamepad" else spacemice(root)
    if not inputs:
        return [
            Finding(
                "robot", "advice", f"{where}: no {driver} is plugged in", "plug it in before teleoperating"
            )
        ]
    if inputs[0].problem:
        says, _, mend = inputs[0].problem.partition(": ")
        return [Finding("robot", "severe", f"{where}: {says}", mend)]
    return [Finding("robot", "good", f"{where}: {inputs[0].title} is there")]


def wants_realsense(config: Mapping[str, Any]) -> bool:
    """Whether the file names a RealSense camera. Live, recorded or of a twin, it needs librealsense."""
    return any(kind == "cameras" and table.get("driver") == "realsense" for kind, _, table in _tables(config))


def requested_modes(config: Mapping[str, Any], hardware: Hardware, root: Path = ROOT) -> list[CameraMode]:
    """The modes that the file requests, of those cameras that are on a USB bus."""
    modes = []
    for kind, name, table in _tables(config):
        if kind != "cameras":
            continue
        depth = table.get("driver") == "realsense"
        if depth:
            usb = next((d.usb for d in hardware.depth if d.serial == str(table.get("serial", ""))), None)
        else:
            path = root / str(table.get("device", "")).lstrip("/")
            node = path.resolve().name if path.exists() else ""
            usb = next((c.usb for c in hardware.cameras if c.device == f"/dev/{node}"), None)
        if usb is not None:
            width, height, fps = (
                _number(table.get(k), d) for k, d in (("width", 640), ("height", 480), ("fps", 30))
            )
            fourcc = str(table.get("fourcc", ""))
            modes.append(
                CameraMode(name, usb.bus, usb.speed_mbps, int(width), int(height), fps, fourcc, depth)
            )
    return modes


def _number(value: Any, default: float) -> float:
    return float(value) if isinstance(value, int | float) and 0 < value < 1e6 else default
