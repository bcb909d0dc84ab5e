"""Likelihoods of one pixel: exhaustive sums, the papers' formulas, and draws against them."""

import itertools
import math

import numpy as np
import pytest
import torch

from vaelib.pixelcnn.likelihoods import (
    BernoulliPixels,
    CategoricalPixels,
    LogisticMixturePixels,
    discretized_logistic,
    inverse_cdf,
)

FEATURES = 6
kinds = pytest.mark.parametrize("kind", [BernoulliPixels, CategoricalPixels, LogisticMixturePixels])


def likelihood(kind, channels, levels=2):
    """One with random weights, so that no channel and no level is like another."""
    torch.manual_seed(0)
    settings = {} if kind is BernoulliPixels else {"levels": levels}
    made = kind(FEATURES, channels, **settings).double()
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.7)
    return made


def all_pixels(channels, levels):
    steps = itertools.product(range(levels), repeat=channels)
    return torch.tensor(list(steps)).double() / (levels - 1)


CASES = [
    *[(BernoulliPixels, channels, 2) for channels in (1, 3)],
    *[(CategoricalPixels, *sizes) for sizes in [(1, 256), (2, 256), (3, 5)]],
    *[(LogisticMixturePixels, *sizes) for sizes in [(1, 256), (2, 256), (3, 2), (3, 5)]],
]


@pytest.mark.parametrize(("kind", "channels", "levels"), CASES)
def test_probabilities_of_all_pixels_sum_to_one(kind, channels, levels):
    pixels, made = all_pixels(channels, levels), likelihood(kind, channels, levels)
    for features in torch.randn(3, FEATURES).double():
        log_prob = made.log_prob(features.expand(len(pixels), -1), pixels)
        assert log_prob.exp().sum().item() == pytest.approx(1, abs=1e-12)


@kinds
def test_a_draw_of_a_channel_depends_on_no_later_one(kind):
    """Another number for channel c leaves the channels before as they were, and moves all others,
    which get the same numbers: each depends on the channels before."""
    made = likelihood(kind, 3, 2 if kind is BernoulliPixels else 256)
    features = torch.randn(200, FEATURES).double()
    uniforms = torch.rand(200, made.uniforms).double()
    first = made.draw(features, uniforms)
    for c in range(3):
        others = uniforms.clone()
        others[:, made.uniforms - 3 + c] = torch.rand(200).double()
        changed = (made.draw(features, others) != first).any(0).tolist()
        assert changed == [False] * c + [True] * (3 - c)


@kinds
@pytest.mark.parametrize("channels", [1, 3])
def test_draws_have_the_probabilities_that_are_scored(kind, channels):
    levels = 2 if kind is BernoulliPixels else 3
    pixels, made, n = all_pixels(channels, levels), likelihood(kind, channels, levels), 200_000
    features = torch.randn(FEATURES).double()
    drawn = made.draw(features.expand(n, -1), torch.rand(n, made.uniforms).double())
    made.check(drawn)
    place = levels ** torch.arange(channels - 1, -1, -1)
    index = ((drawn * (levels - 1)).round().long() * place).sum(-1)
    found = index.bincount(minlength=len(pixels)) / n
    expected = made.log_prob(features.expand(len(pixels), -1), pixels).exp()
    # Four and a half standard errors: with 80 numbers in all, a false alarm in 2,000 seeds.
    assert ((found - expected).abs() < 4.5 * (expected * (1 - expected) / n).sqrt()).all()


@pytest.mark.parametrize("levels", [2, 3, 16, 256, 300])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 2e-5)])
def test_discretized_logistic_is_exact_at_the_extremes(levels, dtype, tolerance):
    """Means far outside and on the levels, scales from one level in e⁻⁷ to flat."""
    x = torch.linspace(-1, 1, levels, dtype=dtype)
    means = torch.tensor([-50, -1, -0.4, 0.123, 0.999, 1, 50], dtype=dtype)
    grid = torch.cartesian_prod(means, torch.linspace(-7, 7, 15, dtype=dtype)).requires_grad_()
    log_prob = discretized_logistic(x, *grid.split(1, 1), levels)  # (parameters, levels)
    exact = discretized_logistic(x.double(), *grid.double().split(1, 1), levels)
    torch.testing.assert_close(log_prob.double(), exact, rtol=1e-5, atol=1e-3)
    total = log_prob.exp().sum(1)  # float32 rounds each probability to 6e-8 of its two logarithms
    torch.testing.assert_close(total, torch.ones_like(total), rtol=0, atol=tolerance)
    log_prob.sum().backward()
    assert log_prob.isfinite().all() and (log_prob <= 0).all() and grid.grad.isfinite().all()


