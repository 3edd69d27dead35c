"""Random training windows from the same episodes: Ulna's store, LeRobot's reader, and arrays in memory.

    python benchmarks/reading.py

Windows have two observations and a horizon of 16, batches 64 windows; two cameras, at 96×96 and at 224×224.
LeRobot reads our own export of the store (H.264, a key frame every second frame, as it writes itself) with
`delta_timestamps` for the same windows, through torch's DataLoader as `lerobot-train` does, by torchcodec,
which is its default and needs the system's FFmpeg, and by pyav, which it takes where that lacks. The replay
buffer in memory is written after Diffusion Policy's: one array a key, a slice a window, collated. Rates read
in one process are medians over batches; those through a loader (LeRobot's, and ours with workers) the whole
time of all batches. Memory is the peak resident set of a process that does nothing but read a dataset of 6
GB, one of whose cameras is just small enough for the default cache (`auto`) to hold it."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from recording import frames
from results import save

from ulna.datasets.features import Feature
from ulna.datasets.formats.lerobot_export import export_lerobot
from ulna.datasets.reading.loader import batches
from ulna.datasets.reading.windows import Windows, WindowSpec, batch_indices
from ulna.datasets.recording.writer import EpisodeWriter
from ulna.datasets.store import EpisodeStore

CAMERAS = ("observation.images.front", "observation.images.wrist")
STATE, ACTION = "observation.state", "action"
BATCH, STEPS_BACK, HORIZON, FPS = 64, 2, 16, 20
DECODERS = ("torchcodec", "pyav")  # LeRobot's, the first its default
SPEC = WindowSpec(STEPS_BACK, HORIZON, keys=(STATE, *CAMERAS))


def make(path: Path, sizes: Mapping[str, int], episodes: int, length: int) -> EpisodeStore:
    """Frames of the simulated arm with a sensor's noise, resized to squares. sizes: camera → pixels."""
    import cv2

    small = {
        k: [cv2.resize(f, (size, size), interpolation=cv2.INTER_AREA) for f in frames()]
        for k, size in sizes.items()
    }
    features = {k: Feature((7,), "float32", tuple("abcdefg")) for k in (STATE, ACTION)}
    features |= {k: Feature((size, size, 3), "uint8") for k, size in sizes.items()}
    store = EpisodeStore.create(path, features, float(FPS))
    rng = np.random.default_rng(0)
    with EpisodeWriter(store) as writer:
        for e in range(episodes):
            writer.start({"task": "benchmark"})
            for t in range(length):
                q = rng.normal(size=7).astype(np.float32)
                values = {STATE: q, ACTION: q}
                for c, key in enumerate(sizes):
                    values[key] = np.roll(small[key][(e * 7 + t) % len(small[key])], 3 * e + 11 * c, axis=1)
                at = t * 10**9 // FPS
                writer.tick(values, dict.fromkeys(values, (at, at)))
            writer.end({})
    return store


def rate(read: Callable[[int], Any], count: int) -> float:
    """Windows a second, by the median batch; the first two warm up."""
    spans = []
    for step in range(count + 2):
        began = time.perf_counter()
        read(step)
        spans.append(time.perf_counter() - began)
    return BATCH / float(np.median(spans[2:]))


def through(source: Iterator[Any], count: int) -> float:
    """Windows a second of a loader: the whole time of `count` batches after the first two."""
    for _ in range(2):
        next(source)
    began = time.perf_counter()
    for _ in range(count):
        next(source)
    return BATCH * count / (time.perf_counter() - began)


def in_memory(store: EpisodeStore) -> Callable[[int], Any]:
    """Diffusion Policy's way: arrays of all episodes end to end, the windows' bounds worked out before, a
    window at a time."""
    arrays = {k: np.concatenate([e.read(k) for e in store.episodes]) for k in SPEC.keys}
    action = np.concatenate([e.read(ACTION) for e in store.episodes])
    ends = np.cumsum([e.length for e in store.episodes])
    starts = np.concatenate([[0], ends[:-1]])
    n = int(ends[-1])

    def window(i: int) -> dict[str, np.ndarray]:
        e = int(np.searchsorted(ends, i, side="right"))
        first, end = int(starts[e]), int(ends[e])
        low = max(i - STEPS_BACK + 1, first)
        out = {}
        for key, array in arrays.items():
            observed = array[low : i + 1]
            if len(observed) < STEPS_BACK:
                observed = np.concatenate([np.repeat(observed[:1], STEPS_BACK - len(observed), 0), observed])
            out[key] = observed
        ahead = action[i : min(i + HORIZON, end)]
        if len(ahead) < HORIZON:
            ahead = np.concatenate([ahead, np.repeat(ahead[-1:], HORIZON - len(ahead), 0)])
        return {**out, ACTION: ahead}

    def read(step: int) -> Any:
        windows = [window(int(i)) for i in batch_indices(n, BATCH, 0, step)]
        return {k: np.stack([w[k] for w in windows]) for k in windows[0]}

    return read


