"""Encoders: modules that map images to the approximate posterior q(z|x)."""

from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor, nn

from vaelib.distributions import DiagNormal
from vaelib.networks import MLP, flatten_events


class MLPEncoder(nn.Module):
    """Gaussian recognition model with one hidden layer.

        q(z|x) = N(μ(x), diag σ²(x)),   (μ, ln σ²) = MLP(x)

    Kingma & Welling (2013), equation 9 and appendix C.2.

    Args:
        latents: number of latent variables.
        image_shape: shape of one image, (channels, height, width).
        hidden: units of the hidden layer(s); 500 for MNIST and 200 for Frey Face in the paper.

    Shapes: ``(*batch, *image_shape)`` to a :class:`DiagNormal` with batch ``batch`` and event
    ``(latents,)``.

    Raises:
        ValueError: if the images do not have ``image_shape``.
    """

    def __init__(
        self,
        latents: int,
        image_shape: Sequence[int] = (1, 28, 28),
        hidden: int | Sequence[int] = 500,
    ):
        super().__init__()
        self.image_shape = tuple(image_shape)
        self.network = MLP(prod(self.image_shape), hidden, 2 * latents)

    def forward(self, x: Tensor) -> DiagNormal:
        """The posterior q(z|x) of each image."""
        pixels = flatten_events(x, self.image_shape)  # (*batch, pixels)
        loc, log_variance = self.network(pixels).chunk(2, dim=-1)  # each (*batch, latents)
        return DiagNormal(loc, torch.exp(0.5 * log_variance))
