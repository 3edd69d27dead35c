"""Samples that other projects' own tools write, imported: is everything what those tools read?

    python benchmarks/foreign_samples.py [--only gr00t ...]

Each script in benchmarks/foreign/ runs in an environment of its own under runs/foreign/, which is made here
from the package registry (2 GB in all; PyTorch and LeRobot 0.6 are this repository's). It writes samples,
each with what its tool reads of it; `ulna data import`, `info` and `check` follow, and every number is
compared. Rendering needs EGL.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from results import save

from ulna.datasets.store import EpisodeStore

ROOT = Path(__file__).parents[1]
BIN = Path(sys.executable).parent
RUNS = ROOT / "runs" / "foreign"
EQUAL = "equal"


@dataclass(frozen=True)
class Tool:
    """script: of benchmarks/foreign/. packages: what its environment holds. shared: those alone, and the
    packages of this repository behind them."""

    script: str
    packages: tuple[str, ...]
    shared: bool


MUJOCO = ("mujoco==3.3.0", "glfw==2.11.0", "pyopengl==3.1.10", "etils==1.15.0", "zipp", "importlib_resources")
TOOLS = {
    "metaworld": Tool("metaworld_lerobot", ("metaworld==3.1.1", *MUJOCO, "scipy", "imageio"), True),
    "robomimic": Tool(
        "robosuite_robomimic",
        (
            *("robomimic==0.3.0", "robosuite==1.5.2", *MUJOCO, "scipy", "imageio", "imageio-ffmpeg", "numba"),
            *("llvmlite", "numpy==2.2.6", "tensorboard", "tensorboardX", "protobuf", "termcolor", "six"),
            *("matplotlib", "contourpy", "cycler", "kiwisolver", "fonttools", "pyparsing", "python-dateutil"),
            *("diffusers", "markdown", "werkzeug", "grpcio", "absl-py"),
        ),
        True,
    ),
    "aloha": Tool("aloha_hdf5", ("gym-aloha==0.1.5", "h5py==3.16.0", "opencv-python-headless"), False),
    "replay_buffers": Tool(
        "replay_buffers", ("zarr==2.18.7", "numcodecs==0.15.1", "imagecodecs==2026.10.10"), False
    ),
    "gr00t": Tool(
        "gr00t_lerobot",
        (
            *(
                "nvidia-gr00t-sdk==0.1.0",
                "lerobot==0.3.3",
                "datasets==3.6.0",
                "draccus==0.10.0",
                "dill<0.3.9",
            ),
            *("multiprocess<0.70.17", "deepdiff", "pydantic", "pydantic-core", "annotated-types"),
            *("typing-inspection", "decord==0.6.0", "numpydantic", "albumentations==1.4.18"),
            *("albucore==0.0.17", "scipy", "eval-type-backport", "stringzilla", "simsimd", "scikit-image"),
            "lazy-loader",
        ),
        True,
    ),
}
NOT_TO_BE_HAD = {
    "Diffusion Policy's and UMI's ReplayBuffer": "in their repositories alone: zarr 2 is called as it does",
    "ALOHA's record scripts": "in their repositories alone: h5py and OpenCV are called as they do",
    "Isaac Lab's recorder": "needs Isaac Sim and a GPU: its layout is tested in tests/datasets/formats alone",
    "PyTorch3D, mujoco_py, egl_probe": "not for this Python: GR00T's and robomimic's readers run without",
}


def environment(name: str, tool: Tool) -> Path:
    """The Python of the tool's environment, made unless it is there as it should be."""
    folder = RUNS / f"env-{name}"
    python, made = folder / "bin" / "python", folder / "made.txt"
    wanted = "\n".join(tool.packages)
    if not made.exists() or made.read_text() != wanted:
        uv = str(BIN / "uv")
        subprocess.run([uv, "venv", "-q", "--clear", "--python", sys.executable, str(folder)], check=True)
        # without the settings of this repository, which forbid a package of theirs
        install = [uv, "pip", "install", "-q", "--no-config", "--python", str(python)]
        subprocess.run([*install, *(["--no-deps"] if tool.shared else []), *tool.packages], check=True)
        version = f"python{sys.version_info.major}.{sys.version_info.minor}"
        if tool.shared:
            (folder / "lib" / version / "site-packages" / "shared.pth").write_text(
                f"{BIN.parent / 'lib' / version / 'site-packages'}\n"
            )
        made.write_text(wanted)
    return python


