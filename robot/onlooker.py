"""Shows the robot to its operator: on the page by which they move it, or, where a simulated robot is moved by
something else, on a page that is only looked at."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from ..datasets.features import IMAGES, STATE
from ..datasets.flags import INVALID
from ..drivers.arm import DeviceError
from ..drivers.screen import Description, Phase, Screen
from ..drivers.teleoperator import AGAIN, DROP_LAST, FAILURE, FINISH, SUCCESS
from .agent import Agent
from .config import Rig
from .people import screen_of

if TYPE_CHECKING:
    from ..sim.overview import Overview

OVERVIEW = "overview"  # of a simulated scene; it belongs to no robot and is not recorded
OUTCOMES = {SUCCESS: "Worked", FAILURE: "Failed", AGAIN: "Again", FINISH: "Finish"}
BEGIN = {FINISH: "Begin"}
UNDO = {AGAIN: "Last one again", DROP_LAST: "Drop last one"}


class Onlooker:
    """A subscriber of the episode loop that shows what it is told on `screen`, and `look`s between episodes.
    It hands over references; nothing waits for whoever looks."""

    def __init__(self, screen: Screen, rig: Rig, overview: Overview | None = None) -> None:
        self.screen, self._robot, self._overview = screen, rig.robot, overview
        self._has_complained = False
        joints = [arm.joints for arm in self._robot.arms.values()]
        feature = self._robot.observation_features[STATE]
        screen.describe(
            Description(
                self._robot.name,
                feature.names,
                feature.units,
                tuple(float(v) for j in joints for v in j.lower),
                tuple(float(v) for j in joints for v in j.upper),
                (*((OVERVIEW,) if overview is not None else ()), *self._robot.cameras),
                0 if overview is None else 180,
            )
        )

    def say(self, phase: Phase, note: str, buttons: Mapping[str, str] | None = None) -> None:
        """As `Screen.say`."""
        self.screen.say(phase, note, buttons)

    def look(self) -> None:
        """Show the robot as it is now, where a page is open. What a device fails at meanwhile is left to the
        next episode to find: the page shows how old a picture is."""
        if self.screen.is_watched():
            with contextlib.suppress(DeviceError, TimeoutError):
                seen = self._robot.observe()
                self.tick(seen.values, seen.times_ns, seen.flags)

    def start(self, meta: Mapping[str, Any]) -> None:
        pass

    def tick(
        self,
        values: Mapping[str, np.ndarray],
        times_ns: Mapping[str, tuple[int, int]],
        flags: Mapping[str, int],
    ) -> None:
        now = self._robot.clock.now_ns()
        pictures = {
            camera: (values[key], times_ns[key][0], now - times_ns[key][0])
            for camera, key in ((camera, IMAGES + camera) for camera in self._robot.cameras)
        }
        if self._overview is not None:
            if self.screen.is_watched(OVERVIEW):
                self._overview.offer()
                self._complain(self._overview.failure)
            if (newest := self._overview.newest) is not None:
                pictures[OVERVIEW] = *newest, time.monotonic_ns() - newest[1]
        self.screen.show(values[STATE], flags.get(STATE, 0) & INVALID == 0, pictures)

    def _complain(self, failure: str) -> None:
        if failure and not self._has_complained:
            self._has_complained = True
            print(f"the overview on the page is not drawn any more: {failure}", file=sys.stderr)

    def end(self, meta: Mapping[str, Any]) -> None:
        if self.screen.phase == "recording":
            self.say("busy", "The episode is being saved.")

    def interrupt(self, reason: str) -> None:
        self.say("busy", f"The robot holds: {reason}.")


@contextlib.contextmanager
def onlooker_for(agent: Agent, rig: Rig) -> Iterator[Onlooker | None]:
    """What shows `rig` to the operator of `agent` for the length of a `with` block: on the agent's own
    screen, or for a simulated robot, which else nobody sees, on a page of its own, whose address goes to
    standard error. None: a real robot, which is before the operator's eyes. A simulated robot is shown by an
    overview of its scene, beside its cameras."""
    with contextlib.ExitStack() as stack:
        screen, overview = screen_of(agent), None
        if rig.sim is not None:
            from ..sim.overview import Overview

            if screen is None:
                from ..drivers.hands.browser import BrowserTeleoperator, Config

                page = BrowserTeleoperator(rig.robot.name, Config(), drives=False)
                page.open()
                stack.callback(page.close)
                screen = page.screen
            overview = stack.enter_context(Overview(rig.sim))
        yield None if screen is None else Onlooker(screen, rig, overview)
