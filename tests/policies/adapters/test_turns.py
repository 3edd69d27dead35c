"""LiteVLP's conversation: pictures compressed, and what earlier turns are worth."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from contracts.recipes import small
from contracts.vla import FEATURES as SEEN
from contracts.vla import noise_for, observation, policy

from ulna.datasets.features import ACTION, IMAGES, Feature, Features
from ulna.datasets.recording.writer import EpisodeWriter
from ulna.datasets.store import EpisodeStore
from ulna.policies.contexts.turns import TurnsNet
from ulna.policies.parts import override
from ulna.policies.policy import Policy
from ulna.policies.request import Request
from ulna.policies.serving.local import LocalPolicy
from ulna.policies.train.loop import train

TICKS = 3  # a cue in the first picture; the action is the cue at all of them
CAMERA = IMAGES + "front"
FEATURES: Features = {CAMERA: Feature((16, 16, 3), "uint8"), ACTION: Feature((1,), "float32")}


def picture(cue: float, t: int) -> np.ndarray:
    frame = np.full((16, 16, 3), 120, np.uint8)
    if t == 0:
        half = slice(0, 8) if cue > 0 else slice(8, 16)
        frame[half] = 250
    return frame


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cue") / "data"
    writer = EpisodeWriter(EpisodeStore.create(folder, FEATURES, 20.0, "toy"))
    for i in range(8):
        cue = 1.0 if i % 2 else -1.0
        writer.start({"task": "say the cue", "seed": i, "agent": "test"})
        for t in range(TICKS):
            values = {CAMERA: picture(cue, t), ACTION: np.array([cue], np.float32)}
            writer.tick(values, {k: (t * 50_000_000, t * 50_000_000 + 1000) for k in values})
        writer.end({"success": True})
    return folder


def trained(data: Path, tokens: int, turns: int, steps: int = 120) -> LocalPolicy:
    training = {"steps": steps, "batch_size": 16, "warmup": 5, "learning_rate": 3e-3, "ema_max": 0.9}
    changes = {
        "horizon": 1,
        "n_action_steps": 1,
        "context.tokens": tokens,
        "context.turns": turns,
        "encoder.vision.shuffle": 1,
        "backbone.bins": 16,
    }
    recipe = override(small("litevlp_small", FEATURES, **training), changes)
    out = data.parent / f"{tokens} {turns}"
    train(recipe, data, out, device="cpu", track=())
    return LocalPolicy(out)


def last_answer(of: LocalPolicy, cue: float) -> float:
    """After the delay, the memory echoed as a client does."""
    memory, answer = None, 0.0
    for t in range(TICKS):
        request = Request({CAMERA: picture(cue, t)}, t, task="say the cue", memory=memory)
        reply = of.infer(request.to_wire())
        memory, answer = reply.get("memory"), float(reply["actions"][0, 0])
    return answer


@pytest.mark.parametrize("tokens", [4, 16])
def test_earlier_turns_are_recalled(tokens: int, data: Path) -> None:
    of = trained(data, tokens, turns=TICKS)
    assert last_answer(of, 1.0) > 0.7
    assert last_answer(of, -1.0) < -0.7


def test_without_them_the_cue_is_lost(data: Path) -> None:
    of = trained(data, 4, turns=1, steps=20)
    assert last_answer(of, 1.0) == last_answer(of, -1.0), "it sees the same"


@pytest.mark.parametrize("tokens", [1, 4])
def test_a_picture_becomes_averages_of_its_squares(tokens: int) -> None:
    of = policy("litevlp_small", changes={"context.tokens": tokens})  # of 4 tokens a picture
    net = of.context_net
    assert isinstance(net, TurnsNet)
    z = torch.randn(2, 1, 9, 32)  # two cameras, and the state
    turn = net.compressed(z)
    assert turn.shape == (2, 2 * tokens + 1, 32)
    if tokens == 4:
        torch.testing.assert_close(turn[:, :8], z[:, 0, :8])
    else:
        expected = torch.stack([z[:, 0, :4].mean(1), z[:, 0, 4:8].mean(1)], dim=1)
        torch.testing.assert_close(turn[:, :2], expected)
    assert of.context_net.memory_width == 2 * (1 + turn.shape[1] * 32)


def test_the_memory_is_the_last_turns_and_those_that_were_not_are_not_read() -> None:
    of = policy("litevlp_small")
    noise = noise_for(of)
    seen = [observation(seed=i) for i in range(4)]
    memory, memories, masks = None, [], []
    for o in seen:
        context = of.context(Request(o, 0, task=["lift"], memory=memory))
        memory = context.memory
        memories.append(memory)
        masks.append(int(context.mask.sum()))  # type: ignore[union-attr]
    per_turn = 1 + 2 * 4 + 1
    assert np.diff(masks).tolist() == [per_turn, per_turn, 0], "three turns are all that it remembers"
    assert memories[3] is not None
    assert torch.equal(memories[3], torch.cat([m[:, -len(m[0]) // 2 :] for m in memories[2:]], dim=1))  # type: ignore[index]

    def chunk(memory: torch.Tensor | None) -> torch.Tensor:
        return of.sample(Request(seen[3], 0, task=["lift"], memory=memory), noise=lambda: noise).chunk

    assert torch.equal(chunk(None), chunk(torch.zeros_like(memories[3])))
    assert not torch.equal(chunk(None), chunk(memories[2]))


def test_training_forgets_where_an_episode_begins() -> None:
    recipe = small("litevlp_small", SEEN)
    of: Policy = policy("litevlp_small")
    assert recipe.context.chain == 3  # type: ignore[attr-defined]
    o = observation()
    memory = of.encode({**o, "task": ["lift"]}).memory
    kept, fresh = (
        of.encode({**o, "task": ["lift"]}, memory, torch.tensor([f])).mask.sum()  # type: ignore[union-attr]
        for f in (False, True)
    )
    assert int(kept - fresh) == 1 + 2 * 4 + 1
