"""State what the numbers of a dataset, or of a checkpoint that was trained on one, are called and measured
in. In another unit than SI a dataset is written anew, converted, to --out."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from ..parsing import Output, unset, words

EXAMPLE = "ulna data units runs/x/data --units degrees --out runs/x/radians"


@dataclass
class Args:
    data: tyro.conf.Positional[str]
    """Folder of the dataset, or of the checkpoint; lerobot:FOLDER of a policy that LeRobot trained."""
    units: Annotated[str, unset("as it says", "UNITS")] = ""
    """What joints are in: radians, degrees or percent; single elements after it, with commas:
    degrees,gripper=percent."""
    names: Annotated[str, unset("as they are", "NAMES")] = ""
    """Names of the elements of state and action, with commas."""
    calibration: Annotated[str, unset("none", "FILE")] = ""
    """LeRobot's calibration of the arm that was moved, which percent need; of several arms
    left=FILE,right=FILE."""
    arm: Annotated[Literal["", "so101", "koch"], unset("as the dataset says", "so101|koch")] = ""
    """Whose calibration it is."""
    out: Annotated[str, unset("none: only what is stated changes", "FOLDER")] = ""
    """Folder of a new, converted dataset; DATA stays as it is."""
    undo: bool = False
    """Take back what was stated last."""
    json: bool = False
    """Print one JSON object."""


def run(args: Args, out: Output) -> int:
    from ....datasets.features import ACTION, STATE, features_to_json
    from ....datasets.restate import restated_copy, state_features, unstate_features
    from ....datasets.store import EpisodeStore
    from ....policies.lerobot.folder import is_lerobot
    from ...statement import Statement, calibration_files

    if args.undo == bool(args.units or args.names):
        raise ValueError("say --units or --names, or --undo what was stated last")
    statement = Statement(args.units, tuple(words(args.names)), calibration_files(args.calibration), args.arm)
    folder, lerobot = Path(args.data), is_lerobot(args.data)
    is_checkpoint = lerobot or (folder / "hash.json").is_file()
    if args.out and (is_checkpoint or args.undo):
        raise ValueError("--out is for a dataset that is converted, not for a checkpoint, nor with --undo")
    if lerobot:
        features = _lerobot(args.data, None if args.undo else statement)
    elif is_checkpoint:
        features = _checkpoint(folder, None if args.undo else statement)
    elif args.undo:
        features = unstate_features(EpisodeStore.open(folder))
    else:
        store = EpisodeStore.open(folder)
        restated = statement.applied(store.features, store.robot)
        if args.out:
            features = restated_copy(store, restated, args.out).features
        elif restated.converts:
            raise ValueError(
                f"numbers in {args.units} are converted into a new dataset, and {folder} stays as it is: "
                "name it with --out"
            )
        else:
            features = state_features(store, restated)
    lines = []
    for key, f in features.items():
        if key in (STATE, ACTION):
            units = ", ".join(u or "an unknown unit" for u in dict.fromkeys(f.units)) or "no stated unit"
            lines.append(f"{key}: {', '.join(f.names) or 'without names'}; in {units}")
    out.answer({"features": features_to_json(features)}, "\n".join(lines))
    return 0


def _checkpoint(folder: Path, statement: Any) -> Any:
    """Its weights know the numbers that they were trained with, whatever these are called."""
    from ....policies.checkpoint import restate_checkpoint, undo_restated

    if statement is None:
        return undo_restated(folder)
    return restate_checkpoint(folder, lambda f, robot: statement.applied(f, robot, convert=False))


def _lerobot(source: str, statement: Any) -> Any:
    """Its numbers are converted whenever it decides."""
    from ....policies.lerobot.folder import checkpoint_folder, state_units, undo_stated

    folder = checkpoint_folder(source)
    return undo_stated(folder) if statement is None else state_units(folder, statement.applied)
