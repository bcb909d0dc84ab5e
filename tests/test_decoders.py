"""Decoders: the papers' formulas, and weights that are drawn anew at every call."""

import math

import numpy as np
import pytest
import torch
from conftest import refusals

from vaelib.decoders import BernoulliMLP, GaussianMLP, VariationalWeights

SHAPE, close = (1, 2, 3), torch.testing.assert_close
decoders = pytest.mark.parametrize("kind", [BernoulliMLP, GaussianMLP])


@decoders
@pytest.mark.parametrize("latents", [(4, 2), np.int64(5)], ids=str)
@pytest.mark.parametrize("batch", [(), (3,), (2, 3)])
def test_decoders_keep_the_batch_of_z(kind, latents, batch):
    decoder = kind(latents, (1, 4, np.int64(6)), hidden=np.int64(8))
    p = decoder(torch.randn(*batch, *decoder.latents))
    assert p.batch_shape == batch and p.event_shape == (1, 4, 6)
    assert p.log_prob(p.sample()).shape == batch


def test_bernoulli_decoder_is_the_papers_formula():
    decoder, z = BernoulliMLP(2, SHAPE, hidden=4).double(), torch.randn(7, 2).double()
    y, x = decoder.network(z).sigmoid(), torch.rand(7, 6).double()
    paper = (x * y.log() + (1 - x) * (1 - y).log()).sum(1)
    close(decoder(z).log_prob(x.view(7, *SHAPE)), paper)


@pytest.mark.parametrize("min_scale", [0, 0.3])
@pytest.mark.parametrize("size", [1, 20])
def test_gaussian_decoder_is_its_formula_and_stays_in_range(min_scale, size):
    """Means and variances from separate outputs; the variance is the floor plus the network's."""
    decoder, z = GaussianMLP(2, SHAPE, 4, min_scale).double(), size * torch.randn(50, 2).double()
    mean, log_variance = decoder.network(z).unflatten(-1, (2, *SHAPE)).unbind(1)
    p = decoder(z)
    close(p.mean, mean.sigmoid())
    close(p.variance, min_scale**2 + log_variance.exp())
    assert p.mean.min() >= 0 and p.mean.max() <= 1 and p.scale.min() >= min_scale


@decoders
def test_variational_weights_are_drawn_anew_and_learn_their_scales(kind):
    decoder, z = VariationalWeights(kind(2, SHAPE, 4), scale=0.05), torch.randn(3, 2)
    one, other, x = decoder(z), decoder(z), torch.rand(3, *SHAPE)
    assert not torch.equal(one.log_prob(x), other.log_prob(x))
    one.log_prob(x).sum().backward()
    for mean, log_scale in zip(decoder.decoder.parameters(), decoder.log_scales, strict=True):
        assert (mean.grad != 0).any() and (log_scale.grad != 0).any()
        close(log_scale, torch.full_like(mean, math.log(0.05)))
    exact = VariationalWeights(decoder.decoder, scale=1e-8)(z).mean
    close(exact, decoder.decoder(z).mean, rtol=1e-5, atol=1e-5)


REFUSED = [
    (BernoulliMLP, [0, (2, 0)], "expected latents .* got"),
    (BernoulliMLP(5), [torch.rand(3, 4)], r"expected z .*got \(3, 4\)"),
    (GaussianMLP((4, 2)), [torch.rand(3, 8)], r"expected z .*got \(3, 8\)"),
    (BernoulliMLP(2), [torch.rand(3, 2).double()], "expected torch.float32, .* got torch.float64"),
    (lambda x: GaussianMLP(2, min_scale=x), (-1, 1), r"expected min_scale in \[0, 1\), got"),
    (lambda x: VariationalWeights(BernoulliMLP(2), *x), [(0, 1), (1, -1)], "scales > 0, got"),
]
test_bad_settings_and_latents_are_refused = refusals(REFUSED)
