"""The bound: against exact answers, finite differences and hand-written formulas."""

import pytest
import torch
from torch import nn
from torch.distributions import Independent, Laplace

from vaelib import VAE
from vaelib.decoders import BernoulliMLP, GaussianMLP
from vaelib.distributions import DiagNormal
from vaelib.encoders import MLPEncoder
from vaelib.linear_vae import PPCA
from vaelib.priors import StandardNormal

SHAPE = (1, 4, 3)


def small_vae(latents=2, decoder=BernoulliMLP, seed=0):
    torch.manual_seed(seed)
    slots = MLPEncoder(latents, SHAPE, 6), StandardNormal(latents), decoder(latents, SHAPE, 6)
    return VAE(*slots).double()


def images(n=5, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(n, *SHAPE, generator=generator).double()


@pytest.mark.parametrize("decoder", [BernoulliMLP, GaussianMLP])
@pytest.mark.parametrize("estimator", ["A", "B", "auto"])
@pytest.mark.parametrize("samples", [1, 3])
def test_shapes(decoder, estimator, samples):
    bound = small_vae(decoder=decoder).elbo(images(), samples, estimator)
    assert bound.distortion.shape == bound.rate.shape == bound.value.shape == (5,)
    torch.testing.assert_close(bound.value, -(bound.distortion + bound.rate))


def test_elbo_is_the_papers_equation_10():
    vae, x = small_vae(), images()
    torch.manual_seed(3)
    bound = vae.elbo(x)
    torch.manual_seed(3)
    loc, log_variance = vae.encoder.network(x.flatten(1)).chunk(2, -1)
    z = loc + (0.5 * log_variance).exp() * torch.randn(1, 5, 2).double()[0]
    y, pixels = vae.decoder.network(z).sigmoid(), x.flatten(1)
    reconstruction = (pixels * y.log() + (1 - pixels) * (1 - y).log()).sum(1)
    regulariser = 0.5 * (1 + log_variance - loc**2 - log_variance.exp()).sum(1)
    torch.testing.assert_close(bound.value, regulariser + reconstruction)


def test_gradients_are_those_of_finite_differences():
    vae, x = small_vae(), images()

    def loss():
        torch.manual_seed(7)  # the same noise, so that the bound is a function of the weights
        return -vae(x, samples=2).value.mean()

    loss().backward()
    for parameter in vae.parameters():
        flat, gradient = parameter.data.view(-1), parameter.grad.view(-1)
        for index in (0, len(flat) // 2, len(flat) - 1):
            kept, step = flat[index].item(), 1e-5
            values = []
            for shift in (step, -step):
                flat[index] = kept + shift
                values.append(loss().item())
            flat[index] = kept
            numeric = (values[0] - values[1]) / (2 * step)
            # Central differences: truncation near 1e-10, rounding near 1e-16 / 1e-5 = 1e-11.
            assert gradient[index].item() == pytest.approx(numeric, rel=1e-5, abs=1e-8)


def test_estimators_a_and_b_agree_in_the_mean():
    vae, x = small_vae(), images(2)
    a = torch.stack([vae.elbo(x, 1, "A").rate for _ in range(4000)]).detach()
    b = vae.elbo(x, 1, "B").rate.detach()
    assert ((a.mean(0) - b).abs() < 4 * a.std(0) / 4000**0.5).all()


def test_the_bound_is_below_log_p_and_equal_at_the_posterior():
    torch.manual_seed(0)
    model = PPCA.fit(torch.randn(200, 5).double() @ torch.randn(5, 5).double(), 2)
    x = model.marginal().sample((40,))
    best, log_p = VAE(*model.slots()), model.log_prob(x)
    torch.testing.assert_close(best.elbo(x, 1, "A").value, log_p)
    worse = VAE(*model.slots())
    with torch.no_grad():
        worse.encoder.log_scale += 0.3
    # 4,000 samples: standard error near 0.03 nats; the gap here is near 0.4.
    assert (worse.elbo(x, 4000).value < log_p - 0.1).all()


def test_more_samples_reduce_the_variance_not_the_mean():
    vae, x = small_vae(), images(1)
    torch.manual_seed(0)
    one = torch.stack([vae.elbo(x, 1).value for _ in range(2000)]).detach()
    many = torch.stack([vae.elbo(x, 16).value for _ in range(2000)]).detach()
    assert one.var().item() / many.var().item() == pytest.approx(16, rel=0.25)
    assert (one.mean() - many.mean()).abs() < 4 * one.std() / 2000**0.5


def test_sample_and_reconstruct():
    vae = small_vae()
    assert vae.sample(7).shape == (7, *SHAPE)
    assert set(vae.sample(50).unique().tolist()) == {0.0, 1.0}
    assert not vae.sample(3).requires_grad
    x = images()
    assert vae.reconstruct(x).shape == x.shape
    mean = vae.reconstruct(x, mean=True)
    assert ((mean > 0) & (mean < 1)).all()


def test_sample_follows_the_model():
    vae = small_vae()
    torch.manual_seed(0)
    drawn = vae.sample(40_000).mean(0)
    expected = vae.sample(40_000, mean=True).mean(0)
    assert (drawn - expected).abs().max() < 4 * 2**0.5 * 0.5 / 200


class _LaplaceEncoder(nn.Module):
    def forward(self, x):
        return Independent(Laplace(x.flatten(1)[:, :2], torch.ones(len(x), 2).double()), 1)


def test_a_pair_without_a_kl_rule_uses_the_samples(monkeypatch):
    class Uniformish(nn.Module):
        def forward(self):
            zeros = torch.zeros(2).double()
            return Independent(torch.distributions.Cauchy(zeros, zeros + 1), 1)

    vae = VAE(_LaplaceEncoder(), Uniformish(), BernoulliMLP(2, SHAPE, 6).double())
    assert vae.elbo(images(), 2).rate.shape == (5,)
    with pytest.raises(NotImplementedError):
        vae.elbo(images(), 2, estimator="B")


class _Fixed(nn.Module):
    def __init__(self, distribution):
        super().__init__()
        self.distribution = distribution

    def forward(self, *inputs):
        return self.distribution


def normal(*shape, event_dims=1):
    return _Fixed(DiagNormal(torch.zeros(shape), torch.ones(shape), event_dims))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"encoder": normal(4, 2)}, "batch of encoder"),
        ({"encoder": normal(5, 1)}, "event of encoder"),
        ({"prior": normal(5, 2)}, "batch of prior"),
        ({"decoder": normal(5, *SHAPE, event_dims=3)}, "batch of decoder"),
        ({"decoder": normal(2, 5, 1, 4, 1, event_dims=3)}, "images"),
    ],
)
def test_slots_that_would_broadcast_are_refused(change, message):
    vae = small_vae().float()
    slots = {"encoder": vae.encoder, "prior": vae.prior, "decoder": vae.decoder} | change
    with pytest.raises(ValueError, match=message):
        VAE(**slots).elbo(images().float(), samples=2)


def test_bad_arguments():
    vae = small_vae()
    with pytest.raises(ValueError, match="samples >= 1"):
        vae.elbo(images(), samples=0)
    with pytest.raises(ValueError, match="'auto', 'A' or 'B'"):
        vae.elbo(images(), estimator="C")
    with pytest.raises(ValueError, match="n >= 1"):
        vae.sample(0)
    with pytest.raises(ValueError):
        vae.elbo(images() * float("nan"))
    with pytest.raises(ValueError):
        vae.elbo(images() + 1)


def test_the_bound_is_a_pair():
    distortion, rate = small_vae().elbo(images(4))
    assert distortion.shape == rate.shape == (4,)
