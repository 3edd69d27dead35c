"""The card of a checkpoint, of what its own files say: nothing is claimed that no report in it shows."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...datasets.features import features_from_json
from ..report.evaluation import ClosedLoop, OpenLoop
from .markdown import feature_table, front_matter, plain, table, tag

if TYPE_CHECKING:
    from ...policies.train.record import TrainingRecord

BESIDE = ("hash.json", "train.json", "config.toml")


def policy_card(folder: Path, content_hash: str, repo: str, license: str) -> str:
    """README.md of the repository `repo`, of the checkpoint in `folder`, which is verified. CheckpointError
    where one of its files cannot be read."""
    from ...policies.checkpoint import read_train
    from ...policies.hashed import read_json

    recipe = str(read_json(folder / "recipe.json").get("name", ""))
    record = read_train(folder)
    features = features_from_json(read_json(folder / "features.json"))
    closed, opened, others = reports(folder, content_hash)
    header = front_matter(
        {
            "license": license,
            "library_name": "ulna",
            "pipeline_tag": "robotics",
            "tags": list(filter(None, ["ulna", "robotics", tag(recipe), tag(record.robot)])),
        }
    )
    about = (
        f"A policy of the recipe `{recipe}`, {record.parameters / 1e6:.2f} M parameters, content hash "
        f"`{content_hash[:16]}`."
    )
    parts = [
        header,
        f"# {plain(repo.partition('/')[2])}",
        about,
        "## Evaluation",
        _evaluation(closed, opened, others),
        "## Trained on",
        table(("", ""), _training(record)),
        "## What it sees and commands",
        feature_table(features),
        "## Serve it",
        _serve(repo, record, closed),
    ]
    return "\n\n".join(parts) + "\n"


def reports(folder: Path, content_hash: str) -> tuple[list[ClosedLoop], list[OpenLoop], list[str]]:
    """(closed loop, open loop, names of the files that are no reports on these weights)."""
    from ...policies.hashed import read_json

    closed: list[ClosedLoop] = []
    opened: list[OpenLoop] = []
    others: list[str] = []
    for file in sorted((folder / "validation").glob("*.json")):
        try:
            document = read_json(file)
            report: Any = (OpenLoop if document.get("kind") == "open-loop" else ClosedLoop).from_json(
                document
            )
        except ValueError:
            others.append(file.name)
            continue
        if report.checkpoint != content_hash:
            others.append(file.name)
        elif isinstance(report, ClosedLoop):
            closed.append(report)
        else:
            opened.append(report)
    return closed, opened, others


def _evaluation(closed: Sequence[ClosedLoop], opened: Sequence[OpenLoop], others: Sequence[str]) -> str:
    parts = []
    if closed:
        head = ("task", "robot", "succeeded", "95 % interval", "seeds", "how")
        parts.append(table(head, map(_closed_row, closed)))
        parts.append("The interval is Wilson's. Each seed is one episode, with its own start.")
    else:
        parts.append("No evaluation: nobody has measured how often this policy succeeds.")
    if opened:
        rows = [
            (
                Path(o.data).name,
                len(o.episodes),
                o.n_ticks,
                "{:.3f} ({:.3f} to {:.3f})".format(e.mean, *e.bootstrap_95),
                ", ".join(f"{n}: {'better' if c.better else 'not shown'}" for n, c in o.comparisons.items()),
            )
            for o in opened
            if (e := o.relative_error.get("policy")) is not None
        ]
        head = ("recorded episodes of", "episodes", "ticks", "error, of a joint's spread (95 %)", "than")
        parts += ["Against recorded actions, without acting:", table(head, rows)]
    if others:
        parts.append(f"Left out, as they are no reports on these weights: {', '.join(map(plain, others))}.")
    return "\n\n".join(parts)


def _closed_row(r: ClosedLoop) -> tuple[Any, ...]:
    low, high = r.wilson_95
    seeds = f"{min(o.seed for o in r.outcomes)} to {max(o.seed for o in r.outcomes)}"
    how = []
    if r.strategy is not None:
        how.append(f"strategy {r.strategy.get('name')}")
    if r.charged is not None:
        how.append(f"a decision charged {r.charged}")
    if r.directors:
        how.append(f"directed by {', '.join(str(d.get('name')) for d in r.directors)}")
    if r.steering:
        how.append(f"steered by {', '.join(str(h.get('part')) for h in r.steering)}")
    if r.sampling_steps is not None and r.sampling_steps > 1:
        how.append(f"{r.sampling_steps} steps of the sampler")
    if r.shown is not None:
        how.append(f"shown {r.shown}")
    if r.latency_ms is not None:
        how.append(f"a decision took {r.latency_ms.p50:.0f} ms (p99 {r.latency_ms.p99:.0f})")
    if r.versions:
        how.append(", ".join(f"{k} {v}" for k, v in r.versions.items()))
    share = f"{r.successes} of {r.episodes} ({100 * r.success_rate:.0f} %)"
    return r.task, r.robot, share, f"{100 * low:.0f} to {100 * high:.0f} %", seeds, "; ".join(how)


def _training(r: TrainingRecord) -> list[tuple[str, Any]]:
    # names of folders, not where they are on somebody's computer
    names = ", ".join(Path(p).name for p in r.data.split()) or "not stated"
    rows: list[tuple[str, Any]] = [
        ("data", f"{names}: {r.n_episodes} episodes, {r.n_windows} windows, digest {r.data_content[:16]}"),
        ("robot", r.robot or "not stated"),
        ("rate", f"{r.control_hz:g} Hz" if r.control_hz else "not stated"),
        ("tasks", "; ".join(t for t in r.tasks if t) or "not stated"),
        ("steps", f"{r.steps} in {r.seconds:.0f} s on {r.device} ({r.machine or 'machine not stated'})"),
        ("seed", r.seed),
        ("versions", ", ".join(f"{k} {v}" for k, v in r.versions.items())),
    ]
    if r.start:
        rows.append(("begun from the checkpoint", r.start[:16]))
    if r.blend:
        rows.append(("blend of two checkpoints", r.blend))
    if r.generated:
        rows.append(("weights drawn by a generator", r.generated))
    if r.validation_losses:
        step, loss = list(r.validation_losses.items())[-1]
        rows.append(("loss on held-out episodes", f"{loss:.4f} after {step} steps"))
    return rows


def _serve(repo: str, record: TrainingRecord, closed: Sequence[ClosedLoop]) -> str:
    best = max(closed, key=lambda r: r.success_rate, default=None)
    simulated = best is not None and best.robot.startswith("sim:") and not set(best.task) - _PLAIN
    lines = [f"ulna serve hub:{repo} --port 8000"]
    if best is not None and simulated:
        lines.append(f"ulna evaluate hub:{repo} --robot {best.robot} --task {best.task} --episodes 50")
    lines.append("ulna deploy --robot my-robot.toml --server ws://127.0.0.1:8000    # on your own")
    return "```sh\n" + "\n".join(lines) + "\n```"


_PLAIN = set("abcdefghijklmnopqrstuvwxyz0123456789_")


def checkpoint_files(folder: Path, content_hash: str) -> dict[str, Any]:
    """The files of a checkpoint that are given to others: no states of a training, no videos."""
    from ...policies.checkpoint import HASHED

    closed, opened, _ = reports(folder, content_hash)
    names = [f for f in (*HASHED, *BESIDE) if (folder / f).is_file()]
    if closed or opened:
        names += [f"validation/{p.name}" for p in sorted((folder / "validation").glob("*.json"))]
    return {name: folder / name for name in names}


def owned(name: str) -> bool:
    """Whether a path of the repository is of a checkpoint, but for its card."""
    from ...policies.checkpoint import HASHED

    return name in (*HASHED, *BESIDE) or name.startswith("validation/")
