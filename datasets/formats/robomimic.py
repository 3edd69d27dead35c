"""Imports robomimic's files and Isaac Lab's, which has the same layout: one HDF5 file, `data/demo_<i>`.

robomimic, "Dataset overview": `obs`, `actions`, `dones`, `rewards`, and `env_args` with `control_freq`.
Isaac Lab's recorder (isaac-sim/IsaacLab, utils/datasets/hdf5_dataset_file_handler.py): `obs` nested by groups
of observations, `actions` and what became of them, `states` and `initial_state` of the simulator, and
the attribute `success` of a demo."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ..episode import StoreError
from ..features import ACTION, ENVIRONMENT, STATE
from ..store import EpisodeStore
from ..units import Restate, plain
from . import hdf5
from .hdf5 import Arrays
from .importing import ForeignEpisode, ImageOrder, build, require_control_hz
from .naming import OBSERVATION, Kind, Naming, place

# robomimic's own default for low-dimensional policies, and that of Isaac Lab's tasks
STATES = (
    ("robot0_eef_pos", "robot0_eef_quat", "robot0_gripper_qpos"),
    ("eef_pos", "eef_quat", "gripper_pos"),
)
ISAAC_LAB = "Isaac Lab"


def is_robomimic(path: Path) -> bool:
    if not path.is_file() or not hdf5.is_hdf5(path):
        return False
    with hdf5.opened(path) as file:
        return any(k.startswith("demo") for k in hdf5.own_group(file, "data"))


def import_robomimic(
    src: str | Path,
    dst: str | Path,
    control_hz: float | None = None,
    task: str = "",
    naming: Naming | None = None,
    image_size: tuple[int, int] | None = None,
    progress: Callable[[int, int], None] = lambda count, total: None,
    image_order: ImageOrder = "auto",
    restate: Restate = plain,
) -> EpisodeStore:
    """Bring a robomimic or Isaac Lab file into a new store at `dst`. Raises StoreError.

    observation.state is end effector position, quaternion and gripper, `object` is
    observation.environment_state, the rest of `obs` observation.<key>; other arrays come in only where naming
    names them. Actions stay as the file has them: for robosuite's usual controller, end effector motions
    scaled to -1..1. success: the demo's attribute; else whether a sparse reward of 1 came, and unknown where
    rewards are shaped (`dones` mark ends, not successes)."""
    src, dst = Path(src), Path(dst)
    with hdf5.opened(src) as file:
        data = hdf5.group_of(file, "data", src)
        demos = sorted(
            (k for k in data if k.startswith("demo")), key=lambda k: int((re.findall(r"\d+", k) or ["0"])[-1])
        )
        if not demos:
            raise StoreError(f"{src} has no group data/demo_0: it is no robomimic dataset")
        first = hdf5.group_of(data, demos[0], src)
        arrays, notes = _arrays(first, naming or Naming(), src)
        environment = _env_args(data)
        by_isaac = "initial_state" in first or "sim_args" in environment
        swapped = hdf5.swapped_keys(arrays, image_order, False)

        def episodes() -> Iterator[ForeignEpisode]:
            for name in demos:
                demo = hdf5.group_of(data, name, src)
                rows = len(hdf5.dataset_of(demo, arrays.parts[ACTION][0], src))
                columns = arrays.columns(demo, src, swapped)
                for key, parts in arrays.parts.items():
                    if any(len(hdf5.inside(demo, p, src)) != rows for p in parts):
                        raise StoreError(f"{src}: {name} has {rows} actions but other rows of {key}")
                success = hdf5.outcome(demo)
                if success is None and "rewards" in demo:
                    success = _by_rewards(np.asarray(hdf5.dataset_of(demo, "rewards", src)[:]))
                meta = {"task": task, "agent": "", "success": success, "source_episode": name}
                yield ForeignEpisode(rows, columns, meta)

        provenance = {
            "imported_from": str(src),
            "format": f"robomimic, by {ISAAC_LAB}" if by_isaac else "robomimic",
            "environment": str(environment.get("env_name", "")),
            **notes,
            **arrays.notes,
            "left_out": [k for k in file if k != "data"] + notes["left_out"],
            "action": "as in the file"
            + (
                "" if by_isaac else "; robosuite's operational space controller takes motions scaled to -1..1"
            ),
        }
        if arrays.pictures or image_order != "auto":
            provenance["image_order"] = "swapped to RGB, as asked for" if swapped else "taken for RGB"
        rate = require_control_hz(control_hz, _rate(environment), src)
        features = arrays.features
        return build(
            dst, features, rate, "", provenance, episodes(), image_size, progress, len(demos), restate
        )


def _arrays(demo: Any, naming: Naming, src: Path) -> tuple[Arrays, dict[str, Any]]:
    found = dict(hdf5.walk(demo, src))
    rows = {len(a) for path, a in found.items() if path.split("/")[0] in ("action", "actions") and a.ndim}
    places: dict[str, str] = {}
    kinds: dict[str, Kind] = {}
    for path, dataset in found.items():
        top, _, rest = path.partition("/")
        name = rest if top == "obs" and rest and rest not in found else path
        kind = hdf5.kind_of(dataset, src)
        if top not in ("obs", "action", "actions") and kind != "other":
            # of another length: one row of the initial state, say
            kind = "aside" if kind == "vector" and rows and len(dataset) in rows else "other"
        places[name], kinds[name] = path, kind
    by_last = {name.rsplit("/", 1)[-1]: name for name in reversed(places) if kinds[name] == "vector"}
    state = next((s for s in STATES if any(k in by_last for k in s)), ("policy", "obs"))
    known = {
        ACTION: ["actions"],
        STATE: [by_last[k] for k in state if k in by_last],
        ENVIRONMENT: [by_last["object"]] if "object" in by_last else [],
    }
    placement = place(kinds, naming, str(src), known)
    if not any(key.startswith(OBSERVATION) for key in placement.parts):
        has = ", ".join(n for n in kinds if n != "actions") or "nothing else"
        raise StoreError(
            f"{src} has no observations (no group obs): say what is one, as in --map "
            f"states=observation.state; beside its actions it has {has}"
        )
    notes = {**placement.notes, "left_out": _shortened(placement.left_out, places)}
    return hdf5.arrays(demo, places, placement.parts, src), notes


def _shortened(left_out: tuple[str, ...], places: dict[str, str]) -> list[str]:
    """`left_out`, with the name of a group in place of all its arrays where none of them came in."""
    paths = {places[n] for n in left_out}
    kept = {p.split("/")[0] for p in places.values() if p not in paths}
    names = (n if places[n].split("/")[0] in kept else places[n].split("/")[0] for n in left_out)
    return list(dict.fromkeys(names))


def _by_rewards(rewards: np.ndarray) -> bool | None:
    return bool((rewards == 1).any()) if np.isin(rewards, (0, 1)).all() else None


def _rate(environment: dict[str, Any]) -> float | None:
    """Rows a second by `env_args`: robosuite's control_freq, or Isaac Lab's time step and decimation."""
    kwargs, simulator = environment.get("env_kwargs"), environment.get("sim_args")
    stored = kwargs.get("control_freq") if isinstance(kwargs, dict) else None
    if stored is None and isinstance(simulator, dict):
        step_s, decimation = simulator.get("dt"), simulator.get("decimation")
        if (
            isinstance(step_s, int | float)
            and isinstance(decimation, int | float)
            and step_s * decimation > 0
        ):
            stored = 1 / (step_s * decimation)
    return float(stored) if isinstance(stored, int | float) and stored else None


def _env_args(data: Any) -> dict[str, Any]:
    try:
        arguments = json.loads(data.attrs.get("env_args", "{}"))
    except (TypeError, ValueError, OSError, RecursionError):
        return {}
    return arguments if isinstance(arguments, dict) else {}
