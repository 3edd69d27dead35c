"""LeRobot 0.6's own pi0, pi0.5 and SmolVLA beside ours, with the same random weights."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from ulna.policies.backbones.fast_tokens import FASTNet
from ulna.policies.objectives.objective import Draw

sys.path.insert(0, str(Path(__file__).parents[3] / "benchmarks"))

if importlib.util.find_spec("transformers") is None:  # its import takes seconds of every test process
    pytest.skip("LeRobot's own needs the extra vla", allow_module_level=True)

from lerobot_vla import (
    HORIZON,
    JOINTS,
    NAMES,
    PADDED,
    SIZES,
    STATE,
    WRITER,
    Pair,
    our_chunk,
    our_velocities,
    pair,
    question,
    their_chunk,
    their_inputs,
    their_loss,
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


def test_the_loss_of_written_tokens_is_lerobots(tmp_path: Path) -> None:
    """LeRobot's pi0-FAST reads all in one pass, with masks of its own, and takes its tokens from a file."""
    both = pair(WRITER, tmp_path)
    asked, net = question(both), both.ours.net
    assert isinstance(net, FASTNet)
    waves = np.sin(np.linspace(0, 3, 10)[None, :, None] * np.random.default_rng(0).uniform(1, 3, (200, 1, 6)))
    net.learn(waves)
    actions = torch.from_numpy(waves[:2]).float()
    actions[1] = 0.1 * torch.rand(HORIZON, JOINTS)
    tokens, there = net.of(actions)
    assert not there.all(), "the rows are of different lengths"
    theirs = their_loss(both, asked, net.words(tokens), there)
    context = both.ours.encode({**asked.request().observation, "task": asked.tasks})
    losses = both.ours.recipe.objective.losses(net, actions, context, Draw(asked.noise, torch.zeros(2)))
    torch.testing.assert_close(losses.error.mean(), theirs, atol=1e-4, rtol=1e-4)
