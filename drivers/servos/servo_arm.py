"""An arm of bus servos: the contract of `drivers.arm.Arm` over any `ServoBus`.

One thread owns the bus. It reads every joint and writes every goal `bus_hz` times a second. `read` returns
its last reading and `command` sets its next goal; neither waits for the bus. No goal is computed from a
reading that is older than `stale_s`."""

from __future__ import annotations

import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace

import numpy as np

from ..arm import ArmHealth, ArmState, DeviceError, Joints, Strain, check_first, check_target
from ..sample import Sample
from ..setpoint import Setpoint
from .bus_jobs import ANSWER_S, Jobs
from .group import Reading, ServoGroup
from .obstacles import Obstacles

FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.1, 2.0  # between attempts to reopen
REPEATED = 3  # times in a row that a servo must report a fault before it counts
HEAT_POLL_S = 1.0  # how often the temperatures are read
TORQUE_POLL_S = 0.1  # how often the torque is read by itself, where readings do not hold it
# A goal is sent within this time after the reading that it was computed from, or not at all: a servo that
# lost its power meanwhile, and is back, would take it, and some switch their torque on with a goal.
GOAL_FRESH_NS = 50_000_000
# `read` marks an older reading as invalid, also while the thread does a job and reads nothing.
FRESH_S, FRESH_CYCLES = 0.2, 3
# A reading whose exchange took longer, on a busy machine, tells where a joint was but not when, and is
# dropped.
QUICK_NS = 50_000_000
BACKLOG_S = 0.5  # of readings are kept for a recorder of every reading, which may be busy that long
CATCH_UP_S = 0.1  # after a pause of the thread the goal moves no further at once than in this time


