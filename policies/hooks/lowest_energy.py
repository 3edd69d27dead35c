"""The candidate of lowest energy, for policies that learned one (Du and Mordatch 2019, arXiv 1903.08689).
Legend: B observations, N candidates each, H horizon, A action dimensions."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ..field import Field
from ..objectives.objective import full
from .hook import Hook


@dataclass(frozen=True)
class LowestEnergy(Hook):
    """H5: of several chunks the one that the policy's own energy likes best; one evaluation a candidate."""

    n: int = 8
    """Candidates, at least 1."""
    shuffled: bool = False
    """The control: score every candidate by the energy of another observation's, so that the energy says
    nothing."""

    @property
    def wants_candidates(self) -> int:
        return self.n

    def score(self, chunks_BNHA: Tensor, field: Field) -> Tensor:
        """Minus the energies `(B, N)`. ValueError for a policy without an energy."""
        return -energies(chunks_BNHA, field).roll(1 if self.shuffled else 0, dims=0)


def energies(chunks_BNHA: Tensor, field: Field) -> Tensor:
    """`(B, N)`, of clean chunks, lower for those that fit better. ValueError for a policy without one."""
    if field.objective.needs.output != "energy":
        name = type(field.objective).__name__
        raise ValueError(f"LowestEnergy needs a policy that learned an energy, and {name} learns none: use "
                         "the recipe ebt, or another way to score")  # fmt: skip
    a = chunks_BNHA.flatten(0, 1)
    zero = full(0.0, a)
    field.net.rows = None
    return field.net(a, zero, zero, field.context).detach().reshape(chunks_BNHA.shape[:2])
