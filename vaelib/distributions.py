"""The distributions that fill the slots, each with its Kullback–Leibler rule beside it.

``torch.distributions`` forgives wrong shapes by broadcasting. The classes here do not: a
value must have the event shape of the distribution that scores it.
"""

import math
from typing import ClassVar

import torch
from torch import Tensor
from torch.distributions import Bernoulli, Distribution, Independent, Normal, constraints
from torch.distributions.kl import register_kl
from torch.nn.functional import binary_cross_entropy_with_logits

from vaelib.noise import standard_normal
from vaelib.precision import SQUARED, extremes, precise

_LOG_SQRT_2PI = 0.5 * math.log(2 * math.pi)


def check_event(distribution: Distribution, value: Tensor) -> None:
    """Raise ``ValueError`` unless ``value`` ends in the event shape of ``distribution``."""
    event = distribution.event_shape
    if value.shape[value.dim() - len(event) :] != event or value.dim() < len(event):
        raise ValueError(
            f"{type(distribution).__name__}: expected a value of shape (*batch, *{tuple(event)}), "
            f"got {tuple(value.shape)}"
        )
    if value.is_complex():
        raise TypeError(f"expected a real value, got {value.dtype}")
    if value.numel() == 0:
        raise ValueError(f"expected at least one value, got shape {tuple(value.shape)}")


def _alike(new: Independent, old: Independent) -> Independent:
    """``new``, whose parameters were checked as ``old``, looks at values as ``old`` does."""
    new.base_dist._validate_args = old.base_dist._validate_args
    return new


def check_batch(x: Tensor) -> None:
    """Raise ``ValueError`` unless ``x`` is a batch ``(B, *event)`` of at least one datum."""
    if x.dim() < 2 or x.numel() == 0:
        raise ValueError(f"expected a batch (B, *event) of at least one, got {tuple(x.shape)}")


class DiagNormal(Independent):
    """Normal with a diagonal covariance over the last ``event_dims`` dimensions.

        log p(z) = −½ Σ_i [ (z_i − μ_i)²/σ_i² + ln 2πσ_i² ]        nats

    Args:
        loc: means μ, ``(*batch, *event)``.
        scale: standard deviations σ > 0, broadcast against ``loc``.
        event_dims: how many of the last dimensions make one event; 1 for a vector, 2 for one
            vector per row ``(length, d)``, 3 for an image.

    Raises:
        TypeError: parameters that are not floats.
        ValueError: means that are not finite, scales that are not positive or whose squares their
            type cannot hold, two that do not broadcast, or a value with another event shape.

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
        loc, scale = _check_parameters(torch.as_tensor(loc), torch.as_tensor(scale))
        if not 1 <= event_dims <= loc.dim():
            raise ValueError(
                f"expected 1 <= event_dims <= number of dimensions, got event_dims={event_dims} "
                f"for loc and scale {tuple(loc.shape)}"
            )
        checked = Distribution._validate_args if validate_args is None else validate_args
        if checked and loc.numel():
            _check_values(loc, scale)
        # Normal's own constructor asks what is known by now, which small updates would notice.
        base = Normal.__new__(Normal)
        base.loc, base.scale = loc, scale
        Distribution.__init__(base, loc.shape, validate_args=False)
        base._validate_args = checked
        super().__init__(base, event_dims, validate_args=False)

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
        return _alike(DiagNormal(loc, scale, len(self.event_shape), validate_args=False), self)

    def rsample(self, sample_shape=()) -> Tensor:
        """Draws μ + σ ε that gradients pass through, ``(*sample_shape, *batch, *event)``."""
        # Of a batch that is cut into parts, every image keeps its own noise.
        noise = standard_normal(sample_shape, self.batch_shape, self.event_shape, self.loc)
        return super().rsample(sample_shape) if noise is None else self.loc + noise * self.scale

    def sample(self, sample_shape=()) -> Tensor:
        """Draws without gradient, ``(*sample_shape, *batch, *event)``."""
        with torch.no_grad():
            noise = standard_normal(sample_shape, self.batch_shape, self.event_shape, self.loc)
            return super().sample(sample_shape) if noise is None else self.loc + noise * self.scale

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density in nats, ``(*batch,)``."""
        check_event(self, value)
        return super().log_prob(value)


