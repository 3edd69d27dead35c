"""A robot is one TOML file; `sim:NAME` is short for the shipped `configs/sim-NAME.toml`.

A simulated one names its `model`, and may say in `[randomisation]` how much a task's scenes differ, by the
names that the task has for that. A real one has tables `[arms.NAME]` and `[cameras.NAME]`, each with the
`driver` that it is for and that driver's own fields (its `Config`), and may have `[trackers.NAME]`,
`[leaders.NAME]` (one per arm, of the same name), `[teleoperators.NAME]`, a pose `home` to begin episodes
from, a `[scene]` where a twin stands in for the world, and in `[validation]` what a policy must have shown
before it moves the robot (`robot.gate`). Both may have `[safety]` (`robot.safety.limits`)."""

from __future__ import annotations

import contextlib
import importlib
import math
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from ..drivers.arm import Arm, DeviceError, joints_of
from ..drivers.camera import Camera
from ..drivers.cameras.capture import CaptureCamera
from ..drivers.clock import MonotonicClock
from ..drivers.config import parse, require_known, setting
from ..drivers.plugins import REFERENCE, PluginError, lookup, lookup_plugin, offers
from ..drivers.teleoperator import Teleoperator
from .control.arm import controlled
from .control.host import Host
from .ends import asked_to_end, hurried_by_signals
from .gate import bar_of
from .robot import Robot
from .safety.limits import Safety
from .scene import RemoteScene, Scene

if TYPE_CHECKING:
    from ..sim.scene import SimScene

CONFIGS = Path(__file__).parent / "configs"
# table of a robot's file -> driver named there -> module of `ulna.drivers` with `Config` and `make`
DRIVERS: dict[str, dict[str, str]] = {
    "arms": {"so101": "servos.so101", "koch": "servos.koch", "ur": "ur.arm"},
    "leaders": {"so101-leader": "servos.so101_leader", "koch-leader": "servos.koch_leader"},
    "cameras": {"opencv": "cameras.opencv", "realsense": "cameras.realsense"},
    "trackers": {"colour": "cameras.colour_tracker"},
    "teleoperators": {n: f"hands.{n}" for n in ("gamepad", "spacemouse", "keyboard", "browser")},
}
RATE_HZ = 100.0  # of the control process, where nothing else is said
PLUGINS = "ulna.drivers"  # entry points of installed packages, called TABLE.DRIVER: cameras.test-pattern


@dataclass
class Rig:
    """A robot, and what is known of its surroundings. sim: the ground truth of a simulated scene, which
    scripted experts need. scene: the same, or a twin's; None for a real robot. home `(A,)`: where episodes
    begin, None: wherever it is."""

    robot: Robot
    sim: SimScene | None
    config: dict[str, Any] = field(default_factory=dict)  # the robot's file, as it was read
    realtime: bool = True  # time does not wait for us
    remote: RemoteScene | None = None
    home: np.ndarray | None = None
    _signals: contextlib.ExitStack = field(default_factory=contextlib.ExitStack, repr=False)

    @property
    def scene(self) -> Scene | None:
        return self.sim if self.sim is not None else self.remote

    def __enter__(self) -> Self:
        if self.robot.host is not None:
            self._signals.enter_context(asked_to_end())
        try:
            self.robot.open()
            try:
                self.robot.enable()
            except BaseException:
                self._close_robot()
                raise
        except BaseException:
            self._signals.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self._close_robot()
        finally:
            self._signals.close()
            if self.scene is not None:
                self.scene.close()

    def _close_robot(self) -> None:
        host = self.robot.host
        with contextlib.nullcontext() if host is None else hurried_by_signals(host.hurry):
            self.robot.close()


def load_robot(
    name: str,
    task: str = "lift",
    cameras: Sequence[str] = (),
    realtime: bool = False,
    trackers: bool = True,
) -> Rig:
    """The robot `name`: `sim:so101`, or the path of a TOML file. Nothing is opened yet.

    cameras: names of those to observe; empty: none of a simulated robot's, all of a real one's. trackers:
    whether to observe a real robot's trackers; the cameras that they look through are then opened, too. task
    and realtime concern simulated robots. DeviceError says what is wrong, with the nearest names."""
    config = read_config(name)
    camera_tables = config.get("cameras", {})
    for camera in cameras:
        require_known(f"camera of {name}", camera, camera_tables)
    if "arms" in config:
        return _real(name, config, cameras, trackers)
    return _simulated(name, config, task, cameras, realtime)


