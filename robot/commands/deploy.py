"""Run a served policy on a robot. A person may take over from it, and directors may stand above it. A real
robot's policy must have passed a validation."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from .choices import EXPERT, directors, robots, takers, tasks_or_words
from .errors import UsageError
from .execution import split_all_fields, strategies, strategies_help, strategy_of
from .parsing import Output, episode_list, page_options, size_of, unset, words

if TYPE_CHECKING:
    from ..takes import TakeResult

EXAMPLE = (
    "ulna deploy --robot sim:so101 --server ws://127.0.0.1:8000 --task lift --episodes 5\n"
    "  ulna deploy --robot my-so101.toml --takeover leader --out runs/r/corrected"
)
CHOICES = {
    "robot": robots,
    "task": tasks_or_words,
    "strategy": strategies,
    "takeover": takers,
    "director": directors,
}
prepare, more_help = split_all_fields, strategies_help


@dataclass
class Args:
    robot: str = "sim:so101"
    """A simulated one, or a robot's TOML file."""
    server: str = "ws://127.0.0.1:8000"
    """Where `ulna serve` runs."""
    timeout: float = 10.0
    """Seconds after which an answer that is not there whole ends the run, and the arm is put down."""
    task: Annotated[str, unset("lift in simulation, none else")] = ""
    """Of a simulated robot: its scene. Of a real one: the instruction, in words."""
    episodes: int = 1
    """How many."""
    seed: int = 2000
    """Of the first scene, where one can be set up by its seed."""
    max_seconds: Annotated[float, unset("the scene's own, 60 s where it has none")] = 0.0
    """Longest episode, seconds."""
    strategy: Annotated[str, unset("receding; ensemble, each tick waiting, where the recipe says so")] = ""
    """How chunks are asked for and executed. All but receding ask while the last chunk is executed; a
    simulated robot without --realtime is charged the time that the policy took."""
    realtime: bool = False
    """Run a simulated robot no faster than a real one."""
    reset_seconds: float = 5.0
    """Where no twin resets the scene and no keyboard is there: time between episodes to put things back."""
    out: Annotated[str, unset("nothing is recorded", "FOLDER")] = ""
    """Record what happens into this dataset."""
    image_size: Annotated[str, unset("as the cameras give them", "WxH")] = ""
    """Of the pictures recorded; the policy is shown what the cameras give."""
    takeover: Annotated[str, unset("nobody")] = ""
    """By what a person may take the arm from the policy, and give it back: the key t, Y of a gamepad, a
    button of the page, or the dead man's switch of a hand. s and f say how the attempt went. expert: in
    simulation, a script that helps where nothing gets on."""
    phone: bool = False
    """With --takeover browser: let a phone in the same network open the page (HTTPS, by a QR code)."""
    prompt: Annotated[str, unset("none", "FOLDER")] = ""
    """A dataset, for a policy that is shown demonstrations of its task when it acts: it is shown those of the
    same task, in words."""
    prompt_episodes: Annotated[str, unset("those of the task")] = ""
    """Which of its episodes instead, like 3,7, whatever their task."""
    director: Annotated[str, unset("none")] = ""
    """Who stands above the policy, with commas: ours, an installed package's, or package.module:Name. Their
    fields are options: --director NAME --NAME.field value."""
    unvalidated: Annotated[str, unset("a real robot's policy must have passed", "REASON")] = ""
    """Let a policy without a passing validation move a real robot; the reason is stored with the
    recording."""
    json: bool = False
    """Print one JSON object."""
    strategy_fields: Annotated[dict[str, str], tyro.conf.Suppress] = field(default_factory=dict)
    hook_fields: Annotated[dict[str, str], tyro.conf.Suppress] = field(default_factory=dict)


def run(args: Args, out: Output) -> int:
    from ..record import dropped_message

    result = deployed(args)
    episodes, ms = result["episodes"], result["latency_ms"]
    successes = sum(e["success"] is True for e in episodes)
    taken = f", {result['takeovers']} takeovers" if args.takeover else ""
    out.answer(
        result,
        f"{successes} of {len(episodes)} succeeded, latency p50 {ms['p50']:.1f} ms, p99 {ms['p99']:.1f} ms"
        + taken
        + starved_message(result)
        + dropped_message(result["dropped"]),
    )
    return 0


