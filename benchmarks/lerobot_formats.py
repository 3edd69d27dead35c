"""A LeRobot dataset in, out as v3.0 and in again: is every pixel, row and time what it was?

    python benchmarks/lerobot_formats.py path/to/lerobot_folder

Every imported frame is compared with PyAV's own decoding of the same video.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

import av
import numpy as np
from results import save

from ulna.datasets.features import ACTION, is_image
from ulna.datasets.formats.lerobot import import_lerobot
from ulna.datasets.formats.lerobot_export import export_lerobot
from ulna.datasets.store import EpisodeStore


def decode_video(path: Path) -> list[np.ndarray]:
    frames = []
    with av.open(str(path)) as container:
        frames += [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    return frames


def size_mb(path: Path) -> float:
    return sum(f.stat().st_size for f in path.rglob("*") if f.is_file()) / 1e6


def time_call(call: Any) -> tuple[Any, float]:
    began = time.monotonic()
    result = call()
    return result, time.monotonic() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("source", type=Path, help="LeRobot v2.1, one video an episode")
    source = parser.parse_args().source
    folder = Path(tempfile.mkdtemp(prefix="ulna-formats-"))
    store, import_s = time_call(lambda: import_lerobot(source, folder / "in"))
    cameras = [k for k in store.features if is_image(k)]
    count = same = 0
    for e in store.episodes:
        for key in cameras:
            (video,) = source.glob(f"videos/*/{key}/episode_{e.attrs['source_episode']:06d}.mp4")
            for row, frame in enumerate(decode_video(video)[: e.length]):
                count += 1
                same += bool(np.array_equal(e.read_frames(key, [row])[0], frame))
    export, export_s = time_call(lambda: export_lerobot(store, folder / "out"))
    reimport = import_lerobot(folder / "out", folder / "back")
    psnr: list[float] = []
    equal: dict[str, bool] = {"frames": True, "vectors": True, "times": True}
    for e, b in zip(store.episodes, reimport.episodes, strict=True):
        for key in store.features:
            equal["frames"] &= e.rows(key) == b.rows(key)
            equal["times"] &= all(
                np.array_equal(x, y) for x, y in zip(e.times_ns(key), b.times_ns(key), strict=True)
            )
            if not is_image(key):
                equal["vectors"] &= np.array_equal(e.read(key), b.read(key))
                continue
            for row in range(e.rows(key)):
                error = e.read_frames(key, [row])[0].astype(float) - b.read_frames(key, [row])[0]
                psnr.append(float(10 * np.log10(255**2 / max((error**2).mean(), 1e-9))))
    numbers = {
        "source": source.name,
        "episodes": len(store),
        "frames": sum(e.rows(k) for e in store.episodes for k in cameras),
        "action_dimensions": store.features[ACTION].shape[0],
        "pixel_identical_to_pyav": f"{same} of {count}",
        "import_s": round(import_s, 2),
        "export_s": round(export_s, 2),
        "size_mb": {
            "source": size_mb(source),
            "store": size_mb(EpisodeStore.open(folder / "in").path),
            "export": size_mb(export.out),
        },
        "round_trip_equal": equal,
        "psnr_db": {"min": min(psnr), "median": float(np.median(psnr))},
    }
    shutil.rmtree(folder)
    save("lerobot_formats", numbers)


if __name__ == "__main__":
    main()
