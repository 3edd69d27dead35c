"""Twins of whole stations: an arm, its leader and its cameras in one PyBullet world, each behind its own
device protocol.

There are three kinds of process: this one steps the physics and renders; one per serial bus or controller
speaks its protocol; one per camera encodes and serves frames. They share memory. A control channel (HTTP on
loopback) resets the scene, changes faults and gives the ground truth; no device does that."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import numpy as np

from ...drivers import web
from ...drivers.arm import DeviceError
from ...drivers.cameras.frame_ring import FrameRing
from ...drivers.config import require_known
from ...drivers.devices import runtime_folder
from ...drivers.servos import koch_leader
from ...drivers.servos.bus import COUNTS_PER_TURN
from ...drivers.servos.calibration import Calibration, JointCalibration, save
from ...drivers.servos.group import DYNAMIXEL, FEETECH
from ...drivers.twins.faults import BusFaults, CameraFaults, set_faults
from ...drivers.twins.ur_controller import URFaults
from .control import Order, serve
from .hand import Hand

# raw encoder counts between a servo's zero and its joint's zero: as of servos mounted without care
MOUNTING = (317, -221, 145, -402, 88, 260, -77, 19)


@dataclass(frozen=True)
class Kind:
    """protocol: name of the module in `drivers.twins`. robot: name of the model in `sim.robots`. models:
    model numbers of the servos, base to gripper. leader: kind of its leader arm, empty when there is none.
    settings: fields of the arm's driver to write into the robot's file. reversed: joints whose servos are
    mounted the other way round, where nobody has set them up yet."""

    protocol: str
    robot: str
    models: tuple[int, ...] = ()
    leader: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)
    reversed: Collection[str] = ()


FAMILIES = {family.protocol: family for family in (FEETECH, DYNAMIXEL)}
# Half of what the driver allows a gripper: PyBullet's fingers squeeze a light cube out of their grip when
# they push with all of it.
LIGHT_GRIP = {"gripper_torque": 250}
KINDS = {
    "so101": Kind("feetech", "so101", (777,) * 6, "so101-leader", LIGHT_GRIP),
    "so101-leader": Kind("feetech", "so101", (777,) * 6),
    "koch": Kind(
        "dynamixel", "so101", (1060, 1060, 1200, 1200, 1200, 1200), "koch-leader", {"model": "so101"}
    ),
    "koch-leader": Kind("dynamixel", "so101", (1190,) * 6, reversed=koch_leader.DRIVE_MODES),
    "ur5e": Kind("ur", "ur5e"),
    "camera": Kind("", "so101"),
    "realsense": Kind("", "so101"),
}


@dataclass
class StationConfig:
    """What a twin stands in for, and what is around it."""

    kind: str = "so101"
    """Of `KINDS`."""
    task: str = "lift"
    """The scene, whose objects stand before the arm."""
    cameras: Sequence[str] = ()
    """Names of its views."""
    realsense: Sequence[str] = ()
    """Those of `cameras` that are RealSense cameras."""
    image_size: tuple[int, int] = (96, 96)
    """`(height, width)` of their frames, pixels."""
    fps: float = 20.0
    """Frames a second of the cameras."""
    control_hz: float = 20.0
    """Rate of the demonstrations, which the robot's file names, too."""
    hand: bool = False
    """A leader arm with a scripted hand at it."""
    noise: float = 0.004
    """Unsteadiness of the hand, m."""
    seed: int = 0
    """Of the faults' dice."""
    faults: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """By device, from the start: fields of `BusFaults` or `CameraFaults`."""
    factory_new: bool = False
    """Its servos are as they come out of their boxes (id 1, the factory's speed, no calibration), and none is
    plugged onto the bus yet."""


def devices(config: StationConfig) -> tuple[str, ...]:
    """Names of the devices that such a twin has. DeviceError: the leader or a fault in `config` does not
    exist; this is checked before anything is started."""
    kind, alone = KINDS[config.kind], config.kind.endswith("-leader")
    if config.hand and not (kind.leader or alone):
        kinds_with_leader = " and ".join(name for name, other in KINDS.items() if other.leader)
        raise DeviceError(f"there is no leader for the twin {config.kind}: {kinds_with_leader} have one")
    faults_by_device: dict[str, BusFaults | CameraFaults] = {}
    if kind.protocol and not alone:
        faults_by_device["arm"] = URFaults() if kind.protocol == "ur" else BusFaults()
    if config.hand or alone:
        faults_by_device["leader"] = BusFaults()
    faults_by_device |= {camera: CameraFaults() for camera in config.cameras}
    if config.factory_new and not kind.models:
        with_servos = " and ".join(name for name, other in KINDS.items() if other.models)
        raise DeviceError(f"the twin {config.kind} has no servos to be factory-new: {with_servos} have some")
    for device, faults in config.faults.items():
        require_known("device of this twin:", device, faults_by_device)
        set_faults(faults_by_device[device], faults)
    return tuple(faults_by_device)


