"""The bound and its three slots: exact answers, finite differences, and every pair of slots."""

import copy
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.datasets import load_digits
from torch import nn
from torch.distributions import Cauchy, Independent, Laplace

from vaelib import VAE, WithoutLatents
from vaelib.decoders import BernoulliMLP, GaussianMLP, VariationalWeights
from vaelib.distributions import DiagNormal, kl_terms
from vaelib.encoders import AntiCausalEncoder, MLPEncoder
from vaelib.inference.linear_vae import PPCA, linear_slots
from vaelib.pixelcnn import GatedPixelCNN, PixelCNN, PixelSNAIL
from vaelib.posteriors import IndependentPosterior, SequentialPosterior
from vaelib.priors import AR1Prior, AuxiliaryPrior, StandardNormal
from vaelib.vae import SplitELBO

SHAPE, ALPHA = (1, 4, 3), [0.5, 0.9]
SMALL = {"image_shape": SHAPE, "channels": 4}
CONV = {"layers": 1, "kernel": 3, "first_kernel": 3}


def small_vae(latents=2, decoder=BernoulliMLP):
    torch.manual_seed(0)
    slots = MLPEncoder(latents, SHAPE, 6), StandardNormal(latents), decoder(latents, SHAPE, 6)
    return VAE(*slots).double()


def images(n=5):
    return torch.rand(n, *SHAPE, generator=torch.Generator().manual_seed(1)).double()


@pytest.mark.parametrize("decoder", [BernoulliMLP, GaussianMLP])
@pytest.mark.parametrize("estimator", ["A", "B", "auto"])
@pytest.mark.parametrize("samples", [1, 3])
def test_the_bound_is_a_pair_of_each_image(decoder, estimator, samples):
    vae = small_vae(decoder=decoder)
    bound = vae.elbo(images(), samples, estimator)
    distortion, rate = bound
    assert distortion.shape == rate.shape == bound.value.shape == (5,)
    assert torch.equal(bound.value, -(distortion + rate)) and bound.terms is None
    split = vae(images(), samples, estimator=estimator, split=True)
    assert isinstance(split, SplitELBO) and torch.equal(split.value, -(split[0] + split[1]))
    if estimator == "A":
        assert split.terms is None
    else:
        assert torch.equal(split.terms, kl_terms(vae.encoder(images()), vae.prior()))
        torch.testing.assert_close(split.terms.sum(1), rate)


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
    torch.testing.assert_close(bound.value, regulariser + reconstruction)


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


def test_reparameterised_gradients_have_the_mean_of_the_score_function():
    """∇ E_q[f(z)] = E[∇ f(μ + σε)] = E[f(z) ∇ ln q(z)], by draws of each."""
    decoder, x, n = small_vae().decoder, images(1), 100_000
    means = []
    for draw in (lambda q: q.rsample(), lambda q: q.sample()):
        loc = torch.tensor([[0.5, -1.0]]).double().expand(n, 2).requires_grad_()
        scale = torch.tensor([[0.7, 1.3]]).double().expand(n, 2).requires_grad_()
        q = DiagNormal(loc, scale)
        z = draw(q)
        f = decoder(z).log_prob(x)
        if not z.requires_grad:
            f = (f - f.mean()).detach() * q.log_prob(z)
        each = torch.cat(torch.autograd.grad(f.sum(), (loc, scale)), 1)
        means.append((each.mean(0), each.var(0) / n))
    (path, path_error), (score, score_error) = means
    assert ((path - score).abs() < 4.5 * (path_error + score_error).sqrt()).all()
    assert path.abs().min() > 0.1


def test_estimators_a_and_b_agree_in_the_mean():
    vae, x = small_vae(), images(2)
    a = torch.stack([vae.elbo(x, 1, "A").rate for _ in range(4000)]).detach()
    b = vae.elbo(x, 1, "B").rate.detach()
    assert ((a.mean(0) - b).abs() < 4 * a.std(0) / 4000**0.5).all()


def test_the_bound_is_below_log_p_and_equal_at_the_posterior():
    model = PPCA.fit(torch.randn(200, 5).double() @ torch.randn(5, 5).double(), 2)
    x = model.marginal().sample((40,))
    vae, log_p = VAE(*model.slots()), model.log_prob(x)
    torch.testing.assert_close(vae.elbo(x, 1, "A").value, log_p)
    with torch.no_grad():
        vae.encoder.log_scale += 0.3
    # 4,000 samples: standard error near 0.03 nats; the gap here is near 0.4.
    assert (vae.elbo(x, 4000).value < log_p - 0.1).all()


