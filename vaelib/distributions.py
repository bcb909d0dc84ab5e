"""The distributions that fill the slots, each with its Kullback–Leibler rule beside it.

``torch.distributions`` forgives wrong shapes by broadcasting. The classes here do not: a
value must have the event shape of the distribution that scores it.
"""

from typing import ClassVar

import torch
from torch import Tensor
from torch.distributions import Bernoulli, Distribution, Independent, Normal, constraints
from torch.distributions.kl import register_kl
from torch.nn.functional import binary_cross_entropy_with_logits


def check_event(distribution: Distribution, value: Tensor) -> None:
    """Raise ``ValueError`` unless ``value`` ends in the event shape of ``distribution``."""
    event = distribution.event_shape
    if value.shape[value.dim() - len(event) :] != event or value.dim() < len(event):
        raise ValueError(
            f"{type(distribution).__name__}: expected a value of shape (*batch, *{tuple(event)}), "
            f"got {tuple(value.shape)}"
        )


class DiagNormal(Independent):
    """Normal with a diagonal covariance over the last ``event_dims`` dimensions.

        log p(z) = −½ Σ_i [ (z_i − μ_i)²/σ_i² + ln 2πσ_i² ]        nats

    Args:
        loc: means μ, ``(*batch, *event)``.
        scale: standard deviations σ > 0, broadcast against ``loc``.
        event_dims: how many of the last dimensions make one event; 1 for a vector, 2 for one
            vector per row ``(length, d)``, 3 for an image.

    Raises:
        ValueError: non-positive or non-finite parameters, or a value with another event shape.

    >>> DiagNormal(torch.zeros(8, 5), torch.ones(8, 5)).log_prob(torch.zeros(8, 5)).shape
    torch.Size([8])
    """

    arg_constraints: ClassVar = {"loc": constraints.real, "scale": constraints.positive}

    def __init__(
        self,
        loc: Tensor,
        scale: Tensor,
        event_dims: int = 1,
        validate_args: bool | None = None,
    ):
        loc, scale = torch.as_tensor(loc), torch.as_tensor(scale)
        if not 1 <= event_dims <= max(loc.dim(), scale.dim()):
            raise ValueError(
                f"expected 1 <= event_dims <= number of dimensions, got event_dims={event_dims} "
                f"for loc {tuple(loc.shape)} and scale {tuple(scale.shape)}"
            )
        super().__init__(Normal(loc, scale, validate_args), event_dims, validate_args)

    @property
    def loc(self) -> Tensor:
        """Means, ``(*batch, *event)``."""
        return self.base_dist.loc

    @property
    def scale(self) -> Tensor:
        """Standard deviations, ``(*batch, *event)``."""
        return self.base_dist.scale

    def expand(self, batch_shape, _instance=None) -> "DiagNormal":
        """The same distribution with the batch shape ``batch_shape``."""
        shape = torch.Size(batch_shape) + self.event_shape
        loc, scale = self.loc.expand(shape), self.scale.expand(shape)
        return DiagNormal(loc, scale, len(self.event_shape), validate_args=False)

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density in nats, ``(*batch,)``."""
        check_event(self, value)
        return super().log_prob(value)


@register_kl(DiagNormal, DiagNormal)
def _kl_diag_normal(q: DiagNormal, p: DiagNormal) -> Tensor:
    """KL(q ‖ p) = ½ Σ_i [ (μ_q − μ_p)²/σ_p² + σ_q²/σ_p² − 1 − ln σ_q²/σ_p² ], nats.

    Kingma & Welling (2013), appendix B, for p = N(0, I).
    """
    if q.event_shape != p.event_shape:
        # Without this the two would broadcast and return a number that means nothing.
        raise ValueError(
            f"expected equal event shapes, got {tuple(q.event_shape)} and {tuple(p.event_shape)}"
        )
    ratio = (q.scale / p.scale).square()
    shift = ((q.loc - p.loc) / p.scale).square()
    return 0.5 * (shift + ratio - 1 - ratio.log()).flatten(-len(q.event_shape)).sum(-1)


class GreyBernoulli(Bernoulli):
    """Bernoulli that also scores grey levels x in [0, 1], as Kingma & Welling (2013) do.

        log p(x) = x ln π + (1 − x) ln(1 − π)        nats

    For x in {0, 1} this is the Bernoulli. For a grey level it is its expected value when the
    pixel is drawn with probability x: a cross entropy, not a density over [0, 1].

    Raises:
        ValueError: non-finite logits, or a value outside [0, 1].
    """

    support = constraints.unit_interval

    def __init__(self, logits: Tensor, validate_args: bool | None = None):
        super().__init__(logits=logits, validate_args=False)
        self._validate_args = (
            Distribution._validate_args if validate_args is None else validate_args
        )
        # One sum finds what is not finite; torch's elementwise check costs half a log_prob here.
        if self._validate_args and not logits.sum(dtype=torch.float32).isfinite():
            raise ValueError("expected finite logits, got nan or infinity among them")

    def log_prob(self, value: Tensor) -> Tensor:
        """Log probability in nats, elementwise."""
        if self._validate_args:
            self._validate_sample(value)
        logits, value = torch.broadcast_tensors(self.logits, value)
        return -binary_cross_entropy_with_logits(logits, value, reduction="none")

    def expand(self, batch_shape, _instance=None) -> "GreyBernoulli":
        """The same distribution with the batch shape ``batch_shape``."""
        return GreyBernoulli(self.logits.expand(batch_shape), validate_args=False)


class PixelBernoulli(Independent):
    """One Bernoulli per pixel, independent given its logits.

    Args:
        logits: ``(*batch, *event)``.
        event_dims: how many of the last dimensions make one image, 3 for (channel, row, column).

    Values may be grey levels in [0, 1], see :class:`GreyBernoulli`.

    Raises:
        ValueError: non-finite logits; a value outside [0, 1] or with another event shape.
    """

    arg_constraints: ClassVar = {"logits": constraints.real}

    def __init__(self, logits: Tensor, event_dims: int = 3, validate_args: bool | None = None):
        super().__init__(GreyBernoulli(logits, validate_args), event_dims, validate_args)

    @property
    def logits(self) -> Tensor:
        """Log odds of a white pixel, ``(*batch, *event)``."""
        return self.base_dist.logits

    def expand(self, batch_shape, _instance=None) -> "PixelBernoulli":
        """The same distribution with the batch shape ``batch_shape``."""
        logits = self.logits.expand(torch.Size(batch_shape) + self.event_shape)
        return PixelBernoulli(logits, len(self.event_shape), validate_args=False)

    def log_prob(self, value: Tensor) -> Tensor:
        """Log probability of whole images in nats, ``(*batch,)``."""
        check_event(self, value)
        return super().log_prob(value)
