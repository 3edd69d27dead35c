"""List what is plugged in, by names that stay the same: serial ports, cameras, gamepads, SpaceMice, and twins
that run."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Annotated, Any

from .parsing import Output, unset

if TYPE_CHECKING:
    from ...drivers.cameras.v4l2 import Mode
    from ...drivers.devices import CameraNode, DepthCamera, Input, Port, Twin
    from ...drivers.servos.probe import ServoFinding
    from ...drivers.sysfs import UsbDevice

EXAMPLE = "ulna devices --probe /dev/serial/by-id/usb-1a86_USB_Single_Serial_58FA083261-if00"


@dataclass
class Args:
    probe: Annotated[str, unset("none is asked", "PORT")] = ""
    """A serial port: ask which servos hang on it, at the usual speeds. Nothing is written to them."""
    json: bool = False
    """Print one JSON object."""


def run(args: Args, out: Output) -> int:
    from ...drivers import devices

    if args.probe:
        from ...drivers.servos.probe import probe

        servos = probe(args.probe)
        out.answer({"port": args.probe, "servos": [asdict(s) for s in servos]}, _servos(args.probe, servos))
        return 0 if servos else 1
    ports, cameras, depth = devices.serial_ports(), devices.cameras(), devices.depth_cameras()
    pads, mice, twins = devices.gamepads(), devices.spacemice(), devices.living_twins()
    answer: dict[str, Any] = {
        "serial_ports": [{"name": p.name, **asdict(p)} for p in ports],
        "cameras": [{"name": c.name, **asdict(c)} for c in cameras],
        "realsense": [asdict(d) for d in depth],
        "gamepads": [{"name": g.name, **asdict(g)} for g in pads],
        "spacemice": [{"name": m.name, **asdict(m)} for m in mice],
        "twins": [asdict(t) for t in twins],
    }
    sections = (
        ("serial ports", (_port(p) for p in ports), "plug in the arm's USB cable"),
        ("cameras", (_camera(c) for c in cameras if c.capture is not False), ""),
        ("RealSense cameras", (_depth(d) for d in depth), ""),
        ("gamepads and joysticks", (_input(g) for g in pads), ""),
        ("SpaceMice", (_input(m) for m in mice), ""),
        ("twins that run", (_twin(t) for t in twins), "`ulna twin so101` starts one"),
    )
    out.answer(answer, "\n".join(_section(*s) for s in sections))
    return 0


def _section(title: str, entries: Iterator[list[str]], hint: str) -> str:
    lines = [f"  {line}" for first, *rest in entries for line in (first, *(f"  {r}" for r in rest))]
    return "\n".join([f"{title}:", *(lines or [f"  none{'; ' + hint if hint else ''}"])])


def _port(port: Port) -> list[str]:
    latency = f"latency timer {port.latency_ms} ms" if port.latency_ms is not None else ""
    return _entry(port.name, port.device, _usb(port.usb) or "a serial port of the board", latency, port)


def _camera(camera: CameraNode) -> list[str]:
    return _entry(camera.name, camera.device, camera.title, _usb(camera.usb), camera) + _modes(camera.modes)


def _entry(name: str, device: str, first: str, second: str, node: Port | CameraNode) -> list[str]:
    lines = [name, ", ".join(filter(None, [first, second, f"now {device}" if name != device else ""]))]
    if node.holders:
        lines.append(f"open in {', '.join(node.holders)}")
    if node.problem:
        lines.append(f"! {node.problem}")
    return lines


def _modes(modes: tuple[Mode, ...]) -> list[str]:
    """One line a pixel format, largest pictures first."""
    lines = []
    for fourcc in dict.fromkeys(m.fourcc for m in modes):
        sizes = sorted((m for m in modes if m.fourcc == fourcc), key=lambda m: -m.width * m.height)
        texts = [f"{m.width}x{m.height}" + (f" at {m.fps[0]:g} Hz" if m.fps else "") for m in sizes[:6]]
        more = f", and {len(sizes) - 6} smaller" if len(sizes) > 6 else ""
        lines.append(f"{fourcc}: {', '.join(texts)}{more}")
    return lines


def _depth(camera: DepthCamera) -> list[str]:
    name = camera.serial or f"{camera.title} (serial number unknown)"
    lines = [
        name,
        (
            f"{camera.title}, USB {camera.usb_type or ''} at {camera.usb.speed_mbps:g} Mbit/s, "
            f"port {camera.usb.path}"
        ),
    ]
    if camera.usb.speed_mbps < 5000:
        lines.append("! it runs at the speed of USB 2: use a USB 3 port and the cable that came with it")
    return [*lines, f"! {camera.why_not}"] if camera.why_not else lines


def _input(device: Input) -> list[str]:
    lines = [device.name, f"{device.title}, {device.vendor:04x}:{device.product:04x}, now {device.device}"]
    return [*lines, f"! {device.problem}"] if device.problem else lines


def _twin(twin: Twin) -> list[str]:
    lines = [f"{twin.name} (pid {twin.pid})", *(f"{name}: {port}" for name, port in twin.ports.items())]
    return [*lines, f"robot file: {twin.toml}"] if twin.toml else lines


def _usb(usb: UsbDevice | None) -> str:
    if usb is None:
        return ""
    serial = f", serial number {usb.serial}" if usb.serial else ", no serial number"
    return f"{usb.name or 'USB device'} ({usb.vendor:04x}:{usb.product:04x}{serial}), USB port {usb.path}"


def _servos(port: str, servos: list[ServoFinding]) -> str:
    if not servos:
        return (
            f"no servo answers on {port}: is the servos' power on, and the bus cable in? "
            "(ids 0 to 30, the usual speeds)"
        )
    return "\n".join(f"id {s.id}: {s.name}, {s.protocol} at {s.baud} baud" for s in servos)
