"""Chunks as tokens and back."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from ulna.policies.byte_pairs import decoded, encoded, fitted
from ulna.policies.tokens import ActionTokens

SLOW = (HealthCheck.too_slow,)  # a busy machine


def smooth(n: int, horizon: int = 16, width: int = 3) -> np.ndarray:
    """Chunks `(n, horizon, width)` of slow sines."""
    rng = np.random.default_rng(0)
    t = np.linspace(0, 1, horizon)[None, :, None]
    phase, rate = rng.uniform(0, 6, (n, 1, width)), rng.uniform(0.2, 1.5, (n, 1, width))
    return 0.9 * np.sin(phase + rate * t * 3)


TEXTS = st.lists(st.integers(0, 4), max_size=30)
FITTED = ActionTokens.fit(smooth(200), 512)


def test_the_transform_is_the_orthonormal_cosine_transform() -> None:
    # of two values: their sum and difference over sqrt 2
    tokens = ActionTokens(2, 1, scale=1000.0)
    letters = np.array(tokens.letters(np.array([[0.8], [0.2]]))) - tokens.most
    assert letters.tolist() == [round(1000 / 2**0.5), round(600 / 2**0.5)]
    # slow parts of all actions first
    tokens = ActionTokens(4, 2)
    letters = np.array(tokens.letters(np.full((4, 2), [0.5, -0.5]))) - tokens.most
    assert letters.tolist() == [10, -10, 0, 0, 0, 0, 0, 0]


@settings(max_examples=60, deadline=None, suppress_health_check=SLOW)
@given(arrays(np.float64, (16, 3), elements=st.floats(-1, 1)))
def test_decoding_is_within_the_bound(chunk: np.ndarray) -> None:
    tokens = FITTED.encode(chunk)
    assert all(0 <= t < FITTED.vocabulary for t in tokens)
    assert np.abs(FITTED.decode(tokens) - chunk).max() <= FITTED.error + 1e-6
    assert FITTED.error <= 0.5 * 16**0.5 * 2**0.5 / FITTED.scale, "a finer scale makes it smaller"


@settings(max_examples=60, deadline=None, suppress_health_check=SLOW)
@given(st.integers(1, 20), st.integers(1, 4), st.floats(1, 50), st.randoms(use_true_random=False))
def test_any_size_and_scale(horizon: int, width: int, scale: float, random) -> None:  # type: ignore[no-untyped-def]
    rng = np.random.default_rng(random.randrange(1 << 30))
    chunks = rng.uniform(-2, 2, (3, horizon, width))
    tokens = ActionTokens.fit(chunks, 4096, scale)
    for chunk in chunks:
        assert np.abs(tokens.decode(tokens.encode(chunk)) - chunk).max() <= tokens.error + 1e-6
    again = ActionTokens.from_json(json.loads(json.dumps(tokens.to_json())))
    assert again == tokens


@settings(max_examples=100, deadline=None, suppress_health_check=SLOW)
@given(
    st.lists(st.lists(st.integers(0, 4), max_size=30), max_size=6), st.lists(st.integers(0, 4), max_size=30)
)
def test_byte_pairs_write_every_text(texts: list[list[int]], text: list[int]) -> None:
    pairs = fitted(texts, 5, 20)
    ranks = {p: i for i, p in enumerate(pairs)}
    for each in (*texts, text):
        tokens = encoded(each, ranks, 5)
        assert decoded(tokens, pairs, 5) == each
        assert len(tokens) <= len(each)


def test_the_most_frequent_pair_becomes_a_token_first() -> None:
    assert fitted([[0, 1, 0, 1, 2], [0, 1, 2]], 3, 5) == ((0, 1), (3, 2))
    assert fitted([[0, 0, 0, 0]], 1, 9) == ((0, 0),)
    assert encoded([0, 1, 0, 1, 2], {(0, 1): 0, (3, 2): 1}, 3) == [3, 4]


def test_smooth_chunks_take_few_tokens() -> None:
    lengths = [len(FITTED.encode(c)) for c in smooth(60)]
    assert np.mean(lengths) < 0.5 * 16 * 3
    assert ActionTokens.fit(smooth(200), 512) == FITTED, "the same for the same chunks"


def test_what_lies_beyond_reach_is_cut_and_nothing_fails() -> None:
    far = FITTED.decode(FITTED.encode(np.full((16, 3), 50.0)))
    assert np.allclose(far, FITTED.reach, atol=FITTED.error)


def test_what_does_not_fit_is_said(tmp_path: Path) -> None:
    for call, sentence in (
        (lambda: FITTED.encode(np.zeros((15, 3))), "a chunk is finite and"),
        (lambda: FITTED.encode(np.full((16, 3), np.nan)), "a chunk is finite and"),
        (lambda: FITTED.decode([FITTED.vocabulary]), f"there is no token {FITTED.vocabulary}"),
        (lambda: FITTED.decode(FITTED.encode(np.zeros((16, 3)))[:-1]), "coefficients, a chunk has 16 x 3"),
        (lambda: ActionTokens.fit(smooth(4), 16), r"a vocabulary of 16 is smaller than the \d+ values"),
        (lambda: ActionTokens.fit(np.zeros((0, 4, 1))), "fitted on finite chunks"),
        (lambda: ActionTokens(4, 1, scale=0), "a scale and a reach above 0"),
    ):
        with pytest.raises(ValueError, match=sentence):
            call()
    path = tmp_path / "tokens.json"
    FITTED.save(path)
    assert ActionTokens.load(path) == FITTED
    whole = path.read_text()
    for text in (
        *("{", "[]", "{}", whole.replace('"horizon": 16', '"horizon": "16"'), whole.replace("tokens", "x")),
        whole.replace('"pairs": [[', '"pairs": [[999999, 0], ['),
        whole.replace('"scale": 10.0', '"scale": null'),
    ):
        path.write_text(text)
        with pytest.raises(ValueError, match=r"tokens.json cannot be read as action tokens"):
            ActionTokens.load(path)
    with pytest.raises(ValueError, match="cannot be read as action tokens"):
        ActionTokens.load(tmp_path / "none.json")
