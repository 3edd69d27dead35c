"""ICRT: demonstrations and the present as one sequence, read once an episode, and followed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
from contracts.data import FEATURES, WITH_IMAGE
from contracts.recipes import small

from ulna.datasets.features import ACTION, ENVIRONMENT, STATE, Features
from ulna.datasets.stats import vector_stats
from ulna.policies.conditions.demonstrations import Demonstrations
from ulna.policies.contexts.context import Conditions
from ulna.policies.contexts.icrt import ICRT
from ulna.policies.parts import override
from ulna.policies.policy import Policy

WIDTH, K, P, L = 8, 2, 2, 5
RNG = np.random.default_rng(0)


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def test_along_a_chain_is_one_decision_after_the_other_and_then_the_oldest_go() -> None:
    net: Any = ICRT(16, 2, 2, 32, chain=6).build(WIDTH, K, 1, 1, 7).eval()
    links, b = 6, 3
    z = torch.randn(9 * b, 1, K, WIDTH)
    mask = torch.tensor([[True] * 7, [True] * 3 + [False] * 4, [False, True] * 3 + [False]])
    told = Conditions(torch.randn(b, 7, WIDTH), mask, torch.zeros(b, 0))
    fresh = torch.zeros(links, b, dtype=torch.bool)
    whole = net.along(z[: links * b], told, fresh)
    assert whole.tokens.shape[1:] == (net.tokens, net.token_width)
    # what is masked does not count, not even for the places of the others
    short = Conditions(told.tokens[1:2, :3], mask[1:2, :3], told.pooled[1:2])
    alone = net.along(z[1 : links * b : b], short, fresh[:, 1:2])
    torch.testing.assert_close(alone.pooled, whole.pooled[1::b], rtol=0, atol=1e-5)
    one, before = net(z[:b], told), None
    for i in range(9):
        before, one = one.memory, net(z[i * b : (i + 1) * b], told, one.memory if i else None)
        if i < links:
            torch.testing.assert_close(one.pooled, whole.pooled[i * b : (i + 1) * b], rtol=0, atol=1e-5)
        assert one.memory.shape == (b, net.memory_width)
    last = net.along(z[3 * b :], told, fresh)  # the last six of nine
    torch.testing.assert_close(one.pooled, last.pooled[-b:], rtol=0, atol=1e-5)
    half = net(z[:b], told, before, torch.tensor([True, False, False]))
    torch.testing.assert_close(half.pooled[0], whole.pooled[0], rtol=0, atol=1e-5)
    assert not torch.allclose(half.pooled[1], whole.pooled[1], atol=1e-3)


def policy(changes: Mapping[str, Any] | None = None, features: Features = FEATURES) -> Policy:
    stats = {
        k: vector_stats(RNG.normal(size=(20, *f.shape))) for k, f in features.items() if f.dtype != "uint8"
    }
    stats["action.relative"] = vector_stats(RNG.normal(size=(20, 17, 3)))
    return Policy(override(small("icrt", features), dict(changes or {})), features, stats)


def shown(features: Features, b: int) -> dict[str, torch.Tensor]:
    prompt = {f"prompt.{k}": _draw((b, P, L, *f.shape), f.dtype) for k, f in features.items()}
    return {**prompt, "prompt.mask": torch.ones(b, P, L, dtype=torch.bool)}


def _draw(shape: tuple[int, ...], dtype: str) -> torch.Tensor:
    values = RNG.integers(0, 256, shape) if dtype == "uint8" else RNG.normal(size=shape)
    return torch.from_numpy(values.astype(dtype))


@pytest.mark.parametrize("mode", ["minmax", "meanstd"])
def test_a_demonstration_is_seen_as_the_present_is(mode: str) -> None:
    """Its tokens are those that the policy had for these observations, after these commands."""
    p = policy({"encoder.image.crop": 1.0, "normalise_state": mode}, WITH_IMAGE).eval()
    told = shown(WITH_IMAGE, 2)
    now = {k: _draw((2, 1, *f.shape), f.dtype) for k, f in WITH_IMAGE.items() if k != ACTION}
    with torch.no_grad():
        tokens, mask = p.conditions[0](p._told(p._seen(now), {**now, **told}))
        assert tokens.shape == (2, P * L * K, p.encoder.width)
        assert mask.all()
        for row, demonstration, tick in ((0, 0, 0), (1, 1, 3)):
            then = {k: told[f"prompt.{k}"][row, demonstration, tick][None, None] for k in now}
            then["action.past"] = told["prompt.action"][row, demonstration, max(tick - 1, 0)][None, None]
            at = (demonstration * L + tick) * K
            torch.testing.assert_close(tokens[row, at : at + K], p.encodings(then)[0, 0])


def test_what_is_shown_is_read_once_an_episode(monkeypatch: pytest.MonkeyPatch) -> None:
    p = policy().eval()
    now = {k: _draw((2, 1, *FEATURES[k].shape), "float32") for k in (STATE, ENVIRONMENT)}
    told, other = shown(FEATURES, 2), shown(FEATURES, 2)
    past = {"action.past": torch.zeros(2, 1, 3)}

    def pooled(prompt: dict[str, torch.Tensor]) -> torch.Tensor:
        with torch.no_grad():
            return p.encode({**now, **past, **prompt}).pooled

    fresh = pooled(told).clone()  # of a policy that may still learn, which keeps nothing
    p.requires_grad_(False)
    context: Any = p.context_net
    rows, read = list[int](), type(context.reader).forward
    monkeypatch.setattr(
        type(context.reader), "forward", lambda self, x, *more: rows.append(len(x)) or read(self, x, *more)
    )
    for _ in range(3):
        torch.testing.assert_close(pooled(told), fresh)
    mixed = {k: torch.cat([other[k][:1], told[k][1:]]) for k in told}
    half = pooled(mixed)
    assert rows == [2, 1], "the second time nothing is read, and of a new row only itself"
    torch.testing.assert_close(half[1], fresh[1])
    assert (half[0] - fresh[0]).abs().max() > 1e-4
    hidden = {**told, "prompt.mask": torch.zeros(2, P, L, dtype=torch.bool)}
    torch.testing.assert_close(pooled(hidden), p.encode({**now, **past, **told}, drop=True).pooled)


def test_no_loss_is_on_what_is_shown_and_a_row_learns_from_some_of_it() -> None:
    p = policy({"conditions.Demonstrations.fewest": 0}).train()
    told = shown(FEATURES, 64)
    seen = {k: told[f"prompt.{k}"][:, 0, :1] for k in (STATE, ENVIRONMENT)}
    _, mask = p.conditions[0](p._told(p._seen({**seen, "action.past": seen[STATE]}), {**seen, **told}))
    per_row = mask.unflatten(1, (P, L * K))
    assert set(per_row.sum((1, 2)).tolist()) == {0, L * K, P * L * K}, "none, one, or both"
    assert per_row[:, 0].all(1)[per_row.any(2).any(1)].all(), "the first comes first"
    links, h = 3, 17
    batch: dict[str, Any] = {
        **{k: _draw((4, links, 1, *FEATURES[k].shape), "float32") for k in (STATE, ENVIRONMENT)},
        **{k: v[:4, None].expand(-1, links, *v.shape[1:]) for k, v in told.items()},
        ACTION: _draw((4, links, h, 3), "float32"),
        "mask": torch.ones(4, links, h, dtype=torch.bool),
        "fresh": torch.tensor([[True, False, False]] * 4),
    }
    action, context, counts, _ = p.examples(batch)
    assert len(action) == len(context.pooled) == len(counts) == 4 * links, "the present alone"
    assert not counts[:, 0].any(), "nor on the command before now"


def test_what_does_not_go_together_is_refused() -> None:
    with pytest.raises(ValueError, match="the encoder sees no command: use --codec Delta"):
        policy({"encoder": "Encoder", "codec": "Absolute"})
    with pytest.raises(ValueError, match=r"fewest is 3: it must lie in 0\.\.2"):
        policy({"conditions": (Demonstrations(2, 5, fewest=3),)})
    with pytest.raises(ValueError, match="a chain of at least 2"):
        policy({"context.chain": 1})
