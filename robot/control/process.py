"""The process that moves the arms of one real robot: `python -m ulna.robot.control.process DESCRIPTORS`,
started by `robot.control.host`.

stdin: lines of JSON `{"number", "order", …}`, first `setup`; each is answered on stdout by `{"to": number,
…}` when it is done, with `error` when it failed. Commands come through `memory.Memory`, not here. The end of
stdin means that the main process is gone, in whatever way: the arms hold, are put down after `park_after`,
and this process ends. Ctrl-C and a closed terminal do not reach it; SIGTERM puts the arms down."""

from __future__ import annotations

import contextlib
import gc
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from typing import Any

import numpy as np

from ...drivers.arm import Arm, ArmState, Calibrated, DeviceError, Joints, falls, joints_of
from ..config import make_devices
from ..safety.arms import bodies_of, stages_of
from ..safety.filter import Filter
from ..safety.limits import Safety
from .guard import Guard
from .limb import Limb
from .memory import COMMAND, DEVICE_ERROR, HOLD, SENT, STOP, VALUE_ERROR, Memory, Words, utf8
from .parking import Phase
from .plan import Plan
from .ticker import Ticker

STOPPED_S = 60.0  # the arms hold for so long after the main process was stopped (Ctrl-Z)
PATIENCE_S = 5.0  # for an arm that takes no commands, before it is not put down
LONGEST_PARK_S = 60.0  # after which an arm that drops out again and again is not tried once more
PRIORITY = 10  # of SCHED_FIFO
SWITCH_S = 0.0002  # between threads of this process


