"""The thread that moves the arms of a robot: every tick it sends each of them where the plan and the filter
say, and publishes what they say of themselves. It waits for nobody.

The filter runs ahead of time, up to the time for which the last command asked for its pose. So the answer to
a command is what will be sent at that time, and not a guess."""

from __future__ import annotations

import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from ...datasets.flags import LIMITED
from ...drivers.arm import DeviceError, Joints, Strained, check_first, joints_of, limit_target
from ...drivers.sample import Backlog
from ..safety.filter import Filter
from ..safety.stage import Measured
from .guard import SLOW, WARM
from .limb import Entry, Limb
from .memory import Memory, Words
from .parking import FAST, GENTLE, Parking, Phase

SPIN_NS = 150_000  # before a deadline the thread does not sleep: sleeps end late
LEAD_S = 0.25  # the filter runs no further ahead than this
HEALTH_S = 0.05  # between two looks at what the arms say of their health
BRAKING = 10.0  # rad/s², for the guess of where a moving arm comes to rest
SETTLED = 0.02  # rad/s (m/s): an arm that is sent no faster stands
SETTLE_S = 1.5  # for which a moving arm is given time to stand before it is parked


class Ticker:
    """limbs: the arms, whose joints follow each other in the filter. make_filter: a filter for joints; with
    `free` true one that does not keep the arm off the table, on which it is to lie. period_s: of a tick."""

    def __init__(
        self,
        limbs: Sequence[Limb],
        memory: Memory,
        period_s: float,
        make_filter: Callable[[Joints, bool], Filter],
    ) -> None:
        self.limbs, self.memory = list(limbs), memory
        self.period_ns = round(period_s * 1e9)
        self.lateness_ns: deque[int] = deque(maxlen=4096)
        self.failure = ""  # why no arm takes commands, until one is enabled again
        self._make_filter = make_filter
        self._filter: Filter | None = None
        self._lock = threading.RLock()  # of all below, held for microseconds
        self._entries: deque[Entry] = deque()
        self._last: Entry | None = None  # the newest that the filter gave
        self._parkings: dict[str, Parking] = {}
        self._stale_ns = 0
        self._stopping = threading.Event()

    # the thread

    def run(self) -> None:
        due = time.monotonic_ns()
        while not self._stopping.is_set():
            due += self.period_ns
            now = wait_until(due)
            self.lateness_ns.append(now - due)
            if now - due > self.period_ns:  # it was kept from its work: what it missed is not made up for
                due = now
            try:
                self.tick(due)
            except Exception:  # noqa: BLE001  a defect stops the arms, not the thread
                self.failure = "a defect of the control process, which standard error tells: the arm holds"
                traceback.print_exc()
                for limb in self.limbs:
                    self.drop(limb)

    def stop(self) -> None:
        self._stopping.set()

    def tick(self, due_ns: int) -> None:
        self._send(due_ns)
        for limb in self.limbs:
            if limb.is_open:
                self.publish(limb)
        self.memory.beat(Words.CONTROL)

    def _send(self, due_ns: int) -> None:
        with self._lock:
            if self._filter is None:  # no arm takes commands
                return
            t = due_ns + self.period_ns
            # what was computed for times that have passed meanwhile is not sent any more
            while self._entries and self._entries[0].t_ns <= due_ns:
                self._entries.popleft()
            if not self._entries:
                self._produce(t)
            entry = self._entries.popleft()
            for limb in self.limbs:
                if not limb.active:
                    continue
                limb.asked = entry.command[limb.joints]
                try:
                    limb.sent = limb.driver.command(limb.asked, entry.t_ns)
                except (DeviceError, ValueError):
                    self._drop(limb)
                    continue
                limb.memory.write_sent(limb.sent, due_ns, entry.flags)

    def _drop(self, limb: Limb) -> None:
        """An arm takes no more commands, for the reason that its driver then tells everybody."""
        limb.active = False
        self._parkings.pop(limb.name, None)

    def _produce(self, t_ns: int) -> Entry:
        """The next entry, for the time `t_ns`. Caller holds the lock."""
        assert self._filter is not None
        assert self._last is not None
        wanted = self._last.command.copy()
        movers = [limb for limb in self.limbs if limb.active]
        for limb in movers:
            wanted[limb.joints] = self._wanted(limb, t_ns)
        slowed = wanted.copy()
        for limb in movers:
            if limb.guard.slow and limb.name not in self._parkings:
                before, step = self._last.slowed[limb.joints], SLOW * self.period_ns * 1e-9
                slowed[limb.joints] = before + np.clip(wanted[limb.joints] - before, -step, step)
        dt_s = min(max((t_ns - self._last.t_ns) * 1e-9, 1e-4), 3 * self.period_ns * 1e-9)
        brakes = bool(movers) and all(limb.plan.brakes for limb in movers)
        measured = None
        if self._filter.stages is not None:
            measured = Measured.of([limb.reading() for limb in self.limbs])
        out = self._filter.step(None if brakes else slowed, dt_s, measured)
        flags, reasons = out.flags, out.reasons
        if brakes:
            wanted = slowed = out.command
            if np.abs(out.velocity).max() < SETTLED:
                for limb in movers:
                    limb.plan.hold(out.command[limb.joints].copy(), t_ns)
        elif not np.array_equal(slowed, wanted):
            flags, reasons = flags | LIMITED, (*reasons, WARM)
        self._last = Entry(t_ns, wanted, slowed, out.command, out.velocity, flags, reasons)
        self._entries.append(self._last)
        return self._last

    def _wanted(self, limb: Limb, t_ns: int) -> np.ndarray:
        assert self._last is not None
        if (parking := self._parkings.get(limb.name)) is not None:
            driver = limb.driver
            load = driver.strain().load if isinstance(driver, Strained) else None
            command = self._last.command[limb.joints]
            return parking.step(t_ns * 1e-9, command, driver.read().data, load)
        if limb.plan.is_over(t_ns) or (
            limb.plan.commanded_ns is not None and t_ns - limb.captured_ns > self._stale_ns
        ):
            self._hold(limb)
            limb.plan.lapsed_ns = t_ns
        return limb.plan.at(t_ns)

    def _hold(self, limb: Limb) -> None:
        """Come to rest as soon as the limits let it. Caller holds the lock."""
        if self._last is None:
            return
        q, v = self._last.command[limb.joints], self._last.velocity[limb.joints]
        joints = limb.driver.joints
        ahead = np.clip(v, -joints.max_velocity, joints.max_velocity)
        rest = np.clip(q + ahead * np.abs(ahead) / (2 * BRAKING), joints.lower, joints.upper)
        moves = bool(np.abs(v).max() > SETTLED)
        limb.plan.hold(rest if moves else q.copy(), self._last.t_ns, brakes=moves)

    def publish(self, limb: Limb) -> None:
        """Its newest reading, and now and then its health."""
        driver, memory = limb.driver, limb.memory
        with self._lock:  # one thread writes at a time
            sample = driver.read()
            if isinstance(driver, Backlog) and sample.seq > limb.last_seq:
                memory.keep([limb.numbered(s) for s in driver.since(limb.last_seq)])
            limb.last_seq = max(limb.last_seq, sample.seq)
            limb.captured_ns = sample.t_capture_ns
            memory.write_sample(limb.numbered(sample))
            if time.monotonic() - limb.health_s > HEALTH_S:
                self.publish_health(limb)

    def publish_health(self, limb: Limb) -> None:
        with self._lock:
            limb.health_s = time.monotonic()
            driver, guard = limb.driver, limb.guard
            if limb.active and self._filter is not None:
                if isinstance(driver, Strained):
                    guard.step(driver.strain(), limb.health_s)
                lag = np.where(limb.grips, 0.0, driver.read().data - limb.sent)
                if guard.follows(lag, self._filter.safety.tracking_error, limb.health_s):
                    self.start_at(limb)  # it holds where it is
                if guard.refusal and limb.name not in self._parkings and limb.plan.commanded_ns is not None:
                    self._hold(limb)
            faults = (*driver.faults(), *((guard.note,) if guard.note else ()))
            limb.memory.write_health(driver.health(), faults, guard.note)

    # what other threads ask for

    def start_at(self, limb: Limb) -> None:
        """The arm `limb` takes commands from now on, and begins where it is."""
        with self._lock:
            now = time.monotonic_ns()
            if self._filter is None:
                self._filter = self._make_filter(self._joints(), False)
            stand = [each is limb or not each.active or self._last is None for each in self.limbs]
            at = np.concatenate([each.position() for each in self.limbs])
            moved = np.repeat(stand, [len(each.driver.joints) for each in self.limbs])
            if self._last is None or moved.all():
                self._begin(at, now)
            else:  # the others are on their way
                self._filter.reset(at, moved)
                self._entries = deque(entry.standing(at, moved) for entry in self._entries)
                self._last = self._last.standing(at, moved)
            stale_s = self._filter.safety.stale_s
            self._stale_ns = round(stale_s * 1e9)
            limb.plan.patience_ns = round(min(limb.driver.watchdog_s, stale_s) * 1e9)
            limb.plan.hold(self._last_command(limb), now)
            limb.asked = limb.sent = self._last_command(limb)
            limb.active = True

    def begin(self) -> None:
        """An episode begins."""
        with self._lock:
            if self._filter is not None and self._last is not None:
                self._filter.begin()

    def _begin(self, q: np.ndarray, now_ns: int) -> None:
        assert self._filter is not None
        self._filter.reset(q)
        self._entries.clear()
        self._last = Entry(now_ns, q, q, q.copy(), np.zeros(len(q)), 0, ())

    def _joints(self) -> Joints:
        return joints_of({limb.name: limb.driver for limb in self.limbs})

    def _last_command(self, limb: Limb) -> np.ndarray:
        assert self._last is not None
        return self._last.command[limb.joints].copy()

    def forget_filter(self) -> None:
        """The arms' joints may be others now, since one was opened."""
        with self._lock:
            if not any(limb.active for limb in self.limbs):
                self._filter = self._last = None
                self._entries.clear()

    def drop(self, limb: Limb) -> None:
        """It takes no commands any more."""
        with self._lock:
            self._drop(limb)

    def leave(self, limb: Limb) -> None:
        """It is about to be closed: it is not read any more either."""
        with self._lock:
            self._drop(limb)
            limb.is_open = False

    def command(
        self,
        targets: Mapping[str, np.ndarray],
        t_target_ns: int,
        ahead: Mapping[str, np.ndarray],
        period_ns: int,
    ) -> tuple[dict[str, np.ndarray], int, tuple[str, ...], int]:
        """Send arms to `targets`, by name `(J,)`, to be there at `t_target_ns`, then through `ahead`, by name
        `(n, J)`. Returns (what will be sent then, the filter's flags, its reasons, for how long the arms had
        been holding because no command came, ns). DeviceError: an arm takes no command, and nothing is sent
        to any."""
        now = time.monotonic_ns()
        limbs = [limb for limb in self.limbs if limb.name in targets]
        for limb in limbs:
            self._require_active(limb, now)
            if limb.first:
                joints = limb.driver.joints
                check_first(targets[limb.name], limb.position(), limb.driver.max_first_step, joints)
        with self._lock:
            assert self._last is not None
            held_ns, wanted = 0, {}
            for limb in limbs:
                limb.first = False
                held_ns = max(held_ns, limb.plan.silence_ns(now))
                # from what was asked for last, not from where the filter let it go: the path is the asker's
                start, joints = self._last.wanted[limb.joints], limb.driver.joints
                span_s = (t_target_ns - self._last.t_ns) * 1e-9
                goal = limit_target(targets[limb.name], start, span_s, joints)
                next_ones = np.clip(ahead[limb.name], joints.lower, joints.upper)
                limb.plan.command(start, self._last.t_ns, goal, t_target_ns, next_ones, period_ns, now)
                wanted[limb.name] = goal
        flags, reasons = self._look_ahead(t_target_ns, now)
        sent = {limb.name: self._deviated(limb, wanted[limb.name]) for limb in limbs}
        return sent, flags, reasons, held_ns

    def _look_ahead(self, t_target_ns: int, now_ns: int) -> tuple[int, tuple[str, ...]]:
        """Run the filter up to the time `t_target_ns`; (its flags, its reasons)."""
        flags, reasons = 0, dict[str, None]()
        while True:
            with self._lock:  # a tick that is due meanwhile does not wait for all of it
                last = self._last
                if last is None or last.t_ns >= min(t_target_ns, now_ns + round(LEAD_S * 1e9)):
                    break
                entry = self._produce(max(last.t_ns, now_ns) + self.period_ns)
            flags |= entry.flags
            reasons |= dict.fromkeys(entry.reasons)
        return flags, tuple(reasons)

    def _deviated(self, limb: Limb, goal: np.ndarray) -> np.ndarray:
        """`goal` as far as a warm motor, the filter, and the driver by what it last did, let the arm go."""
        assert self._last is not None
        deviation = self._last.command[limb.joints] - self._last.wanted[limb.joints]
        goal = goal + deviation
        blocked = limb.sent - limb.asked  # by an obstacle: the driver sends less than it is asked for
        goal = np.where(blocked < -1e-4, np.minimum(goal, limb.sent), goal)
        return np.where(blocked > 1e-4, np.maximum(goal, limb.sent), goal)

    def _require_active(self, limb: Limb, now_ns: int) -> None:
        if limb.name in self._parkings:
            raise DeviceError(
                f"{limb.name} is being put down: it takes no command before it is enabled again"
            )
        if limb.active and limb.guard.refusal:
            raise DeviceError(f"{limb.name} takes no command: {limb.guard.refusal}")
        if limb.active:
            return
        if self.failure and limb.is_open:
            raise DeviceError(f"{limb.name} takes no command: {self.failure}; enable it again")
        if refusal := limb.refusal(limb.position(), now_ns + self.period_ns):
            raise DeviceError(refusal)
        self.start_at(limb)  # what kept it from taking commands is over

    def hold(self, names: Sequence[str]) -> None:
        with self._lock:
            for limb in self.limbs:
                if limb.name in names and limb.active and limb.name not in self._parkings:
                    self._hold(limb)
                elif limb.name in names and not limb.active and limb.is_open:
                    limb.driver.hold()

    def stop_arms(self, names: Sequence[str]) -> None:
        with self._lock:
            for limb in self.limbs:
                if limb.name in names and limb.is_open:
                    self._drop(limb)
                    limb.driver.stop()
                    self.publish_health(limb)

    # parking

    def park(self, names: Sequence[str], is_fast: Callable[[], bool]) -> dict[str, Phase]:
        """Put the arms down; returns when all lie or cannot. By name, the phase that each ended in; an arm
        that stopped taking commands on its way is left out."""
        with self._lock:
            limbs = [limb for limb in self.limbs if limb.name in names and limb.active]
            for limb in limbs:
                self._hold(limb)
        until = time.monotonic() + SETTLE_S
        while self._is_moving() and time.monotonic() < until:
            time.sleep(0.01)
        fast = is_fast()
        with self._lock:
            for limb in limbs:
                if limb.active:
                    joints = limb.driver.joints
                    self._parkings[limb.name] = Parking(
                        self._last_command(limb),
                        limb.rest,
                        joints.lower,
                        joints.upper,
                        time.monotonic(),
                        FAST if fast else GENTLE,
                        limb.lay_there,
                    )
        sinks = False
        while True:
            with self._lock:
                parkings = list(self._parkings.values())
                if not fast and is_fast():
                    fast = True
                    for parking in parkings:
                        parking.set_speed(FAST, time.monotonic())
                if not sinks and parkings and all(p.phase is not Phase.GOING for p in parkings):
                    sinks = True
                    self._leave_the_table_to_the_arms()
                if all(p.phase in (Phase.DOWN, Phase.STUCK) for p in parkings):
                    return {name: p.phase for name, p in self._parkings.items()}
            time.sleep(0.01)

    def _leave_the_table_to_the_arms(self) -> None:
        """From now on what the arms are to lie on does not keep them off."""
        assert self._last is not None
        self._filter = self._make_filter(self._joints(), True)
        self._begin(self._last.command, time.monotonic_ns())

    def parked(self, name: str) -> None:
        """The arm is put down and has no torque any more, or keeps it where it is."""
        with self._lock:
            self._parkings.pop(name, None)
            for limb in self.limbs:
                if limb.name == name:
                    limb.active = False
            self.forget_filter()

    def _is_moving(self) -> bool:
        with self._lock:
            return self._last is not None and float(np.abs(self._last.velocity).max()) > SETTLED


def wait_until(due_ns: int) -> int:
    """Returns at `due_ns`, or at once when that has passed, and what time it is then."""
    if (sleep_ns := due_ns - SPIN_NS - time.monotonic_ns()) > 0:
        time.sleep(sleep_ns * 1e-9)
    while (now := time.monotonic_ns()) < due_ns:
        pass
    return now
