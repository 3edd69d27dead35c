"""Run a study: the arms of one TOML file on one task, several training seeds each, against what the file
expects. A study that was cut off goes on where it was. `ulna.robot.study` says how the file is written."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from .errors import UsageError
from .parsing import Output, progress

EXAMPLE = "ulna study benchmarks/studies/mip_fork.toml"


@dataclass
class Args:
    file: tyro.conf.Positional[str]
    """The study."""
    quick: bool = False
    """One training seed and at most 50 episodes of development seeds, to see whether all is in range; the
    numbers stay in --runs."""
    processes: int = 2
    """That train and evaluate, one processor thread each."""
    restart: bool = False
    """Discard what was run of it before."""
    runs: Annotated[str, tyro.conf.arg(metavar="FOLDER")] = "runs/studies"
    """Where demonstrations, checkpoints and unfinished results lie."""
    out: Annotated[str, tyro.conf.arg(metavar="FOLDER")] = "benchmarks/results/studies"
    """Where the numbers go, as NAME.json."""
    json: bool = False
    """Print one JSON object."""


def run(args: Args, out: Output) -> int:
    from datetime import UTC, datetime

    from ..report.report import commit, machine
    from ..study import read_study
    from ..study_results import require_metrics, summary
    from ..study_run import quick, run_study, write_whole

    if args.processes < 1:
        raise UsageError("--processes is at least 1")
    study = read_study(args.file)
    require_metrics(study)
    if args.quick:
        study = quick(study)
    folder = Path(args.runs) / (f"{study.name}-quick" if args.quick else study.name)
    with progress("running") as bar:
        task = bar.add_task("", total=None, note="")

        def report(finished: int, total: int, note: str) -> None:
            bar.update(task, completed=finished, total=total, note=note)

        results = run_study(
            study,
            folder,
            source=args.file,
            processes=args.processes,
            restart=args.restart,
            keep_changed=args.quick,
            progress=report,
        )
    answer = {
        **summary(study, results, args.quick),
        "machine": machine(),
        "commit": commit(),
        "command": f"ulna study {_relative(args.file)}" + (" --quick" if args.quick else ""),
        "date": datetime.now(UTC).date().isoformat(),
    }
    path = folder / "numbers.json" if args.quick else Path(args.out) / f"{study.name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, answer, indent=1)
    print(f"ulna: the numbers are in {path}", file=sys.stderr)
    out.answer(answer, text(answer))
    return 0


def text(answer: dict[str, Any]) -> str:
    """What matters, for a terminal."""
    lines = [f"{answer['study']}: {answer['claim']}"]
    if answer.get("quick"):
        lines.append("QUICK: one training seed on development seeds, no evidence")
    for name, variant in answer["variants"].items():
        lines.append(f"{name}:")
        width = max(map(len, variant["arms"]))
        for arm, row in variant["arms"].items():
            low, high = row["wilson_95"]
            by_seed = " ".join(map(str, row["successes"]))
            nfe, parameters = (row["metrics"][m]["mean"] for m in ("nfe", "parameters"))
            lines.append(
                f"  {arm:{width}}  {100 * row['rate']:5.1f} % ({100 * low:.0f} to {100 * high:.0f})  "
                f"{nfe:g} evaluations, {parameters / 1e3:.0f} k parameters, by seed {by_seed}"
            )
    for v in answer["verdicts"]:
        value = "no value" if v["estimate"] is None else f"{v['estimate']:.3f}"
        if v["interval_95"] is not None:
            value += " ({:.3f} to {:.3f})".format(*v["interval_95"])
        lines.append(f"{'held' if v['held'] else 'NOT HELD'}: {v['words']}: {value}")
    return "\n".join(lines)


def _relative(file: str) -> str:
    """The file as it is named from here; only its name where it lies elsewhere."""
    path = Path(file).resolve()
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else path.name
