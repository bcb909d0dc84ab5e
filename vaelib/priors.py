"""Priors: modules without input that return p(z)."""

from collections.abc import Sequence

import torch
from torch import nn

from vaelib.distributions import DiagNormal


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
