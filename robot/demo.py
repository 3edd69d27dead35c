"""The demos behind `make demo` and `make demo-real`: the README's own commands, one after the other, then a report."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import resource
import shlex
import shutil
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from .report import summary_line, write_report

MARK = ".made-by-ulna-demo"
TRAIN_STEPS = 2500
REAL_STEPS = 1500
EPISODES, FIRST_SEED, BAR = 50, 1000, 45


class Phases:
    """Runs commands, remembering each as one can paste it and how long it took."""

    def __init__(self) -> None:
        self.commands: list[str] = []
        self.seconds: list[tuple[str, float]] = []

    def run(self, phase: str, *words: str) -> dict[str, Any]:
        """`ulna` with `words`; its --json answer. SystemExit when it fails: its own message is on standard error."""
        self.say(words)
        began = time.monotonic()
        done = subprocess.run([*ULNA, *words, "--json"], stdout=subprocess.PIPE, text=True, check=False)
        self.seconds.append((phase, time.monotonic() - began))
        if done.returncode:
            raise SystemExit(f"the demo stopped: `ulna {words[0]}` failed")
        return json.loads(done.stdout)

    def say(self, words: Sequence[str]) -> None:
        line = shlex.join(["ulna", *words])
        self.commands.append(line)
        print(f"\n$ {line}", file=sys.stderr, flush=True)

    @contextlib.contextmanager
    def server(self, *words: str) -> Iterator[str]:
        """`ulna serve` as a process of its own, for the length of a `with` block; yields its address."""
        self.say(words)
        began = time.monotonic()
        process = subprocess.Popen([*ULNA, *words, "--json"], stdout=subprocess.PIPE, text=True)
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            if not line:
                raise SystemExit("the demo stopped: the server did not start")
            answer = json.loads(line)
            with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(
                answer["health"], timeout=10
            ) as r:
                print(f"healthz: {r.read().decode().strip()}", file=sys.stderr)
            self.seconds.append(("start the server", time.monotonic() - began))
            yield answer["url"]
        finally:
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


ULNA = [sys.executable, "-m", "ulna.robot.cli"]


def demo_sim(out: Path) -> int:
    """Record, train, serve, evaluate through the server, report. 0 when at least 45 of 50 seeds succeed."""
    fresh(out)
    p = Phases()
    data, policy = str(out / "data"), str(out / "flow")
    robot = ["--robot", "sim:so101", "--task", "lift"]
    p.run("record 100 episodes", "record", *robot, "--agent", "expert", "--episodes", "100", "--out", data)
    p.run("train", "train", "flow", "--data", data, "--out", policy, "--steps", str(TRAIN_STEPS))
    with p.server("serve", policy, "--port", "0") as url:
        words = [
            "evaluate",
            policy,
            *robot,
            "--episodes",
            str(EPISODES),
            "--seed",
            str(FIRST_SEED),
            "--server",
            url,
        ]
        evaluation = p.run(f"evaluate {EPISODES} seeds", *words)
    train = json.loads((out / "flow" / "train.json").read_text())
    report = write_report(
        out / "report.html", "Lift, from 100 demonstrations", evaluation, train, p.commands, p.seconds
    )
    finish(p, evaluation, report)
    if evaluation["successes"] < BAR:
        print(
            f"ulna: only {evaluation['successes']} of {EPISODES} succeeded, the demo asks for {BAR}",
            file=sys.stderr,
        )
        return 1
    return 0


def demo_real(source: Path, out: Path) -> int:
    """Import a LeRobot folder, train from images and state on all but the last two episodes, evaluate on those."""
    fresh(out)
    p = Phases()
    data, policy = str(out / "data"), str(out / "flow")
    d = p.run("import", "data", "import", str(source), "--out", data, "--image-size", "96")
    n = int(d["episodes"])
    if n < 3:
        print(
            f"ulna: {source} has {n} episodes; the demo needs at least 3, two of them to evaluate on",
            file=sys.stderr,
        )
        return 1
    kept, held_out = f"0-{n - 3}", f"{n - 2},{n - 1}"
    words = ["train", "flow", "--data", data, "--out", policy, "--episodes", kept, "--steps", str(REAL_STEPS)]
    p.run("train", *words)
    evaluation = p.run("evaluate", "evaluate", "--open-loop", policy, "--data", data, "--episodes", held_out)
    train = json.loads((out / "flow" / "train.json").read_text())
    title = f"{'; '.join(d['tasks'][:2]) or source.name}: open loop on recorded data"
    report = write_report(out / "report.html", title, evaluation, train, p.commands, p.seconds)
    finish(p, evaluation, report)
    return 0


def fresh(out: Path) -> None:
    """An empty folder; one that an earlier demo made is emptied, any other is refused."""
    if out.exists() and any(out.iterdir()):
        if not (out / MARK).exists():
            raise SystemExit(f"ulna: {out} holds files that the demo did not make: choose another folder")
        shutil.rmtree(out)
    out.mkdir(parents=True, exist_ok=True)
    (out / MARK).touch()


def finish(p: Phases, evaluation: dict[str, Any], report: Path) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=summary_line(evaluation))
    table.add_column("phase")
    table.add_column("seconds", justify="right")
    for name, seconds in p.seconds:
        table.add_row(name, f"{seconds:.0f}")
    table.add_row("all", f"{sum(s for _, s in p.seconds):.0f}", style="bold")
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024**2
    table.caption = f"peak memory of one process {peak:.2f} GiB"
    kept = {k: v for k, v in evaluation.items() if k not in ("traces", "per_joint_and_step")}
    summary = {**kept, "commands": p.commands, "phases_s": dict(p.seconds), "peak_memory_gib": round(peak, 2)}
    report.with_name("summary.json").write_text(json.dumps(summary, indent=1) + "\n")
    Console().print(table)
    print(f"report: {report}")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m ulna.robot.demo", description=__doc__)
    parser.add_argument("which", choices=["sim", "real"])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--data", type=Path, help="the LeRobot folder (real)")
    args = parser.parse_args()
    os.environ.setdefault("PYTHONWARNINGS", "ignore")
    os.environ.setdefault(
    )  # threads that spin cost a busy machine ten times the time
    if args.which == "sim":
        return demo_sim(args.out)
    if args.data is None:
        parser.error("real needs --data FOLDER")
    return demo_real(args.data, args.out)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
