"""A served policy with rounded weights, and what that costs it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ...datasets.features import ACTION
from ..quantised import Kind, Memory, quantise
from ..request import Request
from .local import LocalPolicy

QUESTIONS = 8


@dataclass(frozen=True)
class Loss:
    """What rounding has done to a policy."""

    kind: Kind
    memory: Memory
    largest: float
    """Difference of an action, of the range that it had in training."""
    mean: float
    before_ms: float
    """Of a decision, and after_ms."""
    after_ms: float

    @property
    def sentence(self) -> str:
        m = self.memory
        return (
            f"with {self.kind} weights its actions differ by {self.mean:.2%} of their range in the mean, "
            f"{self.largest:.2%} at most, on {QUESTIONS} observations drawn within the statistics; "
            f"the weights take {m.after / 1e6:.2f} MB, not {m.before / 1e6:.2f}, "
            f"and a decision {self.after_ms:.0f} ms, not {self.before_ms:.0f}"
        )


def quantised(local: LocalPolicy, kind: Kind) -> Loss:
    """Round the weights of `local`, and compare what it answers to the same questions before and after. Its
    metadata then say so, and name no validation: another policy was validated. ValueError where it runs on
    no processor."""
    if local.policy.device.type != "cpu":
        raise ValueError(
            f"rounded weights are for the processor, and this policy is on {local.policy.device}"
        )
    questions = [local.drawn(seed) for seed in range(QUESTIONS)]
    before, before_ms = _answers(local, questions)
    memory = quantise(local.policy, kind)
    local.metadata = replace(local.metadata, quantize=kind, validations=())
    after, after_ms = _answers(local, questions)
    stats = local.policy.stats[ACTION]
    off = np.abs(after - before) / np.maximum(stats.max - stats.min, 1e-6)
    return Loss(kind, memory, float(off.max()), float(off.mean()), before_ms, after_ms)


def _answers(local: LocalPolicy, questions: Sequence[Request]) -> tuple[np.ndarray, float]:
    """The chunks `(N, n, A)`, and the milliseconds that a decision took, the median."""
    chunks, took = [], []
    for question in questions:
        wire: dict[str, Any] = question.to_wire()
        began = time.perf_counter()
        chunks.append(local.infer(wire)["actions"])
        took.append(time.perf_counter() - began)
    return np.stack(chunks), 1e3 * float(np.median(took))
