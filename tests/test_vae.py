"""The bound and its three slots: exact answers, finite differences, and every pair of slots."""

import copy
import itertools
import math
from pathlib import Path
from types import SimpleNamespace

import jupytext
import numpy as np
import pytest
import torch
from conftest import refusals
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import special, stats
from sklearn.datasets import load_digits
from torch import distributions as td
from torch import nn

from vaelib import VAE, WithoutLatents
from vaelib.decoders import BernoulliMLP, ConvDecoder, GaussianMLP, VariationalWeights
from vaelib.distributions import DiagNormal, committed_rate, kl_terms
from vaelib.encoders import AntiCausalEncoder, ConvEncoder, MLPEncoder
from vaelib.inference.linear_vae import PPCA, linear_slots
from vaelib.pixelcnn import GatedPixelCNN, PixelCNN, PixelSNAIL
from vaelib.posteriors import IndependentPosterior, SequentialPosterior
from vaelib.priors import AR1Prior, AuxiliaryPrior, StandardNormal

SHAPE, ALPHA, close = (1, 4, 3), [0.5, 0.9], torch.testing.assert_close
SMALL = {"image_shape": SHAPE, "channels": 4}
CONV, BLOCK = {"layers": 1, "kernel": 3, "first_kernel": 3}, {"blocks": 1, "residuals": 1}


def small_vae(latents=2, decoder=BernoulliMLP):
    torch.manual_seed(0)
    slots = MLPEncoder(latents, SHAPE, 6), StandardNormal(latents), decoder(latents, SHAPE, 6)
    return VAE(*slots).double()


def images(n=5):
    return torch.rand(n, *SHAPE, generator=torch.Generator().manual_seed(1)).double()


@pytest.mark.parametrize("estimator", ["A", "B", "auto"])
@pytest.mark.parametrize("samples", [1, 3])
def test_the_bound_is_a_pair_of_each_image(estimator, samples):
    vae, x = small_vae(), images()
    bound, split = (vae(x, samples, estimator=estimator, split=split) for split in (False, True))
    distortion, rate = bound
    assert distortion.shape == rate.shape == (5,) and bound.terms is None
    assert torch.equal(bound.value, -(distortion + rate))
    assert torch.equal(split.value, -(split.distortion + split.rate))
    assert (split.terms is None) == (estimator == "A")
    if estimator != "A":
        assert torch.equal(split.terms, kl_terms(vae.encoder(x), vae.prior()))
        close(split.terms.sum(1), rate)


def test_elbo_is_the_papers_equation_10():
    vae, x = small_vae(), images()
    torch.manual_seed(3)
    bound = vae.elbo(x)
    torch.manual_seed(3)
    loc, log_variance = vae.encoder.network(x.flatten(1)).chunk(2, -1)
    z = loc + (0.5 * log_variance).exp() * torch.randn(5, 2).double()
    y, pixels = vae.decoder.network(z).sigmoid(), x.flatten(1)
    reconstruction = (pixels * y.log() + (1 - pixels) * (1 - y).log()).sum(1)
    regulariser = 0.5 * (1 + log_variance - loc**2 - log_variance.exp()).sum(1)
    close(bound.value, regulariser + reconstruction)


