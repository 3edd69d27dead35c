"""Hand a dataset out as a LeRobot v3.0 folder, real times and requested actions riding along."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Annotated, Literal

import tyro

from ..bar import progress
from ..errors import UsageError
from ..parsing import Output, episode_list, unset

EXAMPLE = "ulna data export runs/x/data --out runs/x/lerobot --units degrees --calibration follower.json"


@dataclass
class Args:
    data: tyro.conf.Positional[str]
    """Folder of the dataset."""
    out: Annotated[str, tyro.conf.arg(metavar="FOLDER")]
    """Folder of the new LeRobot dataset."""
    episodes: Annotated[str, unset("all that were not cut off")] = ""
    """Only these, like 0-9,12."""
    crf: int = 12
    """Quality of the videos, 0 to 51; less is better and larger. 12 keeps more than 40 dB."""
    lossless: bool = False
    """Keep every pixel; the videos become several times larger."""
    gaps: Literal["refuse", "drop", "repeat"] = "refuse"
    """At control ticks for which a stream has nothing recent: refuse, drop the tick, or repeat what there
    was."""
    units: Annotated[str, unset("radians, under our names", "UNITS")] = ""
    """Say it in LeRobot's words: joints are `shoulder_pan.pos`, in degrees or percent, of an SO-101 or Koch
    of the calibrated range, grippers in percent. Single elements after it, with commas: degrees,gripper=m."""
    calibration: Annotated[str, unset("none", "FILE")] = ""
    """With --units: LeRobot's calibration of the arm that is to move, which percent need; of several arms
    left=FILE,right=FILE."""
    arm: Annotated[Literal["", "so101", "koch"], unset("as the dataset says", "so101|koch")] = ""
    """Whose calibration it is."""
    json: bool = False
    """Print one JSON object."""


def run(args: Args, out: Output) -> int:
    from ....datasets.formats.lerobot_export import export_lerobot
    from ....datasets.store import EpisodeStore
    from ...lerobot_words import in_lerobots
    from ...statement import calibration_files

    if not 0 <= args.crf <= 51:
        raise ValueError(f"--crf must lie in 0..51, not {args.crf}")
    store, words = EpisodeStore.open(args.data), None
    if args.units:
        files = calibration_files(args.calibration)
        words = in_lerobots(store.features, args.units, files, args.arm, store.robot)
    elif args.calibration or args.arm:
        raise UsageError("--calibration and --arm say what --units are of: say --units degrees or percent")
    selection = episode_list(args.episodes) if args.episodes else None
    with progress("exporting") as bar:
        result = export_lerobot(
            store,
            args.out,
            selection,
            args.crf,
            args.lossless,
            args.gaps,
            bar.update,
            words,
        )
    lines = [f"{result.out}: {result.episodes} episodes, {result.frames} frames, LeRobot v3.0"]
    if result.dropped:
        lines.append(f"{result.dropped} ticks were dropped for want of a recent frame")
    if result.repeated:
        lines.append(f"{result.repeated} ticks repeat what is older than it should be")
    lines += [f"left out: {what}" for what in result.left_out]
    out.answer({**asdict(result), "out": str(result.out)}, "\n".join(lines))
    return 0
