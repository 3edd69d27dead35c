"""LID: a language model that reads words and what is seen as one text, and begins with its own weights."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from contracts.data import write_store
from contracts.recipes import small
from contracts.sentences import TINY, published
from safetensors.torch import load_file

from ulna.datasets.features import STATE, Feature, Features
from ulna.policies.checkpoint import load_checkpoint
from ulna.policies.conditions.lid import LID, LIDNet
from ulna.policies.parts import override
from ulna.policies.request import TASK
from ulna.policies.train.loop import train

SIZES = {**TINY, "positions": 16}
SEEN: Features = {STATE: Feature((5,), "float32")}


def net(**changes: object) -> LIDNet:
    torch.manual_seed(0)
    made = LID(**{"weights": "", **SIZES, **changes}).build(SEEN, torch.nn.Identity(), 8)  # type: ignore[arg-type]
    assert isinstance(made, LIDNet)
    return made.eval()


def test_a_row_is_read_alike_whatever_stands_beside_it() -> None:
    made, state = net(), torch.rand(2, 2, 5)
    both, mask = made({TASK: ["push", "lift the red cube now"], STATE: state})
    alone, _ = made({TASK: ["push"], STATE: state[:1]})
    assert both.shape == (2, 1, 8)
    assert mask.all()
    torch.testing.assert_close(both[:1], alone, atol=1e-6, rtol=1e-5)


def test_words_their_order_and_every_element_at_every_step_count() -> None:
    made, state = net(), torch.rand(1, 2, 5, requires_grad=True)
    first, _ = made({TASK: ["push the cube"], STATE: state})
    for other in ("push", "cube the push", ""):
        assert (made({TASK: [other], STATE: state})[0] - first).abs().max() > 1e-5
    (gradient,) = torch.autograd.grad(first.square().sum(), state, retain_graph=True)
    assert (gradient != 0).all()
    later = state.detach().flip(1)
    assert (made({TASK: ["push the cube"], STATE: later})[0] - first).abs().max() > 1e-5, "which step it is"
    first.square().sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in made.model.encoder.parameters())


def test_training_begins_with_the_published_weights_or_with_its_tokenizer_alone(tmp_path: Path) -> None:
    folder, data = published(tmp_path / "s", positions=16), tmp_path / "d"
    write_store(data)
    before = {k.removeprefix("bert."): v for k, v in load_file(folder / "model.safetensors").items()}
    for pretrained in (True, False):
        sizes = {"weights": str(folder), "pretrained": pretrained, **SIZES}
        recipe = override(small("lid"), {f"conditions.LID.{k}": v for k, v in sizes.items()})
        recipe = override(recipe, {"training.learning_rate": 1e-3, "training.ema_power": 0.0})
        said: list[str] = []
        train(recipe, data, tmp_path / f"c{pretrained}", device="cpu", track=(), say=said.append)
        told = "began with the language model" if pretrained else "a language model of random weights"
        assert [s for s in said if told in s]
    shutil.rmtree(folder)
    for pretrained in (True, False):
        (condition,) = load_checkpoint(tmp_path / f"c{pretrained}").conditions
        assert isinstance(condition, LIDNet)
        after = condition.model.state_dict()
        near = all(torch.allclose(after[k], v, atol=2e-3) for k, v in before.items())
        moved = any(not torch.equal(after[k], v) for k, v in before.items())
        assert near == pretrained
        assert moved, "all of it learns"
        assert len(condition.tokenizer()("push the cube")) == 5


def test_more_than_it_has_places_for_is_one_sentence() -> None:
    with pytest.raises(ValueError, match="knows 16 places"):
        net()({TASK: ["push"], STATE: torch.rand(1, 3, 5)})
    with pytest.raises(ValueError, match="at least one element"):
        net(size=0)
