"""Priors: modules without input that return p(z)."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.distributions import Distribution, constraints

from vaelib.distributions import AR1, DiagNormal, broadcast, check_event, checking, expanded_batch
from vaelib.networks import full_precision, is_int


class StandardNormal(nn.Module):
    """The prior p(z) = N(0, I) of Kingma & Welling (2013).

    Args:
        shape: shape of z; an int for a vector, ``(length, d)`` for one vector per row.
    """

    def __init__(self, shape: int | Sequence[int]):
        super().__init__()
        shape = (shape,) if is_int(shape) else tuple(shape)
        if not shape or min(shape) < 1:
            raise ValueError(f"expected a shape of positive sizes, got {shape}")
        # Buffers follow .to(device); a distribution kept as an attribute would not.
        self.register_buffer("loc", torch.zeros(shape), persistent=False)
        self.register_buffer("scale", torch.ones(shape), persistent=False)

    def forward(self) -> DiagNormal:
        """p(z), batch shape ``()``."""
        return DiagNormal(self.loc, self.scale, self.loc.dim(), validate_args=False)


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
        self.register_buffer("alpha", prior.alpha.clone())
        self.length = length

    def forward(self) -> AR1:
        """p(z), batch shape ``()``, event shape ``(length, d)``."""
        return AR1(self.alpha, self.length)


class AuxiliaryPrior(nn.Module):
    """A learned prior over rows: an LSTM that reads z_1 … z_{t−1} returns a Gaussian for z_t.

        p(z) = Π_t N(z_t; μ_t, diag σ_t²),   (μ_t, ln σ_t²) = W LSTM(z_1 … z_{t−1}) + b

    Trained after the model, on codes of the training images (``auxiliary_prior_step`` in
    :mod:`vaelib.training.learning`), it replaces the prior that the model was trained with:
    ``VAE(vae.encoder, auxiliary, vae.decoder)``. Its better predictions lower the rate at the same
    distortion. Razavi et al. (2019).

    Args:
        latents: size d of the vector of each row.
        length: number of rows.
        hidden: units of the LSTM.

    >>> AuxiliaryPrior(2, 14)().sample((3,)).shape
    torch.Size([3, 14, 2])
    """

    def __init__(self, latents: int, length: int, hidden: int = 64):
        super().__init__()
        sizes = latents, length, hidden
        if not all(is_int(size) and size >= 1 for size in sizes):
            raise ValueError(f"expected latents, length and hidden >= 1, got {sizes}")
        latents, length, hidden = map(int, sizes)  # an LSTM refuses numpy's
        self.event_shape = (length, latents)
        self.lstm = nn.LSTM(latents, hidden, batch_first=True)
        self.out = nn.Linear(hidden, 2 * latents)

    def train(self, mode: bool = True) -> "AuxiliaryPrior":
        """Keep the LSTM in training mode: cuDNN has no backward pass in evaluation mode.

        Without dropout its two modes are the same. HMC and appendix D need gradients throughout.
        """
        super().train(mode)
        self.lstm.train()
        return self

    def forward(self) -> "RecurrentNormal":
        """p(z), batch shape ``()``, event shape ``(length, d)``."""
        return RecurrentNormal(self)

    def step(self, previous: Tensor, state=None) -> tuple[DiagNormal, tuple[Tensor, Tensor]]:
        """p(z_t | z_1 … z_{t−1}) of the rows after ``previous``, and the LSTM's state there.

        ``previous`` holds z_{t−1} of one or more rows ``(B, rows, d)``, zeros for the first, and
        ``state`` is the LSTM's before them. The distribution has batch ``(B, rows)``, event (d,).
        """
        seen, state = full_precision(self.lstm, previous, state)
        loc, log_variance = full_precision(self.out, seen).chunk(2, dim=-1)
        return DiagNormal(loc, torch.exp(0.5 * log_variance)), state


class RecurrentNormal(Distribution):
    """p(z) of an :class:`AuxiliaryPrior`, which returns it; it is not built by hand.

    Draws are not reparameterised: nothing in this library learns through them.

    Raises:
        ValueError: a value with another event shape, or one that is not finite.
    """

    arg_constraints = {}
    support = constraints.independent(constraints.real, 2)

    def __init__(self, prior: AuxiliaryPrior, batch_shape: Sequence[int] = ()):
        self.prior, event_shape = prior, torch.Size(prior.event_shape)
        super().__init__(torch.Size(batch_shape), event_shape, validate_args=False)

    def expand(self, batch_shape, _instance=None) -> "RecurrentNormal":
        """The same distribution with the batch shape ``batch_shape``."""
        return RecurrentNormal(self.prior, expanded_batch(self, batch_shape))

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density in nats, ``(*batch,)``, in one pass of the LSTM over all rows."""
        check_event(self, value)
        if checking() and not value.isfinite().all():
            raise ValueError("expected finite values, got nan or infinity among them")
        rows = value.reshape(-1, *self.event_shape)
        previous = torch.cat([torch.zeros_like(rows[:, :1]), rows[:, :-1]], 1)
        log_density = self.prior.step(previous)[0].log_prob(rows).sum(-1).view(value.shape[:-2])
        return log_density.expand(broadcast("batches", log_density.shape, self.batch_shape))

    @torch.no_grad()
    def sample(self, sample_shape=()) -> Tensor:
        """Draw row after row, ``(*sample_shape, *batch, length, d)``."""
        shape = self._extended_shape(torch.Size(sample_shape))
        like, (length, latents) = self.prior.out.weight, self.event_shape
        row, state, rows = like.new_zeros(shape[:-2].numel(), 1, latents), None, []
        for _ in range(length):
            given_past, state = self.prior.step(row, state)
            row = given_past.sample()
            rows.append(row)
        return torch.cat(rows, 1).view(shape)
