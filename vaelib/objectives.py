"""What others changed in the bound: a price on the rate, a price that rises, an allowance.

Each objective turns the two parts of the bound into a loss to be minimised, one number an image
in nats, and goes into :func:`vaelib.learning.aevb_step`::

    step = partial(learning.aevb_step, objective=FreeBits(8.0))
    training.fit(vae, images, epochs=10, step=step)

None of them but the bound itself is a bound on log p(x). A model trained with one of them is
judged, like every other, by the bound.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor


class Parts(Protocol):
    """What an objective reads of :class:`vaelib.vae.SplitELBO`."""

    distortion: Tensor
    rate: Tensor
    terms: Tensor | None


Objective = Callable[[Parts, int | None], Tensor]


@dataclass(frozen=True)
class Beta:
    """A constant price on the rate, the β-VAE.

        loss = distortion + β · rate        nats, ``(B,)``

    β = 1 is the negative bound. With β < 1 a nat of rate is worth buying even if it saves less
    than a nat of distortion; β > 1 makes the model sparing with its latents. Higgins et al.
    (2017), *beta-VAE*, equation 4; as a way along the rate–distortion curve: Alemi et al. (2018).

    Args:
        beta: the price, β ≥ 0.

    >>> Beta(0.5)(SplitELBO(distortion=torch.tensor([80.0]), rate=torch.tensor([20.0])))
    tensor([90.])
    """

    beta: float

    def __post_init__(self):
        _check("beta", self.beta, 0)

    def __call__(self, bound: Parts, update: int | None = None) -> Tensor:
        """The loss of each image; the same at every update."""
        return bound.distortion + self.beta * bound.rate


@dataclass(frozen=True)
class Annealing:
    """A price on the rate that rises to 1 in a straight line, KL annealing.

        loss = distortion + β_u · rate,   β_u = min(1, β_0 + (1 − β_0) u / n)      nats, ``(B,)``

    at update u = 0, 1, … From update n on it is the negative bound: only the way there differs.
    Bowman et al. (2016), *Generating Sentences from a Continuous Space*, section 3.1 (they raise
    β along a logistic curve); the straight line is that of Sønderby et al. (2016).

    Args:
        updates: n ≥ 1, after how many updates the price is 1.
        start: β_0 in [0, 1].
    """

    updates: int
    start: float = 0.0

    def __post_init__(self):
        if isinstance(self.updates, bool) or not isinstance(self.updates, int) or self.updates < 1:
            raise ValueError(f"expected updates >= 1, a whole number, got {self.updates!r}")
        if not 0 <= self.start <= 1:
            raise ValueError(f"expected a start in [0, 1], got {self.start}")

    def beta(self, update: int) -> float:
        """The price β_u."""
        return min(1.0, self.start + (1 - self.start) * update / self.updates)

    def __call__(self, bound: Parts, update: int | None = None) -> Tensor:
        """The loss of each image at this update.

        Raises:
            ValueError: without the number of the update.
        """
        if update is None or update < 0:
            raise ValueError(f"expected the number of the update, 0 or more, got {update}")
        return bound.distortion + self.beta(update) * bound.rate


@dataclass(frozen=True)
class FreeBits:
    """An allowance of rate that costs nothing.

        loss = distortion + Σ_j max(λ, mean over the minibatch of rate_j)        nats, ``(B,)``

    over groups j of latent variables. A group that stays below its allowance is charged λ all the
    same, so it has no reason to stay there; nor has it one to carry anything in particular.
    Kingma et al. (2016), *Improved Variational Inference with Inverse Autoregressive Flow*,
    equation 15. The mean is over the minibatch, as there: single images may go below λ.

    Args:
        nats: λ ≥ 0 of each group.
        group: "total", all latents together; "row", one group for each row of z ``(rows, d)``,
            which for a vector is each of its entries; "latent", each variable by itself.

    >>> FreeBits(8.0)(SplitELBO(torch.tensor([80.0, 90.0]), rate=torch.tensor([2.0, 4.0])))
    tensor([88., 98.])
    """

    nats: float
    group: str = "total"

    def __post_init__(self):
        _check("nats", self.nats, 0)
        if self.group not in ("total", "row", "latent"):
            raise ValueError(f"expected group 'total', 'row' or 'latent', got {self.group!r}")

    def __call__(self, bound: Parts, update: int | None = None) -> Tensor:
        """The loss of each image; the same at every update.

        Raises:
            ValueError: the rate of groups is asked for, and the bound does not know the rate of
                each latent variable because no rule splits the KL of this posterior and prior.
        """
        return bound.distortion + self._rates(bound).mean(0).clamp(min=self.nats).sum()

    def _rates(self, bound: Parts) -> Tensor:
        """The rate of each group, ``(B, groups)``."""
        if self.group == "total":
            return bound.rate.unsqueeze(-1)
        if bound.terms is None:
            raise ValueError(
                f"expected the rate of each latent variable for group {self.group!r}, got only "
                "their sum: call elbo(x, split=True); where this posterior and prior have no KL in "
                "closed form, use 'total'"
            )
        if self.group == "row" and bound.terms.dim() > 2:
            return bound.terms.flatten(2).sum(-1)
        return bound.terms.flatten(1)


def _check(name: str, value: float, least: float) -> None:
    if not least <= value < math.inf:  # nan is caught as well
        raise ValueError(f"expected a finite {name} >= {least}, got {value}")
    if value > 1e30:
        raise ValueError(f"expected {name} <= 1e30, beyond which losses overflow, got {value}")
