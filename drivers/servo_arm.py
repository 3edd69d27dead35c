"""An arm of bus servos: the contract of `drivers.arm.Arm` over any `ServoBus`.

One thread owns the bus. It reads every joint and writes every goal `bus_hz` times a second; `read` and `command` only look at,
and leave, numbers. What the servos are told never rests on a value that is older than `stale_s`.
"""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, wait
from dataclasses import asdict, replace
from typing import Any

import numpy as np

from .arm import ArmHealth, ArmState, DeviceError, Joints, check_first, check_target
from .sample import Sample
from .servo_bus import BusError
from .servo_group import Reading, ServoGroup
from .servo_motion import Obstacles, Setpoint

FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.1, 2.0  # between attempts to reopen
REPEATED = 3  # times in a row that a servo must report a fault, before it is believed
TORQUE_POLL_S = 0.1  # one servo is asked whether its torque is still on
ANSWER_S = 20.0  # for what the thread is asked to do: dozens of exchanges on a bad line, or behind a port that is being reopened

CATCH_UP_S = 0.1  # after a pause of the thread the goal moves no further at once than in this time


class ServoArm:
    """J joints of a `ServoGroup`. commanded: False for a leader, which is read and never moves. sprung: joints of a leader that
    `enable` lets spring back to where `spring_to` `(J,)` rad says. Other arguments: see `drivers.arm.Arm`."""

    def __init__(
        self,
        name: str,
        group: ServoGroup,
        bus_hz: float = 100.0,
        watchdog_s: float = 0.5,
        max_first_step: float = 0.5,
        stale_s: float = 0.5,
        torque_off_on_close: bool = True,
        commanded: bool = True,
        sprung: Sequence[int] = (),
        spring_to: np.ndarray | None = None,
    ) -> None:
        self.name, self.group = name, group
        self.joints: Joints = (
            group.joints
        )  # the model's; from `open` on where they and the calibrated ranges meet
        self.watchdog_s, self.max_first_step = watchdog_s, max_first_step
        self._period_s, self._stale_ns = 1 / bus_hz, round(stale_s * 1e9)
        self._off_on_close, self._commanded = torque_off_on_close, commanded
        self._driven = list(range(len(group.ids))) if commanded else list(sprung)
        self._spring_to = spring_to
        self._life = threading.Lock()
        self._lock = threading.Lock()  # of all below; held for microseconds
        self._thread: threading.Thread | None = None
        self._jobs: queue.SimpleQueue[tuple[Callable[[], Any], Future[Any]] | None] = queue.SimpleQueue()
        self._closing = threading.Event()
        self._sample: Sample | None = None
        self._reset()

    def _reset(self) -> None:
        n = len(self.group.ids)
        self._open = self._stopped = self._first = False
        self._ours = False  # we switched the torque on
        self._lost = ""  # why there is no bus
        self._latched: dict[str, str] = {}  # what went wrong and stays said until enable or disable
        self._torque = np.zeros(n, bool)  # joints that we drive
        self._seen = np.zeros(n, np.int64)
        self._errors, self._wrong = np.zeros(n, np.int64), np.zeros(n, np.int64)
        self._explained, self._fault_words = np.zeros(n, np.int64), ()
        self._cycles = self._reconnects = self._retries_before = self._polled = 0
        self._captures: deque[int] = deque(maxlen=51)
        self._obstacles = Obstacles(n)
        self._sent = np.zeros(n)
        self._sent_ns = self._poll_ns = 0
        self._setpoint = Setpoint(np.zeros(n))

    @property
    def calibration(self) -> dict[str, dict[str, int]]:
        """In LeRobot's form, from `open` on: recordings keep it, so that their radians can be told from the servos' ticks."""
        return {name: asdict(joint) for name, joint in self.group.calibration.items()}

    # life

    def open(self) -> None:
        with self._life:
            if self._thread is not None:
                return
            self._reset()
            self.group.open()
            self.joints = self.group.joints
            try:
                retries_before = self.group.bus.stats.retries
                reading = self.group.read_all()
                on = self.group.torque()
            except BaseException:
                self.group.bus.close()
                raise
            self._take(reading)
            with self._lock:
                self._retries_before = retries_before
                self._note_torque(on)
                self._open = True
            self._closing.clear()
            self._thread = threading.Thread(target=self._run, name=f"{self.name} bus", daemon=True)
            self._thread.start()

    def close(self) -> None:
        with self._life:
            if self._thread is None:
                return
            if self._off_on_close and self._ours:
                with contextlib.suppress(DeviceError):
                    self._ask(self._disable)
            self._closing.set()
            self._jobs.put(None)
            self._thread.join(ANSWER_S)
            self._thread = None
            self.group.bus.close()
            with self._lock:
                self._open = self._stopped = False
                self._torque[:] = False
                self._lost = ""

    def enable(self) -> None:
        if not self._driven:
            raise DeviceError(f"{self.name} is a leader: it is moved by hand, and its torque stays off")
        self._ask(self._enable)

    def disable(self) -> None:
        """DeviceError names the joints whose torque may still be on: cut the arm's power then."""
        self._ask(self._disable)

    # reading and commanding: no bus, no waiting

    def read(self) -> Sample:
        with self._lock:
            sample, alive = self._sample, self._open and not self._lost
        if sample is None:
            raise DeviceError(f"{self.name} was never open: open it before reading")
        if not alive or time.monotonic_ns() - sample.t_capture_ns > self._stale_ns:
            return replace(sample, data=sample.data.copy(), valid=np.zeros(len(sample.data), bool))
        return replace(sample, data=sample.data.copy())

    def command(self, target: np.ndarray, t_target_ns: int) -> np.ndarray:
        target = check_target(target, self.joints)
        with self._lock:
            self._require_commandable()
            assert self._sample is not None
            if self._first:
                check_first(target, self._sample.data, self.max_first_step, self.joints)
                self._first = False
            return self._setpoint.command(target, t_target_ns, self.joints)

    def _require_commandable(self) -> None:
        if not self._commanded:
            raise DeviceError(f"{self.name} is a leader: it is moved by hand and takes no command")
        if not self._open:
            raise DeviceError(f"{self.name} is closed: open and enable it before commanding it")
        if self._lost:
            raise DeviceError(f"{self.name} takes no command: {self._lost}")
        if self._stopped:
            reported = self._fault_words if "fault" in self._latched else ()
            why = f" ({'; '.join((*self._latched.values(), *reported))})" if self._latched else ""
            raise DeviceError(f"{self.name} was stopped{why}: enable it again before commanding it")
        if not self._torque.all():
            raise DeviceError(f"{self.name} has its torque off: enable it before commanding it")
        if texts := self._stale_texts(time.monotonic_ns()):
            raise DeviceError(f"{self.name} takes no command: {texts[0]}")

    def hold(self) -> None:
        with self._lock:
            self._hold()

    def stop(self) -> None:
        with self._lock:
            self._hold()
            self._stopped = True

    def faults(self) -> tuple[str, ...]:
        with self._lock:
            if not self._open:
                return ()
            if self._lost:
                return (self._lost, *self._latched.values())
            blocked = (
                f"{self.group.name(int(j))} is blocked: it leans lightly on what is in its way; command it back, "
                "or take the thing away"
                for j in np.flatnonzero(self._obstacles.blocked)
            )
            now = time.monotonic_ns()
            words = self._fault_words if (self._wrong >= REPEATED).any() else ()
            return (*self._stale_texts(now), *words, *self._latched.values(), *blocked)

    def health(self) -> ArmHealth:
        message = "; ".join(self.faults())
        with self._lock:
            now = time.monotonic_ns()
            age = (now - self._sample.t_capture_ns) * 1e-9 if self._sample else float("inf")
            times = self._captures
            rate = (len(times) - 1) / max((now - times[0]) * 1e-9, 1e-9) if len(times) > 1 else 0.0
            if not self._open:
                return ArmHealth(ArmState.CLOSED, age, 0.0)
            state = (
                ArmState.RECONNECTING
                if self._lost
                else ArmState.STOPPED
                if self._stopped
                else ArmState.ACTIVE
                if self._commanded and self._torque.all()
                else ArmState.TORQUE_OFF
            )
            retries = self.group.bus.stats.retries - self._retries_before
            return ArmHealth(state, age, rate, retries, self._reconnects, message)

    def _hold(self) -> None:
        if self._sample is None:
            return
        # of a silent joint only its goal is known
        known = time.monotonic_ns() - self._seen <= self._stale_ns
        self._setpoint.hold(np.where(known, self._sample.data, self._sent))

    def _stale(self, now_ns: int) -> np.ndarray:
        return now_ns - self._seen > self._stale_ns

    def _stale_texts(self, now_ns: int) -> tuple[str, ...]:
        silent = np.flatnonzero(self._stale(now_ns))
        if len(silent) == len(self._seen):
            seconds = (now_ns - int(self._seen.max())) * 1e-9
            return (f"no servo has answered for {seconds:.1f} s: is the arm's power on?",)
        return tuple(
            f"{self.group.name(int(j))} has not answered for {(now_ns - int(self._seen[j])) * 1e-9:.1f} s: check its cable; "
            "the arm holds meanwhile"
            for j in silent
        )

    # the thread

    def _ask(self, job: Callable[[], Any]) -> Any:
        """Have the thread do `job`; its result or DeviceError."""
        thread, answer = self._thread, Future[Any]()
        if thread is None:
            raise DeviceError(f"{self.name} is closed: open it first")
        self._jobs.put((job, answer))
        end = time.monotonic() + ANSWER_S
        while not wait([answer], 0.5).done and thread.is_alive() and time.monotonic() < end:
            pass
        if answer.cancel():  # not even begun
            raise DeviceError(f"the bus of {self.name} did not get to it within {ANSWER_S:g} s")
        return answer.result(ANSWER_S)

    def _do_jobs(self, until_s: float) -> None:
        """Wait until `until_s`, and do meanwhile what is asked."""
        while not self._closing.is_set():
            try:
                job = self._jobs.get(timeout=max(until_s - time.monotonic(), 0))
            except queue.Empty:
                return
            if job is None or not job[1].set_running_or_notify_cancel():
                continue
            try:
                if self._lost:
                    raise DeviceError(f"{self.name} is not there: {self._lost}")
                job[1].set_result(job[0]())
            except Exception as error:  # noqa: BLE001  goes to who asked
                job[1].set_exception(error)
                if isinstance(error, BusError) and error.gone:
                    self._lose(error)

    def _run(self) -> None:
        due, pause = time.monotonic(), FIRST_PAUSE_S
        while not self._closing.is_set():
            try:
                if self._lost:
                    self._do_jobs(time.monotonic() + pause)
                    pause = min(2 * pause, LONGEST_PAUSE_S)
                    if not self._closing.is_set():
                        self._reopen()
                else:
                    self._cycle()
                    if self._cycles % 100 == 99:
                        pause = FIRST_PAUSE_S
                    due = max(due + self._period_s, time.monotonic())
                    self._do_jobs(due)
            except Exception as error:  # noqa: BLE001  the thread must outlive whatever the bus does
                self._lose(error)
        while not self._jobs.empty():
            job = self._jobs.get()
            if job is not None and job[1].set_running_or_notify_cancel():
                job[1].set_exception(DeviceError(f"{self.name} was closed meanwhile"))

    def _lose(self, error: Exception) -> None:
        self.group.bus.close()
        with self._lock:
            self._lost = f"{self.group.bus.port} is gone or fails ({error}): it is being reopened; plug the arm in again, then enable it"
            self._torque[:] = False
            self._obstacles.clear()
            self._setpoint.commanded_ns = None

    def _reopen(self) -> None:
        """Raises what keeps the bus from working. The torque is never touched here: an arm that still holds itself up goes on to."""
        self.group.bus.open()
        try:
            self.group.identify()
            reading = self.group.read_all()
            on = self.group.torque()
            self.group.send(reading.position, on)  # not to where it was going when the cable came out
        except BaseException:
            self.group.bus.close()
            raise
        self._take(reading)
        with self._lock:
            self._reconnects += 1
            self._latched.clear()
            self._note_torque(on)
            self._lost = ""

    def _note_torque(self, on: np.ndarray) -> None:
        """What was found on connecting. Caller holds the lock."""
        self._stopped = bool(on.any())
        if on.any():
            names = ", ".join(self.group.name(int(j)) for j in np.flatnonzero(on))
            self._latched["left on"] = (
                f"{names} had torque on when the arm was connected, and holds where it is: enable or disable the arm"
            )

    def _cycle(self) -> None:
        self._cycles += 1
        self._take(self.group.read())
        if (self._wrong >= REPEATED).any():
            self._believe_faults()
        elif not self._errors.any():
            self._explained = self._errors
        self._watch_torque()
        with self._lock:
            goal, which = self._next_goal()
        if which.any():
            self.group.send(goal, which)

    def _take(self, reading: Reading) -> None:
        """Keep what was read, and look at what it says."""
        with self._lock:
            old, here = self._sample, reading.answered
            data = reading.position if old is None else np.where(here, reading.position, old.data)
            if old is not None and not here.any():
                self._sample = replace(old, valid=np.zeros_like(here))
                return
            middle = (reading.t_request_ns + reading.t_receive_ns) // 2
            seq = 0 if old is None else old.seq + 1
            self._sample = Sample(data, middle, reading.t_receive_ns, seq, here)
            self._captures.append(middle)
            self._seen[here] = middle
            self._errors = np.where(here, reading.errors, self._errors)
            self._wrong = np.where(here & (reading.errors != 0), self._wrong + here, self._wrong * ~here)
            self._obstacles.look(reading.position, reading.load, here & self._torque, self._sent)

    def _believe_faults(self) -> None:
        if np.array_equal(self._errors, self._explained) and (self._stopped or not self._torque.any()):
            return
        words = self.group.explain(self._errors)
        with self._lock:
            self._explained = self._errors
            self._fault_words = words
            if self._torque.any() and not self._stopped:
                self._give_up("fault", "the arm holds because a servo reports a fault")

    def _give_up(self, key: str, text: str) -> None:
        """Latch: an arm with something wrong holds, and takes commands again after `enable`. Caller holds the lock."""
        self._latched[key] = text
        self._hold()
        self._stopped = True

    def _watch_torque(self) -> None:
        """A servo whose own protection let go, or that lost power for a moment, has no torque and forgot its settings."""
        now = time.monotonic_ns()
        driven = np.flatnonzero(self._torque & ~self._stale(now))
        if not len(driven) or now - self._poll_ns < TORQUE_POLL_S * 1e9:
            return
        self._poll_ns = now
        self._polled += 1
        j = int(driven[self._polled % len(driven)])
        if self.group.torque_of(j) is False:
            with self._lock:
                self._torque[j] = False
                self._give_up(
                    f"let go {j}",
                    f"{self.group.name(j)} has switched its torque off by itself (overload, heat, or a loss of power): "
                    "take the load off it, cycle the arm's power if it says overload, and enable the arm again",
                )

    def _next_goal(self) -> tuple[np.ndarray, np.ndarray]:
        """The goal to send now and to which joints. Caller holds the lock."""
        now = time.monotonic_ns()
        stale = self._stale(now)
        t = self._setpoint.commanded_ns
        if t is not None and (now - t > self.watchdog_s * 1e9 or stale.any()):
            self._hold()  # nobody commands, or nobody knows where a joint is: stay, and do not go where it was still going
        goal = self._obstacles.limit(self._setpoint.at(now))
        # whatever happened above, the wire carries no jump away from the arm
        step = self.joints.max_velocity * min((now - self._sent_ns) * 1e-9, CATCH_UP_S)
        here = self._sample.data if self._sample is not None else self._sent
        goal = np.clip(goal, np.minimum(self._sent, here) - step, np.maximum(self._sent, here) + step)
        which = self._torque & ~stale
        self._sent, self._sent_ns = np.where(which, goal, self._sent), now
        return goal, which

    def _enable(self) -> None:
        self.group.identify()
        self.group.prepare()
        pose = self.group.torque_on(self._driven)
        self._take(self.group.read_all())  # nothing was read meanwhile
        with self._lock:
            self._torque[self._driven] = True
            self._ours, self._stopped, self._first = True, False, True
            self._latched.clear()
            self._obstacles.clear()
            self._sent, self._sent_ns = pose, time.monotonic_ns()
            self._wrong[:] = 0
            self._setpoint.hold(
                pose if self._spring_to is None else np.where(self._torque, self._spring_to, pose)
            )

    def _disable(self) -> None:
        try:
            left = self.group.torque_off()
        finally:
            with self._lock:
                self._torque[:] = False
                self._ours = self._stopped = False
                self._obstacles.clear()
                self._latched.clear()
                self._hold()
        if left:
            raise DeviceError(
                f"{self.name}: the torque of {', '.join(left)} may still be on, it does not confirm: cut the arm's power"
            )
