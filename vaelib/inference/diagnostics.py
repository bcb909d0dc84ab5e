"""Are the latents used? Measurements of the encoder, of the decoder, and a verdict.

The rate KL(q(z|x) ‖ p(z)), what the code costs, cannot tell: a posterior that is the same for every
image can have any. Ask both networks: does the encoder say anything, and does the decoder listen?
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from vaelib.distributions import check_batch
from vaelib.inference.likelihood import posterior
from vaelib.networks import eval_mode, fork_rng

LITTLE, ZERO = 0.5, 0.1  # nats: below the first there is little of a quantity, below ZERO none
ACTIVE = 0.01  # Burda et al. (2016): least variance of the posterior mean of an active unit
DRAWS = 100  # for the mean of a posterior that has none in closed form
PAIRS = 4_000_000  # numbers at once in the mutual information, which bounds the memory


@dataclass(frozen=True)
class CollapseReport:
    """What :func:`collapse_report` found, in nats an image; without labels the shares are nan."""

    images: int  # N
    rate: float  # mean KL(q(z|x) ‖ p(z))
    distortion: float  # mean −E_q[log p(x|z)]
    information: float  # estimate of I(x; z) under the encoder, at most ln N
    active_units: int  # latents whose posterior mean moves with x; hangs on their scale
    units: int  # number of latents
    probe_accuracy: float  # share of labels that a linear probe reads from a sample of q(z|x)
    chance: float  # share of the most frequent label, what a probe reaches blindly
    shuffle_rise: float  # rise of the distortion if each image is decoded with another one's z
    shuffle_error: float = 0.0  # its standard error
    # Rate less information; one above ½ ln N may be too low, and an upper bound, that of a Gaussian
    # code of the same variances, takes its place: at least so much is wasted.
    wasted: float = math.nan

    @property
    def verdict(self) -> str:
        """One sentence: are the latents used?

        *Used*: the encoder says at least half a nat about the image, another z changes the
        distortion by half a nat and by two standard errors, and at most half of the rate is wasted.
        *Collapsed*: a rate below 0.1 nats. Active units have no part in it.
        """
        if math.isnan(self.rate + self.information + self.shuffle_rise):
            return "unclear: a measurement is not a number."
        if self.rate < ZERO:
            return "collapsed: the posterior is the prior, and the latents are not used."
        if self.information < LITTLE:
            if 2 * self.information < self.rate:
                return "unused: the rate is paid, but the posterior does not depend on the image."
            return "nearly collapsed: hardly any information is left in the latents."
        if abs(self.shuffle_rise) < max(LITTLE, 2 * self.shuffle_error):
            return "unused: the encoder speaks, but the decoder does not listen."
        if self.shuffle_rise < 0:
            return "misused: the decoder depends on z, but another image's z serves it better."
        if 2 * self.wasted > self.rate:
            return "partly used: most of the rate carries nothing."
        return "used: the encoder speaks, and the decoder listens."

    def __str__(self) -> str:
        ceiling = math.log(self.images)
        rows = [
            ("rate", f"{self.rate:.2f} nats", "what the code costs"),
            ("mutual information", f"{self.information:.2f} nats", f"at most ln N = {ceiling:.2f}"),
            ("wasted rate", f"{self.wasted:.2f} nats", "at least; carries nothing"),
            ("active units", f"{self.active_units} of {self.units}", "latents that move with x"),
            ("probe accuracy", f"{self.probe_accuracy:.2f}", f"chance {self.chance:.2f}"),
            ("rise when shuffled", f"{self.shuffle_rise:.2f} nats", "decoding another image's z"),
        ]
        lines = [f"{a:<19} {b:>12}   {c}" for a, b, c in rows if b.split()[0] != "nan"]
        return "\n".join([*lines, f"verdict: {self.verdict}"])


@torch.no_grad()
def collapse_report(
    vae: nn.Module, x: Tensor, labels: Tensor | None = None, seed: int = 0, batch_size: int = 250
) -> CollapseReport:
    """Measure what the latents of ``vae`` do on images ``x``.

    Works for any three slots, and for posteriors without a closed form of the KL (a draw estimates
    it) or of the mean (100 draws do). The numbers depend on ``seed`` alone; the model and the
    caller's random state are left as they were.

    ``x``: floats ``(N, *image_shape)``, N ≥ 20, as a rule the test set; ``labels``, for the probe:
    ``(N,)`` integers of at least two classes with five images each; ``batch_size``: images at once.
    """
    check_batch(x)
    if len(x) < 20 or batch_size < 1:
        got = f"got {len(x)} and {batch_size}"
        raise ValueError(f"expected at least 20 images and batch_size >= 1, {got}")
    if labels is not None:
        _check_labels(labels, len(x))
    device = next(vae.parameters(), x).device
    with fork_rng(device), eval_mode(vae):
        torch.manual_seed(seed)
        x = x.to(device)
        parts = x.split(batch_size)
        rate = torch.cat([vae.elbo(part).rate for part in parts]).mean().item()
        q = [vae.encoder(part) for part in parts]
        z = torch.cat([part.sample() for part in q])  # (N, *latent_shape)
        moves = _variance_of_means(q) > ACTIVE
        own = _distortion(vae, x, z, batch_size)
        other = _distortion(vae, x, shuffled(z), batch_size)
        information, bound = _information(q, z)
        said = max(information, bound) if 2 * information > math.log(len(x)) else information
        accuracy = chance = math.nan
        if labels is not None:
            accuracy = probe_accuracy(z, labels, seed)
            chance = (labels.unique(return_counts=True)[1].max() / len(labels)).item()
    found = {"images": len(x), "rate": rate, "distortion": own.mean().item()}
    found |= {"information": information, "wasted": max(0.0, rate - said)}
    found |= {"active_units": int(moves.sum()), "units": moves.numel()}
    found |= {"probe_accuracy": accuracy, "chance": chance}
    found |= {"shuffle_rise": other.mean().item() - own.mean().item()}
    found |= {"shuffle_error": (other - own).std().item() / math.sqrt(len(x))}
    return CollapseReport(**found)


def _variance_of_means(q: list[Distribution]) -> Tensor:
    """Variance over the images of each latent's posterior mean, ``(*latent_shape)``."""
    try:
        return torch.cat([part.mean for part in q]).var(0)
    except (NotImplementedError, AttributeError):
        draws = (part.sample((DRAWS,)) for part in q)
        means, noise = zip(*((z.mean(0), z.var(0) / DRAWS) for z in draws), strict=True)
        return torch.cat(means).var(0) - torch.cat(noise).mean(0)


