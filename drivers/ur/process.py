"""The process that holds the connection to a UR: `python -m ulna.drivers.ur.process`, started by
`drivers.ur.arm`.

It is a process of its own because ur_rtde 1.6 has threads of its own in C++. When a controller goes away and
comes back they have corrupted the heap, and they restart the control script by themselves. Here that costs a
restart of this process, not of the control process. Setpoints are also paced better without that one's GIL.

stdin: lines `[number, order]`, first the fields of `Settings` as an object, then `"enable"` and `"disable"`.
The end of stdin stops the arm and ends the process. stdout: `{"to": number}` when an order is done (the
first: when connected), with `"error"` when it failed. The number keeps a late answer from being taken for the
next one."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import socket
import sys
import threading
import time
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..clock_offset import ClockOffset
from .memory import Memory

# The offset of the controller's clock is known after packages of so long; the first ones may all be late.
CLOCKED_S = 0.1
POLL_S = 0.001  # ur_rtde does not tell when a package comes; a coarser poll would add to every capture time
DASHBOARD = 29999
NORMAL, REDUCED = 1, 2  # safety modes in which the arm moves
RUNNING = 7  # robot mode
VARIABLES = ["timestamp", "actual_q", "robot_mode", "safety_mode", "robot_status_bits", "safety_status_bits"]


@dataclass(frozen=True)
class Settings:
    """What the process needs: fields of `drivers.ur.arm.Config`, which says what they mean, and two more."""

    file: int
    """Descriptor of the `Memory`."""
    host: str
    hz: float
    watchdog_s: float
    link_watchdog_s: float
    lost_s: float
    latency_s: float
    max_velocity: float
    max_acceleration: float
    lookahead_s: float
    gain: float
    payload_kg: float | None
    payload_centre_m: tuple[float, ...]
    stop_program: bool
    """Stop a control script that may still run from before the connection was lost."""


def follow(
    setpoint: np.ndarray,
    speed: np.ndarray,
    target: np.ndarray,
    dt_s: float,
    max_speed: float,
    acceleration: float,
) -> tuple[np.ndarray, np.ndarray]:
    """The next setpoint and speed `(J,)` on the way to `target`, after `dt_s`: at most `max_speed` rad/s and
    `acceleration` rad/s², and no faster than it can still brake."""
    distance = target - setpoint
    brake = np.sqrt(2 * acceleration * np.abs(distance))
    desired_speed = np.sign(distance) * np.minimum(np.minimum(np.abs(distance) / dt_s, brake), max_speed)
    speed = speed + np.clip(desired_speed - speed, -acceleration * dt_s, acceleration * dt_s)
    return setpoint + speed * dt_s, speed


def ask_dashboard(host: str, line: str, timeout_s: float = 2.0) -> str:
    """The dashboard server's answer to one line. OSError when there is none."""
    with socket.create_connection((host, DASHBOARD), timeout_s) as link, link.makefile("rw") as text:
        text.readline()  # its greeting
        text.write(line + "\n")
        text.flush()
        return text.readline().strip()