class Control:
    """The arms of one robot, and what may be ordered of them."""

    def __init__(self, setup: Mapping[str, Any], memory: Memory) -> None:
        drivers: dict[str, Arm] = make_devices(setup["robot"], setup["config"], "arms")
        self.memory = memory
        limbs, at = [], 0
        for i, (name, driver) in enumerate(drivers.items()):
            n = len(driver.joints)
            memory.arms[i].mend()
            plan = Plan(np.zeros(n), 0, round(driver.watchdog_s * 1e9))
            limbs.append(Limb(name, driver, memory.arms[i], slice(at, at + n), plan))
            at += n
        memory.answer.mend()
        self.limbs = {limb.name: limb for limb in limbs}
        self.ticker = Ticker(limbs, memory, 1 / setup["rate_hz"], self._filter)
        self._robot, self._config = setup["robot"], setup["config"]
        self._shapes = Future[tuple[dict[str, Any], tuple[str, ...]]]()
        self._texts: tuple[str, ...] = ()  # to be said once
        self._told = False
        threading.Thread(target=self._learn_shapes, daemon=True).start()  # takes a second
        self.rests = {n: np.array(q) for n, q in setup["rests"].items()}
        self.began = {n: np.array(q) for n, q in setup["began"].items()}  # where each got its torque first
        self._lay = set(setup["lay"])  # those of them that had none before
        self.hurry = threading.Event()
        self._parking = threading.Lock()
        self._ours: set[str] = set()  # arms that got their torque from us
        self._kept: set[str] = set()  # arms that could not be put down
        self._stopped: set[str] = set()  # by a person, who then wants them to stay

    def _learn_shapes(self) -> None:
        joints = joints_of({name: limb.driver for name, limb in self.limbs.items()})
        try:
            safety = Safety.of(self._config, joints, self._where)
            bodies, texts = bodies_of(self._config, joints, safety, self._where)
            stages_of(self._config, joints, safety, bodies, self._where)  # or what is wrong with them
            self._shapes.set_result((bodies, texts))
        except Exception as error:  # noqa: BLE001  raised where the shapes are asked for
            self._shapes.set_exception(error)

    @property
    def _where(self) -> str:
        return f"{self._robot}, [safety]"

    def _filter(self, joints: Joints, free: bool) -> Filter:
        safety = Safety.of(self._config, joints, self._where)
        if free:
            return Filter(joints, safety, None)
        bodies = self._shapes.result()[0]
        return Filter(joints, safety, bodies, stages_of(self._config, joints, safety, bodies, self._where))

    # orders

    def open(self, arm: str, adopt: bool = False) -> dict[str, Any]:
        """adopt: the arm was enabled by a control process that died; where it still has its torque it is
        taken over as it stands."""
        limb = self.limbs[arm]
        limb.driver.open()
        newest = limb.memory.sample()
        limb.offset = 0 if newest is None else newest.seq + 1
        limb.is_open, limb.last_seq = True, -1
        self.ticker.forget_filter()
        if adopt and limb.driver.health().state is ArmState.STOPPED:
            self._ours.add(arm)
            self.enable(arm)
        self.ticker.publish(limb)
        self.ticker.publish_health(limb)
        joints, driver = limb.driver.joints, limb.driver
        return {
            "joints": {
                "names": joints.names,
                "units": joints.units,
                **{f: getattr(joints, f).tolist() for f in ("lower", "upper", "max_velocity", "max_effort")},
            },
            "calibration": driver.calibration if isinstance(driver, Calibrated) else None,
        }

    def enable(self, arm: str) -> dict[str, Any]:
        limb = self.limbs[arm]
        if limb.is_open and arm not in self.began:
            self.began[arm] = limb.driver.read().data
            if limb.driver.health().state is ArmState.TORQUE_OFF:
                self._lay.add(arm)
        shapes_texts = self._shapes.result()[1]  # a wrong table [safety] is told before there is torque
        if not self._told:
            self._told, self._texts = True, shapes_texts
        self.ticker.drop(limb)
        limb.driver.enable()
        limb.first, limb.guard, self.ticker.failure = True, Guard(limb.driver.joints.names), ""
        self._stopped.discard(arm)
        self._kept.discard(arm)
        self._ours.add(arm)
        self.ticker.start_at(limb)
        self.ticker.publish_health(limb)
        texts, self._texts = self._texts, ()
        return {"began": self.began[arm].tolist(), "lay": arm in self._lay, "texts": texts}

    def begin(self) -> dict[str, Any]:
        self.ticker.begin()
        return {}

    def disable(self, arm: str) -> dict[str, Any]:
        limb = self.limbs[arm]
        self.ticker.drop(limb)
        try:
            limb.driver.disable()
            self._ours.discard(arm)
        finally:
            self.ticker.publish_health(limb)
        return {}

    def close(self, arm: str) -> dict[str, Any]:
        """As its driver closes it: the torque goes. That of an arm that could not be put down stays, until
        somebody cuts its power."""
        limb = self.limbs[arm]
        self.ticker.leave(limb)
        try:
            if arm not in self._kept:
                limb.driver.close()
        finally:
            self.ticker.publish_health(limb)
        return {}

    def park(self) -> dict[str, Any]:
        """Put down every arm that has torque and would fall without, or has a rest pose, then switch its
        torque off. `notes`: a sentence for every arm that could not be put down; it keeps its torque."""
        with self._parking:
            waiting = [limb for limb in self.limbs.values() if self._must_be_parked(limb)]
            notes, until = list[str](), time.monotonic() + LONGEST_PARK_S
            missing = dict[str, float]()  # since when each takes no commands
            while waiting:
                ready = {limb.name: limb for limb in waiting if self._is_ready(limb)}
                now = time.monotonic()
                missing = {n: missing.get(n, now) for limb in waiting if (n := limb.name) not in ready}
                phases = self.ticker.park(list(ready), self.hurry.is_set)  # until each lies or drops out
                for name, phase in phases.items():
                    waiting.remove(ready[name])
                    self._finish(ready[name], phase, notes)
                for limb in list(waiting):
                    gone_s = now - missing.get(limb.name, now)
                    if gone_s > PATIENCE_S or now > until or limb.name in self._stopped:
                        waiting.remove(limb)
                        self._keep(limb, f"{limb.name} could not be put down: {self._why(limb)}", notes)
                if waiting:
                    time.sleep(0.05)  # a line that is silent for a moment is no reason to leave an arm up
            self.hurry.clear()
            self._ours.clear()
            return {"notes": notes}

    def _must_be_parked(self, limb: Limb) -> bool:
        driver = limb.driver
        if not limb.is_open or limb.name not in self._ours or not (falls(driver) or limb.name in self.rests):
            return False
        return driver.health().state is not ArmState.TORQUE_OFF

    def _is_ready(self, limb: Limb) -> bool:
        """Whether it takes commands now; where a fault that is over had stopped it, it is enabled again."""
        driver = limb.driver
        if driver.health().state is ArmState.STOPPED and limb.name not in self._stopped:
            with contextlib.suppress(DeviceError):
                self.enable(limb.name)
        if driver.health().state is not ArmState.ACTIVE:
            return False
        if not limb.active:
            if limb.refusal(limb.position(), time.monotonic_ns() + self.ticker.period_ns):
                return False
            self.ticker.start_at(limb)
        limb.rest = self.rests.get(limb.name, self.began.get(limb.name))
        limb.lay_there = limb.name not in self.rests and limb.name in self._lay
        return True

    def _finish(self, limb: Limb, phase: Phase, notes: list[str]) -> None:
        if phase is not Phase.DOWN:
            text = (
                f"{limb.name} could not be put down, its motors still hold something up: its torque stays "
                "on; support it, then cut its power"
            )
            self._keep(limb, text, notes)
            return
        self._let_go(limb, notes)
        self.ticker.parked(limb.name)
        self.ticker.publish_health(limb)

    def _keep(self, limb: Limb, text: str, notes: list[str]) -> None:
        """It keeps its torque where it is, also when this process ends."""
        self._kept.add(limb.name)
        notes.append(text)
        self.ticker.parked(limb.name)
        self.ticker.publish_health(limb)

    def _why(self, limb: Limb) -> str:
        health = limb.driver.health()
        if health.state is ArmState.RECONNECTING:
            return f"{health.message}; its motors hold it where it is: support it, then cut its power"
        why = health.message or f"it is {health.state.value}"
        return f"{why}; what has torque keeps it: support the arm, then cut its power"

    def _let_go(self, limb: Limb, notes: list[str]) -> None:
        self.ticker.drop(limb)
        try:
            if falls(limb.driver):
                limb.driver.disable()
        except DeviceError as error:
            notes.append(str(error))

    def state(self) -> dict[str, Any]:
        """What a benchmark asks: how late the ticks were, ns."""
        return {"lateness_ns": list(self.ticker.lateness_ns)}

    # requests

    def serve(self) -> None:
        """Answer requests, for ever."""
        while True:
            request = self.memory.await_request()
            number = int(request["number"])
            names = [n for i, n in enumerate(self.limbs) if int(request["arms"]) >> i & 1]
            try:
                self._serve(request, number, names)
            except DeviceError as error:
                self.memory.reply(number, how=DEVICE_ERROR, text=utf8(str(error)))
            except ValueError as error:
                self.memory.reply(number, how=VALUE_ERROR, text=utf8(str(error)))
            except Exception as error:  # noqa: BLE001  the thread must outlive it
                self.memory.reply(number, how=DEVICE_ERROR, text=utf8(f"{type(error).__name__}: {error}"))

    def _serve(self, request: np.void, number: int, names: list[str]) -> None:
        what = int(request["what"])
        if what == HOLD:
            self.ticker.hold(names)
            self.memory.reply(number, how=SENT, flags=0, held_ns=0)
        elif what == STOP:
            self._stopped |= set(names)
            self.ticker.stop_arms(names)
            self.memory.reply(number, how=SENT, flags=0, held_ns=0)
        elif what == COMMAND:
            parts = {n: self.limbs[n].joints for n in names}
            ahead = request["ahead"][: int(request["n_ahead"])]
            sent, flags, reasons, held_ns = self.ticker.command(
                {n: request["target"][part] for n, part in parts.items()},
                int(request["t_target_ns"]),
                {n: ahead[:, part] for n, part in parts.items()},
                int(request["period_ns"]),
            )
            together = np.zeros(len(request["target"]))
            for n, part in parts.items():
                together[part] = sent[n]
            text = utf8("\n".join(reasons))
            self.memory.reply(number, how=SENT, flags=flags, held_ns=held_ns, sent=together, text=text)