def test_more_samples_reduce_the_variance_not_the_mean():
    vae, x = small_vae(), images(1)
    one = torch.stack([vae.elbo(x, 1).value for _ in range(2000)]).detach()
    many = torch.stack([vae.elbo(x, 16).value for _ in range(2000)]).detach()
    assert one.var().item() / many.var().item() == pytest.approx(16, rel=0.25)
    assert (one.mean() - many.mean()).abs() < 4 * one.std() / 2000**0.5


# Drawing


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


def snail_vae(dropout, **settings):
    torch.manual_seed(0)
    snail = PixelSNAIL(**{**SMALL, **settings}, dropout=dropout, blocks=1, residuals=1)
    for parameter in snail.parameters():
        nn.init.normal_(parameter, std=0.5)
    if snail.latents == ():
        return WithoutLatents(snail)
    return VAE(MLPEncoder(2, SHAPE, 6), StandardNormal(2), snail)


@pytest.mark.parametrize("latents", [None, 2])
def test_draws_do_not_depend_on_the_mode_and_restore_it(latents):
    def draws(model):
        torch.manual_seed(1)
        calls = [lambda: model.sample(9)]
        calls += [lambda: model.reconstruct(images(9).float())] if latents else []
        return [call() for call in calls]

    plain = draws(snail_vae(0.0, latents=latents).train())
    for mode in (True, False):
        model = snail_vae(0.5, latents=latents).train(mode)
        assert all(map(torch.equal, draws(model), plain))
        assert all(module.training == mode for module in model.modules())


# Every pair of slots

ENCODERS = {
    "mlp": lambda: MLPEncoder((4, 2), SHAPE, 6),
    "mlp, independent": lambda: MLPEncoder((4, 2), SHAPE, 6, IndependentPosterior(0.1, (4, 2))),
    "anti-causal": lambda: AntiCausalEncoder(2, SHAPE, None, 4, 1, 3),
    "sequential": lambda: AntiCausalEncoder(2, SHAPE, SequentialPosterior(ALPHA, 4), 4, 1, 3),
}
PRIORS = {
    "normal": lambda: StandardNormal((4, 2)),
    "AR1": lambda: AR1Prior(ALPHA, 4),
    "auxiliary": lambda: AuxiliaryPrior(2, 4, 4),
}
DECODERS = {
    "bernoulli": lambda: BernoulliMLP((4, 2), SHAPE, 6),
    "gaussian": lambda: GaussianMLP((4, 2), SHAPE, 6),
    "uncertain": lambda: VariationalWeights(BernoulliMLP((4, 2), SHAPE, 6), 0.1),
    "pixelcnn": lambda: PixelCNN((4, 2), **SMALL, **CONV),
    "gated": lambda: GatedPixelCNN((4, 2), **SMALL, **CONV, inject="map"),
    "snail": lambda: PixelSNAIL((4, 2), **SMALL, blocks=1, residuals=1),
    "uncertain gated": lambda: VariationalWeights(GatedPixelCNN((4, 2), **SMALL, **CONV), 0.1),
}


@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize("prior", PRIORS)
@pytest.mark.parametrize("encoder", ENCODERS)
def test_every_pair_of_slots_fits(encoder, prior, decoder):
    vae = VAE(ENCODERS[encoder](), PRIORS[prior](), DECODERS[decoder]())
    x = images(3).float().round()
    bound = vae(x, samples=2, split=True)
    assert bound.value.shape == (3,) and bound.value.isfinite().all()
    assert (bound.terms is None) == (prior == "auxiliary")
    bound.value.sum().backward()
    assert all(parameter.grad is not None for parameter in vae.parameters())
    for drawn in (vae.sample(2), vae.reconstruct(x[:2])):
        assert drawn.shape == (2, *SHAPE) and drawn.dtype == torch.float32
    if "mlp" in decoder:
        assert vae.sample(2, mean=True).shape == (2, *SHAPE)
    twin = copy.deepcopy(vae)
    twin.load_state_dict(vae.state_dict())
    torch.manual_seed(0)
    value = vae.elbo(x).value
    torch.manual_seed(0)
    assert torch.equal(twin.elbo(x).value, value)
    assert twin.double().elbo(x.double()).value.dtype == torch.float64


class Laplacian(nn.Module):
    def forward(self, x):
        return Independent(Laplace(x.flatten(1)[:, :2], torch.ones(len(x), 2).double()), 1)


class Fixed(nn.Module):
    def __init__(self, distribution):
        super().__init__()
        self.distribution = distribution

    def forward(self, *inputs):
        return self.distribution


