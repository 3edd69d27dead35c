"""The contract of hooks: where a test-time method enters the sampler, so that it composes with any policy.
Each method has a file of its own beside this one.

Of the nine seams of the design (H0 to H8) six live inside the sampler and are here:

    H0 condition    what the network is told, for every candidate
    H1 initialise   the starting chunk and the level to start at
    H2 guide        what the network is taken to believe, at every evaluation (guidance)
    H3 project      the chunk after every step (inpainting, constraints)
    H4 refine       the clean chunk, perhaps by sampling again from a noisier level
    H5 score        candidates; the best survives. And how much of it to execute

A hook is a part: a frozen dataclass derived from `Hook`, which overrides what it needs; the rest is the
identity. It holds no state between decisions. What it must know of a decision, such as the actions sent
before, `field.request` has. Each draws from a random stream of its own, so that adding one never changes
another's draws nor the base sampler's. Legend: B observations, N candidates each, H horizon, A action
dimensions. Chunks are normalised to [-1, 1]."""

from __future__ import annotations

from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor

from ..backbones.backbone import Backbone
from ..codec import ActionCodec
from ..contexts.context import Context
from ..field import Field, Start
from ..objectives.objective import Objective


class Steered(Protocol):
    """What a hook may require of the recipe whose policies it steers; see `policies.recipe.Recipe`."""

    @property
    def name(self) -> str: ...

    @property
    def objective(self) -> Objective: ...

    @property
    def sampling_steps(self) -> int: ...

    @property
    def n_past_actions(self) -> int: ...

    @property
    def conditions(self) -> tuple[Any, ...]: ...

    @property
    def backbone(self) -> Backbone: ...

    @property
    def codec(self) -> ActionCodec: ...


class Hook:
    """The identity at every seam."""

    by_request: ClassVar[bool] = True
    """Whether a stranger's request may ask for it: not where its fields name files."""

    @property
    def wants_candidates(self) -> int:
        """How many candidates it wants of each observation. Hooks share them: the sampler draws as many as
        the one that wants most; the first candidate is what would be drawn without hooks."""
        return 1

    @property
    def needs_past(self) -> bool:
        """Whether requests must bring the actions sent before now."""
        return False

    def require(self, recipe: Steered) -> None:
        """ValueError in one sentence where it cannot steer the policies of `recipe`."""

    def condition(self, field: Field, rng: torch.Generator) -> Context:
        """H0. The context of all rows, `field.context` as it is."""
        return field.context

    def initialise(self, start: Start, field: Field, rng: torch.Generator) -> Start:
        """H1. May not call critics."""
        return start

    def guide(self, field: Field, rng: torch.Generator) -> Field:
        """H2. `field.with_belief(...)`, where the belief asks `field` as often as it wants. The hook after
        this one guides what this one gives."""
        return field

    def project(self, a: Tensor, i: int, field: Field, rng: torch.Generator) -> Tensor:
        """H3. `a` has arrived at level i."""
        return a

    def refine(self, a: Tensor, field: Field, rng: torch.Generator) -> Tensor:
        """H4. Of clean chunks `(B·N, H, A)`."""
        return a

    def score(self, chunks_BNHA: Tensor, field: Field) -> Tensor | None:
        """H5. `(B, N)`, higher is better, -inf rules a candidate out; None to abstain."""
        return None

    def execute(self, chunk_BHA: Tensor, field: Field) -> Tensor | None:
        """How many actions of the chosen chunk, from now on, to execute before asking again: `(B,)` int, at
        least 1; None to abstain. The least of the hooks' counts, and at most what the
        chunk has."""
        return None