def main() -> None:
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    answers = os.dup(1)
    os.dup2(2, 1)  # a driver may print
    first = json.loads(sys.stdin.readline())
    sys.path += [path for path in first["path"] if path not in sys.path]
    sys.setswitchinterval(SWITCH_S)
    hurry()

    def answer(number: int, **values: Any) -> None:
        with contextlib.suppress(OSError):  # nobody listens any more
            os.write(answers, json.dumps({"to": number, **values}).encode() + b"\n")

    try:
        control = Control(first, Memory(first["sizes"], first["descriptors"]))
    except Exception as error:  # noqa: BLE001  the main process says it
        answer(first["number"], error=str(error))
        os._exit(1)
    signal.signal(signal.SIGTERM, lambda *_: threading.Thread(target=_end, args=(control,)).start())
    threading.Thread(target=_tick, args=(control,), name="ticks", daemon=True).start()
    threading.Thread(target=control.serve, name="requests", daemon=True).start()
    gc.collect()
    gc.freeze()  # what lives for ever is not looked through again
    control.memory.beat(Words.CONTROL)
    answer(first["number"])
    threading.Thread(target=_watch, args=(control,), daemon=True).start()
    for line in sys.stdin:
        _obey(control, json.loads(line), answer)
    control.ticker.hold(list(control.limbs))
    time.sleep(first["park_after_s"] if _has_torque(control) else 0.0)
    _end(control)