def lerobot(root: Path, decoder: str, workers: int, count: int) -> float:
    warnings.simplefilter("ignore")
    os.environ["HF_HUB_OFFLINE"] = "1"
    import torch
    from lerobot.datasets import LeRobotDataset

    observation_delta = [(i - STEPS_BACK + 1) / FPS for i in range(STEPS_BACK)]
    delta = {**dict.fromkeys(SPEC.keys, observation_delta), ACTION: [i / FPS for i in range(HORIZON)]}
    data = LeRobotDataset("benchmark/reading", root=root, delta_timestamps=delta, video_backend=decoder)
    torch.manual_seed(0)
    loader = torch.utils.data.DataLoader(data, BATCH, shuffle=True, num_workers=workers, drop_last=True)  # type: ignore[arg-type]
    return through(iter(loader), count)


def memory_of(path: Path, cache: str) -> dict[str, float]:
    """Peak resident set of a process that reads random windows, before them and after."""
    command = [sys.executable, __file__, "--read", str(path), "--cache", cache]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(run.stdout.splitlines()[-1])


def read_for_memory(path: Path, cache: Any) -> None:
    windows = Windows(EpisodeStore.open(path), SPEC, cache=cache, cache_dir=path.with_name("cache"))
    for step in range(60):
        windows.batch(batch_indices(len(windows), BATCH, 0, step))
    # not getrusage, whose peak a child inherits from whoever started it
    status = Path("/proc/self/status").read_text()
    peak = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM:")) / 1024
    images = windows._images.values()
    held_bytes = sum(f._memory.nbytes for f in images if f._memory is not None)
    size = sum(f.nbytes for f in images)
    numbers = {"peak_resident_mb": peak, "held_mb": held_bytes / 1e6, "decoded_gb": size / 1e9}
    print(json.dumps({**numbers, "windows": len(windows)}))


def compare(folder: Path, size: int, count: int) -> dict[str, Any]:
    store = make(folder / f"{size}", dict.fromkeys(CAMERAS, size), 12, 150)
    export_lerobot(store, folder / f"{size} lerobot")
    n = sum(e.length for e in store.episodes)

    def rows(step: int) -> np.ndarray:
        return batch_indices(n, BATCH, 0, step)

    rates: dict[str, float] = {}
    plain = Windows(store, SPEC, cache="none")
    rates["ulna, from the store"] = rate(lambda s: plain.batch(rows(s)), count)
    ram = Windows(store, SPEC, cache="ram")
    disk = Windows(store, SPEC, cache="disk", cache_dir=folder / "cache")
    arms: dict[str, Callable[[int], Any]] = {
        "ulna, cached in ram": lambda s: ram.batch(rows(s)),
        "ulna, cached in disk": lambda s: disk.batch(rows(s)),
        "arrays in memory": in_memory(store),
    }
    # in turns, since the allocator is slow until it has learned the sizes: the first round is not counted
    rounds = [{name: rate(arm, count * 2) for name, arm in arms.items()} for _ in range(4)]
    rates |= {name: float(np.median([r[name] for r in rounds[1:]])) for name in arms}
    for workers in (1, 2):
        key = f"ulna, from the store, {workers} worker{'s' * (workers > 1)}"
        rates[key] = through(batches(plain, rows, 0, count * 2 + 8, workers), count * 2)
    for decoder, workers in product(DECODERS, (0, 2)):
        # in a process of its own: a decoder that was used must not be shared with workers
        command = [sys.executable, __file__, "--lerobot", str(folder / f"{size} lerobot")]
        command += ["--decoder", decoder, "--workers", str(workers), "--batches", str(max(6, count // 4))]
        run = subprocess.run(command, capture_output=True, text=True, check=True)
        name = "lerobot" if decoder == DECODERS[0] else f"lerobot, {decoder}"
        rates[f"{name}, {workers} workers" if workers else name] = float(run.stdout.splitlines()[-1])
    best = max(v for k, v in rates.items() if k.startswith("lerobot"))
    return {
        "windows_per_s": {k: round(v, 1) for k, v in rates.items()},
        "store_to_lerobot": rates["ulna, from the store"] / rates["lerobot"],
        "store_2_workers_to_best_lerobot": rates["ulna, from the store, 2 workers"] / best,
        "ram_to_arrays": rates["ulna, cached in ram"] / rates["arrays in memory"],
        "disk_to_arrays": rates["ulna, cached in disk"] / rates["arrays in memory"],
        "two_workers_to_one": rates["ulna, from the store, 2 workers"]
        / rates["ulna, from the store, 1 worker"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--batches", type=int, default=40)
    parser.add_argument("--read", type=Path)
    parser.add_argument("--lerobot", type=Path)
    parser.add_argument("--decoder", choices=DECODERS, default=DECODERS[0])
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--cache", default="none")
    args = parser.parse_args()
    if args.read:
        read_for_memory(args.read, args.cache)
        return
    if args.lerobot:
        print(lerobot(args.lerobot, args.decoder, args.workers, args.batches))
        return
    import torchcodec  # noqa: F401  else LeRobot's default would not be what is measured

    folder = Path(tempfile.mkdtemp(prefix="ulna-reading-"))
    try:
        sizes = {str(size): compare(folder, size, args.batches) for size in (96, 224)}
        # 6 GB of pixels, of which the default may hold those of the second camera
        big = make(folder / "big", dict(zip(CAMERAS, (310, 64), strict=True)), 40, 500).path
        memory = {cache: memory_of(big, cache) for cache in ("auto", "none", "disk")}
    finally:
        shutil.rmtree(folder)
    save("reading", {"batch": BATCH, "sizes": sizes, "memory": memory})


if __name__ == "__main__":
    main()
