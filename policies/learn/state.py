"""The state of an unfinished run of a learner: all that a resumed run needs, in one file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import safe_open
from torch import Tensor

from ..train.config import flat
from ..train.error import TrainingError
from ..train.state import STATE_FILE, read_header, require_unused, write_state
from .learner import Learner


def prepare(out: Path, identity: Mapping[str, Any], resume: bool, overwrite: bool) -> Path | None:
    """Make `out` ready for a run of this identity; returns the state to resume from, if any. TrainingError
    where another run would be overwritten or mixed with this one."""
    state = out / STATE_FILE
    if resume:
        if not state.is_file():
            raise TrainingError(f"{out} holds no unfinished run to resume")
        was, now = flat(read_header(state)["identity"]), flat(json.loads(json.dumps(identity)))
        if changes := [k for k in sorted({*was, *now}) if was.get(k) != now.get(k)]:
            k = changes[0]
            raise TrainingError(
                f"{k} was {was.get(k)!r:.60}, not {now.get(k)!r:.60}: {out} resumes as it was begun, or "
                "begins anew elsewhere"
            )
        return state
    if not overwrite:
        require_unused(out)
    state.unlink(missing_ok=True)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise TrainingError(f"cannot make the folder {out}: {error.strerror}") from None
    return None


def save(
    out: Path, identity: Mapping[str, Any], learner: Learner, step: int, history: Mapping[str, list[float]]
) -> None:
    """Modules and optimisers after `step` updates, in one safetensors file that arrives by one rename."""
    tensors: dict[str, Tensor] = {}
    for name, module in learner.modules.items():
        tensors |= {f"module/{name}/{k}": v for k, v in module.state_dict().items()}
    for name, optimizer in learner.optimizers.items():
        for i, entry in optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer/{name}/{i}/{k}": v for k, v in entry.items() if v is not None}
    header = {"identity": identity, "step": step, "history": history}
    write_state(out, tensors, header)


def restore(state: Path, learner: Learner) -> tuple[int, dict[str, list[float]]]:
    """Load what `save` wrote; returns the updates so far and their metrics."""
    header = read_header(state)
    with safe_open(state, "pt") as f:
        tensors = {k: f.get_tensor(k) for k in f.keys()}  # noqa: SIM118 (safe_open is no dict)
    for name, module in learner.modules.items():
        prefix = f"module/{name}/"
        module.load_state_dict(
            {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
        )
    for name, optimizer in learner.optimizers.items():
        prefix = f"optimizer/{name}/"
        entries: dict[int, dict[str, Tensor]] = {}
        for k, v in tensors.items():
            if k.startswith(prefix):
                i, field = k.removeprefix(prefix).split("/", 1)
                entries.setdefault(int(i), {})[field] = v
        optimizer.load_state_dict({"state": entries, "param_groups": optimizer.state_dict()["param_groups"]})
    return int(header["step"]), {k: list(v) for k, v in header["history"].items()}
