"""Which port is an arm's: by its name, or by pulling its cable, on a computer of files and links."""

from __future__ import annotations

import json
import os
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from contracts.computer import Computer

from ulna.drivers.arm import DeviceError
from ulna.robot.setup.guide import Guide
from ulna.robot.setup.ports import candidates, find, lasting_name

A, B = "usb-1a86_USB_Single_Serial_AAA-if00", "usb-1a86_USB_Single_Serial_BBB-if00"


@pytest.fixture
def computer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Computer:
    """Without running twins."""
    (tmp_path / "run").mkdir(mode=0o700)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "run"))
    return Computer(tmp_path / "root")


def plug_in(c: Computer, tty: str, usb: str, by_id: str, serial: str = "AAA") -> None:
    adapter = c.usb(usb, 0x1A86, 0x55D3, "1a86 USB Single Serial", serial)
    c.serial_port(tty, adapter, by_id, f"pci-0-usb-0:{usb}:1.0")


def pull(c: Computer, tty: str) -> None:
    for folder in ("by-id", "by-path"):
        for link in (c.root / f"dev/serial/{folder}").iterdir():
            if link.readlink().name == tty:
                link.unlink()
    (c.root / f"sys/class/tty/{tty}").unlink()
    for usb in (c.root / "sys/bus/usb/devices").iterdir():
        if list(usb.resolve().rglob(tty)):
            shutil.rmtree(usb.resolve())
            usb.unlink()


class Person(Guide):
    """Does something when it is told something."""

    def __init__(self, acts: dict[str, Callable[[], object]], yes: bool = False) -> None:
        super().__init__(yes, 5.0)
        self.acts, self.words = acts, ""

    def say(self, text: str) -> None:
        super().say(text)
        self.words += text + "\n"
        for words in [w for w in self.acts if w in text]:
            self.acts.pop(words)()

    def confirm(self, question: str) -> bool:
        self.say(question)
        return self.yes


def test_the_only_port_is_taken_when_somebody_says_yes(computer: Computer) -> None:
    plug_in(computer, "ttyACM0", "1-2.1", A)
    guide = Person({}, yes=True)
    assert find(guide, "follower", (), computer.root) == f"/dev/serial/by-id/{A}"
    assert "1a86 USB Single Serial" in guide.words
    assert "Is it the follower's?" in guide.words


def test_of_several_the_one_is_found_that_is_pulled(computer: Computer) -> None:
    plug_in(computer, "ttyACM0", "1-2.1", A)
    plug_in(computer, "ttyACM1", "1-2.2", B, "BBB")
    guide = Person(
        {
            "pull the USB cable": lambda: pull(computer, "ttyACM1"),
            "It is ": lambda: plug_in(
                computer, "ttyACM7", "1-2.4", B, "BBB"
            ),  # elsewhere, under another number
        }
    )
    assert find(guide, "leader", (), computer.root) == f"/dev/serial/by-id/{B}"
    assert f"It is /dev/serial/by-id/{B}" in guide.words


def test_two_that_go_at_once_are_not_guessed_between(computer: Computer) -> None:
    for i, name in enumerate("ABC"):
        plug_in(computer, f"ttyACM{i}", f"1-2.{i + 1}", f"usb-{name}-if00", name)

    def pull_two() -> None:
        pull(computer, "ttyACM0")
        pull(computer, "ttyACM1")

    def put_back() -> None:
        plug_in(computer, "ttyACM0", "1-2.1", "usb-A-if00", "A")
        threading.Timer(0.5, back_and_pull).start()

    def back_and_pull() -> None:
        plug_in(computer, "ttyACM1", "1-2.2", "usb-B-if00", "B")
        time.sleep(0.5)
        pull(computer, "ttyACM2")

    guide = Person(
        {
            "pull the USB cable": pull_two,
            "Several ports went away": put_back,
            "It is ": lambda: plug_in(computer, "ttyACM2", "1-2.3", "usb-C-if00", "C"),
        }
    )
    assert find(guide, "follower", (), computer.root) == "/dev/serial/by-id/usb-C-if00"


def test_a_cable_is_waited_for(computer: Computer) -> None:
    guide = Person({"Plug the USB cable": lambda: plug_in(computer, "ttyACM0", "1-2.1", A)}, yes=True)
    assert find(guide, "follower", (), computer.root) == f"/dev/serial/by-id/{A}"


def test_the_other_arms_port_is_no_candidate(computer: Computer) -> None:
    plug_in(computer, "ttyACM0", "1-2.1", A)
    plug_in(computer, "ttyACM1", "1-2.2", B, "BBB")
    guide = Person({}, yes=True)
    assert find(guide, "leader", {f"/dev/serial/by-id/{A}"}, computer.root) == f"/dev/serial/by-id/{B}"


def test_a_script_must_say_which_of_several(computer: Computer) -> None:
    plug_in(computer, "ttyACM0", "1-2.1", A)
    plug_in(computer, "ttyACM1", "1-2.2", B, "BBB")
    with pytest.raises(DeviceError, match=rf"several ports: .*--leader-port: .*{A}.*{B}"):
        find(Person({}, yes=True), "leader", (), computer.root)


def test_an_adapter_without_a_serial_number_is_named_by_its_socket(computer: Computer) -> None:
    plug_in(computer, "ttyUSB0", "1-2.1", "usb-1a86_USB_Serial-if00", serial="")
    (only,) = candidates(computer.root)
    assert only.name == "/dev/serial/by-path/pci-0-usb-0:1-2.1:1.0"


def test_waiting_ends(computer: Computer) -> None:
    guide = Person({})
    guide.patience_s = 0.2
    with pytest.raises(DeviceError, match=r"waited 0.2 s for a serial adapter of the follower; run the same"):
        find(guide, "follower", (), computer.root)


def test_a_port_that_is_said_by_its_passing_name_gets_its_lasting_one(computer: Computer) -> None:
    plug_in(computer, "ttyACM0", "1-2.1", A)
    plug_in(computer, "ttyACM1", "1-2.2", B, "BBB")
    assert lasting_name("/dev/ttyACM1", computer.root) == f"/dev/serial/by-id/{B}"
    assert lasting_name(f"/dev/serial/by-id/{B}", computer.root) == f"/dev/serial/by-id/{B}"
    assert lasting_name("/dev/ttyACM9", computer.root) == "/dev/ttyACM9"


def test_the_buses_of_running_twins_are_candidates(computer: Computer, tmp_path: Path) -> None:
    line, other_end = os.openpty()
    link = tmp_path / "arm"
    link.symlink_to(os.ttyname(other_end))
    note = {
        "name": "so101-1",
        "pid": os.getpid(),
        "ports": {"arm": str(link), "front": "http://127.0.0.1:1/x"},
    }
    folder = tmp_path / "run" / "ulna" / "twins"
    folder.mkdir(parents=True, mode=0o700)
    folder.parent.chmod(0o700)
    (folder / "so101-1.json").write_text(json.dumps(note))
    try:
        (only,) = candidates(computer.root)
        assert only.name == str(link)
        assert only.title == "the twin so101-1's arm"
        link.unlink()
        assert candidates(computer.root) == [], "its cable is pulled"
    finally:
        os.close(line)
        os.close(other_end)
