"""`kill -9` at random instants of everything that writes: is an acknowledged frame ever lost, a finished
episode ever changed?

    python benchmarks/kills.py --trials 200

Each trial starts a process that records (the control process is killed, or the writing one as well),
finishes, recovers, merges, deletes and restores, trims, or exports; kills it at a random instant of that;
opens the store; and reads every row of every episode."""

from __future__ import annotations

import argparse
import hashlib
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from results import save

from ulna.datasets.edit import trash
from ulna.datasets.features import Feature
from ulna.datasets.recording.writer import EpisodeWriter
from ulna.datasets.store import EpisodeStore

CAMERA, STATE, ACTION = "observation.images.front", "observation.state", "action"
FEATURES = {
    STATE: Feature((7,), "float32", tuple(f"j{i}" for i in range(7))),
    ACTION: Feature((7,), "float32", tuple(f"j{i}" for i in range(7))),
    CAMERA: Feature((120, 160, 3), "uint8"),
}
KINDS = (
    "append",
    "append, both killed",
    "finish",
    "recover",
    "merge",
    "delete and restore",
    "trim",
    "export",
)


def row(t: int) -> dict[str, np.ndarray]:
    """Row t of every recording, the same wherever it is made."""
    rng = np.random.default_rng(t)
    q = rng.normal(size=7).astype(np.float32)
    return {STATE: q, ACTION: q, CAMERA: rng.integers(0, 256, (120, 160, 3), dtype=np.uint8)}


def act(kind: str, path: Path) -> None:
    """What the killed process does, over and over; `begin` and acknowledged rows go to stdout."""

    def say(what: object) -> None:
        os.write(1, f"{what}\n".encode())

    if kind.startswith("append") or kind == "finish":
        from ulna.datasets.recording.recorder import Recorder

        rows = [row(t) for t in range(400)]
        with Recorder(EpisodeStore.open(path), overflow="wait") as recorder:
            say(f"pid {recorder.writer_pid}")
            for n in range(1000):
                recorder.start({"n": n})
                length = 400 if kind.startswith("append") else 30
                for t in range(length):
                    recorder.tick(rows[t], dict.fromkeys(rows[t], (t, t)))
                    say(f"{n} {t + 1}")
                    if kind.startswith("append"):
                        time.sleep(0.002)
                recorder.end({})
                say(f"ended {n}")
        return
    from ulna.datasets.edit import delete, restore, trim
    from ulna.datasets.formats.lerobot_export import export_lerobot
    from ulna.datasets.merge import merge

    say("pid 0")
    store = EpisodeStore.open(path, recover=False)
    if kind == "recover":
        store.recover(wait=True)
        return
    for n in range(1000):
        if kind == "merge":
            merge([store, EpisodeStore.open(path.with_name("other"))], path.with_name(f"merged{n}"))
        elif kind == "delete and restore":
            delete(store, [0])
            restore(store)
        elif kind == "trim":
            trim(store, 0, 0.0000000035, 0.00000001)
            restore(store)
        else:
            export_lerobot(store, path.with_name(f"exported{n}"), lossless=True)


def digest(e: Any) -> str:
    """Of all rows and times, read anew."""
    digest_of_rows = hashlib.sha256()
    for key in e.streams:
        digest_of_rows.update(key.encode() + np.ascontiguousarray(e.read(key)).tobytes())
        for t in e.times_ns(key):
            digest_of_rows.update(t.tobytes())
    return digest_of_rows.hexdigest()


def make(path: Path, lengths: tuple[int, ...], offset: int = 0) -> list[str]:
    store = EpisodeStore.create(path, FEATURES, 20.0)
    with EpisodeWriter(store) as writer:
        for i, length in enumerate(lengths):
            writer.start({"n": -1})
            for t in range(length):
                values = row(1000 + offset + 50 * i + t)
                writer.tick(values, dict.fromkeys(values, (t, t)))
            writer.end({})
    return [digest(e) for e in store.episodes]


def leave_cut_off(path: Path, count: int) -> None:
    """An episode in progress, as a killed writer leaves it."""
    writer = EpisodeWriter(EpisodeStore.open(path))
    writer.start({"n": 0})
    for t in range(count):
        values = row(t)
        writer.tick(values, dict.fromkeys(values, (t, t)))
    writer.close()


