"""Posterior families: modules that turn the raw outputs of a network into q(z|x).

An encoder is a network with such a head. The family decides which posteriors can be reached,
whatever the network says; with the right prior it commits the model to a rate.
"""

import math
from collections.abc import Sequence

import torch
from scipy.optimize import brentq
from torch import Tensor, nn

from vaelib.distributions import DiagNormal, committed_variance
from vaelib.networks import latent_shape, to_float32


class Posterior(nn.Module):
    """Base class of the families: two raw numbers for each latent variable.

    Args:
        latents: sizes of z, an int for a vector, ``(rows, d)`` for one vector per row.

    Attributes:
        event_shape: shape of z, ``(latents,)`` or ``(rows, d)``.
        raw_shape: shape of the raw outputs, ``(2·latents,)`` or ``(rows, 2·d)``.

    Shapes: ``(*batch, *raw_shape)`` to a :class:`DiagNormal` with batch ``batch``.
    """

    def __init__(self, latents: int | Sequence[int]):
        super().__init__()
        self.event_shape = shape = latent_shape(latents)
        self.raw_shape = (*shape[:-1], 2 * shape[-1])

    def _split(self, raw: Tensor) -> tuple[Tensor, Tensor]:
        """The two raw numbers of each latent variable, ``(*batch, *event_shape)`` each."""
        batch, got = raw.dim() - len(self.raw_shape), tuple(raw.shape)
        if batch < 0 or got[batch:] != self.raw_shape:
            raise ValueError(f"expected raw outputs (*batch, *{self.raw_shape}), got {got}")
        if not raw.is_floating_point():
            raise TypeError(f"expected float raw outputs, got {raw.dtype}")
        return to_float32(raw).chunk(2, dim=-1)


class GaussianPosterior(Posterior):
    """Any diagonal Gaussian: raw outputs (m, v) to N(m, e^v).

    Kingma & Welling (2013), appendix C.2.

    >>> GaussianPosterior(5)(torch.zeros(8, 10)).event_shape
    torch.Size([5])
    """

    def forward(self, raw: Tensor) -> DiagNormal:
        """q(z|x), ``(*batch, *raw_shape)`` to batch ``batch``."""
        loc, log_variance = self._split(raw)
        return DiagNormal(loc, torch.exp(0.5 * log_variance), len(self.event_shape))


class SequentialPosterior(Posterior):
    """The posterior for an :class:`vaelib.distributions.AR1` prior: one vector per row.

        μ = m,   ln σ_t = ln σ*_t + r tanh(s / r)

    around σ*², the variances of :func:`vaelib.distributions.committed_variance`: raw outputs of
    zero give the committed rate δ. Every diagonal posterior has KL(q ‖ AR1) ≥ δ; this one starts
    there, keeps ln σ within ± r of ln σ*, which keeps training stable, and has a σ for each row:
    one σ shared by all rows cannot reach δ. Razavi et al. (2019).

    Args:
        alpha: correlations of the prior, ``(d,)`` in [0, 1).
        length: number of rows n.
        reach: the most that ln σ may differ from ln σ*, r > 0.

    Raises:
        ValueError: settings out of range, or raw outputs that are not ``(*batch, n, 2·d)``.

    >>> q = SequentialPosterior(torch.tensor([0.5, 0.9]), 14)(torch.zeros(8, 14, 4))
    >>> kl_divergence(q, AR1(torch.tensor([0.5, 0.9]), 14))[0]  # committed_rate(alpha, 14)
    tensor(5.8730)
    """

    def __init__(self, alpha: Tensor, length: int, reach: float = 3.0):
        variance = committed_variance(alpha, length)  # checks both
        super().__init__(variance.shape)
        if not (reach > 0 and math.isfinite(reach)):
            raise ValueError(f"expected a finite reach > 0, got {reach}")
        self.reach = reach
        self.register_buffer("log_scale", 0.5 * variance.log())  # ln σ*, (n, d)

    def forward(self, raw: Tensor) -> DiagNormal:
        """q(z|x), ``(*batch, n, 2·d)`` to batch ``batch``, event ``(n, d)``."""
        loc, shift = self._split(raw)
        log_scale = self.log_scale.to(loc) + self.reach * torch.tanh(shift / self.reach)
        return DiagNormal(loc, log_scale.exp(), 2)


