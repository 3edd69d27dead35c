"""An arm of bus servos: the contract of `drivers.arm.Arm` over any `ServoBus`.

One thread owns the bus. It reads every joint and writes every goal `bus_hz` times a second; `read` and
`command` only look at, and leave, numbers. What the servos are told never rests on a value that is older than
`stale_s`."""

from __future__ import annotations

import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace

import numpy as np

from ..arm import ArmHealth, ArmState, DeviceError, Joints, check_first, check_target
from ..sample import Sample
from ..setpoint import Setpoint
from .bus_jobs import ANSWER_S, Jobs
from .group import Reading, ServoGroup
from .obstacles import Obstacles

FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.1, 2.0  # between attempts to reopen
REPEATED = 3  # times in a row that a servo must report a fault, before it is believed
TORQUE_POLL_S = 0.1  # the servos are asked whether their torque is still on, where their readings do not tell
# A goal follows the reading that it rests on within this time, or is not sent: a servo that lost its power in
# between, and is back, would take it, and some switch their torque on with it.
GOAL_FRESH_NS = 50_000_000
# An older reading is told as invalid, also while the thread does a job and reads nothing.
FRESH_S, FRESH_CYCLES = 0.2, 3
# A reading that was under way for longer (the machine was busy) tells where a joint was, but not when: it
# counts as none.
QUICK_NS = 50_000_000
BACKLOG_S = 0.5  # of readings is kept for who records every one, and may be busy that long
CATCH_UP_S = 0.1  # after a pause of the thread the goal moves no further at once than in this time


