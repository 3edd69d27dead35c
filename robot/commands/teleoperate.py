"""Move a robot by hand: a leader arm, a gamepad, a SpaceMouse, the keyboard or a browser page. Nothing is
recorded."""

from __future__ import annotations

import contextlib
import sys
from dataclasses import dataclass
from typing import Annotated

from .choices import persons, robots, tasks
from .parsing import Output, page_options, unset, words

EXAMPLE = "ulna teleoperate --robot my-so101.toml --agent leader"
CHOICES = {"robot": robots, "agent": persons, "task": tasks}


@dataclass
class Args:
    robot: str = "sim:so101"
    """A simulated one, or a robot's TOML file."""
    agent: str = "browser"
    """By what a person moves it."""
    task: str = "lift"
    """Of a simulated robot: its scene."""
    cameras: Annotated[str, unset("an overview of a simulated robot, all of a real one's", "NAMES")] = ""
    """Cameras to open, with commas; the page shows them."""
    seconds: Annotated[float, unset("until q or Ctrl-C")] = 0.0
    """Stop after that long."""
    phone: bool = False
    """With --agent browser: let a phone in the same network open the page (HTTPS, by a QR code)."""
    json: bool = False
    """Print one JSON object at the end."""


def run(args: Args, out: Output) -> int:
    from ...drivers.config import require_known
    from ...drivers.teleoperator import QUIT
    from ..agent import Buttons
    from ..config import load_robot
    from ..keys import Keys
    from ..loop import run_episode
    from ..motion import go_to
    from ..onlooker import onlooker_for
    from ..people import agent_for, people, screen_of
    from ..scene import Demonstration

    require_known("agent", args.agent, people())
    options = page_options(args.agent, args.phone)
    hours = 24
    rig = load_robot(args.robot, args.task, words(args.cameras), realtime=True)
    with (
        # before the robot: it gets no torque where there is nobody to move it
        agent_for(args.agent, args.robot, rig, **options) as agent,
        onlooker_for(agent, rig) as onlooker,
        rig,
        contextlib.ExitStack() as stack,
    ):
        # the keyboard as teleoperator reads the terminal itself
        keys = None if args.agent == "keyboard" else stack.enter_context(Keys())
        if rig.home is not None:
            if onlooker is not None:
                onlooker.say("busy", "The arm goes to its home pose.")
            go_to(rig.robot, rig.home, look=lambda: None if onlooker is None else onlooker.look())
        if rig.scene is not None:
            rig.scene.reset(0)
        if onlooker is not None:
            by = "" if screen_of(agent) is not None else f"Moved by {args.agent}. "
            onlooker.say("free", f"{by}Nothing is recorded.")
        print("moving; q or Ctrl-C stops", file=sys.stderr)
        buttons = agent if isinstance(agent, Buttons) else None

        def stop() -> bool:
            if keys is not None and keys.pressed() == QUIT:
                return True
            return buttons is not None and QUIT in buttons.events()

        limit = args.seconds or hours * 3600
        result = run_episode(
            rig.robot,
            agent,
            [
                *([] if onlooker is None else [onlooker]),
                *([] if rig.remote is None else [Demonstration(rig.remote)]),
            ],
            task="",
            seed=0,
            max_ticks=round(limit * rig.robot.control_hz),
            stop=stop,
        )
        health = {name: arm.health() for name, arm in rig.robot.arms.items()}
        rig.robot.hold()
    answer = {
        "ticks": result.ticks,
        "late": result.late,
        "retries": {n: h.retries for n, h in health.items()},
    }
    text = f"{result.ticks} ticks, {result.late} late"
    out.answer(answer, text + (f"; {result.safety}" if result.safety else ""))
    return 0