def trial(kind: str, rng: random.Random) -> dict[str, Any]:
    """lost: acknowledged rows that are gone. changed: finished episodes that are not what they were. wrong:
    rows that came back other than they went in. problem: what went wrong when the store was opened."""
    folder = Path(tempfile.mkdtemp(prefix="ulna-kill-"))
    path = folder / "data"
    before = make(path, (12, 9))
    make(path.with_name("other"), (7,), 500)
    cut_off_rows = 60 if kind == "recover" else 0
    if cut_off_rows:
        leave_cut_off(path, cut_off_rows)
    command = [sys.executable, __file__, "--act", kind, "--store", str(path)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert process.stdout is not None
    writer = int(process.stdout.readline().split()[1])
    spans = {
        "finish": 1.0,
        "recover": 0.08,
        "trim": 0.5,
        "delete and restore": 0.2,
        "merge": 0.4,
        "export": 2.0,
    }
    time.sleep(rng.uniform(0, spans.get(kind, 1.2)))
    if kind == "append, both killed":
        os.kill(writer, signal.SIGKILL)
    process.kill()
    lines = process.stdout.read().decode().splitlines()
    process.wait()
    acknowledged_rows: dict[int, int] = {}
    for line in lines:
        if not line.startswith("ended"):
            n, count = map(int, line.split())
            acknowledged_rows[n] = count
    ended_episodes = {int(line.split()[1]) for line in lines if line.startswith("ended")}
    result: dict[str, Any] = {
        "lost": 0,
        "changed": 0,
        "wrong": 0,
        "acknowledged": sum(acknowledged_rows.values()) + cut_off_rows,
    }
    try:
        began = time.monotonic()
        with EpisodeWriter(
            EpisodeStore.open(path)
        ):  # waits for a writing process that still empties its ring
            pass
        store = EpisodeStore.open(path)
        result["open_s"] = time.monotonic() - began
        if store.interrupted_folders():
            result["problem"] = f"not recovered: {store.interrupted_folders()}"
        here = [digest(e) for e in store.episodes if e.attrs.get("n") == -1]
        if kind in ("trim", "delete and restore"):
            all_episodes = [*store.episodes, *_trash_episodes(store)]
            here = [digest(e) for e in all_episodes]
        result["changed"] = sum(d not in here for d in before)
        by_number = {e.attrs["n"]: e for e in store.episodes if e.attrs.get("n") != -1}
        for n, count in {**acknowledged_rows, **({0: cut_off_rows} if cut_off_rows else {})}.items():
            e = by_number.get(n)
            result["lost"] += max(0, count - (e.length if e else 0))
            if n in ended_episodes and (e is None or e.interrupted):
                result["changed"] += 1
        for e in by_number.values():
            values = {k: e.read(k) for k in e.streams}
            result["wrong"] += sum(
                any(not np.array_equal(values[k][t], v) for k, v in row(t).items()) for t in range(e.length)
            )
        for output in (*folder.glob("merged*"), *folder.glob("exported*")):
            whole = (
                len(EpisodeStore.open(output)) == 3
                if output.name.startswith("merged")
                else (output / "meta" / "info.json").is_file()
            )
            if not whole:
                result["problem"] = f"{output.name} is half made"
    except Exception as error:  # noqa: BLE001  counted, whatever it is
        result["problem"] = repr(error)
    shutil.rmtree(folder)
    return result


def _trash_episodes(store: EpisodeStore) -> list[Any]:
    from ulna.datasets.episode import Episode, attrs_of

    return [Episode(t.path, -1, attrs_of(t.path)) for t in trash(store)]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--trials", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--act")
    parser.add_argument("--store", type=Path)
    args = parser.parse_args()
    if args.act:
        act(args.act, args.store)
        return
    rng = random.Random(args.seed)
    trials_by_kind: dict[str, list[dict[str, Any]]] = {kind: [] for kind in KINDS}
    for i in range(args.trials):
        kind = KINDS[i % len(KINDS)]
        trials_by_kind[kind].append(trial(kind, rng))
        if trials_by_kind[kind][-1].get("problem"):
            print(kind, trials_by_kind[kind][-1], file=sys.stderr)
    summary = {
        kind: {
            "kills": len(trials),
            "acknowledged_rows": sum(t["acknowledged"] for t in trials),
            "lost_rows": sum(t["lost"] for t in trials),
            "wrong_rows": sum(t["wrong"] for t in trials),
            "changed_episodes": sum(t["changed"] for t in trials),
            "failed_to_open": sum("problem" in t for t in trials),
            "open_s_max": max(t.get("open_s", 0.0) for t in trials),
        }
        for kind, trials in trials_by_kind.items()
    }
    save("kills", {"trials": args.trials, "kinds": summary})


if __name__ == "__main__":
    main()
