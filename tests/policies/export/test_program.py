"""The sampler as a table of numbers gives the sampler's chunk."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from contracts.data import FEATURES
from contracts.recipes import small
from torch import nn

from ulna.datasets.stats import vector_stats
from ulna.policies.codec import RELATIVE
from ulna.policies.contexts.context import Context
from ulna.policies.export.program import NotExportable, Program, program_of
from ulna.policies.parts import override
from ulna.policies.policy import Policy
from ulna.policies.sampler import Noise, sample

RNG = np.random.default_rng(0)
STATS = {k: vector_stats(RNG.normal(size=(50, *f.shape))) for k, f in FEATURES.items()}
STATS[RELATIVE] = vector_stats(RNG.normal(size=(50, 16, 3)))
H, A = 16, 3


class Net(nn.Module):
    """A network of one weight that depends on both times."""

    def forward(self, x: torch.Tensor, s: torch.Tensor, t: torch.Tensor, context: Context) -> torch.Tensor:
        return torch.sin(3 * x + s[:, None, None] + 2 * t[:, None, None])


def run(program: Program, noise: np.ndarray, net: Net) -> np.ndarray:
    """The loop, in numpy."""
    m = program.noises
    values = np.zeros((program.asked.shape[1], H * A))
    values[:m] = noise.reshape(m, -1)
    for k in range(len(program.s)):
        x = torch.from_numpy((program.asked[k] @ values).reshape(1, H, A)).float()
        s, t = (torch.full((1,), float(v[k])) for v in (program.s, program.t))
        values[m + 2 * k] = net(x, s, t, CONTEXT).numpy().reshape(-1)
        values[m + 2 * k + 1] = (program.clipped[k] @ values).clip(program.lowest[k], program.highest[k])
    return (program.chunk @ values).reshape(H, A)


CONTEXT = Context(torch.zeros(1, 1, 1), torch.zeros(1, 1))


@pytest.mark.parametrize(
    ("name", "changes", "calls", "noises"),
    [
        ("flow", {}, 10, 1),
        ("flow", {"solver": "Heun", "sampling_steps": 4}, 7, 1),
        ("flow", {"solver": "DPM"}, 10, 1),
        ("flow", {"solver.eta": 0.5}, 10, 10),
        ("flow", {"solver.clip": 0.3}, 10, 1),
        ("flow", {"solver": "Heun", "solver.clip": 0.3}, 19, 1),
        ("diffusion_unet", {}, 16, 1),
        ("diffusion_unet", {"solver.eta": 1.0, "sampling_steps": 100}, 100, 100),
        ("diffusion_unet", {"solver": "DPM", "solver.clip": 1.0}, 16, 1),
        ("flow_map", {"sampling_steps": 3}, 3, 1),
        ("mip", {}, 2, 1),
        ("act", {}, 1, 1),
        ("beso", {}, 3, 1),
    ],
)
def test_the_program_gives_the_samplers_chunk(
    name: str, changes: dict[str, Any], calls: int, noises: int
) -> None:
    recipe = override(small(name), changes)
    policy = Policy(recipe, FEATURES, STATS)
    program = program_of(policy, recipe.sampling_steps)
    assert (len(program.s), program.noises) == (calls, noises)
    assert program.clips == bool(getattr(recipe.solver, "clip", 0))
    shape = (1, H, A)
    expected = (
        sample(Net(), recipe.objective, recipe.solver, CONTEXT, shape, recipe.sampling_steps, 7)
        .chunk[0]
        .numpy()
    )
    draw = Noise([7], shape, 1, torch.device("cpu"))
    noise = np.stack([draw.step().numpy() for _ in range(noises)])
    np.testing.assert_allclose(run(program, noise, Net()), expected, atol=2e-5)


@pytest.mark.parametrize("name", ["ebt", "imc"])
def test_what_does_more_than_add_and_scale_is_refused(name: str) -> None:
    recipe = small(name)
    with pytest.raises(NotExportable, match="more than add and scale"):
        program_of(Policy(recipe, FEATURES, STATS), recipe.sampling_steps)