def _simulated(
    name: str,
    config: dict[str, Any],
    task: str,
    cameras: Sequence[str],
    realtime: bool,
) -> Rig:
    from ..sim.scene import SimScene  # PyBullet only where a simulated robot is asked for

    camera_tables = config.get("cameras", {})
    sizes = {(int(camera_tables[c]["height"]), int(camera_tables[c]["width"])) for c in cameras}
    if len(sizes) > 1:
        raise DeviceError(
            f"the cameras of {name} must have one size, not {' and '.join(map(str, sorted(sizes)))}"
        )
    size = next(iter(sizes), (96, 96))
    hz = config["control_hz"]
    scene = SimScene(config["model"], task, cameras, size, hz, config.get("randomisation"), realtime=realtime)
    robot = Robot(config["name"], scene.arms, scene.cameras, scene.trackers, scene.clock, hz)
    if "safety" in config:
        from .safety.arms import filter_for

        try:
            robot.filter, _ = filter_for(config, robot.joints, f"{name}, [safety]")
        except BaseException:
            scene.close()
            raise
        scene.after_reset.append(robot.moved)
    return Rig(robot, scene, config, realtime)


def _real(name: str, config: dict[str, Any], cameras: Sequence[str], tracking: bool) -> Rig:
    drivers: dict[str, Arm] = make_devices(name, config, "arms")
    safety = Safety.of(config, joints_of(drivers), f"{name}, [safety]")
    rate_hz, park_after_s = control_rate(name, config), control_config(name, config).park_after
    for arm, driver in drivers.items():
        _require_patience(name, config["control_hz"], rate_hz, arm, min(driver.watchdog_s, safety.stale_s))
    host = Host(name, config, drivers, rate_hz, safety.rest, park_after_s)
    arms = controlled(host)
    all_cameras: dict[str, Camera] = make_devices(name, config, "cameras")
    for camera_name, camera in all_cameras.items():
        if camera.fps * safety.stale_s <= 1:
            raise DeviceError(
                f"{name}, [cameras.{camera_name}]: at {camera.fps:g} fps a frame is older than [safety] "
                f"stale_s = {safety.stale_s:g} before the next one comes: raise one of them"
            )
        if isinstance(camera, CaptureCamera):
            camera.max_age_s = safety.stale_s  # also for the trackers that look through it
    make_devices(name, config, "leaders")  # what this run does not use must be right, too
    for driver, table in config.get("teleoperators", {}).items():
        _teleoperator(name, driver, table)
    trackers = make_devices(name, config, "trackers", cameras=all_cameras)
    observed = {c: camera for c, camera in all_cameras.items() if not cameras or c in cameras}
    trackers = trackers if tracking else {}
    for_trackers = {c for tracker in trackers for c in config["trackers"][tracker]["cameras"]} - {*observed}
    tracker_cameras = [camera for c, camera in all_cameras.items() if c in for_trackers]
    clock, control_hz = MonotonicClock(), config["control_hz"]
    robot = Robot(config["name"], arms, observed, trackers, clock, control_hz, tracker_cameras)
    robot.host = host
    robot.goes_on_ns = round(1e9 * min(safety.stale_s, *(driver.watchdog_s for driver in drivers.values())))
    home = config.get("home")
    if home is not None:
        joints = robot.action_features["action"].names
        if not isinstance(home, list) or len(home) != len(joints) or not all(map(_is_position, home)):
            raise DeviceError(
                f"{name}: home is {home!r}, it must be a position for each of {', '.join(joints)}"
            )
        home = np.array(home, np.float64)
        lower = np.concatenate([a.joints.lower for a in arms.values()])
        upper = np.concatenate([a.joints.upper for a in arms.values()])
        if (outside := (home < lower) | (home > upper)).any():
            raise DeviceError(f"{name}: home is outside the limits of {joints[int(np.argmax(outside))]}")
    scene = config.get("scene")
    return Rig(robot, None, config, True, RemoteScene(scene["url"]) if scene else None, home)


def _require_patience(name: str, control_hz: float, rate_hz: float, arm: str, patience_s: float) -> None:
    """DeviceError where an arm would hold between any two commands."""
    # a command may be late, is for one period ahead, and readings are up to two ticks old
    if patience_s < (least := 1.5 / control_hz + 2 / rate_hz):
        raise DeviceError(
            f"{name}, [arms.{arm}]: at control_hz = {control_hz:g} the lesser of its watchdog_s and [safety] "
            f"stale_s must be at least {least:.3g} s, and is {patience_s:g}: the arm would hold between any "
            "two commands"
        )


@dataclass(frozen=True)
class ControlConfig:
    """The fields of `[control]`."""

    rate: float | None = setting(None, 20, 500, "Hz")
    """At which the control process sends the arms where they are to be; None: `RATE_HZ`, or what the slowest
    arm's driver can do."""
    park_after: float = setting(3.0, 0, 600, "s")
    """For so long the arms hold after the program died, before they are put down."""


