"""The state of a training: all that it needs to go on, in one file beside the checkpoint. A finished one
keeps it, so that it can go on with more steps."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.optim.swa_utils import AveragedModel

from ...datasets.stats import Stats
from ..policy import Policy
from .config import differences
from .eight_bits import flat_state, unflat
from .error import TrainingError
from .spread import like

STATE_FILE = "training.safetensors"


@dataclass(frozen=True)
class Before:
    """What a run goes on from: the state of an unfinished training, or that of a finished one, which goes on
    with more steps. steps: how many it has made. counts: how many episodes of each dataset it has seen.
    validation: losses on the held-out episodes, by step. stats: that its weights were trained by; none in
    states from before they were kept there."""

    path: Path
    identity: dict[str, Any]
    steps: int
    counts: list[int]
    validation: dict[str, float]
    finished: bool
    stats: dict[str, Stats]


def read_before(out: Path) -> Before:
    """What lies in `out` to go on from. TrainingError where nothing does."""
    state = out / STATE_FILE
    if not state.is_file():
        why = "it holds a trained checkpoint, but not the state" if (out / "hash.json").is_file() else ""
        raise TrainingError(f"{out} holds no unfinished training to resume{why and f': {why}'}")
    header = read_header(state)
    return Before(
        state,
        header["identity"],
        len(header["losses"]),
        header.get("counts", []),
        header.get("validation", {}),
        header.get("finished", False),
        {k: Stats.from_json(v) for k, v in header.get("stats", {}).items()},
    )


def is_unfinished(out: Path) -> bool:
    state = out / STATE_FILE
    return state.is_file() and not read_header(state).get("finished", False)


def require_resumes(out: Path, before: Before, identity: Mapping[str, Any], grown: bool) -> None:
    """TrainingError where a run of this identity does not go on with `before`. A finished one may go on for
    more steps, and on data that have grown."""
    was, steps = dict(before.identity), identity["recipe"]["training"]["steps"]
    if steps <= before.steps:
        raise TrainingError(
            f"{out} has already trained {before.steps} of {steps} steps: more --steps make it go on"
        )
    if before.finished:
        was["recipe"] = {**was["recipe"], "training": {**was["recipe"]["training"], "steps": steps}}
        if grown:
            was |= {k: identity[k] for k in ("data", "frames", "weighting", "words")}
    if changes := differences(was, identity):
        raise TrainingError(f"{'; '.join(changes)}: {out} resumes as it was begun, or begins anew elsewhere")


def make_folder(out: Path, overwrite: bool, main: bool) -> None:
    """Make `out` ready for a new run. TrainingError where another would be overwritten."""
    if not overwrite:
        require_unused(out)
    elif main:
        (out / STATE_FILE).unlink(missing_ok=True)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise TrainingError(f"cannot make the folder {out}: {error.strerror}") from None


@contextlib.contextmanager
def one_sentence(out: Path) -> Iterator[None]:
    """A full disk and the like become one sentence, and no half-written file is left that fills it
    further."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        (out / f".{STATE_FILE}").unlink(missing_ok=True)
        reason = getattr(error, "strerror", None) or str(error).rpartition("I/O error: ")[2]
        state = out / STATE_FILE
        then = "make room and go on with --resume" if state.exists() else "make room and train again"
        raise TrainingError(f"cannot write to {out}: {reason}; {then}") from error


def require_unused(out: Path) -> None:
    """TrainingError where a run into `out` would discard another."""
    if is_unfinished(out):
        raise TrainingError(
            f"{out} holds an unfinished training: go on with --resume, or discard it with --overwrite"
        )
    if (out / "hash.json").exists():
        more = "go on with it by --resume --steps N, " if (out / STATE_FILE).exists() else ""
        raise TrainingError(
            f"{out} holds a trained checkpoint: choose another --out, {more}or replace it with --overwrite"
        )


