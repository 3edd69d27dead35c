"""What is plugged in, by names that stay the same when cables are moved about or the computer starts anew.

Read from sysfs and from udev's links, without opening a device (cameras excepted: `drivers.cameras.v4l2` asks
them for their modes). `root` is the folder that holds `sys`, `dev` and `proc`."""

from __future__ import annotations

import contextlib
import json
import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .arm import DeviceError
from .cameras import v4l2
from .cameras.librealsense import load, on_usb
from .hands.spacemouse_ids import is_spacemouse
from .sysfs import (
    ROOT,
    UsbDevice,
    access_problem,
    entries,
    holder_names,
    is_usb_path,
    links,
    number,
    text,
    usb_of,
)

SPACEMOUSE_RULE = 'SUBSYSTEM=="hidraw", KERNELS=="*:256F:*", MODE="0660", TAG+="uaccess"'
SPACEMOUSE_RULE_FILE = (
    "/etc/udev/rules.d/70-spacemouse.rules"  # before 73-seat-late.rules, which acts on uaccess
)


@dataclass(frozen=True)
class Port:
    """A serial port. device: `/dev/ttyACM0`, which changes. names: the links that do not, best first.
    latency_ms: how long an FTDI adapter collects bytes before it hands them on, None for other adapters.
    holders: processes that have it open, as far as we may look. problem: why this user cannot open it, and
    what to do; empty when there is nothing in the way."""

    device: str
    names: tuple[str, ...]
    usb: UsbDevice | None
    latency_ms: int | None
    latency_file: str | None
    holders: tuple[str, ...]
    problem: str

    @property
    def name(self) -> str:
        """What to write into a robot's file."""
        return self.names[0] if self.names else self.device


@dataclass(frozen=True)
class CameraNode:
    """A V4L2 node. capture: whether it gives pictures, None when it could not be asked. Other fields as of
    `Port`."""

    device: str
    names: tuple[str, ...]
    title: str
    usb: UsbDevice | None
    capture: bool | None
    modes: tuple[v4l2.Mode, ...]
    holders: tuple[str, ...]
    problem: str

    @property
    def name(self) -> str:
        return self.names[0] if self.names else self.device


@dataclass(frozen=True)
class DepthCamera:
    """A RealSense. serial: librealsense's own number (not the one USB shows), None when librealsense could
    not be asked; why_not then says why. usb_type: `3.2`, `2.1`."""

    title: str
    usb: UsbDevice
    serial: str | None
    usb_type: str | None
    why_not: str


@dataclass(frozen=True)
class Input:
    """A gamepad or a SpaceMouse. Fields as of `Port`."""

    device: str
    names: tuple[str, ...]
    title: str
    vendor: int
    product: int
    problem: str

    @property
    def name(self) -> str:
        return self.names[0] if self.names else self.device


@dataclass(frozen=True)
class Twin:
    """A twin that runs now. ports: what to write into a robot's file, by the name of the device."""

    name: str
    pid: int
    ports: Mapping[str, Any]
    toml: str


# -- serial ports
# ------------------------------------------------------------------------------------------------------------


def serial_ports(root: Path = ROOT) -> list[Port]:
    """USB adapters and a board's own UARTs; a PC's legacy ttyS ports are left out, of which most lead
    nowhere."""
    found = []
    for tty in entries(root / "sys/class/tty"):
        if not (tty / "device").exists() or tty.name.startswith(("ttyS", "hvc", "ttyGS")):
            continue
        device = f"/dev/{tty.name}"
        timer = (tty / "device").resolve() / "latency_timer"
        latency = number(text(timer), 10)
        found.append(
            Port(
                device,
                links(root, device, ("dev/serial/by-id", "dev/serial/by-path")),
                usb_of(tty / "device"),
                latency,
                f"/sys/class/tty/{tty.name}/device/latency_timer" if latency is not None else None,
                holder_names(device, root),
                access_problem(device, root),
            )
        )
    return found


# -- cameras
# -----------------------------------------------------------------------------------------------------------------


def cameras(root: Path = ROOT) -> list[CameraNode]:
    found = []
    for node in entries(root / "sys/class/video4linux"):
        device = f"/dev/{node.name}"
        if not node.name.startswith("video"):
            continue
        problem = access_problem(device, root)
        about = None
        if not problem:
            try:
                about = v4l2.ask(root / "dev" / node.name)
            except OSError as error:
                problem = f"{device} does not open: {error.strerror}"
        found.append(
            CameraNode(
                device,
                links(root, device, ("dev/v4l/by-id", "dev/v4l/by-path")),
                about.card if about else text(node / "name"),
                usb_of(node / "device"),
                about.capture if about else None,
                about.modes if about else (),
                holder_names(device, root),
                problem,
            )
        )
    return found


def depth_cameras(root: Path = ROOT) -> list[DepthCamera]:
    """RealSense cameras on USB. librealsense is loaded only when there is one."""
    there = on_usb(root)
    if not there:
        return []
    asked, why_not = _ask_librealsense()
    return [
        DepthCamera(
            d.name,
            d,
            asked.get(d.path, (None, None))[0],
            asked.get(d.path, (None, None))[1],
            "" if d.path in asked else why_not or "librealsense does not see it: plug it in again",
        )
        for d in there
    ]


