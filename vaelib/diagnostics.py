"""Are the latents used? Five measurements and a verdict.

The rate alone cannot tell. It is what the code costs, KL(q(z|x) ‖ p(z)), and a posterior that is
the same for every image can cost as much as it likes. So ask both networks: does the encoder say
anything about the image, and does the decoder listen?
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from vaelib.distributions import check_batch
from vaelib.networks import evaluating
from vaelib.noise import isolated_random_state

NOTHING = 0.5  # nats: below it, the verdict takes a quantity for zero
ACTIVE = 0.01  # Burda et al. (2016): least variance of the posterior mean of an active unit
PAIRS = 4_000_000  # numbers at once in the mutual information, which bounds the memory


@dataclass(frozen=True)
class CollapseReport:
    """What :func:`collapse_report` found; ``print`` it.

    Attributes:
        images: number of images N.
        rate: mean KL(q(z|x) ‖ p(z)), nats an image.
        distortion: mean −E_q[log p(x|z)], nats an image.
        information: estimate of the mutual information of x and z under the encoder, nats; at
            most ln N.
        active_units: how many latent variables have a posterior mean that moves with x.
        units: how many there are.
        probe_accuracy: share of images whose label a linear probe reads from a sample of
            q(z|x); nan without labels.
        chance: share of the most frequent label, what a probe reaches blindly; nan likewise.
        shuffle_rise: rise of the distortion when each image is decoded with another one's z,
            nats an image.
    """

    images: int
    rate: float
    distortion: float
    information: float
    active_units: int
    units: int
    probe_accuracy: float
    chance: float
    shuffle_rise: float

    @property
    def verdict(self) -> str:
        """One sentence: are the latents used?

        Used are latents of which the encoder says more than 0.5 nats about the image
        (``information``) and to which the decoder listens (``shuffle_rise`` above 0.5 nats).
        """
        if self.information < NOTHING:
            if self.rate < NOTHING:
                return "collapsed: the posterior is the prior, and the latents are not used."
            return "unused: the rate is paid, but the posterior does not depend on the image."
        if self.shuffle_rise < NOTHING:
            return "unused: the encoder speaks, but the decoder does not listen."
        if 2 * self.active_units < self.units or 2 * self.information < self._sayable:
            return "partly used: some latents, or some of the rate, carry nothing."
        return "used: the encoder speaks, and the decoder listens."

    @property
    def _sayable(self) -> float:
        """The most information that this rate and this number of images could show."""
        return min(self.rate, math.log(self.images))

    def __str__(self) -> str:
        ceiling = math.log(self.images)
        rows = [
            ("rate", f"{self.rate:.2f} nats", "what the code costs"),
            ("mutual information", f"{self.information:.2f} nats", f"at most ln N = {ceiling:.2f}"),
            ("active units", f"{self.active_units} of {self.units}", "latents that move with x"),
            ("probe accuracy", f"{self.probe_accuracy:.2f}", f"chance {self.chance:.2f}"),
            ("rise when shuffled", f"{self.shuffle_rise:.2f} nats", "decoding another image's z"),
        ]
        if math.isnan(self.probe_accuracy):
            del rows[3]
        lines = [f"{name:<19} {value:>12}   {note}" for name, value, note in rows]
        return "\n".join([*lines, f"verdict: {self.verdict}"])


@torch.no_grad()
def collapse_report(
    vae: nn.Module, x: Tensor, labels: Tensor | None = None, seed: int = 0, batch_size: int = 250
) -> CollapseReport:
    """Measure what the latents of ``vae`` do on images ``x``.

    Works for any three slots: z a vector or one vector per row, any decoder, and posteriors whose
    KL has no closed form. The numbers depend on ``seed`` alone; the model and the caller's random
    state are left as they were.

    Args:
        vae: a model with the three slots and ``elbo``.
        x: images ``(N, *image_shape)``, at least 20, as a rule from the test set.
        labels: ``(N,)`` integers of at least two classes with five images each, for the probe.
        seed: of the draws of z, the shuffling and the splits.
        batch_size: images encoded and decoded at once.

    Raises:
        TypeError: labels that are not integers.
        ValueError: too few images, or labels that do not fit them.
    """
    check_batch(x)
    if len(x) < 20 or batch_size < 1:
        raise ValueError(
            f"expected at least 20 images and batch_size >= 1, got {len(x)} and {batch_size}"
        )
    if labels is not None:
        _check_labels(labels, len(x))
    device = next(vae.parameters()).device
    with isolated_random_state(device), evaluating(vae):
        torch.manual_seed(seed)
        return _report(vae, x.to(device), labels, seed, batch_size)


def _report(vae: nn.Module, x: Tensor, labels: Tensor | None, seed: int, size: int):
    rate = torch.cat([vae.elbo(part).rate for part in x.split(size)]).mean().item()
    q = [vae.encoder(part) for part in x.split(size)]
    z = torch.cat([part.sample() for part in q])  # (N, *latent_shape)
    units = torch.cat([part.mean for part in q]).flatten(1).var(0) > ACTIVE
    distortion = _distortion(vae, x, z, size)
    accuracy = chance = math.nan
    if labels is not None:
        accuracy = probe_accuracy(z, labels, seed)
        chance = (labels.unique(return_counts=True)[1].max() / len(labels)).item()
    return CollapseReport(
        images=len(x),
        rate=rate,
        distortion=distortion,
        information=_information(q, z),
        active_units=int(units.sum()),
        units=len(units),
        probe_accuracy=accuracy,
        chance=chance,
        shuffle_rise=_distortion(vae, x, shuffled(z), size) - distortion,
    )


def _distortion(vae: nn.Module, x: Tensor, z: Tensor, size: int) -> float:
    """Mean −log p(x|z), nats an image."""
    pairs = zip(z.split(size), x.split(size), strict=True)
    return -torch.cat([vae.decoder(each).log_prob(image) for each, image in pairs]).mean().item()


def shuffled(z: Tensor) -> Tensor:
    """The rows of ``z`` in another order, in which none is in its old place."""
    order = torch.randperm(len(z), device=z.device)
    moved = torch.empty_like(z)
    moved[order] = z[order.roll(1)]  # one round trip through all of them
    return moved


@torch.no_grad()
def mutual_information(vae: nn.Module, x: Tensor) -> float:
    """Estimate how much z says about x under the encoder, nats.

        I(x; z) = E_x KL(q(z|x) ‖ q(z)) ≈ (1/N) Σ_n ln [ q(z_n|x_n) / (1/N) Σ_i q(z_n|x_i) ]

    with z_n ~ q(z|x_n) and the aggregate posterior q(z), the mean of q(z|x), in place of the
    prior: a rate that is the same for every image does not count. No term exceeds ln N, since
    each image is among the N: codes that say more saturate there. Hoffman & Johnson (2016),
    *ELBO surgery*: rate = I(x; z) + KL(q(z) ‖ p(z)).

    Args:
        vae: a model with an ``encoder`` whose distributions broadcast over their batch.
        x: images ``(N, *image_shape)``. Takes N² evaluations of q, in pieces.
    """
    check_batch(x)
    with evaluating(vae):
        q = vae.encoder(x)
    if q.batch_shape != x.shape[:1]:
        raise ValueError(f"expected images (N, *image_shape), got shape {tuple(x.shape)}")
    return _information([q], q.sample())


def _information(q: list[Distribution], z: Tensor) -> float:
    """``q``: the posteriors of all images, in pieces; ``z``: a draw of each, ``(N, …)``."""
    piece = max(1, PAIRS // z.numel())
    own = torch.cat([part.log_prob(part_z) for part, part_z in _aligned(q, z)])
    # (n, 1, *latent_shape) against a batch (B,): each z under the posterior of each image.
    every = [
        torch.cat([part.log_prob(some.unsqueeze(1)) for part in q], 1).logsumexp(1)
        for some in z.split(piece)
    ]
    return (own - torch.cat(every) + math.log(len(z))).mean().item()


def _aligned(q: list[Distribution], z: Tensor):
    return zip(q, z.split([part.batch_shape[0] for part in q]), strict=True)


def probe_accuracy(z: Tensor, labels: Tensor, seed: int = 0) -> float:
    """Share of labels that a linear classifier reads from codes it has not seen.

    Logistic regression on standardised codes, trained on four fifths and tested on the rest, in
    turn, so that each image is tested once. Give it *samples* of q(z|x), not means: a mean that
    moves by a millionth of its own noise can be read, yet tells the decoder nothing.

    Args:
        z: codes ``(N, *latent_shape)``.
        labels: ``(N,)`` integers of at least two classes with five images each.
        seed: of the splits.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedKFold, cross_val_score
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    _check_labels(labels, len(z))
    probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    splits = StratifiedKFold(5, shuffle=True, random_state=seed)
    codes = z.flatten(1).cpu().double().numpy()
    return float(cross_val_score(probe, codes, labels.cpu().numpy(), cv=splits).mean())


def _check_labels(labels: Tensor, count: int) -> None:
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise TypeError(f"expected integer labels, got {labels.dtype}")
    if tuple(labels.shape) != (count,):
        raise ValueError(f"expected labels of shape ({count},), got {tuple(labels.shape)}")
    counts = labels.unique(return_counts=True)[1]
    if len(counts) < 2 or counts.min() < 5:
        raise ValueError(
            "expected at least two classes with five images each, "
            f"got {len(counts)} classes with at least {counts.min()}"
        )
