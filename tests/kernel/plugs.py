"""Devices that a test plugs into its own kernel: a USB serial adapter, a gamepad, a SpaceMouse and a webcam,
with udev's names for them.

Numbers and layouts are those of the kernel's `linux/uinput.h`, `linux/uhid.h` and
`linux/input-event-codes.h`."""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import struct
import subprocess
import threading
import time
import tty
from collections.abc import Callable
from pathlib import Path
from typing import Self


def wait_for(what: str, is_so: Callable[[], bool], seconds: float = 30.0) -> None:
    """The kernel is emulated: everything takes its time."""
    end = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < end, f"{what}: not within {seconds:g} s"
        time.sleep(0.05)


def udev_runs() -> bool:
    return Path("/run/udev/control").exists()


def settle() -> None:
    """Until udev has made the names of what was plugged in."""
    if udev_runs():
        subprocess.run(["udevadm", "settle", "--timeout=30"], check=True)


# USB serial


class SerialAdapter:
    """A USB CDC-ACM adapter as Feetech's boards have: this side is `/dev/ttyGS0`, the robot's
    `/dev/serial/by-id/…`.

    `carry(pty)` passes all bytes between the adapter and a twin's pty, as the adapter's own chip would."""

    VENDOR, PRODUCT, SERIAL = 0x1A86, 0x55D3, "58FA083261"
    BY_ID = Path("/dev/serial/by-id/usb-1a86_USB_Single_Serial_58FA083261-if00")

    def __init__(self) -> None:
        self._folder = Path("/sys/kernel/config/usb_gadget/adapter")
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Self:
        g = self._folder
        (g / "strings/0x409").mkdir(parents=True)
        (g / "idVendor").write_text(hex(self.VENDOR))
        (g / "idProduct").write_text(hex(self.PRODUCT))
        (g / "strings/0x409/serialnumber").write_text(self.SERIAL)
        (g / "strings/0x409/manufacturer").write_text("1a86")
        (g / "strings/0x409/product").write_text("USB Single Serial")
        (g / "configs/c.1").mkdir()
        (g / "functions/acm.0").mkdir()
        (g / "configs/c.1/acm.0").symlink_to(g / "functions/acm.0")
        self.plug_in()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        if self._thread is not None:
            self._thread.join()
        g = self._folder
        if (g / "UDC").read_text().strip():
            self.unplug()
        (g / "configs/c.1/acm.0").unlink()
        for folder in ("configs/c.1", "functions/acm.0", "strings/0x409", ""):
            (g / folder).rmdir()

    def plug_in(self) -> None:
        (self._folder / "UDC").write_text(os.listdir("/sys/class/udc")[0])
        wait_for("the adapter's tty", lambda: Path("/dev/ttyACM0").exists())
        settle()
        if not udev_runs():  # then as udev would
            self.BY_ID.parent.mkdir(parents=True, exist_ok=True)
            self.BY_ID.symlink_to("../../ttyACM0")
        wait_for("the adapter's lasting name", self.BY_ID.exists)

    def unplug(self) -> None:
        (self._folder / "UDC").write_text("\n")
        wait_for(
            "the adapter to go", lambda: not Path("/dev/ttyACM0").exists() or not _is_char("/dev/ttyACM0")
        )
        settle()
        if not udev_runs():
            self.BY_ID.unlink(missing_ok=True)

    def carry(self, port: str) -> None:
        self._thread = threading.Thread(target=self._carry, args=(port,), name="adapter", daemon=True)
        self._thread.start()

    def _carry(self, port: str) -> None:
        import serial

        with serial.Serial(port, 1_000_000, timeout=0) as servos:
            while not self._stopping.is_set():
                try:
                    line = os.open("/dev/ttyGS0", os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK)
                except OSError:
                    time.sleep(0.05)
                    continue
                with contextlib.suppress(OSError):  # hung up by `unplug`
                    tty.setraw(line)
                    self._carry_until_hung_up(line, servos.fileno())
                os.close(line)

    def _carry_until_hung_up(self, line: int, servos: int) -> None:
        other_end = {line: servos, servos: line}
        poll = select.poll()
        for fd in other_end:
            poll.register(fd, select.POLLIN)
        while not self._stopping.is_set():
            for fd, events in poll.poll(100):
                if events & (select.POLLHUP | select.POLLERR):
                    time.sleep(0.05)
                    raise OSError("hung up")
                if data := os.read(fd, 4096):
                    os.write(other_end[fd], data)