def deployed(args: Args) -> dict[str, Any]:
    """What `robot.deploy.deploy` returns of a run by these options. UsageError, ValueError or DeviceError in
    one sentence."""
    from ...datasets.features import ENVIRONMENT
    from ...drivers.config import require_known
    from ...policies.serving.client import PolicyClient
    from ..config import load_robot
    from ..deploy import deploy
    from ..directors.all import directors_named
    from ..directors.backup import Backup
    from ..gate import require_validated
    from ..keys import HELP, TAKE_HELP, Keys
    from ..onlooker import onlooker_for
    from ..people import agent_for, people
    from ..record import open_store, recorder_for
    from ..rehearsal import ExpertPerson
    from ..takeover import Person

    options = page_options(args.takeover, args.phone)
    if args.takeover:
        require_known("way to take over:", args.takeover, (*people(), EXPERT))
    if args.takeover == "leader" and not os.isatty(0):
        raise UsageError(
            "a leader has no button to take over with: start this in a terminal, whose key t does, or a "
            "pedal that types it"
        )
    size = size_of(args.image_size)
    if size and not args.out:
        raise UsageError("--image-size says how large pictures are recorded: give --out, too")
    above = directors_named(words(args.director), args.hook_fields)
    if args.episodes < 1:
        raise ValueError(f"--episodes must be at least 1, not {args.episodes}")
    if not 0 < args.timeout <= 3600:
        raise ValueError(f"--timeout must lie in 0..3600 s, not {args.timeout:g}")
    strategy = strategy_of(args.strategy, args.strategy_fields)
    with PolicyClient(args.server) as client:
        cameras = client.metadata.cameras
        tracking = ENVIRONMENT in client.metadata.features
        metadata = client.metadata

    n_reported = 0

    def report(takes: Sequence[TakeResult]) -> None:
        nonlocal n_reported
        if len(takes) > n_reported:
            e = takes[-1]
            outcome = {True: "success", False: "no success", None: "done"}[e.success]
            line = f"episode {e.seed}: {outcome} after {e.ticks} ticks, {e.late} late"
            print(line + (f"; {e.safety}" if e.safety else ""), file=sys.stderr)
        n_reported = len(takes)

    by_person = args.takeover not in ("", EXPERT)
    realtime = args.realtime or by_person  # nobody can drive a robot that outruns time
    rig = load_robot(args.robot, args.task or "lift", cameras, realtime=realtime, trackers=tracking)
    meta = {}
    if rig.scene is None:
        meta = require_validated(rig.config, args.robot, metadata, args.unvalidated)
        said = meta.get("validation", {}).get("says")
        print(f"validated: {said}" if said else f"not validated: {args.unvalidated}", file=sys.stderr)
        for backup in (d for d in above if isinstance(d, Backup)):
            meta["backup"] = backup.admit(rig.config, args.robot, args.unvalidated)
    with contextlib.ExitStack() as stack:
        person = onlooker = None
        if args.takeover == EXPERT:
            if rig.sim is None:
                raise ValueError(
                    f"--takeover {EXPERT} knows simulated scenes only: use {', '.join(people())}"
                )
            person = ExpertPerson(rig.sim, rig.robot.control_hz)
        elif args.takeover:  # before the robot: it gets no torque where there is nobody to take it over
            agent = stack.enter_context(agent_for(args.takeover, args.robot, rig, **options))
            assert isinstance(agent, Person)
            person, onlooker = agent, stack.enter_context(onlooker_for(agent, rig))
        stack.enter_context(rig)
        instruction = args.task if rig.sim is None else ""
        recorder = None
        if args.out:
            recorder = stack.enter_context(
                recorder_for(rig, open_store(rig, args.out, instruction, image_size=size))
            )
        # the keyboard as teleoperator reads the terminal itself, episode keys and all
        keys = None if args.takeover == "keyboard" else stack.enter_context(Keys())
        if keys is not None and keys.is_terminal and rig.realtime:
            print(HELP, file=sys.stderr)
        if by_person:
            print(TAKE_HELP, file=sys.stderr)
        return deploy(
            rig,
            args.server,
            args.episodes,
            args.seed,
            instruction or None,
            args.max_seconds or None,
            recorder,
            report,
            keys=keys,
            reset_seconds=args.reset_seconds,
            strategy=strategy,
            person=person,
            directors=above,
            meta=meta,
            onlooker=onlooker,
            timeout_s=args.timeout,
            prompt=args.prompt,
            prompt_episodes=episode_list(args.prompt_episodes) if args.prompt_episodes else None,
            checkpoint=(metadata.checkpoint or None) if rig.scene is None else None,
        )


def starved_message(result: Mapping[str, Any]) -> str:
    """What to say of ticks without an action; "" where there were none."""
    if not result["starved"]:
        return ""
    too_late = f", {result['too_late']} answers came too late" if result["too_late"] else ""
    return f"\n{result['starved']} ticks had no action and repeated the last one{too_late}"
