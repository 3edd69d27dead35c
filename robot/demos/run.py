"""The demos behind `make demo`, `make demo-real` and `make demo-twin`: the README's own commands, one after
the other, then a report."""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ..report.report import summary, write_report

ULNA = [sys.executable, "-m", "ulna.robot.cli"]
MARK = ".made-by-ulna-demo"
MADE = ("data", "flow", "rollouts", "videos", "report.html", "summary.json", MARK)
FIRST_SEED = 1000
REAL_STEPS = 1500
# Teleoperated commands lead the measured joints by what the arm lags and sags, differently in every episode;
# chunks of about a second, measured from the last command, do not have to guess that.
REAL_OPTIONS = [
    "--action-space",
    "delta",
    "--n-past-actions",
    "1",
    "--horizon",
    "32",
    "--n-action-steps",
    "16",
]


class Phases:
    """Runs commands, remembering each as one can paste it, how long it took and the most memory it needed."""

    def __init__(self) -> None:
        self.commands: list[str] = []
        self.seconds: list[tuple[str, float]] = []
        self.memory = PeakMemory()

    def run(self, phase: str, *words: str) -> dict[str, Any]:
        """`ulna` with `words`; its --json answer. SystemExit when it fails: its own message is on standard
        error."""
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
    def process(self, phase: str, *words: str) -> Iterator[dict[str, Any]]:
        """`ulna` with `words` for the length of a `with` block; yields what it says of itself once it is
        ready.

        SystemExit when it ends before that: its own message is on standard error.
        """
        self.say(words)
        began = time.monotonic()
        process = subprocess.Popen([*ULNA, *words, "--json"], stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        try:
            line = process.stdout.readline()
            if not line:
                raise SystemExit(f"the demo stopped: `ulna {words[0]}` did not start")
            self.seconds.append((phase, time.monotonic() - began))
            yield json.loads(line)
        finally:
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            process.stdout.close()

    @contextlib.contextmanager
    def server(self, *words: str) -> Iterator[str]:
        """`ulna serve` for the length of a `with` block; yields its address."""
        with self.process("start the server", *words) as answer:
            with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(
                answer["health"], timeout=10
            ) as r:
                print(f"healthz: {r.read().decode().strip()}", file=sys.stderr)
            yield answer["url"]


class PeakMemory:
    """The most memory that this process and all it started held at the same time, looked at twice a
    second."""

    def __init__(self) -> None:
        self.peak_bytes = 0
        threading.Thread(target=self._watch, daemon=True).start()

    def _watch(self) -> None:
        while True:
            self.peak_bytes = max(self.peak_bytes, sum(self._resident(p) for p in self._family()))
            time.sleep(0.5)

    @staticmethod
    def _family() -> list[int]:
        parents = {}
        for entry in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):  # it may end meanwhile
                parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
        family = [os.getpid()]
        for pid in family:
            family += [child for child, parent in parents.items() if parent == pid]
        return family

    @staticmethod
    def _resident(pid: int) -> int:
        with contextlib.suppress(OSError):
            return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")
        return 0

    def __str__(self) -> str:
        return f"peak memory of all processes together {self.peak_bytes / 1024**3:.2f} GiB"


def demo_sim(out: Path, demonstrations: int = 100, steps: int = 2500, episodes: int = 50) -> int:
    """Record, train, serve, evaluate through the server, report. 0 when at least 90 % of the seeds
    succeed."""
    fresh(out)
    p = Phases()
    data, policy = str(out / "data"), str(out / "flow")
    robot = ["--robot", "sim:so101", "--task", "lift"]
    words = ["record", *robot, "--agent", "expert", "--episodes", str(demonstrations), "--out", data]
    p.run(f"record {demonstrations} episodes", *words)
    p.run("train", "train", "flow", "--data", data, "--out", policy, "--steps", str(steps))
    with p.server("serve", policy, "--port", str(free_port())) as url:
        words = ["evaluate", policy, *robot, "--episodes", str(episodes), "--seed", str(FIRST_SEED)]
        evaluation = p.run(f"evaluate {episodes} seeds", *words, "--server", url)
    finish(p, f"Lift, from {demonstrations} demonstrations", evaluation, out)
    bar = math.ceil(0.9 * episodes)
    if evaluation["successes"] < bar:
        print(
            f"ulna: only {evaluation['successes']} of {episodes} succeeded, the demo asks for {bar}",
            file=sys.stderr,
        )
        return 1
    return 0


def demo_real(source: Path, out: Path, steps: int = REAL_STEPS) -> int:
    """Import a LeRobot folder, train from images and state on all but the last two episodes, evaluate on
    those."""
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
    words = ["train", "flow", "--data", data, "--out", policy, "--episodes", kept, "--steps", str(steps)]
    p.run("train", *words, *REAL_OPTIONS)
    evaluation = p.run("evaluate", "evaluate", "--open-loop", policy, "--data", data, "--episodes", held_out)
    tasks = "; ".join(t.rstrip(".") for t in d["tasks"][:2])
    finish(p, f"{tasks or source.name}: open loop on recorded data", evaluation, out)
    return 0


def fresh(out: Path) -> None:
    """An empty folder: what an earlier demo made there is removed, and whatever else lies there is
    refused."""
    made = [out / name for name in MADE] if (out / MARK).exists() else []
    kept = [p.name for p in out.iterdir() if p not in made] if out.exists() else []
    if kept:
        raise SystemExit(f"ulna: {out} holds {kept[0]}, which the demo did not make: choose another folder")
    for path in made:
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink(missing_ok=True)
    out.mkdir(parents=True, exist_ok=True)
    (out / MARK).touch()


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def portable(command: str) -> str:
    """As it may be published: a twin's robot file by its name, without the folder that went with the twin."""
    words = shlex.split(command)
    return shlex.join(Path(w).name if w.endswith("/robot.toml") else w for w in words)


def finish(p: Phases, title: str, evaluation: dict[str, Any], out: Path, notes: Sequence[str] = ()) -> None:
    """Write the report and print what matters of it."""
    from rich.console import Console
    from rich.table import Table

    train = json.loads((out / "flow" / "train.json").read_text())
    report = write_report(
        out / "report.html", title, evaluation, train, p.commands, p.seconds, [f"{p.memory}.", *notes]
    )
    kept = {k: v for k, v in evaluation.items() if k not in ("traces", "trace", "per_joint_and_step")}
    peak = round(p.memory.peak_bytes / 1024**3, 2)
    numbers = {
        **kept,
        "commands": [portable(c) for c in p.commands],
        "phases_s": dict(p.seconds),
        "peak_memory_gib": peak,
    }
    (out / "summary.json").write_text(json.dumps(numbers, indent=1) + "\n")
    table = Table()
    table.add_column("phase")
    table.add_column("seconds", justify="right")
    for name, seconds in p.seconds:
        table.add_row(name, f"{seconds:.0f}")
    table.add_row("all", f"{sum(s for _, s in p.seconds):.0f}", style="bold")
    Console().print(table)
    print(f"{summary(evaluation)}\n{p.memory}\nreport: {report}")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m ulna.robot.demos.run", description=__doc__)
    parser.add_argument("which", choices=["sim", "real", "twin"])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--data", type=Path, help="the LeRobot folder (real)")
    args = parser.parse_args()
    os.environ.setdefault("PYTHONWARNINGS", "ignore")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # as an exception, so that the server is stopped
    if args.which == "sim":
        return demo_sim(args.out)
    if args.which == "twin":
        from .twin import demo_twin

        return demo_twin(args.out)
    if args.data is None:
        parser.error("real needs --data FOLDER")
    return demo_real(args.data, args.out)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
