"""`ulna devices` on a kernel with everything plugged in."""

from __future__ import annotations

import json
import subprocess
import sys

from kernel.plugs import Gamepad, SerialAdapter, SpaceMouse, Webcam

from ulna.drivers.devices import gamepads, spacemice


def test_everything_is_listed_and_then_gone() -> None:
    with SerialAdapter() as adapter, Gamepad() as pad, SpaceMouse() as mouse:
        command = [sys.executable, "-m", "ulna.robot.cli", "devices"]
        text = subprocess.run([*command, "--json"], capture_output=True, text=True, check=True).stdout
        table = json.loads(text)
        assert [p["name"] for p in table["serial_ports"]] == [str(adapter.BY_ID)]
        assert [(g["title"], g["vendor"]) for g in table["gamepads"]] == [(pad.NAME, pad.VENDOR)]
        assert [(m["title"], m["product"]) for m in table["spacemice"]] == [(mouse.NAME, mouse.PRODUCT)]
        assert str(Webcam().path) in [c["name"] for c in table["cameras"] if c["capture"]]
        print(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert gamepads() == []
    assert spacemice() == []
