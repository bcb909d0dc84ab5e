"""The distributions that fill the slots, each with its Kullback–Leibler rule beside it.

``torch.distributions`` broadcasts a value of another event shape; the classes here refuse it. They
check values whatever torch's process-wide flag says (``torch.compile`` and ``python -O`` switch it
off), except within :func:`no_validation` and in compiled code.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import ClassVar

import torch
from torch import Tensor
from torch.distributions import Bernoulli, Distribution, Independent, Normal, constraints
from torch.distributions.kl import register_kl
from torch.nn.functional import binary_cross_entropy_with_logits

from vaelib.networks import is_int, to_float32

_LOG_SQRT_2PI = 0.5 * math.log(2 * math.pi)
_checks: ContextVar[bool] = ContextVar("checks", default=True)


def checking() -> bool:
    """Whether values are checked here: not while code is compiled, which cannot ask for them."""
    return not torch.compiler.is_compiling() and _checks.get()


@contextmanager
def no_validation() -> Iterator[None]:
    """Skip the checks of values within the block, torch's own included."""
    token, torchs = _checks.set(False), Distribution._validate_args
    Distribution.set_default_validate_args(False)
    try:
        yield
    finally:
        _checks.reset(token)
        Distribution.set_default_validate_args(torchs)


def aminmax(x: Tensor) -> tuple[float, float]:
    """The least and the greatest value as numbers; both are nan if one value is."""
    low, high = x.detach().aminmax()
    return low.item(), high.item()


def check_event(distribution: Distribution, value: Tensor) -> None:
    """Raise ``ValueError`` unless ``value`` ends in the event shape of ``distribution``."""
    event, shape = tuple(distribution.event_shape), tuple(value.shape)
    if shape[len(shape) - len(event) :] != event or len(shape) < len(event):
        raise ValueError(f"expected a value of shape (*batch, *{event}), got {shape}")
    if value.is_complex():
        raise TypeError(f"expected a real value, got {value.dtype}")
    if value.numel() == 0:
        raise ValueError(f"expected at least one value, got shape {shape}")


def broadcast(what: str, one: torch.Size, other: torch.Size) -> torch.Size:
    """The shape that both broadcast to; a ``ValueError`` names ``what`` does not."""
    if one == other or not other:
        return one
    try:
        return torch.broadcast_shapes(one, other)
    except RuntimeError as error:
        shapes = f"{tuple(one)} and {tuple(other)}"
        raise ValueError(f"expected {what} that broadcast, got {shapes}") from error


def expanded_batch(distribution: Distribution, shape: Sequence[int]) -> torch.Size:
    """``shape``, and ``ValueError`` unless the batch of ``distribution`` expands to it."""
    old, shape = distribution.batch_shape, torch.Size(shape)
    if broadcast("batch shapes", shape, old) != shape:
        raise ValueError(f"expected a batch shape that {tuple(old)} expands to, got {tuple(shape)}")
    return shape


def check_batch(x: Tensor) -> None:
    """Raise an error that says what to do unless ``x`` is a float batch ``(B, *event)``, B ≥ 1."""
    advice = ""
    if not isinstance(x, Tensor):
        advice = "vaelib.data.as_tensors(x)"
    elif not x.is_floating_point() or x.dtype == torch.float16:
        advice = "x.float() / 255, if 255 is white" if x.dtype == torch.uint8 else "x.float()"
    if advice:
        got = x.dtype if isinstance(x, Tensor) else torch.typename(x)
        raise TypeError(f"expected a float tensor (B, *event), got {got}: convert with {advice}")
    if x.dim() < 2 or x.numel() == 0:
        raise ValueError(f"expected a batch (B, *event) of at least one, got {tuple(x.shape)}")


class _Normal(Normal):
    """A normal of parameters that are checked and broadcast: small updates notice the time."""

    def __init__(self, loc: Tensor, scale: Tensor):
        self.loc, self.scale = loc, scale
        Distribution.__init__(self, loc.shape, validate_args=False)


