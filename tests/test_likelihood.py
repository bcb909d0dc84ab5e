"""Estimates of log p(x) against models where it is known."""

import math

import pytest
import torch

from vaelib import VAE, hmc
from vaelib.decoders import BernoulliMLP, VariationalWeights
from vaelib.encoders import MLPEncoder
from vaelib.learning import mcem_step
from vaelib.likelihood import appendix_d, importance_sampled, log_joint
from vaelib.linear_vae import PPCA
from vaelib.priors import StandardNormal


def model_and_data(latents=3, worse=0.0):
    torch.manual_seed(0)
    model = PPCA(torch.randn(8, latents).double(), torch.zeros(8).double(), 0.5)
    vae = VAE(*model.slots())
    with torch.no_grad():
        vae.encoder.log_scale += worse
    return model, vae, model.marginal().sample((30,))


def test_exact_at_the_posterior_with_a_single_sample():
    torch.manual_seed(0)
    x = torch.randn(300, 5).double() @ torch.randn(5, 5).double()
    model = PPCA.fit(x, 2)
    torch.testing.assert_close(importance_sampled(VAE(*model.slots()), x, 1), model.log_prob(x))


def test_converges_to_the_exact_answer_from_below():
    model, vae, x = model_and_data(worse=0.2)
    x = x.repeat(200, 1)
    torch.manual_seed(1)
    gaps = [(model.log_prob(x) - importance_sampled(vae, x, k)) for k in (1, 10, 100, 1000)]
    means = [gap.mean().item() for gap in gaps]
    errors = [gap.std().item() / len(x) ** 0.5 for gap in gaps]
    assert means[0] > means[1] > means[2]
    assert means[0] > 0.1 and means[0] > 10 * errors[0]
    assert abs(means[3]) < 4 * errors[3] + 1e-3  # the bias left at K = 1,000 is below 1e-3


def test_one_sample_is_the_bound():
    _, vae, x = model_and_data(worse=0.2)
    torch.manual_seed(2)
    one = importance_sampled(vae, x, 1)
    torch.manual_seed(2)
    torch.testing.assert_close(one, vae.elbo(x, 1, "A").value.detach())


@pytest.mark.parametrize("chunk", [1, 7, 50, 100_000])
def test_chunks_bound_the_memory_and_change_nothing_else(chunk):
    model, vae, x = model_and_data(worse=0.2)
    widest = 0
    forward = vae.decoder.forward

    def watched(z):
        nonlocal widest
        widest = max(widest, z[..., 0].numel())
        return forward(z)

    vae.decoder.forward = watched
    torch.manual_seed(3)
    estimate = importance_sampled(vae, x, samples=50, chunk=chunk)
    assert estimate.shape == (30,) and widest <= chunk
    # Fifty samples leave a standard deviation near 0.1 nats per image.
    assert (estimate - model.log_prob(x)).abs().max() < 0.6


def test_no_gradient_and_bad_arguments():
    _, vae, x = model_and_data()
    assert not importance_sampled(vae, x, 5).requires_grad
    with pytest.raises(ValueError, match="samples >= 1"):
        importance_sampled(vae, x, 0)
    with pytest.raises(ValueError, match="chunk >= 1"):
        importance_sampled(vae, x, 1, chunk=0)


def fitted_ppca(latents, n=400, dims=20):
    torch.manual_seed(latents)
    x = torch.randn(400, latents).double() @ torch.randn(latents, dims).double()
    x = x + 0.7 * torch.randn(400, dims).double()
    model = PPCA.fit(x, latents)
    return model, VAE(*model.slots()), x[:n]


@pytest.mark.parametrize("latents", [3, 5, 10])
def test_appendix_d_and_importance_sampling_agree_with_ppca(latents):
    model, vae, x = fitted_ppca(latents)
    exact = model.log_prob(x)
    torch.manual_seed(0)
    # Measured over 400 points: bias 0.01 to 0.02, standard error below 0.015 nats.
    assert abs((appendix_d(vae, x) - exact).mean().item()) < 0.05
    assert abs((importance_sampled(vae, x, 1000) - exact).mean().item()) < 0.05


def test_appendix_d_needs_no_good_encoder():
    model, vae, x = fitted_ppca(3)
    with torch.no_grad():
        vae.encoder.loc.weight.mul_(-1)
        vae.encoder.log_scale += 1
    torch.manual_seed(0)
    assert abs((appendix_d(vae, x) - model.log_prob(x)).mean().item()) < 0.05