def control_config(name: str, config: Mapping[str, Any]) -> ControlConfig:
    """`[control]` of the robot file `name`."""
    return parse(ControlConfig, config.get("control", {}), f"{name}, [control]")


def control_rate(name: str, config: Mapping[str, Any]) -> float:
    """The rate of the control process of the robot file `name`, Hz. DeviceError: more than an arm's driver
    can do."""
    rate = control_config(name, config).rate
    most, slowest = math.inf, ""
    for arm, table in config["arms"].items():
        module = driver_module("arms", str(table["driver"]), f"driver for {name}, [arms.{arm}]:")
        fields = {k: v for k, v in table.items() if k != "driver"}
        settings = parse(module.Config, fields, f"{name}, [arms.{arm}]")
        for field_name in ("bus_hz", "hz"):  # the drivers' own names for it
            hz = getattr(settings, field_name, math.inf)
            if hz < most:
                most, slowest = hz, f"[arms.{arm}] {field_name}"
    if rate is not None and rate > most:
        raise DeviceError(
            f"{name}, [control]: rate is {rate:g} Hz, more than {slowest} = {most:g} can send: lower it, or "
            "raise that"
        )
    return min(RATE_HZ, most) if rate is None else rate


def load_leaders(name: str) -> dict[str, Arm]:
    """The leader arms of the robot file `name`, by the arm that each leads. DeviceError when it names
    none."""
    config = read_config(name)
    if not config.get("leaders"):
        raise DeviceError(
            f"{name} names no leader arm: add a table [leaders.{next(iter(config.get('arms', {'arm': 0})))}]"
        )
    return make_devices(name, config, "leaders")


def load_teleoperator(name: str, driver: str, **options: Any) -> Teleoperator:
    """The teleoperator `driver` with what `[teleoperators.DRIVER]` of the robot file `name` says, if
    anything. options win."""
    driver_module("teleoperators", driver, "teleoperator")  # before the file is read
    return _teleoperator(name, driver, read_config(name).get("teleoperators", {}).get(driver, {}), **options)


def _teleoperator(name: str, driver: str, table: Any, **options: Any) -> Teleoperator:
    where = f"{name}, [teleoperators.{driver}]"
    if not isinstance(table, dict):
        raise DeviceError(f"{where} must be a table")
    module = driver_module("teleoperators", driver, f"teleoperator for {name}:")
    return module.make(driver, parse(module.Config, {**table, **options}, where))


def make_devices(
    name: str,
    config: Mapping[str, Any],
    group: str,
    **others: Any,
) -> dict[str, Any]:
    """The devices of the tables `[GROUP.NAME]` in `config`, the contents of the robot file `name`; none is
    opened. others: what their drivers are given beside. DeviceError names the table that is wrong."""
    devices: dict[str, Any] = {}
    for device, table in config.get(group, {}).items():
        where = f"{name}, [{group}.{device}]"
        if not isinstance(table, dict) or "driver" not in table:
            raise DeviceError(f"{where} lacks driver: one of {', '.join(sorted(driver_names(group)))}")
        module = driver_module(group, str(table["driver"]), f"driver for {where}:")
        fields = {k: v for k, v in table.items() if k != "driver"}
        devices[device] = module.make(device, parse(module.Config, fields, where), **others)
    return devices


def driver_names(group: str) -> list[str]:
    """Drivers for the tables `[GROUP.NAME]` of a robot's file: ours, and those of installed packages, of
    which nothing is imported."""
    entries, _ = offers(PLUGINS, _entry_names(group))
    start = f"{group}."
    return [*DRIVERS[group], *(n.removeprefix(start) for n in entries if n.startswith(start))]


def driver_module(group: str, driver: str, what: str) -> Any:
    """The module of the driver `driver` for tables `[GROUP.NAME]`, with its `Config` and `make`; driver may
    be `package.module`. DeviceError, which calls it `what` and gives the nearest names, when there is none;
    PluginError when a package offers it but it cannot be used."""
    if driver in DRIVERS[group]:
        return importlib.import_module(f"ulna.drivers.{DRIVERS[group][driver]}")
    module = lookup_plugin(PLUGINS, _entry_names(group), f"{group}.{driver}")
    if module is None and REFERENCE.fullmatch(driver):
        module = lookup(PLUGINS, {}, driver)
    elif module is None:
        require_known(what, driver, driver_names(group))
    if not (is_dataclass(getattr(module, "Config", None)) and callable(getattr(module, "make", None))):
        raise PluginError(f"{driver} is no driver: it needs a dataclass Config and a function make")
    return module


def _entry_names(group: str) -> dict[str, str]:
    return {f"{group}.{driver}": module for driver, module in DRIVERS[group].items()}


