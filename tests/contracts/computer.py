"""A computer's `sys`, `dev` and `proc` as real files and links in a folder, laid out as the kernel and udev
lay them out."""

from __future__ import annotations

from pathlib import Path


class Computer:
    def __init__(self, root: Path) -> None:
        self.root = root
        for folder in ("sys/bus/usb/devices", "sys/class/tty", "dev", "proc", "etc"):
            (root / folder).mkdir(parents=True)

    def write(self, path: str, text: str) -> Path:
        file = self.root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text + "\n")
        return file

    def link(self, path: str, target: str) -> None:
        """target: relative to the root; the link itself is relative, as those of sysfs and udev are."""
        link = self.root / path
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(Path(*[".."] * (len(link.relative_to(self.root).parts) - 1)) / target)

    def usb(self, path: str, vendor: int, product: int, name: str, serial: str = "", speed: int = 480) -> str:
        """A USB device with one interface. Returns the interface's folder."""
        bus = path.split("-")[0]
        folder = f"sys/devices/pci0000:00/0000:00:14.0/usb{bus}/{path}"
        maker, _, product_name = name.partition(" ")
        for field, text in {
            "idVendor": f"{vendor:04x}",
            "idProduct": f"{product:04x}",
            "manufacturer": maker,
            "product": product_name,
            "speed": str(speed),
        }.items():
            self.write(f"{folder}/{field}", text)
        if serial:
            self.write(f"{folder}/serial", serial)
        self.link(f"sys/bus/usb/devices/{path}", folder)
        interface = f"{folder}/{path}:1.0"
        (self.root / interface).mkdir(parents=True)
        return interface

    def serial_port(self, tty: str, interface: str, by_id: str = "", by_path: str = "") -> None:
        folder = f"{interface}/tty/{tty}"
        (self.root / folder).mkdir(parents=True)
        self.link(f"sys/class/tty/{tty}", folder)
        self.link(f"{folder}/device", interface)
        self.node(tty, by_id and f"serial/by-id/{by_id}", by_path and f"serial/by-path/{by_path}")

    def node(self, name: str, *links: str) -> None:
        self.write(f"dev/{name}", "")
        for link in links:
            if link:
                self.link(f"dev/{link}", f"dev/{name}")

    def camera(self, video: str, interface: str, name: str, by_id: str) -> None:
        folder = f"{interface}/video4linux/{video}"
        self.write(f"{folder}/name", name)
        self.link(f"sys/class/video4linux/{video}", folder)
        self.link(f"{folder}/device", interface)
        self.node(video, f"v4l/by-id/{by_id}")

    def input(self, event: str, folder: str, name: str, ids: tuple[int, int], keys: str, by_id: str) -> None:
        self.write(f"{folder}/name", name)
        self.write(f"{folder}/id/vendor", f"{ids[0]:04x}")
        self.write(f"{folder}/id/product", f"{ids[1]:04x}")
        self.write(f"{folder}/capabilities/key", keys)
        (self.root / folder / event).mkdir()
        self.link(f"sys/class/input/{event}", f"{folder}/{event}")
        self.link(f"{folder}/{event}/device", folder)
        self.node(f"input/{event}", by_id and f"input/by-id/{by_id}")

    def process(self, pid: int, comm: str, *devices: str) -> None:
        self.write(f"proc/{pid}/comm", comm)
        handles = self.root / f"proc/{pid}/fd"
        handles.mkdir()
        for i, device in enumerate(devices):
            (handles / str(3 + i)).symlink_to(device)


def bench(root: Path) -> Computer:
    """A robot's computer: a leader on an FTDI adapter, a follower on a CH343, two webcams behind one hub, a
    gamepad, a SpaceMouse, a RealSense on USB 2."""
    c = Computer(root)
    follower = c.usb("1-2.1", 0x1A86, 0x55D3, "1a86 USB Single Serial", "58FA083261")
    c.serial_port("ttyACM0", follower, "usb-1a86_USB_Single_Serial_58FA083261-if00", "pci-0-usb-0:2.1:1.0")
    leader = c.usb("1-2.10", 0x0403, 0x6014, "FTDI USB <-> Serial Converter", "FT88YVRA", 480)
    port = f"{leader}/ttyUSB0"
    c.write(f"{port}/latency_timer", "16")
    c.serial_port("ttyUSB0", port, "usb-FTDI_USB_Serial_FT88YVRA-if00-port0")
    (root / "sys/class/tty/ttyS0/device").mkdir(parents=True)  # a PC's own, that leads nowhere
    for i, port_number in enumerate((3, 4)):
        camera = c.usb(f"1-3.{port_number}", 0x046D, 0x0825, "Logitech HD Webcam", f"C0FFEE{i}")
        c.camera(f"video{2 * i}", camera, "HD Webcam", f"usb-046d_HD_Webcam_C0FFEE{i}-video-index0")
    pad = c.usb("1-4", 0x045E, 0x028E, "Microsoft X-Box 360 pad", "", 12)
    c.input(
        "event7",
        f"{pad}/input/input9",
        "Microsoft X-Box 360 pad",
        (0x045E, 0x028E),
        "7cdb000000000000 0 0 0 0",  # what the kernel shows for this pad on a 64 bit computer
        "usb-Microsoft_X-Box_360_pad-event-joystick",
    )
    keys = "402000000 3803078f800d001 feffffdfffefffff fffffffffffffffe"
    keyboard = "sys/devices/platform/i8042/input/input0"
    c.input("event0", keyboard, "AT keyboard", (1, 1), keys, "")
    mouse = c.usb("1-5", 0x256F, 0xC635, "3Dconnexion SpaceMouse Compact", "", 12)
    hid = f"{mouse}/0003:256F:C635.0001"
    c.write(
        f"{hid}/uevent",
        "DRIVER=hid-generic\nHID_ID=0003:0000256F:0000C635\nHID_NAME=SpaceMouse Compact\nHID_UNIQ=",
    )
    (root / hid / "hidraw/hidraw0").mkdir(parents=True)
    c.link("sys/class/hidraw/hidraw0", f"{hid}/hidraw/hidraw0")
    c.link(f"{hid}/hidraw/hidraw0/device", hid)
    c.node("hidraw0")
    c.usb("1-6", 0x8086, 0x0B07, "Intel(R) RealSense(TM) Depth Camera 435", "123456", 480)
    return c
