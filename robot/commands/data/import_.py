"""Bring a dataset of another project in: LeRobot (v2.1, v3.0), Diffusion Policy or UMI zarr, robomimic or
ALOHA HDF5."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from ..errors import UsageError
from ..parsing import Output, episode_list, pairs, progress, unset, words

EXAMPLE = "ulna data import path/to/lerobot_folder --out runs/x/data --image-size 96"


@dataclass
class Args:
    source: tyro.conf.Positional[str]
    """A LeRobot folder (the one with meta/ in it), a replay buffer (.zarr or .zarr.zip), a robomimic file, or
    a folder of ALOHA episodes."""
    out: str
    """Folder of the new dataset."""
    format: Literal["auto", "lerobot", "diffusion-policy", "robomimic", "aloha"] = "auto"
    """What the source is; found out by default."""
    fps: Annotated[float | None, unset("what the source says")] = None
    """Rows a second, where the source does not say."""
    task: Annotated[str, unset("the source's")] = ""
    """The instruction in words, where the source has none."""
    map: Annotated[str, unset("none", "ARRAY=FEATURE")] = ""
    """Call an array otherwise, with commas: agentview_image=observation.images.front."""
    image_size: Annotated[int, unset("as recorded")] = 0
    """Resize images to this many pixels square, by area; 0 keeps them as recorded."""
    episodes: Annotated[str, unset("all")] = ""
    """Only these, like 0-9,12 (LeRobot)."""
    units: Annotated[str, unset("as the source says", "UNITS")] = ""
    """What joints are in: radians, degrees or percent, which become radians; single elements after it, with
    commas: degrees,gripper=percent. A robot takes no policy of data that do not say."""
    calibration: Annotated[str, unset("none", "FILE")] = ""
    """LeRobot's calibration of the arm that was moved, which percent need; of several arms
    left=FILE,right=FILE."""
    arm: Annotated[Literal["", "so101", "koch"], unset("as the source says")] = ""
    """Whose calibration it is."""
    names: Annotated[str, unset("the source's", "NAMES")] = ""
    """Names of the elements of state and action, with commas, where the source has none."""
    first_of_chunk: bool = False
    """Of actions that are chunks (rows of 30 × 7) take each row's first."""
    json: bool = False
    """Print one JSON object."""


def run(args: Args, out: Output) -> int:
    from ....datasets.info import describe
    from ...statement import Statement, calibration_files
    from .info import text_of

    if args.image_size and not 16 <= args.image_size <= 4096:
        raise ValueError(f"--image-size must lie in 16..4096, not {args.image_size}")
    size = (args.image_size, args.image_size) if args.image_size else None
    statement = Statement(
        args.units,
        tuple(words(args.names)),
        calibration_files(args.calibration),
        args.arm,
        args.first_of_chunk,
    )
    kind = _kind(Path(args.source)) if args.format == "auto" else args.format
    with progress("importing") as bar:
        bar_task = bar.add_task("", total=None, note="")

        def report(count: int, total: int) -> None:
            bar.update(bar_task, completed=count, total=total)

        store = _import(kind, args, size, report, statement.restate)
    d = describe(store)
    out.answer(d, text_of(d))
    return 0


def _import(kind: str, args: Args, size: tuple[int, int] | None, report: Any, restate: Any) -> Any:
    if kind == "lerobot":
        from ....datasets.formats.lerobot import import_lerobot

        if args.fps or args.task or args.map:
            raise UsageError(
                "--fps, --task and --map are for sources other than LeRobot, which says these itself"
            )
        selection = episode_list(args.episodes) if args.episodes else None
        return import_lerobot(args.source, args.out, size, selection, report, restate)
    if args.episodes:
        raise UsageError("--episodes is for LeRobot sources: part others with `ulna data split` afterwards")
    from ....datasets.formats.hdf5 import import_aloha, import_robomimic
    from ....datasets.formats.replay_buffer import import_replay_buffer

    readers = {"diffusion-policy": import_replay_buffer, "robomimic": import_robomimic, "aloha": import_aloha}
    return readers[kind](
        args.source,
        args.out,
        args.fps,
        args.task,
        pairs("--map", args.map, "array=feature"),
        size,
        report,
        restate,
    )


def _kind(source: Path) -> str:
    from ....datasets.formats.hdf5 import is_aloha, is_robomimic
    from ....datasets.formats.replay_buffer import is_replay_buffer

    if is_replay_buffer(source):
        return "diffusion-policy"
    if source.is_file() or any(source.glob("*.hdf5")) or any(source.glob("*.h5")):
        if is_robomimic(source):
            return "robomimic"
        if is_aloha(source):
            return "aloha"
        raise ValueError(
            f"{source} is no dataset that is known here: it has neither data/demo_0 (robomimic) nor "
            "observations/qpos (ALOHA) nor meta/episode_ends (Diffusion Policy)"
        )
    return "lerobot"  # which says best what a folder lacks
