"""Recording at full load: two 640×480 cameras at 30 Hz and 7 joints at 100 Hz, one episode, on this machine.

    python benchmarks/recording.py --seconds 60

Arms, each in a process of its own: nothing recorded; Ulna's recorder (and with power durability); LeRobot 0.6
as `lerobot-record` configures it (PNG files, encoded when the episode is saved) and with streaming encoding,
both at its one rate of 30 rows a second. Lateness is how long after its due time a control tick has done its
work. Memory is the proportional set size of all processes of the arm."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from results import save

CAMERAS = ("observation.images.front", "observation.images.wrist")
STATE, ACTION = "observation.state", "action"
HZ, CAMERA_HZ, JOINTS = 100, 30, 7
ARMS = ("nothing", "ulna", "ulna, power durability", "lerobot, default", "lerobot, streaming")


def frames(count: int = 60) -> np.ndarray:
    """`(count, 480, 640, 3)` uint8: the simulated arm at work, with a sensor's noise (deviation 2)."""
    cache = Path(tempfile.gettempdir()) / f"ulna-bench-frames-{count}.npy"
    if cache.is_file():
        return np.load(cache)
    from ulna.sim.scene import SimScene

    scene = SimScene("so101", "lift", ["front"], (480, 640), 20.0, None, False)
    robot_arm = next(iter(scene.arms.values()))
    camera = next(iter(scene.cameras.values()))
    robot_arm.open()
    camera.open()
    robot_arm.enable()
    scene.reset(0)
    expert, rng, pictures = scene.expert(0.004, None), np.random.default_rng(0), []
    expert.reset(0)
    for _ in range(count):
        values = {STATE: robot_arm.read().data}
        for tracker in scene.trackers.values():
            values["observation.environment_state"] = tracker.read().data
        robot_arm.command(expert.act(values), scene.clock.now_ns() + 50_000_000)
        scene.clock.sleep_until(scene.clock.now_ns() + 50_000_000)
        picture = camera.latest().data + rng.normal(0, 2, (480, 640, 3))
        pictures.append(picture.clip(0, 255).astype(np.uint8))
    np.save(cache, np.stack(pictures))
    return np.stack(pictures)


def loop(seconds: float, tick: Any, camera: Any, pictures: np.ndarray) -> dict[str, Any]:
    """The control loop at `HZ`, and two camera threads at `CAMERA_HZ`: `tick(i, now_ns)`, `camera(k, frame,
    now_ns)`."""
    stop_event = threading.Event()
    counts = [0] * len(CAMERAS)

    def film(k: int) -> None:
        began = time.monotonic_ns()
        while not stop_event.is_set():
            counts[k] += 1
            now = time.monotonic_ns()
            camera(
                k, pictures[(counts[k] + 7 * k) % len(pictures)].copy(), now
            )  # a driver hands over a buffer of its own
            due = began + counts[k] * 10**9 // CAMERA_HZ
            time.sleep(max(0, due - time.monotonic_ns()) * 1e-9)

    threads = [threading.Thread(target=film, args=(k,), daemon=True) for k in range(len(CAMERAS))]
    for thread in threads:
        thread.start()
    began, late, ticks = time.monotonic_ns(), [], round(seconds * HZ)
    for i in range(ticks):
        due = began + i * 10**9 // HZ
        time.sleep(max(0, due - time.monotonic_ns()) * 1e-9)
        tick(i, time.monotonic_ns())
        late.append((time.monotonic_ns() - due) * 1e-6)
    stop_event.set()
    for thread in threads:
        thread.join()
    p50, p99, worst = np.percentile(late[HZ:], [50, 99, 100]).tolist()  # the first second is warm-up
    return {"ticks": ticks, "frames": counts, "lateness_ms": {"p50": p50, "p99": p99, "max": worst}}


def joints(i: int) -> np.ndarray:
    return np.sin(0.01 * i + np.arange(JOINTS)).astype(np.float32)


def run_nothing(out: Path, seconds: float) -> dict[str, Any]:
    return loop(seconds, lambda i, now: joints(i), lambda k, frame, now: None, frames())


