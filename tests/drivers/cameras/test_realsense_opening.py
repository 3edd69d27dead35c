"""Which RealSense camera is opened, in which mode and with which settings; a refusal names what there is."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from contracts.realsense import FPS, MODEL, NEAR, SIZE, H, W, frames, record_box, twin

from ulna.drivers.arm import DeviceError
from ulna.drivers.cameras.capture import Refused
from ulna.drivers.cameras.librealsense import CameraModel, SoftwareCamera, load
from ulna.drivers.cameras.realsense import Config, RealSenseSource, make, source
from ulna.drivers.cameras.realsense_feeds import find_device, set_options

pytestmark = pytest.mark.realtime


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return record_box(tmp_path_factory.mktemp("recordings") / "box.db3")


# the path of a live camera


@pytest.fixture
def plugged_in(recording: Path) -> Iterator[Any]:
    """A context of librealsense in which the recorded camera is found by its serial number, as one on USB
    is."""
    context = load().context()
    device = context.load_device(str(recording))  # there for as long as it is held
    yield context
    del device
    with contextlib.suppress(RuntimeError):
        context.unload_device(str(recording))


def test_a_live_camera_is_found_by_its_serial_and_streams(plugged_in: Any) -> None:
    camera = RealSenseSource(Config(serial=MODEL.serial, **SIZE), plugged_in)
    info = camera.open()
    try:
        assert MODEL.serial in info.device
        assert info.depth_scale_m == pytest.approx(0.001)
        for frame in frames(camera, 5):
            assert frame.depth is not None
            assert (frame.depth == NEAR).any()
            assert frame.t_capture_ns <= frame.t_receive_ns
    finally:
        camera.close()


def test_a_live_camera_that_goes_away(plugged_in: Any, recording: Path) -> None:
    camera = RealSenseSource(Config(serial=MODEL.serial, **SIZE), plugged_in)
    camera.open()
    try:
        frames(camera, 2)
        plugged_in.unload_device(str(recording))
        with pytest.raises(DeviceError, match=f"the RealSense camera {MODEL.serial} was unplugged"):
            frames(camera, 1000)
    finally:
        camera.close()
    with pytest.raises(DeviceError, match="none is plugged in"):
        camera.open()


def test_a_live_camera_is_asked_for_its_modes(plugged_in: Any) -> None:
    camera = RealSenseSource(Config(serial=MODEL.serial), plugged_in)
    with pytest.raises(Refused, match=f"{MODEL.serial} has no color mode 640 × 480 at 30"):
        camera.open()
    with pytest.raises(DeviceError, match=f"no RealSense camera 111: there is {MODEL.serial}"):
        RealSenseSource(Config(serial="111", **SIZE), plugged_in).open()


# what is refused


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"source": "usb"}, 'source is "live", "recording" or "twin"'),
        ({"source": "twin"}, "needs address"),
        ({"source": "recording"}, "needs path"),
        ({"align": "depth"}, 'align is "color" or "none"'),
        ({"fps": 29.97}, "whole number of frames"),
        ({"heigth": 480}, "did you mean height"),
        ({"exposure_us": 0}, "must lie in"),
    ],
)
def test_settings_that_make_no_sense(config: dict[str, Any], says: str) -> None:
    with pytest.raises(DeviceError, match=says):
        source(config)


def test_no_camera_says_so() -> None:
    camera = make("front", Config(serial="839112061234"))
    with pytest.raises(DeviceError, match=r"no RealSense camera 839112061234: "):
        camera.open()


def test_a_wrong_serial_says_which_there_are(tmp_path: Path) -> None:
    rs = load()
    devices = [
        SoftwareCamera(CameraModel(s, H, W, FPS, MODEL.color, MODEL.depth)).device for s in ("222", "111")
    ]
    assert find_device(rs, devices, "111").get_info(rs.camera_info.serial_number) == "111"
    assert find_device(rs, devices[:1], "").get_info(rs.camera_info.serial_number) == "222"
    with pytest.raises(DeviceError, match="no RealSense camera 333: there is 111, 222"):
        find_device(rs, devices, "333", tmp_path)
    with pytest.raises(Refused, match="set serial to one of 111, 222"):
        find_device(rs, devices, "", tmp_path)
    with pytest.raises(DeviceError, match="no RealSense camera: none is plugged in"):
        find_device(rs, [], "", tmp_path)


def test_a_camera_without_permission_names_the_rules() -> None:
    root = Path(tempfile.mkdtemp())  # not tmp_path, which only its owner may enter
    try:
        port = root / "sys/bus/usb/devices/2-1"
        port.mkdir(parents=True)
        attributes = {
            "idVendor": "8086",
            "idProduct": "0b07",
            "product": "RealSense(TM) 435",
            "speed": "5000",
            "devnum": "7",
        }
        for name, value in attributes.items():
            (port / name).write_text(value + "\n")
        node = root / "dev/bus/usb/002/007"
        node.parent.mkdir(parents=True)
        node.touch(mode=0o644)
        node.chmod(0o444)
        root.chmod(0o755)
        as_user = os.geteuid() == 0
        if as_user:
            os.seteuid(65534)
        try:
            with pytest.raises(DeviceError, match=r"RealSense.* on port 2-1: you may not open .*udev rules"):
                find_device(load(), [], "111", root)
        finally:
            if as_user:
                os.seteuid(0)
    finally:
        shutil.rmtree(root)


def test_a_mode_that_is_not_there_says_which_are(recording: Path) -> None:
    with twin() as t:
        for where in (
            {"source": "twin", "address": t.address},
            {"source": "recording", "path": str(recording)},
        ):
            camera = source({"height": 480, "width": 640, **where})
            with pytest.raises(
                Refused, match=r"no color mode 640 × 480 at 30 frames/s: there is 160 × 120 at 30"
            ):
                camera.open()
            camera.close()


def test_what_is_no_recording(tmp_path: Path) -> None:
    (tmp_path / "text.db3").write_text("no frames here")
    with pytest.raises(Refused, match="is not a recording"):
        source({**SIZE, "source": "recording", "path": str(tmp_path / "text.db3")}).open()
    with pytest.raises(Refused, match="there is no recording"):
        source({**SIZE, "source": "recording", "path": str(tmp_path / "none.db3")}).open()


def test_another_serial_than_the_configured(recording: Path) -> None:
    with pytest.raises(Refused, match=f"is of the camera {MODEL.serial}, not of 111"):
        source({**SIZE, "source": "recording", "path": str(recording), "serial": "111"}).open()
    with twin() as t, pytest.raises(DeviceError, match=f"is {MODEL.serial}, not 111"):
        source({**SIZE, "source": "twin", "address": t.address, "serial": "111"}).open()


@pytest.mark.parametrize(
    "says", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"\x00\x00\x00\x02{}", b"\x00\x00\x00\x02[]", b""]
)
def test_something_else_at_the_address(says: bytes) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            with server.accept()[0] as client:
                client.sendall(says)

        thread = threading.Thread(target=serve)
        thread.start()
        with pytest.raises(
            DeviceError, match=r"is not a RealSense twin|no RealSense camera answers|not the description"
        ):
            source({**SIZE, "source": "twin", "address": f"tcp:127.0.0.1:{server.getsockname()[1]}"}).open()
        thread.join()


def test_exposure_gain_and_white_balance() -> None:
    rs = load()
    device = rs.software_device()
    sensor = device.add_sensor("RGB Camera")
    ranges = {
        rs.option.enable_auto_exposure: (0, 1, 1),
        rs.option.exposure: (1, 10_000, 156),
        rs.option.gain: (0, 128, 64),
    }
    for option, (low, high, default) in ranges.items():
        span = rs.option_range()
        span.min, span.max, span.default, span.step = low, high, default, 1
        sensor.add_option(option, span, True)
    video = rs.video_stream()
    video.type, video.fmt, video.width, video.height, video.fps = rs.stream.color, rs.format.rgb8, W, H, FPS
    sensor.add_video_stream(video)
    set_options(rs, device, Config(exposure_us=8000, gain=32))
    assert sensor.get_option(rs.option.exposure) == 80
    assert sensor.get_option(rs.option.gain) == 32
    assert sensor.get_option(rs.option.enable_auto_exposure) == 0
    set_options(rs, device, Config())
    assert sensor.get_option(rs.option.enable_auto_exposure) == 1
    with pytest.raises(Refused, match=r"gain is 200, this camera takes 0\.\.128"):
        set_options(rs, device, Config(gain=200))
    with pytest.raises(Refused, match="no setting white_balance"):
        set_options(rs, device, Config(white_balance_k=4000))


def test_without_libusb_it_is_said_what_to_install() -> None:
    """On a machine whose system has libusb it loads without the package, which is right, too."""
    code = (
        "import sys; sys.modules['libusb_package'] = None\n"
        "from ulna.drivers.cameras.librealsense import load, DeviceError\n"
        "try: load(); print('loaded')\n"
        "except DeviceError as e: print(e)\n"
        "sys.modules['pyrealsense2'] = None\n"
        "try: load()\n"
        "except DeviceError as e: print(e)\n"
    )
    lines = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.splitlines()
    assert lines[0] == "loaded" or "install the Python package libusb-package" in lines[0]
    assert "needs the Python package pyrealsense2" in lines[1]
