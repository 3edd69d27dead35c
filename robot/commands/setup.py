"""Bring a new arm up: find its port, give its servos their ids, look at its power, write the robot's file,
and calibrate it. What is done already is skipped: the same command goes on where it was interrupted."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from .choices import kits
from .errors import UsageError, unknown
from .parsing import Output, unset, words

if TYPE_CHECKING:
    from ...drivers.servos.group import ServoGroup
    from ..setup.guide import Guide
    from ..setup.kit import KitArm
    from ..setup.robot_file import RobotFile

EXAMPLE = "ulna setup so101 --out my-so101.toml"
CHOICES = {"kind": kits}


@dataclass
class Args:
    kind: Annotated[str, tyro.conf.Positional]
    """The kind of arm."""
    out: Annotated[str, unset("my-KIND.toml", "FILE.toml")] = ""
    """The robot's file to write. The calibrations are written beside it."""
    arms: str = "follower,leader"
    """Which arms to set up, with commas."""
    port: Annotated[str, unset("that of the file, else it is looked for")] = ""
    """The follower's serial port."""
    leader_port: Annotated[str, unset("that of the file, else it is looked for", "PORT")] = ""
    """The leader's serial port."""
    no_calibration: bool = False
    """Leave the calibration to `ulna calibrate`."""
    yes: bool = False
    """Answer every question with yes. A calibration then ends when all joints were moved and stand still."""
    patience: float = 900.0
    """How many seconds to wait for each thing that a hand must do."""
    json: bool = False
    """Print one JSON object at the end."""


def run(args: Args, out: Output) -> int:
    from ..setup.guide import Guide
    from ..setup.kit import arms_of
    from ..setup.robot_file import RobotFile

    if args.kind not in kits():
        raise unknown("kind of arm", args.kind, kits())
    known, chosen = arms_of(args.kind), words(args.arms)
    for name in chosen:
        if name not in known:
            raise unknown("arm", name, known)
    if not chosen:
        raise UsageError("--arms names no arm: say follower, leader or both")
    path = Path(args.out or f"my-{args.kind}.toml")
    if path.suffix != ".toml":
        raise UsageError(f"--out is a robot's file and ends in .toml, not {str(path)!r}")
    file, guide = RobotFile(path, args.kind), Guide(args.yes, args.patience)
    ports = {"follower": args.port, "leader": args.leader_port}
    answer: dict[str, Any] = {}
    try:
        for name in (n for n in known if n in chosen):
            others = {a["port"] for a in answer.values()}
            answer[name] = _bring_up(guide, known[name], file, ports[name], others, not args.no_calibration)
    except KeyboardInterrupt:
        print(
            f"\nstopped at: {guide.place}. Nothing is half written: the same command goes on from there",
            file=sys.stderr,
        )
        raise
    next_commands = _next_commands(str(path), answer, args.no_calibration)
    head = f"{path} is ready; uncomment its cameras. Next:"
    text = "\n".join([head, *(f"  {command}" for command in next_commands)])
    out.answer({"robot": str(path), "arms": answer, "next": next_commands}, text)
    return 0


def _bring_up(
    guide: Guide, arm: KitArm, file: RobotFile, port: str, taken: set[str], calibrates: bool
) -> dict[str, Any]:
    """All stages for one arm. Returns what the answer says of it."""
    from ...drivers import devices
    from ..setup.ports import find, lasting_name
    from ..setup.servos import check_chain, set_ids

    table = file.table(arm) or {}
    guide.begin(f"{arm.title}: its port")
    said, known = lasting_name(port) if port else "", str(table.get("port", ""))
    if said and known and lasting_name(known) != said:
        raise UsageError(
            f"{file.path} says that the {arm.title} is at {known}, not at {port}: change that line, or give "
            "another --out"
        )
    port = known or said or find(guide, arm.title, taken)
    if port in taken:
        raise UsageError(f"follower and leader cannot both be at {port}")
    guide.say(f"The {arm.title} is at {port}.")
    calibration = Path(
        table.get("calibration") or file.path.resolve().with_name(f"{file.path.stem}-{arm.title}.json")
    ).expanduser()
    group = arm.servos(port, calibration, table)
    group.bus.open()
    try:
        guide.begin(f"{arm.title}: ids of its servos")
        changed = set_ids(guide, group)
        guide.begin(f"{arm.title}: all servos together")
        volts = check_chain(guide, group)
    finally:
        group.bus.close()
    guide.begin(f"{arm.title}: the robot's file")
    written = not table
    if written:
        file.add(arm, port, calibration, devices.cameras(), devices.depth_cameras())
    guide.say(f"{file.path} {'now has' if written else 'had'} its table, [{arm.table}].")
    done = calibrates and _calibrate(guide, arm, group, calibration)
    return {
        "port": port,
        "ids_set": changed,
        "volts": volts,
        "table_written": written,
        "calibration": str(calibration),
        "calibrated": done,
    }


def _calibrate(guide: Guide, arm: KitArm, group: ServoGroup, path: Path) -> bool:
    """Returns False when the servos hold the calibration of the file already."""
    from ...drivers.arm import DeviceError
    from .calibrate import STILL_S, measure

    guide.begin(f"{arm.title}: calibration")
    try:
        group.open()
        guide.say(f"It is calibrated: {path} fits its servos.")
        return False
    except DeviceError:
        pass  # there is none yet, or that of other servos
    finally:
        group.bus.close()
    if not guide.confirm("The torque goes off now, and the arm sinks: hold it. Ready?"):
        guide.say(
            f"Left out: `ulna calibrate --robot FILE --arm {arm.table.replace('arms.', '')}` makes up for it."
        )
        return False
    _, note = measure(group, path, arm.drive_modes(), STILL_S if guide.yes else 0.0)
    guide.say(f"Calibrated: {path}{note}.")
    return True


def _next_commands(path: str, arms: dict[str, Any], uncalibrated: bool) -> list[str]:
    by = f"--robot {path} --agent {'leader' if 'leader' in arms else 'gamepad'}"
    commands = [
        f"ulna calibrate --robot {path} --arm {'arm' if name == 'follower' else 'leaders.arm'}"
        for name in (arms if uncalibrated else ())
    ]
    return [
        *commands,
        f"ulna doctor --robot {path}",
        f"ulna teleoperate {by}",
        f"ulna record {by} --task 'pick up the cube' --out runs/r/data",
    ]
