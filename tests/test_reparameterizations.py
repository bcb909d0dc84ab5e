"""The code that notebook 02 teaches: its estimators and each of its transformations.

The functions live in the notebook, where they are explained; its cells tagged ``library`` hold
them all, and are run here. SciPy's distributions and quadrature are the judges.
"""

from pathlib import Path
from types import SimpleNamespace

import jupytext
import numpy as np
import pytest
import torch
from scipy import special, stats

NOTEBOOK = Path(__file__).parents[1] / "notebooks" / "py" / "02_reparameterize_the_gradient.py"
CELLS = jupytext.read(NOTEBOOK, fmt="py:percent").cells
NAMES = {}
for cell in CELLS:
    if "library" in cell.metadata.get("tags", []):
        exec(cell.source, NAMES)
library, close = SimpleNamespace(**NAMES), torch.testing.assert_close

NAMED = {  # section 2.4 of Kingma & Welling (2013)
    "INVERSE_CDF": "Exponential Cauchy Logistic Rayleigh Pareto Weibull Reciprocal Gompertz Gumbel "
    "Erlang",
    "LOCATION_SCALE": "Laplace Elliptical Student's Logistic Uniform Triangular Gaussian",
    "COMPOSITION": "Log-Normal Gamma Dirichlet Beta Chi-squared F",
}
LAWS = {f"{kind}-{name}": law for kind in NAMED for name, law in NAMES[kind].items()}


@pytest.fixture(autouse=True)
def double_precision():
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


def gauss_hermite(nodes, d):
    """Noise (nodes**d, d) and weights for expectations over N(0, I)."""
    points, weights = np.polynomial.hermite_e.hermegauss(nodes)
    grid = np.stack(np.meshgrid(*[points] * d), -1).reshape(-1, d)
    weight = np.stack(np.meshgrid(*[weights / weights.sum()] * d), -1).reshape(-1, d).prod(-1)
    return torch.tensor(grid), torch.tensor(weight)


def mean_and_variance(weights, values):
    mean = weights @ values
    return mean, weights @ values**2 - mean**2


def is_zero(samples, slack=0.0):
    """Whether their mean is 0 up to 5 standard errors: 1 in 1.7 million is not."""
    error = 5 * samples.std(0) / len(samples) ** 0.5
    return bool((samples.mean(0).abs() <= error + slack).all())


def kolmogorov(samples, cdf):
    """√n D. P(√n D > 2.5) = 2 exp(−2 · 2.5²) < 1e-5 for a correct sampler; the seed is fixed."""
    return len(samples) ** 0.5 * stats.kstest(np.asarray(samples), cdf).statistic


@pytest.mark.parametrize("family", NAMED)
def test_every_distribution_that_the_paper_names_has_a_row(family):
    rows = {name.split()[0].rstrip(",") for name in NAMES[family]}
    assert rows == set(NAMED[family].split())


@pytest.mark.parametrize("law", LAWS.values(), ids=LAWS)
def test_samples_and_gradients_of_each_law(law):
    assert library.ks_distance(law, n=100_000) < 2.5
    samples, exact = library.gradient_pair(law)
    # 1e-6 for SciPy's integral and its difference, where the gradient has no noise at all.
    assert is_zero(samples - exact, slack=1e-6)
    noise, step = law.noise(500), 1e-5
    theta = [torch.full((500,), value).requires_grad_() for value in law.theta]
    gradients = torch.autograd.grad(law.transform(noise, *theta).sum(), theta)
    for index, gradient in enumerate(gradients):
        h = step * torch.eye(len(theta))[index]
        up, down = (law.transform(noise, *(torch.tensor(law.theta) + s * h)) for s in (1, -1))
        # Truncation of order step² and rounding of order 1e-15 / step, in both differences
        # (the implicit gradient of the Gamma holds a second one).
        close(gradient, (up - down) / (2 * step), rtol=1e-6, atol=1e-7)


def test_a_wrong_transformation_is_seen():
    draw, law = lambda u, rate: -torch.log1p(-u) / (1.05 * rate), lambda r: stats.expon(0, 1 / r)
    wrong = library.Law(draw, (1.5,), law)
    samples, exact = library.gradient_pair(wrong)
    assert library.ks_distance(wrong, n=100_000) > 2.5 and not is_zero(samples - exact)


@pytest.mark.parametrize("law", library.INVERSE_CDF.values(), ids=library.INVERSE_CDF)
def test_inverse_cdf_is_the_inverse_of_the_cdf(law):
    u = torch.cat([torch.logspace(-6, -3, 50), torch.linspace(0.001, 0.999, 999)])
    z = law.transform(u, *law.theta)
    back = law.reference(*law.theta).cdf(z.numpy())
    assert np.abs(back - u.numpy()).max() < 1e-12  # rounding in two special functions each way
    assert bool((z.diff()[50:] > 0).all())  # and it increases


