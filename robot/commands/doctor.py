"""Look for what on this computer would disturb a robot, and say how to mend it. Nothing is changed."""

from __future__ import annotations

import textwrap
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from .parsing import Output, unset

if TYPE_CHECKING:
    from ..doctor.doctor import Finding

EXAMPLE = "ulna doctor --robot my-so101.toml --data runs"


@dataclass
class Args:
    robot: Annotated[str, unset("none", "FILE.toml")] = ""
    """A robot's TOML file: check the devices that it names."""
    data: str = "runs"
    """Folder where datasets are to go: its disk is measured with 64 MB."""
    seconds: float = 2.0
    """How long to measure whether a fast loop keeps its time."""
    json: bool = False
    """Print one JSON object."""


def run(args: Args, out: Output) -> int:
    from ..doctor import computer as doctor_computer
    from ..doctor import doctor
    from ..doctor import robot as doctor_robot

    if not 0.1 <= args.seconds <= 600:
        raise ValueError(f"--seconds is {args.seconds:g}, it must lie in 0.1..600")
    config = doctor_robot.read(Path(args.robot)) if args.robot else None
    hardware = doctor.look()
    if config is None:
        modes, device_findings = doctor.assumed_modes(hardware), []
    else:
        modes = doctor_robot.requested_modes(config, hardware)
        device_findings = doctor_robot.devices(config, hardware)
    findings = [
        *doctor_computer.scheduling(args.seconds),  # first, before the others warm the computer up
        *doctor_computer.shared_memory(),
        *doctor_computer.disk(Path(args.data)),
        *doctor_computer.clock(),
        *doctor.python_packages(),
        *doctor.opencv(),
        *doctor.realsense(hardware, config is not None and doctor_robot.wants_realsense(config)),
        *doctor.serial_lines(hardware),
        *doctor.camera_nodes(hardware),
        *doctor.bus_load(modes),
        *doctor.twins(),
        *device_findings,
    ]
    severe = [f for f in findings if f.level == "severe"]
    out.answer({"findings": [asdict(f) for f in findings], "severe": len(severe)}, page(findings))
    return 1 if severe else 0


def page(findings: list[Finding]) -> str:
    """The findings as text, the most severe first."""
    titles = {"severe": "to be mended first:", "advice": "worth mending:", "good": "good:"}
    lines: list[str] = []
    for level, title in titles.items():
        these = [f for f in findings if f.level == level]
        if these:
            lines += [*([""] if lines else []), title]
        for finding in these:
            lines += _wrap(f"  {finding.topic:10} ", finding.says)
            if finding.mend:
                lines += _wrap(" " * 11 + "-> ", finding.mend)
    count = {level: sum(f.level == level for f in findings) for level in titles}
    return "\n".join(
        [
            *lines,
            "",
            f"{count['severe']} to be mended first, {count['advice']} worth mending, {count['good']} good",
        ]
    )


def _wrap(start: str, what: str) -> list[str]:
    # commands and udev rules must survive being copied: no word is cut in two
    return textwrap.wrap(
        what,
        118,
        initial_indent=start,
        subsequent_indent=" " * 14,
        break_long_words=False,
        break_on_hyphens=False,
    )
