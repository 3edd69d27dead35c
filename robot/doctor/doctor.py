"""What on this computer would disturb a robot, and how to mend it: one `Finding` for each thing that was
checked.

`root` is the folder that holds `sys`, `dev` and `proc` (see `drivers.sysfs`).
"""

from __future__ import annotations

import importlib.metadata
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ...drivers.arm import DeviceError
from ...drivers.cameras.librealsense import load
from ...drivers.devices import (
    CameraNode,
    DepthCamera,
    Port,
    cameras,
    depth_cameras,
    living_twins,
    serial_ports,
)
from ...drivers.sysfs import ROOT, entries, number, text, usb_devices

Level = Literal["good", "advice", "severe"]
NOT_ON_A_ROBOT = {
    *("accelerate", "av", "datasets", "diffusers", "gymnasium", "grpcio", "h5py", "httpx", "huggingface-hub"),
    *("lerobot", "onnx", "onnxruntime", "onnxscript", "pyarrow", "pybullet", "pyzmq", "rerun-sdk"),
    *("tensorboard", "torch", "torchvision"),
}
"""What only training, serving, simulation and other projects' formats need: `requirements-robot.lock` leaves
it out."""


@dataclass(frozen=True)
class Finding:
    """topic: one word. level: severe stops the robot or spoils its data; advice may. mend: what to do; empty
    when good."""

    topic: str
    level: Level
    says: str
    mend: str = ""


@dataclass(frozen=True)
class CameraMode:
    """A camera's mode, and the USB bus that carries it. speed_mbps: rate of the bus, Mbit/s. fps: pictures
    per second. fourcc: pixel format, empty when the camera picks it. depth: whether depth comes, too."""

    camera: str
    bus: int
    speed_mbps: float
    width: int
    height: int
    fps: float
    fourcc: str
    depth: bool = False


@dataclass(frozen=True)
class Hardware:
    """The devices that `drivers.devices` lists at one moment. depth: RealSense cameras."""

    ports: Sequence[Port]
    cameras: Sequence[CameraNode]
    depth: Sequence[DepthCamera]


def look(root: Path = ROOT) -> Hardware:
    return Hardware(serial_ports(root), cameras(root), depth_cameras(root))


# -- software ------------------------------------------------------------------------------------------------


def python_packages() -> list[Finding]:
    """Findings on Python's version, and on whether each package that ulna needs is there in a version that
    fits. A robot's computer does without those of `NOT_ON_A_ROBOT`."""
    findings = [
        Finding(
            "python", "good", f"Python {sys.version.split()[0]}, ulna {importlib.metadata.version('ulna')}"
        )
    ]
    if sys.version_info[:2] != (3, 12):
        findings = [
            Finding("python", "severe", f"Python {sys.version.split()[0]} is not 3.12", "run `make setup`")
        ]
    wrong, elsewhere = [], []
    from packaging.requirements import Requirement

    for line in importlib.metadata.requires("ulna") or []:
        need = Requirement(line)
        if need.marker is not None and not need.marker.evaluate({"extra": ""}):
            continue
        try:
            have = importlib.metadata.version(need.name)
        except importlib.metadata.PackageNotFoundError:
            if need.name in NOT_ON_A_ROBOT:
                elsewhere.append(need.name)
            else:
                wrong.append(f"{need.name} is missing")
            continue
        if not need.specifier.contains(have, prereleases=True):
            wrong.append(f"{need.name} is {have}, not {need.specifier}")
    if wrong:
        findings.append(Finding("python", "severe", "; ".join(wrong), "run `make setup` in the repository"))
    else:
        says = "all packages are there in versions that serve"
        if elsewhere:
            says += f", but those that a robot's computer does without: {', '.join(elsewhere)}"
        findings.append(Finding("python", "good", says))
    return findings


