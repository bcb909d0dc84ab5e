"""Decoders: modules that map latent variables to the likelihood p(x|z)."""

import math
from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor, nn
from torch.distributions import Distribution, kl_divergence
from torch.func import functional_call

from vaelib.distributions import DiagNormal, PixelBernoulli
from vaelib.networks import (
    MLP,
    check_dtype,
    flatten_events,
    halved_sizes,
    latent_shape,
    to_float32,
)


class BernoulliMLP(nn.Module):
    """Independent Bernoulli pixels whose probabilities come from an MLP.

        log p(x|z) = Σ_i x_i ln y_i + (1 − x_i) ln(1 − y_i),   y = sigmoid(MLP(z))

    Kingma & Welling (2013), appendix C.1.

    Args:
        latents: number of latent variables; ``(rows, d)`` for one vector per row.
        image_shape: shape of one image, (C, H, W), or of a vector, (D,).
        hidden, activation: of the :class:`vaelib.networks.MLP`.

    Shapes: ``(*batch, *latents)`` to batch ``batch`` and event ``image_shape``.
    """

    def __init__(
        self,
        latents: int | Sequence[int],
        image_shape: Sequence[int] = (1, 28, 28),
        hidden: int | Sequence[int] = 500,
        activation: type[nn.Module] = nn.Tanh,
    ):
        super().__init__()
        self.latents, self.image_shape = latent_shape(latents), tuple(image_shape)
        self.network = MLP(prod(self.latents), hidden, prod(self.image_shape), activation)

    def forward(self, z: Tensor) -> PixelBernoulli:
        """The likelihood p(x|z) for each z."""
        logits = self.network(flatten_events(z, self.latents, "z"))  # (*batch, pixels)
        logits = logits.view(*logits.shape[:-1], *self.image_shape)
        return PixelBernoulli(logits, len(self.image_shape))


class GaussianMLP(nn.Module):
    """Independent Gaussian pixels, means squashed into (0, 1) by a sigmoid.

        p(x|z) = N(sigmoid(m), diag(σ_min² + e^v)),   (m, v) = MLP(z)

    Kingma & Welling (2013), appendix C.2 and section 5 (Frey Face). ``σ_min`` is ours: grey
    levels come in steps of 1/255, so a density over them is unbounded wherever a pixel never
    changes. It also makes the bound in nats finite and comparable between runs.

    Args:
        latents, image_shape, hidden, activation: as in :class:`BernoulliMLP`.
        min_scale: the smallest standard deviation of a pixel, σ_min in [0, 1).
        bounded: ``False`` takes m itself as the mean, for standardised vectors.

    Shapes: ``(*batch, *latents)`` to batch ``batch`` and event ``image_shape``.
    """

    def __init__(
        self,
        latents: int | Sequence[int],
        image_shape: Sequence[int] = (1, 28, 20),
        hidden: int | Sequence[int] = 200,
        min_scale: float = 0.01,
        activation: type[nn.Module] = nn.Tanh,
        bounded: bool = True,
    ):
        super().__init__()
        self.latents, self.image_shape = latent_shape(latents), tuple(image_shape)
        self.min_scale, self.bounded = _check_min_scale(min_scale), bounded
        self.network = MLP(prod(self.latents), hidden, 2 * prod(self.image_shape), activation)

    def forward(self, z: Tensor) -> DiagNormal:
        """The likelihood p(x|z) for each z."""
        outputs = self.network(flatten_events(z, self.latents, "z"))
        return _gaussian(outputs.unflatten(-1, (2, *self.image_shape)), self)


