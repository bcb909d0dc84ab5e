"""Decoders: modules that map latent variables to the likelihood p(x|z)."""

from collections.abc import Sequence
from math import prod

from torch import Tensor, nn

from vaelib.distributions import DiagNormal, PixelBernoulli
from vaelib.networks import MLP, flatten_events


class BernoulliMLP(nn.Module):
    """Independent Bernoulli pixels whose probabilities come from an MLP.

        log p(x|z) = Σ_i x_i ln y_i + (1 − x_i) ln(1 − y_i),   y = sigmoid(MLP(z))

    Kingma & Welling (2013), appendix C.1.

    Args:
        latents: number of latent variables.
        image_shape: shape of one image, (channels, height, width).
        hidden: units of the hidden layer(s).

    Shapes: ``(*batch, latents)`` to a :class:`PixelBernoulli` with batch ``batch`` and event
    ``image_shape``.
    """

    def __init__(
        self,
        latents: int,
        image_shape: Sequence[int] = (1, 28, 28),
        hidden: int | Sequence[int] = 500,
    ):
        super().__init__()
        self.latents = latents
        self.image_shape = tuple(image_shape)
        self.network = MLP(latents, hidden, prod(self.image_shape))

    def forward(self, z: Tensor) -> PixelBernoulli:
        """The likelihood p(x|z) for each z."""
        logits = self.network(flatten_events(z, (self.latents,), "z"))  # (*batch, pixels)
        return PixelBernoulli(logits.unflatten(-1, self.image_shape), len(self.image_shape))


class GaussianMLP(nn.Module):
    """Independent Gaussian pixels, means squashed into (0, 1) by a sigmoid.

        p(x|z) = N(sigmoid(m), diag(σ_min² + e^v)),   (m, v) = MLP(z)

    Kingma & Welling (2013), appendix C.2 and section 5 (Frey Face). ``σ_min`` is ours: grey
    levels come in steps of 1/255, so a density over them is unbounded wherever a pixel never
    changes. It also makes the bound in nats finite and comparable between runs.

    Args:
        latents: number of latent variables.
        image_shape: shape of one image, (channels, height, width).
        hidden: units of the hidden layer(s).
        min_scale: the smallest standard deviation of a pixel, σ_min ≥ 0.

    Shapes: ``(*batch, latents)`` to a :class:`DiagNormal` with batch ``batch`` and event
    ``image_shape``.
    """

    def __init__(
        self,
        latents: int,
        image_shape: Sequence[int] = (1, 28, 20),
        hidden: int | Sequence[int] = 200,
        min_scale: float = 0.01,
    ):
        super().__init__()
        if not 0 <= min_scale < 1:
            raise ValueError(f"expected min_scale in [0, 1), got {min_scale}")
        self.latents = latents
        self.image_shape = tuple(image_shape)
        self.min_scale = min_scale
        self.network = MLP(latents, hidden, 2 * prod(self.image_shape))

    def forward(self, z: Tensor) -> DiagNormal:
        """The likelihood p(x|z) for each z."""
        outputs = self.network(flatten_events(z, (self.latents,), "z"))
        mean, log_variance = outputs.unflatten(-1, (2, *self.image_shape)).unbind(
            -1 - len(self.image_shape)
        )  # each (*batch, *image_shape)
        scale = (self.min_scale**2 + log_variance.exp()).sqrt()
        return DiagNormal(mean.sigmoid(), scale, len(self.image_shape))