@pytest.mark.parametrize("law", library.LOCATION_SCALE.values(), ids=library.LOCATION_SCALE)
def test_location_scale_is_affine_in_its_noise(law):
    noise = law.noise(100)
    standard = law.transform(noise, 0.0, *[value / 2 for value in law.theta[1:]])
    close(law.transform(noise, 3.0, *law.theta[1:]), 3 + 2 * standard)


def test_uniform_noise_is_strictly_inside(monkeypatch):
    assert bool((library.uniform(100_000) < 1).all())
    monkeypatch.setattr(torch, "rand", torch.zeros)  # the smallest draw there can be
    zero = library.uniform(3)
    assert bool((zero > 0).all()) and bool(torch.logit(zero).isfinite().all())


@pytest.mark.parametrize("shape", [0.3, 1.0, 2.5, 40.0])
def test_standard_gamma_inverts_and_differentiates_any_shape(shape):
    u, alpha = torch.linspace(0.01, 0.99, 99), torch.full((99,), shape, requires_grad=True)
    z = library.standard_gamma(u, alpha)
    assert np.abs(special.gammainc(shape, z.detach().numpy()) - u.numpy()).max() < 1e-12
    step = 1e-5 * shape
    up, down = (special.gammaincinv(shape + h, u.numpy()) for h in (step, -step))
    expected = torch.tensor((up - down) / (2 * step))
    close(torch.autograd.grad(z.sum(), alpha)[0], expected, rtol=1e-5, atol=1e-12)


def test_standard_gamma_agrees_with_torch_on_the_mean_gradient():
    alpha = torch.full((100_000,), 1.7, requires_grad=True)
    theirs = torch.distributions.Gamma(alpha, 1.0).rsample()
    for z in (library.standard_gamma(library.uniform(100_000), alpha), theirs):
        (gradient,) = torch.autograd.grad(z.square().sum(), alpha)
        assert is_zero(gradient - 4.4)  # d(α² + α)/dα = 2α + 1


def test_dirichlet_lies_on_the_simplex_with_beta_marginals():
    concentration = [torch.full((50_000,), a, requires_grad=True) for a in (1.5, 2.0, 0.8)]
    z = library.dirichlet(library.uniform(50_000, 3), *concentration)
    close(z.sum(-1), torch.ones(50_000), rtol=0, atol=1e-14)
    for i, a in enumerate((1.5, 2.0, 0.8)):
        assert kolmogorov(z[:, i].detach(), stats.beta(a, 4.3 - a).cdf) < 2.5
    # The total is 1 whatever the parameters, so its gradient vanishes.
    for gradient in torch.autograd.grad(z.sum(), concentration):
        close(gradient, torch.zeros(50_000), rtol=0, atol=1e-12)


def test_elliptical_vectors_have_the_right_radius_and_a_uniform_direction():
    loc, factor = torch.tensor([1.0, -0.5]), torch.tensor([[1.2, 0.0], [0.9, 0.5]])
    z = loc + library.spherical_t(50_000) @ factor.T
    white = torch.linalg.solve_triangular(factor, (z - loc).T, upper=False)  # (2, samples)
    radius = white.square().sum(0) / 2  # squared Mahalanobis radius over d
    angle = torch.atan2(white[1], white[0]) / (2 * np.pi) + 0.5
    assert kolmogorov(radius, stats.f(2, 8).cdf) < 2.5 and kolmogorov(angle, "uniform") < 2.5
    assert abs(stats.spearmanr(radius, angle).statistic) < 5 / 50_000**0.5  # independent


@pytest.mark.parametrize(
    ("estimator", "baseline"), [("score", 0.0), ("score", 6.0), ("pathwise", 0.0)]
)
def test_gradients_by_score_and_by_path_are_unbiased(estimator, baseline):
    loc, scale = torch.tensor([0.5, -1.0, 0.2]), torch.tensor([0.7, 1.3, 1.0])
    weights = torch.tensor([1.0, 2.0, -0.5])
    gradients = library.gradient_samples(
        lambda z: (weights * z**2).sum(-1), loc, scale, 200_000, estimator, baseline
    )
    for samples, exact in zip(gradients, (2 * weights * loc, 2 * weights * scale), strict=True):
        assert samples.shape == (200_000, 3) and is_zero(samples - exact)


