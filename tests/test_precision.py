"""Half precision: a trained model's bound under autocast is that of float32, within 0.1 %.

A network in bfloat16 rounds every number to 8 bits, a relative error of 0.4 %; what keeps the
bound right is that the errors of many pixels cancel, and that log probabilities are computed in
float32. The models are trained for a moment: at their random start every logit is near zero, and
any arithmetic would do.
"""

from functools import partial

import pytest
import torch
from torch.distributions import kl_divergence

from vaelib import VAE, data
from vaelib.autoregressive import AutoregressiveImage
from vaelib.decoders import BernoulliMLP, GaussianMLP
from vaelib.distributions import AR1, DiagNormal, PixelBernoulli, committed_rate
from vaelib.encoders import AntiCausalEncoder, MLPEncoder
from vaelib.engine import Fabric, engine
from vaelib.learning import auxiliary_prior_step
from vaelib.pixelcnn import GatedPixelCNN, PixelCNN, PixelSNAIL
from vaelib.pixels import CategoricalPixels, LogisticMixturePixels
from vaelib.posteriors import IndependentPosterior, SequentialPosterior
from vaelib.precision import precise
from vaelib.priors import AR1Prior, AuxiliaryPrior, StandardNormal
from vaelib.training import adam, fit
from vaelib.vae import WithoutLatents

HALVES = [torch.bfloat16, torch.float16]
ALPHA = torch.tensor([0.5, 0.9])
TINY = {"channels": 8, "context": 4}
CONV = {"layers": 2, "kernel": 3, "first_kernel": 3}


def digits():
    """400 digits, 14 × 14, grey."""
    return data.downsample(data.mnist("5k").train[:400])


def colours(levels=256):
    """Smooth colour images of few pixels, made of waves."""
    generator = torch.Generator().manual_seed(0)
    phase = 6.3 * torch.rand(200, 3, 1, 1, generator=generator)
    i, j = torch.arange(8.0).view(8, 1), torch.arange(8.0)
    waves = (1 + torch.sin(phase + i * torch.rand(200, 3, 1, 1, generator=generator) + 0.3 * j)) / 2
    return (waves * (levels - 1)).round() / (levels - 1)


def mlp(decoder):
    return VAE(MLPEncoder(8, (1, 14, 14), 50), StandardNormal(8), decoder(8, (1, 14, 14), 50))


def delta_vae(kind, **more):
    encoder = AntiCausalEncoder(2, (1, 14, 14), SequentialPosterior(ALPHA, 14), channels=8)
    return VAE(encoder, AR1Prior(ALPHA, 14), kind((14, 2), (1, 14, 14), **TINY, **more))


def alone(likelihood, kind=GatedPixelCNN, **more):
    more = (CONV if kind is not PixelSNAIL else {}) | more
    return WithoutLatents(kind(None, (3, 8, 8), **TINY, likelihood=likelihood, **more))


MODELS = {
    "bernoulli mlp": (partial(mlp, BernoulliMLP), digits),
    "gaussian mlp": (partial(mlp, GaussianMLP), digits),
    "pixelcnn": (partial(delta_vae, PixelCNN, **CONV), lambda: digits().round()),
    "gated": (partial(delta_vae, GatedPixelCNN, **CONV), lambda: digits().round()),
    "pixelsnail": (partial(delta_vae, PixelSNAIL), lambda: digits().round()),
    "categorical": (partial(alone, "categorical", levels=32), partial(colours, 32)),
    "mixture": (partial(alone, "logistic_mixture", mixtures=3), colours),
    "mixture, pixelsnail": (partial(alone, "logistic_mixture", PixelSNAIL), colours),
}


@pytest.fixture(scope="module")
def trained():
    """Each model after a moment of training, made when it is first asked for."""
    made = {}

    def get(name):
        if name not in made:
            make, load = MODELS[name]
            torch.manual_seed(0)
            model, x = make(), load()
            optimizer = partial(adam, lr=5e-3)
            fit(model, x, epochs=6, batch_size=50, optimizer=optimizer, progress=False)
            made[name] = model.eval(), x[:200]
        return made[name]

    return get


def bound(model, x, dtype=None):
    torch.manual_seed(0)
    with torch.no_grad(), torch.autocast("cpu", dtype, enabled=dtype is not None):
        return model.elbo(x)


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("name", MODELS)
def test_the_bound_is_that_of_float32(trained, name, dtype):
    model, x = trained(name)
    full, half = bound(model, x), bound(model, x, dtype)
    for part in half:
        assert part.dtype == torch.float32 and part.isfinite().all()
    scale = full.value.mean().abs()
    assert (half.value.mean() - full.value.mean()).abs() < 1e-3 * scale
    assert not torch.equal(half.value, full.value)  # the network did run in half precision


@pytest.mark.parametrize("dtype", HALVES)
def test_gradients_are_finite_and_point_the_same_way(trained, dtype):
    model, x = trained("gated")
    gradients = []
    for one in (None, dtype):
        model.zero_grad()
        torch.manual_seed(0)
        with torch.autocast("cpu", one, enabled=one is not None):
            value = model.elbo(x[:50]).value.mean()
        value.backward()
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
    assert gradients[1].isfinite().all()
    assert torch.cosine_similarity(*gradients, dim=0) > 0.99


