"""A UR e-Series controller behind its ports: modes, safety, the program that ur_rtde uploads, and motion.

From Universal Robots' RTDE guide (names and types of the variables, modes, status bits), its dashboard server
guide for e-Series, and the control script and register protocol of ur_rtde 1.6. URScript is not interpreted:
a program with ur_rtde's control loop counts as that script, and the controller plays its side of the
handshake. Variables that the mechanics do not have (Cartesian pose, currents, digital in- and outputs) read
zero."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from .faults import BusFaults
from .plant import Plant

STEP_S = 0.002
MOST_SPEED = np.pi  # rad/s, of every UR5e joint (data sheet)
DEVIATION, DEVIATION_S = 0.4, 0.3  # rad, s: further from the path for longer causes a protective stop
READY, DONE = 1, 2  # output_int_register_0, from the control script
AT_ONCE = (9, 11)  # speedJ and servoJ: the client does not wait for them
JOINTS = 6

TYPES = {
    "timestamp": "DOUBLE",
    "robot_mode": "INT32",
    "safety_mode": "INT32",
    "safety_status": "INT32",
    "runtime_state": "UINT32",
    "robot_status_bits": "UINT32",
    "safety_status_bits": "UINT32",
    "actual_digital_input_bits": "UINT64",
    "actual_digital_output_bits": "UINT64",
    "speed_slider_mask": "UINT32",
    "standard_digital_output_mask": "UINT8",
    "standard_digital_output": "UINT8",
    "configurable_digital_output_mask": "UINT8",
    "configurable_digital_output": "UINT8",
    "tool_digital_output_mask": "UINT8",
    "tool_digital_output": "UINT8",
    "standard_analog_output_mask": "UINT8",
    "standard_analog_output_type": "UINT8",
    "joint_mode": "VECTOR6INT32",
    "actual_tool_accelerometer": "VECTOR3D",
    "payload_cog": "VECTOR3D",
    **dict.fromkeys(
        ("external_force_torque", "payload_inertia", "tcp_offset", "joint_temperatures", "ft_raw_wrench"),
        "VECTOR6D",
    ),
    **dict.fromkeys(("target_q", "target_qd", "target_qdd", "target_current", "target_moment"), "VECTOR6D"),
    **dict.fromkeys(("actual_q", "actual_qd", "actual_current", "joint_control_output"), "VECTOR6D"),
    **dict.fromkeys(("actual_joint_voltage", "actual_current_as_torque"), "VECTOR6D"),
    **dict.fromkeys(("actual_TCP_pose", "actual_TCP_speed", "actual_TCP_force"), "VECTOR6D"),
    **dict.fromkeys(("target_TCP_pose", "target_TCP_speed"), "VECTOR6D"),
    **dict.fromkeys(("actual_execution_time", "speed_scaling", "target_speed_fraction"), "DOUBLE"),
    **dict.fromkeys(("actual_momentum", "actual_main_voltage", "actual_robot_voltage"), "DOUBLE"),
    **dict.fromkeys(("actual_robot_current", "speed_slider_fraction", "payload"), "DOUBLE"),
    **{f"standard_analog_{way}put{i}": "DOUBLE" for way in ("in", "out") for i in (0, 1)},
    **{f"standard_analog_output_{i}": "DOUBLE" for i in (0, 1)},
    **{f"{way}put_int_register_{i}": "INT32" for way in ("in", "out") for i in range(48)},
    **{f"{way}put_double_register_{i}": "DOUBLE" for way in ("in", "out") for i in range(48)},
    **{f"{way}put_bit_register_{i}": "BOOL" for way in ("in", "out") for i in range(64, 128)},
    **{
        f"{way}put_bit_registers{half}": "UINT32" for way in ("in", "out") for half in ("0_to_31", "32_to_63")
    },
}
"""RTDE's name of a variable → its type on the wire."""


@dataclass
class URFaults(BusFaults):
    """Faults of a link and of a controller. Of a link: TCP turns `drop` and `corrupt` into lateness, so those
    two have no meaning here; `unplugged` closes every connection and refuses new ones."""

    stalled: bool = False
    """Connections stand, but no data come."""
    protective_stop: bool = False
    """Latched until it is unlocked at the dashboard or set to false."""
    emergency_stop: bool = False
    """The button is pressed."""
    powered_off: bool = False
    """The arm's power is off."""
    local_control: bool = False
    """The pendant is not in remote control, so programs from the network are ignored."""


