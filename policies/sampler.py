"""The one sampling loop, for every objective, with every solver and every hook.

With no hooks, or hooks that do nothing, the result is bit-identical to the base sampler's.
Legend: B observations, N candidates each, H horizon, A action dimensions.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .contexts.context import Context
from .field import Asked, Field, Start
from .hooks.hook import Hook
from .objectives.objective import Objective
from .request import Request
from .solvers.solver import Move, Solver


@dataclass(frozen=True)
class Sampled:
    """What a decision came to. chunk: `(B, H, A)`, normalised where it comes from `sample`."""

    chunk: Tensor
    nfe: Tensor
    """Network evaluations spent on each observation, `(B,)` int, on the CPU; each candidate counts."""
    candidates: Tensor
    """`(B, N, H, A)`, of which the chunk is one."""
    scores: Tensor | None = None
    """`(B, N)`, z-scored and summed over the hooks; None where none scored."""
    chain: tuple[tuple[Tensor, Move], ...] = ()
    """Where it was asked for: the chunk before each step `(B·N, H, A)`, and the step. The last one's result
    is the chunk."""
    memory: Tensor | None = None
    """`(B, M)`, to be carried to the next decision of the episode."""
    wrote: Tensor | None = None
    """`(B,)` bool, whether the decision wrote to it, of a memory that is written now and then."""
    execute: Tensor | None = None
    """`(B,)` int, how many actions to execute before asking again; None: as the recipe says."""
    flags: Mapping[str, Tensor] = dataclasses.field(default_factory=dict)
    """What hooks tell of the decisions, `(B,)` bool on the CPU, by name."""


def sample(
    net: nn.Module,
    objective: Objective,
    solver: Solver,
    context: Context,
    shape: tuple[int, int, int],
    steps: int,
    seed: int | Sequence[int],
    hooks: Sequence[Hook] = (),
    *,
    request: Request | None = None,
    policy: Asked | None = None,
    keep_chain: bool = False,
    grad: bool = False,
    noise: Callable[[], Tensor] | None = None,
) -> Sampled:
    """Draw one chunk per observation. `shape` is (B, H, A). The same seed gives the same chunk on one
    machine; with B seeds every row is what it would be alone.

    request, policy: what hooks may ask. keep_chain: give `Sampled.chain`. grad: let gradients pass through
    the steps; else nothing is differentiated but what a hook asks for. noise: gives what `Noise.step` would,
    and no hook may draw then."""
    device = context.pooled.device
    seeds = [seed] if isinstance(seed, int) else list(seed)
    n = max((hook.wants_candidates for hook in hooks), default=1)
    draw = noise or Noise(seeds, shape, n, device).step
    # with noise from elsewhere nothing is drawn on the device, which a CUDA graph could not repeat
    where = torch.device("cpu") if noise else device
    rngs = [stream(seeds, f"{i} {type(hook).__name__}", where) for i, hook in enumerate(hooks)]
    each = list(zip(hooks, rngs, strict=True))

    with contextlib.nullcontext() if grad else torch.no_grad():
        path = objective.path(steps)
        field = Field(net, objective, path, context.repeat(n), request or Request({}), n, policy)
        for hook, rng in each:
            field = field.with_context(hook.condition(field, rng))
        first = draw()
        start = Start(path.first * first, first)
        for hook, rng in each:
            start = hook.initialise(start, field, rng)
        field.start = start
        for hook, rng in each:
            field = hook.guide(field, rng)
        chain: list[tuple[Tensor, Move]] = []

        def solve(a: Tensor, level: int) -> Tensor:
            state: Any = None
            resting: Tensor | None = None
            for i in range(level, len(path)):
                before = a
                move = solver.step(field, a, i, state)
                a = move.draw(draw()) if move.std else move.mean
                for hook, rng in each:
                    a = hook.project(a, i + 1, field, rng)
                if resting is not None:
                    a = torch.where(resting[:, None, None], before, a)
                if keep_chain:
                    chain.append((before, move))
                state = move.state
                if move.rest is not None:
                    resting = move.rest if resting is None else resting | move.rest
                    if bool(resting.all()):
                        break
            return a

        a = solve(start.a, start.level)
        field.resample = solve
        for hook, rng in each:
            a = hook.refine(a, field, rng)
        candidates = a.reshape(shape[0], n, *shape[1:])
        chunk, scores = select(candidates, field, hooks)
        field.chosen = torch.zeros_like(candidates[:, 0, 0, 0], dtype=torch.long)
        if scores is not None:
            field.chosen = scores.argmax(1)
        execute, flags = _execute(chunk, field, hooks), field.flags
    return Sampled(
        chunk,
        field.nfe.reshape(shape[0], n).sum(1),
        candidates,
        scores,
        tuple(chain),
        context.memory,
        context.wrote,
        execute,
        flags,
    )


def select(chunks_BNHA: Tensor, field: Field, hooks: Sequence[Hook]) -> tuple[Tensor, Tensor | None]:
    """(the best of the candidates `(B, N, H, A)` by the sum of the hooks' z-scored scores, `(B, H, A)`; the
    scores).

    A score of -inf rules a candidate out. Without scores, or with all ruled out, the first."""
    b, n = chunks_BNHA.shape[:2]
    if n == 1:
        return chunks_BNHA[:, 0], None
    scores = [s for hook in hooks if (s := hook.score(chunks_BNHA, field)) is not None]
    if not scores:
        return chunks_BNHA[:, 0], None
    total = torch.zeros(b, n, device=chunks_BNHA.device)
    for s in scores:
        finite = torch.isfinite(s)
        values = torch.where(finite, s, 0.0)
        count = finite.sum(1, keepdim=True).clamp(min=1)
        mean = values.sum(1, keepdim=True) / count
        spread = (torch.where(finite, (values - mean) ** 2, 0.0).sum(1, keepdim=True) / count).sqrt()
        total = total + torch.where(finite, (values - mean) / spread.clamp(min=1e-8), -torch.inf)
    return chunks_BNHA[torch.arange(b, device=total.device), total.argmax(1)], total


def _execute(chunk_BHA: Tensor, field: Field, hooks: Sequence[Hook]) -> Tensor | None:
    """The least of the hooks' counts, `(B,)`; None where none has one."""
    counts = []
    for hook in hooks:
        if (count := hook.execute(chunk_BHA, field)) is None:
            continue
        if int(count.min()) < 1:
            raise ValueError(
                f"{type(hook).__name__} wants {int(count.min())} actions executed: a decision is worth at "
                "least one"
            )
        counts.append(count)
    return torch.stack(counts).amin(0) if counts else None


