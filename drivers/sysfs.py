"""How the kernel names what is plugged in: sysfs, udev's links, and who may open a node or has it open.

`root` is the folder that holds `sys`, `dev` and `proc`: `/`, or a copy of it.
"""

from __future__ import annotations

import contextlib
import grp
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path("/")


@dataclass(frozen=True)
class UsbDevice:
    """path: the port it is plugged into, `1-2.3` (bus 1, port 2 of the root, port 3 of a hub). speed_mbps:
    the rate that it negotiated with the hub, Mbit/s."""

    path: str
    bus: int
    vendor: int
    product: int
    serial: str | None
    name: str
    speed_mbps: float


def usb_devices(root: Path = ROOT) -> list[UsbDevice]:
    """All USB devices, without root hubs and interfaces."""
    devices = entries(root / "sys/bus/usb/devices")
    return [_usb(d.resolve()) for d in devices if is_usb_path(d.name)]


def usb_of(sysfs: Path) -> UsbDevice | None:
    """The USB device that a sysfs entry belongs to; None when it belongs to none."""
    for folder in (path := sysfs.resolve(), *path.parents):
        if is_usb_path(folder.name) and (folder / "idVendor").exists():
            return _usb(folder)
    return None


def _usb(folder: Path) -> UsbDevice:
    words = [text(folder / "manufacturer"), text(folder / "product")]
    return UsbDevice(
        folder.name,
        int(folder.name.split("-")[0]),
        number(text(folder / "idVendor"), 16) or 0,
        number(text(folder / "idProduct"), 16) or 0,
        text(folder / "serial") or None,
        " ".join(w for w in words if w),
        float(text(folder / "speed") or 0),
    )


def is_usb_path(name: str) -> bool:
    bus, dash, ports = name.partition("-")
    return bool(dash) and bus.isdigit() and all(p.isdigit() for p in ports.split("."))


def holders(device: str, root: Path = ROOT) -> list[tuple[int, str]]:
    """Number and name of each process that has `device` open. device: the node itself, not a link to it. Only
    root sees the processes of other users."""
    processes = []
    for process in entries(root / "proc"):
        if not process.name.isdigit():
            continue
        with contextlib.suppress(OSError):  # ended meanwhile, or another user's
            if any(link_text(handle) == device for handle in (process / "fd").iterdir()):
                processes.append((int(process.name), text(process / "comm") or "a process"))
    return processes


def holder_names(device: str, root: Path = ROOT) -> tuple[str, ...]:
    """`holders` as `name (pid 123)`."""
    return tuple(f"{name} (pid {pid})" for pid, name in holders(device, root))


def access_problem(device: str, root: Path = ROOT, mend: str = "", write: bool = True) -> str:
    """Why this user cannot open `device`, and what to do; empty when it can be opened. mend: what to do when
    the device belongs to no group that a user could join. write: whether writing is needed, too."""
    path = root / device.lstrip("/")
    try:
        status = path.stat()
    except OSError as error:
        return f"{device} cannot be looked at: {error.strerror}"
    mode = os.R_OK | (os.W_OK if write else 0)
    # the kernel is asked, since the file's mode does not tell: the desktop's user often has access by a list
    if os.access(path, mode, effective_ids=True):
        return ""
    bits = mode << 3
    if status.st_gid != 0 and status.st_mode & bits == bits:
        try:
            group = grp.getgrgid(status.st_gid).gr_name
        except KeyError:
            group = str(status.st_gid)
        mend = f"run `sudo usermod -aG {group} $USER` and log in again"
    mend = (
        mend or 'it is for root alone; a udev rule with TAG+="uaccess" opens it to who sits at the computer'
    )
    return f"you may not open {device}: {mend}"


def entries(folder: Path) -> Iterator[Path]:
    """The paths in `folder`, in natural order (ttyUSB2 before ttyUSB10); none when it cannot be read."""
    with contextlib.suppress(OSError):
        yield from sorted(folder.iterdir(), key=lambda p: (len(p.name), p.name))


def links(root: Path, device: str, folders: Iterable[str]) -> tuple[str, ...]:
    """Paths of the links to `device` in `folders` (relative to `root`), such as udev's by-id names."""
    name = device.removeprefix("/dev/")
    matches = []
    for folder in folders:
        for link in entries(root / folder):
            target = link_text(link)
            if target and os.path.normpath(os.path.join(f"/{folder}", target)) == f"/dev/{name}":
                matches.append(f"/{folder}/{link.name}")
    return tuple(matches)


def link_text(path: Path) -> str:
    try:
        return os.readlink(path)
    except OSError:
        return ""


def text(path: Path) -> str:
    try:
        return path.read_text(errors="replace").strip()
    except OSError:
        return ""


def number(text: str, base: int) -> int | None:
    try:
        return int(text, base)
    except ValueError:
        return None