def test_a_pair_without_a_kl_rule_uses_the_samples():
    prior = Fixed(Independent(Cauchy(torch.zeros(2).double(), torch.ones(2).double()), 1))
    vae, x = VAE(Laplacian(), prior, BernoulliMLP(2, SHAPE, 6).double()), images()
    torch.manual_seed(0)
    rate = vae.elbo(x, 2).rate
    torch.manual_seed(0)
    z = vae.encoder(x).rsample((2,))
    torch.testing.assert_close(rate, (vae.encoder(x).log_prob(z) - prior().log_prob(z)).mean(0))
    with pytest.raises(NotImplementedError):
        vae.elbo(x, 2, estimator="B")


# Models of images alone, and labels


def test_without_latents_the_bound_is_log_p():
    model, x = WithoutLatents(PixelCNN(**SMALL, **CONV)), images().float().round()
    bound = model(x, split=True)
    assert torch.equal(bound.distortion, -model.decoder().log_prob(x)) and bound.terms is None
    assert bound.rate.tolist() == [0.0] * 5 and torch.equal(model.elbo(x).value, bound.value)
    assert model.sample(7).shape == (7, *SHAPE)


def test_labels_go_to_the_decoder():
    x, labels = images(3).float().round(), torch.tensor([0, 1, 2])
    alone = WithoutLatents(PixelCNN(**SMALL, **CONV, classes=3))
    given = alone.elbo(x, labels=labels)
    assert torch.equal(given.value, alone.decoder(labels=labels).log_prob(x))
    decoder = PixelCNN(2, **SMALL, **CONV, classes=3)
    vae = VAE(MLPEncoder(2, SHAPE, 6), StandardNormal(2), decoder)
    torch.manual_seed(0)
    given = vae.elbo(x, samples=4, labels=labels)
    torch.manual_seed(0)
    z = vae.encoder(x).rsample((4,))
    expected = -decoder(z, labels.expand(4, 3)).log_prob(x).mean(0)
    torch.testing.assert_close(given.distortion, expected)
    for drawn in (
        alone.sample(3, labels=labels),
        vae.sample(3, labels=labels),
        vae.reconstruct(x, labels=labels),
    ):
        assert drawn.shape == (3, *SHAPE)


# What is refused


def normal(*shape, event_dims=1):
    return Fixed(DiagNormal(torch.zeros(shape), torch.ones(shape), event_dims))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"encoder": normal(4, 2)}, r"batch of encoder.*expected shape \(5,\), got \(4,\)"),
        ({"encoder": normal(5, 1)}, r"event of encoder.*expected shape \(2,\), got \(1,\)"),
        ({"prior": normal(5, 2)}, r"batch of prior.*expected shape \(\), got \(5,\)"),
        ({"decoder": normal(5, *SHAPE, event_dims=3)}, "batch of decoder"),
        ({"decoder": normal(2, 5, 1, 4, 1, event_dims=3)}, "images"),
    ],
)
def test_slots_that_would_broadcast_are_refused(change, message):
    vae = small_vae().float()
    slots = {"encoder": vae.encoder, "prior": vae.prior, "decoder": vae.decoder} | change
    with pytest.raises(ValueError, match=message):
        VAE(**slots).elbo(images().float(), samples=2)


ALONE = WithoutLatents(PixelCNN(**SMALL, **CONV, classes=3))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda v, x: v.elbo(x, samples=0), ValueError, "samples >= 1, got 0"),
        (lambda v, x: v.elbo(x, estimator="C"), ValueError, "'auto', 'A' or 'B', got 'C'"),
        (lambda v, x: v.sample(0), ValueError, "n >= 1, got 0"),
        (lambda v, x: v.elbo(x * math.nan), ValueError, "expected finite loc, got nan"),
        (lambda v, x: v.elbo(x + 1), ValueError, r"expected values in \[0, 1\], got 1.0"),
        (lambda v, x: v.elbo(x[:0]), ValueError, "at least one, got"),
        (lambda v, x: v.elbo(x.numpy()), TypeError, r"got numpy.ndarray.*as_tensors\(x\)"),
        (lambda v, x: v.elbo(x.half()), TypeError, r"got torch.float16.*x.float\(\)"),
        (lambda v, x: v.elbo(x.byte()), TypeError, r"got torch.uint8.*x.float\(\) / 255"),
        (lambda v, x: v.elbo(x.float()), TypeError, "expected torch.float64, .* got torch.float32"),
        (lambda v, x: ALONE.elbo(x.half()), TypeError, r"got torch.float16.*x.float\(\)"),
        (lambda v, x: ALONE.sample(0), ValueError, "n >= 1, got 0"),
        (
            lambda v, x: ALONE.elbo(x.float().round(), labels=torch.tensor([0, 1])),
            ValueError,
            r"batch of decoder\(\): expected shape \(5,\), got \(2,\)",
        ),
    ],
)
def test_bad_arguments_are_refused(call, error, message):
    with pytest.raises(error, match=message):
        call(small_vae(), images())


