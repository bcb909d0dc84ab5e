"""Likelihoods of one pixel: exhaustive sums, the papers' formulas, and draws against them."""

import itertools
import math

import pytest
import torch

from vaelib.pixels import (
    BernoulliPixels,
    CategoricalPixels,
    LogisticMixturePixels,
    discretized_logistic,
    inverse_cdf,
)

FEATURES = 6


def likelihood(kind, channels, levels=2, seed=0):
    """One with random weights, so that no channel and no level is like another."""
    torch.manual_seed(seed)
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
    *[(CategoricalPixels, channels, levels) for channels, levels in [(1, 256), (2, 256), (3, 5)]],
    *[(LogisticMixturePixels, channels, levels) for channels, levels in [(1, 256), (2, 256)]],
    *[(LogisticMixturePixels, 3, levels) for levels in (2, 5)],
]


@pytest.mark.parametrize(("kind", "channels", "levels"), CASES)
def test_probabilities_of_all_pixels_sum_to_one(kind, channels, levels):
    pixels = all_pixels(channels, levels)
    made = likelihood(kind, channels, levels)
    for features in torch.randn(3, FEATURES).double():
        log_prob = made.log_prob(features.expand(len(pixels), -1), pixels)
        assert log_prob.exp().sum().item() == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("kind", [BernoulliPixels, CategoricalPixels, LogisticMixturePixels])
def test_every_channel_depends_on_each_before(kind):
    levels = 2 if kind is BernoulliPixels else 3
    pixels = all_pixels(3, levels)
    features = torch.zeros(len(pixels), FEATURES).double()
    log_prob = likelihood(kind, 3, levels).log_prob(features, pixels)
    joint = log_prob.exp().view(levels, levels, levels)
    second = joint.sum(2) / joint.sum((1, 2)).unsqueeze(-1)  # p(x2 | x1)
    third = joint / joint.sum(2, keepdim=True)  # p(x3 | x1, x2)
    assert (second[0] - second[1]).abs().max() > 1e-3
    assert (third[0, 0] - third[1, 0]).abs().max() > 1e-3
    assert (third[0, 0] - third[0, 1]).abs().max() > 1e-3
    assert (third[0, 1] - third[1, 0]).abs().max() > 1e-3  # the two are told apart


@pytest.mark.parametrize("kind", [BernoulliPixels, CategoricalPixels, LogisticMixturePixels])
def test_a_draw_of_a_channel_depends_on_no_later_one(kind):
    """Another number for channel c leaves the channels before as they were, and moves others."""
    made = likelihood(kind, 3, 2 if kind is BernoulliPixels else 256)
    features, uniforms = (
        torch.randn(200, FEATURES).double(),
        torch.rand(200, made.uniforms).double(),
    )
    first = made.draw(features, uniforms)
    for c in range(3):
        others = uniforms.clone()
        others[:, made.uniforms - 3 + c] = torch.rand(200).double()
        changed = (made.draw(features, others) != first).any(0).tolist()
        assert changed == [False] * c + [True] * (3 - c)


@pytest.mark.parametrize("kind", [BernoulliPixels, CategoricalPixels, LogisticMixturePixels])
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


def test_discretized_logistic_is_the_difference_of_two_sigmoids():
    x = torch.linspace(-1, 1, 256).double()
    mean, scale = torch.tensor([[-0.7], [0.1], [1.2]]).double(), torch.tensor(0.2).double()
    upper = ((x + 1 / 255 - mean) / scale).sigmoid()
    lower = ((x - 1 / 255 - mean) / scale).sigmoid()
    upper[:, -1], lower[:, 0] = 1, 0
    ours = discretized_logistic(x, mean, scale.log(), 256).exp()
    torch.testing.assert_close(ours, upper - lower)


@pytest.mark.parametrize("mean", [-50.0, -1.0, 0.123, 1.0, 50.0])
@pytest.mark.parametrize("log_scale", [-7.0, -3.0, 0.0, 7.0])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_discretized_logistic_is_exact_at_the_extremes(mean, log_scale, dtype, tolerance):
    x = torch.linspace(-1, 1, 256, dtype=dtype)
    parameters = torch.tensor([mean, log_scale], dtype=dtype, requires_grad=True)
    log_prob = discretized_logistic(x, parameters[0], parameters[1], 256)
    # float32 rounds each of 256 probabilities to 6e-8 of the two logarithms that make it.
    assert log_prob.exp().sum().item() == pytest.approx(1, abs=tolerance)
    log_prob.sum().backward()
    assert log_prob.isfinite().all() and parameters.grad.isfinite().all()


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


def test_bernoulli_pixels_are_a_cross_entropy():
    made = likelihood(BernoulliPixels, 1)
    features = torch.randn(7, FEATURES).double()
    p = made.logits(features).sigmoid().squeeze(-1)
    torch.testing.assert_close(made.log_prob(features, torch.ones(7, 1).double()), p.log())
    torch.testing.assert_close(made.log_prob(features, torch.zeros(7, 1).double()), (1 - p).log())


def test_inverse_cdf_reaches_the_first_and_the_last_index():
    log_probs = torch.tensor([0.25, 0.0, 0.5, 0.25]).log()
    uniforms = torch.tensor([0.0, 0.2, 0.25, 0.7, 0.75, 1 - 2**-24])
    found = inverse_cdf(log_probs.expand(6, -1), uniforms)
    assert found.tolist() == [0, 0, 2, 2, 3, 3]  # never the impossible index 1
    short = torch.full((3,), math.log(0.333))  # sums to 0.999, as rounding may
    assert inverse_cdf(short, torch.tensor(0.9995)).item() == 2


def test_extreme_uniform_numbers_give_pixels():
    made = likelihood(LogisticMixturePixels, 3, 256).float()
    for uniform in (0.0, 1 - 2**-24):
        x = made.draw(torch.randn(2, FEATURES), torch.full((2, 4), uniform))
        made.check(x)


def test_half_precision_features_are_scored_in_full():
    for kind in (BernoulliPixels, CategoricalPixels, LogisticMixturePixels):
        made = kind(FEATURES, 1).bfloat16()
        features = torch.randn(3, FEATURES, dtype=torch.bfloat16)
        assert made.log_prob(features, torch.ones(3, 1)).dtype == torch.float32


@pytest.mark.parametrize("value", [-1 / 255, 256 / 255, 0.5, float("nan"), float("inf")])
def test_values_that_are_no_levels_are_refused(value):
    x = torch.tensor([[0.0], [value]])
    with pytest.raises(ValueError, match=r"expected pixels k/255 with k = 0 … 255, got"):
        CategoricalPixels(FEATURES).check(x)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_every_level_is_accepted(dtype):
    steps = torch.arange(256)
    CategoricalPixels(FEATURES).check(steps.to(dtype) / 255)
    CategoricalPixels(FEATURES).check(steps.to(dtype) * (1 / 255))


def test_bad_settings_are_refused():
    with pytest.raises(ValueError, match="levels >= 2"):
        CategoricalPixels(FEATURES, 1, levels=1)
    with pytest.raises(ValueError, match="channels >= 1"):
        BernoulliPixels(FEATURES, 0)
    with pytest.raises(ValueError, match="mixtures >= 1"):
        LogisticMixturePixels(FEATURES, 3, mixtures=0)
