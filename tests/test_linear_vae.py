"""Probabilistic PCA: its own formulas against independent ones, and the bound at its optimum."""

import math

import pytest
import torch
from conftest import refusals
from scipy.stats import multivariate_normal
from torch.distributions import MultivariateNormal, Normal, kl_divergence

from vaelib import VAE
from vaelib.inference.linear_vae import PPCA, linear_slots


def random_ppca(dims=6, latents=2, noise_variance=0.3):
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(dims, latents, generator=generator).double()
    return PPCA(weight, torch.randn(dims, generator=generator).double(), noise_variance)


def data(n=500):
    torch.manual_seed(1)
    return random_ppca().marginal().sample((n,))


def spectrum(x):
    """Eigenvalues of the covariance, largest first, from the singular values of the data."""
    return torch.linalg.svdvals(x - x.mean(0)) ** 2 / len(x)


def test_log_prob_is_that_of_scipy_and_the_posterior_obeys_bayes_rule():
    model, x, z = random_ppca(), data(20), torch.randn(20, 2).double()
    covariance = model.weight @ model.weight.T + model.noise_variance * torch.eye(6)
    expected = torch.from_numpy(multivariate_normal(model.mean, covariance).logpdf(x))
    for found in (model.log_prob(x), model.marginal().log_prob(x)):
        torch.testing.assert_close(found, expected)
    torch.testing.assert_close(model.marginal().covariance_matrix, covariance)
    noise = Normal(z @ model.weight.T + model.mean, model.noise_variance.sqrt())
    joint = Normal(0.0, 1.0).log_prob(z).sum(-1) + noise.log_prob(x).sum(-1)
    torch.testing.assert_close(joint - model.posterior(x).log_prob(z), expected)


@pytest.mark.parametrize("latents", [1, 3, 5])
def test_fit_is_the_maximum_of_the_likelihood_in_closed_form(latents):
    x = data(50)
    model, eigenvalues = PPCA.fit(x, latents), spectrum(x)
    torch.testing.assert_close(model.noise_variance, eigenvalues[latents:].mean())
    signal = eigenvalues[:latents] - eigenvalues[latents:].mean()
    torch.testing.assert_close(model.weight.norm(dim=0) ** 2, signal)
    best, at = model.log_prob(x).mean(), (model.weight, model.mean, model.noise_variance.log())
    for _ in range(20):
        weight, mean, noise = (t + 0.01 * torch.randn_like(t) for t in at)
        assert PPCA(weight, mean, noise.exp()).log_prob(x).mean() < best
    weight, mean, noise = (t.clone().requires_grad_() for t in at)
    PPCA(weight, mean, noise.exp()).log_prob(x).mean().backward()
    assert max(t.grad.abs().max() for t in (weight, mean, noise)) < 1e-10
    between = eigenvalues[latents - 1 : latents + 1].prod().sqrt()  # noise between two of them
    norms = PPCA.fit(x, latents + 1, between.item()).weight.norm(dim=0) if latents < 5 else []
    assert all(norm > 0 for norm in norms[:latents]) and all(norm == 0 for norm in norms[latents:])


def test_the_vae_at_the_optimum_has_the_exact_posterior_and_no_gap():
    x = data()
    model = PPCA.fit(x, 2)
    vae = VAE(*model.slots())
    q, exact = vae.encoder(x), model.posterior(x)
    torch.testing.assert_close(q.loc, exact.loc)
    torch.testing.assert_close(torch.diag_embed(q.scale.square()), exact.covariance_matrix)
    # With q the posterior, log p(x|z) + log p(z) − log q(z|x) is log p(x) for every single z.
    bound = vae.elbo(x, samples=1, estimator="A").value
    torch.testing.assert_close(bound, model.log_prob(x))


def test_the_gap_is_the_divergence_to_the_posterior():
    model, x = random_ppca(), data(50)
    vae = VAE(*model.slots())

    def divergence():
        q = vae.encoder(x)
        dense = MultivariateNormal(q.loc, torch.diag_embed(q.scale.square()))
        return kl_divergence(dense, model.posterior(x))

    divergence().mean().backward()  # the best diagonal encoder cannot be improved
    assert vae.encoder.log_scale.grad.abs().max() < 1e-12
    assert vae.encoder.loc.weight.grad.abs().max() < 1e-12
    with torch.no_grad():  # a worse one, so that there is a gap to see
        vae.encoder.log_scale += 0.5
        vae.encoder.loc.bias += 0.1
    gap, bound = divergence(), vae.elbo(x, samples=20_000).value
    assert (gap > 0.5).all()
    # One sample has a standard deviation near 3 nats, 20,000 for 50 images near 0.003.
    assert (bound + gap - model.log_prob(x)).mean().abs() < 0.015


