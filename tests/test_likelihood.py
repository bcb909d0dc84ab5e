"""Estimates of log p(x) against models where it is known."""

import pytest
import torch

from vaelib import VAE
from vaelib.likelihood import importance_sampled
from vaelib.linear_vae import PPCA


def model_and_data(latents=3, worse=0.0):
    torch.manual_seed(0)
    model = PPCA(torch.randn(8, latents).double(), torch.zeros(8).double(), 0.5)
    vae = VAE(*model.slots())
    with torch.no_grad():
        vae.encoder.log_scale += worse
    return model, vae, model.marginal().sample((30,))


def test_exact_at_the_posterior_with_a_single_sample():
    torch.manual_seed(0)
    x = torch.randn(300, 5).double() @ torch.randn(5, 5).double()
    model = PPCA.fit(x, 2)
    torch.testing.assert_close(importance_sampled(VAE(*model.slots()), x, 1), model.log_prob(x))


def test_converges_to_the_exact_answer_from_below():
    model, vae, x = model_and_data(worse=0.2)
    x = x.repeat(200, 1)
    torch.manual_seed(1)
    gaps = [(model.log_prob(x) - importance_sampled(vae, x, k)) for k in (1, 10, 100, 1000)]
    means = [gap.mean().item() for gap in gaps]
    errors = [gap.std().item() / len(x) ** 0.5 for gap in gaps]
    assert means[0] > means[1] > means[2]
    assert means[0] > 0.1 and means[0] > 10 * errors[0]
    assert abs(means[3]) < 4 * errors[3] + 1e-3  # the bias left at K = 1,000 is below 1e-3


def test_one_sample_is_the_bound():
    _, vae, x = model_and_data(worse=0.2)
    torch.manual_seed(2)
    one = importance_sampled(vae, x, 1)
    torch.manual_seed(2)
    torch.testing.assert_close(one, vae.elbo(x, 1, "A").value.detach())


@pytest.mark.parametrize("chunk", [1, 7, 50, 100_000])
def test_chunks_bound_the_memory_and_change_nothing_else(chunk):
    model, vae, x = model_and_data(worse=0.2)
    widest = 0
    forward = vae.decoder.forward

    def watched(z):
        nonlocal widest
        widest = max(widest, z[..., 0].numel())
        return forward(z)

    vae.decoder.forward = watched
    torch.manual_seed(3)
    estimate = importance_sampled(vae, x, samples=50, chunk=chunk)
    assert estimate.shape == (30,) and widest <= chunk
    # Fifty samples leave a standard deviation near 0.1 nats per image.
    assert (estimate - model.log_prob(x)).abs().max() < 0.6


def test_no_gradient_and_bad_arguments():
    _, vae, x = model_and_data()
    assert not importance_sampled(vae, x, 5).requires_grad
    with pytest.raises(ValueError, match="samples >= 1"):
        importance_sampled(vae, x, 0)
    with pytest.raises(ValueError, match="chunk >= 1"):
        importance_sampled(vae, x, 1, chunk=0)
