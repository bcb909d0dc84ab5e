"""Encoders, priors and decoders: what fills the three slots, and the networks inside."""

import copy

import pytest
import torch

from vaelib.decoders import BernoulliMLP, GaussianMLP
from vaelib.distributions import DiagNormal, PixelBernoulli
from vaelib.encoders import MLPEncoder
from vaelib.networks import MLP, flatten_events, init_normal_
from vaelib.priors import AR1Prior, StandardNormal


def test_encoder_returns_a_diagonal_normal_per_image():
    q = MLPEncoder(5, (1, 4, 6), hidden=(8, 7))(torch.rand(3, 1, 4, 6))
    assert isinstance(q, DiagNormal)
    assert q.batch_shape == (3,) and q.event_shape == (5,)


def test_encoder_treats_images_separately():
    encoder = MLPEncoder(2, (1, 3, 3), hidden=4)
    x = torch.rand(5, 1, 3, 3, requires_grad=True)
    q = encoder(x)
    (q.loc[2].sum() + q.scale[2].sum()).backward()
    touched = x.grad.flatten(1).abs().sum(1) > 0
    assert touched.tolist() == [False, False, True, False, False]


@pytest.mark.parametrize("decoder", [BernoulliMLP, GaussianMLP])
@pytest.mark.parametrize("batch", [(), (3,), (2, 3)])
def test_decoders_keep_the_batch_of_z(decoder, batch):
    p = decoder(5, (1, 4, 6), hidden=8)(torch.randn(*batch, 5))
    assert p.batch_shape == batch and p.event_shape == (1, 4, 6)
    assert p.log_prob(p.sample()).shape == batch


def test_bernoulli_decoder_is_the_papers_formula():
    torch.manual_seed(0)
    decoder = BernoulliMLP(2, (1, 3, 3), hidden=4).double()
    z, x = torch.randn(6, 2).double(), torch.rand(6, 1, 3, 3).double()
    y = decoder.network(z).sigmoid()
    flat = x.flatten(1)
    paper = (flat * y.log() + (1 - flat) * (1 - y).log()).sum(1)
    p = decoder(z)
    assert isinstance(p, PixelBernoulli)
    torch.testing.assert_close(p.log_prob(x), paper)


def test_gaussian_decoder_has_sigmoid_means_and_a_variance_floor():
    torch.manual_seed(0)
    decoder = GaussianMLP(2, (1, 3, 3), hidden=4, min_scale=0.05)
    with torch.no_grad():
        for parameter in decoder.parameters():
            parameter.mul_(20)  # extreme outputs: means near 0 and 1, large and small variances
    p = decoder(torch.randn(50, 2))
    assert p.mean.min() >= 0 and p.mean.max() <= 1
    assert p.scale.min() >= 0.05 - 1e-7


def test_gaussian_decoder_reads_means_and_variances_from_separate_outputs():
    decoder = GaussianMLP(2, (1, 2, 3), hidden=4, min_scale=0).double()
    z = torch.randn(7, 2).double()
    mean, log_variance = decoder.network(z).chunk(2, dim=-1)
    p = decoder(z)
    torch.testing.assert_close(p.loc.flatten(1), mean.sigmoid())
    torch.testing.assert_close(p.scale.flatten(1), (0.5 * log_variance).exp())


@pytest.mark.parametrize("shape", [20, (4, 3)])
def test_standard_normal(shape):
    prior = StandardNormal(shape)
    p = prior()
    event = (shape,) if isinstance(shape, int) else shape
    assert p.batch_shape == () and p.event_shape == event
    z = torch.randn(9, *event)
    expected = torch.distributions.Normal(0.0, 1.0).log_prob(z).flatten(1).sum(1)
    torch.testing.assert_close(p.log_prob(z), expected)
    assert not list(prior.parameters()) and not prior.state_dict()
    assert copy.deepcopy(prior).double()().loc.dtype == torch.float64


def test_ar1_prior_follows_the_module_to_its_type():
    prior = AR1Prior(torch.tensor([0.5, 0.9]), 6)
    assert prior().event_shape == (6, 2) and prior().batch_shape == ()
    assert copy.deepcopy(prior).double()().rsample().dtype == torch.float64
    other = AR1Prior(torch.tensor([0.1, 0.2]), 6)
    other.load_state_dict(prior.state_dict())
    assert torch.equal(other().alpha, prior().alpha)


def test_wrong_shapes_are_named():
    with pytest.raises(ValueError, match=r"expected x .*\(1, 28, 28\).*got \(3, 1, 28, 20\)"):
        MLPEncoder(5)(torch.rand(3, 1, 28, 20))
    with pytest.raises(ValueError, match=r"expected z .*got \(3, 4\)"):
        BernoulliMLP(5)(torch.rand(3, 4))
    with pytest.raises(ValueError, match="positive sizes"):
        StandardNormal((3, 0))
    with pytest.raises(ValueError, match="min_scale"):
        GaussianMLP(2, min_scale=-1)
    with pytest.raises(ValueError, match="positive layer sizes"):
        MLP(3, 0, 2)
    with pytest.raises(ValueError, match="std"):
        init_normal_(MLP(3, 2, 2), std=0)


def test_mlp_puts_no_activation_after_the_last_layer():
    network = MLP(3, [4, 5], 2)
    names = [type(layer).__name__ for layer in network]
    assert names == ["Linear", "Tanh", "Linear", "Tanh", "Linear"]
    assert [tuple(p.shape) for p in network.parameters()][::2] == [(4, 3), (5, 4), (2, 5)]


def test_init_normal_draws_every_parameter():
    torch.manual_seed(0)
    network = init_normal_(MLP(100, 100, 100), std=0.01)
    values = torch.cat([p.flatten() for p in network.parameters()])
    # 20,200 draws: the standard error of the standard deviation is 0.5 %.
    assert values.std().item() == pytest.approx(0.01, rel=0.025)
    assert abs(values.mean().item()) < 4 * 0.01 / len(values) ** 0.5


def test_flatten_events():
    assert flatten_events(torch.zeros(2, 3, 1, 4, 5), (1, 4, 5)).shape == (2, 3, 20)
    assert flatten_events(torch.zeros(1, 4, 5), (1, 4, 5)).shape == (20,)