def run_ulna(out: Path, seconds: float, durability: Any = "process") -> dict[str, Any]:
    from ulna.datasets.features import Feature
    from ulna.datasets.recording.recorder import Recorder
    from ulna.datasets.store import EpisodeStore

    names = tuple(f"joint{j}" for j in range(JOINTS))
    features = {k: Feature((JOINTS,), "float32", names, ("rad",) * JOINTS) for k in (STATE, ACTION)}
    features |= {k: Feature((480, 640, 3), "uint8") for k in CAMERAS}
    store = EpisodeStore.create(out, features, float(HZ))
    pictures = frames()
    with Recorder(store, durability, own_rate=CAMERAS) as recorder:
        recorder.start({"task": "benchmark"})

        def tick(i: int, now: int) -> None:
            q = joints(i)
            recorder.tick({STATE: q, ACTION: q}, {STATE: (now, now), ACTION: (now, now)})

        result = loop(seconds, tick, lambda k, f, now: recorder.append(CAMERAS[k], f, now, now), pictures)
        began = time.monotonic()
        recorder.end({"success": True})
        result["finish_s"] = time.monotonic() - began
        result["dropped"] = sum(recorder.dropped.values())
    e = EpisodeStore.open(out).episodes[0]
    assert e.length == result["ticks"]
    assert [e.rows(k) for k in CAMERAS] == result["frames"]
    return result


def run_lerobot(out: Path, seconds: float, streaming: bool) -> dict[str, Any]:
    warnings.simplefilter("ignore")
    from lerobot.datasets import LeRobotDataset

    vector = {"dtype": "float32", "shape": (JOINTS,), "names": [f"joint{j}" for j in range(JOINTS)]}
    image = {"dtype": "video", "shape": (480, 640, 3), "names": ["height", "width", "channels"]}
    options: dict[str, Any] = (
        {"streaming_encoding": True} if streaming else {"image_writer_threads": 4 * len(CAMERAS)}
    )
    data = LeRobotDataset.create(
        "benchmark/recording",
        CAMERA_HZ,
        {STATE: vector, ACTION: vector, **dict.fromkeys(CAMERAS, image)},
        root=out,
        **options,
    )
    newest: dict[int, np.ndarray] = {}
    pictures = frames()
    rows = 0

    def tick(i: int, now: int) -> None:
        nonlocal rows
        q = joints(i)
        if len(newest) == len(CAMERAS) and i * CAMERA_HZ // HZ > rows:
            rows += 1
            data.add_frame(
                {STATE: q, ACTION: q, **{CAMERAS[k]: f for k, f in newest.items()}, "task": "benchmark"}
            )

    result = loop(seconds, tick, lambda k, f, now: newest.__setitem__(k, f), pictures)
    began = time.monotonic()
    data.save_episode()
    data.finalize()
    result["finish_s"] = time.monotonic() - began
    result["rows"] = rows
    return result


def memory_mb(pid: int) -> float:
    """Proportional set size of a process and all below it."""
    total = 0
    todo = [pid]
    while todo:
        at = todo.pop()
        try:
            rollup = Path(f"/proc/{at}/smaps_rollup").read_text()
            total += next(int(line.split()[1]) for line in rollup.splitlines() if line.startswith("Pss:"))
            for task in Path(f"/proc/{at}/task").iterdir():
                todo += map(int, (task / "children").read_text().split())
        except (OSError, StopIteration):
            continue
    return total / 1024


def measure(arm: str, seconds: float, timeout_s: float) -> dict[str, Any]:
    folder = Path(tempfile.mkdtemp(prefix="ulna-bench-"))
    command = [
        sys.executable,
        __file__,
        "--arm",
        arm,
        "--out",
        str(folder / "data"),
        "--seconds",
        str(seconds),
    ]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    began, most = time.monotonic(), 0.0
    while process.poll() is None:
        most = max(most, memory_mb(process.pid))
        time.sleep(0.5)
        if time.monotonic() - began > timeout_s:
            process.kill()
            process.wait()
            return {"gave_up_after_s": timeout_s, "memory_mb": most}
    assert process.stdout is not None
    lines = process.stdout.read().decode().splitlines()
    if process.returncode:
        return {"failed": process.returncode}
    size = sum(f.stat().st_size for f in folder.rglob("*") if f.is_file())
    shutil.rmtree(folder)
    return {**json.loads(lines[-1]), "memory_mb": most, "size_mb": size / 1e6}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--arm", choices=ARMS)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    if args.arm:
        os.environ["HF_HUB_OFFLINE"] = "1"
        arms = {
            "nothing": lambda: run_nothing(args.out, args.seconds),
            "ulna": lambda: run_ulna(args.out, args.seconds),
            "ulna, power durability": lambda: run_ulna(args.out, args.seconds, "power"),
            "lerobot, default": lambda: run_lerobot(args.out, args.seconds, False),
            "lerobot, streaming": lambda: run_lerobot(args.out, args.seconds, True),
        }
        print(json.dumps(arms[args.arm]()))
        return
    frames()
    save(
        "recording", {"seconds": args.seconds, "arms": {arm: measure(arm, args.seconds, 900) for arm in ARMS}}
    )


if __name__ == "__main__":
    main()
