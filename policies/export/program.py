"""The sampling loop as numbers: with every solver and objective that only adds and scales, what the network
is asked at each call is a sum of noise and of its earlier answers, and so is the chunk in the end.

The sampler itself is run once, on tensors that stand for coefficients, so there is no second loop that could
differ from it. Legend: M noise draws, K calls of the network, R = M + 2K rows: the noise, then of each call
the answer and what was clipped after it; H horizon, A action dimensions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..contexts.context import Context
from ..policy import Policy
from ..sampler import sample


class NotExportable(ValueError):
    """This policy cannot be exported; the message says why."""


@dataclass(frozen=True)
class Program:
    """asked `(K, R)`: the network's input at each call, as coefficients of the rows. s, t `(K,)`: the times
    it is told. clipped `(K, R)`, lowest, highest `(K,)`: what is clipped after the call, and to what. chunk
    `(R,)`: the normalised chunk. noises: M."""

    asked: np.ndarray
    s: np.ndarray
    t: np.ndarray
    clipped: np.ndarray
    lowest: np.ndarray
    highest: np.ndarray
    chunk: np.ndarray
    noises: int

    @property
    def clips(self) -> bool:
        return bool(self.clipped.any())


def program_of(policy: Policy, steps: int) -> Program:
    """Of the policy's sampler with its own solver. NotExportable where it does more than add and scale."""
    recorder = _Recorder(8 * steps + 64)
    context = Context(torch.zeros(1, 1, 1), torch.zeros(1, 1))
    shape = (1, recorder.rows, 1)
    objective, solver = policy.recipe.objective, policy.recipe.solver
    sampled = sample(recorder.net, objective, solver, context, shape, steps, 0, noise=recorder.noise)
    return recorder.program(sampled.chunk)


class _Net(nn.Module):
    """In the network's place: its answer is one more row."""

    def __init__(self, recorder: _Recorder) -> None:
        super().__init__()
        self.recorder = recorder

    def forward(self, x: Tensor, s: Tensor, t: Tensor, context: Context) -> Tensor:
        return self.recorder.call(x, s, t)


class _Recorder:
    def __init__(self, rows: int) -> None:
        self.rows, self.net = rows, _Net(self)
        self.names: list[
            tuple[str, int]
        ] = []  # of the rows, as they came: ("noise" | "answer" | "clip", its number)
        self.calls: list[tuple[np.ndarray, float, float]] = []
        self.clips: dict[int, tuple[np.ndarray, float, float]] = {}

    def noise(self) -> Tensor:
        return self._row("noise", sum(kind == "noise" for kind, _ in self.names))

    def call(self, x: Tensor, s: Tensor, t: Tensor) -> Tensor:
        self.calls.append((_numbers(x), float(s[0]), float(t[0])))
        return self._row("answer", len(self.calls) - 1)

    def clip(self, x: Tensor, lowest: float, highest: float) -> Tensor:
        call = len(self.calls) - 1
        if call < 0 or call in self.clips:
            raise NotExportable("its solver clips twice between two calls of the network")
        self.clips[call] = (_numbers(x), lowest, highest)
        return self._row("clip", call)

    def _row(self, kind: str, number: int) -> Tensor:
        if len(self.names) == self.rows:
            raise NotExportable("its sampler asks the network more often than an exported one may")
        self.names.append((kind, number))
        values = torch.zeros(1, self.rows, 1, dtype=torch.float64)
        values[0, len(self.names) - 1] = 1
        row = values.as_subclass(_Sum)
        row.recorder = self
        return row

    def program(self, chunk: Tensor) -> Program:
        m, k = sum(kind == "noise" for kind, _ in self.names), len(self.calls)
        place = {"noise": 0, "answer": m, "clip": m + 1}
        stride = {"noise": 1, "answer": 2, "clip": 2}
        order = [place[kind] + stride[kind] * number for kind, number in self.names]

        def row(values: np.ndarray) -> np.ndarray:
            result = np.zeros(m + 2 * k)
            result[order] = values[: len(order)]
            return result

        nothing = (np.zeros(self.rows), -np.inf, np.inf)
        clips = [self.clips.get(i, nothing) for i in range(k)]
        asked, s, t = zip(*self.calls, strict=True)
        clipped, lowest, highest = zip(*clips, strict=True)
        return Program(
            np.stack([row(v) for v in asked]),
            np.array(s),
            np.array(t),
            np.stack([row(v) for v in clipped]),
            np.array(lowest),
            np.array(highest),
            row(_numbers(chunk)),
            m,
        )


def _numbers(value: Tensor) -> np.ndarray:
    return value.as_subclass(Tensor)[0, :, 0].double().numpy().copy()


MOVES = {"reshape", "__getitem__", "detach", "as_subclass", "zeros_like", "__get__", "size", "__len__", "dim"}
SUMS = {"add", "sub", "rsub", "__add__", "__radd__", "__sub__", "__rsub__", "neg", "__neg__", "lerp", "where"}
SCALES = {"mul", "__mul__", "__rmul__", "div", "__truediv__", "true_divide"}


class _Sum(torch.Tensor):
    """Coefficients of the rows, `(1, rows, 1)`, in the place of a chunk: what is added and scaled is so in
    them, and anything else is refused."""

    recorder: _Recorder

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = func.__name__
        sums = [a for a in (*args, *kwargs.values()) if isinstance(a, _Sum)]
        recorder = next((s.recorder for s in sums if hasattr(s, "recorder")), None)
        if name == "float":  # the coefficients stay as exact as they are
            return args[0]
        if name == "clamp" and recorder is not None:
            low, high = (*args[1:], *kwargs.values())
            return recorder.clip(args[0], float(low), float(high))
        if name in SCALES:
            numbers = [a for a in args if not isinstance(a, _Sum)]
            allowed = (
                len(sums) == 1 and isinstance(args[0], _Sum | float | int | Tensor) and len(numbers) == 1
            )
            allowed &= name not in ("div", "__truediv__", "true_divide") or isinstance(args[0], _Sum)
        elif name in SUMS:
            others = [a for a in args if not isinstance(a, _Sum)]
            allowed = name in ("where", "lerp") or not any(map(_is_something, others))
        else:
            allowed = name in MOVES
        if not allowed:
            raise NotExportable(f"its sampler does more than add and scale ({name})")
        result = super().__torch_function__(func, types, args, kwargs)
        if isinstance(result, _Sum) and recorder is not None:
            result.recorder = recorder
        return result


def _is_something(value: Any) -> bool:
    """A number that is added would be no coefficient of a row."""
    return bool(torch.as_tensor(value).ne(0).any())
