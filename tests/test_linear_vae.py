"""Probabilistic PCA: its own formulas against independent ones, and the bound at its optimum."""

import math

import pytest
import torch
from scipy.stats import multivariate_normal
from torch.distributions import kl_divergence

from vaelib import VAE
from vaelib.linear_vae import PPCA, linear_slots


def random_ppca(dims=6, latents=2, noise_variance=0.3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(dims, latents, generator=generator).double()
    return PPCA(weight, torch.randn(dims, generator=generator).double(), noise_variance)


def data(n=500, seed=1):
    torch.manual_seed(seed)
    return random_ppca().marginal().sample((n,))


def test_log_prob_is_that_of_scipy():
    model, x = random_ppca(), data(20)
    covariance = model.weight @ model.weight.T + model.noise_variance * torch.eye(6)
    expected = multivariate_normal(model.mean, covariance).logpdf(x)
    torch.testing.assert_close(model.log_prob(x), torch.from_numpy(expected))


def test_posterior_obeys_bayes_rule():
    model, x = random_ppca(), data(5)
    z = torch.randn(5, 2).double()
    prior = torch.distributions.Normal(0.0, 1.0).log_prob(z).sum(-1)
    noise = torch.distributions.Normal(z @ model.weight.T + model.mean, model.noise_variance.sqrt())
    joint = prior + noise.log_prob(x).sum(-1)
    torch.testing.assert_close(joint - model.posterior(x).log_prob(z), model.log_prob(x))


def test_fit_is_a_maximum_of_the_likelihood():
    x = data()
    model = PPCA.fit(x, 2)
    best = model.log_prob(x).mean()
    torch.manual_seed(0)
    for _ in range(20):
        nearby = PPCA(
            model.weight + 0.01 * torch.randn_like(model.weight),
            model.mean + 0.01 * torch.randn_like(model.mean),
            model.noise_variance * math.exp(0.01 * torch.randn(()).item()),
        )
        assert nearby.log_prob(x).mean() < best
    gradient_at = [t.clone().requires_grad_() for t in (model.weight, model.mean)]
    PPCA(*gradient_at, model.noise_variance).log_prob(x).mean().backward()
    assert max(t.grad.abs().max() for t in gradient_at) < 1e-10


def test_fit_recovers_the_covariance_it_came_from():
    x, truth = data(200_000), random_ppca()
    fitted = PPCA.fit(x, 2)
    # Standard errors of a covariance entry here are near 0.01.
    assert (
        fitted.marginal().covariance_matrix - truth.marginal().covariance_matrix
    ).abs().max() < 0.05
    assert fitted.noise_variance.item() == pytest.approx(0.3, abs=0.01)


def test_the_vae_at_the_optimum_has_the_exact_posterior_and_no_gap():
    x = data()
    model = PPCA.fit(x, 2)
    vae = VAE(*model.slots())
    q, exact = vae.encoder(x), model.posterior(x)
    torch.testing.assert_close(q.loc, exact.loc)
    torch.testing.assert_close(torch.diag_embed(q.scale.square()), exact.covariance_matrix)
    torch.manual_seed(0)
    # With q the posterior, log p(x|z) + log p(z) − log q(z|x) is log p(x) for every single z.
    bound = vae.elbo(x, samples=1, estimator="A").value
    torch.testing.assert_close(bound, model.log_prob(x))


def test_the_gap_is_the_divergence_to_the_posterior():
    model, x = random_ppca(), data(50)
    vae = VAE(*model.slots())
    with torch.no_grad():  # a worse encoder, so that there is a gap to see
        vae.encoder.log_scale += 0.5
        vae.encoder.loc.bias += 0.1
    q, exact = vae.encoder(x), model.posterior(x)
    torch.manual_seed(0)
    dense = torch.distributions.MultivariateNormal(q.loc, torch.diag_embed(q.scale.square()))
    gap = kl_divergence(dense, exact)
    bound = vae.elbo(x, samples=20_000).value
    assert (gap > 0.5).all()
    # One sample has a standard deviation near 3 nats, 20,000 for 50 images near 0.003.
    assert (bound + gap - model.log_prob(x)).mean().abs() < 0.015


def test_the_best_diagonal_encoder_cannot_be_improved():
    model, x = random_ppca(), data(50)
    vae, exact = VAE(*model.slots()), model.posterior(x)

    def gap():
        q = vae.encoder(x)
        dense = torch.distributions.MultivariateNormal(q.loc, torch.diag_embed(q.scale.square()))
        return kl_divergence(dense, exact).mean()

    best = gap()
    best.backward()
    assert vae.encoder.log_scale.grad.abs().max() < 1e-12
    assert vae.encoder.loc.weight.grad.abs().max() < 1e-12


def test_directions_below_the_noise_get_no_weight():
    x = data(5000)
    eigenvalues = torch.linalg.eigvalsh(torch.cov(x.T, correction=0)).flip(0)
    between = (eigenvalues[0] * eigenvalues[1]).sqrt().item()
    model = PPCA.fit(x, 2, noise_variance=between)
    norms = model.weight.norm(dim=0)
    assert norms[0] > 0.1 and norms[1] == 0


def test_linear_vae_shapes_and_noise():
    vae = VAE(*linear_slots(6, 2, noise_variance=0.25))
    p = vae.decoder(torch.randn(4, 5, 2))
    assert p.batch_shape == (4, 5) and p.event_shape == (6,)
    torch.testing.assert_close(p.scale, torch.full((4, 5, 6), 0.5))
    assert "log_scale" in dict(VAE(*linear_slots(6, 2)).decoder.named_parameters())
    assert "log_scale" not in dict(vae.decoder.named_parameters())


def test_bad_arguments():
    with pytest.raises(ValueError, match="latents < dims"):
        PPCA.fit(torch.randn(10, 3), 3)
    with pytest.raises(ValueError, match="positive noise variance"):
        PPCA(torch.ones(3, 1), torch.zeros(3), 0.0)
    with pytest.raises(ValueError, match="expected weight"):
        PPCA(torch.ones(3, 1), torch.zeros(2), 1.0)
    with pytest.raises(ValueError, match="positive noise variance"):
        VAE(*linear_slots(3, 1, noise_variance=-1.0))


def test_ppca_refuses_other_dimensions_and_takes_one_vector():
    torch.manual_seed(0)
    model = PPCA(torch.randn(4, 2).double(), torch.zeros(4).double(), 0.5)
    for x in (torch.randn(5, 1).double(), torch.randn(5, 3).double()):
        for question in (model.posterior, model.log_prob):
            with pytest.raises(ValueError, match="expected x of shape"):
                question(x)
    x = torch.randn(3, 5, 4).double()
    one, all_of_them = model.posterior(x[1, 2]), model.posterior(x)
    assert one.batch_shape == () and all_of_them.batch_shape == (3, 5)
    torch.testing.assert_close(one.mean, all_of_them.mean[1, 2])
    torch.testing.assert_close(one.covariance_matrix, all_of_them.covariance_matrix[1, 2])


def test_ppca_keeps_copies():
    weight, mean = torch.ones(4, 2), torch.zeros(4)
    model = PPCA(weight, mean, 0.5)
    model.load_state_dict(PPCA(2 * weight, mean + 1, 0.25).state_dict())
    assert (weight == 1).all() and (mean == 0).all()