class Controller:
    """Moves the first six joints of `plant`; a gripper behind them is not the arm's. Call `step` 500 times a
    second. inputs: values that RTDE clients wrote, by name. received_at: time of their last package,
    monotonic s."""

    def __init__(self, plant: Plant, faults: URFaults) -> None:
        self.plant, self.faults = plant, faults
        self.inputs: dict[str, float] = {}
        self._stuck: tuple[int, ...] = ()
        self.reset(0.0)

    def reset(self, now: float) -> None:
        """Power-cycle: no program, nothing latched, the clock starts at 0."""
        self._start_s = self.now = self.received_at = now
        self.program, self.paused, self.protective = False, False, False
        self._stop_fault = False
        self._ready, self._executing = 0, False
        self._watchdog_s = np.inf
        self._setpoint = self.plant.position[:JOINTS].copy()
        self._speed = np.zeros(JOINTS)
        self._deviating = 0.0
        self._motion: Callable[[], bool] = self._hold  # gives true when it is over
        self.plant.goal[:JOINTS] = self._setpoint
        self.plant.torque[:] = 1.0  # or the brakes, which plants do not have

    def step(self, now: float) -> None:
        """One period: safety, one turn of the program's loop, one step of motion. now: s, monotonic."""
        self.now = now
        self._safety()
        if self.program and not self.paused:
            if now - self.received_at > self._watchdog_s:
                self._end_program()
            else:
                self._control_loop()
        before = self._setpoint.copy()
        if self._motion() and self._executing and self._ready != DONE:
            self._ready = DONE
        self._setpoint = before + np.clip(self._setpoint - before, -MOST_SPEED * STEP_S, MOST_SPEED * STEP_S)
        self._speed = (self._setpoint - before) / STEP_S
        self.plant.goal[:JOINTS] = self._setpoint

    # safety

    @property
    def running(self) -> bool:
        """Whether the arm may move."""
        return not (self.protective or self.faults.emergency_stop or self.faults.powered_off)

    def _safety(self) -> None:
        for joint in {*self._stuck, *self.faults.stuck} if self._stuck != self.faults.stuck else ():
            if 0 <= joint < JOINTS:
                self.plant.stuck[joint] = float(joint in self.faults.stuck)
        self._stuck = self.faults.stuck
        stop_fault = self.faults.protective_stop
        if stop_fault != self._stop_fault:
            self._stop_fault = self.protective = stop_fault
        far = np.abs(self._setpoint - self.plant.position[:JOINTS]).max() > DEVIATION
        self._deviating = self._deviating + STEP_S if far else 0.0
        if self._deviating > DEVIATION_S:
            self.protective = True
        if self.faults.emergency_stop or self.faults.powered_off:
            self._end_program()
        elif self.protective:
            self.paused = True
        if not self.running:
            self._motion, self._setpoint = self._hold, self.plant.position[:JOINTS].copy()

    def unlock(self) -> None:
        self.protective = self.faults.protective_stop = self._stop_fault = False
        self._deviating = 0.0

    # the program

    def upload(self, program: str) -> None:
        """A program from the network. It replaces a running one. It is ignored while the arm is stopped or
        the pendant is in local control."""
        if self.faults.local_control or not self.running:
            return
        self._end_program()
        if re.search(r"\bdef rtde_cmd\(\)", program):
            self.program, self._ready = True, READY

    def _end_program(self) -> None:
        self.program = self.paused = self._executing = False
        self._ready, self._watchdog_s = 0, np.inf
        if self._motion != self._hold:
            self._stop(4.0)

    def _control_loop(self) -> None:
        command = int(self.inputs.get("input_int_register_0", 0))
        if command in AT_ONCE:
            self._execute(command)
            self._ready = READY
        elif command == 0:
            self._executing, self._ready = False, READY
        elif not self._executing:
            self._executing = True
            if command == 255:
                self._end_program()
            elif self._execute(command):
                self._ready = DONE
            else:
                self._ready = 0

    def _execute(self, command: int) -> bool:
        """Begin a command; true when it is done already."""
        value = [float(self.inputs.get(f"input_double_register_{i}", 0.0)) for i in range(12)]
        joints = np.array(value[:JOINTS])
        if command == 11:
            self._motion = lambda: self._servo(joints)
        elif command == 9:
            self._motion = lambda: self._keep_speed(joints, value[6])
        elif command == 1:
            self._motion = lambda: self._move(joints, value[6])
            return bool(self.inputs.get("input_int_register_1", 0))  # asynchronous
        elif command in (15, 16, 33, 34):  # speedStop, servoStop, stopL, stopJ
            self._stop(max(value[0], 0.1) if command != 33 else 4.0)
            return False
        elif command == 35:
            self._watchdog_s = 1.0 / max(value[0], 1e-3)
        return True

    # motion: each moves the setpoint by one step

    def _hold(self) -> bool:
        return True

    def _servo(self, goal: np.ndarray) -> bool:
        self._setpoint = goal
        return True

    def _keep_speed(self, speed: np.ndarray, acceleration: float) -> bool:
        step = max(acceleration, 0.01) * STEP_S
        self._setpoint = self._setpoint + STEP_S * (self._speed + np.clip(speed - self._speed, -step, step))
        return True

    def _move(self, goal: np.ndarray, speed: float) -> bool:
        """All joints arrive together, at constant speed: no ramps."""
        distance = goal - self._setpoint
        steps = np.abs(distance).max() / (max(speed, 0.01) * STEP_S)
        self._setpoint = self._setpoint + distance / max(steps, 1.0)
        return bool(steps <= 1.0)

    def _stop(self, deceleration: float) -> None:
        def slow_down() -> bool:
            step = deceleration * STEP_S
            speed = self._speed - np.clip(self._speed, -step, step)
            self._setpoint = self._setpoint + STEP_S * speed
            return not speed.any()

        self._motion = slow_down

    # RTDE variables and dashboard

    def value(self, name: str) -> tuple[float, ...]:
        """The value of an RTDE variable: one number, or one for each joint or axis."""
        f, on = self.faults, not self.faults.powered_off
        stopped = self.protective or f.emergency_stop
        match name:
            case "timestamp":
                return (self.now - self._start_s + f.clock_step_s,)
            case "actual_q":
                return tuple(self.plant.position[:JOINTS].tolist())
            case "actual_qd":
                return tuple(self.plant.velocity[:JOINTS].tolist())
            case "actual_current_as_torque":
                return tuple(self.plant.effort[:JOINTS].tolist())
            case "target_q":
                return tuple(self._setpoint.tolist())
            case "target_qd":
                return tuple(self._speed.tolist())
            case "robot_mode":
                return (3,) if not on else (5,) if f.emergency_stop else (7,)
            case "safety_mode" | "safety_status":
                return (7,) if f.emergency_stop else (3,) if self.protective else (1,)
            case "safety_status_bits":
                return (
                    (not stopped) | self.protective << 2 | f.emergency_stop * 0b1100_0000 | stopped << 10,
                )
            case "robot_status_bits":
                return (on | (self.program and not self.paused) << 1,)
            case "runtime_state":
                return (4,) if self.paused and self.program else (2,) if self.program else (1,)
            case "speed_scaling" | "target_speed_fraction":
                return (1.0,)
            case "output_int_register_0":
                return (self._ready,)
        return (0,) * {"VECTOR6": 6, "VECTOR3": 3}.get(TYPES[name][:7], 1)

    def dashboard(self, line: str) -> str:
        """The answer to one line at the dashboard server."""
        mode = {3: "POWER_OFF", 5: "IDLE", 7: "RUNNING"}[int(self.value("robot_mode")[0])]
        safety = {7: "ROBOT_EMERGENCY_STOP", 3: "PROTECTIVE_STOP", 1: "NORMAL"}[
            int(self.value("safety_mode")[0])
        ]
        match line.strip().lower():
            case "polyscopeversion":
                return "URSoftware 5.12.2.1101534 (Jan 01 2024)"
            case "is in remote control":
                return str(not self.faults.local_control).lower()
            case "robotmode":
                return f"Robotmode: {mode}"
            case "safetymode":
                return f"Safetymode: {safety}"
            case "safetystatus":
                return f"Safetystatus: {safety}"
            case "running":
                return f"Program running: {str(self.program and not self.paused).lower()}"
            case "programstate":
                state = "PAUSED" if self.program and self.paused else "PLAYING" if self.program else "STOPPED"
                return f"{state} ulna.urp"
            case "get robot model":
                return "UR5"
            case "get serial number":
                return "20230000000"
            case "stop":
                self._end_program()
                return "Stopped"
            case "unlock protective stop":
                self.unlock()
                return "Protective stop releasing"
            case "close safety popup" | "close popup":
                return line.strip().lower().replace("close", "closing")
            case "quit":
                return "Disconnected"
        return f"could not understand: '{line.strip()}'"