def opencv() -> list[Finding]:
    """Findings on whether cv2 imports. It is imported in a child process."""
    findings = []
    owners = [
        d.name for d in importlib.metadata.distributions() if (d.name or "").lower().startswith("opencv-")
    ]
    if len(set(owners)) > 1:
        mend = "uninstall all but opencv-python, and install that again"
        says = f"{' and '.join(sorted(set(owners)))} overwrite each other's files"
        findings.append(Finding("opencv", "severe", says, mend))
    code = "import cv2; print(cv2.__version__)"
    try:
        process = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
        )
    except subprocess.TimeoutExpired:
        return [
            *findings,
            Finding("opencv", "advice", "cv2 took more than a minute to load", "look at the disk"),
        ]
    if process.returncode == 0:
        return [*findings, Finding("opencv", "good", f"cv2 {process.stdout.strip()} loads")]
    why = (process.stderr.strip().splitlines() or ["it ended without a word"])[-1]
    mend = "run `make setup`"
    if "libGL" in why or "libgthread" in why or "libglib" in why:
        mend = (
            "install the libraries of a desktop that it is linked to: `sudo apt-get install libgl1 "
            "libglib2.0-0`"
        )
    return [*findings, Finding("opencv", "severe", f"cv2 does not load: {why}", mend)]


def realsense(hardware: Hardware, required: bool = False, root: Path = ROOT) -> list[Finding]:
    """Findings on librealsense, and on the memory that the kernel gives USB transfers. required: whether the
    robot's file names a RealSense."""
    level: Level = "severe" if hardware.depth or required else "advice"
    try:
        load()
    except DeviceError as error:
        mend = (
            "or leave it, when no RealSense is to be used" if level == "advice" else "install what it names"
        )
        return [Finding("realsense", level, str(error), mend)]
    findings = [Finding("realsense", "good", "librealsense loads")]
    for camera in hardware.depth:
        if camera.why_not:
            mend = "plug it in again; librealsense's udev rules (99-realsense-libusb.rules) must be installed"
            findings.append(Finding("realsense", "severe", f"{camera.title}: {camera.why_not}", mend))
        if camera.usb.speed_mbps < 5000:
            says = (
                f"{camera.title} ({camera.serial or camera.usb.path}) runs at "
                f"{camera.usb.speed_mbps:g} Mbit/s, "
                "the speed of USB 2"
            )
            mend = "use a USB 3 port and the cable that came with it, plugged in swiftly and fully"
            findings.append(Finding("realsense", "severe", says, mend))
    memory = number(text(root / "sys/module/usbcore/parameters/usbfs_memory_mb"), 10)
    need = 128 * max(1, len(hardware.depth))
    if hardware.depth and memory is not None and 0 < memory < need:  # 0: no limit
        says = (
            f"usbfs_memory_mb is {memory}; frames of {len(hardware.depth)} RealSense may not fit and be lost"
        )
        mend = (
            f"`echo {need} | sudo tee /sys/module/usbcore/parameters/usbfs_memory_mb`, and for good: "
            f"usbcore.usbfs_memory_mb={need} on the kernel's command line"
        )
        findings.append(Finding("realsense", "advice", says, mend))
    return findings


# -- serial ports --------------------------------------------------------------------------------------------

_FTDI_RULE = 'ACTION=="add", SUBSYSTEM=="usb-serial", DRIVER=="ftdi_sio", ATTR{latency_timer}="1"'
_CH340 = (0x1A86, 0x7523)  # whose ids brltty takes for those of a Braille display


def serial_lines(hardware: Hardware, root: Path = ROOT) -> list[Finding]:
    """Findings on permissions, on adapters that hold bytes back, and on programs that take ports."""
    findings = []
    for port in hardware.ports:
        if port.problem:
            findings.append(
                Finding("serial", "severe", port.problem.split(": ")[0], port.problem.split(": ", 1)[-1])
            )
        if port.latency_ms is not None and port.latency_ms > 1:
            says = f"{port.name} holds bytes back for up to {port.latency_ms} ms (FTDI latency timer)"
            mend = (
                f"`echo 1 | sudo tee {port.latency_file}`, and for good: a file in /etc/udev/rules.d with "
                f" {_FTDI_RULE}"
            )
            findings.append(Finding("serial", "advice", says, mend))
        if port.holders:
            says = f"{port.name} is open in {', '.join(port.holders)}"
            findings.append(Finding("serial", "advice", says, "end that before the robot is to use it"))
    twice = Counter(p.usb.serial for p in hardware.ports if p.usb and p.usb.serial)
    if same := [serial for serial, count in twice.items() if count > 1]:
        says = f"several adapters have the serial number {same[0]}: /dev/serial/by-id names only one of them"
        findings.append(
            Finding("serial", "advice", says, "name them by /dev/serial/by-path, and keep their USB ports")
        )
    running = {text(process / "comm") for process in entries(root / "proc") if process.name.isdigit()}
    if "ModemManager" in running:
        says = "ModemManager runs: it may talk to a serial adapter for some seconds after it was plugged in"
        findings.append(Finding("serial", "advice", says, "`sudo systemctl mask --now ModemManager`"))
    if "brltty" in running:
        hit = any((d.vendor, d.product) == _CH340 for d in usb_devices(root))
        says = "brltty runs: it takes CH340 adapters for Braille displays, and their ports vanish"
        mend = "`sudo systemctl mask --now brltty-udev brltty` (or remove the package brltty)"
        findings.append(Finding("serial", "severe" if hit else "advice", says, mend))
    if not findings:
        count = len(hardware.ports)
        findings.append(
            Finding("serial", "good", f"{count} serial port{'s' * (count != 1)}, nothing in the way")
        )
    return findings


