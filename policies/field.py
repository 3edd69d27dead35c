"""The one way for solvers and hooks to ask the network: evaluations are counted, another context may be
given, and the graph is kept on request.

Legend: B observations, N candidates each, H horizon, A action dimensions."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from .backbones.backbone import Output, outputs
from .contexts.context import Context
from .objectives.objective import Objective, Path
from .pred import Pred
from .request import Request

Belief = Callable[[Tensor, int, Context, Tensor | None], Pred]
"""(chunks, level, their contexts, rows that they are of or None for all) -> prediction."""


@dataclass(frozen=True)
class Start:
    """a `(B·N, H, A)`: the chunk at level `level`, candidates of one observation in a row. noise: the
    standard normal draw behind it, same shape."""

    a: Tensor
    noise: Tensor
    level: int = 0


class Asked(Protocol):
    """What hooks may ask of the policy that is sampled."""

    @property
    def n_past_actions(self) -> int:
        """Leading actions of a chunk that lie before now."""
        ...

    def context(self, request: Request, drop: bool = False) -> Context:
        """Of another request of as many rows; drop: told none of its conditions."""
        ...

    def normalise_action(self, action: Tensor, observation: Any) -> Tensor: ...

    def normalise_past(self, past_BdA: Tensor, observation: Any) -> Tensor: ...

    def denormalise_action(self, chunk: Tensor, observation: Any) -> Tensor: ...


class _Counter(nn.Module):
    """The network, counting for each row how often it was evaluated; a Heun hidden in a belief shows."""

    def __init__(self, net: nn.Module, rows: int) -> None:
        super().__init__()
        self.net, self.nfe = net, torch.zeros(rows, dtype=torch.long)
        self.rows: Tensor | None = None
        self.passes = int(getattr(net, "evaluations", 1))
        self.heard: list[Output] | None = None

    def forward(self, x: Tensor, s: Tensor, t: Tensor, context: Context) -> Any:
        if self.heard is not None:
            return self.outputs(x, s, t, context).chunk
        self.count(x)
        return self.net(x, s, t, context)

    def outputs(self, x: Tensor, s: Tensor, t: Tensor, context: Context) -> Output:
        self.count(x)
        output = outputs(self.net, x, s, t, context)
        if self.heard is not None:
            self.heard.append(output)
        return output

    def count(self, x: Tensor) -> None:
        if self.rows is None:
            self.nfe += len(x) // len(self.nfe) * self.passes
        else:
            self.nfe[self.rows.cpu()] += self.passes

    def spend(self, passes: Tensor) -> None:
        """Of each row, `(B·N,)` int: what is known only when a network that writes has written."""
        if self.rows is None:
            self.nfe += passes.cpu().unflatten(0, (len(self.nfe), -1)).sum(1)
        else:
            self.nfe[self.rows.cpu()] += passes.cpu()


class Field:
    """Call it with chunks `(B·N, H, A)` at level i of `path` for the network's `Pred` there.

    context: of those rows. request: the B questions being answered. candidates: N. start: what sampling began
    from, once it has begun. chosen: `(B,)` which candidates survived, once that is settled. notes: what hooks
    keep for the length of this decision, each under itself. flags: what they tell whoever asked, `(B,)` bool
    by name."""

    def __init__(
        self,
        net: nn.Module,
        objective: Objective,
        path: Path,
        context: Context,
        request: Request,
        candidates: int = 1,
        policy: Asked | None = None,
    ) -> None:
        self.path, self.context, self.request, self.candidates = path, context, request, candidates
        self.objective, self.policy = objective, policy
        self.start: Start | None = None
        self.chosen: Tensor | None = None
        self.notes: dict[Any, Any] = {}
        self.flags: dict[str, Tensor] = {}
        self.net = _Counter(net, len(context.pooled))
        self.resample: Callable[[Tensor, int], Tensor] | None = None
        self._belief: Belief = self._ask

    def __call__(
        self,
        a: Tensor,
        i: int,
        context: Context | None = None,
        grad: bool = False,
        rows: Tensor | None = None,
    ) -> Pred:
        """context: another than `self.context`, of as many rows as `a`. grad: keep the graph, so that the
        prediction can be differentiated by `a`. rows: indices `(b,)` of the rows that `a` holds, where it
        holds not all."""
        if context is None:
            context = self.context if rows is None else self.context.take(rows)
        with torch.enable_grad() if grad else contextlib.nullcontext():
            return self._belief(a, i, context, rows)

    def _ask(self, a: Tensor, i: int, context: Context, rows: Tensor | None) -> Pred:
        self.net.rows = rows
        return self.objective.believe(self.net, a, self.path[i], context)

    @contextlib.contextmanager
    def listening(self) -> Iterator[list[Output]]:
        """A list of all that the network says at each evaluation within, views and all."""
        before, self.net.heard = self.net.heard, []
        try:
            yield self.net.heard
        finally:
            if before is not None:  # someone listens without, too
                before += self.net.heard
            self.net.heard = before

    def with_belief(self, belief: Belief) -> Field:
        """This field, believing what `belief` says: what `Hook.guide` gives. It asks this one."""
        field = object.__new__(Field)
        field.__dict__.update(self.__dict__)
        field._belief = belief
        return field

    def with_context(self, context: Context) -> Field:
        """This field with another context for every row."""
        field = self.with_belief(self._belief)
        field.context = context
        return field

    @property
    def nfe(self) -> Tensor:
        """Evaluations so far `(B·N,)` int, on the CPU."""
        return self.net.nfe

    def unconditional(self) -> Context:
        """The context of all rows without what the policy is asked for. ValueError for a policy without
        conditions."""
        return self._of_all_rows(self._policy().context(self.request, drop=True))

    def context_of(self, request: Request) -> Context:
        """The context of all rows for another request of B questions."""
        return self._of_all_rows(self._policy().context(request))

    def _of_all_rows(self, context: Context) -> Context:
        # with what hooks have settled, whatever is asked for
        own = self.context
        return replace(context.repeat(self.candidates), hidden=own.hidden, prefix=own.prefix)

    def unnormalise(self, a: Tensor) -> Tensor:
        """Clean chunks `(B·N, H, A)` in the action's units."""
        return self._policy().denormalise_action(a, self._observation())

    def normalise(self, action: Tensor) -> Tensor:
        """The inverse."""
        return self._policy().normalise_action(action, self._observation())

    @property
    def n_past_actions(self) -> int:
        """Leading actions of a chunk that lie before now."""
        return 0 if self.policy is None else self.policy.n_past_actions

    def past(self) -> Tensor | None:
        """The actions sent before now, `(B·N, d, A)` as the network sees the first ones of a chunk; None
        where the request has none."""
        past = self.request.past
        if past is None:
            return None
        values = self._policy().normalise_past(past, self.request.observation)
        return values.repeat_interleave(self.candidates, dim=0)

    def sample_from(self, a: Tensor, level: int) -> Tensor:
        """Go on from chunks at that level to clean ones, by the same solver and hooks: for refinement that
        steps back into noise."""
        if self.resample is None:
            raise ValueError("sampling has not begun: a hook may sample again only when it refines")
        return self.resample(a, level)

    def _observation(self) -> dict[str, Any]:
        n = self.candidates
        values = {**self.request.observation}
        if self.request.past is not None:
            from ..datasets.features import PAST

            values[PAST] = self.request.past
        return {
            k: v.repeat_interleave(n, dim=0) if n > 1 and isinstance(v, Tensor) else v
            for k, v in values.items()
        }

    def _policy(self) -> Asked:
        if self.policy is None:
            raise ValueError("this field has no policy behind it: sample through Policy.sample")
        return self.policy
