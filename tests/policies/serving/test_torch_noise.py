"""torch's normal numbers, without torch."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ulna.policies.sampler import Noise
from ulna.policies.serving.torch_noise import Normal, sampler_noise


@given(st.integers(0, (1 << 56) - 1), st.lists(st.integers(1, 200), min_size=1, max_size=4))
def test_the_numbers_are_torchs(seed: int, sizes: list[int]) -> None:
    generator, ours = torch.Generator().manual_seed(seed), Normal(seed)
    for n in sizes:
        np.testing.assert_allclose(ours.draw(n), torch.randn(n, generator=generator).numpy(), atol=2e-6)


@pytest.mark.parametrize("shape", [(16, 3), (1, 2), (5, 5)])
def test_the_samplers_noise_is_repeated(shape: tuple[int, int]) -> None:
    draw = Noise([123456789012], (1, *shape), 1, torch.device("cpu"))
    expected = np.stack([draw.step().numpy() for _ in range(3)])
    np.testing.assert_allclose(sampler_noise(123456789012, 3, shape), expected, atol=2e-6)
