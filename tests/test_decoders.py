"""Decoders: the papers' formulas, and weights that are drawn anew at every call."""

import math

import numpy as np
import pytest
import torch

from vaelib.decoders import BernoulliMLP, GaussianMLP, VariationalWeights
from vaelib.distributions import DiagNormal, PixelBernoulli

SHAPE = (1, 2, 3)
decoders = pytest.mark.parametrize("kind", [BernoulliMLP, GaussianMLP])


@decoders
@pytest.mark.parametrize("latents", [5, (4, 2), np.int64(5)], ids=str)
@pytest.mark.parametrize("batch", [(), (3,), (2, 3)])
def test_decoders_keep_the_batch_of_z(kind, latents, batch):
    decoder = kind(latents, (1, 4, np.int64(6)), hidden=np.int64(8))
    p = decoder(torch.randn(*batch, *decoder.latents))
    assert p.batch_shape == batch and p.event_shape == (1, 4, 6)
    assert p.log_prob(p.sample()).shape == batch


def test_bernoulli_decoder_is_the_papers_formula():
    decoder = BernoulliMLP(2, SHAPE, hidden=4).double()
    z, x = torch.randn(7, 2).double(), torch.rand(7, *SHAPE).double()
    y, flat, p = decoder.network(z).sigmoid(), x.flatten(1), decoder(z)
    assert isinstance(p, PixelBernoulli)
    torch.testing.assert_close(p.log_prob(x), (flat * y.log() + (1 - flat) * (1 - y).log()).sum(1))


@pytest.mark.parametrize("min_scale", [0, 0.3])
def test_gaussian_decoder_is_its_formula(min_scale):
    """Means and variances from separate outputs; the variance is the floor plus the network's."""
    decoder, z = GaussianMLP(2, SHAPE, 4, min_scale).double(), torch.randn(7, 2).double()
    mean, log_variance = decoder.network(z).unflatten(-1, (2, *SHAPE)).unbind(1)
    p = decoder(z)
    assert isinstance(p, DiagNormal)
    torch.testing.assert_close(p.mean, mean.sigmoid())
    torch.testing.assert_close(p.variance, min_scale**2 + log_variance.exp())


def test_a_gaussian_decoder_stays_in_range_at_extreme_outputs():
    decoder = GaussianMLP(2, SHAPE, hidden=4, min_scale=0.05)
    with torch.no_grad():
        for parameter in decoder.parameters():
            parameter.mul_(20)
    p = decoder(torch.randn(50, 2))
    assert p.mean.min() >= 0 and p.mean.max() <= 1 and p.scale.min() >= 0.05 - 1e-7


@decoders
def test_variational_weights_are_drawn_anew_and_learn_their_scales(kind):
    decoder, z = VariationalWeights(kind(2, SHAPE, 4), scale=0.05), torch.randn(3, 2)
    one, other, x = decoder(z), decoder(z), torch.rand(3, *SHAPE)
    assert not torch.equal(one.log_prob(x), other.log_prob(x))
    assert not torch.equal(one.mean, decoder.decoder(z).mean)
    one.log_prob(x).sum().backward()
    for mean, log_scale in zip(decoder.decoder.parameters(), decoder.log_scales, strict=True):
        assert (mean.grad != 0).any() and (log_scale.grad != 0).any()
        assert log_scale.tolist() == torch.full_like(mean, math.log(0.05)).tolist()
    with torch.no_grad():
        exact = VariationalWeights(decoder.decoder, scale=1e-8)(z).mean
        torch.testing.assert_close(exact, decoder.decoder(z).mean, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: BernoulliMLP(5)(torch.rand(3, 4)), r"expected z .*got \(3, 4\)"),
        (lambda: BernoulliMLP(0), "expected latents .* got 0"),
        (lambda: GaussianMLP((4, 2))(torch.rand(3, 8)), r"expected z .*got \(3, 8\)"),
        (lambda: GaussianMLP(2, min_scale=-1), r"expected min_scale in \[0, 1\), got -1"),
        (lambda: VariationalWeights(BernoulliMLP(2), scale=0), "expected scales > 0, got 0"),
        (lambda: VariationalWeights(BernoulliMLP(2), 1, -1), "expected scales > 0, got 1 and -1"),
    ],
)
def test_bad_settings_and_latents_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@decoders
def test_latents_of_another_type_than_the_weights_are_refused(kind):
    with pytest.raises(TypeError, match=r"expected torch.float32, .* got torch.float64"):
        kind(2)(torch.zeros(3, 2).double())