class Child:
    """The process of the protocol side of a twin; it reads and writes lines of JSON. info: what it answered
    to `setup`."""

    def __init__(self, module: str, setup: Mapping[str, Any]) -> None:
        self.module = module
        self._lock = threading.Lock()
        self._process = subprocess.Popen(
            [sys.executable, "-m", f"ulna.drivers.twins.{module}"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self.info = self.ask(setup)

    def ask(self, order: Mapping[str, Any]) -> dict[str, Any]:
        """The answer of the process to `order`. DeviceError: the process reports an error, or has ended."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with self._lock:
            try:
                self._process.stdin.write(json.dumps(order) + "\n")
                self._process.stdin.flush()
                line = self._process.stdout.readline()
            except OSError:
                line = ""
        if not line:
            raise DeviceError(
                f"the {self.module} side of the twin ended: its own words are on standard error"
            )
        answer = json.loads(line)
        if "error" in answer:
            raise DeviceError(answer["error"])
        return answer

    @property
    def pid(self) -> int:
        return self._process.pid

    def close(self) -> None:
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()
        try:
            self._process.wait(5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


class Station:
    """`with Station(config) as station: station.run()`. info: the twin's name and process, the ports of its
    devices, the URL of its control channel and the path of its robot's TOML file."""

    def __init__(self, config: StationConfig, folder: Path | None = None) -> None:
        from ...sim.twin import TwinWorld

        require_known("twin", config.kind, KINDS)
        self.config, self.kind = config, KINDS[config.kind]
        self.devices = devices(config)
        self.name = name = f"{config.kind}-{os.getpid()}"
        self.folder, self._own_folder = folder or runtime_folder() / name, folder is None
        self.children: dict[str, Child] = {}
        self.rings: dict[str, FrameRing] = {}
        self._control: web.Server | None = None
        self.world = TwinWorld(
            self.kind.robot,
            config.task,
            config.cameras,
            config.image_size,
            config.fps,
            config.control_hz,
            "leader" in self.devices,
            config.noise,
            self._film,
        )
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._start()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def run(self) -> None:
        """Step the world until `stop`."""
        self.world.run()

    def stop(self) -> None:
        self.world.stop()

    def set_faults(self, device: str, faults: Mapping[str, Any]) -> None:
        self._require_device(device)
        self.children[device].ask({"faults": dict(faults)})

    def power_cycle(self, device: str) -> None:
        self._require_device(device)
        self.children[device].ask({"reset": True})

    def close(self) -> None:
        self.stop()  # whoever asks still is told so, and does not hold the control channel up
        if self._control is not None:
            self._control.close()
        for child in self.children.values():
            child.close()
        for ring in self.rings.values():
            ring.close()
            ring.remove()
        self.world.close()
        with contextlib.suppress(FileNotFoundError):
            (runtime_folder() / f"{self.name}.json").unlink()
        if self._own_folder:
            shutil.rmtree(self.folder, ignore_errors=True)

    def _orders(self) -> dict[str, Order]:
        """The orders that the control channel takes, by name."""

        def set_all_faults(body: dict[str, Any]) -> None:
            for device, faults in body.items():
                self.set_faults(device, faults)

        return {
            "reset": lambda body: self.world.reset(int(body["seed"])),
            "begin": lambda _: self.world.begin(),
            "rest": lambda _: self.world.rest(),
            "faults": set_all_faults,
            "power-cycle": lambda body: self.power_cycle(str(body["device"])),
            "stop": lambda _: self.stop(),
            **self._hand.orders(),
        }

    def _require_device(self, device: str) -> None:
        require_known("device of this twin:", device, self.devices)

    def _film(self, name: str, color: np.ndarray, t_ns: int) -> None:
        ring = self.rings.get(name)
        if ring is not None:
            depth = self.world.scene.cameras[name].depth_rendered() if ring.has_depth else None
            ring.write(color, depth, t_capture_ns=t_ns)

    def _start(self) -> None:
        config, kind, plant = self.config, self.kind, self.world.arm.plant
        info: dict[str, Any] = {"name": self.name, "kind": config.kind, "pid": os.getpid(), "ports": {}}
        tables: dict[str, dict[str, Any]] = {}
        if config.kind.endswith("-leader"):
            assert self.world.hand is not None
            self._start_bus("leader", config.kind, self.world.hand.plant.path, info, tables, "leaders.arm")
        elif kind.protocol == "ur":
            plant.torque[:] = 1  # its brakes hold it; servos have none
            child = self._child("arm", "ur", {"plant": str(plant.path)})
            info["ports"]["arm"] = child.info["host"]
            tables["arms.arm"] = {"driver": "ur", "model": config.kind, "host": child.info["host"]}
        elif kind.protocol:
            self._start_bus("arm", config.kind, plant.path, info, tables, "arms.arm")
        if self.world.hand is not None and kind.leader:
            self._start_bus("leader", kind.leader, self.world.hand.plant.path, info, tables, "leaders.arm")
        height, width = config.image_size
        for camera in config.cameras:
            is_realsense = camera in config.realsense
            ring = FrameRing.create(height, width, depth=is_realsense)
            self.rings[camera] = FrameRing(ring.path, write=True)
            size = {"height": height, "width": width, "fps": config.fps}
            module = "realsense" if is_realsense else "mjpeg"
            lens = self.world.scene.cameras[camera].intrinsics.matrix
            optics = {
                "lens": dict(
                    zip(("fx", "fy", "cx", "cy"), lens[[0, 1, 0, 1], [0, 1, 2, 2]].tolist(), strict=True)
                )
            }
            child = self._child(
                camera, module, {"ring": str(ring.path), **size, **(optics if is_realsense else {})}
            )
            where = child.info.get("url") or child.info["address"]
            info["ports"][camera] = where
            device = {"driver": "opencv", "device": where}
            if is_realsense:
                device = {"driver": "realsense", "source": "twin", "address": where}
            tables[f"cameras.{camera}"] = {**device, **size}
            ring.close()
        if config.cameras and config.task == "lift":  # its cube is blue
            tables["trackers.cube"] = {"driver": "colour", "cameras": list(config.cameras)}
        plants = {"arm": plant} if "arm" in self.devices else {}
        if self.world.hand is not None:
            plants["leader"] = self.world.hand.plant
        joints = range(0 if config.factory_new else len(self.kind.models))
        buses = {device: joints for device in plants if self.kind.models}
        self._hand = Hand(self.world, plants, buses, lambda device, order: self.children[device].ask(order))
        questions = {"state": lambda _: self.world.state(), "joints": self._hand.joints}
        self._control, info["control"] = serve(questions, self._orders())
        tables["scene"] = {"driver": "twin", "url": info["control"]}
        info["toml"] = str(self._write_toml(tables))
        self.info = info
        note = runtime_folder() / f"{self.name}.json"
        note.write_text(json.dumps(info))

    def _start_bus(
        self,
        device: str,
        driver: str,
        plant: Path,
        info: dict[str, Any],
        tables: dict[str, dict[str, Any]],
        table: str,
    ) -> None:
        kind, joints, new = KINDS[driver], self.world.arm.joints, self.config.factory_new
        servos, calibration = [], Calibration()
        for j, (joint, model) in enumerate(zip(joints.names, kind.models, strict=True)):
            zero, offset = COUNTS_PER_TURN // 2, MOUNTING[j]
            # a servo reports its encoder minus the offset (Feetech) or plus it (Dynamixel)
            register = offset if kind.protocol == "feetech" else -offset
            per_rad = COUNTS_PER_TURN / (2 * np.pi)
            low = round(zero + joints.lower[j] * per_rad)
            high = round(zero + joints.upper[j] * per_rad)
            calibration[joint] = JointCalibration(j + 1, 0, register, low, high)
            registers = {"homing_offset": register}
            if kind.protocol == "feetech":
                registers |= {"min_position_limit": low, "max_position_limit": high}
            servo = {"model": model, "joint": j, "zero_count": zero + offset}
            if new and joint in kind.reversed:
                servo["direction"] = -1
            servos.append(servo | ({"id": 1} if new else {"id": j + 1, "registers": registers}))
        link = self.folder / device
        child = self._child(
            device,
            "serial_twin",
            {
                "protocol": kind.protocol,
                "plant": str(plant),
                "servos": servos,
                "baud": FAMILIES[kind.protocol].factory_baud if new else 1_000_000,
                "link": str(link),
                "seed": self.config.seed,
                "plugged": [] if new else None,
            },
        )
        path = self.folder / f"{device}-calibration.json"
        if not new:  # else `ulna calibrate` makes it
            save(path, calibration)
        info["ports"][device] = port = child.info["port"]
        tables[table] = {"driver": driver, "port": port, "calibration": str(path), **kind.settings}

    def _child(self, device: str, module: str, setup: Mapping[str, Any]) -> Child:
        faults = dict(self.config.faults.get(device, {}))
        self.children[device] = child = Child(module, {**setup, "faults": faults})
        return child

    def _write_toml(self, tables: Mapping[str, Mapping[str, Any]]) -> Path:
        # a UR's driver has its six joints, not the gripper that the physics puts there
        joints = 6 if self.kind.protocol == "ur" else None
        home = [round(float(q), 4) for q in self.world.arm.robot.home[:joints]]
        lines = [f"# Twin of {self.config.kind}, as long as it runs."]
        if "arms.arm" in tables:
            lines += [
                (
                    "# A real robot's file differs in its ports, may let its gripper push harder, and has no "
                    "[scene]."
                ),
                f"name = {json.dumps(self.config.kind + '-twin')}",
                f"control_hz = {self.config.control_hz}",
                f"home = {json.dumps(home)}",
            ]
        else:
            lines.append("# Tables to put into the file of a robot with an arm.")
        if "arms.arm" in tables:
            lines += ["", "[safety]", "stale_s = 1.0  # its pictures are computed, on a busy machine late"]
        for table, values in tables.items():
            lines += ["", f"[{table}]", *(f"{k} = {json.dumps(v)}" for k, v in values.items())]
        path = self.folder / "robot.toml"
        path.write_text("\n".join(lines) + "\n")
        return path