class DiagNormal(Independent):
    """Normal with a diagonal covariance over the last ``event_dims`` dimensions.

        log p(z) = −½ Σ_i [ (z_i − μ_i)²/σ_i² + ln 2πσ_i² ]        nats

    Args:
        loc: means μ, ``(*batch, *event)``.
        scale: standard deviations σ > 0, broadcast against ``loc``.
        event_dims: how many of the last dimensions make one event; 1 for a vector, 2 for one
            vector per row ``(length, d)``, 3 for an image.
        validate_args: ``False`` skips the check of the parameters' values.

    Raises:
        TypeError: parameters that are not floats.
        ValueError: means that are not finite, scales that are not positive or whose squares their
            type cannot hold, a value that is nan, or shapes that do not fit.

    >>> DiagNormal(torch.zeros(8, 5), torch.ones(8, 5)).log_prob(torch.zeros(8, 5)).shape
    torch.Size([8])
    """

    def __init__(
        self, loc: Tensor, scale: Tensor, event_dims: int = 1, validate_args: bool | None = None
    ):
        loc, scale = to_float32(torch.as_tensor(loc)), to_float32(torch.as_tensor(scale))
        if not (loc.is_floating_point() and scale.is_floating_point()):
            raise TypeError(f"expected float loc and scale, got {loc.dtype} and {scale.dtype}")
        if loc.shape != scale.shape:
            shape = broadcast("loc and scale", loc.shape, scale.shape)
            loc, scale = loc.expand(shape), scale.expand(shape)
        _check_event_dims(event_dims, loc)
        if validate_args is not False and checking() and loc.numel():
            _check_finite("loc", loc)
            _check_scale(scale)
        super().__init__(_Normal(loc, scale), event_dims, validate_args=False)

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
        density = super().log_prob(value)
        # Parameters are finite: only a value that is nan can make a density nan.
        if checking() and density.isnan().any():
            raise ValueError("DiagNormal: expected a value without nan, got nan in it")
        return density


class PixelBernoulli(Independent):
    """One Bernoulli per pixel, independent given its logits.

        log p(x) = Σ_i x_i ln π_i + (1 − x_i) ln(1 − π_i)        nats

    Grey levels x in [0, 1] are scored by the same formula, as Kingma & Welling (2013) do: then it
    is the expected log probability of pixels drawn white with probability x, a cross entropy and
    no density over [0, 1].

    Args:
        logits: ``(*batch, *event)``.
        event_dims: how many of the last dimensions make one image, 3 for (channel, row, column).
        validate_args: ``False`` skips the check of the logits' values.

    Raises:
        ValueError: non-finite logits; a value outside [0, 1] or with another event shape.
    """

    def __init__(self, logits: Tensor, event_dims: int = 3, validate_args: bool | None = None):
        logits = to_float32(logits)
        _check_event_dims(event_dims, logits)
        if validate_args is not False and checking() and logits.numel():
            _check_finite("logits", logits)
        base = Bernoulli(logits=logits, validate_args=False)
        super().__init__(base, event_dims, validate_args=False)

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
        if checking() and value.dtype != torch.bool:
            low, high = aminmax(value)
            if not (low >= 0 and high <= 1):  # false for nan as well
                raise ValueError(f"expected values in [0, 1], got {low} to {high}")
        # Flat, and the sign changed once an image: a training step spends its time here.
        first, logits = -len(self.event_shape), self.logits
        if logits.dtype != value.dtype:  # the finer of the two decides
            finer = torch.promote_types(logits.dtype, value.dtype)
            logits, value = logits.to(finer), value.to(finer)
        logits, value = logits.flatten(first), value.flatten(first)
        if logits.shape != value.shape:
            logits, value = torch.broadcast_tensors(logits, value)
        each = binary_cross_entropy_with_logits(logits, value, reduction="none")
        return -each.sum(-1)