def write(name: str, tool: Tool) -> list[Path]:
    """The samples that the tool wrote."""
    python, folder = environment(name, tool), RUNS / "samples" / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    offline = {"HF_HUB_OFFLINE": "1", "NO_ALBUMENTATIONS_UPDATE": "1", "WANDB_MODE": "disabled"}
    environ = {**os.environ, **offline, "MUJOCO_GL": "egl", "OMP_NUM_THREADS": "1"}
    script = Path(__file__).parent / "foreign" / f"{tool.script}.py"
    with (folder / "log.txt").open("w") as log:
        subprocess.run(
            [str(python), str(script), str(folder)], env=environ, stdout=log, stderr=log, check=True
        )
    return sorted(p.parent for p in folder.glob("*/sample.json"))


def ulna(*argv: object, may_find: bool = False) -> str:
    """What `ulna data …` prints. Raises RuntimeError if it fails; may_find: 1 only says that it found
    something."""
    command = [str(BIN / "ulna"), "data", *map(str, argv)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode > may_find:
        raise RuntimeError(done.stderr.strip() or done.stdout.strip())
    return done.stdout


def compare(store: EpisodeStore, truth: dict[str, np.ndarray]) -> dict[str, str]:
    """Feature → EQUAL where all of its rows are what the tool reads, else how far they are off."""
    result: dict[str, str] = {}
    for key in sorted({name.split(" ", 1)[1] for name in truth}):
        furthest, narrowed = 0.0, ""
        for i, episode in enumerate(store.episodes):
            said = truth[f"{i} {key}"]
            rows = episode.read(key) if key in store.features else np.empty(0)
            if rows.shape != said.shape:
                return {**result, key: f"{rows.shape} in episode {i}, not {said.shape}"}
            if not np.array_equal(rows, said.astype(rows.dtype)):
                furthest = max(furthest, float(np.abs(rows.astype(np.float64) - said).max()))
            elif rows.dtype != said.dtype and not np.array_equal(rows, said):
                narrowed = f"{EQUAL}, as {rows.dtype}"
        result[key] = f"off by at most {furthest:g}" if furthest else narrowed or EQUAL
    return result


def try_sample(path: Path) -> dict[str, Any]:
    about = json.loads((path / "sample.json").read_text())
    out = path / "imported"
    result = {k: about[k] for k in ("tools", "wrote", "read_by", "options", "notes") if about[k]}
    try:
        ulna("import", path / about["source"], "--out", out, *about["options"])
        ulna("info", out)
        checked = ulna("check", out, may_find=True)
    except RuntimeError as error:
        return {**result, "imported": False, "why": str(error)}
    store = EpisodeStore.open(out)
    with np.load(path / "truth.npz") as file:
        truth = {k: file[k] for k in file.files}
    episodes = {int(k.split(" ", 1)[0]) for k in truth}
    equal = compare(store, truth) if len(store) == len(episodes) else {"episodes": f"{len(store)}"}
    for name, values in about["attributes"].items():
        own = [e.attrs.get(name) for e in store.episodes]
        equal[name] = EQUAL if own == values else f"{own}, not {values}"
    compared = {k.split(" ", 1)[1] for k in truth}
    lines = [re.split(r" {2,}", line.strip()) for line in checked.splitlines()]
    findings = {f"{f[0]}: {f[-2]}" for f in lines if f[0] in ("severe", "warning", "info") and len(f) > 2}
    return {
        **result,
        "imported": True,
        "as": store.provenance["format"],
        "episodes": len(store),
        "rows": sum(e.length for e in store.episodes),
        "equal": equal,
        "not_compared": sorted(set(store.features) - compared),
        "provenance": {
            k: v
            for k, v in store.provenance.items()
            if v and k not in ("imported_from", "format", "renamed", "times")
        },
        "episode_notes": sorted({n for e in store.episodes for n in e.attrs.get("notes") or ()}),
        "check": sorted(findings),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=TOOLS, help="these alone; nothing is saved")
    only = parser.parse_args().only
    samples: dict[str, Any] = {}
    for name, tool in TOOLS.items():
        if only and name not in only:
            continue
        print(f"== {name}", file=sys.stderr)
        try:
            paths = write(name, tool)
        except (subprocess.CalledProcessError, OSError) as error:
            samples[name] = {"written": False, "why": str(error)[:300]}
            continue
        for path in paths:
            samples[path.name] = try_sample(path)
    equal = [
        bool(e) and all(v.startswith(EQUAL) for v in e.values())
        for e in (s.get("equal") for s in samples.values())
    ]
    numbers = {
        "samples": samples,
        "imported": f"{sum(bool(s.get('imported')) for s in samples.values())} of {len(samples)}",
        "equal_in_all": f"{sum(equal)} of {len(samples)}",
        "not_to_be_had": NOT_TO_BE_HAD,
    }
    if only:
        print(json.dumps(numbers, indent=1))
    else:
        save("foreign_samples", numbers)


if __name__ == "__main__":
    main()
