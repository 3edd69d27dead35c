"""The file that a set-up writes: read by the code that reads everybody's, and added to without any change of
the rest."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from ulna.drivers.arm import DeviceError
from ulna.drivers.cameras.v4l2 import Mode
from ulna.drivers.devices import CameraNode
from ulna.robot.config import load_leaders, load_robot, read_config
from ulna.robot.setup.kit import arms_of
from ulna.robot.setup.robot_file import RobotFile

WEBCAM = CameraNode(
    "/dev/video0",
    ("/dev/v4l/by-id/usb-046d_C920-video-index0",),
    'HD "Pro" Webcam',
    None,
    True,
    (Mode("YUYV", 1920, 1080, (5.0,)), Mode("MJPG", 640, 480, (60.0, 30.0, 15.0))),
    (),
    "",
)
OTHER = replace(WEBCAM, names=("/dev/v4l/by-id/usb-other-video-index0",), modes=())
METADATA = CameraNode("/dev/video1", (), "HD Webcam", None, False, (), (), "")


@pytest.mark.parametrize("kit", ["so101", "koch"])
def test_a_file_is_written_at_once_and_a_leader_added(tmp_path: Path, kit: str) -> None:
    path, arms = tmp_path / "new" / "my arm.toml", arms_of(kit)
    file = RobotFile(path, kit)
    assert file.table(arms["follower"]) is None
    file.add(arms["follower"], "/dev/serial/by-id/usb-A", tmp_path / "a.json", [WEBCAM, METADATA], [])
    assert [p.name for p in path.parent.iterdir()] == ["my arm.toml"]
    config = read_config(str(path))
    assert config["name"] == "my arm"
    assert "cameras" not in config, "they are proposed, not switched on"
    assert len(load_robot(str(path)).robot.features["action"].names) == 6
    edited = path.read_text().replace("control_hz = 20.0", "control_hz = 15.0")
    path.write_text(edited)
    file = RobotFile(path, kit)
    table = file.table(arms["follower"])
    assert table is not None
    assert table["port"] == "/dev/serial/by-id/usb-A"
    file.add(arms["leader"], "/dev/serial/by-id/usb-B", tmp_path / "b.json", [], [])
    assert path.read_text().startswith(edited), "what was there is left as it was"
    assert set(load_leaders(str(path))) == {"arm"}


def test_a_proposed_camera_works_when_its_marks_are_taken_away(tmp_path: Path) -> None:
    path = tmp_path / "arm.toml"
    RobotFile(path, "so101").add(
        arms_of("so101")["follower"], "/dev/a", tmp_path / "a.json", [WEBCAM, OTHER], []
    )
    text, _, proposed = path.read_text().partition("# Cameras that were plugged in")
    lines = [line.removeprefix("#").removeprefix(" ") for line in proposed.splitlines()[1:]]
    path.write_text(text + "\n".join(lines))
    cameras = read_config(str(path))["cameras"]
    assert list(cameras) == ["front", "wrist"]
    assert cameras["front"] == {
        "driver": "opencv",
        "device": "/dev/v4l/by-id/usb-046d_C920-video-index0",
        "height": 480,
        "width": 640,
        "fps": 30.0,
    }


HEAD = 'name = "x"\ncontrol_hz = 20.0\n'
ARM = '[arms.{}]\ndriver = "{}"\nport = "/dev/a"\ncalibration = "c.json"\n'


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (HEAD + ARM.format("arm", "koch"), "another robot"),
        (HEAD + ARM.format("left", "so101"), "another robot"),
        (HEAD + 'driver = "sim"\nmodel = "so101"\n', "another robot"),
        ("name = ", "not TOML"),
    ],
)
def test_a_file_of_something_else_is_left_alone(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "arm.toml"
    path.write_text(text)
    with pytest.raises(DeviceError, match=words):
        RobotFile(path, "so101")
    assert path.read_text() == text


def test_what_cannot_be_written_is_one_sentence(tmp_path: Path) -> None:
    arms = arms_of("so101")
    with pytest.raises(DeviceError, match="a robot has a follower"):
        RobotFile(tmp_path / "arm.toml", "so101").add(arms["leader"], "/dev/a", tmp_path / "l.json", [], [])
    (tmp_path / "blocker").write_text("")
    file = RobotFile(tmp_path / "blocker" / "arm.toml", "so101")
    with pytest.raises(DeviceError, match="cannot be written"):
        file.add(arms["follower"], "/dev/a", tmp_path / "a.json", [], [])
