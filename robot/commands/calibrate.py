"""Measure where an arm's joints are and how far they go: move each joint through all of its travel by hand,
then press Enter.

The torque goes off first: hold the arm. The result is a file in LeRobot's form, and offsets in the servos
that fit it."""

from __future__ import annotations

import json
import select
import shutil
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from .errors import UsageError
from .parsing import Output, unset
from .terminal import console

if TYPE_CHECKING:
    from rich.table import Table

    from ...drivers.servos.calibration import Calibration
    from ...drivers.servos.group import ServoGroup
    from ..calibrate import Calibrator, Progress

EXAMPLE = "ulna calibrate --driver so101 --port /dev/serial/by-id/usb-… --out follower.json"

# where LeRobot keeps the calibrations of such an arm
LEROBOT = {
    "so101": "robots/so_follower",
    "so101-leader": "teleoperators/so_leader",
    "koch": "robots/koch_follower",
    "koch-leader": "teleoperators/koch_leader",
}
LOOKS_HZ = 50.0
STILL_S = 5.0  # for which a hand that has moved all joints holds still, where nobody is to press Enter
STILL_COUNTS = 8  # 0.7 degrees


@dataclass
class Args:
    robot: Annotated[str, unset("none; then --driver and --port", "FILE.toml")] = ""
    """A robot's TOML file: its arm, port and calibration file are taken from there."""
    arm: Annotated[str, unset("its only one")] = ""
    """Which of the robot's arms, where it has several: arm, or leaders.arm for the leader of that name."""
    driver: Annotated[str, unset("that of the robot's file", "so101|so101-leader|koch|koch-leader")] = ""
    """Without a robot's file: the kind of arm."""
    port: Annotated[str, unset("that of the robot's file")] = ""
    """Without a robot's file: the arm's serial port."""
    baud: int = 1_000_000
    """Without a robot's file: the speed of the bus."""
    out: Annotated[str, unset("that of the robot's file", "FILE")] = ""
    """File to write."""
    id: Annotated[str, unset("none; --out says where", "NAME")] = ""
    """Instead of --out: the arm's name in LeRobot, to write where LeRobot looks for it."""
    until_still: Annotated[float, unset("Enter ends it", "SECONDS")] = 0.0
    """For scripts: end when every joint was moved and all have stood still for that long."""
    json: bool = False
    """Print one JSON object."""


def run(args: Args, out: Output) -> int:
    group, path, drive_modes = _target(args)
    calibration, backup_note = measure(group, path, drive_modes, args.until_still)
    joints = {name: asdict(c) for name, c in calibration.items()}
    lines = [
        f"{n}: {c['range_min']}..{c['range_max']}, offset {c['homing_offset']}" for n, c in joints.items()
    ]
    text = "\n".join(
        [*lines, f"written to {path}{backup_note}: in the robot's file, calibration = {str(path)!r}"]
    )
    out.answer({"path": str(path), "joints": joints}, text)
    return 0


def measure(
    group: ServoGroup, path: Path, drive_modes: Mapping[str, int], until_still_s: float = 0.0
) -> tuple[Calibration, str]:
    """Calibrate the arm of `group` while a hand moves it, and write the file. Returns the calibration, and a
    note on the file that was there before. until_still_s: end when all joints were moved and stand still for
    so long; 0: at Enter. DeviceError: a servo or the file is not as it must be."""
    from ..calibrate import Calibrator
    from ..undisturbed import undisturbed

    _require_writable(path)  # the servos are rewritten at the end, and are of no use without their file
    calibrator = Calibrator(group, drive_modes)
    try:
        calibrator.start()
        _sweep(calibrator, until_still_s)
        with undisturbed():  # else some servos had their new offsets, and no file would say so
            calibration = calibrator.finish()
            return calibration, _save(path, calibration)
    finally:
        calibrator.close()


def _require_writable(path: Path) -> None:
    """DeviceError unless a calibration can be written to `path`; its folder is made."""
    from ...drivers.arm import DeviceError

    probe = path.with_name(path.name + ".new")
    try:
        if path.is_dir():
            raise IsADirectoryError(0, "it is a folder")
        path.parent.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise DeviceError(
            f"the calibration could not be written to {path} ({error.strerror}): nothing was begun; "
            "give another --out"
        ) from None


