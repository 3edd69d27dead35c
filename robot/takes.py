"""Episodes one after another, under somebody's eyes: what keys and a teleoperator's buttons do during one,
and between two."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..datasets.edit import delete
from ..datasets.recording.recorder import Recorder
from ..drivers.arm import DeviceError
from ..drivers.camera import StaleFrame
from ..drivers.teleoperator import AGAIN, DROP_LAST, FAILURE, FINISH, QUIT, SUCCESS
from .agent import Agent, Buttons
from .config import Rig
from .keys import Keys
from .loop import Subscriber, run_episode
from .lost import AT_ONCE, is_loss, wait_until_back
from .motion import go_to
from .own_rate import OwnRate, own_rate

POLL_S = 0.05
RESET_S = 5.0
LONGEST_S = 60.0  # of an episode where no scene says


@dataclass(frozen=True)
class TakeResult:
    """An episode that counts. ticks: all of them; late: those that were late. success: None where nobody can
    tell. dropped: rows of each recorded stream that were lost."""

    seed: int
    ticks: int
    late: int
    success: bool | None
    dropped: dict[str, int] = field(default_factory=dict)


def take_episodes(
    rig: Rig,
    agent: Agent,
    episodes: int,
    seed: int,
    recorder: Recorder | None,
    keys: Keys | None,
    *,
    task: str,
    max_seconds: float | None,
    reset_seconds: float,
    meta: Mapping[str, Any],
    others: Sequence[Subscriber] = (),
    only_successes: bool = False,
    report: Callable[[Sequence[TakeResult]], None] = lambda results: None,
) -> list[TakeResult]:
    """Until `episodes` count, or the operator quits. Each begins at the home pose, if there is one, in the
    scene of its seed; where there is no scene people put things back before all but the first. One that a
    lost device ends is kept as interrupted, but does not count; the next one begins when the device is back.

    task: the instruction; "" for the scene's own. max_seconds: None for the scene's own, 60 without one.
    meta: stored with each. report: called with those that count, whenever they change. RuntimeError: with
    `only_successes`, too few succeed."""
    robot, scene = rig.robot, rig.scene
    operator, results, takes, last_kept = Operator(keys, agent), list[TakeResult](), 0, False
    places = list[int]()  # of the episodes that count, in the store
    losses = at_once = 0
    recovering = False  # after a loss the leader may be far from where the arm fell to: a person mends that
    own_rows = None if recorder is None else OwnRate(recorder, own_rate(robot))
    next_seed = seed

    def undo(word: str) -> None:
        """Between episodes: drop the last one, or have it done again."""
        nonlocal next_seed, last_kept
        if (word == DROP_LAST or last_kept) and results:
            if recorder is not None:
                delete(recorder.store, [places.pop()])
            last = results.pop()
            if word == AGAIN:
                next_seed = last.seed
            last_kept = False
            report(results)

    while len(results) < episodes:
        if next_seed - seed - losses >= 10 * episodes + 100:
            raise RuntimeError(
                f"only {len(results)} of {next_seed - seed - losses} episodes succeeded: "
                "the agent does not solve the task"
            )
        take = Take(own_rows, operator, only_successes)
        try:
            if rig.home is not None:
                go_to(robot, rig.home)
            if scene is not None:
                scene.reset(next_seed)
            prepared = next_seed
            if not put_back(operator, reset_seconds if scene is None and takes else None, undo):
                break
            if scene is not None and next_seed != prepared:
                continue  # the last one again: its scene must be set up
            longest = max_seconds or (scene.max_seconds if scene is not None else LONGEST_S)
            result = run_episode(
                robot,
                agent,
                [take, *others],
                task=task or (scene.instruction if scene is not None else ""),
                seed=next_seed,
                max_ticks=round(longest * robot.control_hz),
                success=scene.success if scene is not None else None,
                meta=meta,
                stop=take.stop,
            )
        except (DeviceError, StaleFrame) as error:
            at_once = 0 if take.ticks else at_once + 1
            if at_once >= AT_ONCE or not (recovering or is_loss(error, robot)):
                raise
            recovering = True
            if rig.remote is not None:
                rig.remote.ask("GET", "state")  # a twin that is gone itself does not come back
            kept = ": what was recorded of it is kept, as interrupted" if take.ticks and recorder else ""
            print(f"the episode broke off{kept} ({error})", file=sys.stderr)
            if take.ticks:
                takes, last_kept = takes + 1, False
                next_seed, losses = next_seed + 1, losses + 1
            asks = operator.at_terminal
            if not wait_until_back(robot, operator.between, asks, reset_seconds, error):
                break
            continue
        takes, at_once, recovering = takes + 1, 0, False
        if take.drop_last and results:
            if recorder is not None:
                delete(recorder.store, [places.pop()])
            results.pop()
        last_kept = take.kept
        if take.kept:
            dropped = recorder.dropped if recorder is not None else {}
            results.append(
                TakeResult(next_seed, result.ticks, result.late, take.success(result.success), dropped)
            )
            places.append(0 if recorder is None else len(recorder.store) - 1)
        if take.verdict != AGAIN:
            next_seed += 1
        report(results)
        if take.verdict == QUIT:
            break
    return results


class Operator:
    """The person who watches: keys on the terminal, and the agent's buttons on a gamepad or in the browser,
    which mean the same words."""

    def __init__(self, keys: Keys | None, agent: Agent) -> None:
        self.keys = keys
        self.at_terminal = keys is not None and keys.is_terminal
        self._buttons = agent if isinstance(agent, Buttons) else None

    def pressed(self) -> list[str]:
        """During an episode: the oldest key, and all buttons, that were pressed since the last call."""
        word = self.keys.pressed() if self.keys is not None else None
        events = () if self._buttons is None else self._buttons.events()
        return [*events, *([] if word is None else [word])]

    def between(self) -> list[str]:
        """Between episodes: everything that was pressed since the last call."""
        words = [] if self._buttons is None else list(self._buttons.idle())
        while self.keys is not None and (word := self.keys.pressed()) is not None:
            words.append(word)
        return words


class Take:
    """The subscriber to one episode. It passes the ticks on to the recorder, where there is one, and at the
    end keeps or discards the episode by the operator's word and `only_successes`."""

    def __init__(self, own_rows: OwnRate | None, operator: Operator, only_successes: bool) -> None:
        self.own_rows, self.operator, self.only_successes = own_rows, operator, only_successes
        self.recorder = None if own_rows is None else own_rows.recorder
        self.verdict: str | None = None  # the operator's last word on the episode
        self.drop_last = self.kept = False
        self.ticks = 0

    def start(self, meta: Mapping[str, Any]) -> None:
        if self.own_rows is not None:
            self.own_rows.recorder.start(meta)
            self.own_rows.start()

    def tick(
        self,
        values: Mapping[str, np.ndarray],
        times_ns: Mapping[str, tuple[int, int]],
        flags: Mapping[str, int],
    ) -> None:
        self.ticks += 1
        if self.own_rows is not None:
            self.own_rows.recorder.tick(values, times_ns, flags)
            self.own_rows.tick(values, times_ns, flags)

    def interrupt(self, reason: str) -> None:
        if self.recorder is not None:
            self.recorder.interrupt(reason)

    def stop(self) -> bool:
        for word in self.operator.pressed():
            if word == DROP_LAST:
                self.drop_last = True
            else:
                self.verdict = word
        return self.verdict is not None

    def success(self, measured: bool | None) -> bool | None:
        return {SUCCESS: True, FAILURE: False}.get(self.verdict or "", measured)

    def end(self, meta: Mapping[str, Any]) -> None:
        outcome = self.success(meta.get("success"))
        self.kept = self.verdict not in (AGAIN, QUIT) and bool(outcome or not self.only_successes)
        if self.recorder is None:
            return
        if self.kept:
            self.recorder.end({**meta, "success": outcome})
        else:
            self.recorder.discard()


def put_back(operator: Operator, seconds: float | None, undo: Callable[[str], None]) -> bool:
    """Wait while people set the scene up again: until "finish", where there is a terminal, or else for
    `seconds`. None: no wait. Returns False where the operator quits.

    Words pressed since the last episode concern that episode: DROP_LAST and AGAIN are passed to `undo`, and
    none is left over to end, or to mark, the next one. A "finish" from before people were asked does not
    begin the next one either."""
    until = time.monotonic() + (seconds or 0.0)
    asks = operator.at_terminal and seconds is not None
    begin = seconds is None
    words = operator.between()
    if asks:
        print(
            "put everything back, then press enter; x drops the last episode, r has it done again, q quits",
            file=sys.stderr,
        )
    while True:
        for word in words:
            if word in (DROP_LAST, AGAIN):
                undo(word)
        if QUIT in words:
            return False
        if begin or (not asks and time.monotonic() >= until):
            return True
        time.sleep(POLL_S)
        words = operator.between()
        begin = FINISH in words