# -- what a USB bus must carry -------------------------------------------------------------------------------

_BYTES_PER_PIXEL = {"YUYV": 2.0, "UYVY": 2.0, "NV12": 1.5, "BGR3": 3.0, "RGB3": 3.0, "GREY": 1.0, "Y16": 2.0}
_COMPRESSED = 0.25  # MJPEG of a cluttered table at a webcam's usual quality


def assumed_modes(hardware: Hardware) -> list[CameraMode]:
    """The modes to assume without a robot's file: every plugged-in webcam at 640x480, 30 Hz, compressed where
    it offers that."""
    return [
        CameraMode(c.title, c.usb.bus, c.usb.speed_mbps, 640, 480, 30.0, _likely_fourcc(c))
        for c in hardware.cameras
        if c.usb is not None and c.capture is not False and not _is_realsense(c, hardware)
    ]


def _likely_fourcc(camera: CameraNode) -> str:
    return "MJPG" if any(m.fourcc == "MJPG" for m in camera.modes) else "YUYV"


def _is_realsense(camera: CameraNode, hardware: Hardware) -> bool:
    return any(camera.usb is not None and camera.usb.path == d.usb.path for d in hardware.depth)


def bytes_per_s(mode: CameraMode) -> float:
    per_pixel = (
        _BYTES_PER_PIXEL.get(mode.fourcc, 2.0) if mode.fourcc not in ("MJPG", "JPEG", "H264") else _COMPRESSED
    )
    return mode.width * mode.height * mode.fps * (per_pixel + 2.0 * mode.depth)


def bus_load(modes: Iterable[CameraMode]) -> list[Finding]:
    """Findings on each USB bus: the estimated data rate of its cameras against what the bus carries. Cameras
    with the same bus number share its rate, whatever hubs and sockets lie between."""
    findings = []
    by_bus: dict[int, list[CameraMode]] = {}
    for mode in modes:
        by_bus.setdefault(mode.bus, []).append(mode)
    for bus, sharing in sorted(by_bus.items()):
        speed = min(mode.speed_mbps for mode in sharing)
        # USB 2 gives at most 80 % of its microframes to isochronous transfers, and those are never full; USB
        # 3 similar
        carries = speed / 8 * 0.68 * 1e6
        load = sum(map(bytes_per_s, sharing))
        names = ", ".join(
            f"{mode.camera} {mode.width}x{mode.height} {mode.fps:g} Hz {mode.fourcc or '?'}"
            for mode in sharing
        )
        says = f"bus {bus} ({speed:g} Mbit/s): {names}: about {load / 1e6:.0f} of {carries / 1e6:.0f} MB/s"
        level: Level = "severe" if load > carries else "advice" if load > 0.75 * carries else "good"
        mend = (
            ""
            if level == "good"
            else "use MJPG, smaller pictures or a lower rate, or move a camera to a socket of another "
            "controller (`lsusb -t`)"
        )
        findings.append(Finding("cameras", level, says, mend))
    return findings


def camera_nodes(hardware: Hardware) -> list[Finding]:
    findings = []
    for camera in hardware.cameras:
        if camera.capture is False:
            continue
        if camera.problem:
            says, _, mend = camera.problem.partition(": ")
            findings.append(Finding("cameras", "severe", says, mend))
        if camera.holders:
            says = f"{camera.name} is open in {', '.join(camera.holders)}"
            findings.append(Finding("cameras", "advice", says, "end that before the robot is to use it"))
    return findings


# -- twins ---------------------------------------------------------------------------------------------------


def twins() -> list[Finding]:
    return [
        Finding("twins", "good", f"{t.name} runs (pid {t.pid}): {', '.join(map(str, t.ports.values()))}")
        for t in living_twins()
    ]