def test_training_in_half_precision_keeps_weights_and_bounds_in_full():
    """The engine's bf16: a few updates away from float32 by less than 1 % of what was gained."""
    rows = []
    for precision in ("32-true", "bf16-mixed"):
        torch.manual_seed(0)
        model = delta_vae(PixelSNAIL)
        fabric = engine(precision, "cpu")
        history = fit(
            model, digits().round(), epochs=3, batch_size=50, fabric=fabric, progress=False
        )
        rows.append(history["train_bound"])
        assert {p.dtype for p in model.parameters()} == {torch.float32}
    gained = rows[0][-1] - rows[0][0]
    assert gained > 10
    assert abs(rows[1][-1] - rows[0][-1]) < 0.01 * gained
    assert rows[1] != rows[0]


@pytest.mark.parametrize("dtype", HALVES)
def test_the_committed_rate_holds_in_half_precision(trained, dtype):
    model, x = trained("gated")
    assert (bound(model, x, dtype).rate >= committed_rate(ALPHA, 14) - 1e-4).all()


@pytest.mark.parametrize("dtype", HALVES)
def test_an_auxiliary_prior_in_half_precision(dtype):
    torch.manual_seed(0)
    vae, prior, x = delta_vae(GatedPixelCNN, **CONV), AuxiliaryPrior(2, 14, 8), digits()[:50]
    rates = []
    for one in (None, dtype):
        torch.manual_seed(1)
        with torch.autocast("cpu", one, enabled=one is not None):
            optimizer = torch.optim.SGD(prior.parameters(), lr=0.0)
            rates.append(auxiliary_prior_step(vae, prior, x, optimizer).mean())
    assert rates[1] == pytest.approx(rates[0].item(), rel=1e-3)


@pytest.mark.parametrize("dtype", HALVES)
def test_distributions_of_half_precision_numbers_are_float32(dtype):
    """float16 ends at 65,504: these sums are beyond it."""
    loc, scale = torch.full((2, 600), 8.0, dtype=dtype), torch.full((2, 600), 0.5, dtype=dtype)
    q, p = DiagNormal(loc, scale), DiagNormal(torch.zeros(600), torch.full((600,), 0.5))
    expected = kl_divergence(DiagNormal(loc.double(), scale.double()), p)
    assert expected[0] > 65_504
    torch.testing.assert_close(kl_divergence(q, p).double(), expected, rtol=1e-6, atol=0)
    assert q.rsample().dtype == torch.float32
    logits = torch.full((2, 1, 28, 28), -100.0, dtype=dtype)
    log_prob = PixelBernoulli(logits).log_prob(torch.ones(2, 1, 28, 28))
    torch.testing.assert_close(log_prob, torch.full((2,), -78_400.0))
    raw = torch.full((2, 4, 4), 30.0, dtype=dtype)
    for family, prior in (
        (SequentialPosterior(ALPHA, 4), AR1(ALPHA, 4)),
        (IndependentPosterior(0.1, (4, 2)), StandardNormal((4, 2))()),
    ):
        half, full = family(raw), family(raw.float())
        assert torch.equal(kl_divergence(half, prior), kl_divergence(full, prior))


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("kind", [LogisticMixturePixels, CategoricalPixels])
def test_pixels_are_scored_outside_autocast(kind, dtype):
    """A mean rounded to bfloat16 is off by half a grey level: the last layer must not be."""
    torch.manual_seed(0)
    decoder = GatedPixelCNN(
        None,
        (3, 4, 4),
        likelihood={LogisticMixturePixels: "logistic_mixture"}.get(kind, "categorical"),
        **TINY,
        **CONV,
    )
    seen = []
    hook = lambda module, inputs, output: seen.append(output.dtype)  # noqa: E731
    for module in decoder.pixels.modules():
        if isinstance(module, torch.nn.Linear):
            module.register_forward_hook(hook)
    with torch.autocast("cpu", dtype):
        decoder().log_prob(torch.ones(2, 3, 4, 4))
    assert seen and set(seen) == {torch.float32}


def test_training_in_half_precision_scores_the_images_themselves(monkeypatch):
    """A grey level rounded to bfloat16 is another grey level."""
    scored, score = [], AutoregressiveImage.log_prob
    monkeypatch.setattr(
        AutoregressiveImage, "log_prob", lambda self, x: scored.append(x) or score(self, x)
    )
    torch.manual_seed(0)
    images = torch.randint(256, (4, 3, 4, 4)) / 255
    decoder = GatedPixelCNN(None, (3, 4, 4), likelihood="logistic_mixture", **TINY, **CONV)
    brought_along = Fabric(accelerator="cpu", devices=1, precision="bf16-mixed")
    for fabric in (engine("bf16-mixed", "cpu"), brought_along):
        fit(WithoutLatents(decoder), images, epochs=1, progress=False, fabric=fabric)
    assert len(scored) == 2
    for x in scored:
        assert x.dtype == torch.float32
        levels = 255 * x.double()
        torch.testing.assert_close(levels, levels.round(), rtol=0, atol=1e-4)


def test_only_half_precision_is_widened():
    for dtype in (torch.float32, torch.float64, torch.int64):
        x = torch.ones(3, dtype=dtype)
        assert precise(x) is x
    assert precise(torch.ones(3, dtype=torch.float16)).dtype == torch.float32