def test_kernel_density_is_worse_in_more_dimensions():
    errors = []
    for latents in (3, 10):
        model, vae, x = fitted_ppca(latents, n=100)
        torch.manual_seed(0)
        difference = appendix_d(vae, x, density="kernel") - model.log_prob(x)
        errors.append(difference.square().mean().sqrt().item())
    assert errors[0] < 0.4 < errors[1] < 2


def test_appendix_d_is_exact_where_the_fit_is_the_posterior(monkeypatch):
    """With q(z) = p(z|x) every term of the average is 1/p(x), whatever was drawn."""
    model, vae, x = fitted_ppca(3, n=20)
    from vaelib import likelihood

    monkeypatch.setitem(likelihood._DENSITIES, "gaussian", lambda z: model.posterior(x))
    estimate = appendix_d(vae, x, samples=5, burn_in=2)
    torch.testing.assert_close(estimate, model.log_prob(x), rtol=0, atol=1e-9)


def test_chains_of_appendix_d_are_chunked():
    model, vae, x = fitted_ppca(3, n=25)
    torch.manual_seed(0)
    estimate = appendix_d(vae, x, samples=20, chunk=10)
    assert estimate.shape == (25,)
    assert (estimate - model.log_prob(x)).abs().max() < 1


def test_log_joint_is_posterior_times_evidence():
    model, vae, x = fitted_ppca(3, n=5)
    z = torch.randn(7, 5, 3).double()
    expected = model.posterior(x).log_prob(z) + model.log_prob(x)
    torch.testing.assert_close(log_joint(vae, x)(z), expected)


def test_hmc_finds_the_posterior_of_ppca():
    model, vae, x = fitted_ppca(3, n=2)
    joint = log_joint(vae, x.repeat(500, 1))
    torch.manual_seed(0)
    state = hmc.init(joint, torch.randn(1000, 3).double())
    state, size, _ = hmc.tune(joint, state)
    _, z, _ = hmc.sample(joint, state, size, 20)
    exact, chains = model.posterior(x), z.mean(0).view(500, 2, 3)
    standard_error = chains.std(0) / math.sqrt(500)
    assert ((chains.mean(0) - exact.mean).abs() < 3 * standard_error).all()
    spread = (z.view(20, 500, 2, 3) - exact.mean).square().mean(0)
    standard_error = spread.std(0) / math.sqrt(500)
    assert ((spread.mean(0) - exact.variance).abs() < 3 * standard_error).all()


def test_bad_arguments_of_appendix_d():
    _, vae, x = fitted_ppca(5, n=6)
    with pytest.raises(ValueError, match="gaussian"):
        appendix_d(vae, x, density="histogram")
    with pytest.raises(ValueError, match="more samples than latents, got 5"):
        appendix_d(vae, x, samples=5)
    with pytest.raises(ValueError, match="chunk >= 1"):
        appendix_d(vae, x, chunk=0)


def test_estimators_switch_dropout_off_and_leave_it_as_it_was():
    class Dropped(BernoulliMLP):
        def forward(self, z):
            return super().forward(torch.nn.functional.dropout(z, 0.5, self.training))

    torch.manual_seed(0)
    vae = VAE(MLPEncoder(2, (1, 4, 4), 5), StandardNormal(2), Dropped(2, (1, 4, 4), 5))
    x = torch.rand(3, 1, 4, 4)

    def estimates():
        torch.manual_seed(1)
        settings = {"samples": 4, "burn_in": 3}
        return torch.stack([importance_sampled(vae, x, 50), appendix_d(vae, x, **settings)])

    found = estimates()
    assert all(module.training for module in vae.modules())
    vae.eval()
    assert torch.equal(found, estimates())


def test_chains_need_one_density():
    decoder = VariationalWeights(BernoulliMLP(2, (1, 4, 4), 5))
    vae, x = VAE(MLPEncoder(2, (1, 4, 4), 5), StandardNormal(2), decoder), torch.rand(3, 1, 4, 4)
    with pytest.raises(TypeError, match="expected a decoder with fixed weights"):
        appendix_d(vae, x, samples=4)
    with pytest.raises(TypeError, match="expected a decoder with fixed weights"):
        mcem_step(vae, x, torch.zeros(3, 2), 0.1, torch.optim.SGD(vae.parameters(), lr=0.1))
