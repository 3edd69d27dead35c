"""Bring a dataset or a checkpoint from the Hugging Face hub (or the server that HF_ENDPOINT names) into the
cache on this computer, where other commands find it as hub:OWNER/NAME; and copy it to --out, if you name one.
Where the hub cannot be reached, what the cache has is used."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from .errors import UsageError
from .parsing import Output, unset

if TYPE_CHECKING:
    from ...datasets.hub import Kind

EXAMPLE = "ulna pull ann/lift --out runs/lift/data\n  ulna pull ann/lift-flow --revision v1"
DATA_FILES = ("meta/**", "data/**", "videos/**", "images/**", "README.md", "*.jpg")


@dataclass
class Args:
    repo: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="OWNER/NAME")]
    """The repository on the hub."""
    out: Annotated[str, unset("none; it stays in the cache", "FOLDER")] = ""
    """The new folder: of a checkpoint as it was trained, of a dataset as LeRobot has it, which `ulna train`
    reads as it is and `ulna data import` brings in."""
    revision: Annotated[str, unset("the newest", "NAME")] = ""
    """A branch, tag or commit."""
    kind: Annotated[Literal["", "dataset", "checkpoint"], unset("as the hub says", "dataset|checkpoint")] = ""
    """Which of the two, where the hub has both by this name."""
    json: bool = False
    """Print one JSON object."""


def run(args: Args, out: Output) -> int:
    from ...datasets.hub import DATASET, MODEL, Hub
    from ...datasets.layout import require_new
    from ...policies.lerobot.folder import CHECKPOINT_FILES

    if args.out:
        require_new(Path(args.out))
    hub = Hub()
    kinds: list[Kind] = (
        [DATASET if args.kind == "dataset" else MODEL] if args.kind else hub.kinds(args.repo, args.revision)
    )
    if len(kinds) > 1:
        raise UsageError(f"the hub has a dataset and a model {args.repo}: say --kind dataset or checkpoint")
    kind = kinds[0]
    patterns = DATA_FILES if kind == DATASET else CHECKPOINT_FILES
    snapshot = hub.pull(args.repo, kind, args.revision, patterns, verify_all=True)
    what, use = _whole(snapshot, args.out, args.revision)
    path = snapshot.path
    if args.out:
        path = Path(args.out)
        _copy(snapshot.path, path)
    answer = {
        "path": str(path),
        "kind": "dataset" if kind == DATASET else "checkpoint",
        "commit": snapshot.commit,
        "offline": snapshot.offline,
    }
    source = " of the cache, as the hub cannot be reached" if snapshot.offline else ""
    out.answer(answer, f"{path}: {what}, commit {snapshot.commit[:8]}{source}\n{use}")
    return 0


def _whole(snapshot: Any, copy: str, revision: str) -> tuple[str, str]:
    """(What it is, what can be done with it), after looking that all of it is there."""
    from ...datasets.formats.lerobot_store import LeRobotStore
    from ...datasets.hub import DATASET, HubError
    from ...policies.checkpoint import verify_checkpoint

    name = copy or f"hub:{snapshot.repo}" + (f"@{revision}" if revision else "")
    if snapshot.kind == DATASET:
        store = LeRobotStore(snapshot.path)
        store.require_files()
        return f"{len(store)} episodes", f"train on it: ulna train flow --data {name} --out runs/new"
    if (snapshot.path / "hash.json").is_file():
        content_hash = verify_checkpoint(snapshot.path)
        return f"checkpoint {content_hash[:8]}", f"serve it: ulna serve {name}"
    if (snapshot.path / "config.json").is_file():
        theirs = copy or (snapshot.path if revision else snapshot.repo)  # the name is the newest's
        return "policy of LeRobot", f"serve it: ulna serve lerobot:{theirs}"
    raise HubError(f"{snapshot.repo} holds no checkpoint of ours, nor a policy of LeRobot")


def _copy(source: Path, out: Path) -> None:
    from ...datasets.making import making

    with making(out) as work:
        shutil.copytree(source, work, dirs_exist_ok=True)  # links of the cache become files
