"""One update each."""

import copy

import pytest
import torch

from vaelib import VAE
from vaelib.decoders import BernoulliMLP
from vaelib.encoders import MLPEncoder
from vaelib.learning import aevb_step
from vaelib.linear_vae import PPCA, linear_slots
from vaelib.priors import StandardNormal

SHAPE = (1, 4, 3)


def small_vae():
    torch.manual_seed(0)
    return VAE(MLPEncoder(2, SHAPE, 6), StandardNormal(2), BernoulliMLP(2, SHAPE, 6))


def test_aevb_step_is_one_step_along_the_gradient_of_the_mean_bound():
    vae, x = small_vae(), torch.rand(5, *SHAPE)
    by_hand = copy.deepcopy(vae)
    torch.manual_seed(1)
    bound = aevb_step(vae, x, torch.optim.SGD(vae.parameters(), lr=0.1), samples=3)
    torch.manual_seed(1)
    expected = by_hand.elbo(x, samples=3)
    expected.value.mean().backward()
    for ours, theirs in zip(vae.parameters(), by_hand.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs + 0.1 * theirs.grad)
    torch.testing.assert_close(bound.value, expected.value.detach())
    assert not bound.value.requires_grad


def test_aevb_finds_the_optimum_of_ppca():
    torch.manual_seed(0)
    x = torch.randn(500, 2) @ torch.randn(2, 5) + 0.5 * torch.randn(500, 5)
    exact = PPCA.fit(x.double(), 2).log_prob(x.double()).mean().item()
    vae = VAE(*linear_slots(5, 2))
    optimizer = torch.optim.Adam(vae.parameters(), lr=0.02)
    for _ in range(1500):
        aevb_step(vae, x, optimizer)
    bound = vae.elbo(x, samples=100).value.mean().item()
    assert bound <= exact + 0.02  # sampling noise of the bound: 0.005 nats
    assert bound == pytest.approx(exact, abs=0.05)


def test_a_bound_that_is_not_finite_changes_nothing():
    vae = small_vae()
    with torch.no_grad():
        vae.encoder.network[-1].bias[2:] = 300.0  # ln σ² = 300: σ² overflows float32
    before = copy.deepcopy(vae.state_dict())
    with pytest.raises((FloatingPointError, ValueError)):
        aevb_step(vae, torch.rand(5, *SHAPE), torch.optim.SGD(vae.parameters(), lr=0.1))
    for name, value in vae.state_dict().items():
        torch.testing.assert_close(value, before[name], equal_nan=True)
