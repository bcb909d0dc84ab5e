"""Estimates of the marginal likelihood log p(x)."""

import math
import warnings
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.distributions import Categorical, Distribution, MixtureSameFamily, MultivariateNormal
from torch.nn import Module

from vaelib.decoders import VariationalWeights
from vaelib.distributions import check_batch
from vaelib.inference import hmc
from vaelib.networks import eval_mode


class ImportanceEstimate(NamedTuple):
    """An estimate of log p(x) from K weights w = p(x, z) / q(z|x), and how far to trust it.

    The last two see only what was drawn: where q misses part of the posterior, they look too good.
    """

    log_likelihood: Tensor  # ln mean(w), (B,) nats
    effective_sample_size: Tensor  # (Σ w)² / Σ w², (B,): from 1 to K, for equal weights
    standard_error: Tensor  # std(w) / mean(w) / √K, (B,) nats: the delta method; nan for K = 1


@torch.no_grad()
def importance_sampled(
    vae: Module, x: Tensor, samples: int = 100, chunk: int | None = None, diagnostics: bool = False
) -> Tensor | ImportanceEstimate:
    """Importance-sampled estimate of log p(x), ``(B,)`` nats, or an :class:`ImportanceEstimate`.

        log p(x) ≈ ln (1/K) Σ_k p(x|z_k) p(z_k) / q(z_k|x),   z_k ~ q(z|x)

    Its expectation is a lower bound of log p(x) that rises with K (Burda et al. 2016, equation 8);
    with K = 1 it is the ELBO. ``x``: floats ``(B, *image_shape)``; ``samples``: K; ``chunk``: at
    most so many (image, sample) pairs are decoded at once, by default one million pixels.

    Dropout is off. A decoder that draws its weights draws them once for each chunk. For grey
    levels under a Bernoulli the result is a cross entropy, not the log of a density. A q(z|x)
    narrower than the true posterior can give the weights an infinite variance, and an estimate that
    is too low: from K = 100 on and without ``diagnostics``, a warning says if more than a fifth of
    the images have an effective sample size below 5 or K/100.
    """
    check_batch(x)
    chunk = max(1, 1_000_000 // x[0].numel()) if chunk is None else chunk
    if samples < 1 or chunk < 1:
        raise ValueError(f"expected samples >= 1 and chunk >= 1, got {samples} and {chunk}")
    per_image = min(samples, chunk)
    batches = x.split(max(1, chunk // per_image))
    with eval_mode(vae):
        parts = [_importance_sampled(vae, batch, samples, per_image) for batch in batches]
    estimate = ImportanceEstimate(*map(torch.cat, zip(*parts, strict=True)))
    if diagnostics:
        return estimate
    uneven = ~(estimate.effective_sample_size >= max(5, samples / 100))
    if samples >= 100 and 5 * (count := int(uneven.sum())) > len(x):
        warnings.warn(
            f"the estimates of {count} of {len(x)} images hang on a few of the {samples} samples, "
            "and log p(x) may be much higher: see diagnostics=True",
            stacklevel=3,
        )
    return estimate.log_likelihood


def _importance_sampled(vae: Module, x: Tensor, samples: int, at_once: int) -> tuple[Tensor, ...]:
    q, joint = posterior(vae, x), log_joint(vae, x)
    draws = (q.sample((min(at_once, samples - done),)) for done in range(0, samples, at_once))
    log_weights = torch.cat([joint(z) - q.log_prob(z) for z in draws])  # (K, B)
    size = 1 / log_weights.softmax(0).square().sum(0)
    error = ((samples / size - 1).clamp(min=0) / (samples - 1 or math.nan)).sqrt()
    return log_weights.logsumexp(0) - math.log(samples), size, error


def posterior(vae: Module, x: Tensor) -> Distribution:
    """q(z|x), one for each datum of the batch ``(B, *event)``."""
    q = vae.encoder(x)
    if q.batch_shape != x.shape[:1]:
        raise ValueError(f"expected a batch (B, *event), got one datum of shape {tuple(x.shape)}")
    return q


def log_joint(vae: Module, x: Tensor) -> Callable[[Tensor], Tensor]:
    """The function z ↦ log p(x, z), ``(*batch, B, *latent_shape)`` to ``(*batch, B)`` nats."""
    p = vae.prior()
    return lambda z: vae.decoder(z).log_prob(x) + p.log_prob(z)


@torch.no_grad()
def appendix_d(
    vae: Module,
    x: Tensor,
    samples: int = 50,
    density: str = "gaussian",
    leapfrog_steps: int = 10,
    burn_in: int = 50,
    thin: int = 2,
    chunk: int = 2000,
) -> Tensor:
    """Estimate log p(x) from samples of the true posterior, ``(B,)`` nats.

        1/p(x) = E_p(z|x)[ q(z) / (p(z) p(x|z)) ]     for any density q(z)

    (1) Draw ``samples`` (L in the paper, more than there are latents) from p(z|x) with HMC, (2) fit
    q(z) to them, (3) draw as many new ones and average. The encoder only starts the chains, and the
    decoder must not draw its weights. Kingma & Welling (2013), appendix D; good below about five
    latents, as a density is hard to fit to few samples in many dimensions.

    ``x``: floats ``(B, *event_shape)``; ``density``: ``"gaussian"``, a normal with full covariance,
    or ``"kernel"``, Gaussian kernels with Scott's bandwidth; ``burn_in``: trajectories in which a
    chain finds its step size; ``thin``: trajectories from one sample to the next; ``chunk``: at
    most so many chains run at once.
    """
    if density not in _DENSITIES or chunk < 1:
        expected = f"density in {sorted(_DENSITIES)} and chunk >= 1"
        raise ValueError(f"expected {expected}, got {density!r} and {chunk}")
    check_batch(x)
    check_fixed_weights(vae)
    estimates = []
    with eval_mode(vae):
        for batch in x.split(chunk):
            joint, start = log_joint(vae, batch), posterior(vae, batch).sample()
            if samples <= start[0].numel():
                raise ValueError(f"expected more samples than latents, got {samples} samples")
            state = hmc.init(joint, start)
            state, size, _ = hmc.tune(joint, state, 0.1, leapfrog_steps, burn_in, per_chain=True)
            state, first, _ = hmc.sample(joint, state, size, samples, leapfrog_steps, thin)
            state, fresh, _ = hmc.sample(joint, state, size, samples, leapfrog_steps, thin)
            q = _DENSITIES[density](first.flatten(2))  # (samples, B, latents) to batch (B,)
            log_p = torch.stack([joint(z) for z in fresh])  # one at a time bounds the memory
            log_ratio = q.log_prob(fresh.flatten(2)) - log_p  # (samples, B)
            estimates.append(math.log(samples) - log_ratio.logsumexp(0))
    return torch.cat(estimates)


def check_fixed_weights(vae: Module) -> None:
    """Raise ``TypeError`` if the decoder draws its weights at each call."""
    if isinstance(vae.decoder, VariationalWeights):
        raise TypeError("expected a decoder with fixed weights, got VariationalWeights")


def _factor(z: Tensor) -> Tensor:
    """Cholesky factor of the covariance, ``(B, d, d)``, of z ``(L, B, d)``."""
    centred = (z - z.mean(0)).movedim(0, -1)  # (B, d, L)
    # For a chain that never moved: a millionth of the prior's variance, so that a factor exists.
    jitter = 1e-6 * torch.eye(z.shape[-1], dtype=z.dtype, device=z.device)
    return torch.linalg.cholesky(centred @ centred.mT / (len(z) - 1) + jitter)


def _gaussian(z: Tensor) -> Distribution:
    return MultivariateNormal(z.mean(0), scale_tril=_factor(z))


def _kernel(z: Tensor) -> Distribution:
    samples, _, latents = z.shape
    bandwidth = samples ** (-1 / (latents + 4))  # Scott (1992)
    kernels = MultivariateNormal(z.movedim(0, 1), scale_tril=bandwidth * _factor(z).unsqueeze(1))
    return MixtureSameFamily(Categorical(logits=z.new_zeros(z.shape[1], samples)), kernels)


_DENSITIES = {"gaussian": _gaussian, "kernel": _kernel}