def _is_char(path: str) -> bool:
    with contextlib.suppress(OSError):
        return Path(path).is_char_device()
    return False


# gamepad

EV_KEY, EV_ABS = 1, 3
BTN_A, BTN_B, BTN_X, BTN_Y, BTN_TL, BTN_TR, BTN_SELECT, BTN_START, BTN_MODE, BTN_THUMBL, BTN_THUMBR = (
    0x130, 0x131, 0x133, 0x134, 0x136, 0x137, 0x13A, 0x13B, 0x13C, 0x13D, 0x13E,
)  # fmt: skip
ABS_X, ABS_Y, ABS_Z, ABS_RX, ABS_RY, ABS_RZ, ABS_HAT0X, ABS_HAT0Y = 0, 1, 2, 3, 4, 5, 16, 17
_UI_DEV_CREATE, _UI_DEV_DESTROY, _UI_DEV_SETUP, _UI_ABS_SETUP = 0x5501, 0x5502, 0x405C5503, 0x401C5504
_UI_SET_EVBIT, _UI_SET_KEYBIT, _UI_SET_ABSBIT = 0x40045564, 0x40045565, 0x40045567


class Gamepad:
    """An Xbox 360 pad by uinput, with the axes and buttons that the kernel's xpad driver gives one."""

    NAME, VENDOR, PRODUCT = "Microsoft X-Box 360 pad", 0x045E, 0x028E
    STICKS, TRIGGERS, HATS = (ABS_X, ABS_Y, ABS_RX, ABS_RY), (ABS_Z, ABS_RZ), (ABS_HAT0X, ABS_HAT0Y)
    BUTTONS = (
        BTN_A, BTN_B, BTN_X, BTN_Y, BTN_TL, BTN_TR, BTN_SELECT, BTN_START, BTN_MODE, BTN_THUMBL, BTN_THUMBR,
    )  # fmt: skip

    def __enter__(self) -> Self:
        self._fd = fd = os.open("/dev/uinput", os.O_WRONLY | os.O_NONBLOCK)
        for kind in (EV_KEY, EV_ABS):
            fcntl.ioctl(fd, _UI_SET_EVBIT, kind)
        for button in self.BUTTONS:
            fcntl.ioctl(fd, _UI_SET_KEYBIT, button)
        ranges = {s: (-32768, 32767, 16, 128) for s in self.STICKS}
        ranges |= {t: (0, 255, 0, 0) for t in self.TRIGGERS} | {h: (-1, 1, 0, 0) for h in self.HATS}
        for axis, (low, high, fuzz, flat) in ranges.items():
            fcntl.ioctl(fd, _UI_SET_ABSBIT, axis)
            fcntl.ioctl(fd, _UI_ABS_SETUP, struct.pack("<Hxx6i", axis, 0, low, high, fuzz, flat, 0))
        usb = 3
        setup = struct.pack("<4H80sI", usb, self.VENDOR, self.PRODUCT, 0x110, self.NAME.encode(), 0)
        fcntl.ioctl(fd, _UI_DEV_SETUP, setup)
        fcntl.ioctl(fd, _UI_DEV_CREATE)
        settle()
        return self

    def __exit__(self, *_: object) -> None:
        self.unplug()

    def unplug(self) -> None:
        if self._fd >= 0:
            fcntl.ioctl(self._fd, _UI_DEV_DESTROY)
            os.close(self._fd)
            self._fd = -1
            settle()

    def move(self, axis: int, value: int) -> None:
        self._event(EV_ABS, axis, value)

    def press(self, button: int, down: bool = True) -> None:
        self._event(EV_KEY, button, int(down))

    def _event(self, kind: int, code: int, value: int) -> None:
        os.write(
            self._fd, struct.pack("<qqHHi", 0, 0, kind, code, value) + struct.pack("<qqHHi", 0, 0, 0, 0, 0)
        )


# SpaceMouse

_UHID_CREATE2, _UHID_INPUT2, _UHID_DESTROY = 11, 12, 1
_UHID_EVENT_BYTES = 4380


def _axes(report: int, first_usage: int) -> bytes:
    """Three 16-bit axes of -350..350 in one report."""
    usages = b"".join(bytes([0x09, first_usage + i]) for i in range(3))
    return (
        b"\xa1\x00\x85"
        + bytes([report])
        + b"\x16\xa2\xfe\x26\x5e\x01"
        + usages
        + b"\x75\x10\x95\x03\x81\x06\xc0"
    )


