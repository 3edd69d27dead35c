"""The assembled robot: named arms, cameras and trackers behind one `observe` and one `command`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace

import numpy as np

from ..datasets.features import ACTION, DEPTH, ENVIRONMENT, IMAGES, STATE, Feature, Features, unit_of_depth
from ..datasets.flags import HELD, INVALID
from ..drivers.arm import Arm, ArmState, DeviceError, Joints, joints_of
from ..drivers.camera import Camera, CameraState, depth_of
from ..drivers.clock import Clock
from ..drivers.tracker import Tracker
from .control.host import Host, say
from .safety.filter import Filter
from .safety.stage import Measured
from .safety.tally import Tally

SAID_HELD_NS = 1_000_000_000  # a shorter wait for the next command is not told
LATE = "no command in time"


@dataclass(frozen=True)
class Observation:
    """values: by feature key. times_ns: (t_capture_ns, t_receive_ns) by key, on the robot's clock; of several
    devices behind one key the oldest capture and the latest receipt. task: the instruction in words. flags:
    by key, INVALID where a device doubts an element of its reading."""

    values: dict[str, np.ndarray]
    times_ns: dict[str, tuple[int, int]]
    task: str = ""
    flags: dict[str, int] = field(default_factory=dict)


class Robot:
    """Features are fixed by its devices: `observation.state` and `action` are the joints of all arms, in the
    order of the arms; with several arms a joint is named `arm.joint`. Depth is as its camera gives it; its
    unit is known once the camera is open. tracker_cameras: those that only trackers look through; their
    frames are not observed. The constructor opens and enables no device.

    host: the control process that the arms of a real robot live in, with their filter; None where they live
    here. filter: what each command goes through first, where they live here and there is one. command_flags:
    of the last command, bits of `datasets.flags`; tally: what the filter did since it was cleared."""

    def __init__(
        self,
        name: str,
        arms: Mapping[str, Arm],
        cameras: Mapping[str, Camera],
        trackers: Mapping[str, Tracker],
        clock: Clock,
        control_hz: float,
        tracker_cameras: Sequence[Camera] = (),
    ) -> None:
        if not arms:
            raise ValueError(f"robot {name} has no arm")
        self.name, self.clock, self.control_hz = name, clock, control_hz
        self.arms, self.cameras, self.trackers = dict(arms), dict(cameras), dict(trackers)
        self.host: Host | None = None
        self.goes_on_ns = 0  # for how long after a command the arms execute what was announced with it
        self.filter: Filter | None = None
        self.command_flags, self.tally = 0, Tally()
        self._filter_stands = False  # whether the filter knows where the arms are
        self._watched = (*self.cameras.values(), *tracker_cameras)
        self._eyes = (*self._watched, *self.trackers.values())
        self.command_flags = 0  # of `datasets.flags`, of the last command
        depths = {name: depth_of(camera) for name, camera in self.cameras.items()}
        self._depths = {name: depth for name, depth in depths.items() if depth is not None}

        names, units = self.joints.names, self.joints.units
        self.action_features: Features = {ACTION: Feature((len(names),), "float32", names, units)}
        self.observation_features: Features = {STATE: Feature((len(names),), "float32", names, units)}
        if self.trackers:
            tracker_names = tuple(n for t in self.trackers.values() for n in t.names)
            tracker_units = tuple(u for t in self.trackers.values() for u in t.units)
            self.observation_features[ENVIRONMENT] = Feature(
                (len(tracker_names),), "float32", tracker_names, tracker_units
            )
        for camera_name, camera in self.cameras.items():
            size = camera.height, camera.width
            self.observation_features[IMAGES + camera_name] = Feature((*size, 3), "uint8")
            if camera_name in self._depths:
                self.observation_features[DEPTH + camera_name] = Feature(size, "uint16")

    @property
    def features(self) -> Features:
        return self.observation_features | self.action_features

    @property
    def joints(self) -> Joints:
        """Of all arms, named as in `action_features`."""
        return joints_of(self.arms)

    @property
    def period_ns(self) -> int:
        return round(1e9 / self.control_hz)

    def open(self) -> None:
        """Open every device. Where one fails, those that were opened before it are closed again."""
        with ExitStack() as opened:
            for device in (*self.arms.values(), *self._eyes):
                device.open()
                opened.callback(device.close)
            for name, depth in self._depths.items():
                if (scale_m := depth.depth_scale_m) is not None:
                    feature = replace(
                        self.observation_features[DEPTH + name], units=(unit_of_depth(scale_m),)
                    )
                    self.observation_features[DEPTH + name] = feature
            opened.pop_all()

    def park(self) -> None:
        """Put down what would fall without torque, and switch it off there; say of each arm that cannot be
        put down that it keeps its torque. The arms take no command before they are enabled again."""
        if self.host is not None:
            self.host.put_down()

    def close(self) -> None:
        """The arms first: a camera that cannot be closed, or a Ctrl-C meanwhile, leaves none of them with
        torque on; those of a real robot are put down (`park`), unless they were. What is raised comes after
        all were closed."""
        with ExitStack() as stack:  # closes the last one first
            for device in (*self._eyes, *self.arms.values()):
                stack.callback(device.close)

    def enable(self) -> None:
        self.moved()
        for arm in self.arms.values():
            arm.enable()

    def begin(self) -> None:
        """An episode begins: what the filter did, and what its stages remember, is of the last one."""
        self.tally.clear()
        if self.host is not None:
            self.host.begin()

    def moved(self) -> None:
        """The arms are, or may be, elsewhere than they were commanded."""
        self._filter_stands = False

    def hold(self) -> None:
        self.moved()
        with ExitStack() as stack:  # an arm that cannot hold does not keep the others from it
            for arm in self.arms.values():
                stack.callback(arm.hold)

    def troubles(self) -> dict[str, str]:
        """Why devices give nothing new now, by name, in words; {} when all of them work. An arm without
        torque works, as long as it is read. DeviceError: a camera that cannot come back."""
        troubles: dict[str, str] = {}
        for name, arm in self.arms.items():
            health = arm.health()
            gone = health.state in (ArmState.CLOSED, ArmState.RECONNECTING)
            if gone or not np.all(arm.read().valid):
                troubles[name] = health.message or "it does not answer"
        for camera in self._watched:
            health = camera.health()
            if health.state is CameraState.FAILED:
                raise DeviceError(f"the camera {camera.name} does not come back: {health.message}")
            if health.state is not CameraState.STREAMING:
                troubles[camera.name] = health.message or f"it is {health.state.value}"
        return troubles

    def observe(self, task: str = "") -> Observation:
        values: dict[str, np.ndarray] = {}
        times: dict[str, tuple[int, int]] = {}
        flags: dict[str, int] = {}
        for key, devices in ((STATE, self.arms), (ENVIRONMENT, self.trackers)):
            if devices:
                samples = [d.read() for d in devices.values()]
                values[key] = np.concatenate([s.data for s in samples]).astype(np.float32)
                times[key] = min(s.t_capture_ns for s in samples), max(s.t_receive_ns for s in samples)
                if not all(np.all(s.valid) for s in samples):
                    flags[key] = INVALID
        for name, camera in self.cameras.items():
            sample = camera.latest()
            values[IMAGES + name] = sample.data
            times[IMAGES + name] = sample.t_capture_ns, sample.t_receive_ns
            if not np.all(sample.valid):
                flags[IMAGES + name] = INVALID
            if (depth := self._depths.get(name)) is not None:
                sample = depth.latest()
                values[DEPTH + name] = sample.data
                times[DEPTH + name] = sample.t_capture_ns, sample.t_receive_ns
                if not np.all(sample.valid):
                    flags[DEPTH + name] = INVALID
        return Observation(values, times, task, flags)

    def command(self, action: np.ndarray, ahead: np.ndarray | None = None) -> np.ndarray:
        """Send `action` `(A,)`, to be reached one control period from now, as far as the filter lets it;
        returns what was really sent, `(A,)` float32. ahead `(n, A)`: the actions that follow, one a period,
        where they are known. A wrong shape or a value that is not finite raises ValueError and nothing is
        sent to any arm."""
        action = np.asarray(action, np.float64)
        feature = self.action_features[ACTION]
        if action.shape != feature.shape:
            raise ValueError(
                f"an action has shape {action.shape}, but {self.name} has joints {', '.join(feature.names)}"
            )
        if not np.isfinite(action).all():
            bad = feature.names[int(np.flatnonzero(~np.isfinite(action))[0])]
            raise ValueError(f"the action for joint {bad} is not finite; nothing was sent")
        if self.host is not None:
            return self._hosted(self.host, action, ahead)
        if self.filter is not None:
            action = self._filtered(self.filter, action)
        due = self.clock.now_ns() + self.period_ns
        commands, at = [], 0
        for arm in self.arms.values():
            n = len(arm.joints)
            commands.append(arm.command(action[at : at + n], due))
            at += n
        return np.concatenate(commands).astype(np.float32)

    def gone_on(self, since_ns: int) -> int:
        """How many of the actions that were announced with the command that was sent at `since_ns` are over,
        where the next command is late; 0 where it is not."""
        passed = min(self.clock.now_ns() - since_ns, self.goes_on_ns)
        return max(passed // self.period_ns - 1, 0)

    def _hosted(self, host: Host, action: np.ndarray, ahead: np.ndarray | None) -> np.ndarray:
        following = np.zeros((0, len(action))) if ahead is None else np.asarray(ahead, np.float64)
        if following.shape[1:] != action.shape or not np.isfinite(following).all():
            following = following[:0].reshape(0, len(action))  # they were announced, not asked for
        targets, follow, at = {}, {}, 0
        for name, arm in self.arms.items():
            n = len(arm.joints)
            targets[name], follow[name] = action[at : at + n], following[:, at : at + n]
            at += n
        due = self.clock.now_ns() + self.period_ns
        sent, self.command_flags, reasons = host.command(targets, due, follow, self.period_ns)
        if self.tally.ticks and host.held_ns > SAID_HELD_NS:
            text = f"no command came for {host.held_ns * 1e-9:.1f} s, in which the arms held"
            say(f"{text}: what decides, its server or this computer is late")
            self.command_flags |= HELD
            reasons = (*reasons, LATE)
        self.tally.count(self.command_flags, reasons)
        return np.concatenate([sent[name] for name in self.arms]).astype(np.float32)

    def _filtered(self, safety_filter: Filter, action: np.ndarray) -> np.ndarray:
        if not self._filter_stands:
            safety_filter.reset(np.concatenate([arm.read().data for arm in self.arms.values()]))
            self._filter_stands = True
        measured = None
        if safety_filter.stages is not None:
            measured = Measured.of([arm.read() for arm in self.arms.values()])
        step = safety_filter.step(action, 1 / self.control_hz, measured)
        self.command_flags = step.flags
        self.tally.count(step.flags, step.reasons)
        return step.command
