"""The card of a dataset, and its picture: what was recorded, and what `ulna data check` found."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ...datasets.checks.advice import ADVICE
from ...datasets.checks.findings import SEVERITIES, Finding
from ...datasets.features import is_image
from ...datasets.info import describe
from ...datasets.store import EpisodeStore
from ...datasets.video import resize
from .markdown import feature_table, front_matter, plain, table, tag

PICTURE = "frames.jpg"
CAMERAS, EPISODES, TIMES, WIDTH = 3, 4, 5, 192  # of the picture
SHOWN = 40  # findings in the card


def dataset_card(
    store: EpisodeStore, findings: Sequence[Finding], repo: str, license: str, notes: Sequence[str] = ()
) -> str:
    """README.md of the repository `repo`. license: as the hub writes it, "" where none is given. notes: what
    was left out, in words."""
    d = describe(store)
    header = front_matter(
        {
            "license": license,
            "task_categories": ["robotics"],
            "tags": list(filter(None, ["LeRobot", "ulna", tag(store.robot)])),
            "configs": [{"config_name": "default", "data_files": "data/*/*.parquet"}],
        }
    )
    judged = f"{d['successes']} succeeded, {d['failures']} failed"
    unjudged = d["episodes"] - d["successes"] - d["failures"]
    facts = [
        ("robot", store.robot or "not stated"),
        ("episodes", f"{d['episodes']} ({judged}, {unjudged} not judged)"),
        ("frames", f"{d['frames']} at {d['fps']:g} Hz, {d['seconds']:.0f} s"),
        ("recorded by", ", ".join(filter(None, d["agents"])) or "not stated"),
    ]
    tasks = Counter(e.task for e in store.episodes if not e.damage)
    cameras = [k for k in store.features if is_image(k)]
    parts = [
        header,
        f"# {plain(repo.partition('/')[2])}",
        table(("", ""), facts),
        f"![frames of some of the episodes]({PICTURE})" if cameras else "It has no camera.",
        "## Tasks",
        table(("task", "episodes"), ((t or "not stated", n) for t, n in tasks.most_common())),
        "## Features",
        feature_table(store.features),
        "## What `ulna data check` found",
        _findings(findings),
        *(["## Left out", "\n".join(f"- {plain(n)}" for n in notes)] if notes else []),
        "## Use it",
        _use(repo),
    ]
    return "\n\n".join(parts) + "\n"


def _findings(findings: Sequence[Finding]) -> str:
    if not findings:
        return "Nothing."
    counts = ", ".join(f"{sum(f.severity == s for f in findings)} {s}" for s in reversed(SEVERITIES))
    worst = sorted(findings, key=lambda f: -SEVERITIES.index(f.severity))
    rows = [
        (f.severity, f.episode if f.episode >= 0 else "all", f.check, f.stream, f.message)
        for f in worst[:SHOWN]
    ]
    more = [f"And {len(worst) - SHOWN} more."] if len(worst) > SHOWN else []
    kinds = dict.fromkeys(f.check for f in worst if f.severity != "info")
    advice = ["\n".join(f"- {k}: {plain(ADVICE[k])}" for k in kinds)] if kinds else []
    head = ("severity", "episode", "check", "stream", "what")
    return "\n\n".join([f"{counts}.", table(head, rows), *more, *advice])


def _use(repo: str) -> str:
    return f"""```sh
ulna train flow --data hub:{repo} --out runs/flow    # fetches the files that it needs
ulna pull {repo} --out data                          # all of it
```

```python
from lerobot.datasets import LeRobotDataset

dataset = LeRobotDataset("{repo}")
```"""


def contact_sheet(store: EpisodeStore) -> bytes | None:
    """Frames of some episodes as one JPEG: a row an episode and camera, time to the right. None without a
    camera. Raises StoreError where a frame cannot be read."""
    import cv2

    cameras = [k for k in store.features if is_image(k)][:CAMERAS]
    usable = [e for e in store.episodes if not e.damage and e.length]
    if not cameras or not usable:
        return None
    chosen = np.unique(np.linspace(0, len(usable) - 1, EPISODES).round().astype(int)).tolist()
    height = max(
        1, round(WIDTH * max(store.features[k].shape[0] / store.features[k].shape[1] for k in cameras))
    )
    rows: list[np.ndarray] = []
    for i in chosen:
        for key in cameras:
            count = usable[i].rows(key)
            at = np.linspace(0, count - 1, TIMES).round().astype(int)
            rows.append(np.hstack([_fitted(f, height) for f in usable[i].read_frames(key, at)]))
    done, data = cv2.imencode(".jpg", cv2.cvtColor(np.vstack(rows), cv2.COLOR_RGB2BGR))
    if not done:
        raise ValueError("the picture of the card cannot be encoded")
    return data.tobytes()


def _fitted(frame: np.ndarray, height: int) -> np.ndarray:
    """`frame` scaled to WIDTH, on black of `height`."""
    own = max(1, min(height, round(WIDTH * frame.shape[0] / frame.shape[1])))
    out = np.zeros((height, WIDTH, 3), np.uint8)
    out[:own] = resize(frame, (own, WIDTH))
    return out


def data_files(folder: Path) -> dict[str, Any]:
    """The files of a LeRobot folder that belong to it, by their path in it; those that it holds besides are
    not the dataset's."""
    return {
        name: path
        for path in sorted(folder.rglob("*"))
        if path.is_file() and owned(name := path.relative_to(folder).as_posix())
    }


def owned(name: str) -> bool:
    """Whether a path of the repository is of a dataset, but for its card."""
    return name.startswith(("meta/", "data/", "videos/", "images/")) and not any(
        part.startswith(".") for part in name.split("/")
    )