def _is_position(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e6  # rad; no nan


SIM_FIELDS: dict[str, type | tuple[type, ...]] = {
    "name": str,
    "driver": str,
    "model": str,
    "control_hz": (int, float),
    "cameras": dict,
    "safety": dict,
    "randomisation": dict,
}
CAMERA_FIELDS: dict[str, type | tuple[type, ...]] = {"height": int, "width": int}
FIELDS: dict[str, type | tuple[type, ...]] = {
    "name": str,
    "control_hz": (int, float),
    "home": list,
    "arms": dict,
    "cameras": dict,
    "trackers": dict,
    "leaders": dict,
    "teleoperators": dict,
    "scene": dict,
    "safety": dict,
    "control": dict,
    "validation": dict,
}
SCENE_FIELDS: dict[str, type | tuple[type, ...]] = {"driver": str, "url": str}


def read_config(name: str) -> dict[str, Any]:
    """The checked contents of a robot's TOML file."""
    if name.endswith(".toml"):
        path = Path(name)
    else:
        shipped = {p.stem.replace("-", ":", 1): p for p in CONFIGS.glob("sim-*.toml")}
        require_known("robot", name, shipped, "; or name a TOML file of your own")
        path = shipped[name]
    try:
        config = tomllib.loads(path.read_text())
        _require_finite(config, str(path))
    except OSError as error:
        raise DeviceError(f"cannot read the robot file {path}: {error.strerror}") from None
    except ValueError as error:  # of TOML, of UTF-8, or a number of thousands of digits
        raise DeviceError(f"the robot file {path} is not TOML: {error}") from None
    except RecursionError:
        raise DeviceError(f"the robot file {path} is nested too deeply") from None
    if "driver" in config or "model" in config:
        _check(config, SIM_FIELDS, str(path), optional=("cameras", "safety", "randomisation"))
        require_known(
            f"driver in {path}:", config["driver"], ("sim",), "; a real robot has tables [arms.NAME]"
        )
        for key, value in config.get("randomisation", {}).items():
            if isinstance(value, bool) or not isinstance(value, int | float) or value < 0:
                raise DeviceError(f"{path}, [randomisation]: {key} is {value!r}, it must be a number from 0")
        for camera, fields in config.get("cameras", {}).items():
            _check(fields, CAMERA_FIELDS, f"{path}, [cameras.{camera}]")
            for size in fields:
                if not 16 <= fields[size] <= 4096:
                    raise DeviceError(
                        f"{path}, [cameras.{camera}]: {size} is {fields[size]}, "
                        "it must lie in 16..4096 pixels"
                    )
    else:
        _check(
            config,
            FIELDS,
            str(path),
            (
                "home",
                "cameras",
                "trackers",
                "leaders",
                "teleoperators",
                "scene",
                "safety",
                "control",
                "validation",
            ),
        )
        bar_of(config, str(path))
        if not config["arms"]:
            raise DeviceError(f"{path}: [arms] is empty: a robot has at least one arm, like [arms.arm]")
        if "scene" in config:
            _check(config["scene"], SCENE_FIELDS, f"{path}, [scene]")
            require_known(f"driver in {path}, [scene]:", config["scene"]["driver"], ("twin",))
        for leader in config.get("leaders", {}):
            require_known(f"arm for [leaders.{leader}] in {path}:", leader, config["arms"])
        _require_own_ports(config, str(path))
    if not 1 <= config["control_hz"] <= 240:
        raise DeviceError(f"{path}: control_hz is {config['control_hz']}, it must lie in 1..240")
    return {**config, "control_hz": float(config["control_hz"])}


def _require_finite(value: Any, where: str) -> None:
    """Raise DeviceError that names a number in a robot file which is NaN or infinite."""
    if isinstance(value, float) and not math.isfinite(value):
        raise DeviceError(f"{where} is {value}, which is no number that a robot can have")
    if isinstance(value, dict | list):
        for name, part in value.items() if isinstance(value, dict) else enumerate(value):
            _require_finite(part, f"{where}: {name}")


def _require_own_ports(config: Mapping[str, Any], path: str) -> None:
    """Two devices on one port would read each other's answers."""
    owner: dict[str, str] = {}
    for group in ("arms", "leaders", "cameras"):
        for device, table in config.get(group, {}).items():
            for name in ("port", "host", "device", "serial", "address"):
                value = table.get(name) if isinstance(table, dict) else None
                if isinstance(value, str):
                    real = str(Path(value).resolve()) if value.startswith("/") else value
                    here = f"[{group}.{device}]"
                    if real in owner:
                        raise DeviceError(
                            f"{path}: {owner[real]} and {here} both use {value}: give each its own"
                        )
                    owner[real] = here


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
