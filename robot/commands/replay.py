"""Send a recorded episode's actions once more, to a robot, and report how well the joints followed. The arm
goes slowly to where the episode began first."""

from __future__ import annotations

import contextlib
import sys
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from .choices import robots, tasks
from .parsing import Output, unset

if TYPE_CHECKING:
    from ..replay import Replay

EXAMPLE = "ulna replay runs/x/data --episode 3 --robot my-so101.toml --speed 0.5"
CHOICES = {"robot": robots, "task": tasks}


@dataclass
class Args:
    data: tyro.conf.Positional[str]
    """Folder of the dataset."""
    episode: int = 0
    """Which one."""
    robot: str = "sim:so101"
    """A simulated one, or a robot's TOML file; its joints, units and rate must be the recording's."""
    task: Annotated[str, unset("the recording's")] = ""
    """Of a simulated robot: its scene, which is set up by the episode's seed."""
    speed: float = 1.0
    """Times as fast as it was recorded, 0.05 to 4; limits hold at any speed."""
    out: Annotated[str, unset("nothing is recorded", "FOLDER")] = ""
    """Record what happens into this dataset."""
    plot: Annotated[str, unset("none", "FILE.html")] = ""
    """Write a page with what was sent and where each joint was."""
    realtime: bool = False
    """Run a simulated robot no faster than a real one."""
    json: bool = False
    """Print one JSON object."""


def run(args: Args, out: Output) -> int:
    from ...datasets.store import EpisodeStore
    from ..config import load_robot, read_config
    from ..keys import HELP, Keys
    from ..record import dropped_message, open_store, recorder_for
    from ..replay import actions_for, replay

    store = EpisodeStore.open(args.data)
    task = args.task
    if "arms" not in read_config(args.robot):
        task = task or str(store.provenance.get("task") or "lift")
    rig = load_robot(args.robot, task, realtime=args.realtime, trackers=bool(args.out))
    actions_for(rig, store, args.episode, args.speed)  # before the arm gets torque
    with rig, contextlib.ExitStack() as stack:
        recorder = None
        if args.out:
            recorder = stack.enter_context(recorder_for(rig, open_store(rig, args.out, task)))
        keys = stack.enter_context(Keys())
        if keys.is_terminal and rig.realtime:
            print(HELP, file=sys.stderr)
        result = replay(rig, store, args.episode, args.speed, recorder, keys)
        dropped = recorder.dropped if recorder is not None else {}
    answer = result.to_json()
    if args.plot:
        answer["plot"] = str(_write_plot(Path(args.plot), result))
    out.answer(answer, _text(result) + dropped_message(dropped))
    return 0


def _text(result: Replay) -> str:
    outcome = {True: ", a success", False: ", no success", None: ""}[result.success]
    ran = f"{result.ticks} ticks, {result.late} late{outcome}"
    lines = [
        f"episode {result.episode} of {result.data} on {result.robot}: {ran}",
        "  joint            off by: rms     most   when recorded   changed by limits",
    ]
    for t in result.tracking:
        before = "" if t.recorded_rms is None else f"{t.recorded_rms:.4f}"
        lines.append(f"  {t.joint:20} {t.rms:8.4f} {t.most:8.4f} {before:>15} {t.limited:19.4f} {t.unit}")
    return "\n".join(lines)


def _write_plot(path: Path, result: Replay) -> Path:
    from ..report.plots import Line, chart

    charts = []
    seconds = [i / result.control_hz for i in range(len(result.sent))]
    for j, t in enumerate(result.tracking):
        sent = Line("sent", seconds, result.sent[:, j].tolist(), "a")
        reached = Line("reached, one period later", seconds, result.reached[:, j].tolist(), "b")
        charts.append(f"<h2>{escape(t.joint)}</h2>" + chart(t.joint, [sent, reached], "seconds", t.unit))
    path.write_text(_PAGE.format(title=f"Replay of episode {result.episode}", charts="\n".join(charts)))
    return path


_PAGE = """<!doctype html><meta charset="utf-8"><title>{title}</title>
<style>
body {{ font: 15px system-ui; max-width: 680px; margin: 2em auto }} svg {{ width: 100%; font-size: 12px }}
.grid {{ stroke: #ddd }} .curve {{ fill: none; stroke-width: 1.5 }}
.curve.a {{ stroke: #2463eb }} .curve.b {{ stroke: #e0632d }}
.key {{ margin-right: 2em }} .key.a {{ color: #2463eb }} .key.b {{ color: #e0632d }}
</style>
<h1>{title}</h1>
{charts}
"""