def _obey(control: Control, order: dict[str, Any], answer: Callable[..., None]) -> None:
    number, what = order.pop("number"), order.pop("order")
    if what == "hurry":
        control.hurry.set()
        answer(number)
        return

    def do() -> None:
        try:
            answer(number, **getattr(control, what)(**order))
        except (DeviceError, ValueError, OSError, RuntimeError) as error:
            answer(number, error=str(error))

    if what == "park":  # which another order may hurry
        threading.Thread(target=do, daemon=True).start()
    else:
        do()


def _watch(control: Control) -> None:
    """Put the arms down where the main process has stood still for long."""
    while True:
        time.sleep(1.0)
        if control.memory.silent_s(Words.MAIN) > STOPPED_S and _has_torque(control):
            control.park()


def _has_torque(control: Control) -> bool:
    return any(limb.is_open and limb.active for limb in control.limbs.values())


def _end(control: Control) -> None:
    """Put the arms down and end. One that keeps its torque is not closed, which would take it."""
    control.park()
    for limb in control.limbs.values():
        if limb.is_open and (not falls(limb.driver) or limb.driver.health().state is ArmState.TORQUE_OFF):
            with contextlib.suppress(DeviceError):
                limb.driver.close()
    os._exit(0)


def hurry() -> None:
    """Run before other work, where that is permitted."""
    with contextlib.suppress(OSError):
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(PRIORITY))


def _tick(control: Control) -> None:
    """For ever; where there is a choice, this thread alone on one processor: what a driver starts is free."""
    processors = sorted(os.sched_getaffinity(0))
    if len(processors) > 2:
        with contextlib.suppress(OSError):
            os.sched_setaffinity(0, processors[-1:])
    control.ticker.run()


if __name__ == "__main__":
    main()