class Noise:
    """The base sampler's own draws, in rows of B observations and N candidates. One seed gives one stream for
    all rows; B seeds give each row its own, so that a row does not depend on its neighbours."""

    def __init__(
        self, seeds: list[int], shape: tuple[int, int, int], candidates: int, device: torch.device
    ) -> None:
        if len(seeds) not in (1, shape[0]):
            raise ValueError(f"{len(seeds)} seeds for {shape[0]} observations: give one, or one for each")
        self.shape, self.n, self.device = shape, candidates, device
        self.base = [stream([s], "sampler", device) for s in seeds]
        self.others = [stream([s], "candidates", device) for s in seeds]

    def step(self) -> Tensor:
        """Standard normal `(B·N, H, A)`; the first candidate's is what it would be alone."""
        b, h, a = self.shape
        noise = self._rows(self.base, b, 1, h, a)
        if self.n > 1:
            noise = torch.cat([noise, self._rows(self.others, b, self.n - 1, h, a)], dim=1)
        return noise.flatten(0, 1)

    def _rows(self, rngs: list[torch.Generator], b: int, *shape: int) -> Tensor:
        if len(rngs) == 1:
            return torch.randn((b, *shape), generator=rngs[0], device=self.device)
        return torch.stack([torch.randn(shape, generator=rng, device=self.device) for rng in rngs])


def stream(seeds: Sequence[int], name: str, device: torch.device) -> torch.Generator:
    """A generator of its own for `name`: independent of every other name's under the same seeds."""
    digest = hashlib.sha256(f"{' '.join(map(str, seeds))} {name}".encode()).digest()
    return torch.Generator(device).manual_seed(int.from_bytes(digest[:7], "big"))
