"""What is plugged in, on a made-up computer of real files and links, and with a pty, processes and twins of
this one."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from contracts.computer import Computer, bench

from ulna.drivers.arm import DeviceError
from ulna.drivers.cameras import v4l2
from ulna.drivers.devices import (
    cameras,
    depth_cameras,
    gamepads,
    living_twins,
    runtime_folder,
    serial_ports,
    spacemice,
)
from ulna.drivers.servos.probe import ServoFinding, probe
from ulna.drivers.sysfs import access_problem, holders, usb_devices
from ulna.drivers.twins.plant import Plant
from ulna.drivers.twins.serial_twin import SerialTwin, from_json

pytestmark = pytest.mark.realtime


@pytest.fixture
def root() -> Iterator[Path]:
    """Readable for other users too, which pytest's own folder is not."""
    folder = Path(tempfile.mkdtemp(prefix="ulna-devices-"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


def test_serial_ports_have_their_lasting_names_and_usb_identity(root: Path) -> None:
    bench(root)
    follower, leader = serial_ports(root)
    assert follower.device == "/dev/ttyACM0"
    assert follower.names == (
        "/dev/serial/by-id/usb-1a86_USB_Single_Serial_58FA083261-if00",
        "/dev/serial/by-path/pci-0-usb-0:2.1:1.0",
    )
    assert follower.name == follower.names[0]
    assert follower.usb is not None
    assert (follower.usb.vendor, follower.usb.product) == (0x1A86, 0x55D3)
    assert (follower.usb.serial, follower.usb.path, follower.usb.bus) == ("58FA083261", "1-2.1", 1)
    assert follower.latency_ms is None, "only FTDI's driver has a latency timer"
    assert leader.latency_ms == 16
    assert leader.usb is not None
    assert leader.usb.name == "FTDI USB <-> Serial Converter"
    # the file that the mend names is the one to write to
    assert leader.latency_file is not None
    assert (root / leader.latency_file[1:]).read_text().strip() == "16"


def test_ports_of_equal_adapters_are_told_apart_by_where_they_hang(root: Path) -> None:
    c = Computer(root)
    for i, path in enumerate(("3-1", "3-2")):  # CH340: no serial number, so by-id would be one name for both
        c.serial_port(
            f"ttyUSB{i}", c.usb(path, 0x1A86, 0x7523, "QinHeng USB Serial"), "", f"pci-usb-0:{i + 1}:1.0"
        )
    assert [p.name for p in serial_ports(root)] == [
        "/dev/serial/by-path/pci-usb-0:1:1.0",
        "/dev/serial/by-path/pci-usb-0:2:1.0",
    ]


def test_an_empty_computer_has_nothing(root: Path) -> None:
    for what in (serial_ports, cameras, depth_cameras, gamepads, spacemice, usb_devices):
        assert what(root) == []


def test_who_holds_a_port(root: Path) -> None:
    c = bench(root)
    c.process(41, "python", "/dev/null", "/dev/ttyACM0")
    c.process(42, "bash", "/dev/ttyACM01")
    c.write("proc/43/comm", "somebody else's")  # whose fd folder we may not read
    assert holders("/dev/ttyACM0", root) == [(41, "python")]
    assert serial_ports(root)[0].holders == ("python (pid 41)",)


def test_who_holds_a_real_terminal() -> None:
    master, slave = pty.openpty()
    try:
        assert os.getpid() in dict(holders(os.ttyname(slave)))
    finally:
        name = os.ttyname(slave)
        os.close(slave)
        os.close(master)
    assert holders(name) == []


def test_a_port_that_may_not_be_opened_names_the_group_to_join(root: Path) -> None:
    """As a user without rights: root may open anything."""
    c = bench(root)
    port = c.root / "dev/ttyACM0"
    port.chmod(0o660)
    if os.geteuid() != 0:
        pytest.skip("needs to change a file's group")
    shutil.chown(port, 0, "dialout")
    (c.root / "dev/ttyUSB0").chmod(0o600)
    os.seteuid(65534)
    try:
        problem = access_problem("/dev/ttyACM0", root)
        for_root = access_problem("/dev/ttyUSB0", root)
        (node,) = spacemice(root)
        free = node.problem
        os.seteuid(0)
        (c.root / "dev/hidraw0").chmod(0o600)
        os.seteuid(65534)
        (node,) = spacemice(root)
    finally:
        os.seteuid(0)
    assert "usermod -aG dialout" in problem
    assert "for root alone" in for_root
    assert free == "", "reading is enough"
    assert 'KERNELS=="*:256F:*"' in node.problem
    assert "udevadm" in node.problem
    assert access_problem("/dev/ttyACM0", root) == ""


def test_webcams_are_named_but_a_file_is_no_camera(root: Path) -> None:
    bench(root)
    first, second = cameras(root)
    assert first.name == "/dev/v4l/by-id/usb-046d_HD_Webcam_C0FFEE0-video-index0"
    assert second.usb is not None
    assert second.usb.serial == "C0FFEE1"
    assert (first.title, first.capture, first.modes) == ("HD Webcam", None, ())


def test_asking_something_else_for_its_modes(tmp_path: Path) -> None:
    assert v4l2.ask(Path("/dev/null")) is None
    with pytest.raises(FileNotFoundError):
        v4l2.ask(tmp_path / "video0")


def test_gamepads_are_told_from_keyboards_by_their_buttons(root: Path) -> None:
    bench(root)
    (pad,) = gamepads(root)
    assert pad.name == "/dev/input/by-id/usb-Microsoft_X-Box_360_pad-event-joystick"
    assert (pad.device, pad.title, pad.vendor) == ("/dev/input/event7", "Microsoft X-Box 360 pad", 0x045E)


def test_spacemice(root: Path) -> None:
    c = bench(root)
    for i, ids in enumerate(
        ("0000046D:0000C626", "0000046D:0000C52B", "0000046D:0000C61D"), 1
    ):  # an old SpaceNavigator; a mouse's receiver; a gamepad whose number lies among those of SpaceMice
        c.write(f"sys/devices/other{i}/uevent", f"HID_ID=0003:{ids}\nHID_NAME=Logitech {i}")
        (root / f"sys/class/hidraw/hidraw{i}").mkdir()
        c.link(f"sys/class/hidraw/hidraw{i}/device", f"sys/devices/other{i}")
        c.node(f"hidraw{i}")
    assert [(m.device, m.product) for m in spacemice(root)] == [
        ("/dev/hidraw0", 0xC635),
        ("/dev/hidraw1", 0xC626),
    ]


def test_a_realsense_that_librealsense_does_not_see_says_so(root: Path) -> None:
    """It hangs on the made-up computer only: this one's librealsense is really asked."""
    bench(root)
    (camera,) = depth_cameras(root)
    assert camera.usb.path == "1-6"
    assert camera.usb.speed_mbps == 480
    assert camera.serial is None
    assert "librealsense" in camera.why_not


def test_the_runtime_folder_is_for_this_user_alone(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(root))
    folder = runtime_folder()
    assert folder == root / "ulna/twins"
    assert folder.stat().st_mode & 0o777 == 0o700
    assert runtime_folder() == folder
    folder.chmod(0o755)
    with pytest.raises(DeviceError, match="chmod 700"):
        runtime_folder()
    folder.rmdir()
    (root / "elsewhere").mkdir(mode=0o700)
    folder.symlink_to(root / "elsewhere")
    with pytest.raises(DeviceError, match="not a folder of this user alone"):
        runtime_folder()
    if os.geteuid() == 0:
        folder.unlink()
        os.chown(root / "ulna", 65534, -1)
        with pytest.raises(DeviceError, match="not a folder of this user alone"):
            runtime_folder()


def test_twins_are_listed_while_they_live(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(root))
    assert living_twins() == []
    note = runtime_folder() / "so101-1.json"
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        info = {
            "name": "so101-1",
            "pid": process.pid,
            "ports": {"arm": "/tmp/x"},
            "toml": "so101.toml",
            "more": 1,
        }
        note.write_text(json.dumps(info))
        (twin,) = living_twins()
        assert (twin.name, twin.pid, twin.ports, twin.toml) == (
            "so101-1",
            process.pid,
            {"arm": "/tmp/x"},
            "so101.toml",
        )
        # an old note whose number has gone to another process since
        an_hour_ago = time.time() - 3600
        os.utime(note, (an_hour_ago, an_hour_ago))
        assert living_twins() == []
        os.utime(note)
        process.kill()
    assert living_twins() == []
    note.write_text("{half")
    (note.parent / "other.json").write_text("[]")
    assert living_twins() == []


@contextlib.contextmanager
def two_servos(protocol: str, model: int) -> Iterator[tuple[SerialTwin, Plant]]:
    plant = Plant.create(("a", "b"), np.zeros(2), np.ones(2))
    servos = [{"id": i + 1, "model": model, "joint": i, "zero_count": 2048} for i in range(2)]
    setup = {"protocol": protocol, "plant": str(plant.path), "servos": servos, "baud": 1_000_000}
    try:
        with from_json(setup) as twin:
            yield twin, plant
    finally:
        plant.remove()


@pytest.mark.parametrize(
    ("protocol", "model", "name"), [("feetech", 777, "STS3215"), ("dynamixel", 1200, "XL330-M288")]
)
def test_probing_a_port_finds_servos_and_changes_nothing(protocol: str, model: int, name: str) -> None:
    with two_servos(protocol, model) as (twin, plant):
        answer = run_ulna("devices", "--probe", twin.port, "--json")
    assert answer.returncode == 0
    assert json.loads(answer.stdout)["servos"] == [
        asdict(ServoFinding(protocol, 1_000_000, i, model, name)) for i in (1, 2)
    ]
    assert not plant.torque.any()
    assert not plant.goal.any()


def test_probing_finds_servos_behind_an_adapter_that_holds_bytes_back() -> None:
    """For 16 ms, as an FTDI chip whose latency timer was never set."""
    with two_servos("feetech", 777) as (twin, _):
        twin.faults.delay_s = 0.016
        assert [f.id for f in probe(twin.port, dynamixel=())] == [1, 2]


def test_probing_a_silent_or_a_missing_port() -> None:
    master, slave = pty.openpty()
    try:
        silent = run_ulna("devices", "--probe", os.ttyname(slave))
    finally:
        os.close(slave)
        os.close(master)
    assert silent.returncode == 1
    missing = run_ulna("devices", "--probe", "/dev/ttyNONE")
    assert missing.returncode == 1
    assert "there is no port /dev/ttyNONE" in missing.stderr


def test_the_command_lists_what_is_there() -> None:
    text = run_ulna("devices")
    assert text.returncode == 0
    assert text.stdout.startswith("serial ports:")
    answer = json.loads(run_ulna("devices", "--json").stdout)
    assert set(answer) == {"serial_ports", "cameras", "realsense", "gamepads", "spacemice", "twins"}


def run_ulna(*args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "ulna.robot.cli", *args], capture_output=True, text=True, check=False
    )
