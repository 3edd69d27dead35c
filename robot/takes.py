"""Episodes one after another, under somebody's eyes: what keys and a teleoperator's buttons do during one,
and between two."""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from ..datasets.edit import delete
from ..datasets.features import ACTION
from ..datasets.recording.recorder import Recorder
from ..datasets.steps import Observed
from ..drivers.arm import DeviceError
from ..drivers.camera import StaleFrame
from ..drivers.screen import Phase
from ..drivers.teleoperator import AGAIN, DROP_LAST, FAILURE, FINISH, QUIT, SUCCESS, TAKE
from .agent import Agent, Buttons
from .config import Rig
from .keys import Keys
from .loop import Subscriber, run_episode
from .lost import AT_ONCE, is_loss, wait_until_back
from .motion import go_to
from .onlooker import BEGIN, OUTCOMES, UNDO, Onlooker
from .own_rate import OwnRate, own_rate
from .people import LeaderFar, screen_of
from .takeover import Takeover

if TYPE_CHECKING:
    from ..sim.scene import SimScene

POLL_S = 0.05
RESET_S = 5.0
LONGEST_S = 60.0  # of an episode where no scene says


@dataclass(frozen=True)
class TakeResult:
    """An episode that counts. ticks: all of them; late: those that were late. success: None where nobody can
    tell. task: the instruction. place: among the episodes of the recorder's store, where it is recorded.
    dropped: rows of each recorded stream that were lost. safety: what the filter did, in words."""

    seed: int
    ticks: int
    late: int
    success: bool | None
    task: str = ""
    place: int | None = None
    dropped: dict[str, int] = field(default_factory=dict)
    safety: str = ""


