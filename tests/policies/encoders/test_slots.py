"""Slots of pictures: what competes for what, and what does not depend on their order."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from contracts.data import CAMERA, FEATURES, WITH_IMAGE
from torch import Tensor

from ulna.datasets.features import ENVIRONMENT, STATE
from ulna.policies.encoders.slots import Sight, SlotAttention, Slots
from ulna.policies.encoders.vector import SmallCNN

PART = Slots(width=8, image=SmallCNN(channels=(8, 8), crop=1.0), slots=3)


def attention(competition: bool, rounds: int = 3) -> SlotAttention:
    torch.manual_seed(0)
    return SlotAttention(8, rounds, competition).double()


def example() -> tuple[Tensor, Tensor]:
    """Places (2, 5, 8) and slots (2, 3, 8)."""
    torch.manual_seed(1)
    return torch.randn(2, 5, 8, dtype=torch.float64), torch.randn(2, 3, 8, dtype=torch.float64)


def test_a_round_is_the_published_one_element_by_element() -> None:
    net, (places, slots) = attention(True, rounds=1), example()
    keys, values = net.key(net.normal_places(places)), net.value(net.normal_places(places))
    query = net.query(net.normal_slots(slots))
    for n in range(2):
        fit = torch.tensor([[(query[n, k] @ keys[n, p]).item() / 8**0.5 for p in range(5)] for k in range(3)])
        taken = fit.double().exp() / fit.double().exp().sum(0)  # at each place the slots share it
        for k in range(3):
            mean = sum(taken[k, p] * values[n, p] for p in range(5)) / taken[k].sum()
            moved = net.gate(mean[None], slots[n, k][None])[0]
            assert torch.allclose(net(places, slots)[n, k], moved + net.more(moved), atol=1e-6)


def test_slots_share_each_place_and_questions_do_not() -> None:
    places, slots = example()
    for competition, over in ((True, 1), (False, 2)):
        net = attention(competition)
        share = net.shares(net.key(net.normal_places(places)), slots)
        assert share.shape == (2, 3, 5)
        assert torch.allclose(share.sum(over), torch.ones_like(share.sum(over)))
    # a slot that is alone takes all; one more that wants the same leaves it half of that
    net = attention(True)
    keys = net.key(net.normal_places(places))
    assert torch.equal(net.shares(keys, slots[:, :1]), torch.ones(2, 1, 5, dtype=torch.float64))
    assert torch.allclose(net.shares(keys, slots[:, [0, 0]]), torch.full((2, 2, 5), 0.5).double())


@pytest.mark.parametrize("competition", [True, False])
def test_order_is_nothing(competition: bool) -> None:
    net, (places, slots) = attention(competition), example()
    order, elsewhere = torch.tensor([2, 0, 1]), torch.tensor([4, 2, 0, 3, 1])
    ended = net(places, slots)
    assert torch.allclose(net(places, slots[:, order]), ended[:, order], atol=1e-12)
    assert torch.allclose(net(places[:, elsewhere], slots), ended, atol=1e-12)
    sight = Sight(dataclasses.replace(PART, competition=competition), 4).double()
    assert torch.allclose(sight.read(ended[:, order]), sight.read(ended), atol=1e-12)


def test_of_each_step_a_token_of_each_vector_and_of_each_slot() -> None:
    torch.manual_seed(2)
    encoder = PART.build(WITH_IMAGE)
    observation = {
        STATE: torch.randn(2, 2, 3),
        ENVIRONMENT: torch.randn(2, 2, 2),
        CAMERA: torch.randint(0, 256, (2, 2, 24, 32, 3), dtype=torch.uint8),
    }
    first = encoder(observation)
    assert first.shape == (2, 2, encoder.tokens_per_frame, encoder.width) == (2, 2, 5, 8)
    assert not torch.allclose(first[:, :, 2:], encoder(observation)[:, :, 2:]), "drawn anew"
    first.square().sum().backward()
    assert not [n for n, p in encoder.named_parameters() if p.grad is None or not p.grad.any()]
    again = PART.build(WITH_IMAGE)
    again.load_state_dict(encoder.state_dict())
    assert torch.equal(encoder.eval()(observation), again.eval()(observation)), "acting has one draw"
    mirrored = {**observation, CAMERA: observation[CAMERA].flip(3)}
    assert not torch.allclose(encoder(mirrored)[:, :, 2:], encoder(observation)[:, :, 2:]), "it tells where"


def test_the_control_is_as_large() -> None:
    def size(part: Slots) -> int:
        return sum(p.numel() for p in part.build(WITH_IMAGE).parameters())

    slots, control = (size(Slots(competition=c)) for c in (True, False))
    assert abs(slots - control) < 0.01 * slots
    with pytest.raises(ValueError, match="of pictures"):
        PART.build(FEATURES)
    with pytest.raises(ValueError, match="at least 1"):
        Slots(slots=0).build(WITH_IMAGE)
