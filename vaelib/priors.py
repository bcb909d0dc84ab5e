"""Priors: modules without input that return p(z)."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from vaelib.distributions import AR1, DiagNormal


class StandardNormal(nn.Module):
    """The prior p(z) = N(0, I) of Kingma & Welling (2013).

    Args:
        shape: shape of z; an int for a vector, ``(length, d)`` for one vector per row.
    """

    def __init__(self, shape: int | Sequence[int]):
        super().__init__()
        shape = (shape,) if isinstance(shape, int) else tuple(shape)
        if not shape or min(shape) < 1:
            raise ValueError(f"expected a shape of positive sizes, got {shape}")
        # Buffers follow .to(device); a distribution kept as an attribute would not.
        self.register_buffer("loc", torch.zeros(shape), persistent=False)
        self.register_buffer("scale", torch.ones(shape), persistent=False)

    def forward(self) -> DiagNormal:
        """p(z), batch shape ``()``."""
        return DiagNormal(self.loc, self.scale, event_dims=self.loc.dim())


class AR1Prior(nn.Module):
    """The slow prior of the δ-VAE: one :class:`AR1` process per channel.

    Razavi et al. (2019), section 2.2. Against a posterior with independent rows it commits the
    model to a rate of at least :func:`vaelib.distributions.committed_rate`.

    Args:
        alpha: correlation of neighbouring rows in each channel, ``(d,)`` in [0, 1).
        length: number of rows.
    """

    def __init__(self, alpha: Tensor, length: int):
        super().__init__()
        prior = AR1(alpha, length)  # checks both
        self.register_buffer("alpha", prior.alpha)
        self.length = length

    def forward(self) -> AR1:
        """p(z), batch shape ``()``, event shape ``(length, d)``."""
        return AR1(self.alpha, self.length)
