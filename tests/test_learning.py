"""One update each."""

import copy

import pytest
import torch

from vaelib import VAE
from vaelib.decoders import BernoulliMLP, VariationalWeights
from vaelib.encoders import MLPEncoder
from vaelib.learning import aevb_step, mcem_step, variational_bayes_step, wake_sleep_step
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


def sgd(module, lr=0.1):
    return torch.optim.SGD(module.parameters(), lr=lr)


def test_wake_goes_up_the_likelihood_and_sleep_up_the_log_posterior_of_dreams():
    vae, x = small_vae(), torch.rand(5, *SHAPE)
    by_hand = copy.deepcopy(vae)
    torch.manual_seed(1)
    bound = wake_sleep_step(vae, x, (sgd(vae.decoder), sgd(vae.encoder)))
    torch.manual_seed(1)
    expected = by_hand.elbo(x)
    with torch.no_grad():
        z = by_hand.encoder(x).sample()
        dream_z = by_hand.prior().sample((5,))
        dream_x = by_hand.decoder(dream_z).sample()
    by_hand.decoder(z).log_prob(x).mean().backward()  # before and after the wake phase: the
    by_hand.encoder(dream_x).log_prob(dream_z).mean().backward()  # dreams come from before it
    for ours, theirs in zip(vae.parameters(), by_hand.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs + 0.1 * theirs.grad)
    torch.testing.assert_close(bound.value, expected.value.detach())


def test_wake_sleep_changes_each_half_by_its_own_phase_only():
    vae, x = small_vae(), torch.rand(5, *SHAPE)
    encoder, decoder = copy.deepcopy(vae.encoder), copy.deepcopy(vae.decoder)
    nothing = torch.optim.SGD(vae.encoder.parameters(), lr=0.0)
    wake_sleep_step(vae, x, (sgd(vae.decoder), nothing))
    assert all(map(torch.equal, vae.encoder.parameters(), encoder.parameters()))
    assert not any(map(torch.equal, vae.decoder.parameters(), decoder.parameters()))


def ppca_data(n=500):
    torch.manual_seed(0)
    x = torch.randn(n, 2) @ torch.randn(2, 5) + 0.5 * torch.randn(n, 5)
    return x, PPCA.fit(x.double(), 2).log_prob(x.double()).mean().item()


def test_wake_sleep_finds_the_optimum_of_ppca():
    """Where the encoder can be exact, both divergences are zero at the same point."""
    x, exact = ppca_data()
    vae = VAE(*linear_slots(5, 2))
    halves = (vae.decoder, vae.encoder)
    optimizers = tuple(torch.optim.Adam(half.parameters(), lr=0.02) for half in halves)
    for _ in range(1500):
        wake_sleep_step(vae, x, optimizers)
    assert vae.elbo(x, samples=100).value.mean().item() == pytest.approx(exact, abs=0.1)


def test_mcem_finds_the_optimum_of_ppca_without_an_encoder():
    x, exact = ppca_data()
    vae = VAE(*linear_slots(5, 2))
    before = copy.deepcopy(vae.encoder.state_dict())
    optimizer = torch.optim.Adam(vae.decoder.parameters(), lr=0.01)
    z, step_size = torch.randn(500, 2), torch.tensor(0.1)
    accepted = []
    for _ in range(400):
        z, step_size, info, _ = mcem_step(vae, x, z, step_size, optimizer)
        accepted.append(info.acceptance.mean().item())
    weight, noise = vae.decoder.loc.weight, vae.decoder.log_scale.exp().square()
    fitted = PPCA(weight.detach(), vae.decoder.loc.bias.detach(), noise.item())
    assert fitted.log_prob(x).mean().item() == pytest.approx(exact, abs=0.05)
    assert sum(accepted[-100:]) / 100 == pytest.approx(0.9, abs=0.04)
    for name, value in vae.encoder.state_dict().items():
        assert torch.equal(value, before[name])


