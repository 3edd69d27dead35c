"""Chunk decoders against slow references."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ulna.policies.decoders import SliceDecoder, TemporalEnsemble, decoder_for
from ulna.policies.serving.metadata import Metadata


@given(st.integers(1, 6), st.integers(0, 4), st.integers(1, 25))
def test_slice_runs_the_first_actions_of_each_chunk(n: int, extra: int, ticks: int) -> None:
    decoder = SliceDecoder(n)
    got, chunks = [], 0
    for _ in range(ticks):
        if decoder.wants_chunk():
            decoder.push(np.arange(n + extra)[:, None] + 100 * chunks)
            chunks += 1
        got.append(int(decoder.next()[0]))
    assert got == [t % n + 100 * (t // n) for t in range(ticks)]


@given(st.integers(1, 6), st.floats(0, 1), st.integers(1, 15), st.integers(0, 10_000))
def test_ensemble_weighs_the_oldest_most(horizon: int, decay: float, ticks: int, seed: int) -> None:
    chunks = np.random.default_rng(seed).normal(size=(ticks, horizon, 2))
    decoder = TemporalEnsemble(decay)
    for t in range(ticks):
        assert decoder.wants_chunk()
        decoder.push(chunks[t])
        predictions = [chunks[s][t - s] for s in range(max(0, t - horizon + 1), t + 1)]  # oldest first
        weights = np.exp(-decay * np.arange(len(predictions)))
        np.testing.assert_allclose(decoder.next(), np.average(predictions, axis=0, weights=weights))


def test_a_reset_forgets() -> None:
    for decoder in (SliceDecoder(2), TemporalEnsemble()):
        decoder.push(np.ones((3, 1)))
        decoder.next()
        decoder.reset()
        assert decoder.wants_chunk()
        with pytest.raises(LookupError):
            decoder.next()


def test_the_metadata_chooses() -> None:
    assert isinstance(decoder_for(Metadata(decoder="ensemble", ensemble_decay=0.5)), TemporalEnsemble)
    assert isinstance(decoder_for(Metadata(decoder="slice", n_action_steps=3)), SliceDecoder)
    with pytest.raises(ValueError, match="slice and ensemble"):
        decoder_for(Metadata(decoder="bogus", n_action_steps=3))
    with pytest.raises(ValueError, match="at least 1"):
        SliceDecoder(0)


@given(st.integers(1, 6), st.integers(1, 6), st.lists(st.integers(1, 9), min_size=1, max_size=6))
def test_slice_executes_what_the_policy_wants_up_to_the_whole_chunk(
    n: int, length: int, wishes: list[int]
) -> None:
    decoder = SliceDecoder(n)
    for k, wish in enumerate(wishes):
        assert decoder.wants_chunk()
        decoder.push(np.arange(length)[:, None] + 100 * k, wish)
        executed = []
        while not decoder.wants_chunk():
            executed.append(int(decoder.next()[0]))
        assert executed == [100 * k + i for i in range(min(wish, length))]


def test_the_ensemble_leaves_out_what_is_not_to_be_executed() -> None:
    decoder = TemporalEnsemble(0.0)
    decoder.push(np.array([[0.0], [10.0], [20.0]]), 1)
    assert decoder.next() == 0
    decoder.push(np.array([[1.0], [2.0]]), 5)
    assert decoder.next() == 1
    decoder.push(np.array([[4.0]]))
    assert decoder.next() == 3  # of 2 and 4, not of 20


def test_to_execute_nothing_is_refused() -> None:
    for decoder in (SliceDecoder(2), TemporalEnsemble()):
        with pytest.raises(ValueError, match="wants 0 actions"):
            decoder.push(np.ones((3, 1)), 0)
