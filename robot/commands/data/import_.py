"""Bring a dataset of another project in: LeRobot (v2.0, v2.1, v3.0), Diffusion Policy or UMI zarr, robomimic
or ALOHA HDF5."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from ..bar import progress
from ..errors import UsageError
from ..parsing import Output, episode_list, pairs, unset, words

EXAMPLE = "ulna data import path/to/lerobot_folder --out runs/x/data --image-size 96"


@dataclass
class Args:
    source: tyro.conf.Positional[str]
    """A LeRobot folder (the one with meta/ in it), a replay buffer (.zarr or .zarr.zip), a robomimic file, or
    a folder of ALOHA episodes."""
    out: Annotated[str, tyro.conf.arg(metavar="FOLDER")]
    """Folder of the new dataset."""
    format: Literal["auto", "lerobot", "diffusion-policy", "robomimic", "aloha"] = "auto"
    """What the source is; found out by default."""
    fps: Annotated[float | None, unset("what the source says", "HZ")] = None
    """Rows a second, where the source does not say."""
    task: Annotated[str, unset("the source's")] = ""
    """The instruction in words, where the source has none."""
    map: Annotated[str, unset("none", "NAME=FEATURE,…")] = ""
    """Call an array otherwise, with commas: agentview_image=observation.images.front. Several with one
    feature are joined in the order of their names: action.*=action."""
    drop: Annotated[str, unset("none", "NAME,…")] = ""
    """Leave arrays or features out, with commas: observation.images.*."""
    image_order: Literal["auto", "rgb", "bgr"] = "auto"
    """Order of the colours in the source's pictures: bgr where red and blue are swapped. auto: rgb, but for
    the encoded pictures of ALOHA's tools (not LeRobot)."""
    image_size: Annotated[int, unset("as recorded")] = 0
    """Resize images to this many pixels square, by area; 0 keeps them as recorded."""
    episodes: Annotated[str, unset("all")] = ""
    """Only these, like 0-9,12 (LeRobot)."""
    skip_broken: bool = False
    """Leave out episodes that cannot be imported, by name, and bring in the rest (LeRobot)."""
    units: Annotated[str, unset("as the source says", "UNITS")] = ""
    """What joints are in: radians, degrees or percent, which become radians; single elements after it, with
    commas: degrees,gripper=percent. A robot takes no policy of data that do not say."""
    calibration: Annotated[str, unset("none", "FILE")] = ""
    """LeRobot's calibration of the arm that was moved, which percent need; of several arms
    left=FILE,right=FILE."""
    arm: Annotated[Literal["", "so101", "koch"], unset("as the source says", "so101|koch")] = ""
    """Whose calibration it is."""
    names: Annotated[str, unset("the source's", "NAMES")] = ""
    """Names of the elements of state and action, with commas, where the source has none."""
    first_of_chunk: bool = False
    """Of actions that are chunks (rows of 30 × 7) take each row's first."""
    json: bool = False
    """Print one JSON object."""


def prepare(argv: list[str]) -> tuple[list[str], dict[str, Any]]:
    """`--map` and `--drop` may be said several times."""
    rest: list[str] = []
    said: dict[str, list[str]] = {}
    words_left = iter(argv)
    for word in words_left:
        option, equals, value = word.partition("=")
        if option not in ("--map", "--drop"):
            rest.append(word)
            continue
        value = value if equals else next(words_left, "")
        if not value or value.startswith("--"):
            raise UsageError(f"{option} needs a value: see `ulna data import --help`")
        said.setdefault(option.removeprefix("--"), []).append(value)
    return rest, {option: ",".join(values) for option, values in said.items()}


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
        store = _import(kind, args, size, bar.update, statement.restate)
    d = describe(store)
    out.answer(d, text_of(d))
    return 0


def _import(kind: str, args: Args, size: tuple[int, int] | None, report: Any, restate: Any) -> Any:
    from ....datasets.formats.naming import Naming

    naming = Naming(pairs("--map", args.map, "NAME=FEATURE"), words(args.drop))
    if kind == "lerobot":
        from ....datasets.formats.lerobot import import_lerobot

        if args.image_order != "auto":
            raise UsageError("--image-order is for sources other than LeRobot, whose pictures are RGB")
        if args.fps or args.task:
            raise UsageError("--fps and --task are for sources other than LeRobot, which says these itself")
        selection = episode_list(args.episodes) if args.episodes else None
        return import_lerobot(
            args.source, args.out, size, selection, report, naming, args.skip_broken, restate
        )
    if args.skip_broken:
        raise UsageError("--skip-broken is for LeRobot sources")
    if args.episodes:
        raise UsageError("--episodes is for LeRobot sources: part others with `ulna data split` afterwards")
    from ....datasets.formats.aloha import import_aloha
    from ....datasets.formats.replay_buffer import import_replay_buffer
    from ....datasets.formats.robomimic import import_robomimic

    readers = {"diffusion-policy": import_replay_buffer, "robomimic": import_robomimic, "aloha": import_aloha}
    order = args.image_order
    return readers[kind](args.source, args.out, args.fps, args.task, naming, size, report, order, restate)


def _kind(source: Path) -> str:
    from ....datasets.formats.aloha import aloha_files, is_aloha
    from ....datasets.formats.foreign_files import require_content
    from ....datasets.formats.replay_buffer import is_replay_buffer
    from ....datasets.formats.robomimic import is_robomimic

    if (source / "meta" / "info.json").exists():
        return "lerobot"
    if is_replay_buffer(source):
        return "diffusion-policy"
    if source.is_file() or (source.is_dir() and aloha_files(source)):
        for path in [source] if source.is_file() else aloha_files(source):
            require_content(path)
        if is_robomimic(source):
            return "robomimic"
        if is_aloha(source):
            return "aloha"
        raise ValueError(
            f"{source} is no dataset that is known here: it has neither data/demo_0 (robomimic) nor "
            "observations/qpos (ALOHA) nor meta/episode_ends (Diffusion Policy)"
        )
    return "lerobot"  # which says best what a folder lacks