def _save(path: Path, calibration: Calibration) -> str:
    """Write the calibration; a file that is there already is copied to `PATH.before`. Returns a note on that
    copy, "" where there is none. DeviceError where it cannot be written: its message holds the calibration,
    since the servos have it already."""
    from ...drivers.arm import DeviceError
    from ...drivers.servos.calibration import save

    backup_note = ""
    try:
        if path.exists():
            old = path.with_name(path.name + ".before")
            shutil.copy2(path, old)
            backup_note = f" (the one before it is {old})"
        save(path, calibration)
    except OSError as error:
        joints = json.dumps({name: asdict(c) for name, c in calibration.items()})
        raise DeviceError(
            f"{path} cannot be written ({error.strerror}), but the servos hold their new offsets already: "
            f"put this into the file by hand, or calibrate again: {joints}"
        ) from None
    return backup_note


def _target(args: Args) -> tuple[ServoGroup, Path, Mapping[str, int]]:
    """The servos to calibrate, the file to write, and which joints count backwards."""
    from ...drivers.config import parse, require_known
    from ...drivers.servos.calibration import lerobot_path
    from ..config import DRIVERS, driver_module

    if bool(args.robot) == bool(args.driver):
        raise UsageError("give a robot's file (--robot), or --driver and --port of an arm by itself")
    if args.out and args.id:
        raise UsageError("give --out, a file, or --id, a name in LeRobot; not both")
    if args.robot:
        where, table = _table(args)
    else:
        if not args.port:
            raise UsageError("--driver needs --port: `ulna devices` shows what is plugged in")
        where, table = (
            "--driver",
            {"driver": args.driver, "port": args.port, "baud": args.baud, "calibration": args.out},
        )
    driver = str(table.get("driver", ""))
    require_known(f"arm of bus servos ({where}):", driver, LEROBOT)
    path = (
        lerobot_path(LEROBOT[driver], args.id)
        if args.id
        else Path(args.out or str(table.get("calibration", "")))
    )
    if not path.name:
        raise UsageError("say where to write the calibration: --out FILE, or --id NAME for LeRobot's place")
    module = driver_module("arms" if driver in DRIVERS["arms"] else "leaders", driver, "arm of bus servos")
    fields = {k: v for k, v in table.items() if k != "driver"} | {"calibration": str(path)}
    arm = module.make(driver, parse(module.Config, fields, where))
    return arm.group, path.expanduser(), getattr(module, "DRIVE_MODES", {})


def _table(args: Args) -> tuple[str, dict[str, Any]]:
    from ...drivers.config import require_known
    from ..config import read_config

    config = read_config(args.robot)
    arms = dict(config.get("arms", {})) | {f"leaders.{n}": t for n, t in config.get("leaders", {}).items()}
    name = args.arm or next(iter(arms), "")
    if not args.arm and len(arms) > 1:
        raise UsageError(f"{args.robot} has several arms: say --arm {' or --arm '.join(arms)}")
    require_known(f"arm in {args.robot}:", name, arms)
    return f"{args.robot}, {name}", arms[name]


def _sweep(calibrator: Calibrator, until_still_s: float) -> None:
    """Show the joints until Enter (or the end of standard input), or until all were moved and stand still."""
    import time

    from rich.live import Live

    screen = console()
    screen.print(
        "The torque is off. Move each joint slowly from one end of its travel to the other, "
        + ("a few times; then let it rest." if until_still_s else "a few times; then press Enter.")
    )
    notes: list[str] = []
    progress = calibrator.look()
    with Live(_joint_table(calibrator, progress, notes), console=screen, refresh_per_second=10) as live:
        still = progress.place, time.monotonic()
        while True:
            if until_still_s:
                if not progress.enough.all() or abs(progress.place - still[0]).max() > STILL_COUNTS:
                    still = progress.place, time.monotonic()
                elif time.monotonic() - still[1] > until_still_s:
                    return
            elif select.select([sys.stdin], [], [], 0)[0]:
                sys.stdin.readline()
                return
            due = time.monotonic() + 1 / LOOKS_HZ
            progress = calibrator.look()
            notes = [*notes, *(n for n in progress.notes if n not in notes)][-4:]
            live.update(_joint_table(calibrator, progress, notes))
            time.sleep(max(0.0, due - time.monotonic()))


def _joint_table(calibrator: Calibrator, progress: Progress, notes: list[str]) -> Table:
    from rich.table import Table

    table = Table("joint", "from", "now", "to", "", caption="\n".join(notes) or None)
    degrees = 360 / 4096
    for j, name in enumerate(calibrator.group.joints.names):
        low, now, high = (float(t[j]) * degrees for t in (progress.low, progress.now, progress.high))
        span = max(high - low, 1e-9)
        at = round((now - low) / span * 20)
        state = "·" * at + "█" + "·" * (20 - at) if progress.enough[j] else "move it"
        table.add_row(name, f"{low:.0f}°", f"{now:.0f}°", f"{high:.0f}°", state)
    return table
