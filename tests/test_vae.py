"""The bound and its three slots: exact answers, finite differences, and every pair of slots."""

import copy
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.datasets import load_digits
from torch import distributions as td
from torch import nn

from vaelib import VAE, WithoutLatents
from vaelib.decoders import BernoulliMLP, GaussianMLP, VariationalWeights
from vaelib.distributions import DiagNormal, committed_rate, kl_terms
from vaelib.encoders import AntiCausalEncoder, MLPEncoder
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


def test_reparameterised_gradients_have_the_mean_of_the_score_function():
    """∇ E_q[f(z)] = E[∇ f(μ + σε)] = E[f(z) ∇ ln q(z)], by draws of each."""
    decoder, x, n = small_vae().decoder, images(1), 100_000
    with torch.no_grad():
        decoder.network[-1].weight *= 10
    parameters = torch.tensor([0.5, -1.0, 0.7, 1.3]).double().expand(n, 4).requires_grad_()
    q, gradients = DiagNormal(*parameters.chunk(2, 1)), []
    path = decoder(q.rsample()).log_prob(x)
    z = q.sample()
    f = decoder(z).log_prob(x).detach()
    for surrogate in (path, (f - f.mean()) * q.log_prob(z)):
        gradients.append(torch.autograd.grad(surrogate.sum(), parameters)[0])
    (path, score), (a, b) = ([g.mean(0) for g in gradients], [g.var(0) / n for g in gradients])
    assert ((path - score).abs() < 4.5 * (a + b).sqrt()).all()
    assert (path.abs() > 10 * a.sqrt()).all()  # and they are not zero


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


@pytest.mark.parametrize("latents", [None, 2])
def test_draws_do_not_depend_on_the_mode_and_restore_it(latents):
    def draws(dropout, mode):
        torch.manual_seed(0)
        snail = PixelSNAIL(latents, **SMALL, **BLOCK, dropout=dropout)
        for parameter in snail.parameters():
            nn.init.normal_(parameter, std=0.5)
        vae = VAE(MLPEncoder(2, SHAPE, 6), StandardNormal(2), snail)
        model = (vae if latents else WithoutLatents(snail)).train(mode)
        drawn = [model.sample(9)] + ([vae.reconstruct(images(9).float())] if latents else [])
        assert all(module.training == mode for module in model.modules())
        return torch.stack(drawn)

    plain = draws(0.0, False)
    assert torch.equal(draws(0.5, True), plain) and torch.equal(draws(0.5, False), plain)


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
    "snail": lambda: PixelSNAIL((4, 2), **SMALL, **BLOCK),
    "uncertain gated": lambda: VariationalWeights(GatedPixelCNN((4, 2), **SMALL, **CONV), 0.1),
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
    close(given.distortion, expected)
    drawn = [model.sample(3, labels=labels) for model in (alone, vae)]
    assert all(one.shape == x.shape for one in (*drawn, vae.reconstruct(x, labels=labels)))


ALONE, TWO = WithoutLatents(PixelCNN(**SMALL, **CONV, classes=3)), torch.tensor([0, 1])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        # Slots that would broadcast.
        (lambda v, x: VAE(batch(4, 2), v.prior, v.decoder).elbo(x), r"batch of encoder.*\(4,\)"),
        (lambda v, x: VAE(batch(5, 1), v.prior, v.decoder).elbo(x), r"event of encoder.*\(1,\)"),
        (lambda v, x: VAE(v.encoder, batch(5, 2), v.decoder).elbo(x), r"batch of prior.*\(5,\)"),
        (lambda v, x: VAE(v.encoder, v.prior, batch(5, *SHAPE)).elbo(x, 2), "batch of decoder"),
        (lambda v, x: VAE(v.encoder, v.prior, batch(5, 1, 4, 1)).elbo(x), "images"),
        (lambda v, x: v.elbo(x, samples=0), "samples >= 1, got 0"),
        (lambda v, x: v.elbo(x, estimator="C"), "'auto', 'A' or 'B', got 'C'"),
        (lambda v, x: v.sample(0), "n >= 1, got 0"),
        (lambda v, x: v.elbo(x * math.nan), "expected finite loc, got nan"),
        (lambda v, x: v.elbo(x + 1), r"expected values in \[0, 1\], got 1.0"),
        (lambda v, x: v.elbo(x[:0]), "at least one, got"),
        (lambda v, x: v.elbo(x.numpy()), r"got numpy.ndarray.*as_tensors\(x\)"),
        (lambda v, x: v.elbo(x.half()), r"got torch.float16.*x.float\(\)"),
        (lambda v, x: v.elbo(x.byte()), r"got torch.uint8.*x.float\(\) / 255"),
        (lambda v, x: v.elbo(x.float()), "expected torch.float64, .* got torch.float32"),
        (lambda v, x: ALONE.elbo(x.half()), r"got torch.float16.*x.float\(\)"),
        (lambda v, x: ALONE.sample(0), "n >= 1, got 0"),
        (lambda v, x: ALONE.elbo(x.float().round(), labels=TWO), r"decoder\(\).*\(5,\), got \(2,"),
    ],
)
def test_bad_arguments_are_refused(call, message):
    with pytest.raises((TypeError, ValueError), match=message):
        call(small_vae(), images())


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
GREY = torch.tensor(load_digits().images[:60] / 16).float().unsqueeze(1)  # 8 × 8, 17 levels
ROWS, SIDE = (8, 2), (1, 8, 8)
LEVELS = {"bernoulli": 2, "categorical": 17, "logistic_mixture": 17}
AUTOCAST = [(BernoulliMLP, None), (GaussianMLP, None)]
AUTOCAST += [(kind, one) for kind in (PixelCNN, GatedPixelCNN, PixelSNAIL) for one in LEVELS]
autocast = pytest.mark.parametrize(("kind", "likelihood"), AUTOCAST)


def decoder_and_images(kind, likelihood):
    if likelihood is None:
        return kind(ROWS, SIDE, 50), GREY
    more = {"blocks": 1, "residuals": 2} if kind is PixelSNAIL else CONV | {"layers": 2}
    more |= {"likelihood": likelihood, "levels": LEVELS[likelihood], "mixtures": 3}
    x = GREY.round() if likelihood == "bernoulli" else GREY
    return kind(ROWS, SIDE, 8, context=4, **more), x


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
    for half in (False, True):
        vae.zero_grad()
        torch.manual_seed(1)
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            bounds.append(vae(x))
        bounds[-1].value.mean().backward()
        gradients.append(torch.cat([p.grad.flatten() for p in vae.parameters()]))
    full, half = (bound.value.mean() for bound in bounds)
    assert all(part.dtype == torch.float32 and part.isfinite().all() for part in bounds[1])
    assert (bounds[1].rate >= committed_rate(ALPHA, 8) - 1e-4).all()
    assert (half - full).abs() < 1e-3 * full.abs() and half != full
    assert torch.cosine_similarity(*gradients, dim=0) > 0.99


@autocast
def test_images_are_never_rounded(kind, likelihood):
    """Without weights a network is exact in any type; a rounded grey level would show."""
    decoder, x = decoder_and_images(kind, likelihood)
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
