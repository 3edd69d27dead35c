"""LeRobot 0.6's own pi0, pi0.5 and SmolVLA beside ours, with the same random weights."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from ulna.policies.objectives.objective import Draw

sys.path.insert(0, str(Path(__file__).parents[3] / "benchmarks"))

pytest.importorskip("transformers", reason="LeRobot's own needs the extra vla")

from lerobot_vla import (
    HORIZON,
    JOINTS,
    NAMES,
    PADDED,
    SIZES,
    STATE,
    Pair,
    our_chunk,
    our_velocities,
    pair,
    question,
    their_chunk,
    their_inputs,
    velocities,
)


@pytest.fixture(scope="module", params=NAMES)
def both(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return pair(request.param, tmp_path_factory.mktemp(request.param))


@pytest.mark.parametrize("frames", [(48, 64), (72, 40), None], ids=["wide", "high", "as it sees"])
def test_denoiser_and_decision_are_lerobots(both: Pair, frames: tuple[int, int] | None) -> None:
    side = SIZES[both.name].side
    asked = question(both, frames=frames or (side, side))
    with velocities(both) as theirs:
        chunk = their_chunk(both, asked)
    assert chunk.std() > 0.1
    # LeRobot's velocity points to the noise
    for mine, other in zip(our_velocities(both, asked), theirs, strict=True):
        torch.testing.assert_close(mine, -other, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(our_chunk(both, asked), chunk, atol=1e-4, rtol=1e-4)


def test_the_loss_is_lerobots_without_its_cache(both: Pair) -> None:
    """In training LeRobot reads prefix and actions in one pass; we read the prefix first, as when acting."""
    asked = question(both)
    actions, tau = torch.rand(2, HORIZON, JOINTS) * 2 - 1, torch.tensor([0.2, 0.7])
    padded = torch.nn.functional.pad(actions, (0, PADDED - JOINTS))
    theirs = both.theirs.forward(*their_inputs(both, asked), padded, asked.noise, 1 - tau)
    observation = {**asked.request().observation, "task": asked.tasks}
    context = both.ours.encode(observation)
    losses = both.ours.recipe.objective.losses(
        both.ours.net,
        both.ours.codec.encode(actions, {STATE: asked.state[:, None]}),
        context,
        Draw(asked.noise, tau),
    )
    torch.testing.assert_close(losses.error, theirs, atol=1e-4, rtol=1e-4)
