"""What a person's hands do at a twin's arms: move joints, and plug servos onto the bus. These are orders of
the control channel."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ...drivers.arm import DeviceError, Joints
from ...drivers.config import require_known
from ...drivers.twins.plant import Plant
from .control import Order

if TYPE_CHECKING:
    from ...sim.twin import TwinWorld

CLOSE_RAD = 0.02  # a joint is where the hand wanted it
STUCK_S, LONGEST_S = 0.5, 8.0  # without progress, and in all: then something is in the way
REST_S = 0.25  # at each waypoint of a sweep, so that whoever looks now and then sees the ends
# Waypoints (rad, by joint; -inf and inf are its ends) that bring every joint of an SO-101 to both its ends
# without a table, or its own links, in the way: found in the simulation.
LOW, HIGH = -math.inf, math.inf
SWEEP: tuple[dict[str, float], ...] = (
    {"shoulder_lift": -1.0, "elbow_flex": 0.5, "wrist_flex": 0.0},
    {"shoulder_pan": LOW, "wrist_roll": LOW, "gripper": LOW},
    {"shoulder_pan": HIGH, "wrist_roll": HIGH, "gripper": HIGH},
    {"shoulder_pan": 0.0, "wrist_roll": 0.0, "gripper": 0.6, "wrist_flex": HIGH},
    {"elbow_flex": LOW, "wrist_flex": LOW},
    {"shoulder_lift": HIGH},
    {"shoulder_lift": -1.0},
    {"elbow_flex": 0.5, "wrist_flex": 0.0},
    {"shoulder_lift": LOW},
    {"shoulder_lift": -1.0, "elbow_flex": HIGH},
    {"shoulder_lift": -0.6, "elbow_flex": 0.7, "wrist_flex": 1.2},
)


class Hand:
    """plants: of the arms that hands can move, by device. tell: sends an order to the process of a device.
    buses: those of the devices whose servos can be plugged, and the joints that are, which this keeps up to
    date."""

    def __init__(
        self,
        world: TwinWorld,
        plants: Mapping[str, Plant],
        buses: Mapping[str, Collection[int]],
        tell: Callable[[str, Mapping[str, Any]], Any],
    ) -> None:
        self._world, self._plants, self._tell = world, dict(plants), tell
        self._plugged = {device: set(joints) for device, joints in buses.items()}

    def orders(self) -> dict[str, Order]:
        return {"move": self._move, "release": self._release, "sweep": self._sweep, "plug": self._plug}

    def joints(self, _: Mapping[str, Any]) -> dict[str, Any]:
        """By device and joint: position_rad, lower and upper (rad), whether it has torque, and whether its
        servo is on the bus (None: it has none)."""
        limits = self._limits
        return {
            device: {
                name: {
                    "position_rad": float(plant.position[j]),
                    "lower": float(limits.lower[j]),
                    "upper": float(limits.upper[j]),
                    "torque": bool(plant.torque[j]),
                    "plugged": j in self._plugged[device] if device in self._plugged else None,
                }
                for j, name in enumerate(limits.names)
            }
            for device, plant in self._plants.items()
        }

    @property
    def _limits(self) -> Joints:
        return self._world.arm.joints

    def _device(self, body: Mapping[str, Any], choices: Collection[str]) -> str:
        if not choices:
            raise DeviceError("this twin has no arm of servos")
        device = str(body.get("device", next(iter(choices))))
        require_known("arm of this twin:", device, choices)
        return device

    def _move(self, body: dict[str, Any]) -> dict[str, Any]:
        device = self._device(body, self._plants)
        wanted = body["joints"] if "joints" in body else {body["joint"]: body["position_rad"]}
        if not isinstance(wanted, dict):
            raise TypeError('joints is an object like {"elbow_flex": 0.5}')
        targets: dict[int, float] = {}
        for name, position in wanted.items():
            require_known("joint of this arm:", name, self._limits.names)
            j = self._limits.names.index(name)
            low, high = float(self._limits.lower[j]), float(self._limits.upper[j])
            if isinstance(position, bool) or not isinstance(position, int | float):
                raise TypeError(f"{name} is moved to a number of radians, not to {position!r}")
            if not low - 1e-3 <= position <= high + 1e-3:
                raise ValueError(f"{name} goes from {low:g} to {high:g} rad, not to {position:g}")
            targets[j] = float(np.clip(position, low, high))
        return self._take(device, targets, wait=body.get("wait", True) is not False)

    def _sweep(self, body: dict[str, Any]) -> dict[str, Any]:
        device = self._device(body, self._plugged)
        answer: dict[str, Any] = {}
        for waypoint in SWEEP:
            places = np.clip(list(waypoint.values()), *self._ends(waypoint))
            joints = map(self._limits.names.index, waypoint)
            answer = self._take(device, dict(zip(joints, places.tolist(), strict=True)), wait=True)
            if answer["resists"]:
                break
            time.sleep(REST_S)
        self._release(body)
        return answer

    def _ends(self, names: Collection[str]) -> tuple[np.ndarray, np.ndarray]:
        which = [self._limits.names.index(name) for name in names]
        return self._limits.lower[which], self._limits.upper[which]

    def _take(self, device: str, targets: Mapping[int, float], wait: bool) -> dict[str, Any]:
        """The hand takes the joints there; those with torque do not give way."""
        plant, names = self._plants[device], self._limits.names
        stiff = [j for j in targets if plant.torque[j] and device != "leader"]
        moving = {j: q for j, q in targets.items() if j not in stiff}
        self._world.move(device == "leader", moving)
        if wait:
            self._wait(plant, moving)
        return {
            "position_rad": {names[j]: float(plant.position[j]) for j in targets},
            "resists": [names[j] for j in stiff],
        }

    def _wait(self, plant: Plant, targets: Mapping[int, float]) -> None:
        which, places = list(targets), np.array(list(targets.values()))
        end = still_since = time.monotonic()
        end += LONGEST_S
        last = plant.position[which].copy()
        while (now := time.monotonic()) < end:
            position = plant.position[which]
            if not which or np.abs(position - places).max() < CLOSE_RAD:
                return
            if np.abs(position - last).max() > CLOSE_RAD:
                last, still_since = position.copy(), now
            elif now - still_since > STUCK_S:
                return
            time.sleep(0.01)

    def _release(self, body: dict[str, Any]) -> None:
        self._world.let_go(self._device(body, self._plants) == "leader")

    def _plug(self, body: dict[str, Any]) -> dict[str, Any]:
        device, names = self._device(body, self._plugged), self._limits.names
        servo = body["servo"]
        chosen: Sequence[Any] = servo if isinstance(servo, list) else [servo]
        joints: set[int] = set()
        for name in chosen:
            require_known("servo of this arm:", str(name), ("all", "none", *names))
            joints |= set(range(len(names))) if name == "all" else set()
            joints |= {names.index(name)} if name in names else set()
        self._tell(device, {"plug": sorted(joints)})
        self._plugged[device] = joints
        return {"plugged": [name for j, name in enumerate(names) if j in joints]}