def test_gradients_are_those_of_finite_differences():
    vae, x, step = small_vae(), images(), 1e-5

    def loss():
        torch.manual_seed(7)  # the same noise, so that the bound is a function of the weights
        return -vae(x, samples=2).value.mean()

    loss().backward()
    for parameter in vae.parameters():
        flat, gradient = parameter.data.view(-1), parameter.grad.view(-1)
        for index in (0, len(flat) // 2, len(flat) - 1):
            flat[index] += step
            up = loss().item()
            flat[index] -= 2 * step
            numeric = (up - loss().item()) / (2 * step)
            flat[index] += step
            # Central differences: truncation near 1e-10, rounding near 1e-16 / 1e-5 = 1e-11.
            assert gradient[index].item() == pytest.approx(numeric, rel=1e-5, abs=1e-8)


def test_estimators_a_and_b_agree_in_the_mean():
    vae, x = small_vae(), images(1).expand(20_000, *SHAPE)
    a, b = (vae.elbo(x, 1, estimator).rate.detach() for estimator in "AB")
    assert (a.mean() - b[0]).abs() < 4 * a.std() / len(x) ** 0.5


def test_the_bound_is_below_log_p_and_equal_at_the_posterior():
    model = PPCA.fit(torch.randn(200, 5).double() @ torch.randn(5, 5).double(), 2)
    x = model.marginal().sample((40,))
    vae, log_p = VAE(*model.slots()), model.log_prob(x)
    close(vae.elbo(x, 1, "A").value, log_p)
    with torch.no_grad():
        vae.encoder.log_scale += 0.3
    # 4,000 samples: standard error near 0.03 nats; the gap here is near 0.4.
    assert (vae.elbo(x, 4000).value < log_p - 0.1).all()


def test_more_samples_reduce_the_variance_not_the_mean():
    vae, x = small_vae(), images(1).expand(20_000, *SHAPE)
    one, many = (vae.elbo(x, samples).value.detach() for samples in (1, 16))
    assert (one.var() / many.var()).item() == pytest.approx(16, rel=0.06)  # standard error 1.4 %
    assert (one.mean() - many.mean()).abs() < 4 * one.std() / len(x) ** 0.5


def test_draws_follow_the_model():
    vae = small_vae()
    drawn, mean = vae.sample(40_000), vae.sample(40_000, mean=True)
    assert drawn.shape == (40_000, *SHAPE) and not drawn.requires_grad
    assert set(drawn.unique().tolist()) == {0.0, 1.0} and ((mean > 0) & (mean < 1)).all()
    assert (drawn.mean(0) - mean.mean(0)).abs().max() < 4 * 2**0.5 * 0.5 / 200


def test_a_reconstruction_is_decoded_from_a_draw():
    """z | x ~ N(x, 3²), the decoder hands z on: reconstructions spread as z does."""
    vae = VAE(*linear_slots(2, 2, noise_variance=1.0))
    with torch.no_grad():
        for slot in (vae.encoder, vae.decoder):
            slot.loc.weight.copy_(torch.eye(2))
            slot.loc.bias.zero_()
        vae.encoder.log_scale.fill_(math.log(3))
    x = torch.ones(20_000, 2)
    spread = (vae.reconstruct(x, mean=True) - x).std(0)
    assert spread.tolist() == pytest.approx([3, 3], rel=0.02)  # standard error 0.5 %


@pytest.mark.parametrize("kind", ["mlp", "snail"])
def test_draws_do_not_depend_on_the_mode_and_restore_it(kind):
    def draws(dropout, mode):
        vae = small_vae().float()
        vae.encoder.network.append(nn.Dropout(dropout))
        if kind == "mlp":
            vae.decoder.network.append(nn.Dropout(dropout))
        else:
            vae.decoder = PixelSNAIL(2, **SMALL, **BLOCK, dropout=dropout)
        for parameter in vae.train(mode).parameters():
            nn.init.normal_(parameter, std=0.5)
        drawn = vae.sample(9), vae.reconstruct(images(9).float())
        assert all(module.training == mode for module in vae.modules())
        return torch.stack(drawn)

    plain = draws(0.0, False)
    assert torch.equal(draws(0.5, True), plain) and torch.equal(draws(0.5, False), plain)


ROWS = (4, 2)
ENCODERS = {
    "mlp": lambda: MLPEncoder(ROWS, SHAPE, 6),
    "mlp, independent": lambda: MLPEncoder(ROWS, SHAPE, 6, IndependentPosterior(0.1, ROWS)),
    "convolutional": lambda: ConvEncoder(ROWS, SHAPE, (4,)),
    "anti-causal": lambda: AntiCausalEncoder(2, SHAPE, None, 4, 1, 3),
    "sequential": lambda: AntiCausalEncoder(2, SHAPE, SequentialPosterior(ALPHA, 4), 4, 1, 3),
}
PRIORS = {"normal": lambda: StandardNormal(ROWS), "AR1": lambda: AR1Prior(ALPHA, 4)}
PRIORS["auxiliary"] = lambda: AuxiliaryPrior(2, 4, 4)
DECODERS = {
    "bernoulli": lambda: BernoulliMLP(ROWS, SHAPE, 6),
    "gaussian": lambda: GaussianMLP(ROWS, SHAPE, 6),
    "convolutional": lambda: ConvDecoder(ROWS, SHAPE, (4,)),
    "uncertain": lambda: VariationalWeights(BernoulliMLP(ROWS, SHAPE, 6), 0.1),
    "pixelcnn": lambda: PixelCNN(ROWS, **SMALL, **CONV),
    "gated": lambda: GatedPixelCNN(ROWS, **SMALL, **CONV, inject="map"),
    "snail": lambda: PixelSNAIL(ROWS, **SMALL, **BLOCK),
    "uncertain gated": lambda: VariationalWeights(GatedPixelCNN(ROWS, **SMALL, **CONV), 0.1),
}


def fill(encoder, prior, decoder):
    torch.manual_seed(0)
    return VAE(ENCODERS[encoder](), PRIORS[prior](), DECODERS[decoder]())


@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize("prior", PRIORS)
@pytest.mark.parametrize("encoder", ENCODERS)
def test_every_pair_of_slots_fits(encoder, prior, decoder):
    vae, twin = fill(encoder, prior, decoder), copy.deepcopy(fill(encoder, prior, decoder))
    twin.load_state_dict(vae.state_dict())
    x, values = images(3).float().round(), []
    for model in (vae, twin):
        torch.manual_seed(0)
        bound = model(x, samples=2, split=True)
        values.append(bound.value)
    assert torch.equal(*values) and bound.value.shape == (3,) and bound.value.isfinite().all()
    assert (bound.terms is None) == (prior == "auxiliary")
    values[0].sum().backward()
    assert all(parameter.grad is not None for parameter in vae.parameters())
    for drawn in (vae.sample(2), vae.reconstruct(x[:2])):
        assert drawn.shape == (2, *SHAPE) and drawn.dtype == torch.float32
    assert twin.double().elbo(x.double()).value.dtype == torch.float64


class Fixed(nn.Module):
    def __init__(self, distribution):
        super().__init__()
        self.distribution = distribution

    def forward(self, *inputs):
        return self.distribution


def batch(size, *event):
    loc = torch.zeros(size, *event).double()
    return Fixed(DiagNormal(loc, loc + 1, len(event)))


def test_a_pair_without_a_kl_rule_uses_the_samples():
    one = torch.ones(5, 2).double()
    q, p = td.Independent(td.Laplace(one, one), 1), td.Independent(td.Cauchy(one[0], one[0]), 1)
    vae, x = VAE(Fixed(q), Fixed(p), BernoulliMLP(2, SHAPE, 6).double()), images()
    torch.manual_seed(0)
    bound = vae.elbo(x, 2)
    torch.manual_seed(0)
    z = q.rsample((2,))
    close(bound.rate, (q.log_prob(z) - p.log_prob(z)).mean(0))
    close(bound.distortion, -vae.decoder(z).log_prob(x).mean(0))
    with pytest.raises(NotImplementedError):
        vae.elbo(x, 2, estimator="B")


@pytest.mark.parametrize("labels", [None, torch.tensor([0, 1, 2])], ids=["plain", "labels"])
def test_without_latents_the_bound_is_log_p_and_labels_go_to_the_decoder(labels):
    x, more = images(3).float().round(), SMALL | CONV | {"classes": None if labels is None else 3}
    alone = WithoutLatents(PixelCNN(**more))
    bound = alone(x, split=True, labels=labels)
    assert torch.equal(bound.distortion, -alone.decoder(labels=labels).log_prob(x))
    assert bound.rate.tolist() == [0.0] * 3 and bound.terms is None
    vae = VAE(MLPEncoder(2, SHAPE, 6), StandardNormal(2), PixelCNN(2, **more))
    torch.manual_seed(0)
    found = vae.elbo(x, samples=4, labels=labels).distortion
    torch.manual_seed(0)
    given = (vae.encoder(x).rsample((4,)), *([] if labels is None else [labels.expand(4, 3)]))
    close(found, -vae.decoder(*given).log_prob(x).mean(0))
    drawn = alone.sample(3, labels=labels), vae.sample(3, labels=labels)
    assert all(one.shape == x.shape for one in (*drawn, vae.reconstruct(x, labels=labels)))


PAIR, X = small_vae(), images()
ALONE, CLASSES = (WithoutLatents(PixelCNN(**SMALL, **CONV, classes=n)).double() for n in (None, 3))
REFUSED = [
    # Slots that would broadcast.
    (lambda q: VAE(q, PAIR.prior, PAIR.decoder).elbo(X), [batch(4, 2)], r"batch of enc.*\(4,\)"),
    (lambda q: VAE(q, PAIR.prior, PAIR.decoder).elbo(X), [batch(5, 1)], r"event of enc.*\(1,\)"),
    (lambda p: VAE(PAIR.encoder, p, PAIR.decoder).elbo(X), [batch(5, 2)], r"batch of pr.*\(5,\)"),
    (lambda p: VAE(*list(PAIR.children())[:2], p).elbo(X, 2), [batch(5, *SHAPE)], "batch of dec"),
    (lambda p: VAE(*list(PAIR.children())[:2], p).elbo(X), [batch(5, 1, 4, 1)], "images"),
    (lambda y: CLASSES.elbo(X.round(), labels=y), [torch.tensor([0, 1])], r"decoder.*got \(2,\)"),
    (lambda samples: PAIR.elbo(X, samples), (0, -1), "expected samples >= 1, got"),
    (lambda name: PAIR.elbo(X, 1, name), ["C"], "expected estimator 'auto', 'A' or 'B', got 'C'"),
    (PAIR.sample, [0], "expected n >= 1, got 0"),
    (ALONE.sample, [0], "expected n >= 1, got 0"),
]
for model in (PAIR, ALONE):
    REFUSED += [
        (model.elbo, (X * math.nan, X + 1, X[:0]), "expected .* got"),
        (model.elbo, [X.numpy()], r"got numpy.ndarray: .*as_tensors\(x\)"),
        (model.elbo, (X.half(), X.long()), r"got torch.*: convert with x.float\(\)"),
        (model.elbo, [X.byte()], r"got torch.uint8: .*x.float\(\) / 255"),
        (model.elbo, [X.float()], "expected torch.float64, .* got torch.float32"),
    ]
test_bad_slots_and_images_are_refused = refusals(REFUSED)


near = st.sampled_from([(3, *SHAPE), (1, *SHAPE), (0, *SHAPE), SHAPE, (3, 4, 3), (3, 1, 4, 5)])
dtypes = st.sampled_from("float32 float64 float16 bfloat16 int64 bool complex64".split())
specials = st.sampled_from([None, math.nan, math.inf, -math.inf, 1e30, -0.5, 1.5])
FUZZED = {
    "bernoulli": small_vae().float(),
    "gaussian": small_vae(decoder=GaussianMLP).float(),
    "δ-VAE": fill("sequential", "AR1", "gated"),
    "auxiliary": fill("sequential", "auxiliary", "pixelcnn"),
    "alone": WithoutLatents(PixelSNAIL(**SMALL, **BLOCK)),
}


@settings(max_examples=150)
@given(st.sampled_from(sorted(FUZZED)), near, dtypes, specials)
def test_any_images_get_a_bound_or_a_clear_error(kind, shape, dtype, special):
    x = torch.rand(shape, generator=torch.Generator().manual_seed(0))
    x = x if kind == "gaussian" else x.round()  # autoregressive decoders take black and white
    if special is not None and x.numel():
        x.view(-1)[0] = special
    dtype = getattr(torch, dtype)
    x = x.to(dtype) if dtype.is_floating_point else x.nan_to_num(0, 1, -1).to(dtype)
    try:
        bound = FUZZED[kind].elbo(x)
    except (TypeError, ValueError) as error:
        assert "expected" in str(error)
        good = x.dtype == torch.float32 and x.dim() == 4 and x.shape[1:] == SHAPE and len(x) > 0
        assert not (good and bool(((x >= 0) & (x <= 1)).all())), "refused good images"
        return
    assert x.shape[-3:] == SHAPE  # one image without a batch is welcome, too
    assert bound.distortion.shape == bound.rate.shape == x.shape[:-3]
    usual = (x.abs() <= 1e6).flatten(-3).all(-1)  # the density of others may be e^−∞
    assert bound.value[usual].isfinite().all() and (bound.value[~usual] < -1e6).all()


# Under autocast the networks compute in bfloat16, the bound does not.
GREY = torch.tensor(load_digits().images[:60] / 16).float().unsqueeze(1)  # 8 × 8
SIDE, LEVELS = (1, 8, 8), {"bernoulli": 2, "categorical": 32, "logistic_mixture": 256}
AUTOCAST = [(BernoulliMLP, None), (GaussianMLP, None)]
AUTOCAST += [(kind, one) for kind in (PixelCNN, GatedPixelCNN, PixelSNAIL) for one in LEVELS]
autocast = pytest.mark.parametrize(("kind", "likelihood"), AUTOCAST)


def decoder_and_images(kind, likelihood):
    if likelihood is None:
        return kind((8, 2), SIDE, 50), GREY
    more = {"blocks": 1, "residuals": 2} if kind is PixelSNAIL else CONV | {"layers": 2}
    more |= {"likelihood": likelihood, "levels": LEVELS[likelihood], "mixtures": 3}
    most = LEVELS[likelihood] - 1
    return kind((8, 2), SIDE, 8, context=4, **more), (GREY * most).round() / most


@autocast
def test_the_bound_under_autocast_is_that_of_float32(kind, likelihood):
    """After some training: at a random start every logit is near zero, and any arithmetic does."""
    decoder, x = decoder_and_images(kind, likelihood)
    encoder = AntiCausalEncoder(2, SIDE, SequentialPosterior(ALPHA, 8), 8, 1, 3)
    vae = VAE(encoder, AR1Prior(ALPHA, 8), decoder)
    optimizer = torch.optim.Adam(vae.parameters(), lr=1e-2)
    for _ in range(40):
        optimizer.zero_grad()
        (-vae(x).value.mean()).backward()
        optimizer.step()
    bounds, gradients = [], []
    for enabled in (False, True):
        vae.zero_grad()
        torch.manual_seed(1)
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            bounds.append(vae(x))
            drawn = vae.sample(4)
        assert drawn.dtype == torch.float32
        if likelihood:
            decoder.pixels.check(drawn)
        bounds[-1].value.mean().backward()
        gradients.append(torch.cat([p.grad.flatten() for p in vae.parameters()]))
    full, half = (bound.value.mean() for bound in bounds)
    assert (half - full).abs() < 1e-3 * full.abs() and half != full
    assert {part.dtype for part in bounds[1]} == {torch.float32}
    assert (bounds[1].rate >= committed_rate(ALPHA, 8) - 1e-4).all()
    assert torch.cosine_similarity(*gradients, dim=0) > 0.99


@autocast
def test_images_are_never_rounded(kind, likelihood):
    """Without weights a network is exact in any type; a rounded grey level would show."""
    decoder, x = decoder_and_images(kind, likelihood)
    for name, parameter in decoder.named_parameters():
        bias = name.startswith("pixels") and parameter.dim() == 1
        parameter.data.normal_(std=1.0 if bias else 0.0)
    z = torch.randn(len(x), 8, 2)
    expected = decoder(z).log_prob(x)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(decoder(z).log_prob(x), expected)


# Notebook 02: its cells tagged `library` hold its estimators and the transformations of section 2.4
# of Kingma & Welling (2013). Its claims, which run with it, judge densities, inverses and means.
NOTEBOOK = Path(__file__).parents[1] / "notebooks" / "py" / "02_reparameterize_the_gradient.py"
NAMES = {}
for cell in jupytext.read(NOTEBOOK, fmt="py:percent").cells:
    if "library" in cell.metadata.get("tags", []):
        exec(cell.source, NAMES)
library, gradients_of = SimpleNamespace(**NAMES), torch.autograd.grad
NAMED = {
    "INVERSE_CDF": "Exponential Cauchy Logistic Rayleigh Pareto Weibull Reciprocal Gompertz Gumbel "
    "Erlang",
    "LOCATION_SCALE": "Laplace Elliptical Student's Logistic Uniform Triangular Gaussian",
    "COMPOSITION": "Log-Normal Gamma Dirichlet Beta Chi-squared F",
}
LAWS = [(kind, name) for kind in NAMED for name in NAMES[kind]]
DATUM, SCALE = 2.0, 0.5  # a datum and the scale of its likelihood N(x; z, s²)


def gauss_hermite(nodes, d=1):
    """Noise (nodes**d, d) and weights for expectations over N(0, I)."""
    points, weights = np.polynomial.hermite_e.hermegauss(nodes)
    grids = (np.meshgrid(*[one] * d) for one in (points, weights / weights.sum()))
    noise, weight = (torch.tensor(np.stack(grid, -1).reshape(-1, d)) for grid in grids)
    return noise, weight.prod(-1)


def mean_and_variance(weights, values):
    mean = weights @ values
    return mean, weights @ values**2 - mean**2


def kolmogorov(samples, cdf):
    """√n D. P(√n D > 2.5) = 2 exp(−2 · 2.5²) < 1e-5 for a correct sampler; the seed is fixed."""
    return len(samples) ** 0.5 * stats.kstest(np.asarray(samples), cdf).statistic


def moments(estimator, loc, scale):
    """Means and variances of value, ∂/∂μ and ∂/∂ln σ of SGVB, exact by quadrature."""
    noise, weights = gauss_hermite(12)
    likelihood = library.DiagNormal(torch.tensor([DATUM]), torch.tensor([SCALE])).log_prob
    q = torch.tensor([[loc]]), torch.tensor([[scale]])
    results = library.sgvb(likelihood, *q, noise[:, None], estimator)
    return torch.tensor([mean_and_variance(weights, result.flatten()) for result in results]).T


@pytest.fixture
def double_precision():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.usefixtures("double_precision")
class TestNotebook02:
    @pytest.mark.parametrize(("kind", "name"), LAWS)
    def test_gradients_of_each_law(self, kind, name):
        rows = {name.split()[0].rstrip(",") for name in NAMES[kind]}
        assert rows == set(NAMED[kind].split())  # all that the paper names
        law = NAMES[kind][name]
        theta, noise, step = torch.tensor(law.theta), law.noise(500), 1e-5
        each = [value.expand(500).clone().requires_grad_() for value in theta]
        found = gradients_of(law.transform(noise, *each).sum(), each)
        for gradient, h in zip(found, step * torch.eye(len(theta)), strict=True):
            up, down = (law.transform(noise, *(theta + s * h)) for s in (1, -1))
            # Truncation of order step² and rounding of order 1e-15 / step, in both differences
            # (the implicit gradient of the Gamma holds a second one).
            close(gradient, (up - down) / (2 * step), rtol=1e-6, atol=1e-7)
        if kind == "LOCATION_SCALE":  # affine in its noise
            standard = law.transform(noise, 0.0, *[value / 2 for value in law.theta[1:]])
            close(law.transform(noise, 3.0, *law.theta[1:]), 3 + 2 * standard)

    def test_a_wrong_transformation_is_seen_and_uniform_noise_is_strictly_inside(self, monkeypatch):
        draw, right = lambda u, r: -torch.log1p(-u) / (1.05 * r), lambda r: stats.expon(0, 1 / r)
        wrong = library.Law(draw, (1.5,), right)
        samples, exact = library.gradient_pair(wrong)
        error = (samples - exact).std(0) / len(samples) ** 0.5
        assert library.ks_distance(wrong, n=100_000) > 2.5
        assert ((samples - exact).mean(0).abs() > 5 * error).any()
        assert (library.uniform(100_000) < 1).all()
        monkeypatch.setattr(torch, "rand", torch.zeros)  # the smallest draw there can be
        zero = library.uniform(3)
        assert (zero > 0).all() and torch.logit(zero).isfinite().all()

    @pytest.mark.parametrize("shape", [0.3, 1.0, 2.5, 40.0])
    def test_standard_gamma_inverts_and_differentiates_any_shape(self, shape):
        u, alpha = torch.linspace(0.01, 0.99, 99), torch.full((99,), shape, requires_grad=True)
        z, step = library.standard_gamma(u, alpha), 1e-5 * shape
        assert np.abs(special.gammainc(shape, z.detach().numpy()) - u.numpy()).max() < 1e-12
        up, down = (special.gammaincinv(shape + h, u.numpy()) for h in (step, -step))
        expected = torch.tensor((up - down) / (2 * step))
        close(gradients_of(z.sum(), alpha)[0], expected, rtol=1e-5, atol=1e-12)

    def test_vectors_have_the_marginals_and_the_dependence_that_they_should(self):
        concentration = [torch.full((50_000,), a, requires_grad=True) for a in (1.5, 2.0, 0.8)]
        z = library.dirichlet(library.uniform(50_000, 3), *concentration)
        close(z.sum(-1), torch.ones(50_000), rtol=0, atol=1e-14)
        for i, a in enumerate((1.5, 2.0, 0.8)):
            assert kolmogorov(z[:, i].detach(), stats.beta(a, 4.3 - a).cdf) < 2.5
        for gradient in gradients_of(z.sum(), concentration):  # the total is always 1
            close(gradient, torch.zeros(50_000), rtol=0, atol=1e-12)
        loc, factor = torch.tensor([1.0, -0.5]), torch.tensor([[1.2, 0.0], [0.9, 0.5]])
        z = loc + library.spherical_t(50_000) @ factor.T  # elliptical
        white = torch.linalg.solve_triangular(factor, (z - loc).T, upper=False)  # (2, samples)
        radius = white.square().sum(0) / 2  # squared Mahalanobis radius over d
        angle = torch.atan2(white[1], white[0]) / (2 * np.pi) + 0.5
        assert kolmogorov(radius, stats.f(2, 8).cdf) < 2.5 and kolmogorov(angle, "uniform") < 2.5
        assert abs(stats.spearmanr(radius, angle).statistic) < 5 / 50_000**0.5  # independent

    def test_variances_of_both_estimators_are_exact(self):
        for d, baseline in itertools.product((1, 2, 3), (0.0, 2.5)):
            noise, weights = gauss_hermite(8, d)  # exact for the polynomial, of degree 6
            f = (0.7 + 1.3 * noise).square().sum(-1)
            _, variance = mean_and_variance(weights, (f - baseline) * noise[:, 0] / 1.3)
            found = library.score_variance(d, baseline, 0.7, 1.3)
            assert found == pytest.approx(float(variance), rel=1e-11)
        (z, weights), omega = gauss_hermite(80), torch.tensor([0.1, 1.0, 3.0])
        wave = {"score": torch.sin(omega * z) * z, "pathwise": omega * torch.cos(omega * z)}
        for name, found in library.wave_variances(omega).items():
            close(found, mean_and_variance(weights, wave[name])[1], rtol=1e-9, atol=1e-12)

    @pytest.mark.parametrize("estimator", ["A", "B", "STL"])
    def test_every_estimator_has_the_mean_of_the_exact_bound(self, estimator):
        loc, log_scale = (torch.tensor(v, requires_grad=True) for v in (0.3, math.log(0.8)))
        variance = (2 * log_scale).exp()
        distortion = ((DATUM - loc) ** 2 + variance) / (2 * SCALE**2)
        distortion = distortion + math.log(SCALE * math.sqrt(2 * math.pi))
        bound = -distortion - 0.5 * (loc**2 + variance - 1 - 2 * log_scale)
        exact = torch.stack([bound.detach(), *gradients_of(bound, (loc, log_scale))])
        close(moments(estimator, 0.3, 0.8)[0], exact, rtol=1e-11, atol=1e-11)

    def test_at_the_posterior_a_has_no_noise_and_stl_no_gradient(self):
        posterior = DATUM / (1 + SCALE**2), (1 + 1 / SCALE**2) ** -0.5
        (_, a), (_, b), (_, stl) = (moments(name, *posterior) for name in ("A", "B", "STL"))
        assert a[0] < 1e-12 < 0.1 < b[0] and (stl < 1e-12).all()
        assert (a[1:] > 0.1).all() and (b[1:] > 0.1).all()

    @pytest.mark.parametrize("estimator", ["A", "B"])
    def test_sgvb_gives_the_bound_of_the_library(self, estimator):
        vae, x = small_vae(), images()
        torch.manual_seed(2)
        noise = torch.randn(7, 5, 2)
        torch.manual_seed(2)  # the same draws
        expected = vae.elbo(x, samples=7, estimator=estimator).value.detach()
        q, likelihood = vae.encoder(x), lambda z: vae.decoder(z).log_prob(x)
        values, _, _ = library.sgvb(likelihood, q.loc, q.scale, noise, estimator)
        close(values.mean(0), expected, rtol=1e-10, atol=1e-10)

    def test_other_estimators_are_refused(self):
        one = torch.ones(1)
        with pytest.raises(ValueError, match="estimator 'score' or 'pathwise', got 'naive'"):
            library.gradient_samples(torch.sum, one, one, 10, "naive")
        with pytest.raises(ValueError, match="expected estimator 'A', 'B' or 'STL', got 'C'"):
            library.sgvb(torch.sum, one, one, torch.zeros(3, 1), "C")


@pytest.mark.parametrize("alpha", [np.linspace(0.5, 0.9, 2), [0.5, 0.9], (0.5, 0.9)])
def test_correlations_from_numpy_or_a_list_have_the_type_of_the_weights(alpha):
    encoder = MLPEncoder((4, 2), (1, 4, 3), 6, SequentialPosterior(alpha, 4))
    vae = VAE(encoder, AR1Prior(alpha, 4), BernoulliMLP((4, 2), (1, 4, 3), 6))
    assert vae.elbo(torch.rand(5, 1, 4, 3)).rate.dtype == vae.sample(2).dtype == torch.float32
