"""`ulna doctor` on a made-up computer with known faults, and on this one."""

from __future__ import annotations

import importlib.metadata
import json
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from contracts.computer import Computer, bench

from ulna.drivers.arm import DeviceError
from ulna.drivers.cameras import v4l2
from ulna.robot.commands.doctor import page
from ulna.robot.doctor import computer as doctor_computer
from ulna.robot.doctor import doctor
from ulna.robot.doctor import robot as doctor_robot
from ulna.robot.doctor.doctor import CameraMode, Finding


def one(findings: list[Finding], *words: str) -> Finding:
    """The only finding that says all of `words`."""
    (finding,) = [f for f in findings if all(w in f.says for w in words)]
    return finding


def test_adapters_that_hold_bytes_back_and_programs_that_meddle(tmp_path: Path) -> None:
    c = bench(tmp_path / "root")
    hardware = doctor.look(c.root)
    timer = one(doctor.serial_lines(hardware, c.root), "holds bytes back", "16 ms")
    assert timer.level == "advice"
    assert "tee /sys/class/tty/ttyUSB0/device/latency_timer" in timer.mend
    assert "FT88YVRA" in timer.says

    c.process(7, "ModemManager")
    c.process(8, "brltty")
    c.process(9, "screen", "/dev/ttyACM0")
    findings = doctor.serial_lines(doctor.look(c.root), c.root)
    assert "mask --now ModemManager" in one(findings, "ModemManager").mend
    assert one(findings, "brltty").level == "advice", "no adapter here that it takes"
    assert "screen (pid 9)" in one(findings, "is open in").says
    c.usb("2-1", 0x1A86, 0x7523, "QinHeng CH340")
    assert one(doctor.serial_lines(doctor.look(c.root), c.root), "brltty").level == "severe"


def test_a_quiet_computer_raises_nothing(tmp_path: Path) -> None:
    c = Computer(tmp_path / "root")
    c.serial_port("ttyUSB0", f"{c.usb('1-1', 0x403, 0x6014, 'FTDI x', 'A')}/ttyUSB0", "usb-A")
    c.write("sys/class/tty/ttyUSB0/device/latency_timer", "1")
    (finding,) = doctor.serial_lines(doctor.look(c.root), c.root)
    assert (finding.level, finding.mend) == ("good", "")


def test_equal_serial_numbers_are_told(tmp_path: Path) -> None:
    c = Computer(tmp_path / "root")
    for i in (1, 2):
        c.serial_port(
            f"ttyACM{i}", c.usb(f"1-{i}", 0x1A86, 0x55D3, "1a86 USB Single Serial", "0001"), "", f"by{i}"
        )
    assert "by-path" in one(doctor.serial_lines(doctor.look(c.root), c.root), "serial number 0001").mend


@pytest.mark.parametrize(
    ("cameras", "fourcc", "level"),
    [(1, "YUYV", "good"), (2, "YUYV", "advice"), (3, "YUYV", "severe"), (4, "MJPG", "good")],
)
def test_cameras_on_one_usb_2_bus(cameras: int, fourcc: str, level: str) -> None:
    """640x480 YUYV at 30 Hz is 18.4 MB/s; a USB 2 bus carries about 40."""
    (load,) = doctor.bus_load(CameraMode(f"c{i}", 1, 480, 640, 480, 30, fourcc) for i in range(cameras))
    assert load.level == level
    if level == "severe":
        assert "about 55 of 41 MB/s" in load.says
        assert "MJPG" in load.mend


def test_buses_are_summed_by_themselves() -> None:
    modes = [CameraMode(f"c{bus}", bus, 480, 640, 480, 30, "YUYV") for bus in (1, 2, 3)]
    assert [f.level for f in doctor.bus_load(modes)] == ["good"] * 3
    deep = CameraMode("d", 2, 5000, 848, 480, 60, "", depth=True)  # colour and depth of a RealSense: 98 MB/s
    assert doctor.bytes_per_s(deep) == 848 * 480 * 60 * 4
    assert doctor.bus_load([deep])[0].level == "good"


def test_webcams_are_assumed_to_compress_only_where_they_say_so(tmp_path: Path) -> None:
    hardware = doctor.look(bench(tmp_path / "root").root)
    assert [w.fourcc for w in doctor.assumed_modes(hardware)] == ["YUYV", "YUYV"], (
        "a file does not tell its modes"
    )
    node = hardware.cameras[0]
    talking = type(node)(**{**node.__dict__, "modes": (v4l2.Mode("MJPG", 640, 480, (30.0,)),)})
    (mode,) = doctor.assumed_modes(doctor.Hardware([], [talking], []))
    assert (mode.fourcc, mode.bus) == ("MJPG", 1)


