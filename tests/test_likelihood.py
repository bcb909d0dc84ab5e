"""Estimates of log p(x) against models where it is known."""

import math
import warnings
from functools import partial

import pytest
import torch
from conftest import refusals
from scipy.stats import gaussian_kde
from torch.distributions import MultivariateNormal
from torch.nn.functional import dropout

from vaelib import VAE
from vaelib.decoders import BernoulliMLP, VariationalWeights
from vaelib.distributions import DiagNormal
from vaelib.encoders import MLPEncoder
from vaelib.inference import likelihood
from vaelib.inference.likelihood import appendix_d, importance_sampled, log_joint
from vaelib.inference.linear_vae import PPCA
from vaelib.priors import StandardNormal

SHAPE = (1, 4, 4)


def linear(latents=3, wider=0.0, n=30, dims=8):
    """A pPCA model, its VAE with a posterior wider by a factor e^wider, and data from it."""
    torch.manual_seed(latents)
    model = PPCA(torch.randn(dims, latents).double(), torch.zeros(dims).double(), 0.5)
    model = PPCA.fit(model.marginal().sample((2000,)), latents)  # with a diagonal posterior
    vae = VAE(*model.slots())
    with torch.no_grad():
        vae.encoder.log_scale += wider
    return model, vae, model.marginal().sample((n,))


def test_converges_to_the_exact_answer_from_below():
    model, vae, x = linear(wider=0.2, n=6000)
    gaps = [(model.log_prob(x) - importance_sampled(vae, x, k)) for k in (1, 10, 100, 1000)]
    means = [gap.mean().item() for gap in gaps]
    errors = [gap.std().item() / len(x) ** 0.5 for gap in gaps]
    assert means[0] > means[1] > means[2]
    assert means[0] > 0.1 and means[0] > 10 * errors[0]
    assert abs(means[3]) < 4 * errors[3] + 1e-3  # the bias left at K = 1,000 is below 1e-3


def test_one_sample_is_the_bound_and_exact_at_the_posterior():
    for wider in (0.2, 0.0):
        model, vae, x = linear(wider=wider)
        torch.manual_seed(2)
        one = importance_sampled(vae, x, 1)
        torch.manual_seed(2)
        torch.testing.assert_close(one, vae.elbo(x, 1, "A").value.detach())
        assert not one.requires_grad
    torch.testing.assert_close(one, model.log_prob(x))


@pytest.mark.parametrize("chunk", [1, 7, 50, 100_000])
def test_chunks_bound_the_memory_and_change_nothing_else(chunk):
    model, vae, x = linear(wider=0.2)
    decoded = []
    vae.decoder.register_forward_pre_hook(lambda _, z: decoded.append(z[0][..., 0].numel()))
    estimate = importance_sampled(vae, x, samples=50, chunk=chunk)
    assert estimate.shape == (30,) and max(decoded) <= chunk
    # Fifty samples leave a standard deviation near 0.1 nats per image.
    assert (estimate - model.log_prob(x)).abs().max() < 0.6


def test_diagnostics_are_their_formulas():
    """q = N(0, s²) for a posterior N(0, 1), s = e: a share √(2s² − 1)/s² of K is effective."""
    model, vae, x = linear(latents=1, wider=1.0, n=200)
    torch.manual_seed(1)
    plain = importance_sampled(vae, x, 2000)
    torch.manual_seed(1)
    found = importance_sampled(vae, x, 2000, diagnostics=True)
    assert torch.equal(found.log_likelihood, plain)
    share = math.sqrt(2 * math.e**2 - 1) / math.e**2
    assert (found.effective_sample_size / 2000).mean().item() == pytest.approx(share, rel=0.01)
    # The standard error is the spread of the estimates, as it is the same for all images here.
    error = found.standard_error.mean().item()
    assert error == pytest.approx(math.sqrt((1 / share - 1) / 2000), rel=0.02)
    assert error == pytest.approx((plain - model.log_prob(x)).std().item(), rel=0.2)  # 4 × 5 %
    _, vae, x = linear()
    equal = importance_sampled(vae, x, 40, chunk=7, diagnostics=True)
    torch.testing.assert_close(equal.effective_sample_size, torch.full((30,), 40.0).double())
    assert (equal.standard_error < 1e-6).all()
    one = importance_sampled(vae, x, 1, diagnostics=True)
    assert (one.effective_sample_size == 1).all() and one.standard_error.isnan().all()


# Of a q two thirds as wide as the posterior the mean error is 0.02 nats, of a tenth 4 nats.
HANGING = [(3, -2.3, 100), (3, -2.3, 10_000), (10, -1.2, 1000)]
FINE = [(3, 0.0, 200), (3, 0.7, 1000), (3, -0.3, 1000), (3, -2.3, 99)]  # 99: few were asked for


@pytest.mark.parametrize(("latents", "wider", "samples"), HANGING + FINE)
def test_an_estimate_that_hangs_on_a_few_draws_warns(latents, wider, samples):
    warned = (latents, wider, samples) in HANGING
    model, vae, x = linear(latents, wider, dims=20)
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        estimate = importance_sampled(vae, x, samples)
        importance_sampled(vae, x, samples, diagnostics=True)
    assert [w.filename for w in found] == [__file__] * warned
    assert not warned or f"of {len(x)} images hang on a few of the {samples}" in str(found[0])
    assert samples < 100 or ((model.log_prob(x) - estimate).mean() > 0.4) == warned


