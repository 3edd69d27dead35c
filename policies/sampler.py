"""The one sampling loop, for every objective and with every hook.

With no hooks, or hooks that do nothing, the result is bit-identical to the base sampler's.
Legend: B observations, N candidates each, H horizon, A action dimensions.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .contexts.context import Context
from .hooks.hook import Hook, Start, Step
from .objectives.objective import Objective


@dataclass(frozen=True)
class Draw:
    """chunk `(B, H, A)`, normalised where it comes from `sample`. nfe: network evaluations spent on each
    observation; each candidate counts."""

    chunk: Tensor
    nfe: int


@torch.no_grad()
def sample(
    net: nn.Module,
    objective: Objective,
    context: Context,
    shape: tuple[int, int, int],
    steps: int,
    seed: int,
    hooks: Sequence[Hook] = (),
) -> Draw:
    """Draw one chunk per observation. `shape` is (B, H, A). The same seed gives the same chunk on one
    machine."""
    device = context.pooled.device
    rng = stream(seed, "sampler", device)
    hook_rngs = [stream(seed, f"{i} {type(hook).__name__}", device) for i, hook in enumerate(hooks)]
    path = objective.path(steps, device)

    noise = torch.randn(shape, generator=rng, device=device)
    start = Start(objective.start(noise), noise)
    for hook, hook_rng in zip(hooks, hook_rngs, strict=True):
        start = hook.initialise(start, path, hook_rng)
    n = start.candidates
    contexts = context.repeat(n)

    a, nfe = start.a, 0
    for i in range(start.level, len(path)):
        step = Step(i, path, start)
        pred = objective.predict_at(net, a, path, i, contexts)
        nfe += n
        for hook, hook_rng in zip(hooks, hook_rngs, strict=True):
            pred = hook.transform(pred, step, contexts, hook_rng)
        a = objective.step(pred, path, i, rng)
        for hook, hook_rng in zip(hooks, hook_rngs, strict=True):
            a = hook.project(a, step, hook_rng)

    return Draw(select(a.reshape(shape[0], n, *shape[1:]), context, hooks), nfe)


def select(chunks_BNHA: Tensor, context: Context, hooks: Sequence[Hook]) -> Tensor:
    """The best of the candidates `(B, N, H, A)` by the sum of the hooks' z-scored scores, `(B, H, A)`.

    A score of -inf rules a candidate out. Without scores, or with all ruled out, the first."""
    b, n = chunks_BNHA.shape[:2]
    if n == 1:
        return chunks_BNHA[:, 0]
    scores = [s for hook in hooks if (s := hook.score(chunks_BNHA, context)) is not None]
    total = torch.zeros(b, n, device=chunks_BNHA.device)
    for s in scores:
        finite = torch.isfinite(s)
        values = torch.where(finite, s, 0.0)
        count = finite.sum(1, keepdim=True).clamp(min=1)
        mean = values.sum(1, keepdim=True) / count
        spread = (torch.where(finite, (values - mean) ** 2, 0.0).sum(1, keepdim=True) / count).sqrt()
        total = total + torch.where(finite, (values - mean) / spread.clamp(min=1e-8), -torch.inf)
    return chunks_BNHA[torch.arange(b, device=total.device), total.argmax(1)]


def stream(seed: int, name: str, device: torch.device) -> torch.Generator:
    """A generator of its own for `name`: independent of every other name's under the same seed."""
    digest = hashlib.sha256(f"{seed} {name}".encode()).digest()
    return torch.Generator(device).manual_seed(int.from_bytes(digest[:7], "big"))
