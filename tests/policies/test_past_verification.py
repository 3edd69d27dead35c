"""Candidates chosen by their past actions: which one wins, when none is judged, and whom it does not fit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from contracts.data import FEATURES, write_store
from contracts.recipes import small

from ulna.datasets.features import ACTION
from ulna.datasets.stats import compute_stats
from ulna.policies.hooks.all import hook_named
from ulna.policies.hooks.past_verification import PastVerification, past_error
from ulna.policies.parts import override
from ulna.policies.policy import Policy
from ulna.policies.request import PAST, Request
from ulna.policies.sampler import Sampled
from ulna.policies.serving.local import LocalPolicy
from ulna.policies.serving.protocol import BadRequest
from ulna.policies.train.loop import train

N, N_PAST = 5, 15
VERIFIED = (PastVerification(N),)
SEEDS = (3, 4)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("past")


@pytest.fixture(scope="module")
def policy(folder: Path) -> Policy:
    """Untrained: its candidates differ much."""
    stats = compute_stats(write_store(folder / "data"), list(FEATURES))
    torch.manual_seed(0)
    return Policy(small("ptp"), FEATURES, stats).eval()


@pytest.fixture(scope="module")
def checkpoint(folder: Path, policy: Policy) -> Path:
    return train(small("ptp"), folder / "data", folder / "ptp", device="cpu").checkpoint


def observation(rows: int) -> dict[str, torch.Tensor]:
    rng = torch.Generator().manual_seed(1)
    return {k: torch.randn(rows, 16, *f.shape, generator=rng) for k, f in FEATURES.items() if k != ACTION}


def draw(policy: Policy, past: torch.Tensor | None, hooks=VERIFIED) -> Sampled:  # type: ignore[no-untyped-def]
    return policy.sample(Request(observation(2), SEEDS, past), hooks, steps=4)


def test_the_candidate_whose_past_is_what_was_sent_wins(policy: Policy) -> None:
    candidates = draw(policy, None).candidates
    for winners in ((3, 0), (1, 4)):
        past = torch.stack([candidates[i, k, :N_PAST] for i, k in enumerate(winners)])
        sampled = draw(policy, past)
        assert sampled.scores is not None
        assert tuple(sampled.scores.argmax(1).tolist()) == winners
        for i, k in enumerate(winners):
            torch.testing.assert_close(sampled.chunk[i], candidates[i, k])


def test_the_distance_is_of_normalised_actions(policy: Policy) -> None:
    """An error of the same size in units counts more in an element of little range."""
    sampled = draw(policy, None)
    past = sampled.candidates[:, 2, :N_PAST].clone()
    past[..., 0] += 0.3
    normal = policy.normalise_past(past, {})
    errors = past_error(
        policy.normalise_action(sampled.candidates.flatten(0, 1), {}), normal.repeat_interleave(N, 0)
    )
    torch.testing.assert_close(draw(policy, past).scores.argmax(1), errors.reshape(2, N).argmin(1))  # type: ignore[union-attr]
    scale = policy.codec.affine.scale[0]
    torch.testing.assert_close(errors.reshape(2, N)[:, 2], ((0.3 * scale) ** 2 / 3).expand(2))


def test_without_a_past_the_chunk_is_the_one_drawn_alone(policy: Policy) -> None:
    sampled = draw(policy, None)
    assert sampled.scores is None
    torch.testing.assert_close(sampled.chunk, draw(policy, None, hooks=()).chunk)


def test_a_row_is_judged_as_if_it_were_asked_alone(policy: Policy) -> None:
    past = torch.stack([draw(policy, None).candidates[i, 2, :N_PAST] for i in range(2)])
    both = draw(policy, past)
    for i, seed in enumerate(SEEDS):
        rows = {k: v[i : i + 1] for k, v in observation(2).items()}
        alone = policy.sample(Request(rows, seed, past[i : i + 1]), VERIFIED, steps=4)
        torch.testing.assert_close(alone.chunk[0], both.chunk[i])


def test_a_past_of_another_length_is_refused_with_both(policy: Policy) -> None:
    with pytest.raises(ValueError, match="3 actions sent before now, the policy's n_past_actions is 15"):
        draw(policy, torch.zeros(2, 3, 3))


def test_recipes_that_it_does_not_fit_refuse_it(checkpoint: Path, folder: Path) -> None:
    says = r"PastVerification .* recipe flow has n_past_actions 0: .* ptp"
    with pytest.raises(ValueError, match=says):
        override(small("flow"), {"steering": "PastVerification"})
    ahead_only = train(small("flow"), folder / "data", folder / "flow", device="cpu").checkpoint
    with pytest.raises(ValueError, match=says):
        LocalPolicy(ahead_only, hooks=[PastVerification()])
    options = {"steering": [{"part": "PastVerification"}]}
    zeros = {k: np.zeros(f.shape, f.dtype) for k, f in FEATURES.items() if k != ACTION}
    with pytest.raises(BadRequest, match=says):
        LocalPolicy(ahead_only).infer(Request(zeros, 0, options=options).to_wire())
    with pytest.raises(ValueError, match="CVAE of the recipe act gives one observation one chunk only"):
        override(small("act"), {"steering": "PastVerification", "n_past_actions": 1, "n_action_steps": 1})
    assert override(small("ptp"), {"steering": "PastVerification"}).needs_past
    with pytest.raises(ValueError, match="at least 1 candidate, not 0"):
        hook_named("PastVerification", {"candidates": "0"})


def test_a_served_policy_is_verified_by_the_past_of_the_request(checkpoint: Path) -> None:
    hook = hook_named("PastVerification", {"candidates": "4"})
    local = LocalPolicy(checkpoint, sampling_steps=4, hooks=[hook])
    assert local.metadata.needs_past
    assert not LocalPolicy(checkpoint).metadata.needs_past
    seen = {k: v[0].numpy() for k, v in observation(1).items()}
    first = local.infer(Request(seen, 7).to_wire())
    candidates = local.policy.sample(Request(observation(1), 7), (hook,), steps=4).candidates[0]  # type: ignore[arg-type]
    np.testing.assert_allclose(first["actions"], candidates[0, N_PAST:], atol=1e-6)
    request = Request(seen, 7, candidates[3, :N_PAST].numpy())
    reply = local.infer(request.to_wire())
    assert reply["nfe"] == 4 * 4
    np.testing.assert_allclose(reply["actions"], candidates[3, N_PAST:], atol=1e-6)
    options = {"steps": 4, "steering": [{"part": "PastVerification", "candidates": 4}]}
    asked = Request(seen, 7, request.past, options=options).to_wire()
    assert PAST in asked
    np.testing.assert_array_equal(LocalPolicy(checkpoint).infer(asked)["actions"], reply["actions"])