def save_state(
    out: Path,
    identity: dict[str, Any],
    counts: list[int],
    stats: Mapping[str, Stats],
    tensors: Mapping[str, Tensor],
    averaged: int,
    losses: list[float],
    validation: dict[str, float],
    finished: bool = False,
) -> None:
    """Everything a resume needs, in one safetensors file that arrives by one rename. counts, stats: see
    `Before`. tensors: those of `state_tensors`, whole. averaged: how many steps the average has seen."""
    header = {
        "identity": identity,
        "counts": counts,
        "stats": {k: s.to_json() for k, s in stats.items()},
        "finished": finished,
        "losses": losses,
        "ema_step": averaged,
        "validation": validation,
    }
    write_state(out, tensors, header)


def state_tensors(
    weights: Mapping[str, Tensor], optimizer: Any, ema: AveragedModel, table: Tensor | None = None
) -> dict[str, Tensor]:
    """By their names in the file. weights: of the policy, not averaged. table: of the objective's curriculum,
    see `curriculum.py`."""
    tensors: dict[str, Tensor] = {f"model/{k}": v for k, v in weights.items()}
    for i, entry in optimizer.state_dict()["state"].items():
        tensors |= {f"adam/{i}/{k}": v for k, v in flat_state(entry).items()}
    tensors |= {f"ema/{i}": v for i, v in enumerate(ema.module.parameters())}
    if table is not None:
        tensors["table"] = table
    return tensors


def write_state(out: Path, tensors: Mapping[str, Tensor], header: Mapping[str, Any]) -> None:
    """The state of a run in the folder `out`; it arrives by one rename. header: JSON, see `read_header`."""
    new = out / f".{STATE_FILE}"
    contiguous = {k: v.detach().cpu().contiguous() for k, v in tensors.items()}
    save_file(contiguous, new, metadata={"ulna": json.dumps(header)})
    with new.open("rb") as f:
        os.fsync(f.fileno())
    os.replace(new, out / STATE_FILE)


def read_header(state: Path) -> dict[str, Any]:
    try:
        with safe_open(state, "pt") as f:
            return json.loads((f.metadata() or {})["ulna"])
    except (SafetensorError, KeyError, json.JSONDecodeError, OSError) as error:
        raise TrainingError(f"{state} is not a training state that can be resumed: {error}") from None


def restore(state: Path, policy: Policy, optimizer: Any, ema: AveragedModel) -> list[float]:
    """Load weights, optimiser and EMA; returns the losses so far, one per step."""
    header = read_header(state)
    with safe_open(state, "pt") as f:
        tensors = {k: f.get_tensor(k) for k in f.keys()}  # noqa: SIM118 (safe_open is no dict)
    averages = list(ema.module.parameters())
    if f"ema/{len(averages)}" in tensors:
        raise TrainingError(f"{state} was written when the policy had other weights: it cannot be resumed")
    here = policy.state_dict()
    weights = {k[6:]: v for k, v in tensors.items() if k.startswith("model/")}
    policy.load_state_dict({k: like(v, here[k]) if k in here else v for k, v in weights.items()})
    learning = [p for group in optimizer.param_groups for p in group["params"]]
    adam: dict[int, dict[str, Any]] = {}
    for k, v in tensors.items():
        if k.startswith("adam/"):
            _, i, field = k.split("/")
            adam.setdefault(int(i), {})[field] = unflat(like(v, learning[int(i)]))
    optimizer.load_state_dict({"state": adam, "param_groups": optimizer.state_dict()["param_groups"]})
    for i, average in enumerate(averages):
        average.data.copy_(like(tensors[f"ema/{i}"], average))
    ema.n_averaged.fill_(int(header["ema_step"]))
    return list(header["losses"])


def read_table(state: Path) -> Tensor | None:
    """The objective's table; None where it keeps none."""
    with safe_open(state, "pt") as f:
        return f.get_tensor("table") if "table" in f.keys() else None  # noqa: SIM118 (safe_open is no dict)