class Link:
    """The connection to one controller: `watch` writes its state to the memory, `run` does orders and sends
    setpoints from the memory."""

    def __init__(self, settings: Settings) -> None:
        self.settings, self.memory = settings, Memory(settings.file)
        self.memory.state.mend()
        self.memory.control.mend()
        self.memory.control.write(active=0, remote=-1)
        self.orders: queue.Queue[tuple[int, str]] = queue.Queue()
        self.closing = threading.Event()
        self.control: Any = None
        # kept for good: their destructors hold the GIL for half a second, which would delay the state
        self._old_controls: list[Any] = []
        self._setpoint: np.ndarray | None = None  # None: the arm stands, servoing is off
        self._speed = np.zeros(6)
        self._was_running = False  # the program, since `enable`, according to the state

    def connect(self) -> None:
        """Raises RuntimeError or OSError when the controller does not answer."""
        from rtde_receive import RTDEReceiveInterface

        host = self.settings.host
        with socket.create_connection((host, 30004), 3.0):
            pass  # ur_rtde would wait for minutes on a host that is not there
        if self.settings.stop_program:
            with contextlib.suppress(OSError):
                ask_dashboard(host, "stop")
        self.receive = RTDEReceiveInterface(host, 500.0, VARIABLES)
        deadline = time.monotonic() + 5.0
        while not self.receive.getTimestamp():
            if time.monotonic() > deadline or not self.receive.isConnected():
                raise RuntimeError("it accepted the connection, but sends no data")
            time.sleep(POLL_S)
        self._last_stamp = float("nan")
        self._seq = int(self.memory.state.read()["seq"])
        self._clock = ClockOffset(self.settings.latency_s)
        self._rate_seq, self._rate_ns, self._rate_hz = self._seq, time.monotonic_ns(), 0.0
        until = time.monotonic() + 2 * CLOCKED_S
        while time.monotonic() < until:
            self._poll()
            time.sleep(POLL_S)

    # state

    def watch(self) -> None:
        while not self.closing.is_set():
            if not self.receive.isConnected():
                self.memory.state.write(connected=0)
                os._exit(3)  # at once: ur_rtde's own reconnection would start the script again
            self._poll()
            time.sleep(POLL_S)

    def _poll(self) -> None:
        r = self.receive
        stamp = r.getTimestamp()
        if stamp == self._last_stamp:
            return
        while True:  # ur_rtde takes the next package whenever it comes, and its getters tell of that one
            now = time.monotonic_ns()
            q, robot_mode, safety_mode = r.getActualQ(), r.getRobotMode(), r.getSafetyMode()
            status, stamp_after = r.getRobotStatus(), r.getTimestamp()
            if stamp_after == stamp:
                break
            stamp = stamp_after
        self._last_stamp = stamp
        self._seq += 1
        if now - self._rate_ns > 500_000_000:
            self._rate_hz = (self._seq - self._rate_seq) / (now - self._rate_ns) * 1e9
            self._rate_seq, self._rate_ns = self._seq, now
        capture_ns = self._clock.capture_ns(round(stamp * 1e9), now)
        self.memory.state.write(
            seq=self._seq,
            t_capture_ns=capture_ns,
            clocked=int(self._clock.evidence_s() >= CLOCKED_S),
            t_receive_ns=now,
            rate_hz=self._rate_hz,
            robot_mode=robot_mode,
            safety_mode=safety_mode,
            robot_status_bits=status,
            connected=1,
            q=q,
        )
        runs = bool(status & 2)
        if self._was_running and not runs:
            # written here, since ur_rtde waits for three seconds in the control thread before it reports it
            self._tell(active=0)
        self._was_running = runs and self.control is not None

    def watch_pendant(self) -> None:
        """Keep `remote` up to date. Only the dashboard server tells it, and not before PolyScope 5.6."""
        while not self.closing.wait(1.0):
            with contextlib.suppress(OSError):
                answer = ask_dashboard(self.settings.host, "is in remote control").lower()
                self._tell(remote={"true": 1, "false": 0}.get(answer, -1))

    def _tell(self, **values: int) -> None:
        with _TELLING:
            self.memory.control.write(clock_steps=self._clock.steps, **values)

    # control

    def run(self) -> None:
        """Do orders and send a setpoint every period, until stdin ends."""
        period, due = 1.0 / self.settings.hz, time.monotonic()
        while not self.closing.is_set():
            with contextlib.suppress(queue.Empty):
                number, order = self.orders.get_nowait()
                try:
                    self.enable() if order == "enable" else self.disable()
                    answer(to=number)
                except (RuntimeError, ValueError, OSError) as error:  # pybind maps C++ exceptions to these
                    self._drop_control()
                    answer(to=number, error=str(error))
            if self.control is not None:
                self._servo(period)
            due = max(due + period, time.monotonic() - 0.05)
            time.sleep(max(due - time.monotonic(), 0.0))

    def enable(self) -> None:
        s = self.settings
        try:
            remote = ask_dashboard(s.host, "is in remote control").lower()
        except OSError as error:
            raise RuntimeError(
                f"its dashboard server, port {DASHBOARD}, does not answer ({error}): allow it in the "
                "pendant's Settings, Security, Services"
            ) from None
        if remote == "false":
            raise RuntimeError(
                "it is not in remote control: switch the pendant from Local to Remote Control (top right), "
                "and enable again"
            )
        if self.control is not None and self.control.isProgramRunning():
            self._halt()
            self._tell(active=1)
            return
        self._drop_control()
        from rtde_control import RTDEControlInterface

        self.control = RTDEControlInterface(s.host, 500.0, RTDEControlInterface.FLAG_UPLOAD_SCRIPT)
        if s.payload_kg is not None:
            self.control.setPayload(s.payload_kg, list(s.payload_centre_m))
        self.control.setWatchdog(1.0 / s.link_watchdog_s)
        self._setpoint = None
        self._tell(active=1)

    def disable(self) -> None:
        self.stop_script()
        self._drop_control()

    def stop_script(self) -> None:
        if self.control is not None:
            with contextlib.suppress(RuntimeError):
                self._halt()
                self.control.stopScript()

    def _drop_control(self) -> None:
        self._tell(active=0)
        control, self.control = self.control, None
        if control is not None:
            self._old_controls.append(control)
            with contextlib.suppress(RuntimeError):
                control.disconnect()

    def _servo(self, period: float) -> None:
        if not self.control.isConnected():
            os._exit(3)  # at once, as in `watch`
        state, now = self.memory.state.read(), time.monotonic_ns()
        is_stale = now - int(state["t_receive_ns"]) > self.settings.lost_s * 1e9
        if (
            is_stale
            or int(state["safety_mode"]) not in (NORMAL, REDUCED)
            or int(state["robot_mode"]) != RUNNING
            or not self.control.isProgramRunning()
        ):
            self._drop_control()
            return
        goal = self.memory.goal.read()
        command_ns = int(goal["t_command_ns"])
        if command_ns == 0 or now - command_ns > self.settings.watchdog_s * 1e9:
            self._halt()
            self.control.kickWatchdog()
            return
        span = int(goal["t_goal_ns"]) - int(goal["t_from_ns"])
        w = min(max((now - int(goal["t_from_ns"])) / span, 0.0), 1.0) if span > 0 else 1.0
        target = goal["start"] + w * (goal["goal"] - goal["start"])
        if self._setpoint is None:
            self._setpoint, self._speed = np.array(state["q"]), np.zeros(6)
        s = self.settings
        self._setpoint, self._speed = follow(
            self._setpoint, self._speed, target, period, s.max_velocity, s.max_acceleration
        )
        # servoJ returns at once and paces nothing: the pace is ours
        self.control.servoJ(self._setpoint.tolist(), 0.0, 0.0, period, s.lookahead_s, s.gain)

    def _halt(self) -> None:
        """Brake, if it servos. The next setpoint then begins where the arm stands."""
        if self._setpoint is not None:
            self.control.servoStop(self.settings.max_acceleration)
            self._setpoint = None


_TELLING = threading.Lock()


def answer(**fields: object) -> None:
    os.write(_ANSWERS, json.dumps(fields).encode() + b"\n")


_ANSWERS = 1


def main() -> None:
    global _ANSWERS
    _ANSWERS = os.dup(1)
    os.dup2(2, 1)  # ur_rtde prints to stdout
    number, settings = json.loads(sys.stdin.readline())
    link = Link(Settings(**settings))
    try:
        link.connect()
    except (RuntimeError, OSError) as error:
        answer(to=number, error=str(error))
        os._exit(2)
    answer(to=number)
    for job in (link.watch, link.watch_pendant):
        threading.Thread(target=job, daemon=True).start()

    def listen() -> None:
        for line in sys.stdin:
            link.orders.put(json.loads(line))
        link.closing.set()

    threading.Thread(target=listen, daemon=True).start()
    link.run()
    link.stop_script()
    os._exit(0)  # ur_rtde takes half a second to disconnect


if __name__ == "__main__":
    main()