@register_kl(DiagNormal, DiagNormal)
def _kl_diag_normal(q: DiagNormal, p: DiagNormal) -> Tensor:
    """KL(q ‖ p) = ½ Σ_i [ (μ_q − μ_p)²/σ_p² + σ_q²/σ_p² − 1 − ln σ_q²/σ_p² ], nats.

    Kingma & Welling (2013), appendix B, for p = N(0, I).
    """
    return _diag_normal_terms(q, p).flatten(-len(q.event_shape)).sum(-1)


def _diag_normal_terms(q: DiagNormal, p: DiagNormal) -> Tensor:
    """Each i of the sum, ``(*batch, *event)``."""
    _check_same_event(q, p)
    ratio, shift = q.scale / p.scale, (q.loc - p.loc) / p.scale
    # A product is cheaper than a square to differentiate.
    return 0.5 * (shift * shift + ratio * ratio - 1) - ratio.log()


def _check_same_event(q: Distribution, p: Distribution) -> None:
    """Without this the two would broadcast and return a number that means nothing."""
    if q.event_shape != p.event_shape:
        raise ValueError(
            f"expected equal event shapes, got {tuple(q.event_shape)} and {tuple(p.event_shape)}"
        )


def _check_parameters(loc: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """The two as floats of at least 32 bits and of one shape."""
    if not (loc.is_floating_point() and scale.is_floating_point()):
        raise TypeError(f"expected float loc and scale, got {loc.dtype} and {scale.dtype}")
    loc, scale = precise(loc), precise(scale)
    if loc.shape == scale.shape:
        return loc, scale
    try:
        return torch.broadcast_tensors(loc, scale)
    except RuntimeError as error:
        shapes = f"{tuple(loc.shape)} and {tuple(scale.shape)}"
        raise ValueError(f"expected loc and scale that broadcast, got {shapes}") from error


def _check_values(loc: Tensor, scale: Tensor) -> None:
    """Raise ``ValueError`` where there is no density: it needs σ², neither zero nor infinite."""
    low, high = extremes(loc)
    least, most = extremes(scale)
    if not -math.inf < low <= high < math.inf:
        raise ValueError(f"expected finite loc, got {low} to {high}")
    if not least > 0:
        raise ValueError(f"expected scale > 0, got {least} in it")
    tiny, huge = SQUARED[scale.dtype]
    if not tiny <= least <= most <= huge:
        raise ValueError(
            f"expected scales whose squares {scale.dtype} can hold, got {least} to {most}"
        )


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
        logits = precise(logits)
        super().__init__(logits=logits, validate_args=False)
        self._validate_args = (
            Distribution._validate_args if validate_args is None else validate_args
        )
        if self._validate_args and logits.numel():
            low, high = extremes(logits)
            if not -math.inf < low <= high < math.inf:
                raise ValueError(f"expected finite logits, got {low} to {high}")

    def log_prob(self, value: Tensor) -> Tensor:
        """Log probability in nats, elementwise."""
        self.check(value)
        return -_cross_entropy(self.logits, value)

    def check(self, value: Tensor) -> None:
        """Raise ``ValueError`` for values outside [0, 1], unless validation is off."""
        if self._validate_args and value.dtype != torch.bool:
            low, high = extremes(value)
            if not (low >= 0 and high <= 1):  # false for nan as well
                raise ValueError(f"expected values in [0, 1], got {low} to {high}")

    def expand(self, batch_shape, _instance=None) -> "GreyBernoulli":
        """The same distribution with the batch shape ``batch_shape``."""
        new = GreyBernoulli(self.logits.expand(batch_shape), validate_args=False)
        new._validate_args = self._validate_args
        return new


def _cross_entropy(logits: Tensor, value: Tensor) -> Tensor:
    """−x ln π − (1 − x) ln(1 − π) in nats, elementwise, the two broadcast against each other."""
    if logits.dtype != value.dtype:  # the finer of the two decides
        dtype = torch.promote_types(logits.dtype, value.dtype)
        logits, value = logits.to(dtype), value.to(dtype)
    logits, value = torch.broadcast_tensors(logits, value)
    return binary_cross_entropy_with_logits(logits, value, reduction="none")


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
        if not 1 <= event_dims <= logits.dim():
            raise ValueError(
                f"expected 1 <= event_dims <= number of dimensions, got event_dims={event_dims} "
                f"for logits {tuple(logits.shape)}"
            )
        super().__init__(GreyBernoulli(logits, validate_args), event_dims, validate_args=False)

    @property
    def logits(self) -> Tensor:
        """Log odds of a white pixel, ``(*batch, *event)``."""
        return self.base_dist.logits

    def expand(self, batch_shape, _instance=None) -> "PixelBernoulli":
        """The same distribution with the batch shape ``batch_shape``."""
        logits = self.logits.expand(torch.Size(batch_shape) + self.event_shape)
        return _alike(PixelBernoulli(logits, len(self.event_shape), validate_args=False), self)

    def log_prob(self, value: Tensor) -> Tensor:
        """Log probability of whole images in nats, ``(*batch,)``."""
        check_event(self, value)
        self.base_dist.check(value)
        # Flat, and one sign an image, not one a pixel: here a training step spends its time.
        first = -len(self.event_shape)
        return -_cross_entropy(self.logits.flatten(first), value.flatten(first)).sum(-1)


class AR1(Distribution):
    """Stationary first-order autoregressive process, one per channel: slow features.

        z_1 ~ N(0, 1),   z_t | z_{t−1} ~ N(α z_{t−1}, 1 − α²)

    so that every z_t has unit variance and neighbours are correlated by α. With α = 0 the rows
    are independent. Razavi et al. (2019), section 2.2.

    Args:
        alpha: correlation of neighbours in each channel, ``(d,)`` in [0, 1).
        length: number of steps n ≥ 1.

    Event shape ``(length, d)``, batch shape ``()`` or what it is expanded to.

    Raises:
        ValueError: α outside [0, 1) or not a vector, a length below one, or a value with another
            event shape.

    >>> AR1(torch.tensor([0.5, 0.9]), length=8).rsample((3,)).shape
    torch.Size([3, 8, 2])
    """

    arg_constraints: ClassVar = {"alpha": constraints.half_open_interval(0.0, 1.0)}
    support = constraints.independent(constraints.real, 2)
    has_rsample = True

    def __init__(self, alpha: Tensor, length: int, validate_args: bool | None = None):
        # Where validation is off, a graph may be recorded: it cannot ask what the values are.
        checked = Distribution._validate_args if validate_args is None else validate_args
        self.alpha = _check_alpha(alpha, values=checked)
        self.length = _check_length(length)
        event_shape = torch.Size((length, len(self.alpha)))
        super().__init__(torch.Size(), event_shape, validate_args=validate_args)

    def expand(self, batch_shape, _instance=None) -> "AR1":
        """The same distribution with the batch shape ``batch_shape``."""
        new = AR1(self.alpha, self.length, validate_args=False)
        new._batch_shape = torch.Size(batch_shape)
        new._validate_args = self._validate_args
        return new

    @property
    def innovation_scale(self) -> Tensor:
        """Standard deviation of each step given the one before: 1, then √(1 − α²), ``(n, d)``."""
        step = (1 - self.alpha.square()).sqrt().expand(self.event_shape)
        first = torch.arange(self.length, device=step.device).unsqueeze(-1) == 0
        return torch.where(first, torch.ones_like(step), step)

    @property
    def mean(self) -> Tensor:
        """Zero, ``(*batch, n, d)``."""
        return self.alpha.new_zeros(self._extended_shape())

    @property
    def variance(self) -> Tensor:
        """One, at every step, ``(*batch, n, d)``."""
        return self.alpha.new_ones(self._extended_shape())

    def rsample(self, sample_shape=()) -> Tensor:
        """Draws ``(*sample_shape, *batch, n, d)``."""
        shape = self._extended_shape(torch.Size(sample_shape))
        noise = torch.randn(shape, dtype=self.alpha.dtype, device=self.alpha.device)
        rows = list((noise * self.innovation_scale).unbind(-2))
        for t in range(1, self.length):
            rows[t] = rows[t] + self.alpha * rows[t - 1]
        return torch.stack(rows, -2)

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density in nats, ``(*batch,)``."""
        check_event(self, value)
        if self._validate_args:
            self._validate_sample(value)
        innovation = value - self.alpha * _previous(value)
        scale = self.innovation_scale
        log_density = -0.5 * (innovation / scale).square() - scale.log() - _LOG_SQRT_2PI
        log_density = log_density.sum((-2, -1))
        return log_density.expand(torch.broadcast_shapes(log_density.shape, self.batch_shape))

    def entropy(self) -> Tensor:
        """Entropy in nats, batch shape."""
        each = 0.5 + _LOG_SQRT_2PI + self.innovation_scale.log()
        return each.sum().expand(self.batch_shape)


@register_kl(DiagNormal, AR1)
def _kl_diag_normal_ar1(q: DiagNormal, p: AR1) -> Tensor:
    """KL(q ‖ p) in closed form, linear in length and channels, nats.

        ½[μ₁² + σ₁² − 1 − ln σ₁²]
        + ½ Σ_{t≥2} [ ((μ_t − α μ_{t−1})² + σ_t² + α² σ_{t−1}²)/(1 − α²) − 1 − ln(σ_t²/(1 − α²)) ]

    summed over channels. Razavi et al. (2019), section 2.2 and appendix.
    """
    return _diag_normal_ar1_terms(q, p).sum((-2, -1))


def _diag_normal_ar1_terms(q: DiagNormal, p: AR1) -> Tensor:
    """Each t and channel of the sum, ``(*batch, n, d)``: the mean KL(q_t ‖ p(z_t | z_{t−1}))."""
    _check_same_event(q, p)
    variance, scale = q.scale.square(), p.innovation_scale
    innovation = q.loc - p.alpha * _previous(q.loc)
    spread = variance + p.alpha.square() * _previous(variance)
    ratio = 2 * (q.scale / scale).log()
    return 0.5 * ((innovation.square() + spread) / scale.square() - 1 - ratio)


_TERMS = {(DiagNormal, DiagNormal): _diag_normal_terms, (DiagNormal, AR1): _diag_normal_ar1_terms}


def kl_terms(q: Distribution, p: Distribution) -> Tensor | None:
    """What each latent variable adds to KL(q ‖ p), ``(*batch, *event)`` nats.

    Their sum over the event is ``kl_divergence(q, p)``, and each is at least 0. ``None`` for pairs
    without a rule that splits.
    """
    rule = _TERMS.get((type(q), type(p)))  # exactly these: a subclass may have its own KL
    return None if rule is None else rule(q, p)


def committed_rate(alpha: Tensor, length: int) -> Tensor:
    """The least rate δ of any diagonal posterior against an AR(1) prior, a scalar in nats.

        δ = ½ Σ_k [ (n − 2) ln(1 + α_k²) − ln(1 − α_k²) ],   n ≥ 2

    and 0 for n = 1, where the posterior can be the prior. Reached at μ = 0 with the variances of
    :func:`committed_variance`. Independent factors cannot match a correlated prior, so no encoder
    and no weights can bring KL(q ‖ p) below δ. Razavi et al. (2019), equation 4.

    Args:
        alpha: correlation of neighbours in each channel, ``(d,)`` in [0, 1).
        length: number of steps n ≥ 1.
    """
    squared = _check_alpha(alpha).square()
    if _check_length(length) == 1:
        return torch.zeros_like(squared).sum()
    return 0.5 * ((length - 2) * torch.log1p(squared) - torch.log1p(-squared)).sum()


def committed_variance(alpha: Tensor, length: int) -> Tensor:
    """The posterior variances σ² that reach :func:`committed_rate`, ``(length, d)``.

    1 − α² at both ends, (1 − α²)/(1 + α²) inside; 1 for length 1.
    """
    squared = _check_alpha(alpha).square()
    if _check_length(length) == 1:
        return torch.ones_like(squared).unsqueeze(0)
    inside = torch.arange(length, device=squared.device).unsqueeze(-1) % (length - 1) != 0
    return torch.where(inside, (1 - squared) / (1 + squared), 1 - squared)


def _previous(rows: Tensor) -> Tensor:
    """Row t − 1 in place of row t, and zero before the first: ``(*batch, n, d)``."""
    return torch.cat([torch.zeros_like(rows[..., :1, :]), rows[..., :-1, :]], -2)


def _check_alpha(alpha: Tensor, values: bool = True) -> Tensor:
    alpha = precise(torch.as_tensor(alpha))
    if alpha.is_complex():
        raise TypeError(f"expected real alpha, got {alpha.dtype}")
    if not alpha.is_floating_point():
        alpha = alpha.to(torch.get_default_dtype())
    if alpha.dim() != 1 or not len(alpha):
        raise ValueError(f"expected alpha of shape (d,), got {tuple(alpha.shape)}")
    if values and not ((alpha >= 0) & (alpha < 1)).all():
        raise ValueError(f"expected alpha in [0, 1), got {alpha.tolist()}")
    return alpha


def _check_length(length: int) -> int:
    if isinstance(length, bool) or not isinstance(length, int) or length < 1:
        raise ValueError(f"expected a length of at least 1, got {length!r}")
    return length