class ServoArm:
    """J joints of a `ServoGroup`. bus_hz: cycles a second. stale_s: how long a joint may be silent before the
    arm holds. commanded: False for a leader that is only read: it takes no commands and no `enable`. sprung:
    joints of a leader that spring back to `spring_to` `(J,)` rad, whatever is commanded. Other arguments: see
    `drivers.arm.Arm`."""

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
        self.joints: Joints = group.joints  # of the model; from `open` on within the calibrated ranges
        self.watchdog_s, self.max_first_step = watchdog_s, max_first_step
        self._period_s, self._stale_ns = 1 / bus_hz, round(stale_s * 1e9)
        self._fresh_ns = min(self._stale_ns, round(max(FRESH_S, FRESH_CYCLES / bus_hz) * 1e9))
        self._off_on_close, self._commanded = torque_off_on_close, commanded
        self.falls = torque_off_on_close  # when it is closed
        self._sprung, self._spring_to = list(sprung), spring_to
        self._all = list(range(len(group.ids)))
        self._life = threading.Lock()
        self._lock = threading.Lock()  # of all below; held for microseconds
        self._thread: threading.Thread | None = None
        self._jobs = Jobs()
        self._sample: Sample | None = None
        self._history: deque[Sample] = deque(maxlen=max(1, round(BACKLOG_S * bus_hz)))
        self._torque_is_ours = False  # `enable` switched torque on, and not all is confirmed to be off again
        self._reset()

    def _reset(self) -> None:
        n = len(self.group.ids)
        self._open = self._stopped = self._first = False
        self._outage = ""  # why there is no bus
        self._latches: dict[str, str] = {}  # faults that stay until enable or disable
        self._torque = np.zeros(n, bool)  # joints that we drive
        self._live = np.zeros(n, bool)  # joints that have torque, or had when they last answered
        self._let_go = np.zeros(n, bool)  # joints whose torque went off by itself
        self._answer_ns = np.zeros(n, np.int64)
        self._errors, self._error_counts = np.zeros(n, np.int64), np.zeros(n, np.int64)
        self._explained_errors, self._fault_words = np.zeros(n, np.int64), ()
        self._cycles = self._reconnects = self._retries_at_open = 0
        self._captures: deque[int] = deque(maxlen=51)
        self._obstacles = Obstacles(n)
        self._last_goal = np.zeros(n)
        self._last_goal_ns = self._poll_ns = self._heat_ns = 0
        self._load, self._heat_c, self._hottest_c = np.zeros(n), np.full(n, np.nan), np.full(n, np.nan)
        self._setpoint = Setpoint(np.zeros(n), time.monotonic_ns())

    @property
    def calibration(self) -> dict[str, dict[str, int]]:
        """In LeRobot's form, from `open` on. Recordings keep it, so that counts can be computed from their
        radians."""
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
                retries_at_open = self.group.bus.stats.retries
                reading = self.group.read_all()
                hottest_c = self.group.values(self.group.family.hottest).astype(np.float64)
            except BaseException:
                self.group.bus.close()
                raise
            self._take(reading)
            with self._lock:
                self._hottest_c = hottest_c
                self._retries_at_open = retries_at_open
                self._live = _torque_of(reading)
                self._open = True
            self._thread = threading.Thread(target=self._run, name=f"{self.name} bus", daemon=True)
            self._thread.start()

    def close(self) -> None:
        """DeviceError: all is closed, but the torque that `enable` switched on may still be on; cut the arm's
        power then."""
        with self._life:
            thread = self._thread
            if thread is None:
                return
            failure = ""
            try:
                if self._off_on_close and self._torque_is_ours:
                    self._ask(lambda: self._disable(self._all))
            except DeviceError as error:
                failure = str(error)
            finally:  # a Ctrl-C meanwhile does not keep the thread from switching the torque off first
                self._jobs.end()
                thread.join(ANSWER_S)
                self._thread = None
                self.group.bus.close()
                with self._lock:
                    self._open = self._stopped = False
                    self._torque[:] = False
                    self._outage = ""
            if failure:
                raise DeviceError(
                    f"{self.name} is closed, but its torque may still be on: cut the arm's power ({failure})"
                )

    def enable(self) -> None:
        if not self._commanded:
            raise DeviceError(f"{self.name} is a leader: it is moved by hand, and its torque stays off")
        self._ask(lambda: self._enable(self._all))

    def spring(self) -> None:
        """Torque in the sprung joints, and in no other. DeviceError names the joints whose torque may still
        be on: cut the arm's power then."""
        if not self._sprung:
            raise DeviceError(f"{self.name} has no spring: none of its joints gets torque for one")
        self._ask(self._spring)

    def disable(self) -> None:
        """DeviceError names the joints whose torque may still be on: cut the arm's power then."""
        self._ask(lambda: self._disable(self._all))

    # reading and commanding: no bus, no waiting

    def read(self) -> Sample:
        with self._lock:
            sample, alive = self._sample, self._open and not self._outage
        if sample is None:
            raise DeviceError(f"{self.name} was never open: open it before reading")
        if not alive or time.monotonic_ns() - sample.t_capture_ns > self._fresh_ns:
            return replace(sample, data=sample.data.copy(), valid=np.zeros(len(sample.data), bool))
        return replace(sample, data=sample.data.copy())

    def since(self, after_seq: int) -> list[Sample]:
        """The readings of the last half a second with a seq above `after_seq`, oldest first."""
        with self._lock:
            fresh = [s for s in self._history if s.seq > after_seq]
        return [replace(s, data=s.data.copy()) for s in fresh]

    def strain(self) -> Strain:
        with self._lock:
            return Strain(self._load.copy(), self._heat_c.copy(), self._hottest_c.copy())

    def command(self, target: np.ndarray, t_target_ns: int) -> np.ndarray:
        target = check_target(target, self.joints)
        with self._lock:
            self._require_commandable()
            assert self._sample is not None
            if self._first:
                check_first(target, self._sample.data, self.max_first_step, self.joints)
                self._first = False
            target = self._with_spring(target)
            setpoint = self._setpoint.command(target, t_target_ns, self.joints, time.monotonic_ns())
            return self._obstacles.limit(setpoint)

    def _require_commandable(self) -> None:
        if not self._commanded:
            raise DeviceError(f"{self.name} is a leader: it is moved by hand and takes no command")
        if not self._open:
            raise DeviceError(f"{self.name} is closed: open and enable it before commanding it")
        if self._outage:
            raise DeviceError(f"{self.name} takes no command: {self._outage}")
        if self._stopped or self._stray_torque().any():
            fault_words = self._fault_words if "fault" in self._latches else ()
            why = "; ".join((*self._latches.values(), *fault_words, *self._stray_texts()))
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
            if self._outage:
                return (self._outage, *self._latches.values())
            blocked_texts = (
                f"{self.group.name(int(j))} is blocked: it leans lightly on what is in its way; command it "
                "back, or take the thing away"
                for j in np.flatnonzero(self._obstacles.blocked)
            )
            now = time.monotonic_ns()
            words = self._fault_words if (self._error_counts >= REPEATED).any() else ()
            return (
                *self._stale_texts(now),
                *words,
                *self._latches.values(),
                *self._stray_texts(),
                *blocked_texts,
            )

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
                if self._outage
                else ArmState.STOPPED
                if self._stopped or self._stray_torque().any()
                else ArmState.ACTIVE
                if self._commanded and self._torque.all()
                else ArmState.TORQUE_OFF
            )
            retries = self.group.bus.stats.retries - self._retries_at_open
            return ArmHealth(state, age, rate, retries, self._reconnects, message)

    def _hold(self) -> None:
        if self._sample is None:
            return
        # of a silent joint only the goal is known
        now = time.monotonic_ns()
        self._setpoint.hold(np.where(self._stale(now), self._last_goal, self._sample.data), now)

    def _stale(self, now_ns: int) -> np.ndarray:
        return now_ns - self._answer_ns > self._stale_ns

    def _stale_texts(self, now_ns: int) -> tuple[str, ...]:
        silent = np.flatnonzero(self._stale(now_ns))
        if len(silent) == len(self._answer_ns):
            seconds = (now_ns - int(self._answer_ns.max())) * 1e-9
            return (f"no servo has answered for {seconds:.1f} s: is the arm's power on?",)
        return tuple(
            f"{self.group.name(int(j))} has not answered for "
            f"{(now_ns - int(self._answer_ns[j])) * 1e-9:.1f} s: check its cable; "
            "the arm holds meanwhile"
            for j in silent
        )

    def _stray_torque(self) -> np.ndarray:
        """Joints, `(J,)` bool, that have torque though we do not drive them: another program switched it on,
        or it could not be switched off."""
        return self._live & ~self._torque

    def _stray_texts(self) -> tuple[str, ...]:
        stray = np.flatnonzero(self._stray_torque())
        text = (
            f"{self.group.names(stray)} had torque on when last heard, though the arm is not enabled: "
            "enable it, disable it, or cut its power"
        )
        return (text,) if len(stray) else ()

    # the thread

    def _ask(self, job: Callable[[], None]) -> None:
        """Have the bus thread do `job`. DeviceError: it failed, or the arm is closed."""
        thread = self._thread
        if thread is None:
            raise DeviceError(f"{self.name} is closed: open it first")
        self._jobs.ask(job, thread)

    def _run(self) -> None:
        due, pause, going = time.monotonic(), FIRST_PAUSE_S, True
        while going:
            try:
                if self._outage:
                    going = self._jobs.do(
                        time.monotonic() + pause, f"{self.name} is not there: {self._outage}"
                    )
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
            self._outage = (
                f"{self.group.bus.port} is gone or fails ({error}): it is being reopened; plug "
                "the arm in again, then enable it"
            )
            self._torque[:] = False
            self._obstacles.clear()
            self._setpoint.commanded_ns = None

    def _reopen(self) -> None:
        """Raises what keeps the bus from working. It does not change the torque: an arm that still holds
        itself up goes on holding."""
        self.group.bus.open()
        try:
            self.group.identify()
            reading = self.group.read_all()
            # a new goal, or it would go on to where it was going when the cable came out
            self.group.send(reading.position, _torque_of(reading))
        except BaseException:
            self.group.bus.close()
            raise
        self._take(reading)
        with self._lock:
            self._reconnects += 1
            self._latches.clear()
            self._stopped = False
            self._live = _torque_of(reading)
            self._outage = ""

    def _cycle(self) -> None:
        self._cycles += 1
        reading = self.group.read()
        self._take(reading)
        if (self._error_counts >= REPEATED).any():
            self._believe_faults()
        elif not self._errors.any():
            self._explained_errors = self._errors
        self._watch_torque(reading)
        self._watch_heat()
        with self._lock:
            goal, which = self._next_goal(reading)
        if which.any():
            self.group.send(goal, which)

    def _take(self, reading: Reading) -> None:
        """Keep a reading, and take its errors and blocked joints from it."""
        with self._lock:
            last = self._sample
            quick = reading.t_receive_ns - reading.t_request_ns <= QUICK_NS
            is_new = reading.answered & (quick or last is None)
            data = reading.position if last is None else np.where(is_new, reading.position, last.data)
            if last is not None and not is_new.any():
                self._sample = replace(last, valid=np.zeros_like(is_new))
                return
            middle = (reading.t_request_ns + reading.t_receive_ns) // 2
            seq = 0 if last is None else last.seq + 1
            self._sample = Sample(data, middle, reading.t_receive_ns, seq, is_new)
            self._history.append(self._sample)
            self._captures.append(middle)
            self._answer_ns[is_new] = middle
            self._load = np.where(is_new, reading.load, self._load)
            self._errors = np.where(is_new, reading.errors, self._errors)
            self._error_counts = np.where(
                is_new & (reading.errors != 0), self._error_counts + is_new, self._error_counts * ~is_new
            )
            self._obstacles.look(reading.position, reading.load, is_new & self._torque, self._last_goal)

    def _believe_faults(self) -> None:
        if np.array_equal(self._errors, self._explained_errors) and (self._stopped or not self._torque.any()):
            return
        words = self.group.explain(self._errors)
        with self._lock:
            self._explained_errors = self._errors
            self._fault_words = words
            if self._torque.any() and not self._stopped:
                self._give_up("fault", "the arm holds because a servo reports a fault")

    def _give_up(self, key: str, text: str) -> None:
        """Hold, with the fault `text`, and take no command until `enable`. Caller holds the lock."""
        self._latches[key] = text
        self._hold()
        self._stopped = True

    def _watch_torque(self, reading: Reading) -> None:
        """Stop the arm when a servo's torque went off by itself: its protection let go, or it lost power for
        a moment and its settings with it."""
        on, answered = reading.torque, reading.answered
        if on is None:
            now = time.monotonic_ns()
            if now - self._poll_ns < TORQUE_POLL_S * 1e9:
                return
            self._poll_ns = now
            on, answered = self.group.torque_now()
        with self._lock:
            self._live = np.where(answered, on, self._live)
            losses = self._torque & answered & ~on
            if losses.any():
                self._torque &= ~losses
                self._let_go |= losses
                self._give_up(
                    "let go",
                    f"the torque of {self.group.names(np.flatnonzero(self._let_go))} went off by itself "
                    "(overload, heat, or a loss of power): take the load off, cycle the arm's power if it "
                    "says overload, and enable the arm again",
                )

    def _watch_heat(self) -> None:
        now = time.monotonic_ns()
        if now - self._heat_ns < HEAT_POLL_S * 1e9:
            return
        self._heat_ns = now
        heat_c, answered = self.group.temperatures()
        with self._lock:
            self._heat_c = np.where(answered, heat_c, self._heat_c)

    def _next_goal(self, reading: Reading) -> tuple[np.ndarray, np.ndarray]:
        """The goal `(J,)` rad to send now, and the joints `(J,)` bool to send it to: those that answered just
        now. Caller holds the lock."""
        now = time.monotonic_ns()
        t = self._setpoint.commanded_ns
        if t is not None and (now - t > self.watchdog_s * 1e9 or self._stale(now).any()):
            # no commands come, or a joint's position is unknown: stay, and give up the goal
            self._hold()
        setpoint = self._setpoint.at(now)
        self._obstacles.release(setpoint)
        goal = self._obstacles.limit(setpoint)
        # whatever happened above, no goal that is sent jumps away from the arm
        step = self.joints.max_velocity * min((now - self._last_goal_ns) * 1e-9, CATCH_UP_S)
        position = self._sample.data if self._sample is not None else self._last_goal
        goal = np.clip(
            goal, np.minimum(self._last_goal, position) - step, np.maximum(self._last_goal, position) + step
        )
        which = self._torque & reading.answered & (now - reading.t_receive_ns < GOAL_FRESH_NS)
        self._last_goal, self._last_goal_ns = np.where(which, goal, self._last_goal), now
        return goal, which

    def _enable(self, which: Sequence[int]) -> None:
        self.group.identify()
        self.group.prepare()
        stands = self.group.standing(which)
        torque_before, pose = _torque_of(stands), stands.position
        was_ours, self._torque_is_ours = self._torque_is_ours, True
        try:
            reading = self.group.torque_on(pose, which)
        except DeviceError as error:
            self._undo([j for j in which if not torque_before[j]], torque_before, error)
            self._torque_is_ours = was_ours  # it is as it was
            raise
        self._take(reading)  # nothing was read meanwhile
        with self._lock:
            self._torque[which] = True
            self._live = _torque_of(reading)
            self._stopped, self._first = False, True
            self._latches.clear()
            self._let_go[:] = False
            self._obstacles.clear()
            self._last_goal, self._last_goal_ns = pose, time.monotonic_ns()
            self._error_counts[:] = 0
            self._setpoint.hold(self._with_spring(pose), self._last_goal_ns)

    def _undo(self, switched: Sequence[int], torque_before: np.ndarray, error: DeviceError) -> None:
        """After `error` in the middle of `enable`: torque off again in the joints `switched`, where it was
        off before (`torque_before` `(J,)`). DeviceError: that is not certain."""
        remaining = switched
        with contextlib.suppress(DeviceError):
            remaining = self.group.torque_off(switched)
        with self._lock:
            self._live = torque_before.copy()
            self._live[list(remaining)] = True
        if remaining:
            raise DeviceError(
                f"{error}; the torque of {self.group.names(remaining)} may still be on: cut the arm's power"
            ) from error

    def _spring(self) -> None:
        self._disable([j for j in self._all if j not in self._sprung])
        if not self._torque[self._sprung].all():
            return self._enable(self._sprung)
        with self._lock:
            assert self._sample is not None
            self._setpoint.hold(self._with_spring(self._sample.data), time.monotonic_ns())

    def _with_spring(self, goal: np.ndarray) -> np.ndarray:
        """`goal` `(J,)` rad, but where the sprung joints spring back to."""
        if self._spring_to is None:
            return goal
        goal = goal.copy()
        goal[self._sprung] = self._spring_to[self._sprung]
        return goal

    def _disable(self, which: Sequence[int]) -> None:
        remaining = list(which)
        try:
            remaining = self.group.torque_off(which)
        finally:
            with self._lock:
                self._torque[which] = self._live[which] = self._let_go[which] = False
                self._live[remaining] = True
                self._torque_is_ours = self._torque_is_ours and bool(self._live.any())
                self._stopped = False
                self._obstacles.clear()
                self._latches.clear()
                self._hold()
        if remaining:
            raise DeviceError(
                f"{self.name}: the torque of {self.group.names(remaining)} may still be on, it does not "
                "confirm: cut the arm's power"
            )


def _torque_of(reading: Reading) -> np.ndarray:
    """`(J,)` bool, of a reading that holds the torque."""
    assert reading.torque is not None
    return reading.torque.copy()