def _distortion(vae: nn.Module, x: Tensor, z: Tensor, size: int) -> Tensor:
    """−log p(x|z) of each image, nats."""
    pairs = zip(z.split(size), x.split(size), strict=True)
    return -torch.cat([vae.decoder(each).log_prob(image) for each, image in pairs])


def shuffled(z: Tensor) -> Tensor:
    """The rows of ``z`` in another order, in which none is in its old place."""
    order = torch.randperm(len(z), device=z.device)  # one round trip through all of them
    return z[order.roll(1)[order.argsort()]]


@torch.no_grad()
def mutual_information(vae: nn.Module, x: Tensor) -> float:
    """Estimate how much z says about x under the encoder, nats.

        I(x; z) = E_x KL(q(z|x) ‖ q(z)) ≈ (1/N) Σ_n ln [ q(z_n|x_n) / (1/N) Σ_i q(z_n|x_i) ]

    with z_n ~ q(z|x_n) and the aggregate posterior q(z), the mean of q(z|x) over the images ``x``,
    ``(N, *image_shape)``. Each image is among the N, so no term exceeds ln N: codes that say more
    saturate there. Takes N² evaluations of q, in pieces. Hoffman & Johnson (2016), *ELBO surgery*:
    rate = I(x; z) + KL(q(z) ‖ p(z)).
    """
    check_batch(x)
    with eval_mode(vae):
        q = posterior(vae, x)
    return _information([q], q.sample())[0]


def _information(q: list[Distribution], z: Tensor) -> tuple[float, float]:
    """The estimate, and an upper bound: H(z) − H(z|x) with the entropy of independent Gaussians."""
    piece = max(1, PAIRS // z.numel())
    pairs = zip(q, z.split([part.batch_shape[0] for part in q]), strict=True)
    own = torch.cat([part.log_prob(part_z) for part, part_z in pairs])
    # (n, 1, *latent_shape) against a batch (B,): each z under the posterior of each image.
    pieces = (torch.cat([p.log_prob(some.unsqueeze(1)) for p in q], 1) for some in z.split(piece))
    every = torch.cat([log_probs.logsumexp(1) for log_probs in pieces])
    information = (own - every + math.log(len(z))).mean().item()
    # E[ln s²] of N draws is about 1/(N − 1) below ln σ².
    entropies = (2 * math.pi * math.e * z.double().var(0)).log() + 1 / max(1, len(z) - 1)
    return information, own.double().mean().item() + 0.5 * entropies.sum().item()


def probe_accuracy(z: Tensor, labels: Tensor, seed: int = 0) -> float:
    """Share of labels that a linear classifier reads from codes it has not seen.

    Logistic regression on standardised codes ``(N, *latent_shape)``, trained on four fifths and
    tested on the rest, in turn. Give it *samples* of q(z|x), not means: a mean that moves by a
    millionth of its own noise can be read, yet tells the decoder nothing.
    """
    from sklearn import linear_model, model_selection, pipeline, preprocessing

    _check_labels(labels, len(z))
    classifier = linear_model.LogisticRegression(max_iter=1000)
    probe = pipeline.make_pipeline(preprocessing.StandardScaler(), classifier)
    splits = model_selection.StratifiedKFold(5, shuffle=True, random_state=seed)
    codes, labels = z.flatten(1).cpu().double().numpy(), labels.cpu().numpy()
    return float(model_selection.cross_val_score(probe, codes, labels, cv=splits).mean())


def _check_labels(labels: Tensor, count: int) -> None:
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise TypeError(f"expected integer labels, got {labels.dtype}")
    if tuple(labels.shape) != (count,):
        raise ValueError(f"expected labels of shape ({count},), got {tuple(labels.shape)}")
    counts = labels.unique(return_counts=True)[1]
    if len(counts) < 2 or counts.min() < 5:
        got = f"got {len(counts)} classes with at least {counts.min()}"
        raise ValueError(f"expected at least two classes with five images each, {got}")
