"""Pictures and words through a vision-language model: what is read once, what changes what, what is
refused."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import pytest
import torch
from contracts.recipes import small
from contracts.vla import FEATURES, FIELDS, NAMES, STATS, WRITERS, noise_for, observation, policy
from torch import Tensor

from ulna.datasets.features import ACTION, IMAGES, STATE
from ulna.policies.hooks.guidance import CFG
from ulna.policies.hooks.rtc import RTC
from ulna.policies.parts import override
from ulna.policies.policy import Policy
from ulna.policies.request import Request
from ulna.policies.serving.protocol import BadRequest
from ulna.policies.solvers.heun import Heun


def test_only_what_is_asked_is_evaluated_and_the_prefix_is_read_once() -> None:
    asked = policy("pi0_small")
    calls = []
    asked.encoder.language.register_forward_hook(lambda *_: calls.append(1))  # type: ignore[union-attr]
    sampled = asked.sample(Request(observation(), 0, task=["lift"]))
    assert len(calls) == 1
    assert sampled.nfe.tolist() == [10]


@pytest.mark.parametrize("name", FIELDS)
def test_read_once_or_at_every_step_is_the_same(name: str) -> None:
    asked = policy(name)
    request = Request(observation(2), 0, task=["push the cube", "lift it"])
    noise = torch.randn(2, 16, 8)
    once = asked.sample(request, noise=lambda: noise).chunk
    x = noise
    steps = asked.recipe.sampling_steps
    with torch.no_grad():
        for i in range(steps):
            t = torch.full((2,), i / steps)
            x = x + 1 / steps * asked.net(x, t, t, asked.context(request))
    torch.testing.assert_close(once, asked.codec.decode(x, request.observation), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_a_row_is_what_it_is_alone(name: str) -> None:
    """Whatever the length of the instructions beside it."""
    asked = policy(name)
    seen, tasks = observation(3), ["lift", "", "put the red cube into the left bowl, then wait"]
    noise = noise_for(asked, 3)
    together = asked.sample(Request(seen, [0, 1, 2], task=tasks), noise=lambda: noise).chunk
    for i, task in enumerate(tasks):
        row = {k: v[i : i + 1] for k, v in seen.items()}
        alone = asked.sample(Request(row, i, task=[task]), noise=lambda i=i: noise[i : i + 1]).chunk
        torch.testing.assert_close(alone, together[i : i + 1], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_words_pictures_and_state_change_what_it_does(name: str) -> None:
    asked, seen = policy(name), observation()
    noise = noise_for(asked)

    def chunk(task: str = "lift", changes: Mapping[str, Tensor] = {}) -> Tensor:
        request = Request({**seen, **changes}, 0, task=[task])
        if name in (*WRITERS, "pi0_fast_small"):  # how likely words are, which need not change those drawn
            zero, words = torch.zeros(1), torch.zeros_like(noise).long().flatten(1)
            return asked.net(noise, zero, zero, asked.context(request)).told(words)
        return asked.sample(request, noise=lambda: noise).chunk

    first = chunk()
    assert torch.equal(first, chunk())
    for other in (
        chunk("push"),
        chunk("lift push") - chunk("push lift") + first,  # their order, too
        chunk(changes={STATE: -seen[STATE]}),
        chunk(changes={IMAGES + "front": 255 - seen[IMAGES + "front"]}),
        chunk(changes={IMAGES + "wrist": 255 - seen[IMAGES + "wrist"]}),
    ):
        assert (other - first).abs().max() > 1e-5


@pytest.mark.parametrize("name", FIELDS)
def test_hooks_and_solvers_work_with_it(name: str) -> None:
    asked = policy(name, changes={"conditions.Instruction.drop": 0.1})
    task, seen = ["lift it"], observation()
    plain = asked.sample(Request(seen, 0, task=task))
    guided = asked.sample(Request(seen, 0, task=task), [CFG(2.0)])
    assert guided.nfe.tolist() == [2 * asked.recipe.sampling_steps]
    assert not torch.equal(guided.chunk, plain.chunk)
    assert asked.sample(Request(seen, 0, task=task), solver=Heun()).chunk.isfinite().all()
    previous = plain.chunk[:, 4:] + 0.5
    held = asked.sample(Request(seen, 1, task=task, previous=previous, delay=4), [RTC()])
    free = asked.sample(Request(seen, 1, task=task))
    off = [(s.chunk[:, :4] - previous[:, :4]).abs().mean() for s in (held, free)]
    assert off[0] < 0.7 * off[1], "it goes on from what is left of the last chunk"


def test_it_trains_in_half_precision() -> None:
    for name in NAMES:
        asked = policy(name).train()
        h = asked.recipe.horizon
        batch = {**observation(2), "task": ["lift", "push"], ACTION: torch.rand(2, h, 3)}
        with torch.autocast("cpu", torch.bfloat16):
            loss = asked.loss({**batch, "mask": torch.ones(2, h, dtype=torch.bool)})
        loss.backward()
        assert loss.isfinite()


def test_several_candidates_share_what_was_read() -> None:
    asked = policy("pi0_small")
    context = asked.context(Request(observation(2), 0, task=["lift", "push it away"]))
    many = context.repeat(3)
    noise, t = torch.randn(6, 16, 8), torch.full((6,), 0.3)
    both = asked.net(noise, t, t, many)
    for i in range(6):
        row = torch.tensor([i // 3])
        one = asked.net(noise[i : i + 1], t[:1], t[:1], context.take(row))
        torch.testing.assert_close(one, both[i : i + 1], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", FIELDS)
def test_a_time_for_each_action(name: str) -> None:
    """As training-time real-time chunking tells it (`Prefixed`)."""
    asked = policy(name)
    context = asked.context(Request(observation(), 0, task=["lift"]))
    x, t = torch.randn(1, 16, 8), torch.full((1,), 0.4)
    alike = t[:, None].expand(-1, 16)
    torch.testing.assert_close(asked.net(x, alike, alike, context), asked.net(x, t, t, context))
    other = alike.clone()
    other[:, :4] = 1.0
    assert not torch.allclose(asked.net(x, other, other, context), asked.net(x, t, t, context))
    prefixed = override(small(name, FEATURES), {"objective": "Prefixed"})
    batch = {**observation(2), "task": ["lift", "push"], ACTION: torch.rand(2, 16, 3)}
    assert Policy(prefixed, FEATURES, STATS).loss({**batch, "mask": torch.ones(2, 16).bool()}).isfinite()


def test_pictures_of_any_size_are_seen_whole() -> None:
    from ulna.policies.adapters.vision import pictures

    white = torch.full((1, 10, 20, 3), 255, dtype=torch.uint8)
    centre = pictures(white, 40, "centre", torch.float32)
    corner = pictures(white, 40, "corner", torch.float32)
    assert centre.shape == corner.shape == (1, 3, 40, 40)
    assert (centre[0, 0, :, 0] > 0).nonzero().flatten().tolist() == list(range(10, 30))
    assert (corner[0, 0, :, 0] > 0).nonzero().flatten().tolist() == list(range(20, 40))
    assert set(centre.unique().tolist()) == {-1.0, 1.0}


def test_what_does_not_go_together_is_refused_in_a_sentence() -> None:
    recipe = small("pi0_small", FEATURES)
    for changes, says in (
        ({"encoder": "Encoder"}, "--encoder VisionLanguage, or --conditions Words"),
        ({"encoder": "Encoder", "conditions": "Words"}, "or --context Stack"),
        ({"context": "Stack"}, "VisionLanguage --context CachedPrefix"),
        ({"encoder.state": 2}, "--encoder.state"),
        ({"codec.width": 2}, "--codec.width 3"),
        ({"encoder.language.kv_heads": 3}, "multiple of kv_heads"),
        ({"encoder.vision.heads": 3}, "multiple of its heads"),
        ({"backbone.width": 33}, "must be even"),
        ({"objective": "FlowMap"}, "two times"),
    ):
        with pytest.raises(ValueError, match=says):
            Policy(override(recipe, changes), FEATURES, STATS)
    blind = {k: f for k, f in FEATURES.items() if not k.startswith(IMAGES)}
    nothing = Policy(replace(small("pi0_small", blind), conditions=()), blind, STATS)
    with pytest.raises(ValueError, match="nothing to read"):
        nothing.context(Request({STATE: torch.zeros(1, 1, 3)}, 0))
    with pytest.raises(BadRequest, match=r"has \d+ tokens.*say it shorter"):
        policy("pi0_small").context(Request(observation(), 0, task=["go " * 60]))


def test_goals_and_several_steps_are_read_too() -> None:
    recipe = small("smolvla_small", FEATURES)
    recipe = override(recipe, {"n_obs_steps": 2, "conditions": "Instruction,Goal"})
    asked = Policy(recipe, FEATURES, STATS).eval()
    seen = {k: v.repeat(1, 2, *(1,) * (v.ndim - 2)) for k, v in observation().items()}
    goal = {f"goal.{k}": v[:, 0] for k, v in observation(seed=1).items()}
    noise = torch.randn(1, 16, 8)
    one, other = (
        asked.sample(Request({**seen, **g}, 0, task=["lift"]), noise=lambda: noise).chunk
        for g in (goal, {k: 0 * v for k, v in goal.items()})
    )
    assert one.shape == (1, 16, 3)
    assert not torch.equal(one, other)