def test_logistic_mixture_is_the_papers_formula():
    """Components, channels and slopes again, one number at a time."""
    made = likelihood(LogisticMixturePixels, 3, 256)
    features, pixel = torch.randn(FEATURES).double(), torch.tensor([0, 100, 255]).double() / 255
    raw = made.components(features).view(10, -1)
    r, g, b = (2 * pixel - 1).tolist()
    total = 0
    for k, weight in enumerate(raw[:, 0].softmax(0)):
        mean, log_scale = raw[k, 1:4], raw[k, 4:7]
        g_r, b_r, b_g = raw[k, 7:].tanh()
        means = [mean[0], mean[1] + g_r * r, mean[2] + b_r * r + b_g * g]
        for c, x in enumerate((r, g, b)):
            scaled = [(x + side / 255 - means[c]) / log_scale[c].exp() for side in (-1, 1)]
            lower = 0 if x == -1 else scaled[0].sigmoid()
            upper = 1 if x == 1 else scaled[1].sigmoid()
            weight = weight * (upper - lower)
        total = total + weight
    torch.testing.assert_close(made.log_prob(features, pixel), total.log())


def test_scales_are_kept_between_e_to_the_minus_7_and_7():
    made, x = LogisticMixturePixels(2, 1, mixtures=1).double(), all_pixels(1, 256)
    torch.nn.init.zeros_(made.components.weight)
    for raw, log_scale in [(-30, -7), (-6.9, -6.9), (-2, -2), (6.9, 6.9), (30, 7)]:
        made.components.bias.data.copy_(torch.tensor([0.0, 0.1, raw]))
        mean, expected = made.components.bias[1].detach(), torch.tensor(log_scale).double()
        expected = discretized_logistic(2 * x - 1, mean, expected, 256).squeeze(1)
        torch.testing.assert_close(made.log_prob(torch.zeros(256, 2).double(), x), expected)


def test_bernoulli_pixels_are_the_formula():
    made, features = likelihood(BernoulliPixels, 3), torch.randn(FEATURES).double()
    x, v = torch.tensor([1.0, 0.0, 1.0]).double(), made.previous
    seen = torch.stack([torch.zeros(()), v[1, 0], v[2, 0] - v[2, 1]])
    p = (made.logits(features) + seen).sigmoid()
    expected = p[0].log() + (1 - p[1]).log() + p[2].log()
    torch.testing.assert_close(made.log_prob(features, x), expected)


def test_categorical_pixels_are_the_formula():
    """Three channels: logits from a table of embeddings, one row for each level of each before."""
    made, features = likelihood(CategoricalPixels, 3, 5), torch.randn(FEATURES).double()
    steps, expected = [4, 0, 2], 0
    for c in range(3):
        hidden = made.hidden[c](features)
        for before in range(c):
            hidden = hidden + made.previous[c - 1].weight[5 * before + steps[before]]
        expected = expected + made.out[c](torch.nn.functional.elu(hidden)).log_softmax(0)[steps[c]]
    found = made.log_prob(features, torch.tensor(steps).double() / 4)
    torch.testing.assert_close(found, expected)


def test_inverse_cdf_reaches_the_first_and_the_last_index():
    log_probs = torch.tensor([0.25, 0.0, 0.5, 0.25]).log()
    uniforms = torch.tensor([0.0, 0.2, 0.25, 0.7, 0.75, 1 - 2**-24])
    found = inverse_cdf(log_probs.expand(6, -1), uniforms)
    assert found.tolist() == [0, 0, 2, 2, 3, 3]  # never the impossible index 1
    short = torch.full((3,), math.log(0.333))  # sums to 0.999, as rounding may
    assert inverse_cdf(short, torch.tensor(0.9995)).item() == 2


@kinds
def test_extreme_uniform_numbers_give_pixels(kind):
    made = likelihood(kind, 3, 256).float()
    for uniform in (0.0, 1 - 2**-24):
        made.check(made.draw(torch.randn(2, FEATURES), torch.full((2, made.uniforms), uniform)))


@kinds
def test_half_precision_features_are_scored_in_full(kind):
    made, features = kind(FEATURES, 1).bfloat16(), torch.randn(3, FEATURES, dtype=torch.bfloat16)
    assert made.log_prob(features, torch.ones(3, 1)).dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_exactly_the_levels_are_pixels(dtype):
    pixels, steps = CategoricalPixels(FEATURES), torch.arange(256)
    pixels.check(steps.to(dtype) / 255)
    pixels.check(steps.to(dtype) * (1 / 255))
    near = [1.1 / 255, 254.95 / 255, 26 / 256]
    for value in [-1 / 255, 256 / 255, 0.5, *near, math.nan, math.inf]:
        with pytest.raises(ValueError, match=r"expected pixels k/255 with k = 0 … 255, got"):
            pixels.check(torch.tensor([[0.0], [value]], dtype=dtype))


def test_bad_sizes_are_refused_and_numpys_accepted():
    for make, named in [
        (lambda: CategoricalPixels(FEATURES, 1, levels=1), ">= 2 as levels, got 1"),
        (lambda: BernoulliPixels(FEATURES, 0), ">= 1 as channels, got 0"),
        (lambda: LogisticMixturePixels(FEATURES, 3, mixtures=0), ">= 1 as mixtures, got 0"),
    ]:
        with pytest.raises(ValueError, match=named):
            make()
    made = LogisticMixturePixels(FEATURES, np.int64(3), np.int64(5), np.int64(2))
    assert made.log_prob(torch.zeros(FEATURES), torch.ones(3)).isfinite()