class ConvDecoder(nn.Module):
    """Independent pixels from a convolutional network: each layer doubles the side of the map.

    Args:
        latents: number of latent variables; ``(rows, d)`` for one vector per row.
        image_shape: shape of one image, (C, H, W), of any size.
        channels: of the maps, from the largest to the smallest, as in
            :class:`vaelib.encoders.ConvEncoder`.
        likelihood: "bernoulli" or "gaussian", as in the two MLP decoders.
        min_scale, bounded, activation: see there.

    Shapes: ``(*batch, *latents)`` to batch ``batch`` and event ``image_shape``.
    """

    def __init__(
        self,
        latents: int | Sequence[int],
        image_shape: Sequence[int] = (1, 28, 28),
        channels: Sequence[int] = (32, 64),
        likelihood: str = "bernoulli",
        min_scale: float = 0.01,
        activation: type[nn.Module] = nn.ReLU,
        bounded: bool = True,
    ):
        super().__init__()
        if likelihood not in ("bernoulli", "gaussian"):
            raise ValueError(f"expected likelihood 'bernoulli' or 'gaussian', got {likelihood!r}")
        self.latents, self.image_shape = latent_shape(latents), tuple(image_shape)
        self.min_scale, self.bounded = _check_min_scale(min_scale), bounded
        self.likelihood, outputs = likelihood, 1 if likelihood == "bernoulli" else 2
        *larger, smallest = halved_sizes(self.image_shape, len(channels))
        sizes = [outputs * self.image_shape[0], *channels]
        self.smallest = (sizes[-1], *smallest)
        layers: list[nn.Module] = [nn.Linear(prod(self.latents), prod(self.smallest))]
        layers.append(nn.Unflatten(-1, self.smallest))
        for below, above, size in zip(sizes[::-1], sizes[-2::-1], larger[::-1], strict=False):
            layers += [activation(), nn.Upsample(size), nn.Conv2d(below, above, 3, padding=1)]
        self.network = nn.Sequential(*layers)

    def forward(self, z: Tensor) -> PixelBernoulli | DiagNormal:
        """The likelihood p(x|z) for each z."""
        codes = flatten_events(z, self.latents, "z")  # (*batch, numel)
        check_dtype(codes, self.network[0].weight)
        maps = self.network(codes.reshape(-1, codes.shape[-1]))  # (B, outputs·C, H, W)
        maps = maps.reshape(*codes.shape[:-1], -1, *self.image_shape)
        if self.likelihood == "gaussian":
            return _gaussian(maps, self)
        return PixelBernoulli(maps.squeeze(-4))


def _gaussian(outputs: Tensor, decoder: GaussianMLP | ConvDecoder) -> DiagNormal:
    """Means and log variances ``(*batch, 2, *image_shape)`` to p(x|z)."""
    dims = len(decoder.image_shape)
    mean, log_variance = to_float32(outputs).unbind(-1 - dims)
    scale = (decoder.min_scale**2 + log_variance.exp()).sqrt()
    return DiagNormal(mean.sigmoid() if decoder.bounded else mean, scale, dims)


def _check_min_scale(min_scale: float) -> float:
    if not 0 <= min_scale < 1:
        raise ValueError(f"expected min_scale in [0, 1), got {min_scale}")
    return min_scale


class VariationalWeights(nn.Module):
    """A decoder whose weights are uncertain: q(θ) = N(μ, diag σ²) over all its parameters.

        p(x|z) with θ = μ + σ ε drawn once per call,   p(θ) = N(0, s² I)

    Kingma & Welling (2013), appendix F. The noise is in the weights and shared by the batch: its
    draws are few and the gradient is noisier than with noise of its own for each image (the local
    reparameterisation of Kingma, Salimans & Welling 2015), but any network can be wrapped.

    Args:
        decoder: a decoder; its parameters become the initial means μ.
        scale: initial standard deviation σ of every weight.
        prior_scale: standard deviation s of the prior of every weight.

    Shapes: those of the decoder.
    """

    def __init__(self, decoder: nn.Module, scale: float = 0.01, prior_scale: float = 1.0):
        super().__init__()
        if not (scale > 0 and prior_scale > 0):
            raise ValueError(f"expected scales > 0, got {scale} and {prior_scale}")
        self.decoder = decoder
        self.prior_scale = prior_scale
        # Names of parameters contain dots, which a ParameterDict refuses.
        self.names = [name for name, _ in decoder.named_parameters()]
        self.log_scales = nn.ParameterList(
            torch.full_like(mean, math.log(scale)) for mean in decoder.parameters()
        )

    def posterior(self) -> list[DiagNormal]:
        """q(θ) of each parameter, one event each, in the order of ``names``."""
        means = dict(self.decoder.named_parameters())
        return [
            DiagNormal(means[name], log_scale.exp(), log_scale.dim())
            for name, log_scale in zip(self.names, self.log_scales, strict=True)
        ]

    def forward(self, z: Tensor) -> Distribution:
        """The likelihood p(x|z, θ) for one draw of θ ~ q(θ)."""
        drawn = [q.rsample() for q in self.posterior()]
        return functional_call(self.decoder, dict(zip(self.names, drawn, strict=True)), (z,))

    def rate(self) -> Tensor:
        """KL(q(θ) ‖ p(θ)) of all weights together, a scalar in nats."""
        rates = [kl_divergence(q, self._prior(q)) for q in self.posterior()]
        return torch.stack(rates).sum()

    def _prior(self, q: DiagNormal) -> DiagNormal:
        zeros = torch.zeros_like(q.loc)
        return DiagNormal(zeros, zeros + self.prior_scale, zeros.dim())