@pytest.mark.parametrize("images", [6, 7])
def test_a_fifth_of_the_images_may_hang_on_a_few_draws(images, recwarn):
    _, vae, x = linear(dims=20)
    wide = torch.ones(30, 1).index_fill(0, torch.arange(images), 1e3)
    vae.encoder.register_forward_hook(lambda _, x, q: DiagNormal(q.loc, wide * q.scale))
    importance_sampled(vae, x)
    assert [f"{images} of 30" in str(w.message) for w in recwarn] == [True] * (images - 6)


@pytest.mark.parametrize(("latents", "sign"), [(3, 1), (3, -1), (5, 1), (10, 1)])
def test_appendix_d_and_importance_sampling_agree_with_ppca(latents, sign):
    model, vae, x = linear(latents, n=400, dims=20)
    with torch.no_grad():  # for appendix D the encoder may be as wrong as one likes
        vae.encoder.loc.weight.mul_(sign)
        vae.encoder.log_scale += 0.3
    error = appendix_d(vae, x) - model.log_prob(x)
    # Measured: bias 0.003 at 3 latents and 0.03 at 10.
    assert error.mean().abs() < 0.03 + 3 * error.std() / 20
    if sign > 0:
        assert (importance_sampled(vae, x, 1000) - model.log_prob(x)).mean().abs() < 0.05


def test_appendix_d_is_exact_where_the_fit_is_the_posterior(monkeypatch):
    """With q(z) = p(z|x) every term of the average is 1/p(x), whatever was drawn."""
    model, vae, x = linear(n=20)
    monkeypatch.setitem(likelihood._DENSITIES, "gaussian", lambda z: model.posterior(x))
    estimate = appendix_d(vae, x, samples=5, burn_in=2)
    torch.testing.assert_close(estimate, model.log_prob(x), rtol=0, atol=1e-9)
    z = torch.randn(7, 20, 3).double()
    expected = model.posterior(x).log_prob(z) + model.log_prob(x)
    torch.testing.assert_close(log_joint(vae, x)(z), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_appendix_d_survives_chains_that_diverge(dtype):
    """The first step size is thirty times too large for noise this small."""
    model = PPCA(torch.randn(20, 3).to(dtype), torch.zeros(20, dtype=dtype), 1e-5)
    x = model.marginal().sample((20,))
    estimate = appendix_d(VAE(*model.slots()), x, leapfrog_steps=5, chunk=12)
    assert estimate.shape == (20,) and (estimate - model.log_prob(x)).abs().median() < 1


def test_the_fitted_densities_are_those_of_the_samples():
    """The Gaussian has their moments; the kernels are scipy's, with Scott's bandwidth."""
    z, at = torch.randn(40, 1, 3).double(), torch.randn(5, 1, 3).double()
    exact = gaussian_kde(z[:, 0].T.numpy(), "scott").logpdf(at[:, 0].T.numpy())
    found = likelihood._kernel(z).log_prob(at)[:, 0]
    torch.testing.assert_close(found, torch.tensor(exact), rtol=0, atol=1e-4)
    exact = MultivariateNormal(z.mean(0)[0], torch.cov(z[:, 0].T) + 1e-6 * torch.eye(3))
    torch.testing.assert_close(likelihood._gaussian(z).log_prob(at)[:, 0], exact.log_prob(at[:, 0]))
    still = likelihood._gaussian(torch.zeros(7, 2, 3).double())  # a chain that never moved
    assert still.log_prob(torch.zeros(2, 3).double()).isfinite().all()


def test_estimators_switch_dropout_off_and_leave_it_as_it_was():
    vae = VAE(MLPEncoder(2, SHAPE, 5), StandardNormal(2), BernoulliMLP(2, SHAPE, 5))
    vae.decoder.register_forward_pre_hook(lambda slot, z: dropout(z[0], 0.5, slot.training))
    x, found = torch.rand(3, *SHAPE), []
    for mode in (True, False):
        vae.train(mode)
        torch.manual_seed(1)
        found.append([importance_sampled(vae, x, 50), appendix_d(vae, x, samples=4, burn_in=3)])
        assert all(module.training == mode for module in vae.modules())
    assert all(map(torch.equal, *found))


GOOD = {"x": torch.zeros(3, *SHAPE)}
BAD = {
    "expected a batch": {"x": torch.rand(SHAPE)},
    "expected x of shape": {"x": torch.rand(3, 1, 4, 5)},
    "chunk >= 1": {"chunk": 0},
    "expected .*samples.*, got 0": {"samples": 0},
}


MODEL = VAE(MLPEncoder(2, SHAPE, 5), StandardNormal(2), BernoulliMLP(2, SHAPE, 5))
FIXED = VAE(MODEL.encoder, MODEL.prior, VariationalWeights(BernoulliMLP(2, SHAPE, 5)))
CALLS = [
    (partial(estimate, MODEL, **GOOD | settings), message)
    for estimate in (importance_sampled, appendix_d)
    for message, settings in BAD.items()
]
test_bad_arguments = refusals(CALLS)
test_bad_arguments_of_appendix_d = refusals(
    [
        (partial(appendix_d, MODEL, **GOOD, density="histogram"), "gaussian"),
        (partial(appendix_d, MODEL, **GOOD, samples=2), "more samples than latents, got 2"),
        (partial(appendix_d, FIXED, **GOOD), "expected a decoder with fixed weights"),
    ]
)
