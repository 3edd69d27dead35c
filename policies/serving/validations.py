"""What evaluation has found of a checkpoint, as short as a server tells it. No torch."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

FOLDER = "validation"  # of a checkpoint; see `policies.checkpoint`
MOST = 32  # that are told


@dataclass(frozen=True)
class Validation:
    """A closed-loop evaluation of this very checkpoint."""

    robot: str
    """On which robot: a simulated one such as `sim:so101`, or a real one's own twin, by the robot's name."""
    task: str
    episodes: int
    successes: int

    @property
    def success_rate(self) -> float:
        return self.successes / self.episodes

    def __str__(self) -> str:
        return f"{self.successes} of {self.episodes} succeeded on {self.robot} {self.task}"


def read_validations(
    checkpoint: str | Path, content_hash: str, ran_so: Callable[[Mapping[str, Any]], bool] = lambda _: True
) -> tuple[Validation, ...]:
    """Of the reports in the folder `checkpoint`, those in closed loop of the checkpoint with that hash,
    newest first, of which `ran_so` holds. What cannot be read, or is of another checkpoint, is left out; and
    so is what was done under directors, who may have tried again or put another policy in its place."""
    found: list[tuple[float, Validation]] = []
    for path in (Path(checkpoint) / FOLDER).glob("*.json"):
        try:
            report = json.loads(path.read_text())
            if report.get("kind") != "closed-loop" or report.get("checkpoint") != content_hash:
                continue
            if report.get("directors") or " directed by " in str(report.get("agent")):  # as older ones say it
                continue
            if not ran_so(report):
                continue
            (validation,) = validations_from_json([report])
            found.append((path.stat().st_mtime, validation))
        except (OSError, ValueError, AttributeError, RecursionError):
            continue
    return tuple(v for _, v in sorted(found, key=lambda pair: -pair[0])[:MOST])


def validations_to_json(validations: Sequence[Validation]) -> list[dict[str, Any]]:
    return [asdict(v) for v in validations]


def validations_from_json(value: Any) -> tuple[Validation, ...]:
    """The inverse; unknown keys are ignored. ValueError where it is something else."""
    if not isinstance(value, list | tuple):
        raise ValueError("validations are a list")  # noqa: TRY004  of a stranger's message
    names = [f.name for f in fields(Validation)]
    validations = []
    for item in value:
        if not isinstance(item, dict) or any(n not in item for n in names):
            raise ValueError(f"a validation has {', '.join(names)}")
        v = Validation(**{n: item[n] for n in names})
        counts = type(v.episodes) is int and type(v.successes) is int and 0 <= v.successes <= v.episodes
        if not (counts and v.episodes and isinstance(v.robot, str) and isinstance(v.task, str)):
            raise ValueError("a validation's episodes and successes are counts, its robot and task words")
        validations.append(v)
    return tuple(validations)
