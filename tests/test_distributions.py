"""Densities and divergences against torch, against integrals and against Monte Carlo."""

import math

import pytest
import torch
from torch.distributions import Bernoulli, Independent, Laplace, Normal, kl_divergence

from vaelib.distributions import (
    AR1,
    DiagNormal,
    GreyBernoulli,
    PixelBernoulli,
    committed_rate,
    committed_variance,
)


def normals(batch, event, seed=0):
    torch.manual_seed(seed)
    shape = (*batch, *event)
    loc, scale = torch.randn(shape).double(), torch.rand(shape).double() + 0.3
    return DiagNormal(loc, scale, event_dims=len(event))


@pytest.mark.parametrize("event", [(3,), (4, 3), (1, 5, 2)])
def test_log_prob_entropy_and_moments_are_those_of_torch(event):
    ours = normals((6,), event)
    torchs = Independent(Normal(ours.loc, ours.scale), len(event))
    value = torch.randn(6, *event).double()
    torch.testing.assert_close(ours.log_prob(value), torchs.log_prob(value))
    torch.testing.assert_close(ours.entropy(), torchs.entropy())
    assert ours.batch_shape == (6,) and ours.event_shape == event


def test_density_integrates_to_one():
    q = DiagNormal(torch.tensor([0.3]).double(), torch.tensor([0.7]).double())
    grid = torch.linspace(-8, 8, 4001).double()
    density = q.log_prob(grid.unsqueeze(-1)).exp()
    assert torch.trapezoid(density, grid).item() == pytest.approx(1, abs=1e-10)


@pytest.mark.parametrize("event", [(3,), (4, 3)])
def test_kl_is_that_of_torch(event):
    q, p = normals((6,), event, 1), normals((), event, 2)
    torchs = [Independent(Normal(d.loc, d.scale), len(event)) for d in (q, p)]
    torch.testing.assert_close(kl_divergence(q, p), kl_divergence(*torchs))
    assert kl_divergence(q, p).shape == (6,)


def test_kl_is_its_monte_carlo_estimate():
    q, p = normals((4,), (3,), 1), normals((), (3,), 2)
    z = q.sample((200_000,))
    ratio = q.log_prob(z) - p.log_prob(z)
    standard_error = ratio.std(0) / math.sqrt(len(z))
    # Four standard errors: a false alarm in one of 16,000 comparisons.
    assert ((ratio.mean(0) - kl_divergence(q, p)).abs() < 4 * standard_error).all()


def test_kl_is_zero_only_for_equal_distributions():
    q = normals((4,), (3,))
    assert kl_divergence(q, q).abs().max() < 1e-14
    assert (kl_divergence(q, normals((4,), (3,), 9)) > 0).all()


def test_kl_to_the_standard_normal_is_appendix_b():
    q = normals((5,), (3,))
    p = DiagNormal(torch.zeros(3).double(), torch.ones(3).double())
    paper = -0.5 * (1 + q.scale.square().log() - q.loc.square() - q.scale.square()).sum(-1)
    torch.testing.assert_close(kl_divergence(q, p), paper)


def test_kl_refuses_events_that_would_broadcast():
    with pytest.raises(ValueError, match="expected equal event shapes"):
        kl_divergence(normals((4,), (1,)), normals((), (8,)))


def test_kl_rule_does_not_fire_for_other_families():
    laplace, p = Independent(Laplace(torch.zeros(3), torch.ones(3)), 1), normals((), (3,))
    torchs = kl_divergence(Laplace(torch.zeros(3), torch.ones(3)), Normal(p.loc, p.scale)).sum()
    torch.testing.assert_close(kl_divergence(laplace, p), torchs)
    with pytest.raises(NotImplementedError):
        kl_divergence(PixelBernoulli(torch.zeros(1, 1, 3), event_dims=1), p)


def test_expand_and_rsample():
    q = normals((), (3,))
    wide = q.expand((5,))
    assert wide.batch_shape == (5,) and isinstance(wide, DiagNormal)
    assert wide.rsample((2,)).shape == (2, 5, 3)
    value = torch.randn(3).double()
    torch.testing.assert_close(wide.log_prob(value), q.log_prob(value).expand(5))


def test_rsample_carries_gradients_to_both_parameters():
    loc = torch.zeros(3, requires_grad=True)
    scale = torch.ones(3, requires_grad=True)
    torch.manual_seed(0)
    z = DiagNormal(loc, scale).rsample()
    z.sum().backward()
    torch.testing.assert_close(loc.grad, torch.ones(3))
    torch.testing.assert_close(scale.grad, z.detach())  # z = 0 + 1·ε, dz/dσ = ε


@pytest.mark.parametrize("wrong", [(8, 28, 28), (8, 1, 28, 20), (28,)])
def test_log_prob_refuses_other_event_shapes(wrong):
    # torch's Independent broadcasts the first of these to an answer that means nothing.
    image = DiagNormal(torch.zeros(8, 1, 28, 28), torch.ones(8, 1, 28, 28), event_dims=3)
    binary = PixelBernoulli(torch.zeros(8, 1, 28, 28))
    for distribution in (image, binary):
        with pytest.raises(ValueError, match="expected a value of shape"):
            distribution.log_prob(torch.zeros(wrong))


@pytest.mark.parametrize("scale", [0.0, -1.0, float("nan")])
def test_bad_scales_are_refused(scale):
    with pytest.raises(ValueError):
        DiagNormal(torch.zeros(3), torch.full((3,), scale))


@pytest.mark.parametrize("event_dims", [0, 3])
def test_bad_event_dims_are_refused(event_dims):
    with pytest.raises(ValueError, match="event_dims"):
        DiagNormal(torch.zeros(2, 3), torch.ones(2, 3), event_dims)


