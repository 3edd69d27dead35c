"""A Universal Robots e-Series arm (UR3e, UR5e, UR10e, UR16e, UR20, UR30) through ur_rtde.

`enable` uploads ur_rtde's control script; `disable` stops it. Without the script the controller itself holds
the arm: a UR has no state "torque off" short of its brakes. The connection lives in a process of its own
(`drivers.ur.process` says why); `read` and `command` only use shared memory and never wait for the network.

It needs the pendant in Remote Control, the arm powered on with its brakes released, and ports 29999 and 30002
to 30004 reachable."""

from __future__ import annotations

import contextlib
import dataclasses
import threading
import time
from dataclasses import dataclass

import numpy as np

from ..arm import ArmHealth, ArmState, DeviceError, Joints, check_first, check_target, limit_target
from ..config import require_known, setting
from ..sample import Sample
from .child import Child
from .memory import JOINTS, Memory
from .process import NORMAL, REDUCED, RUNNING, Settings

NAMES = ("shoulder_pan", "shoulder_lift", "elbow", "wrist_1", "wrist_2", "wrist_3")
MODELS = ("ur3e", "ur5e", "ur10e", "ur16e", "ur20", "ur30")
TURN = 2 * np.pi
STALE_S = 0.1  # an older reading is not valid (a controller sends every 2 ms)
ENABLE_S = 15.0
PAUSES_S = (0.5, 1.0, 2.0, 5.0)  # between attempts to reconnect

SAFETY = {
    3: "protective stop: look what the arm ran into, clear it, unlock the stop on the pendant, and enable "
    "again",
    4: "recovery mode: move the arm back inside its safety limits with the pendant, and enable again",
    5: "safeguard stop: close the gate or reset the safeguard, and enable again",
    6: "system emergency stop: release the emergency stop of the cell, power the arm on, and enable again",
    7: "emergency stop: release the button, power the arm on with the pendant, and enable again",
    8: "safety violation: restart the safety system with the pendant, and enable again",
    9: "safety fault: read the log on the pendant and restart the controller",
}
ROBOT = {
    0: "no safety controller: read the log on the pendant",
    1: "the controller boots: wait a minute",
    2: "the controller boots: wait a minute",
    3: "the arm's power is off: power it on with the pendant, release the brakes, and enable again",
    4: "the arm powers on: wait until it is idle, release the brakes, and enable again",
    5: "the brakes are on: release them with the pendant, and enable again",
    6: "the arm is moved by hand: end freedrive, and enable again",
    8: "the arm's firmware is updated: wait",
}


@dataclass(frozen=True)
class Config:
    """The fields of `[arms.NAME]` with `driver = "ur"`."""

    host: str
    """Address of the controller."""
    hz: float = setting(125.0, 20, 500, "Hz")
    """Rate of setpoints, between which the control script smooths."""
    watchdog_s: float = setting(0.5, 0.05, 5, "s")
    """Without a command for longer the arm brakes and holds."""
    link_watchdog_s: float = setting(0.5, 0.1, 5, "s")
    """Without a message from this computer for longer the controller itself stops the program."""
    lost_s: float = setting(0.5, 0.1, 10, "s")
    """Without data for longer the connection counts as lost."""
    max_first_step: float = setting(0.3, 0.01, 3, "rad")
    """How far from where the arm is its first command after `enable` may be, by joint."""
    max_velocity: float = setting(1.0, 0.01, 3.15, "rad/s")
    """Of every joint's setpoint."""
    max_acceleration: float = setting(8.0, 0.1, 40, "rad/s²")
    """Of every joint's setpoint; so the arm trails a target that moves at v by up to v²/2a."""
    lower: tuple = (-TURN, -TURN, -np.pi, -TURN, -TURN, -TURN)
    """rad, of the six joints, base first; narrow it to the cell."""
    upper: tuple = (TURN, TURN, np.pi, TURN, TURN, TURN)
    """rad, likewise."""
    max_effort: tuple = (150.0, 150.0, 150.0, 28.0, 28.0, 28.0)
    """N·m, of the six joints of the model; the default is the UR5e's."""
    lookahead_s: float = setting(0.1, 0.03, 0.2, "s")
    """How far the control script smooths the setpoints: longer is smoother and later."""
    gain: float = setting(300.0, 100, 2000)
    """How stiffly the control script follows the setpoints."""
    payload_kg: float | None = setting(None, 0, 35, "kg")
    """Of the tool; None: as the pendant has it."""
    payload_centre_m: tuple = (0.0, 0.0, 0.0)
    """The tool's centre of mass, from the flange; it counts with `payload_kg`."""
    latency_s: float = setting(0.002, 0, 0.1, "s")
    """The shortest time from measurement to arrival."""
    model: str = ""
    """One of `MODELS`, such as `ur5e`; only moving the tip by hand needs it."""