class AR1(Distribution):
    """Stationary first-order autoregressive process, one per channel: slow features.

        z_1 ~ N(0, 1),   z_t | z_{t−1} ~ N(α z_{t−1}, 1 − α²)

    so that every z_t has unit variance and neighbours are correlated by α. With α = 0 the rows
    are independent. Razavi et al. (2019), section 2.2.

    Args:
        alpha: correlation of neighbours in each channel, ``(d,)`` in [0, 1); an array or a list
            gets torch's default type.
        length: number of steps n ≥ 1.

    Event shape ``(length, d)``, batch shape ``()`` or what it is expanded to.

    Raises:
        ValueError: settings out of range; a value that is not finite or has another event shape.

    >>> AR1(torch.tensor([0.5, 0.9]), length=8).rsample((3,)).shape
    torch.Size([3, 8, 2])
    """

    arg_constraints: ClassVar = {"alpha": constraints.half_open_interval(0.0, 1.0)}
    support = constraints.independent(constraints.real, 2)
    has_rsample = True

    def __init__(self, alpha: Tensor, length: int, validate_args: bool | None = None):
        self.alpha = _check_alpha(alpha, values=validate_args is not False and checking())
        self.length = _check_length(length)
        event_shape = torch.Size((self.length, len(self.alpha)))
        super().__init__(event_shape=event_shape, validate_args=False)

    def expand(self, batch_shape, _instance=None) -> "AR1":
        """The same distribution with the batch shape ``batch_shape``."""
        new = AR1(self.alpha, self.length, validate_args=False)
        new._batch_shape = expanded_batch(self, batch_shape)
        return new

    @property
    def innovation_scale(self) -> Tensor:
        """Standard deviation of each step given the one before: 1, then √(1 − α²), ``(n, d)``."""
        step = (1 - self.alpha.square()).sqrt().expand(self.length - 1, -1)
        return torch.cat([torch.ones_like(self.alpha).unsqueeze(0), step])

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
        innovation, scale = value - self.alpha * _previous(value), self.innovation_scale
        each = -0.5 * (innovation / scale).square() - scale.log() - _LOG_SQRT_2PI
        log_density = each.sum((-2, -1))
        if checking() and log_density.isnan().any():
            raise ValueError("AR1: expected finite values, got nan or infinity among them")
        return log_density.expand(broadcast("batches", log_density.shape, self.batch_shape))

    def entropy(self) -> Tensor:
        """Entropy in nats, batch shape."""
        each = 0.5 + _LOG_SQRT_2PI + self.innovation_scale.log()
        return each.sum().expand(self.batch_shape)


def kl_terms(q: Distribution, p: Distribution) -> Tensor | None:
    """What each latent variable adds to KL(q ‖ p), ``(*batch, *event)`` nats, each at least 0.

    Against a DiagNormal, ½[(μ_q − μ_p)²/σ_p² + σ_q²/σ_p² − 1 − ln σ_q²/σ_p²] (Kingma & Welling
    2013, appendix B, for p = N(0, I)). Against an AR(1), the mean of KL(q_t ‖ p(z_t | z_{t−1})),

        ½[((μ_t − α μ_{t−1})² + σ_t² + α² σ_{t−1}²)/(1 − α²) − 1 − ln(σ_t²/(1 − α²))]

    for t ≥ 2 and KL(q_1 ‖ N(0, 1)) for t = 1 (Razavi et al. 2019, section 2.2). Their sum over the
    event is ``kl_divergence(q, p)``. ``None`` for all other pairs, subclasses included.
    """
    if type(q) is not DiagNormal or type(p) not in (DiagNormal, AR1):
        return None
    if q.event_shape != p.event_shape:  # the two would broadcast to a number without meaning
        events = f"{tuple(q.event_shape)} and {tuple(p.event_shape)}"
        raise ValueError(f"expected equal event shapes, got {events}")
    batch = broadcast("batch shapes", q.batch_shape, p.batch_shape)
    loc, deviation = q.base_dist.loc, q.base_dist.scale
    if isinstance(p, DiagNormal):
        ratio, shift = deviation / p.scale, (loc - p.loc) / p.scale
        # A product is cheaper than a square to differentiate.
        return 0.5 * (shift * shift + ratio * ratio - 1) - ratio.log()
    variance, scale = deviation.square(), p.innovation_scale
    innovation = loc - p.alpha * _previous(loc)
    spread = variance + p.alpha.square() * _previous(variance)
    log_ratio = 2 * (deviation / scale).log()
    terms = 0.5 * ((innovation.square() + spread) / scale.square() - 1 - log_ratio)
    return terms.expand(batch + q.event_shape)


