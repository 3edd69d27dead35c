"""What a policy adds to sampling for backbones of dynamics and horizons: where a chunk begins, and how much
of it there is to execute."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from contracts.data import FEATURES
from contracts.recipes import small

from ulna.datasets.features import ACTION, PAST, STATE
from ulna.datasets.stats import vector_stats
from ulna.policies.codec import RELATIVE, Absolute, ActionCodec, Delta, Relative
from ulna.policies.hooks.consensus import Consensus
from ulna.policies.parts import override
from ulna.policies.policy import Policy
from ulna.policies.request import Request

B, T, H = 3, 2, 16
RNG = np.random.default_rng(0)
STATS = {k: vector_stats(RNG.normal(size=(50, *f.shape))) for k, f in FEATURES.items()}
STATS[RELATIVE] = vector_stats(RNG.normal(size=(50, H, 3)))
OBSERVATION = {
    k: torch.from_numpy(RNG.normal(size=(B, T, *f.shape)).astype(np.float32))
    for k, f in FEATURES.items()
    if k != ACTION
}


@pytest.mark.parametrize(
    "codec", [Absolute("minmax"), Relative("none"), Relative("quantile"), Delta("quantile")]
)
def test_the_present_is_the_first_action_that_stays_where_the_chunk_begins(codec: ActionCodec) -> None:
    built = codec.build(FEATURES, STATS, 1)
    past = torch.randn(B, 1, 3)
    observation = OBSERVATION | {PAST: past}
    here = past[:, 0] if isinstance(codec, Delta) else OBSERVATION[STATE][:, -1]
    still = built.encode(here[:, None].expand(-1, H, -1), observation)
    present = built.present(observation)
    assert present is not None
    torch.testing.assert_close(present, still[:, 0])


def test_actions_that_are_no_elements_of_the_state_have_no_present() -> None:
    others = {**FEATURES, ACTION: FEATURES[ACTION].__class__((3,), "float32", ("u", "v", "w"), ("m",) * 3)}
    assert Absolute().build(others, STATS, 0).present(OBSERVATION) is None


def test_a_policy_of_dynamics_begins_at_the_state() -> None:
    torch.manual_seed(0)
    policy = Policy(override(small("ndp"), {"backbone.substeps": 1}), FEATURES, STATS).eval()
    net = policy.net
    with torch.no_grad():
        for weight in net.inner.out[-1].parameters():  # type: ignore[union-attr, index]
            weight.zero_()  # no forcing, no velocity, the goal in the middle of the range
    chunk = policy.sample(Request(OBSERVATION, 0)).chunk
    torch.testing.assert_close(chunk[:, 0], OBSERVATION[STATE][:, -1])  # Euler's first step is the velocity's
    middle = torch.from_numpy((STATS[ACTION].min + STATS[ACTION].max) / 2).float()
    torch.testing.assert_close(chunk[:, -1], middle.expand(B, -1), atol=0.01, rtol=0)


@pytest.mark.parametrize("n_past", [0, 4])
def test_no_more_is_executed_than_lies_ahead(n_past: int) -> None:
    changes = {"n_past_actions": n_past, "backbone.horizons": (4, H - n_past), "n_action_steps": 2}
    policy = Policy(override(small("moh"), changes), FEATURES, STATS).eval()

    def executed(hook: Consensus) -> list[int]:
        execute = policy.sample(Request(OBSERVATION, 0), [hook]).execute
        assert execute is not None
        return execute.tolist()

    assert executed(Consensus(least=99)) == [H - n_past] * B
    assert executed(Consensus(ratio=99.0, least=3)) == [4] * B  # beyond, one horizon speaks
    assert executed(Consensus(ratio=0.0, least=3)) == [3] * B
    assert policy.sample(Request(OBSERVATION, 0)).execute is None