near = st.sampled_from([(3, *SHAPE), (1, *SHAPE), (0, *SHAPE), SHAPE, (3, 4, 3), (3, 1, 4, 5)])
dtypes = st.sampled_from("float32 float64 float16 bfloat16 int64 bool complex64".split())
specials = st.sampled_from([None, math.nan, math.inf, -math.inf, 1e30, -0.5, 1.5])
FUZZED = {
    "bernoulli": lambda: small_vae().float(),
    "gaussian": lambda: small_vae(decoder=GaussianMLP).float(),
    "δ-VAE": lambda: VAE(ENCODERS["sequential"](), PRIORS["AR1"](), DECODERS["gated"]()),
    "auxiliary": lambda: VAE(
        *(
            d[k]()
            for d, k in zip((ENCODERS, PRIORS, DECODERS), ("sequential", "auxiliary", "pixelcnn"))
        )
    ),
    "alone": lambda: WithoutLatents(PixelSNAIL(**SMALL, blocks=1, residuals=1)),
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
        bound = FUZZED[kind]().elbo(x)
    except (TypeError, ValueError) as error:
        assert "expected" in str(error)
        good = x.dtype == torch.float32 and x.dim() == 4 and x.shape[1:] == SHAPE and len(x) > 0
        assert not (good and bool(((x >= 0) & (x <= 1)).all())), "refused good images"
        return
    assert x.shape[-3:] == SHAPE  # one image without a batch is welcome, too
    assert bound.distortion.shape == bound.rate.shape == x.shape[:-3]
    usual = (x.abs() <= 1e6).flatten(-3).all(-1)  # the density of others may be e^−∞
    assert bound.value[usual].isfinite().all() and (bound.value[~usual] < -1e6).all()


# bfloat16: the networks compute in it, the bound does not

GREY = torch.tensor(load_digits().images[:200] / 16).float().unsqueeze(1)  # 8 × 8, 17 levels
ROWS, SIDE = (8, 2), (1, 8, 8)
LIKELIHOODS = {"bernoulli": 2, "categorical": 17, "logistic_mixture": 17}
AUTOCAST = [BernoulliMLP, GaussianMLP]
AUTOCAST += [(kind, one) for kind in (PixelCNN, GatedPixelCNN, PixelSNAIL) for one in LIKELIHOODS]


def decoder_and_images(kind):
    if not isinstance(kind, tuple):
        return kind(ROWS, SIDE, 50), GREY
    kind, likelihood = kind
    more = {"blocks": 1, "residuals": 2} if kind is PixelSNAIL else CONV | {"layers": 2}
    more |= {"likelihood": likelihood, "levels": LIKELIHOODS[likelihood], "mixtures": 3}
    x = GREY.round() if likelihood == "bernoulli" else GREY
    return kind(ROWS, SIDE, 8, context=4, **more), x


@pytest.mark.parametrize("kind", AUTOCAST, ids=str)
def test_the_bound_under_autocast_is_that_of_float32(kind):
    """After some training: at a random start every logit is near zero, and any arithmetic does."""
    decoder, x = decoder_and_images(kind)
    encoder = AntiCausalEncoder(2, SIDE, SequentialPosterior(ALPHA, 8), 8, 1, 3)
    vae = VAE(encoder, AR1Prior(ALPHA, 8), decoder)
    optimizer = torch.optim.Adam(vae.parameters(), lr=1e-2)
    for _ in range(40):
        optimizer.zero_grad()
        (-vae(x[:50]).value.mean()).backward()
        optimizer.step()
    bounds, gradients = [], []
    for half in (False, True):
        vae.zero_grad()
        torch.manual_seed(1)
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            bounds.append(vae(x))
        bounds[-1].value.mean().backward()
        gradients.append(torch.cat([p.grad.flatten() for p in vae.parameters()]))
    full, half = (bound.value.mean() for bound in bounds)
    assert all(part.dtype == torch.float32 and part.isfinite().all() for part in bounds[1])
    assert (half - full).abs() < 1e-3 * full.abs() and half != full
    assert torch.cosine_similarity(*gradients, dim=0) > 0.99


@pytest.mark.parametrize("kind", AUTOCAST, ids=str)
def test_images_are_never_rounded(kind):
    """Without weights a network is exact in any type; a rounded grey level would show."""
    decoder, x = decoder_and_images(kind)
    with torch.no_grad():
        for parameter in decoder.parameters():
            parameter.zero_()
        for name, parameter in decoder.named_parameters():
            if name.startswith("pixels") and parameter.dim() == 1:
                parameter.normal_()
    z = torch.randn(len(x), *ROWS)
    expected = decoder(z).log_prob(x)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(decoder(z).log_prob(x), expected)