def test_grey_bernoulli_is_bernoulli_on_bits():
    torch.manual_seed(0)
    logits = 3 * torch.randn(50).double()
    bits = (torch.rand(50) < 0.5).double()
    torch.testing.assert_close(
        GreyBernoulli(logits).log_prob(bits), Bernoulli(logits=logits).log_prob(bits)
    )


def test_grey_level_scores_the_expected_bit():
    logits = torch.tensor([-2.0, 0.3, 5.0]).double()
    grey = torch.tensor([0.25, 0.5, 0.9]).double()
    grey_bernoulli = GreyBernoulli(logits)
    expected = grey * grey_bernoulli.log_prob(torch.ones(3).double())
    expected += (1 - grey) * grey_bernoulli.log_prob(torch.zeros(3).double())
    torch.testing.assert_close(grey_bernoulli.log_prob(grey), expected)


def test_pixel_bernoulli_sums_to_one_over_all_images():
    torch.manual_seed(0)
    p = PixelBernoulli(torch.randn(1, 3, 3).double())
    bits = torch.arange(512).unsqueeze(-1).bitwise_and(2 ** torch.arange(9)).ne(0)
    images = bits.double().view(512, 1, 3, 3)
    assert p.log_prob(images).exp().sum().item() == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("value", [-0.01, 1.01, float("nan")])
def test_pixels_outside_the_unit_interval_are_refused(value):
    with pytest.raises(ValueError):
        PixelBernoulli(torch.zeros(2, 1, 3, 3)).log_prob(torch.full((2, 1, 3, 3), value))


def test_extreme_logits_stay_finite():
    p = PixelBernoulli(torch.full((1, 1, 2, 2), 1e4))
    assert p.log_prob(torch.zeros(1, 1, 2, 2)).item() == pytest.approx(-4e4)
    assert p.log_prob(torch.ones(1, 1, 2, 2)).item() == pytest.approx(0)
    wide = p.expand((3,))
    assert wide.batch_shape == (3,) and wide.sample().shape == (3, 1, 2, 2)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_logits_that_are_not_finite_are_refused(value):
    logits = torch.zeros(2, 1, 3, 3)
    logits[1, 0, 2, 2] = value
    with pytest.raises(ValueError, match="expected finite logits"):
        PixelBernoulli(logits)


@pytest.mark.parametrize(
    ("distribution", "value"),
    [
        (PixelBernoulli(torch.zeros(1, 3, 3)), torch.full((2, 1, 3, 3), 255.0)),
        (DiagNormal(torch.zeros(3), torch.ones(3)), torch.full((2, 3), float("nan"))),
        (AR1(torch.tensor([0.5]), 3), torch.full((2, 3, 1), float("nan"))),
    ],
)
def test_expanded_distributions_still_look_at_values(distribution, value):
    wide = distribution.expand((2,))
    for one in (distribution, wide, wide.expand((2,))):
        with pytest.raises(ValueError):
            one.log_prob(value)


@pytest.mark.parametrize(
    ("loc", "scale", "message"),
    [
        (float("nan"), 1.0, "expected finite loc, got nan"),
        (float("inf"), 1.0, "expected finite loc, got 0.0 to inf"),
        (-float("inf"), 1.0, "expected finite loc, got -inf to 0.0"),
        (0.0, float("inf"), "whose squares torch.float32 can hold, got 1.0 to inf"),
        (0.0, 1e-30, "whose squares torch.float32 can hold"),
        (0.0, 1e30, "whose squares torch.float32 can hold"),
        (0.0, 0.0, "expected scale > 0, got 0.0"),
        (0.0, -1.0, "expected scale > 0, got -1.0"),
        (0.0, float("nan"), "expected scale > 0, got nan"),
    ],
)
def test_one_bad_parameter_among_many_is_found(loc, scale, message):
    locs, scales = torch.zeros(4, 5), torch.ones(4, 5)
    locs[2, 3], scales[1, 4] = loc, scale
    with pytest.raises(ValueError, match=message):
        DiagNormal(locs, scales)
    DiagNormal(locs, scales, validate_args=False)


def test_the_finer_type_decides():
    """Half-precision, integer or boolean pixels under float32 logits: the answer is float32."""
    logits = torch.full((2, 1, 28, 28), -100.0)
    ones = torch.ones(2, 1, 28, 28)
    for value in (ones.half(), ones.bfloat16(), ones.to(torch.uint8), ones.long(), ones.bool()):
        found = PixelBernoulli(logits).log_prob(value)
        torch.testing.assert_close(found, torch.full((2,), -78_400.0))
    exact = PixelBernoulli(logits.double()).log_prob(ones)
    torch.testing.assert_close(exact, torch.full((2,), -78_400.0).double())
    assert PixelBernoulli(logits).log_prob(ones.double()).dtype == torch.float64


@pytest.mark.parametrize("event_dims", [0, -1, 4])
def test_an_image_has_dimensions(event_dims):
    with pytest.raises(ValueError, match="expected 1 <= event_dims"):
        PixelBernoulli(torch.zeros(2, 3, 3), event_dims)


def test_large_logits_are_finite_though_their_sum_is_not():
    p = PixelBernoulli(torch.full((1, 28, 28), 1e36))
    assert p.log_prob(torch.ones(1, 28, 28)).item() == 0


def test_ar1_computes_in_float32_at_least():
    """In bfloat16 the rate would come out below the least that is possible."""
    alpha = torch.linspace(0.5, 0.95, 8).bfloat16()
    q = DiagNormal(torch.zeros(32, 8), committed_variance(alpha, 32).sqrt(), 2)
    rate = kl_divergence(q, AR1(alpha, 32))
    assert rate.dtype == torch.float32
    torch.testing.assert_close(rate, committed_rate(alpha.float(), 32))