class ServoArm:
    """J joints of a `ServoGroup`. commanded: False for a leader, which is read and never moves. sprung:
    joints of a leader that `enable` lets spring back to where `spring_to` `(J,)` rad says. Other arguments:
    see `drivers.arm.Arm`."""

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
        self._fresh_ns = min(self._stale_ns, round(max(FRESH_S, FRESH_CYCLES / bus_hz) * 1e9))
        self._off_on_close, self._commanded = torque_off_on_close, commanded
        self._driven = list(range(len(group.ids))) if commanded else list(sprung)
        self._spring_to = spring_to
        self._life = threading.Lock()
        self._lock = threading.Lock()  # of all below; held for microseconds
        self._thread: threading.Thread | None = None
        self._jobs = Jobs()
        self._sample: Sample | None = None
        self._history: deque[Sample] = deque(maxlen=max(1, round(BACKLOG_S * bus_hz)))
        self._ours = False  # we switched torque on, and nobody confirmed yet that all of it is off again
        self._reset()

    def _reset(self) -> None:
        n = len(self.group.ids)
        self._open = self._stopped = self._first = False
        self._lost = ""  # why there is no bus
        self._latched: dict[str, str] = {}  # what went wrong and stays said until enable or disable
        self._torque = np.zeros(n, bool)  # joints that we drive
        self._live = np.zeros(n, bool)  # those that have torque, or had when they were last heard
        self._let_go = np.zeros(n, bool)  # those whose torque went off by itself
        self._seen = np.zeros(n, np.int64)
        self._errors, self._wrong = np.zeros(n, np.int64), np.zeros(n, np.int64)
        self._explained, self._fault_words = np.zeros(n, np.int64), ()
        self._cycles = self._reconnects = self._retries_before = 0
        self._captures: deque[int] = deque(maxlen=51)
        self._obstacles = Obstacles(n)
        self._sent = np.zeros(n)
        self._sent_ns = self._poll_ns = 0
        self._setpoint = Setpoint(np.zeros(n), time.monotonic_ns())

    @property
    def calibration(self) -> dict[str, dict[str, int]]:
        """In LeRobot's form, from `open` on: recordings keep it, so that their radians can be told from the
        servos' counts."""
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
            except BaseException:
                self.group.bus.close()
                raise
            self._take(reading)
            with self._lock:
                self._retries_before = retries_before
                self._live = _torque_of(reading)
                self._open = True
            self._thread = threading.Thread(target=self._run, name=f"{self.name} bus", daemon=True)
            self._thread.start()

    def close(self) -> None:
        """DeviceError when all is closed, but the torque that `enable` switched on may still be on: cut the
        arm's power then."""
        with self._life:
            thread = self._thread
            if thread is None:
                return
            left = ""
            try:
                if self._off_on_close and self._ours:
                    self._ask(self._disable)
            except DeviceError as error:
                left = str(error)
            finally:  # a Ctrl-C meanwhile does not keep the thread from switching the torque off first
                self._jobs.end()
                thread.join(ANSWER_S)
                self._thread = None
                self.group.bus.close()
                with self._lock:
                    self._open = self._stopped = False
                    self._torque[:] = False
                    self._lost = ""
            if left:
                raise DeviceError(
                    f"{self.name} is closed, but its torque may still be on: cut the arm's power ({left})"
                )

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
        if not alive or time.monotonic_ns() - sample.t_capture_ns > self._fresh_ns:
            return replace(sample, data=sample.data.copy(), valid=np.zeros(len(sample.data), bool))
        return replace(sample, data=sample.data.copy())

    def since(self, after_seq: int) -> list[Sample]:
        """Every reading with a seq above `after_seq`, oldest first, of the last half a second."""
        with self._lock:
            fresh = [s for s in self._history if s.seq > after_seq]
        return [replace(s, data=s.data.copy()) for s in fresh]

    def command(self, target: np.ndarray, t_target_ns: int) -> np.ndarray:
        target = check_target(target, self.joints)
        with self._lock:
            self._require_commandable()
            assert self._sample is not None
            if self._first:
                check_first(target, self._sample.data, self.max_first_step, self.joints)
                self._first = False
            sent = self._setpoint.command(target, t_target_ns, self.joints, time.monotonic_ns())
            return self._obstacles.limit(sent)

    def _require_commandable(self) -> None:
        if not self._commanded:
            raise DeviceError(f"{self.name} is a leader: it is moved by hand and takes no command")
        if not self._open:
            raise DeviceError(f"{self.name} is closed: open and enable it before commanding it")
        if self._lost:
            raise DeviceError(f"{self.name} takes no command: {self._lost}")
        if self._stopped or self._left().any():
            reported = self._fault_words if "fault" in self._latched else ()
            why = "; ".join((*self._latched.values(), *reported, *self._left_texts()))
            raise DeviceError(
                f"{self.name} was stopped{why and f' ({why})'}: enable it again before commanding it"
            )
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
            return (*self._stale_texts(now), *words, *self._latched.values(), *self._left_texts(), *blocked)

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
                if self._stopped or self._left().any()
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
        now = time.monotonic_ns()
        self._setpoint.hold(np.where(self._stale(now), self._sent, self._sample.data), now)

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

    def _left(self) -> np.ndarray:
        """Joints `(J,)` that have torque, though we do not drive them: another program's, or what could not
        be switched off."""
        return self._live & ~self._torque

    def _left_texts(self) -> tuple[str, ...]:
        left = np.flatnonzero(self._left())
        text = f"{self.group.named(left)} had torque on when last heard, though the arm is not enabled: enable it, disable it, or cut its power"
        return (text,) if len(left) else ()

    # the thread

    def _ask(self, job: Callable[[], None]) -> None:
        """Have the thread do `job`. DeviceError: it failed, or there is no thread."""
        thread = self._thread
        if thread is None:
            raise DeviceError(f"{self.name} is closed: open it first")
        self._jobs.ask(job, thread)

    def _run(self) -> None:
        due, pause, going = time.monotonic(), FIRST_PAUSE_S, True
        while going:
            try:
                if self._lost:
                    going = self._jobs.do(time.monotonic() + pause, f"{self.name} is not there: {self._lost}")
                    pause = min(2 * pause, LONGEST_PAUSE_S)
                    if going:
                        self._reopen()
                else:
                    self._cycle()
                    if self._cycles % 100 == 99:
                        pause = FIRST_PAUSE_S
                    due = max(due + self._period_s, time.monotonic())
                    going = self._jobs.do(due)
            except Exception as error:  # noqa: BLE001  the thread must outlive whatever the bus does
                self._lose(error)
        self._jobs.refuse(f"{self.name} was closed meanwhile")

    def _lose(self, error: Exception) -> None:
        self.group.bus.close()
        with self._lock:
            self._lost = f"{self.group.bus.port} is gone or fails ({error}): it is being reopened; plug the arm in again, then enable it"
            self._torque[:] = False
            self._obstacles.clear()
            self._setpoint.commanded_ns = None

    def _reopen(self) -> None:
        """Raises what keeps the bus from working. The torque is never touched here: an arm that still holds
        itself up goes on to."""
        self.group.bus.open()
        try:
            self.group.identify()
            reading = self.group.read_all()
            self.group.send(
                reading.position, _torque_of(reading)
            )  # not to where it was going when the cable came out
        except BaseException:
            self.group.bus.close()
            raise
        self._take(reading)
        with self._lock:
            self._reconnects += 1
            self._latched.clear()
            self._stopped = False
            self._live = _torque_of(reading)
            self._lost = ""

    def _cycle(self) -> None:
        self._cycles += 1
        reading = self.group.read()
        self._take(reading)
        if (self._wrong >= REPEATED).any():
            self._believe_faults()
        elif not self._errors.any():
            self._explained = self._errors
        self._watch_torque(reading)
        with self._lock:
            goal, which = self._next_goal(reading)
        if which.any():
            self.group.send(goal, which)

    def _take(self, reading: Reading) -> None:
        """Keep what was read, and look at what it says."""
        with self._lock:
            old = self._sample
            quick = reading.t_receive_ns - reading.t_request_ns <= QUICK_NS
            here = reading.answered & (quick or old is None)
            data = reading.position if old is None else np.where(here, reading.position, old.data)
            if old is not None and not here.any():
                self._sample = replace(old, valid=np.zeros_like(here))
                return
            middle = (reading.t_request_ns + reading.t_receive_ns) // 2
            seq = 0 if old is None else old.seq + 1
            self._sample = Sample(data, middle, reading.t_receive_ns, seq, here)
            self._history.append(self._sample)
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
        """Latch: an arm with something wrong holds, and takes commands again after `enable`. Caller holds the
        lock."""
        self._latched[key] = text
        self._hold()
        self._stopped = True

    def _watch_torque(self, reading: Reading) -> None:
        """A servo whose own protection let go, or that lost power for a moment, has no torque and forgot its
        settings."""
        on, known = reading.torque, reading.answered
        if on is None:
            now = time.monotonic_ns()
            if now - self._poll_ns < TORQUE_POLL_S * 1e9:
                return
            self._poll_ns = now
            on, known = self.group.torque_now()
        with self._lock:
            self._live = np.where(known, on, self._live)
            gone = self._torque & known & ~on
            if gone.any():
                self._torque &= ~gone
                self._let_go |= gone
                self._give_up(
                    "let go",
                    f"the torque of {self.group.named(np.flatnonzero(self._let_go))} went off by itself (overload, heat, or a loss of "
                    "power): take the load off, cycle the arm's power if it says overload, and enable the arm again",
                )

    def _next_goal(self, reading: Reading) -> tuple[np.ndarray, np.ndarray]:
        """The goal to send now and to which joints: those that answered just now. Caller holds the lock."""
        now = time.monotonic_ns()
        t = self._setpoint.commanded_ns
        if t is not None and (now - t > self.watchdog_s * 1e9 or self._stale(now).any()):
            # nobody commands, or nobody knows where a joint is: stay, and do not go where it was still going
            self._hold()
        wanted = self._setpoint.at(now)
        self._obstacles.release(wanted)
        goal = self._obstacles.limit(wanted)
        # whatever happened above, the wire carries no jump away from the arm
        step = self.joints.max_velocity * min((now - self._sent_ns) * 1e-9, CATCH_UP_S)
        here = self._sample.data if self._sample is not None else self._sent
        goal = np.clip(goal, np.minimum(self._sent, here) - step, np.maximum(self._sent, here) + step)
        which = self._torque & reading.answered & (now - reading.t_receive_ns < GOAL_FRESH_NS)
        self._sent, self._sent_ns = np.where(which, goal, self._sent), now
        return goal, which

    def _enable(self) -> None:
        self.group.identify()
        self.group.prepare()
        stands = self.group.standing(self._driven)
        before, pose = _torque_of(stands), stands.position
        ours, self._ours = self._ours, True
        try:
            reading = self.group.torque_on(pose, self._driven)
        except DeviceError as error:
            self._undo(before, error)
            self._ours = ours  # it is as it was
            raise
        self._take(reading)  # nothing was read meanwhile
        with self._lock:
            self._torque[self._driven] = True
            self._live = _torque_of(reading)
            self._stopped, self._first = False, True
            self._latched.clear()
            self._let_go[:] = False
            self._obstacles.clear()
            self._sent, self._sent_ns = pose, time.monotonic_ns()
            self._wrong[:] = 0
            goal = pose if self._spring_to is None else np.where(self._torque, self._spring_to, pose)
            self._setpoint.hold(goal, self._sent_ns)

    def _undo(self, before: np.ndarray, error: DeviceError) -> None:
        """After `error` half-way: torque off where it was off `before` `(J,)`. DeviceError when that is not
        certain."""
        left = came_on = [j for j in self._driven if not before[j]]
        with contextlib.suppress(DeviceError):
            left = self.group.torque_off(came_on)
        with self._lock:
            self._live = before.copy()
            self._live[left] = True
        if left:
            raise DeviceError(
                f"{error}; the torque of {self.group.named(left)} may still be on: cut the arm's power"
            ) from error

    def _disable(self) -> None:
        left = list(range(len(self._torque)))
        try:
            left = self.group.torque_off()
        finally:
            with self._lock:
                self._torque[:] = self._live[:] = self._let_go[:] = False
                self._live[left] = True
                self._ours = self._ours and bool(left)
                self._stopped = False
                self._obstacles.clear()
                self._latched.clear()
                self._hold()
        if left:
            raise DeviceError(
                f"{self.name}: the torque of {self.group.named(left)} may still be on, it does not confirm: cut the arm's power"
            )


def _torque_of(reading: Reading) -> np.ndarray:
    """Of a reading that tells."""
    assert reading.torque is not None
    return reading.torque.copy()
