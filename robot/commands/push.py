"""Give a dataset or a checkpoint to the Hugging Face hub (or the server that HF_ENDPOINT names), in one
commit and in private. A dataset goes as LeRobot v3.0, with what `ulna data check` finds and a picture in its
card; a checkpoint as safetensors and JSON, with what its own reports show in its card."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from .bar import progress
from .errors import UsageError
from .parsing import Output, unset, words

if TYPE_CHECKING:
    from ...datasets.checks.findings import Finding

EXAMPLE = (
    "ulna push runs/x/data ann/lift --license cc-by-4.0\n"
    "  ulna push runs/x/flow ann/lift-flow --public --tag v1"
)


@dataclass
class Args:
    source: tyro.conf.Positional[str]
    """Folder of a dataset, of a LeRobot dataset, or of a checkpoint."""
    repo: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="OWNER/NAME")]
    """The repository on the hub; made where there is none."""
    public: bool = False
    """Let everybody see it."""
    license: Annotated[str, unset("none stated", "WORD")] = ""
    """As the hub writes it: apache-2.0, cc-by-4.0, ..."""
    tag: Annotated[str, unset("none", "NAME")] = ""
    """Tag the commit, too. A dataset has the tag that LeRobot looks for, v3.0, in any case."""
    gaps: Literal["refuse", "drop", "repeat"] = "refuse"
    """Of a dataset, as in `ulna data export`."""
    despite_findings: bool = False
    """Push a dataset in which the check finds something severe; the card says what."""
    json: bool = False
    """Print one JSON object."""


@dataclass(frozen=True)
class Parcel:
    """What is pushed: files by their path, the card, what the repository may lose, and the tags."""

    kind: Any
    files: Mapping[str, Path | bytes]
    owned: Any
    tags: Sequence[str]
    findings: Sequence[Finding] = ()
    staged: Path | None = None


def run(args: Args, out: Output) -> int:
    from ...datasets.hub import DATASET, Hub, require_repo
    from ..hub.staging import unstage

    require_repo(args.repo)
    source = Path(args.source)
    if (source / "ulna.json").is_file() or (source / "meta" / "info.json").is_file():
        parcel = _dataset(args, source)
    else:
        parcel = _checkpoint(args)
    done = Hub().push(
        parcel.files, args.repo, parcel.kind, args.public, parcel.owned, [*parcel.tags, *words(args.tag)]
    )
    if parcel.staged is not None:
        unstage(parcel.staged)
    answer = {**asdict(done), "kind": parcel.kind, "findings": len(parcel.findings)}
    seen = "only you and those whom you let see it" if done.private else "everybody sees it"
    text = (
        f"{done.url}: {'dataset' if parcel.kind == DATASET else 'checkpoint'}, {done.files} files, "
        f"{done.bytes / 1e6:.1f} MB, commit {done.commit[:8]}; {seen}"
    )
    out.answer(answer, text)
    return 0


def _dataset(args: Args, source: Path) -> Parcel:
    from ...datasets.checks.check import check
    from ...datasets.formats.lerobot_folder import LeRobotFolder
    from ...datasets.formats.lerobot_store import LeRobotStore
    from ...datasets.hub import DATASET
    from ...datasets.opened import open_dataset
    from ..hub.dataset_card import PICTURE, contact_sheet, data_files, dataset_card, owned
    from ..hub.staging import staged

    store = open_dataset(source)
    with progress("checking") as bar:
        findings = check(store, None, bar.update)
    severe = [f for f in findings if f.severity == "severe"]
    if severe and not args.despite_findings:
        where = f" in episode {severe[0].episode}" if severe[0].episode >= 0 else ""
        raise UsageError(
            f"the check finds {len(severe)} severe things, first {severe[0].check}{where}: "
            f"{severe[0].message}; see `ulna data check {source}`, or push --despite-findings, and the "
            "card says so"
        )
    folder, stage, notes = source, None, []
    if not isinstance(store, LeRobotStore):
        with progress("exporting") as bar:
            folder, notes = staged(store, args.gaps, bar.update)
        stage = folder
    files: dict[str, Path | bytes] = data_files(folder)
    if (picture := contact_sheet(store)) is not None:
        files[PICTURE] = picture
    files["README.md"] = dataset_card(store, findings, args.repo, args.license, notes).encode()
    version = LeRobotFolder(folder).version
    return Parcel(DATASET, files, owned, [f"v{version[0]}.{version[1]}"], findings, stage)


def _checkpoint(args: Args) -> Parcel:
    from ...datasets.hub import MODEL
    from ...policies.checkpoint import verify_checkpoint
    from ...policies.lerobot.folder import checkpoint_folder, is_lerobot
    from ..hub.policy_card import checkpoint_files, owned, policy_card

    if is_lerobot(args.source):
        raise UsageError(
            "a policy of LeRobot is pushed by LeRobot, or first made ours: ulna export --to ulna"
        )
    folder = checkpoint_folder(args.source)
    if folder.is_dir() and not (folder / "hash.json").is_file():
        raise UsageError(f"{folder} is neither a dataset nor a checkpoint: there is nothing to push")
    content_hash = verify_checkpoint(folder)
    files: dict[str, Path | bytes] = checkpoint_files(folder, content_hash)
    files["README.md"] = policy_card(folder, content_hash, args.repo, args.license).encode()
    return Parcel(MODEL, files, owned, [])