def make(name: str, config: Config) -> UR:
    """The arm, closed. DeviceError: impossible limits, or an unknown model."""
    if config.model:
        require_known(f"model for {name}:", config.model, MODELS)
    fields = {"lower": JOINTS, "upper": JOINTS, "max_effort": JOINTS, "payload_centre_m": 3}
    for field, n in fields.items():
        values = getattr(config, field)
        if len(values) != n or not all(isinstance(v, int | float) and np.isfinite(v) for v in values):
            raise DeviceError(f"{name}: {field} must be a list of {n} numbers, it is {list(values)}")
    lower, upper = np.array(config.lower, float), np.array(config.upper, float)
    if (lower >= upper).any() or (np.abs([lower, upper]) > TURN + 1e-9).any():
        raise DeviceError(
            f"{name}: each of lower must be less than its upper, and both within one turn (6.283 rad)"
        )
    return UR(name, config)


class UR:
    """A UR arm; keeps the contract of `drivers.arm.Arm`."""

    falls = False  # its controller holds it

    def __init__(self, name: str, config: Config) -> None:
        self.name, self.config = name, config
        self.watchdog_s, self.max_first_step = config.watchdog_s, config.max_first_step
        self.joints = Joints(
            NAMES,
            ("rad",) * JOINTS,
            np.array(config.lower, float),
            np.array(config.upper, float),
            np.full(JOINTS, config.max_velocity),
            np.array(config.max_effort, float),
        )
        self._memory: Memory | None = None
        self._child: Child | None = None
        self._supervisor: threading.Thread | None = None
        self._closing = threading.Event()
        self._orders = threading.Lock()  # of the child's stdin and stdout, and of its life
        self._lock = threading.RLock()  # of what follows; never held while waiting
        self._enabled = self._stopped = self._ended = self._first = False
        self._lost = self._had_control = False
        self._reconnects = 0
        self._message = ""

    # life

    def open(self) -> None:
        if self._memory:
            return
        self._memory = Memory()
        self._closing.clear()
        self._lost = self._enabled = self._stopped = self._ended = self._had_control = False
        self._reconnects, self._message = 0, ""
        try:
            with self._orders:
                self._start()
        except DeviceError:
            self._memory.close()
            self._memory = None
            raise
        self._supervisor = threading.Thread(
            target=self._supervise, name=f"{self.name} supervisor", daemon=True
        )
        self._supervisor.start()

    def close(self) -> None:
        if not self._memory:
            return
        self._closing.set()
        if self._supervisor:
            self._supervisor.join()
            self._supervisor = None
        with self._orders:
            self._end(10.0)
        self._memory.close()
        self._memory = None
        self._enabled = False

    def _start(self) -> None:
        """Start a child process with a connection. DeviceError: the controller does not answer."""
        assert self._memory
        c = self.config
        shared = {f.name: getattr(c, f.name) for f in dataclasses.fields(Settings) if hasattr(c, f.name)}
        settings = Settings(**shared, file=self._memory.file, stop_program=self._had_control)
        try:
            self._child = Child(settings, self._closing)
        except DeviceError as error:
            raise DeviceError(
                f"the UR {self.name} at {c.host} does not answer ({error}): is the address right, the "
                "controller on and booted, and the cable in?"
            ) from None
        self._had_control = False

    def _end(self, patience_s: float) -> None:
        child, self._child = self._child, None
        if child:
            child.end(patience_s)

    def _ask(self, order: str) -> None:
        if not self._child:
            raise DeviceError("it is not connected")
        self._child.ask(order, ENABLE_S)

    def _supervise(self) -> None:
        """Notice a lost connection and make a new one, after which the arm is not enabled."""
        attempt = 0
        while not self._closing.wait(0.05 if not self._lost else PAUSES_S[min(attempt, len(PAUSES_S) - 1)]):
            if not self._lost:
                child = self._child
                dead = child is None or child.dead
                if not dead and self._age_s() < self.config.lost_s:
                    continue
                with self._lock:
                    self._lost, self._enabled, self._ended, attempt = True, False, False, 0
                    self._message = "the connection broke off" if dead else "no data come"
                continue
            attempt += 1
            with self._orders, contextlib.suppress(DeviceError):
                self._end(0.0)  # a child that lost its controller has nothing to stop
                self._start()
                with self._lock:
                    self._lost = False
                    self._reconnects += 1
                    self._message = "reconnected: enable it again"

    # motion

    def read(self) -> Sample:
        memory = self._require_memory()
        state = memory.state.read()
        receive_ns = int(state["t_receive_ns"])
        is_connected = not self._lost and bool(state["connected"]) and bool(state["clocked"])
        fresh = is_connected and time.monotonic_ns() - receive_ns < STALE_S * 1e9
        return Sample(
            np.array(state["q"]),
            int(state["t_capture_ns"]),
            receive_ns,
            int(state["seq"]),
            np.full(JOINTS, fresh),
        )

    def command(self, target: np.ndarray, t_target_ns: int) -> np.ndarray:
        target = check_target(target, self.joints)
        memory = self._require_memory()
        with self._lock:
            if self._lost:
                raise DeviceError(f"the UR {self.name} is away ({self._message}): wait, then enable it again")
            if self._stopped:
                raise DeviceError(f"the UR {self.name} was stopped: enable it again before commanding it")
            self._notice()
            if not self._enabled:
                why = "; ".join(self.faults()) or "its control script does not run"
                raise DeviceError(f"the UR {self.name} takes no commands ({why}): enable it first")
            position = np.array(memory.state.read()["q"])
            if self._first:
                check_first(target, position, self.max_first_step, self.joints)
                self._first = False
            now = time.monotonic_ns()
            # from the present setpoint, so that an early command does not skip the rest of the last one
            start = self._setpoint(now, position)
            setpoint = limit_target(target, start, (t_target_ns - now) * 1e-9, self.joints)
            memory.goal.write(
                t_command_ns=now,
                t_from_ns=now,
                t_goal_ns=max(t_target_ns, now + 1),
                start=start,
                goal=setpoint,
            )
        return setpoint

    def _setpoint(self, now_ns: int, position: np.ndarray) -> np.ndarray:
        assert self._memory
        goal = self._memory.goal.read()
        command_ns = int(goal["t_command_ns"])
        if command_ns == 0 or now_ns - command_ns > self.watchdog_s * 1e9:
            return position
        w = (now_ns - int(goal["t_from_ns"])) / (int(goal["t_goal_ns"]) - int(goal["t_from_ns"]))
        return goal["start"] + min(w, 1.0) * (goal["goal"] - goal["start"])

    def hold(self) -> None:
        with self._lock:
            self._require_memory().goal.write(t_command_ns=0)

    def stop(self) -> None:
        with self._lock:
            self._require_memory().goal.write(t_command_ns=0)
            self._stopped = True

    def enable(self) -> None:
        """Upload the control script, which takes up to some seconds. DeviceError says what prevents it."""
        self._require_memory()
        if self._lost:
            raise DeviceError(f"the UR {self.name} is away ({self._message}): wait until it is back")
        if problems := self._problems():
            raise DeviceError(f"the UR {self.name} cannot be enabled: {'; '.join(problems)}")
        with self._orders:
            self.hold()
            self._had_control = True
            try:
                self._ask("enable")
            except DeviceError as error:
                raise DeviceError(f"the UR {self.name} cannot be enabled: {error}") from None
            with self._lock:
                self._enabled, self._first, self._message = True, True, ""
                self._stopped = self._ended = False

    def disable(self) -> None:
        """Stop the control script; the controller goes on holding the arm."""
        if not self._memory:
            return
        with self._lock:
            self._memory.goal.write(t_command_ns=0)
            self._enabled = self._ended = False
        if self._lost:
            return  # the script is stopped before anything else when the arm is back
        with self._orders, contextlib.suppress(DeviceError):
            self._ask("disable")
            self._had_control = False

    # faults and health

    def faults(self) -> tuple[str, ...]:
        if not self._memory:
            return ()
        if self._lost:
            place = f"the UR {self.name} at {self.config.host}"
            return (f"{place} is away ({self._message}): check its cable and power",)
        problems = self._problems()
        if not self._memory.control.read()["remote"]:
            problems += (
                "the pendant is in local control: switch it to Remote Control (top right), and enable again",
            )
        self._notice()
        if self._ended and not problems:
            problems = ("the control script ended: read the log on the pendant, and enable again",)
        return problems

    def _problems(self) -> tuple[str, ...]:
        assert self._memory
        state = self._memory.state.read()
        safety, robot = int(state["safety_mode"]), int(state["robot_mode"])
        if safety not in (NORMAL, REDUCED):
            return (SAFETY.get(safety, f"safety mode {safety}: read the log on the pendant"),)
        if robot != RUNNING:
            return (ROBOT.get(robot, f"robot mode {robot}: read the log on the pendant"),)
        return ()

    def health(self) -> ArmHealth:
        if not self._memory:
            return ArmHealth(ArmState.CLOSED, float("inf"), 0.0)
        with self._lock:
            self._notice()
            state = (
                ArmState.RECONNECTING
                if self._lost
                else ArmState.STOPPED
                if self._stopped
                else ArmState.ACTIVE
                if self._enabled
                else ArmState.TORQUE_OFF
            )
            rate = 0.0 if self._lost else float(self._memory.state.read()["rate_hz"])
            return ArmHealth(state, self._age_s(), rate, 0, self._reconnects, self._message)

    def _notice(self) -> None:
        """Latch, until `enable`, that the control script ended by itself or by a stop."""
        assert self._memory
        with self._lock:
            if self._enabled and not self._memory.control.read()["active"]:
                self._enabled, self._ended = False, True
                self._message = "; ".join(self.faults())

    def _age_s(self) -> float:
        assert self._memory
        receive_ns = int(self._memory.state.read()["t_receive_ns"])
        return (time.monotonic_ns() - receive_ns) * 1e-9 if receive_ns else float("inf")

    def _require_memory(self) -> Memory:
        if not self._memory:
            raise DeviceError(f"the UR {self.name} is closed: open it first")
        return self._memory