@pytest.mark.parametrize("d", [1, 2, 3])
@pytest.mark.parametrize("baseline", [0.0, 2.5])
def test_score_variance_is_exact(d, baseline):
    noise, weights = gauss_hermite(8, d)  # exact for the polynomial, of degree 6
    f = (0.7 + 1.3 * noise).square().sum(-1)
    _, variance = mean_and_variance(weights, (f - baseline) * noise[:, 0] / 1.3)
    found = library.score_variance(d, baseline, 0.7, 1.3)
    assert found == pytest.approx(float(variance), rel=1e-11)


@pytest.mark.parametrize("omega", [0.1, 1.0, 3.0])
def test_wave_variances_are_exact(omega):
    noise, weights = gauss_hermite(80, 1)
    z, formulas = noise[:, 0], library.wave_variances(torch.tensor(omega))
    _, score = mean_and_variance(weights, torch.sin(omega * z) * z)
    _, path = mean_and_variance(weights, omega * torch.cos(omega * z))
    close(formulas["score"], score, rtol=1e-9, atol=1e-12)
    close(formulas["pathwise"], path, rtol=1e-9, atol=1e-12)


X, S = 2.0, 0.5  # a datum and the scale of its likelihood N(x; z, s²)


def moments(estimator, loc, scale):
    """Means and variances of value, ∂/∂μ and ∂/∂ln σ of SGVB, exact by quadrature."""
    noise, weights = gauss_hermite(12, 1)
    likelihood = library.DiagNormal(torch.tensor([X]), torch.tensor([S])).log_prob
    q = torch.tensor([[loc]]), torch.tensor([[scale]])
    results = library.sgvb(likelihood, *q, noise[:, None], estimator)
    return torch.tensor([mean_and_variance(weights, result.flatten()) for result in results]).T


@pytest.mark.parametrize("estimator", ["A", "B", "STL"])
def test_every_estimator_has_the_mean_of_the_exact_bound(estimator):
    loc, log_scale = (torch.tensor(v, requires_grad=True) for v in (0.3, float(np.log(0.8))))
    variance = (2 * log_scale).exp()
    distortion = ((X - loc) ** 2 + variance) / (2 * S**2) + np.log(S * np.sqrt(2 * np.pi))
    bound = -distortion - 0.5 * (loc**2 + variance - 1 - 2 * log_scale)
    exact = torch.stack([bound.detach(), *torch.autograd.grad(bound, (loc, log_scale))])
    close(moments(estimator, 0.3, 0.8)[0], exact, rtol=1e-11, atol=1e-11)


def test_at_the_posterior_a_has_no_noise_and_stl_no_gradient():
    posterior = X / (1 + S**2), (1 + 1 / S**2) ** -0.5
    (_, a), (_, b), (_, stl) = (moments(name, *posterior) for name in ("A", "B", "STL"))
    assert a[0] < 1e-12 < 0.1 < b[0] and bool((stl < 1e-12).all())
    assert bool((a[1:] > 0.1).all()) and bool((b[1:] > 0.1).all())


@pytest.mark.parametrize("scale", [0.05, 0.4, 1.0, 3.0])
def test_gap_between_a_and_b_in_the_mean_gradient_is_exact(scale):
    (_, a), (_, b) = (moments(name, 0.3, scale) for name in ("A", "B"))
    assert float(a[1] - b[1]) == pytest.approx(scale**2 * (1 + 2 / S**2), rel=1e-9)


@pytest.mark.parametrize("estimator", ["A", "B"])
def test_sgvb_gives_the_bound_of_the_library(estimator):
    encoder = library.MLPEncoder(2, (1, 3, 3), hidden=4)
    decoder = library.BernoulliMLP(2, (1, 3, 3), hidden=4)
    vae, x = library.VAE(encoder, library.StandardNormal(2), decoder), torch.rand(5, 1, 3, 3)
    torch.manual_seed(2)
    noise = torch.randn(7, 5, 2)
    torch.manual_seed(2)  # the same draws
    expected = vae.elbo(x, samples=7, estimator=estimator).value.detach()
    q = encoder(x)
    values, _, _ = library.sgvb(lambda z: decoder(z).log_prob(x), q.loc, q.scale, noise, estimator)
    close(values.mean(0), expected, rtol=1e-10, atol=1e-10)


def test_other_estimators_are_refused():
    one = torch.ones(1)
    with pytest.raises(ValueError, match="expected estimator 'score' or 'pathwise', got 'naive'"):
        library.gradient_samples(lambda z: z.sum(-1), one, one, 10, "naive")
    with pytest.raises(ValueError, match="expected estimator 'A', 'B' or 'STL', got 'C'"):
        library.sgvb(lambda z: z.sum(-1), one, one, torch.zeros(3, 1), "C")