@pytest.mark.parametrize("dims", [100, 400, 600])
@pytest.mark.parametrize("noise", [1.0, 0.03, 0.003])
def test_wide_data_in_single_precision(dims, noise):
    """The noise is down to 1e-9 of the largest eigenvalue: float32 alone would lose it."""
    x = torch.randn(300, 5).double() @ torch.randn(5, dims).double()
    x = x + noise * torch.randn(300, dims).double()
    exact, single = PPCA.fit(x, 5), PPCA.fit(x.float(), 5)
    expected = exact.log_prob(x)
    for found in (single.log_prob(x.float()), single.marginal().log_prob(x.float())):
        assert found.dtype == torch.float32
        assert ((found - expected) / expected).abs().max() < 1e-4
    turn = torch.linalg.qr(torch.randn(5, 5).double())[0]  # W Wᵀ stays, WᵀW is no longer diagonal
    turned = PPCA(exact.weight @ turn, exact.mean, exact.noise_variance)
    q, p = turned.posterior(x), turned.float().posterior(x.float())
    torch.testing.assert_close(p.mean.double(), q.mean, rtol=0, atol=1e-4)
    ratio = p.covariance_matrix[0] / q.covariance_matrix[0]
    torch.testing.assert_close(ratio, torch.ones(5, 5).double(), rtol=0, atol=1e-3)


RANKS = [(5, 10, 5, 4), (5, 10, 4, 4), (50, 10, 3, 2), (50, 600, 3, 2), (2000, 300, 30, 2)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("n", "dims", "latents", "rank"), RANKS)
@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_data_without_noise_are_refused_and_the_remedies_help(n, dims, latents, rank, scale, dtype):
    x = torch.randn(n, rank) @ torch.randn(rank, dims) if n > 5 else torch.randn(n, dims)
    x = scale * x.to(dtype)
    with pytest.raises(ValueError, match=f"rank {rank} .* fewer latents or give a noise_variance"):
        PPCA.fit(x, latents)
    for remedy in (PPCA.fit(x, rank - 1), PPCA.fit(x, latents, noise_variance=1e-3 * scale**2)):
        assert remedy.log_prob(x).isfinite().all()


def test_linear_vae_shapes_and_noise():
    _, _, decoder = linear_slots(6, 2, noise_variance=0.25)
    p = decoder(torch.randn(4, 5, 2))
    assert p.batch_shape == (4, 5) and p.event_shape == (6,) and (p.scale == 0.5).all()
    assert "log_scale" not in dict(decoder.named_parameters())
    assert "log_scale" in dict(linear_slots(6, 2)[2].named_parameters())


BAD = {
    "latents < dims, got .* and 3": lambda x: PPCA.fit(x, 3),
    "N >= 2": lambda x: PPCA.fit(x[:1], 1),
    "float64, got torch.float16": lambda x: PPCA.fit(x.half(), 1),
    "finite x": lambda x: PPCA.fit(x / 0, 1),
    "data of rank 0": lambda x: PPCA.fit(torch.ones(10, 3), 1),
    "noise variance .*, got 0.0": lambda x: PPCA(x, torch.zeros(10), 0.0),
    "noise variance .*, got inf": lambda x: PPCA(x, torch.zeros(10), math.inf),
    "noise variance .* lost": lambda x: PPCA(1e6 * x, torch.zeros(10), 1.0),
    "expected weight": lambda x: PPCA(x, torch.zeros(2), 1.0),
    "positive noise variance, got -1": lambda x: linear_slots(3, 1, noise_variance=-1.0),
    "expected x of shape": lambda x: random_ppca().posterior(x),
    "expected x of shape ": lambda x: random_ppca().log_prob(x),
}
VECTORS = torch.randn(10, 3, generator=torch.Generator().manual_seed(0))
test_bad_arguments = refusals([(call, [VECTORS], message) for message, call in BAD.items()])


def test_ppca_takes_any_batch_and_keeps_copies():
    weight, mean = torch.randn(4, 2), torch.zeros(4)
    model, before = PPCA(weight, mean, 0.5), weight.clone()
    x = torch.randn(3, 5, 4)
    one, all_of_them = model.posterior(x[1, 2]), model.posterior(x)
    assert one.batch_shape == () and all_of_them.batch_shape == (3, 5)
    torch.testing.assert_close(one.mean, all_of_them.mean[1, 2])
    torch.testing.assert_close(one.covariance_matrix, all_of_them.covariance_matrix[1, 2])
    model.load_state_dict(PPCA(2 * weight, mean + 1, 0.25).state_dict())
    assert torch.equal(weight, before) and (mean == 0).all()