class IndependentPosterior(Posterior):
    """Gaussians that keep a rate of at least δ against N(0, 1), each dimension by itself.

        KL(N(μ, σ²) ‖ N(0, 1)) ≥ δ   ⇔   μ² ≥ g(σ²) = 2δ + 1 + ln σ² − σ²

    ln σ² lies between the two roots of g, and |μ| = √g(σ²) + |m|, so that m = 0 costs δ exactly
    and every δ-posterior between the roots can be reached. Razavi et al. (2019), appendix. The
    square root matters: with g in its place the rate falls below δ.

    μ and −μ cost the same. With ``sign`` "free", μ has the sign of m: each image chooses a side,
    and the rate does not jump where m crosses zero and μ the gap between −√g and √g. With
    "positive", μ = √g + relu(m) for all images, with "negative" the mirror image: no gap, but no
    gradient where m has the wrong sign, and no information in the side.

    Args:
        delta: least rate of each dimension, 0 < δ ≤ 40 nats (beyond, σ² would underflow).
        latents: an int for a vector, ``(rows, d)`` for one vector per row.
        sign: "free", "positive" or "negative".

    Raises:
        ValueError: settings out of range, or raw outputs that are not ``(*batch, *raw_shape)``.

    >>> q = IndependentPosterior(0.08, 5)(torch.zeros(8, 10))
    >>> kl_divergence(q, StandardNormal(5)())[0]  # 5 · 0.08
    tensor(0.4000)
    """

    def __init__(self, delta: float, latents: int | Sequence[int], sign: str = "free"):
        super().__init__(latents)
        if not 0 < delta <= 40:
            raise ValueError(f"expected 0 < delta <= 40 nats, got {delta}")
        if sign not in ("free", "positive", "negative"):
            raise ValueError(f"expected sign 'free', 'positive' or 'negative', got {sign!r}")
        # Plain numbers: a buffer would lose digits on its way through single precision.
        self.delta, self.sign = float(delta), sign
        self.log_variance = tuple(math.log(root) for root in variance_roots(self.delta))

    def forward(self, raw: Tensor) -> DiagNormal:
        """q(z|x), ``(*batch, *raw_shape)`` to batch ``batch``."""
        shift, place = self._split(raw)
        low, high = self.log_variance
        log_variance = low + (high - low) * place.sigmoid()
        squared = 2 * self.delta + 1 + log_variance - log_variance.exp()  # g
        # Rounding can make g negative at its roots, and √ has no derivative at 0. There σ² alone
        # costs δ already, and μ = 0 is right.
        least = squared.clamp(min=torch.finfo(squared.dtype).tiny).sqrt()
        if self.sign == "free":
            loc = shift + torch.where(shift < 0, -least, least)
        else:
            loc = least + shift.relu() if self.sign == "positive" else -least - (-shift).relu()
        return DiagNormal(loc, (0.5 * log_variance).exp(), len(self.event_shape))


def variance_roots(delta: float) -> tuple[float, float]:
    """The two σ² with KL(N(0, σ²) ‖ N(0, 1)) = δ nats, below and above 1.

        2δ + 1 + ln σ² − σ² = 0

    Between them, μ = 0 would cost less than δ.

    >>> [round(root**0.5, 3) for root in variance_roots(0.08)]
    [0.732, 1.295]
    """

    def g(log_variance: float) -> float:
        return far + log_variance - math.exp(log_variance)

    far = 2 * delta + 1  # g is 2δ at 0 and negative at ± far
    return math.exp(brentq(g, -far, 0, xtol=1e-15)), math.exp(brentq(g, 0, far, xtol=1e-15))
