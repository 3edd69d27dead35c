"""ACT: its latent, its feature maps, its transformer over them."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from contracts.data import CAMERA, FEATURES, WITH_IMAGE, write_store
from contracts.planar import write_demonstrations
from contracts.recipes import small
from torch import Tensor, nn
from torch.distributions import Normal, kl_divergence

from ulna.datasets.features import ACTION, STATE, Features
from ulna.datasets.stats import compute_stats
from ulna.policies.backbones.backbone import Head, Sizes
from ulna.policies.backbones.encoder_decoder import EncoderDecoder
from ulna.policies.backbones.horizons import Horizons
from ulna.policies.backbones.latent import Latent, divergence
from ulna.policies.backbones.mlp import ResidualMLP
from ulna.policies.backbones.post_norm import sines_of
from ulna.policies.backbones.transformer import Transformer
from ulna.policies.backbones.unet1d import UNet1D
from ulna.policies.contexts.context import Context, Shown
from ulna.policies.encoders.feature_maps import FeatureMaps
from ulna.policies.encoders.vector import ResNet18, SmallCNN
from ulna.policies.objectives.cvae import CVAE
from ulna.policies.objectives.ebt import EBT
from ulna.policies.objectives.flow import Flow
from ulna.policies.objectives.mip import MIP
from ulna.policies.objectives.objective import Objective
from ulna.policies.objectives.regression import Regression
from ulna.policies.policy import Policy
from ulna.policies.request import Request
from ulna.policies.train.data import open_data, tensors, window_spec
from ulna.policies.train.loop import train

SMALL = EncoderDecoder(32, 2, 1, 4, 64)
SIZES = Sizes(action_dim=2, horizon=6, token_width=8, pooled_width=24, tokens=3, places=(None,) * 3)


def latent(inner: nn.Module | EncoderDecoder | ResidualMLP | UNet1D | Transformer = SMALL) -> Latent:
    return Latent(inner, 32, 2, 4, 64)  # type: ignore[arg-type]


def policy(tmp_path: Path, features: Features = FEATURES) -> tuple[Policy, dict[str, Tensor]]:
    """(an untrained one, a batch of windows, the last of which reach beyond their episode's end)."""
    recipe = small("act", features)
    store = write_store(tmp_path / "d", features=features)
    torch.manual_seed(0)
    data = open_data(tmp_path / "d").windows(window_spec(recipe, features))
    stats = compute_stats(store, [k for k in features if k != CAMERA])
    return Policy(recipe, features, stats), tensors(data.train.batch(np.array([2, 12, 19, 30])), "cpu")


def test_what_the_latent_costs_is_the_divergence_of_two_normal_distributions() -> None:
    torch.manual_seed(0)
    mean, log_variance = torch.randn(5, 7, dtype=torch.float64), torch.randn(5, 7, dtype=torch.float64)
    theirs = kl_divergence(Normal(mean, (log_variance / 2).exp()), Normal(0.0, 1.0)).sum(-1)
    torch.testing.assert_close(divergence(mean, log_variance).double(), theirs, rtol=1e-6, atol=1e-6)
    assert divergence(torch.zeros(1, 3), torch.zeros(1, 3)).item() == 0.0


def test_the_loss_is_the_l1_of_a_drawn_latent_and_ten_times_its_divergence() -> None:
    torch.manual_seed(0)
    objective = CVAE(latent=4)
    net = latent().build(SIZES, objective.needs).eval()
    a, tokens = torch.randn(3, 6, 2), torch.randn(3, 3, 8)
    context, draw = (
        Context(tokens, tokens.flatten(1), frame=torch.tensor([0, 0, 0])),
        objective.draw(a, 0.0, None),
    )
    losses = objective.losses(net, a, context, draw)
    every = torch.ones(3, 6, dtype=torch.bool)
    mean, log_variance = net.posterior(context, Shown(a, every, draw.more["latent"]))  # type: ignore[operator]
    theirs = kl_divergence(Normal(mean, (log_variance / 2).exp()), Normal(0.0, 1.0)).sum(-1).mean()
    torch.testing.assert_close(losses.extras["kl"], 10 * theirs)
    assert losses.error.shape == a.shape
    again = objective.losses(net, a, context, draw)
    assert torch.equal(losses.error, again.error), "what is drawn is data"
    other = dataclasses.replace(draw, more={**draw.more, "latent": -draw.more["latent"]})
    assert not torch.allclose(losses.error, objective.losses(net, a, context, other).error)


@pytest.mark.parametrize("inner", [Regression("l2"), Flow(), MIP()])
def test_a_latent_goes_with_every_objective_of_chunks_and_every_network(inner: Objective) -> None:
    torch.manual_seed(0)
    a, tokens = torch.randn(3, 6, 2), torch.randn(3, 3, 8)
    context, objective = Context(tokens, tokens.flatten(1)), CVAE(inner, 4)
    for backbone in (SMALL, ResidualMLP(16, 1, 8), Transformer(16, 1), UNet1D((8, 16), time_width=8)):
        net = latent(backbone).build(dataclasses.replace(SIZES, places=(None,)), objective.needs)
        losses = objective.losses(net, a, context, objective.draw(a, 0.0, None))
        (losses.error.mean() + losses.extras["kl"]).backward()
        assert all(p.grad is not None for p in net.posterior.parameters())  # type: ignore[union-attr]


def test_what_does_not_go_together_is_said() -> None:
    for backbone in (SMALL, ResidualMLP(), Transformer(), Horizons(Transformer(), (6,))):
        with pytest.raises(ValueError, match="has none: wrap it, --backbone Latent"):
            backbone.build(SIZES, CVAE().needs)
    with pytest.raises(ValueError, match="not of Latent"):
        Horizons(latent(), (3, 6)).build(SIZES, CVAE().needs)
    with pytest.raises(ValueError, match=r"width 30 must be a multiple of 4 and of heads 8"):
        EncoderDecoder(30).build(SIZES, Head())
    for make in (lambda: CVAE(latent=0), lambda: CVAE(kl_weight=-1.0)):
        with pytest.raises(ValueError, match="latent is at least 1 wide"):
            make()
    with pytest.raises(ValueError, match="Energy"):
        latent().build(SIZES, CVAE(EBT()).needs)
    assert not hasattr(latent().build(SIZES, Regression().needs), "posterior"), (
        "without CVAE it is the network"
    )


def test_acting_draws_nothing_and_sees_no_action(tmp_path: Path) -> None:
    acting, batch = policy(tmp_path)
    acting.eval()
    observation = {k: batch[k] for k in acting.observation_keys}
    first = acting.sample(Request(observation, 1))
    assert first.nfe.tolist() == [1] * 4
    assert torch.equal(first.chunk, acting.sample(Request(observation, 2)).chunk), "whatever the seed"
    told = acting.sample(Request({**observation, ACTION: torch.randn_like(batch[ACTION])}, 1))
    assert torch.equal(first.chunk, told.chunk)
    context = acting.context(Request(observation))
    zero, x = torch.zeros(4), torch.zeros(4, 20, 3)
    every = torch.ones(4, 20, dtype=torch.bool)
    shown = [Shown(a, every, torch.zeros(4, 8)) for a in (x, x + 1)]
    chunks = [acting.net(x, zero, zero, dataclasses.replace(context, shown=s)) for s in shown]
    assert not torch.allclose(*chunks), "in training it does"


def test_padded_actions_count_for_nothing(tmp_path: Path) -> None:
    """Neither in the error nor in what the latent is made of."""
    learning, batch = policy(tmp_path)
    learning.eval()
    assert not batch["mask"].all()

    def loss(batch: dict[str, Tensor]) -> float:
        torch.manual_seed(0)
        return float(learning.loss(batch).detach())

    changed = {**batch, ACTION: torch.where(batch["mask"][..., None], batch[ACTION], batch[ACTION] + 3)}
    assert loss(changed) == loss(batch)
    assert loss({**changed, "mask": torch.ones_like(batch["mask"])}) != pytest.approx(loss(batch))


def blob(row: int, column: int) -> Tensor:
    image = torch.zeros(1, 1, 64, 64, 3, dtype=torch.uint8)
    image[..., row : row + 8, column : column + 8, :] = 255
    return image


@pytest.mark.parametrize("image", [SmallCNN(crop=1.0), ResNet18(crop=1.0)], ids=["cnn", "resnet"])
def test_a_feature_map_keeps_the_place(image: SmallCNN | ResNet18) -> None:
    torch.manual_seed(0)
    picture = dataclasses.replace(WITH_IMAGE[CAMERA], shape=(64, 64, 3))
    features = {STATE: WITH_IMAGE[STATE], CAMERA: picture}
    encoder = FeatureMaps(16, image).build(features).eval()
    cells = 4 if isinstance(image, ResNet18) else 64
    assert encoder.tokens_per_frame == 1 + cells
    assert encoder.places[0] is None
    assert encoder.places[-1] == (1.0, 1.0)
    state = torch.zeros(1, 1, 3)
    with torch.no_grad():
        empty, left, right = (
            encoder({STATE: state, CAMERA: picture})[0, 0]
            for picture in (torch.zeros_like(blob(0, 0)), blob(10, 10), blob(10, 42))
        )
    assert torch.equal(left[0], right[0]), "the state's token sees no picture"
    assert not torch.allclose(left[1:], right[1:], atol=1e-3)
    if cells == 4:  # each of which sees the whole of so small a picture
        return
    side = int(cells**0.5)
    difference = [(v - empty)[1:].abs().sum(-1).reshape(side, side) for v in (left, right)]
    # normalisation over the picture makes far places differ a little, too
    assert difference[0][:, : side // 2].sum() > difference[0][:, side // 2 :].sum()
    assert difference[1][:, : side // 2].sum() < difference[1][:, side // 2 :].sum()


def test_pictures_of_too_many_places_are_refused() -> None:
    large = {CAMERA: dataclasses.replace(WITH_IMAGE[CAMERA], shape=(480, 640, 3))}
    with pytest.raises(ValueError, match=r"4800 tokens of a picture .*, 60 rows of 80"):
        FeatureMaps(16, SmallCNN(crop=1.0)).build(large)


def test_sines_are_of_rows_and_columns() -> None:
    table = sines_of([None, (0.5, 0.25), (0.5, 1.0), (1.0, 1.0)], 16)
    assert torch.equal(table[0], torch.zeros(16))
    torch.testing.assert_close(table[1, :8], table[2, :8])
    torch.testing.assert_close(table[2, 8:], table[3, 8:])
    assert not torch.allclose(table[1, 8:], table[2, 8:])
    torch.testing.assert_close(table[1, :2], torch.tensor([0.0, -1.0]), atol=1e-6, rtol=0)  # half a turn
    torch.testing.assert_close(table[1, 8:10], torch.tensor([1.0, 0.0]), atol=1e-6, rtol=0)  # a quarter


def test_where_a_token_is_counts() -> None:
    """The places alone, without learned positions: tokens that change places change the chunk, and tokens of
    no place do not."""
    torch.manual_seed(0)
    places = (None, (0.5, 0.5), (0.5, 1.0), (1.0, 0.5), (1.0, 1.0))
    sizes = dataclasses.replace(SIZES, tokens=11, places=places)
    net = SMALL.build(sizes, Head()).eval()
    nn.init.zeros_(net.token_positions)  # type: ignore[arg-type]
    tokens, zero = torch.randn(1, 10, 8), torch.zeros(1)

    def chunk(order: list[int], frame: list[int]) -> Tensor:
        context = Context(tokens[:, order], tokens[:, :3].flatten(1), frame=torch.tensor(frame))
        return net(torch.zeros(1, 6, 2), zero, zero, context).detach()

    frames = [0] * 5 + [1] * 5
    here = chunk([*range(10)], frames)
    assert not torch.allclose(here, chunk([0, 2, 1, *range(3, 10)], frames), atol=1e-4)
    assert not torch.allclose(here, chunk([*range(9), 8], frames), atol=1e-4)
    torch.testing.assert_close(here, chunk([5, *range(1, 5), 0, *range(6, 10)], frames))
    # more tokens before, of conditions, move no place
    more = chunk([9, *range(10)], [-1, *frames])
    torch.testing.assert_close(more, chunk([9, *range(10)], [-1, *frames]))
    shuffled = chunk([9, 0, 2, 1, *range(3, 10)], [-1, *frames])
    assert not torch.allclose(more, shuffled, atol=1e-4)


def test_tokens_that_are_masked_count_for_nothing() -> None:
    torch.manual_seed(0)
    net = latent().build(SIZES, CVAE(latent=4).needs).eval()
    tokens, mask, zero = torch.randn(1, 3, 8), torch.tensor([[True, False, True]]), torch.zeros(1)
    other = tokens.clone()
    other[:, 1] += 5
    chunks = [
        net(torch.zeros(1, 6, 2), zero, zero, Context(v, torch.zeros(1, 24), mask, torch.tensor([-1, 0, 0])))
        for v in (tokens, other)
    ]
    torch.testing.assert_close(*chunks)


def test_pictures_pass_the_whole_way(tmp_path: Path) -> None:
    learning, batch = policy(tmp_path, WITH_IMAGE)
    assert learning.context_net.tokens == 2 + 3 * 4  # two vectors, and 24 x 32 pixels halved three times
    learning.loss(batch).backward()
    assert all(p.grad is not None for p in learning.encoder.parameters())
    learning.eval()
    observation = {k: batch[k] for k in learning.observation_keys}
    chunk = learning.sample(Request(observation, 0)).chunk
    moved = {**observation, CAMERA: observation[CAMERA].roll(8, dims=3)}
    assert not torch.allclose(chunk, learning.sample(Request(moved, 0)).chunk)


def test_it_learns_from_a_planar_task(tmp_path: Path) -> None:
    write_demonstrations(tmp_path / "d", "peg", 10)
    data = open_data(tmp_path / "d")
    recipe = small("act", data.features, steps=40, batch_size=32, learning_rate=1e-3, warmup=5)
    losses = train(recipe, data, tmp_path / "out", device="cpu").losses
    assert np.mean(losses[-5:]) < 0.5 * np.mean(losses[:5])
