"""One equation, three slots: the variational autoencoder and its bound."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.distributions import Distribution, kl_divergence

from vaelib.distributions import check_batch, kl_terms
from vaelib.networks import eval_mode


class ELBO(NamedTuple):
    """The evidence lower bound of each image, in its two parts.

    Attributes:
        distortion: −E_q[log p(x|z)], ``(B,)`` nats.
        rate: KL(q(z|x) ‖ p(z)), ``(B,)`` nats.
    """

    distortion: Tensor
    rate: Tensor
    terms = None

    @property
    def value(self) -> Tensor:
        """The bound −(distortion + rate) ≤ log p(x), ``(B,)`` nats."""
        return -(self.distortion + self.rate)


class SplitELBO(NamedTuple):
    """The bound of each image, its rate split among the latent variables.

    Attributes:
        distortion, rate: as in :class:`ELBO`.
        terms: the share of each latent variable in the rate, ``(B, *latent_shape)`` nats;
            ``None`` where no rule splits it.
    """

    distortion: Tensor
    rate: Tensor
    terms: Tensor | None = None

    value = ELBO.value


class VAE(nn.Module):
    """A latent variable model with its recognition model.

        log p(x) ≥ ELBO(x) = E_q(z|x)[log p(x|z)] − KL(q(z|x) ‖ p(z))

    Kingma & Welling (2013), equation 3.

    Args:
        encoder: ``encoder(x)`` returns q(z|x), batch shape ``(B,)``.
        prior: ``prior()`` returns p(z), batch shape ``()``.
        decoder: ``decoder(z)`` returns p(x|z) with the batch shape of z, any number of
            leading dimensions.

    >>> vae = VAE(MLPEncoder(20), StandardNormal(20), BernoulliMLP(20))
    >>> vae.elbo(torch.rand(8, 1, 28, 28)).value.shape
    torch.Size([8])
    """

    def __init__(self, encoder: nn.Module, prior: nn.Module, decoder: nn.Module):
        super().__init__()
        self.encoder, self.prior, self.decoder = encoder, prior, decoder

    def forward(self, x: Tensor, samples: int = 1, **settings) -> ELBO | SplitELBO:
        """The same as :meth:`elbo`; wrappers such as DistributedDataParallel call the module."""
        return self.elbo(x, samples, **settings)

    def elbo(
        self,
        x: Tensor,
        samples: int = 1,
        estimator: str = "auto",
        split: bool = False,
        labels: Tensor | None = None,
    ) -> ELBO | SplitELBO:
        """A differentiable estimate of the bound of each image.

        Args:
            x: images ``(B, *image_shape)``.
            samples: number of draws of z per image, L in the paper.
            estimator: ``"B"`` takes the rate in closed form (SGVB B, equation 7), ``"A"``
                estimates it from the same draws (SGVB A, equation 6), ``"auto"`` is B where a
                KL rule is registered for the pair and A elsewhere.
            split: return the rate of each latent variable, too.
            labels: classes of the images ``(B,)``, for a decoder that is called with z and labels.

        Returns:
            ELBO(distortion, rate), each ``(B,)`` nats; with ``split`` a :class:`SplitELBO`.

        Raises:
            ValueError: fewer than one sample, an unknown estimator, or slots whose shapes do
                not fit each other.
            NotImplementedError: estimator B without a registered KL rule.
        """
        if samples < 1:
            raise ValueError(f"expected samples >= 1, got {samples}")
        if estimator not in ("auto", "A", "B"):
            raise ValueError(f"expected estimator 'auto', 'A' or 'B', got {estimator!r}")
        check_batch(x)
        q, p = self.encoder(x), self.prior()
        _check(
            {
                "batch of prior()": (p.batch_shape, ()),
                "event of encoder(x)": (q.event_shape, p.event_shape),
            }
        )
        leading = () if samples == 1 else (samples,)
        z = q.rsample(leading)  # (*leading, B, *latent_shape)
        given = () if labels is None else (labels.expand(*leading, *labels.shape),)
        likelihood = self.decoder(z, *given)  # batch (*leading, B)
        batch = x.shape[: max(0, x.dim() - len(likelihood.event_shape))]
        _check(
            {
                "images (x)": (x.shape[len(batch) :], likelihood.event_shape),
                "batch of encoder(x)": (q.batch_shape, batch),
                "batch of decoder(z)": (likelihood.batch_shape, (*leading, *batch)),
            }
        )
        distortion, rate = -likelihood.log_prob(x), _rate(q, p, z, estimator)
        if leading:
            distortion = distortion.mean(0)
            rate = rate.mean(0) if rate.dim() > len(batch) else rate
        bound = ELBO(distortion, rate)
        return SplitELBO(*bound, None if estimator == "A" else kl_terms(q, p)) if split else bound

    @torch.no_grad()
    def sample(self, n: int, mean: bool = False, labels: Tensor | None = None) -> Tensor:
        """Draw ``n`` images ``(n, *image_shape)``: z from the prior, then x given z. No dropout.

        Args:
            n: number of images.
            mean: return the mean of p(x|z) in place of a draw, as the papers' pictures do.
            labels: classes ``(n,)``, for a decoder that is called with z and labels.
        """
        if n < 1:
            raise ValueError(f"expected n >= 1, got {n}")
        with eval_mode(self):
            return self._draw(self.prior().sample((n,)), mean, labels)

    @torch.no_grad()
    def reconstruct(self, x: Tensor, mean: bool = False, labels: Tensor | None = None) -> Tensor:
        """Encode, draw z from q(z|x), decode: ``(B, *image_shape)``; settings as in sample."""
        with eval_mode(self):
            return self._draw(self.encoder(x).sample(), mean, labels)

    def _draw(self, z: Tensor, mean: bool, labels: Tensor | None) -> Tensor:
        likelihood = self.decoder(z) if labels is None else self.decoder(z, labels)
        return likelihood.mean if mean else likelihood.sample()


class WithoutLatents(nn.Module):
    """A model of images alone as a VAE whose rate is zero: ELBO(x) = log p(x), exactly.

    It is trained, evaluated and sampled like a :class:`VAE`, and the baseline of its decoder.

    Args:
        decoder: ``decoder()`` returns p(x), batch shape ``()``.

    >>> WithoutLatents(PixelCNN()).elbo(torch.ones(8, 1, 28, 28)).rate
    tensor([0., 0., 0., 0., 0., 0., 0., 0.])
    """

    def __init__(self, decoder: nn.Module):
        super().__init__()
        self.decoder = decoder

    def forward(self, x: Tensor, samples: int = 1, **settings) -> ELBO | SplitELBO:
        """The same as :meth:`elbo`."""
        return self.elbo(x, samples, **settings)

    def elbo(
        self, x: Tensor, samples: int = 1, split: bool = False, labels: Tensor | None = None
    ) -> ELBO | SplitELBO:
        """ELBO(−log p(x), 0), each ``(B,)`` nats; with ``labels`` (B,) it is log p(x|label)."""
        check_batch(x)
        likelihood = self.decoder() if labels is None else self.decoder(labels=labels)
        expected = () if labels is None else x.shape[:1]
        _check({"batch of decoder()": (likelihood.batch_shape, expected)})
        distortion = -likelihood.log_prob(x)
        bound = ELBO(distortion, torch.zeros_like(distortion))
        return SplitELBO(*bound) if split else bound

    @torch.no_grad()
    def sample(self, n: int, labels: Tensor | None = None) -> Tensor:
        """Draw ``n`` images ``(n, *image_shape)``, of the classes ``labels`` (n,) if given."""
        if n < 1:
            raise ValueError(f"expected n >= 1, got {n}")
        with eval_mode(self):
            if labels is not None:
                return self.decoder(labels=labels).sample()
            return self.decoder().sample((n,))


def _rate(q: Distribution, p: Distribution, z: Tensor, estimator: str) -> Tensor:
    """KL(q ‖ p) in closed form, ``(B,)``, or of each draw ``z`` (*leading, B, *latent_shape)."""
    if estimator != "A":
        try:
            return kl_divergence(q, p)
        except NotImplementedError:
            if estimator == "B":
                raise
    return q.log_prob(z) - p.log_prob(z)


def _check(shapes: dict[str, tuple[Sequence[int], Sequence[int]]]) -> None:
    """Raise ``ValueError`` where two shapes differ: torch would broadcast what does not fit."""
    for what, (got, expected) in shapes.items():
        if tuple(got) != tuple(expected):
            raise ValueError(f"{what}: expected shape {tuple(expected)}, got {tuple(got)}")
