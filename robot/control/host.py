"""The main process's side of a robot's control process: starts it, gives it orders and commands, and when it
dies starts another one, which takes the arms over as they stand."""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ...drivers.arm import Arm, CommandRefused, DeviceError, falls
from .child import START_S, Child
from .memory import COMMAND, DEVICE_ERROR, HOLD, MOST_AHEAD, STOP, VALUE_ERROR, Memory, Words, text_of

ORDER_S = 60.0  # a driver may take long to enable an arm on a bad line
ANSWER_S = 2.0  # for a command; a computer that is short of everything gives no answer sooner
PARK_S = 120.0
HUNG_S = 5.0  # without a tick the control process is killed
BEAT_S = 0.1
PAUSES_S = (0.0, 0.5, 2.0)  # before each attempt to start another one
NO_AHEAD: Mapping[str, np.ndarray] = {}


def say(text: str) -> None:
    """On standard error, if that is still there: a terminal may be closed."""
    with contextlib.suppress(OSError, ValueError):
        print(text, file=sys.stderr, flush=True)


class Host:
    """The control process of one robot. robot: its file. config: what that says. drivers: of its arms, never
    opened here: they only tell what the arms are. rest: `(A,)`, where they are to lie, None where the file
    says nothing."""

    def __init__(
        self,
        robot: str,
        config: Mapping[str, Any],
        drivers: Mapping[str, Arm],
        rate_hz: float,
        rest: np.ndarray | None,
        park_after_s: float,
    ) -> None:
        self.robot, self.rate_hz, self.park_after_s = robot, rate_hz, park_after_s
        self.drivers = dict(drivers)
        self.memory: Memory | None = None
        self.down = ""  # why there is no control process at the moment
        self.held_ns = 0  # for how long the arms held before the last command, because it came late
        self._config = dict(config)
        at = 0
        self._parts: dict[str, slice] = {}
        for name, driver in self.drivers.items():
            self._parts[name] = slice(at, at + len(driver.joints))
            at += len(driver.joints)
        self._n_joints = at
        self._rests = {} if rest is None else {n: rest[part].tolist() for n, part in self._parts.items()}
        self._life = threading.RLock()  # of the process, and of which arms are open and enabled
        self._child: Child | None = None
        self._open: list[str] = []
        self._enabled: set[str] = set()
        self._began: dict[str, list[float]] = {}  # where each arm got its torque first
        self._lay: set[str] = set()  # those of them that had none before
        self._asking = threading.Lock()
        self._number = 0
        self._watcher: threading.Thread | None = None
        self._closing = threading.Event()

    # orders

    def open(self, arm: str) -> dict[str, Any]:
        """Open an arm; returns its joints and its calibration. DeviceError, in the words of its driver."""
        with self._life:
            if self._child is None:
                self._start()
            assert self._child is not None
            try:
                info = self._child.ask("open", ORDER_S, arm=arm)
            except DeviceError:
                if not self._open:
                    self._end()
                raise
            self._open.append(arm)
            return info

    def close(self, arm: str) -> None:
        """Put the arms down, if that was not done before, and release `arm`."""
        with self._life:
            if arm not in self._open:
                return
            try:
                if arm in self._enabled:
                    self.put_down()
                if self._child is not None:
                    self._child.ask("close", ORDER_S, arm=arm)
            finally:
                self._open.remove(arm)
                if not self._open:
                    self._end()

    def enable(self, arm: str) -> None:
        with self._life:
            info = self._require().ask("enable", ORDER_S, arm=arm)
            self._began[arm] = info["began"]
            if info["lay"]:
                self._lay.add(arm)
            for text in info["texts"]:
                say(text)
            self._enabled.add(arm)

    def disable(self, arm: str) -> None:
        with self._life:
            self._require().ask("disable", ORDER_S, arm=arm)
            self._enabled.discard(arm)

    def begin(self) -> None:
        """An episode begins: the stages of the filter begin anew."""
        with self._life:
            self._require().ask("begin", ORDER_S)

    def park(self) -> list[str]:
        """Put every arm down that would fall, and switch its torque off; a sentence on each that could not
        be. They take no command before they are enabled again."""
        self._await_another()
        if self._child is None or not self._enabled:
            return []
        try:
            notes = self._child.ask("park", PARK_S)["notes"]
        except DeviceError as error:
            return [f"the arms could not be put down ({error}): support them, then cut their power"]
        self._enabled.clear()
        return notes

    def put_down(self) -> None:
        """`park`, which is said, with what could not be done."""
        if not any(falls(self.drivers[arm]) or arm in self._rests for arm in self._enabled):
            return
        say("the arms are put down; Ctrl-C makes it faster")
        for note in self.park():
            say(note)

    def hurry(self) -> None:
        """Put the arms down faster. It waits for nothing."""
        child = self._child
        if child is not None:
            child.tell("hurry")

    @property
    def pid(self) -> int | None:
        """Of the control process; None while there is none."""
        child = self._child
        return None if child is None else child.process.pid

    def lateness_ns(self) -> np.ndarray:
        """How late the last ticks were, ns."""
        return np.array(self._require().ask("state", ORDER_S)["lateness_ns"], np.int64)

    def _require(self) -> Child:
        if self.down:
            raise DeviceError(self.down)
        if self._child is None:
            raise DeviceError(f"{self.robot} is closed: open it first")
        return self._child

    # commands: shared memory only

    def command(
        self,
        targets: Mapping[str, np.ndarray],
        t_target_ns: int,
        ahead: Mapping[str, np.ndarray] = NO_AHEAD,
        period_ns: int = 0,
    ) -> tuple[dict[str, np.ndarray], int, tuple[str, ...]]:
        """Send arms to `targets`, by name `(J,)`, to be there at `t_target_ns`, then through `ahead`, by name
        `(n, J)`, one each `period_ns`. Returns (what will be sent then, by name; the filter's flags; its
        reasons). DeviceError in the words of the driver: nothing was sent."""
        target, follow = np.zeros(self._n_joints), np.zeros((MOST_AHEAD, self._n_joints))
        n_ahead = min([MOST_AHEAD, *(len(ahead.get(name, ())) for name in targets)])
        for name, q in targets.items():
            target[self._parts[name]] = q
            if n_ahead:
                follow[:n_ahead, self._parts[name]] = ahead[name][:n_ahead]
        answer = self._request(
            COMMAND,
            targets,
            t_target_ns=t_target_ns,
            period_ns=period_ns,
            n_ahead=n_ahead,
            target=target,
            ahead=follow,
        )
        self.held_ns = int(answer["held_ns"])
        sent = {name: np.array(answer["sent"][self._parts[name]]) for name in targets}
        return sent, int(answer["flags"]), tuple(filter(None, text_of(answer["text"]).split("\n")))

    def hold(self, arms: Sequence[str]) -> None:
        self._request(HOLD, arms)

    def stop(self, arms: Sequence[str]) -> None:
        self._request(STOP, arms)

    def _request(self, what: int, arms: Mapping[str, Any] | Sequence[str], **values: Any) -> np.void:
        memory = self.memory
        if memory is None or self._child is None:
            raise DeviceError(self.down or f"{self.robot} is closed: open and enable it before commanding it")
        if self.down:
            raise DeviceError(self.down)
        bits = sum(1 << i for i, name in enumerate(self.drivers) if name in arms)
        with self._asking:
            self._number += 1
            memory.request.write(number=self._number, what=what, arms=bits, **values)
            memory.ask()
            answer = memory.await_answer(self._number, ANSWER_S)
        if answer is None:
            raise DeviceError(self.down or "the control process does not answer: is the computer overloaded?")
        if int(answer["how"]) == DEVICE_ERROR:
            refused = CommandRefused if what == COMMAND else DeviceError
            raise refused(text_of(answer["text"]))
        if int(answer["how"]) == VALUE_ERROR:
            raise ValueError(text_of(answer["text"]))
        return answer

    # the process

    def _start(self) -> None:
        """DeviceError: it does not start."""
        sizes = [len(driver.joints) for driver in self.drivers.values()]
        memory = Memory(sizes)
        try:
            memory.beat(Words.MAIN)
            self._child = Child(self._setup(memory), memory.descriptors)
        except DeviceError:
            memory.close()
            raise
        self.memory, self.down = memory, ""
        self._closing.clear()
        self._watcher = threading.Thread(target=self._watch, name="control watcher", daemon=True)
        self._watcher.start()

    def _setup(self, memory: Memory) -> dict[str, Any]:
        return {
            "robot": self.robot,
            "config": {k: v for k, v in self._config.items() if k in ("arms", "safety")},
            "sizes": memory.sizes,
            "descriptors": memory.descriptors,
            "rate_hz": self.rate_hz,
            "park_after_s": self.park_after_s,
            "rests": self._rests,
            "began": self._began,
            "lay": sorted(self._lay),
            "path": sys.path,
        }

    def _end(self) -> None:
        """End the process; its arms are closed."""
        child, self._child = self._child, None
        self._closing.set()
        if child is not None:
            child.end()
        if self._watcher is not None and self._watcher is not threading.current_thread():
            self._watcher.join()
        self._watcher = None
        if self.memory is not None:
            self.memory.close()
        self._enabled.clear()
        self._began.clear()
        self._lay.clear()
        self.down = ""

    def _watch(self) -> None:
        """Show that the main process lives, and replace a control process that does not."""
        memory = self.memory
        assert memory is not None
        said = ["" for _ in memory.arms]
        while not self._closing.wait(BEAT_S):
            memory.beat(Words.MAIN)
            for i, (name, arm) in enumerate(zip(self.drivers, memory.arms, strict=True)):
                kind = _without_numbers(note := arm.note())
                if kind != said[i]:
                    said[i] = kind
                    say(f"{name}: {note}" if note else f"{name} is as usual again")
            child = self._child
            if child is None:
                continue
            if child.process.poll() is None and memory.silent_s(Words.CONTROL) > HUNG_S and child.is_set_up:
                child.process.kill()  # it hangs
            if child.process.poll() is not None and not self._closing.is_set():
                self._replace(child, memory)

    def _replace(self, dead: Child, memory: Memory) -> None:
        number = -(dead.process.returncode or 0)
        how = signal.Signals(number).name if number > 0 else f"exit {dead.process.returncode}"
        self.down = (
            f"the control process of {self.robot} ended ({how}): its motors hold the arm where it is; "
            "another one is being started"
        )
        say(self.down)
        dead.end()
        for attempt in range(1_000_000):
            if self._closing.wait(PAUSES_S[min(attempt, len(PAUSES_S) - 1)]):
                return
            try:
                child = Child(self._setup(memory), memory.descriptors)
                try:
                    for arm in self._open:
                        child.ask("open", ORDER_S, arm=arm, adopt=arm in self._enabled)
                except DeviceError:
                    child.process.kill()  # closed in order it would move the arms that it has
                    child.end()
                    raise
            except DeviceError as error:
                self.down = (
                    f"the control process of {self.robot} ended ({how}), and the next one fails: {error}"
                )
                continue
            self._child, self.down = child, ""
            say("another control process holds the arms")
            return

    def _await_another(self) -> None:
        """Give a control process that has just died the time to be replaced."""
        deadline = time.monotonic() + START_S
        while self._child is not None and time.monotonic() < deadline:
            if not self.down and self._child.process.poll() is None:
                return
            time.sleep(0.02)


def _without_numbers(text: str) -> str:
    """What stays the same in `text` while the number in it changes."""
    return "".join(c for c in text if not c.isdigit())
