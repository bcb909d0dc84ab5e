"""Estimates of the marginal likelihood log p(x)."""

import math

import torch
from torch import Tensor, nn


@torch.no_grad()
def importance_sampled(vae: nn.Module, x: Tensor, samples: int = 100, chunk: int = 2000) -> Tensor:
    """Importance-sampled estimate of log p(x), ``(B,)`` nats.

        log p(x) ≈ ln (1/K) Σ_k p(x|z_k) p(z_k) / q(z_k|x),   z_k ~ q(z|x)

    Its expectation is a lower bound of log p(x) that rises with K (Burda et al. 2016,
    equation 8); with K = 1 it is the ELBO.

    Args:
        vae: a model with the three slots ``encoder``, ``prior`` and ``decoder``.
        x: images ``(B, *image_shape)``.
        samples: number of importance samples K per image.
        chunk: at most so many (image, sample) pairs are decoded at once; bounds the memory.

    Raises:
        ValueError: fewer than one sample or a chunk below one.
    """
    if samples < 1 or chunk < 1:
        raise ValueError(f"expected samples >= 1 and chunk >= 1, got {samples} and {chunk}")
    per_image = min(samples, chunk)
    batches = x.split(max(1, chunk // per_image))
    return torch.cat([_importance_sampled(vae, batch, samples, per_image) for batch in batches])


def _importance_sampled(vae: nn.Module, x: Tensor, samples: int, at_once: int) -> Tensor:
    q, p = vae.encoder(x), vae.prior()
    log_weights = []
    for start in range(0, samples, at_once):
        z = q.sample((min(at_once, samples - start),))  # (k, B, *latent_shape)
        log_joint = vae.decoder(z).log_prob(x) + p.log_prob(z)
        log_weights.append(log_joint - q.log_prob(z))  # (k, B)
    return torch.cat(log_weights).logsumexp(0) - math.log(samples)