def take_episodes(
    rig: Rig,
    agent: Agent,
    episodes: int,
    seed: int,
    recorder: Recorder | None,
    keys: Keys | None,
    *,
    tasks: Sequence[str],
    max_seconds: float | None,
    reset_seconds: float,
    meta: Mapping[str, Any],
    others: Sequence[Subscriber] = (),
    only_successes: bool = False,
    report: Callable[[Sequence[TakeResult]], None] = lambda results: None,
    onlooker: Onlooker | None = None,
) -> list[TakeResult]:
    """Until `episodes` count, or the operator quits. Each begins at the home pose, if there is one, in the
    scene of its seed; where there is no scene people put things back before all but the first. Each waits
    for an operator at a page, who may have yet to open it, to begin. One that a lost device ends is kept as
    interrupted, but does not count; the next one begins when the device is back.

    tasks: instructions; of several the one of which there are the fewest episodes is next, in the recorder's
    store, too; none: the scene's own. max_seconds: None for the scene's own, 60 without one.
    meta: stored with each. report: called with those that count, whenever they change. RuntimeError: with
    `only_successes`, too few succeed. onlooker: shows the operator the robot and what goes on."""
    robot, scene = rig.robot, rig.scene
    operator, results, takes, last_kept = Operator(keys, agent, onlooker), list[TakeResult](), 0, False
    losses = at_once = 0
    recovering = False  # after a loss the leader may be far from where the arm fell to: a person mends that
    shown: Sequence[Subscriber] = () if onlooker is None else (onlooker,)
    own_rows = None if recorder is None else OwnRate(recorder, own_rate(robot))
    next_seed = seed
    had = Counter[str]() if recorder is None else Counter(e.task for e in recorder.store.episodes)

    def drop_last() -> TakeResult:
        last = results.pop()
        if recorder is not None and last.place is not None:
            delete(recorder.store, [last.place])
        return last

    def undo(word: str) -> bool:
        """Between episodes: drop the last one, or have it done again. Whether a scene must be set up for
        that."""
        nonlocal next_seed, last_kept
        if (word == DROP_LAST or last_kept) and results:
            last = drop_last()
            if word == AGAIN:
                next_seed = last.seed
            last_kept = False
            report(results)
        return scene is not None and next_seed != prepared

    def invite() -> None:
        named = f"{number()}, “{next_task()}”" if len(tasks) > 1 else number()
        operator.invite(named, by_people, UNDO if results else {}, wait_s)

    def number() -> str:
        return f"episode {len(results) + 1} of {episodes}"

    def next_task() -> str:
        return min(tasks, key=lambda t: had[t] + sum(r.task == t for r in results), default="")

    while len(results) < episodes:
        if next_seed - seed - losses >= 10 * episodes + 100:
            raise RuntimeError(
                f"only {len(results)} of {next_seed - seed - losses} episodes succeeded: "
                "the agent does not solve the task"
            )
        take = Take(own_rows, operator, only_successes, rig.sim)
        try:
            if rig.home is not None:
                operator.say("busy", "The arm goes to where episodes begin.")
                go_to(robot, rig.home, look=operator.look)
            if scene is not None:
                operator.say("busy", "The scene is being set up.")
                scene.reset(next_seed)
            prepared, by_people = next_seed, scene is None and takes > 0
            wait_s = reset_seconds if by_people or operator.is_at_page else None
            if not put_back(operator, wait_s, undo, invite):
                break
            if scene is not None and next_seed != prepared:
                continue  # the last one again: its scene must be set up
            longest = max_seconds or (scene.max_seconds if scene is not None else LONGEST_S)
            instruction = next_task() or (scene.instruction if scene is not None else "")
            what = f"{number().capitalize()}, at most {longest:g} s"
            operator.begin(f"{what}: {instruction}" if instruction else what)
            result = run_episode(
                robot,
                agent,
                [*shown, take, *others],
                task=instruction,
                seed=next_seed,
                max_ticks=round(longest * robot.control_hz),
                success=scene.success if scene is not None else None,
                meta=meta,
                stop=take.stop,
            )
        except (DeviceError, StaleFrame) as error:
            at_once = 0 if take.ticks else at_once + 1
            far = isinstance(error, LeaderFar)
            if far and not take.ticks and (at_once < AT_ONCE or operator.at_terminal):
                print(f"the episode does not begin: {error}", file=sys.stderr)
                operator.say("busy", f"The episode does not begin: {error}")
                wait_s = reset_seconds
                if not put_back(operator, wait_s, undo, invite):
                    break
                continue
            if at_once >= AT_ONCE or not (far or recovering or is_loss(error, robot, take.ticks > 0)):
                raise
            recovering = True
            if rig.remote is not None:
                rig.remote.ask("GET", "state")  # a twin that is gone itself does not come back
            kept = ": what was recorded of it is kept, as interrupted" if take.ticks and recorder else ""
            print(f"the episode broke off{kept} ({error})", file=sys.stderr)
            operator.say("busy", f"The episode broke off{kept}. It goes on when the device is back: {error}")
            if take.ticks:
                takes, last_kept = takes + 1, False
                next_seed, losses = next_seed + 1, losses + 1
            asks = operator.at_terminal
            if not wait_until_back(robot, operator.between, asks, reset_seconds, error):
                break
            continue
        takes, at_once, recovering = takes + 1, 0, False
        if take.drop_last and results:
            drop_last()
        last_kept = take.kept
        if take.kept:
            dropped = recorder.dropped if recorder is not None else {}
            results.append(
                TakeResult(
                    next_seed,
                    result.ticks,
                    result.late,
                    take.success(result.success),
                    instruction,
                    None if recorder is None else len(recorder.store) - 1,
                    dropped,
                    result.safety,
                )
            )
        if take.verdict != AGAIN:
            next_seed += 1
        report(results)
        if take.verdict == QUIT:
            break
    operator.say("busy", f"Done: {len(results)} of {episodes} episodes.")
    return results