def test_a_realsense_on_usb_2_with_little_usb_memory(tmp_path: Path) -> None:
    c = bench(tmp_path / "root")
    c.write("sys/module/usbcore/parameters/usbfs_memory_mb", "16")
    findings = doctor.realsense(doctor.look(c.root), root=c.root)
    assert one(findings, "480 Mbit/s").level == "severe"
    assert "tee /sys/module/usbcore/parameters/usbfs_memory_mb" in one(findings, "usbfs_memory_mb is 16").mend
    c.write("sys/module/usbcore/parameters/usbfs_memory_mb", "0")
    assert not [f for f in doctor.realsense(doctor.look(c.root), root=c.root) if "usbfs" in f.says], (
        "0 is no limit"
    )


def test_libraries_that_cv2_lacks_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert [f.level for f in doctor.opencv()] == ["good"]
    # what Python finds first fails as cv2 does where there is no libGL
    (tmp_path / "cv2.py").write_text("raise ImportError('libGL.so.1: cannot open shared object file')\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    broken = one(doctor.opencv(), "libGL.so.1")
    assert broken.level == "severe"
    assert "apt-get install libgl1" in broken.mend


def test_this_python_serves() -> None:
    assert {f.level for f in doctor.python_packages()} == {"good"}


def test_a_computer_at_a_robot_does_without_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    version = importlib.metadata.version

    def without(name: str) -> Callable[[str], str]:
        def found(package: str) -> str:
            if package == name:
                raise importlib.metadata.PackageNotFoundError(package)
            return version(package)

        return found

    monkeypatch.setattr(importlib.metadata, "version", without("torch"))
    *_, packages = doctor.python_packages()
    assert packages.level == "good"
    assert packages.says.endswith("does without: torch")
    monkeypatch.setattr(importlib.metadata, "version", without("pyserial"))
    *_, packages = doctor.python_packages()
    assert (packages.level, packages.says) == ("severe", "pyserial is missing")


def test_a_loop_is_timed() -> None:
    late = doctor_computer.wake_late_ms(0.2)
    assert 0 < len(late) <= 200
    assert (late >= 0).all()
    assert any("1 kHz" in f.says for f in doctor_computer.scheduling(0.1))


def test_governor_clock_and_memory(tmp_path: Path) -> None:
    c = Computer(tmp_path / "root")
    assert doctor_computer.clock(c.root) == []
    for cpu in range(2):
        c.write(f"sys/devices/system/cpu/cpu{cpu}/cpufreq/scaling_governor", "powersave")
    c.write("proc/version", "Linux version 6.1.0-rt PREEMPT_RT Debian")
    findings = doctor_computer.scheduling(0.05, c.root)
    assert "cpupower" in one(findings, "powersave").mend
    assert one(findings, "PREEMPT_RT").level == "good"
    c.write("sys/devices/system/clocksource/clocksource0/available_clocksource", "tsc hpet")
    for source, level in (("hpet", "advice"), ("tsc", "good")):
        c.write("sys/devices/system/clocksource/clocksource0/current_clocksource", source)
        assert [f.level for f in doctor_computer.clock(c.root)] == [level]
    assert doctor_computer.shared_memory(tmp_path / "none")[0].level == "severe"


def test_the_disk_is_written_to_and_left_clean(tmp_path: Path) -> None:
    space, rate = doctor_computer.disk(tmp_path / "not" / "yet", size_mb=4)
    assert str(tmp_path) in space.says
    assert float(rate.says.split()[0]) > 0
    assert list(tmp_path.iterdir()) == []


def test_a_robots_file_against_what_is_there(tmp_path: Path) -> None:
    c = bench(tmp_path / "root")
    listening = socket.create_server(("127.0.0.1", 0))
    free = socket.create_server(("127.0.0.1", 0))
    closed = free.getsockname()[1]
    free.close()
    c.process(9, "screen", "/dev/ttyUSB0")
    file = tmp_path / "robot.toml"
    file.write_text(f"""
        name = "mine"
        unknown = 3
        [arms.left]
        driver = "so101"
        port = "/dev/serial/by-id/usb-1a86_USB_Single_Serial_58FA083261-if00"
        [arms.right]
        driver = "so101"
        port = "/dev/serial/by-id/usb-gone"
        [arms.loose]
        driver = "so101"
        port = "/dev/ttyACM0"
        [arms.nowhere]
        driver = "koch"
        [leaders.left]
        driver = "koch_leader"
        port = "/dev/ttyUSB0"
        [cameras.front]
        driver = "opencv"
        device = "/dev/v4l/by-id/usb-046d_HD_Webcam_C0FFEE0-video-index0"
        width = 1280
        height = 720
        fps = 30
        [cameras.web]
        driver = "opencv"
        device = "http://user:secret@127.0.0.1:{listening.getsockname()[1]}/stream"
        [cameras.off]
        driver = "opencv"
        device = "http://user:secret@127.0.0.1:{closed}/stream"
        [cameras.deep]
        driver = "realsense"
        serial = "0042"
        [teleoperators.gamepad]
    """)
    config = doctor_robot.read(file)
    hardware = doctor.look(c.root)
    try:
        findings = doctor_robot.devices(config, hardware, c.root)
    finally:
        listening.close()
    levels = {f.says.split("]")[0][1:]: f.level for f in findings}
    assert levels == {
        "arms.left": "good",
        "arms.right": "severe",
        "arms.loose": "advice",
        "arms.nowhere": "severe",
        "leaders.left": "advice",  # the last of two: not a lasting name
        "cameras.front": "good",
        "cameras.web": "good",
        "cameras.off": "severe",
        "cameras.deep": "severe",
        "teleoperators.gamepad": "good",
    }
    assert "screen (pid 9)" in one(findings, "leaders.left", "open in").says
    assert "usb-1a86_USB_Single_Serial_58FA083261-if00" in one(findings, "arms.loose").mend
    assert "secret" not in page(findings)
    (mode,) = doctor_robot.requested_modes(config, hardware, c.root)
    assert (mode.camera, mode.bus, mode.width) == ("front", 1, 1280)
    assert doctor.bus_load([mode])[0].level == "severe", "1280x720 YUYV at 30 Hz does not go through USB 2"


def test_realsense_tables_are_looked_at_by_their_source(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "made.db3").touch()
    with socket.create_server(("127.0.0.1", 0)) as listening:
        config: dict[str, Any] = {
            "cameras": {
                "tcp": {"source": "twin", "address": f"tcp:127.0.0.1:{listening.getsockname()[1]}"},
                "unix": {"source": "twin", "address": f"unix:{tmp_path}/made.db3"},
                "gone": {"source": "twin", "address": f"unix:{tmp_path}/none"},
                "played": {"source": "recording", "path": f"{tmp_path}/made.db3"},
                "lost": {"source": "recording", "path": f"{tmp_path}/none.db3"},
                "live": {"serial": "0042", "width": float("nan"), "fps": 10**400},
            }
        }
        for table in config["cameras"].values():
            table["driver"] = "realsense"
        hardware = doctor.Hardware([], [], [])
        levels = {f.says.split("]")[0][9:]: f.level for f in doctor_robot.devices(config, hardware)}
    assert levels == {
        "tcp": "good",
        "unix": "good",
        "gone": "severe",
        "played": "good",
        "lost": "severe",
        "live": "severe",
    }
    monkeypatch.setitem(sys.modules, "pyrealsense2", None)  # not installed
    assert doctor.realsense(hardware)[0].level == "advice"
    assert doctor_robot.wants_realsense(config)
    assert doctor.realsense(hardware, required=True)[0].level == "severe"
    assert not doctor_robot.wants_realsense({"cameras": {"a": {"driver": "opencv"}}})


def test_a_robots_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(DeviceError, match="cannot read the robot file"):
        doctor_robot.read(tmp_path / "none.toml")
    (tmp_path / "bad.toml").write_text("name = ")
    with pytest.raises(DeviceError, match="not TOML"):
        doctor_robot.read(tmp_path / "bad.toml")
    assert doctor_robot.devices({"arms": 3, "cameras": {"a": 1}}, doctor.Hardware([], [], [])) == [
        Finding("robot", "good", "the file names no device of the real world")
    ]


def test_the_page_puts_first_what_matters_most() -> None:
    text = page(
        [
            Finding("a", "good", "fine"),
            Finding("b", "advice", "so so", "do x"),
            Finding("c", "severe", "bad", "do y"),
        ]
    )
    assert text.index("bad") < text.index("-> do y") < text.index("so so") < text.index("fine")
    assert text.endswith("1 to be mended first, 1 worth mending, 1 good")


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "robot.toml").write_text(
        '[arms.arm]\ndriver = "so101"\nport = "/dev/serial/by-id/usb-gone"\n'
        '[cameras.deep]\ndriver = "realsense"\n'
    )
    (tmp_path / "pyrealsense2.py").write_text("raise ImportError('not for this Python')\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    options = ("--seconds", "0.1", "--data", str(tmp_path), "--json")
    run = run_ulna("doctor", "--robot", str(tmp_path / "robot.toml"), *options)
    answer = json.loads(run.stdout)
    missing_device = [f for f in answer["findings"] if "usb-gone is not there" in f["says"]]
    assert missing_device
    assert missing_device[0]["level"] == "severe"
    assert run.returncode == 1
    assert [f["level"] for f in answer["findings"] if "not for this Python" in f["says"]] == ["severe"]
    alone = run_ulna("doctor", *options)
    assert alone.returncode == (1 if json.loads(alone.stdout)["severe"] else 0)
    assert run_ulna("doctor", "--robot", "none.toml").returncode == 1


def run_ulna(*args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "ulna.robot.cli", *args], capture_output=True, text=True, check=False
    )
