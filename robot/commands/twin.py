"""Start the other end of a device: the bytes of a real one, with physics behind them. Runs until it is
stopped."""

from __future__ import annotations

import signal
from dataclasses import dataclass
from typing import Annotated, Any

import tyro

from .choices import tasks, twins
from .parsing import Output, size_of, unset, words

EXAMPLE = "ulna twin so101 --scene lift --leader --cameras front,wrist"
CHOICES = {"kind": twins, "scene": tasks}


@dataclass
class Args:
    kind: Annotated[str, tyro.conf.Positional]
    """The device to stand in for."""
    scene: str = "lift"
    """Task whose objects stand before the arm."""
    cameras: Annotated[str, unset("none", "NAMES")] = ""
    """Cameras at the scene, with commas: front,wrist."""
    realsense: Annotated[str, unset("none", "NAMES")] = ""
    """Those of them that are RealSense cameras with depth."""
    image_size: Annotated[str, tyro.conf.arg(metavar="WxH")] = "96x96"
    """Of the cameras' frames, pixels."""
    fps: float = 20.0
    """Frames a second of the cameras."""
    leader: bool = False
    """A leader arm, too, with a scripted hand at it that does the task."""
    noise: float = 0.004
    """Unsteadiness of the hand, metres."""
    control_hz: float = 20.0
    """Rate at which the hand decides, and that the robot's file names."""
    fault: Annotated[tuple[str, ...], unset("none", "DEVICE:FAULT")] = ()
    """Faults from the start: arm:drop=0.05 arm:unplugged front:black. The control channel changes them while
    it runs."""
    seed: int = 0
    """Of the faults' dice."""
    factory_new: bool = False
    """Its servos are as they come out of their boxes, and none is on the bus yet: to rehearse `ulna setup`.
    The control channel, and its page, plug them in and move the joints by hand."""
    json: bool = False
    """Print one JSON object, then go on running."""


def run(args: Args, out: Output) -> int:
    from ...drivers.arm import DeviceError
    from ...drivers.twins.faults import parse_fault
    from ..twin.station import Station, StationConfig

    size = size_of(args.image_size)
    if size is None:
        raise ValueError("--image-size is width x height in pixels, like 320x240")
    cameras, realsense = words(args.cameras), words(args.realsense)
    if args.kind == "camera" and not cameras:
        cameras = ["front"]
    if args.kind == "realsense" and not realsense:
        realsense = ["front"]
    faults: dict[str, dict[str, Any]] = {}
    for text in args.fault:
        device, colon, fault = text.partition(":")
        if not colon:
            raise DeviceError(f"--fault {text}: say of which device, like arm:{text}")
        name, value = parse_fault(fault)
        faults.setdefault(device, {})[name] = value
    config = StationConfig(
        args.kind,
        args.scene,
        list(dict.fromkeys([*cameras, *realsense])),
        realsense,
        size,
        args.fps,
        args.control_hz,
        args.leader,
        args.noise,
        args.seed,
        faults,
        args.factory_new,
    )
    with Station(config) as station:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: station.stop())
        lines = [f"{device}: {port}" for device, port in station.info["ports"].items()]
        lines += [f"control: {station.info['control']}", f"robot: {station.info['toml']}"]
        out.answer(station.info, "\n".join(lines))
        station.run()
    return 0