class SpaceMouse:
    """A SpaceMouse Compact by uhid: report 1 translation, 2 rotation, 3 buttons."""

    NAME, VENDOR, PRODUCT = "3Dconnexion SpaceMouse Compact", 0x256F, 0xC635
    _BUTTONS = (
        b"\xa1\x02\x85\x03\x05\x09\x19\x01\x29\x02\x15\x00\x25\x01"
        b"\x75\x01\x95\x02\x81\x02\x95\x0e\x81\x03\xc0"
    )
    DESCRIPTOR = b"\x05\x01\x09\x08\xa1\x01" + _axes(1, 0x30) + _axes(2, 0x33) + _BUTTONS + b"\xc0"

    def __enter__(self) -> Self:
        self._fd = os.open("/dev/uhid", os.O_RDWR)
        setup = struct.pack(
            "<I128s64s64sHHIIII",
            _UHID_CREATE2, self.NAME.encode(), b"usb-dummy/input0", b"",
            len(self.DESCRIPTOR), 3, self.VENDOR, self.PRODUCT, 0, 0,
        )  # fmt: skip
        os.write(self._fd, (setup + self.DESCRIPTOR).ljust(_UHID_EVENT_BYTES, b"\0"))
        wait_for(
            "the SpaceMouse's hidraw node", lambda: any(n.startswith("hidraw") for n in os.listdir("/dev"))
        )
        settle()
        return self

    def __exit__(self, *_: object) -> None:
        self.unplug()

    def unplug(self) -> None:
        if self._fd >= 0:
            os.write(self._fd, struct.pack("<I", _UHID_DESTROY).ljust(_UHID_EVENT_BYTES, b"\0"))
            os.close(self._fd)
            self._fd = -1
            settle()

    def push(self, x: int, y: int, z: int) -> None:
        self._report(struct.pack("<B3h", 1, x, y, z))

    def turn(self, x: int, y: int, z: int) -> None:
        self._report(struct.pack("<B3h", 2, x, y, z))

    def press(self, buttons: int) -> None:
        self._report(struct.pack("<BH", 3, buttons))

    def _report(self, report: bytes) -> None:
        event = struct.pack("<IH", _UHID_INPUT2, len(report)) + report
        os.write(self._fd, event.ljust(_UHID_EVENT_BYTES, b"\0"))


# webcam


_QUERYCTRL, _S_CTRL, _NEXT_CONTROL = 0xC0445624, 0xC008561C, 0x80000000  # linux/videodev2.h


class Webcam:
    """The camera of the kernel's vivid driver, which can be taken away and put back."""

    path = Path("/dev/v4l/by-path/platform-vivid.0-video-index0")

    def __init__(self) -> None:
        if not udev_runs():
            self._name_it()
        self._stamp_at_exposure()

    def unplug(self) -> None:
        Path("/sys/bus/platform/drivers/vivid/unbind").write_text("vivid.0")
        settle()
        if not udev_runs():
            self.path.unlink(missing_ok=True)

    def plug_in(self) -> None:
        Path("/sys/bus/platform/drivers/vivid/bind").write_text("vivid.0")
        settle()
        if not udev_runs():
            self._name_it()
        wait_for("the webcam's lasting name", self.path.exists)
        self._stamp_at_exposure()

    def _stamp_at_exposure(self) -> None:
        """vivid stamps a frame with the end of its transfer, 0.9 periods after it has handed it over: a time
        that is yet to come. A real camera's frame is older than its arrival; so is vivid's with the other
        setting."""
        fd = os.open(self.path, os.O_RDWR)
        try:
            control = bytearray(68)
            while not control[8:40].startswith(b"Timestamp Source\0"):
                (last,) = struct.unpack_from("<I", control)
                struct.pack_into("<I", control, 0, last | _NEXT_CONTROL)
                fcntl.ioctl(fd, _QUERYCTRL, control)
            start_of_exposure = 1
            fcntl.ioctl(fd, _S_CTRL, struct.pack("<4si", control[:4], start_of_exposure))
        finally:
            os.close(fd)

    def _name_it(self) -> None:
        for node in Path("/sys/class/video4linux").glob("video*"):
            if (node / "name").read_text().strip() == "vivid-000-vid-cap":
                self.path.parent.mkdir(parents=True, exist_ok=True)
                self.path.unlink(missing_ok=True)
                self.path.symlink_to(f"../../{node.name}")
