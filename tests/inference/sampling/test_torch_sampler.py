"""The Gumbel noise of the torch sampler."""

from __future__ import annotations

import math

import pytest
import torch

from inference.sampling.torch_sampler import gumbel_noise, noise_keys


def test_noise_differs_by_seed_position_and_token() -> None:
    """Equal seed, position and token give equal noise in any row; otherwise it is uncorrelated."""
    device = torch.device("cpu")
    noise = gumbel_noise(noise_keys([1, 2, 1, 1], [0, 0, 1, 0], device), 1000)
    assert torch.equal(noise[0], noise[3])
    for other in (noise[1], noise[2]):
        correlation = torch.corrcoef(torch.stack([noise[0], other]))[0, 1]
        assert abs(float(correlation)) < 0.15
    # Euler's constant and pi^2/6: mean and variance of the standard Gumbel distribution.
    many = gumbel_noise(noise_keys(list(range(200)), [5] * 200, device), 1000)
    assert float(many.mean()) == pytest.approx(0.5772, abs=0.01)
    assert float(many.var()) == pytest.approx(math.pi**2 / 6, abs=0.02)
    assert torch.isfinite(many).all()
