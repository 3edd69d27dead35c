"""The settings of a RealSense camera: what its table in a robot's TOML file may say."""

from __future__ import annotations

from dataclasses import dataclass

from ..arm import DeviceError
from ..config import setting


@dataclass(frozen=True)
class Config:
    """The fields of `[cameras.NAME]` with `driver = "realsense"`."""

    serial: str = ""
    """Serial number of the camera; empty: the only one that is plugged in, or any in a recording."""
    height: int = setting(480, 16, 2160, "px")
    """Of the frames."""
    width: int = setting(640, 16, 3840, "px")
    """Of the frames."""
    fps: float = setting(30, 1, 300, "frames/s")
    """A whole number."""
    depth: bool = True
    """Whether to read depth beside color."""
    align: str = "color"
    """`color` maps depth to the pixels of the color image; `none` leaves it as the depth sensor sees it."""
    source: str = "live"
    """`live` (the camera with this `serial`), `recording` (`path`) or `twin` (at `address`)."""
    path: str = ""
    """File that librealsense recorded."""
    address: str = ""
    """Of a twin: `unix:PATH` or `tcp:HOST:PORT`."""
    repeat: bool = False
    """Play a recording again and again."""
    latency_s: float = setting(0.0, 0, 1, "s")
    """From the middle of the exposure to the arrival of the stamped frame, where the camera's clock does not
    tell it."""
    exposure_us: int | None = setting(None, 1, 1_000_000, "µs")
    """Of the color sensor; None: automatic."""
    gain: int | None = setting(None, 0, 1000)
    """Of the color sensor, in its own units; None: automatic."""
    white_balance_k: int | None = setting(None, 2000, 10_000, "K")
    """Of the color sensor; None: automatic."""


def check(config: Config) -> None:
    """DeviceError: settings that contradict each other, or lack what their `source` needs."""
    if config.align not in ("color", "none"):
        raise DeviceError(f'align is "color" or "none", not {config.align!r}')
    if config.fps != round(config.fps):
        raise DeviceError(f"a RealSense camera runs at a whole number of frames a second, not {config.fps:g}")
    needs = {
        "live": ("serial", ""),
        "recording": ("path", "a file"),
        "twin": ("address", "unix:PATH or tcp:HOST:PORT"),
    }
    if config.source not in needs:
        raise DeviceError(f'source is "live", "recording" or "twin", not {config.source!r}')
    field, what = needs[config.source]
    if what and not getattr(config, field):
        raise DeviceError(f'a RealSense camera with source = "{config.source}" needs {field} ({what})')