@register_kl(DiagNormal, DiagNormal)
@register_kl(DiagNormal, AR1)
def _kl(q: DiagNormal, p: DiagNormal | AR1) -> Tensor:
    """The sum of :func:`kl_terms`, nats."""
    return kl_terms(q, p).flatten(-len(q.event_shape)).sum(-1)


def committed_rate(alpha: Tensor, length: int) -> Tensor:
    """The least rate δ of any diagonal posterior against an AR(1) prior, a scalar in nats.

        δ = ½ Σ_k [ (n − 2) ln(1 + α_k²) − ln(1 − α_k²) ],   n ≥ 2

    and 0 for n = 1, where the posterior can be the prior. Reached at μ = 0 with the variances of
    :func:`committed_variance`. Independent factors cannot match a correlated prior, so no encoder
    and no weights can bring KL(q ‖ p) below δ. Razavi et al. (2019), equation 4.

    Args:
        alpha, length: as in :class:`AR1`.

    >>> committed_rate(torch.tensor([0.5, 0.9]), 14)
    tensor(5.8730)
    """
    squared, length = _check_alpha(alpha).square(), _check_length(length)
    if length == 1:
        return torch.zeros_like(squared).sum()
    return 0.5 * ((length - 2) * torch.log1p(squared) - torch.log1p(-squared)).sum()


def committed_variance(alpha: Tensor, length: int) -> Tensor:
    """The posterior variances σ² that reach :func:`committed_rate`, ``(length, d)``.

    1 − α² at both ends, (1 − α²)/(1 + α²) inside; 1 for length 1.
    """
    squared, length = _check_alpha(alpha).square(), _check_length(length)
    if length == 1:
        return torch.ones_like(squared).unsqueeze(0)
    inside = torch.arange(length, device=squared.device).unsqueeze(-1) % (length - 1) != 0
    return torch.where(inside, (1 - squared) / (1 + squared), 1 - squared)


def _previous(rows: Tensor) -> Tensor:
    """Row t − 1 in place of row t, and zero before the first: ``(*batch, n, d)``."""
    return torch.cat([torch.zeros_like(rows[..., :1, :]), rows[..., :-1, :]], -2)


def _check_event_dims(event_dims: int, parameter: Tensor) -> None:
    if not 1 <= event_dims <= parameter.dim():
        shape = tuple(parameter.shape)
        raise ValueError(f"expected 1 <= event_dims <= {len(shape)} for {shape}, got {event_dims}")


def _check_scale(scale: Tensor) -> None:
    """Raise ``ValueError`` where there is no density: it needs σ², neither zero nor infinite."""
    least, most = aminmax(scale)
    if not least > 0:
        raise ValueError(f"expected scale > 0, got {least} in it")
    limits = torch.finfo(scale.dtype)
    if not limits.tiny**0.5 <= least <= most <= limits.max**0.5:
        kind, got = scale.dtype, f"{least} to {most}"
        raise ValueError(f"expected scales whose squares {kind} can hold, got {got}")


def _check_finite(name: str, x: Tensor) -> None:
    low, high = aminmax(x)
    if not -math.inf < low <= high < math.inf:
        raise ValueError(f"expected finite {name}, got {low} to {high}")


def _check_alpha(alpha: Tensor | Sequence[float], values: bool = True) -> Tensor:
    """As a float tensor: arrays and lists get torch's default type, as weights have it."""
    default = torch.get_default_dtype()
    alpha = to_float32(alpha) if isinstance(alpha, Tensor) else torch.tensor(alpha, dtype=default)
    if alpha.is_complex() or alpha.dim() != 1 or not len(alpha):
        raise ValueError(f"expected real alpha (d,), got {alpha.dtype} {tuple(alpha.shape)}")
    if values and not ((alpha >= 0) & (alpha < 1)).all():
        raise ValueError(f"expected alpha in [0, 1), got {alpha.tolist()}")
    return alpha if alpha.is_floating_point() else alpha.to(default)


def _check_length(length: int) -> int:
    if not is_int(length) or length < 1:
        raise ValueError(f"expected a length of at least 1, got {length!r}")
    return int(length)
