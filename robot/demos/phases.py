"""What the demos share: commands of `ulna` run one after the other, and a report of what came of them."""

from __future__ import annotations

import contextlib
import json
import math
import os
import shlex
import shutil
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ..beside import ULNA, NotStarted, beside
from ..report.evaluation import ClosedLoop, OpenLoop
from ..report.report import summary, write_report

MARK = ".made-by-ulna-demo"
PRODUCTS = ("data", "flow", "rollouts", "videos", "report.html", "summary.json", MARK)
NOT_IN_SUMMARY = ("traces", "trace", "per_joint_and_step")  # long, and only for plots


class Phases:
    """Runs commands. commands: those that were run, to be pasted. seconds: (phase, how long it took). memory:
    the most that they needed."""

    def __init__(self) -> None:
        self.commands: list[str] = []
        self.seconds: list[tuple[str, float]] = []
        self.memory = PeakMemory()

    def run(self, phase: str, *words: str) -> dict[str, Any]:
        """Run `ulna` with `words`; returns its --json answer. SystemExit when it fails; its own message is on
        standard error."""
        self._print(words)
        began = time.monotonic()
        run = subprocess.run([*ULNA, *words, "--json"], stdout=subprocess.PIPE, text=True, check=False)
        self.seconds.append((phase, time.monotonic() - began))
        if run.returncode:
            raise SystemExit(f"the demo stopped: `ulna {words[0]}` failed")
        return json.loads(run.stdout)

    def baselines(self, scenes: Sequence[str]) -> list[ClosedLoop]:
        """The expert and an arm that never moves, evaluated on `scenes`, words of `ulna evaluate`."""
        return [
            ClosedLoop.from_json(self.run(f"the same by {agent}", "evaluate", "--agent", agent, *scenes))
            for agent in ("expert", "hold")
        ]

    def _print(self, words: Sequence[str]) -> None:
        line = shlex.join(["ulna", *words])
        self.commands.append(line)
        print(f"\n$ {line}", file=sys.stderr, flush=True)

    @contextlib.contextmanager
    def process(self, phase: str, *words: str) -> Iterator[dict[str, Any]]:
        """Run `ulna` with `words` for the length of a `with` block; yields its --json answer once it is
        ready.

        SystemExit when it ends before that; its own message is on standard error."""
        self._print(words)
        began = time.monotonic()
        with contextlib.ExitStack() as stack:
            try:
                answer = stack.enter_context(beside(*words))
            except NotStarted as error:
                raise SystemExit(f"the demo stopped: {error}") from None
            self.seconds.append((phase, time.monotonic() - began))
            yield answer

    @contextlib.contextmanager
    def server(self, *words: str) -> Iterator[str]:
        """Run `ulna serve` for the length of a `with` block; yields its address."""
        with self.process("start the server", *words) as answer:
            with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(
                answer["health"], timeout=10
            ) as r:
                print(f"healthz: {r.read().decode().strip()}", file=sys.stderr)
            yield answer["url"]


class PeakMemory:
    """The most memory that this process and its descendants held at the same time, measured twice a
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


def fresh(out: Path) -> None:
    """Make `out` an empty folder: what an earlier demo made there is removed. SystemExit where something else
    lies there."""
    products = [out / name for name in PRODUCTS] if (out / MARK).exists() else []
    strangers = [p.name for p in out.iterdir() if p not in products] if out.exists() else []
    if strangers:
        raise SystemExit(
            f"ulna: {out} holds {strangers[0]}, which the demo did not make: choose another folder"
        )
    for path in products:
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


def finish(
    p: Phases,
    title: str,
    evaluation: ClosedLoop | OpenLoop,
    out: Path,
    notes: Sequence[str] = (),
    baselines: Sequence[ClosedLoop] = (),
) -> None:
    """Write the report and print what matters of it. baselines: of other agents on the same scenes."""
    from rich.console import Console
    from rich.table import Table

    from ...policies.train.record import TrainingRecord

    record = TrainingRecord.from_json(json.loads((out / "flow" / "train.json").read_text()))
    notes = [f"{p.memory}.", *notes]
    report = write_report(
        out / "report.html", title, evaluation, record, p.commands, p.seconds, notes, baselines
    )
    results = {k: v for k, v in evaluation.to_json().items() if k not in NOT_IN_SUMMARY}
    if baselines:
        results["baselines"] = {b.agent: f"{b.successes} of {b.episodes}" for b in baselines}
    peak = round(p.memory.peak_bytes / 1024**3, 2)
    numbers = {
        **results,
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


def verdict(evaluation: ClosedLoop, share: float) -> int:
    """The exit status: 0 when at least `share` of the episodes succeeded, else 1 and a sentence."""
    bar = math.ceil(share * evaluation.episodes)
    if evaluation.successes >= bar:
        return 0
    print(
        f"ulna: only {evaluation.successes} of {evaluation.episodes} succeeded, the demo asks for {bar}",
        file=sys.stderr,
    )
    return 1