class Operator:
    """The person who watches: keys on the terminal, and the agent's buttons on a gamepad or in the browser,
    which mean the same words. What goes on is said on their page, if they have one."""

    def __init__(self, keys: Keys | None, agent: Agent, onlooker: Onlooker | None = None) -> None:
        self.keys = keys
        self.at_terminal = keys is not None and keys.is_terminal
        self._buttons = agent if isinstance(agent, Buttons) else None
        self._onlooker = onlooker
        self.is_at_page = onlooker is not None and screen_of(agent) is not None
        self.is_asked = self.at_terminal or self.is_at_page
        self._shared = agent if isinstance(agent, Takeover) else None
        self._drives, self._note = False, ""

    def invite(self, number: str, by_people: bool, undo: Mapping[str, str], seconds: float | None) -> None:
        """Ask for the begin of the episode `number`; or say that it comes after `seconds`, where nobody can
        answer. by_people: whether the scene must be put back before. undo: buttons of the page beside
        BEGIN."""
        press = "Put everything back, then press" if by_people else "Press"
        if self.is_at_page:
            self.say("waiting", f"{press} and drag to begin {number}.", {**BEGIN, **undo})
        elif self.at_terminal:
            self.say("waiting", f"{press} enter at the terminal to begin {number}.")
        else:
            self.say("waiting", f"Put everything back: {number} begins after {seconds:g} s.")
        if self.at_terminal:
            page = ", or begin on the page" if self.is_at_page else ""
            keys = "x drops the last episode, r has it done again, " if undo else ""
            print(f"{press.lower()} enter to begin {number}{page}; {keys}q quits", file=sys.stderr)

    def say(self, phase: Phase, note: str, buttons: Mapping[str, str] | None = None) -> None:
        if self._onlooker is not None:
            self._onlooker.say(phase, note, buttons)

    def begin(self, note: str) -> None:
        """An episode begins, of which `note` says what it is."""
        self._drives, self._note = False, note
        self._show()

    def _show(self) -> None:
        buttons = OUTCOMES
        if self._shared is not None:
            buttons = {TAKE: "Give back" if self._drives else "Take over", **OUTCOMES}
        self.say("recording", f"You have the arm. {self._note}" if self._drives else self._note, buttons)

    def look(self) -> None:
        """Outside of an episode: show the robot as it is."""
        if self._onlooker is not None:
            self._onlooker.look()

    def pressed(self) -> list[str]:
        """During an episode: the oldest key, and all buttons, that were pressed since the last call. TAKE is
        not among them: it changes who drives, where a person can."""
        word = self.keys.pressed() if self.keys is not None else None
        events = () if self._buttons is None else self._buttons.events()
        words = [*events, *([] if word is None else [word])]
        if self._shared is not None:
            for _ in range(words.count(TAKE)):
                self._shared.toggle()
            if self._shared.intervening != self._drives:
                self._drives = self._shared.intervening
                print("you have the arm" if self._drives else "the policy has the arm", file=sys.stderr)
                self._show()
        return [w for w in words if w != TAKE]

    def between(self) -> list[str]:
        """Between episodes: everything that was pressed since the last call."""
        words = [] if self._buttons is None else list(self._buttons.idle())
        while self.keys is not None and (word := self.keys.pressed()) is not None:
            words.append(word)
        return words


class Take:
    """The subscriber to one episode. It passes the ticks on to the recorder, where there is one, and at the
    end keeps or discards the episode by the operator's word and `only_successes`. sim: where it knows which
    steps of its task are done, they become a label of the episode."""

    def __init__(
        self, own_rows: OwnRate | None, operator: Operator, only_successes: bool, sim: SimScene | None = None
    ) -> None:
        self.own_rows, self.operator, self.only_successes = own_rows, operator, only_successes
        self.sim, self.steps = sim, Observed()
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
        if self.sim is not None:
            self.steps.see(self.sim.steps(), times_ns[ACTION][0])
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
            steps = self.steps.label()
            self.recorder.end({**meta, "success": outcome, **({"steps": steps} if steps else {})})
        else:
            self.recorder.discard()


def put_back(
    operator: Operator,
    seconds: float | None,
    undo: Callable[[str], bool],
    invite: Callable[[], None] = lambda: None,
) -> bool:
    """Wait until the operator begins, and people have set the scene up again: until "finish", where there is
    a terminal or a page of theirs, or else for `seconds`. None: no wait. Returns False where the operator
    quits.

    Words pressed since the last episode concern that episode: DROP_LAST and AGAIN are passed to `undo`, and
    none is left over to end, or to mark, the next one. A "finish" from before people were asked does not
    begin the next one either. undo: whether the wait is over, since the scene must be set up. invite: asks
    the operator; called again when an `undo` has changed what comes next."""
    until = time.monotonic() + (seconds or 0.0)
    begin = seconds is None
    words = operator.between()
    if not begin:
        invite()
    while True:
        undone = [undo(word) for word in words if word in (DROP_LAST, AGAIN)]
        if QUIT in words:
            return False
        if begin or any(undone) or (not operator.is_asked and time.monotonic() >= until):
            return True
        if undone:
            invite()
        operator.look()
        time.sleep(POLL_S)
        words = operator.between()
        begin = FINISH in words
