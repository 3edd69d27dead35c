"""A robot is one TOML file; `sim:NAME` is short for the shipped `configs/sim-NAME.toml`."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from ..drivers.arm import DeviceError
from ..drivers.config import require_known
from .robot import Robot

if TYPE_CHECKING:
    from ..sim.scene import SimScene

CONFIGS = Path(__file__).parent / "configs"
DRIVERS = ("sim",)  # hardware drivers join here


@dataclass
class Rig:
    """A robot, and the ground truth of its scene where there is one (only in simulation)."""

    robot: Robot
    scene: SimScene | None
    config: dict[str, Any] = field(default_factory=dict)  # the robot's file, as it was read
    realtime: bool = True  # time does not wait for us

    def __enter__(self) -> Self:
        self.robot.open()
        self.robot.enable()
        return self

    def __exit__(self, *_: object) -> None:
        self.robot.close()
        if self.scene is not None:
            self.scene.close()


def load_robot(
    name: str,
    task: str = "lift",
    cameras: Sequence[str] = (),
    randomisation: Mapping[str, float] | None = None,
    realtime: bool = False,
) -> Rig:
    """The robot `name`: `sim:so101`, or the path of a TOML file. cameras: those of its cameras to use. task,
    randomisation and realtime concern simulated robots. DeviceError says what is wrong, with the nearest names."""
    config = read_config(name)
    offered = config.get("cameras", {})
    for camera in cameras:
        require_known(f"camera of {name}", camera, offered)
    from ..sim.scene import SimScene  # PyBullet only where a simulated robot is asked for

    sizes = {(int(offered[c]["height"]), int(offered[c]["width"])) for c in cameras}
    if len(sizes) > 1:
        raise DeviceError(
            f"the cameras of {name} must have one size, not {' and '.join(map(str, sorted(sizes)))}"
        )
    scene = SimScene(
        config["model"],
        task,
        cameras,
        next(iter(sizes), (96, 96)),
        config["control_hz"],
        randomisation,
        realtime,
    )
    robot = Robot(
        config["name"], scene.arms, scene.cameras, scene.trackers, scene.clock, config["control_hz"]
    )
    return Rig(robot, scene, config, realtime)


FIELDS: dict[str, type | tuple[type, ...]] = {
    "name": str,
    "driver": str,
    "model": str,
    "control_hz": (int, float),
    "cameras": dict,
}
CAMERA_FIELDS: dict[str, type | tuple[type, ...]] = {"height": int, "width": int}


def read_config(name: str) -> dict[str, Any]:
    """The checked contents of a robot's TOML file."""
    if name.endswith(".toml"):
        path = Path(name)
    else:
        shipped = {p.stem.replace("-", ":", 1): p for p in CONFIGS.glob("*.toml")}
        require_known("robot", name, shipped, "; or name a TOML file of your own")
        path = shipped[name]
    try:
        config = tomllib.loads(path.read_text())
    except OSError as error:
        raise DeviceError(f"cannot read the robot file {path}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise DeviceError(f"the robot file {path} is not TOML: {error}") from None
    _check(config, FIELDS, str(path), optional=("cameras",))
    for camera, fields in config.get("cameras", {}).items():
        _check(fields, CAMERA_FIELDS, f"{path}, [cameras.{camera}]")
        for size in fields:
            if not 16 <= fields[size] <= 4096:
                raise DeviceError(
                    f"{path}, [cameras.{camera}]: {size} is {fields[size]}, it must lie in 16..4096 pixels"
                )
    require_known(f"driver in {path}:", config["driver"], DRIVERS)
    if not 1 <= config["control_hz"] <= 240:
        raise DeviceError(f"{path}: control_hz is {config['control_hz']}, it must lie in 1..240")
    return {**config, "control_hz": float(config["control_hz"])}


def _check(
    table: Any, fields: Mapping[str, type | tuple[type, ...]], where: str, optional: Sequence[str] = ()
) -> None:
    if not isinstance(table, dict):
        raise DeviceError(f"{where} must be a table")
    for name, value in table.items():
        require_known(f"field in {where}:", name, fields)
        if not isinstance(value, fields[name]) or isinstance(value, bool):
            raise DeviceError(f"{where}: {name} is {value!r}, which is of the wrong type")
    if missing := [f for f in fields if f not in table and f not in optional]:
        raise DeviceError(f"{where} lacks {missing[0]}")