def test_mcem_makes_as_many_updates_as_asked():
    vae, x = small_vae(), torch.rand(5, *SHAPE)
    optimizer = torch.optim.Adam(vae.decoder.parameters())
    result = mcem_step(vae, x, torch.randn(5, 2), 0.1, optimizer, updates=3)
    assert all(state["step"] == 3 for state in optimizer.state.values())
    assert result.z.shape == (5, 2) and result.log_joint.shape == (5,)
    assert not result.z.requires_grad


def test_weights_rate_is_the_sum_of_closed_forms():
    torch.manual_seed(0)
    decoder = VariationalWeights(BernoulliMLP(2, SHAPE, 6), scale=0.1, prior_scale=0.5)
    means = torch.cat([p.flatten() for p in decoder.decoder.parameters()])
    ratio = torch.tensor(0.1 / 0.5).square()
    expected = 0.5 * ((means / 0.5).square() + ratio - 1 - ratio.log()).sum()
    torch.testing.assert_close(decoder.rate(), expected)
    expected.backward()
    kept = [p.grad.clone() for p in decoder.decoder.parameters()]
    decoder.zero_grad()
    decoder.rate().backward()
    for ours, theirs in zip(decoder.decoder.parameters(), kept, strict=True):
        torch.testing.assert_close(ours.grad, theirs)


def test_variational_weights_are_drawn_anew_and_centred_on_their_means():
    torch.manual_seed(0)
    plain = BernoulliMLP(2, SHAPE, 6)
    decoder = VariationalWeights(plain, scale=0.05)
    z = torch.randn(4, 2)
    assert not torch.equal(decoder(z).logits, decoder(z).logits)
    exact = VariationalWeights(plain, scale=1e-8)
    torch.testing.assert_close(exact(z).logits, plain(z).logits, rtol=1e-4, atol=1e-5)
    vae = VAE(MLPEncoder(2, SHAPE, 6), StandardNormal(2), decoder)
    assert vae.sample(3).shape == (3, *SHAPE)
    assert len(list(decoder.parameters())) == 2 * len(list(plain.parameters()))


def test_variational_bayes_recovers_a_conjugate_posterior():
    """One weight θ, x = θ + noise, prior N(0, 1): q(θ) must become N(Σx/(N + 1), 1/(N + 1))."""

    class Mean(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.theta = torch.nn.Parameter(torch.zeros(1))

        def forward(self, z):
            from vaelib.distributions import DiagNormal

            loc = self.theta + 0 * z
            return DiagNormal(loc, torch.ones_like(loc))

    class Encoder(torch.nn.Module):
        def forward(self, x):
            from vaelib.distributions import DiagNormal

            return DiagNormal(0 * x, torch.ones_like(x))

    torch.manual_seed(0)
    x = 1 + torch.randn(20, 1)
    decoder = VariationalWeights(Mean(), scale=0.1)
    vae = VAE(Encoder(), StandardNormal(1), decoder)
    optimizer = torch.optim.Adam(decoder.parameters(), lr=0.02)
    tail = []
    for update in range(4000):
        variational_bayes_step(vae, x, 20, optimizer)
        if update >= 2000:
            (q,) = decoder.posterior()
            tail.append(torch.cat([q.loc.detach(), q.scale.detach()]))
    mean, scale = torch.stack(tail).mean(0).tolist()
    assert mean == pytest.approx(x.sum().item() / 21, abs=0.03)
    assert scale == pytest.approx(21**-0.5, rel=0.1)


def test_bad_arguments():
    vae, x = small_vae(), torch.rand(5, *SHAPE)
    with pytest.raises(TypeError, match="VariationalWeights"):
        variational_bayes_step(vae, x, 5, sgd(vae))
    vae.decoder = VariationalWeights(vae.decoder)
    with pytest.raises(ValueError, match="count >= batch of 5, got 4"):
        variational_bayes_step(vae, x, 4, sgd(vae))
    with pytest.raises(ValueError, match="scales > 0"):
        VariationalWeights(BernoulliMLP(2, SHAPE, 6), scale=0)
