"""Objectives other than the bound: β-VAE, KL annealing, free bits.

Each turns the two parts of the bound into a loss to be minimised, ``(B,)`` nats::

    fit(vae, images, epochs=10, step=partial(aevb_step, objective=FreeBits(8.0)))

None of them is a bound on log p(x). A model trained with one of them is evaluated, like
every other, by the bound.
"""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from vaelib.networks import is_int
from vaelib.vae import SplitELBO

Objective = Callable[[SplitELBO, int | None], Tensor]


@dataclass(frozen=True)
class Beta:
    """A constant KL weight, the β-VAE: loss = distortion + β · rate.

    Higgins et al. (2017), *beta-VAE*, equation 4; as a way along the rate–distortion curve: Alemi
    et al. (2018).

    >>> Beta(0.5)(SplitELBO(distortion=torch.tensor([80.0]), rate=torch.tensor([20.0])))
    tensor([90.])
    """

    beta: float

    def __post_init__(self):
        _check("beta", self.beta)

    def __call__(self, bound: SplitELBO, update: int | None = None) -> Tensor:
        """The loss of each image; the same at every update."""
        return bound.distortion + self.beta * bound.rate


@dataclass(frozen=True)
class Annealing:
    """KL annealing: a KL weight that rises to 1 in a straight line.

        loss = distortion + β_u · rate,   β_u = min(1, β_0 + (1 − β_0) u / n)

    at update u = 0, 1, … with n = ``updates`` and β_0 = ``start``. Bowman et al. (2016),
    *Generating Sentences from a Continuous Space*, section 3.1 (they raise β along a logistic
    curve); the straight line is that of Sønderby et al. (2016).
    """

    updates: int
    start: float = 0.0

    def __post_init__(self):
        if not is_int(self.updates) or self.updates < 1:
            raise ValueError(f"expected updates >= 1, a whole number, got {self.updates!r}")
        if not 0 <= self.start <= 1:
            raise ValueError(f"expected a start in [0, 1], got {self.start}")

    def beta(self, update: int) -> float:
        """The KL weight β_u."""
        return min(1.0, self.start + (1 - self.start) * update / self.updates)

    def __call__(self, bound: SplitELBO, update: int | None = None) -> Tensor:
        """The loss of each image at this update, whose number is needed."""
        if update is None or update < 0:
            raise ValueError(f"expected the number of the update, 0 or more, got {update}")
        return bound.distortion + self.beta(update) * bound.rate


@dataclass(frozen=True)
class FreeBits:
    """Free bits: a rate up to λ in each group of latents costs nothing.

        loss = distortion + Σ_j max(λ, mean over the minibatch of rate_j)

    Kingma et al. (2016), *Improved Variational Inference with Inverse Autoregressive Flow*,
    equation 15, whose mean is over the minibatch: single images may go below λ. With ``per_image``
    the maximum is taken for each image by itself.

    Groups: "total", all latents together; "row", each row of z ``(rows, d)``, or entry of a vector;
    "latent", each variable by itself.

    >>> FreeBits(8.0)(SplitELBO(torch.tensor([80.0, 90.0]), rate=torch.tensor([2.0, 4.0])))
    tensor([88., 98.])
    """

    nats: float
    group: str = "total"
    per_image: bool = False

    def __post_init__(self):
        _check("nats", self.nats)
        if self.group not in ("total", "row", "latent"):
            raise ValueError(f"expected group 'total', 'row' or 'latent', got {self.group!r}")

    def __call__(self, bound: SplitELBO, update: int | None = None) -> Tensor:
        """The loss of each image; groups need the rate of each latent, ``elbo(split=True)``."""
        rates = self._rates(bound)  # (B, groups)
        if not self.per_image:
            rates = rates.mean(0)
        return bound.distortion + rates.clamp(min=self.nats).sum(-1)

    def _rates(self, bound: SplitELBO) -> Tensor:
        if self.group == "total":
            return bound.rate.unsqueeze(-1)
        if bound.terms is None:
            raise ValueError(
                f"expected the rate of each latent for group {self.group!r}, got only their sum: "
                "call elbo(x, split=True); where the KL has no closed form, use 'total'"
            )
        if self.group == "row" and bound.terms.dim() > 2:
            return bound.terms.flatten(2).sum(-1)
        return bound.terms.flatten(1)


def _check(name: str, value: float) -> None:
    if not 0 <= value <= 1e30:  # beyond it losses overflow; false for nan as well
        raise ValueError(f"expected {name} in [0, 1e30], got {value}")