def _ask_librealsense() -> tuple[dict[str, tuple[str, str]], str]:
    """(serial number, USB type) by USB path, or why there is no answer."""
    asked: dict[str, tuple[str, str]] = {}
    try:
        rs = load()
        info = rs.camera_info
        for device in rs.context().query_devices():
            port = device.get_info(info.physical_port)
            path = next((p for p in reversed(port.split("/")) if is_usb_path(p)), port)
            asked[path] = (device.get_info(info.serial_number), device.get_info(info.usb_type_descriptor))
    except (DeviceError, RuntimeError) as error:
        return asked, f"librealsense cannot be asked: {error}"
    return asked, ""


# -- what a hand holds
# -------------------------------------------------------------------------------------------------------

_BTN_JOYSTICK, _BTN_GAMEPAD = 0x120, 0x130  # linux/input-event-codes.h


def gamepads(root: Path = ROOT) -> list[Input]:
    """Input devices with the buttons of a gamepad or a joystick."""
    found = []
    for event in entries(root / "sys/class/input"):
        if not event.name.startswith("event"):
            continue
        about = event / "device"
        words = text(about / "capabilities/key").split()
        keys = sum(int(word, 16) << (64 * i) for i, word in enumerate(reversed(words)))
        if not any(keys >> button & 1 for button in (_BTN_JOYSTICK, _BTN_GAMEPAD)):
            continue
        device = f"/dev/input/{event.name}"
        found.append(
            Input(
                device,
                links(root, device, ("dev/input/by-id", "dev/input/by-path")),
                text(about / "name"),
                number(text(about / "id/vendor"), 16) or 0,
                number(text(about / "id/product"), 16) or 0,
                access_problem(device, root, write=False),
            )
        )
    return found


def spacemice(root: Path = ROOT) -> list[Input]:
    """3Dconnexion devices among the raw HID nodes."""
    found = []
    for node in entries(root / "sys/class/hidraw"):
        fields = dict(line.split("=", 1) for line in text(node / "device/uevent").splitlines() if "=" in line)
        ids = [number(part, 16) or 0 for part in fields.get("HID_ID", "").split(":")]
        if len(ids) != 3 or not is_spacemouse(ids[1], ids[2]):
            continue
        device = f"/dev/{node.name}"
        found.append(
            Input(
                device,
                (),
                fields.get("HID_NAME", ""),
                ids[1],
                ids[2],
                access_problem(device, root, _spacemouse_mend(ids[1]), write=False),
            )
        )
    return found


def _spacemouse_mend(vendor: int) -> str:
    rule = SPACEMOUSE_RULE.replace("256F", f"{vendor:04X}")
    return (
        f"put the line  {rule}  into {SPACEMOUSE_RULE_FILE}, run "
        "`sudo udevadm control --reload && sudo udevadm trigger`, and plug it in again"
    )


# -- twins that run
# ----------------------------------------------------------------------------------------------------------


def runtime_folder() -> Path:
    """Where each running twin keeps a JSON file `{"name", "pid", "ports", "toml"}`:
    `$XDG_RUNTIME_DIR/ulna/twins`, else `/tmp/ulna-UID/twins`; made when missing, for this user alone.
    DeviceError when somebody else made it, or may look in."""
    base = os.environ.get("XDG_RUNTIME_DIR")
    folder = Path(base) / "ulna" if base and Path(base).is_dir() else Path(f"/tmp/ulna-{os.geteuid()}")
    return _private(_private(folder) / "twins")


def _private(folder: Path) -> Path:
    with contextlib.suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    about = folder.lstat()
    if not stat.S_ISDIR(about.st_mode) or about.st_uid != os.geteuid() or about.st_mode & 0o077:
        raise DeviceError(
            f"{folder} is not a folder of this user alone: look at who made it, and remove it or `chmod 700` it"
        )
    return folder


def living_twins() -> list[Twin]:
    found = []
    for path in sorted(runtime_folder().glob("*.json")):
        try:
            about = json.loads(path.read_text())
            twin = Twin(
                str(about["name"]), int(about["pid"]), dict(about["ports"]), str(about.get("toml") or "")
            )
            noted = path.stat().st_mtime
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            continue  # of a twin just starting or ending, or by another hand
        began = _began(twin.pid)
        # a number may have gone to another process since: one that began after the note was written
        if began is not None and began < noted + 5:
            found.append(twin)
    return found


def _began(pid: int) -> float | None:
    """When the process began, in seconds since 1970 (proc(5)); None when there is none, or its parent has yet
    to take note of its end."""
    fields = text(Path(f"/proc/{pid}/stat")).rpartition(")")[2].split()
    if len(fields) < 20 or fields[0] == "Z":
        return None
    boot = next(line.split()[1] for line in text(Path("/proc/stat")).splitlines() if line.startswith("btime"))
    return int(boot) + int(fields[19]) / os.sysconf("SC_CLK_TCK")
