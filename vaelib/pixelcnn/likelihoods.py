"""Likelihoods of one pixel, channel after channel, given a vector of features.

Draws are functions of uniform numbers that the caller supplies, so that two samplers given the
same numbers draw the same pixels.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vaelib.networks import is_int, to_float32


class PixelLikelihood(nn.Module):
    """log p(pixel | features) = Σ_c log p(x_c | x_1 … x_{c−1}, features), nats.

    A pixel has ``channels`` values, each out of ``levels`` evenly spaced ones: k / (levels − 1)
    for k = 0 … levels − 1, black is 0 and white is 1. Subclasses have
        log_prob(features (*batch, F), x (*batch, channels)) → nats (*batch,)
        draw(features (*batch, F), uniforms (*batch, self.uniforms) in [0, 1)) → x
    """

    def __init__(self, channels: int, levels: int):
        super().__init__()
        self.channels = self.uniforms = check_size("channels", channels)
        self.levels = check_size("levels", levels, least=2)

    def check(self, x: Tensor) -> None:
        """Raise ``ValueError`` unless every value is one of the levels."""
        steps = x * (self.levels - 1)
        # 1e-3 of a step: float32 rounds k/255 · 255 by a hundredth of that.
        wrong = ~((steps - steps.round()).abs() < 1e-3) | (x < 0) | (x > 1)
        if wrong.any():
            last, got = self.levels - 1, x[wrong][0].item()
            advice = "" if last > 1 else ": data.binarize(x), or a likelihood of grey levels"
            raise ValueError(f"expected pixels k/{last} with k = 0 … {last}, got {got:g}{advice}")


class BernoulliPixels(PixelLikelihood):
    """Binary: p(x_c = 1 | …) = sigmoid(w_c · features + Σ_{c' < c} v_{c c'} (2 x_{c'} − 1))."""

    def __init__(self, features: int, channels: int = 1):
        super().__init__(channels, levels=2)
        self.logits = nn.Linear(features, channels)
        self.previous = nn.Parameter(torch.zeros(channels, channels))  # below the diagonal

    def _logits(self, features: Tensor, x: Tensor) -> Tensor:
        return self.logits(features) + (2 * x - 1).to(self.previous) @ self.previous.tril(-1).T

    def log_prob(self, features: Tensor, x: Tensor) -> Tensor:
        logits = to_float32(self._logits(features, x))
        return -F.binary_cross_entropy_with_logits(logits, x.to(logits), reduction="none").sum(-1)

    def draw(self, features: Tensor, uniforms: Tensor) -> Tensor:
        x = torch.zeros_like(uniforms)
        for c in range(self.channels):
            x[..., c] = (uniforms[..., c] < self._logits(features, x)[..., c].sigmoid()).to(x)
        return x


class CategoricalPixels(PixelLikelihood):
    """A table of probabilities for every value, so that no order of the levels is assumed.

        logits_c = U_c elu(W_c features + Σ_{c' < c} E_{c c'}[x_{c'}])
    with an embedding E of the levels of the channels before. van den Oord et al. (2016),
    *Pixel Recurrent Neural Networks*, section 3.3, who reach the channel dependence by masks.
    """

    def __init__(self, features: int, channels: int = 1, levels: int = 256):
        super().__init__(channels, levels)
        self.hidden = nn.ModuleList(nn.Linear(features, features) for _ in range(channels))
        previous = (nn.Embedding(c * levels, features) for c in range(1, channels))
        self.previous = nn.ModuleList(previous)
        self.out = nn.ModuleList(nn.Linear(features, levels) for _ in range(channels))

    def _log_probs(self, c: int, features: Tensor, steps: Tensor) -> Tensor:
        """Log probabilities of channel c given the ones before, ``(*batch, levels)``."""
        hidden = self.hidden[c](features)
        if c > 0:
            offsets = self.levels * torch.arange(c, device=steps.device)
            hidden = hidden + self.previous[c - 1](steps[..., :c] + offsets).sum(-2)
        return to_float32(self.out[c](F.elu(hidden))).log_softmax(-1)

    def log_prob(self, features: Tensor, x: Tensor) -> Tensor:
        steps = (x * (self.levels - 1)).round().long()
        each = (self._log_probs(c, features, steps) for c in range(self.channels))
        each = [one.gather(-1, steps[..., c : c + 1]) for c, one in enumerate(each)]
        return torch.cat(each, -1).sum(-1)

    def draw(self, features: Tensor, uniforms: Tensor) -> Tensor:
        steps = torch.zeros_like(uniforms, dtype=torch.long)
        for c in range(self.channels):
            steps[..., c] = inverse_cdf(self._log_probs(c, features, steps), uniforms[..., c])
        return steps.to(uniforms) / (self.levels - 1)


class LogisticMixturePixels(PixelLikelihood):
    """Mixture of discretised logistics, whose channels share the choice of component.

        p(x | …) = Σ_k π_k Π_c P(x_c | μ_kc + Σ_{c' < c} a_kcc' x_{c'}, s_kc)
    with k = 1 … ``mixtures``, x on [−1, 1], P as in :func:`discretized_logistic`, ln s in [−7, 7]
    and a in (−1, 1). Salimans et al. (2017), *PixelCNN++*, sections 2.1 and 2.2.
    """

    def __init__(self, features: int, channels: int = 3, levels: int = 256, mixtures: int = 10):
        super().__init__(channels, levels)
        self.mixtures, self.uniforms = check_size("mixtures", mixtures), 1 + self.channels
        self.pairs = self.channels * (self.channels - 1) // 2
        outputs = self.mixtures * (1 + 2 * self.channels + self.pairs)
        self.components = nn.Linear(features, outputs)

    def _components(self, features: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Log weights (…, K), means and log scales (…, K, C), slopes (…, K, C, C) below 0."""
        each = to_float32(self.components(features)).unflatten(-1, (self.mixtures, -1))
        n = self.channels
        weight, mean, log_scale, slope = each.split([1, n, n, self.pairs], -1)
        rows, columns = torch.tril_indices(n, n, -1, device=slope.device)
        slopes = slope.new_zeros(*slope.shape[:-1], n, n)
        slopes[..., rows, columns] = slope.tanh()
        return weight.squeeze(-1).log_softmax(-1), mean, log_scale.clamp(-7, 7), slopes

    def log_prob(self, features: Tensor, x: Tensor) -> Tensor:
        log_weight, mean, log_scale, slopes = self._components(features)
        x = (2 * x - 1).to(mean).unsqueeze(-2)  # (*batch, 1, C), for every component
        mean = mean + (slopes @ x.unsqueeze(-1)).squeeze(-1)
        each = discretized_logistic(x, mean, log_scale, self.levels)  # (*batch, K, C)
        return (log_weight + each.sum(-1)).logsumexp(-1)

    def draw(self, features: Tensor, uniforms: Tensor) -> Tensor:
        log_weight, *rest = self._components(features)
        k = inverse_cdf(log_weight, uniforms[..., 0])
        mean, log_scale, slopes = (_pick(part, k) for part in rest)
        # The largest float32 below one keeps the logit finite.
        noise = uniforms[..., 1:].clamp(1e-7, 1 - 1e-7).logit()
        x, steps = torch.zeros_like(mean), torch.zeros_like(mean)  # x on [−1, 1]
        for c in range(self.channels):
            real = mean[..., c] + (slopes[..., c, :] * x).sum(-1)
            real = real + log_scale[..., c].exp() * noise[..., c]
            steps[..., c] = ((real.clamp(-1, 1) + 1) / 2 * (self.levels - 1)).round()
            x[..., c] = 2 * steps[..., c] / (self.levels - 1) - 1
        return steps.to(uniforms) / (self.levels - 1)


def discretized_logistic(x: Tensor, mean: Tensor, log_scale: Tensor, levels: int) -> Tensor:
    """Log probability of the bin of width 2/(levels − 1) around x in [−1, 1], nats, elementwise.

        ln P = ln[ σ((x + h − μ)/s) − σ((x − h − μ)/s) ],   h = 1/(levels − 1)
    The first bin reaches down to −∞ and the last up to ∞, so the levels sum to one. With b and a
    for the two arguments, σ(b) − σ(a) = σ(b) σ(−a) (1 − e^{a−b}): no difference of nearly equal
    numbers, so nothing is approximated in the tails. Salimans et al. (2017), equation 2.
    """
    half, inverse = 1 / (levels - 1), (-log_scale).exp()
    first, last = x < -1 + half, x > 1 - half
    upper = torch.where(last, 0, F.logsigmoid((x + half - mean) * inverse))
    lower = torch.where(first, 0, F.logsigmoid(-(x - half - mean) * inverse))
    width = torch.log(-torch.expm1(-2 * half * inverse))
    return upper + lower + torch.where(first | last, 0, width)


def inverse_cdf(log_probs: Tensor, uniforms: Tensor) -> Tensor:
    """Draw indices ``(*batch,)`` from probabilities ``(*batch, n)`` and numbers in [0, 1)."""
    found = (log_probs.exp().cumsum(-1) <= uniforms.unsqueeze(-1)).sum(-1)
    return found.clamp(max=log_probs.shape[-1] - 1)  # rounding may leave the last step below one


def _pick(parts: Tensor, k: Tensor) -> Tensor:
    """The chosen component of each pixel: ``(*batch, K, *event)`` to ``(*batch, *event)``."""
    index = k.reshape(*k.shape, *[1] * (parts.dim() - k.dim()))
    return parts.take_along_dim(index, k.dim()).squeeze(k.dim())


def check_size(name: str, size: int, least: int = 1) -> int:
    """``size`` as an int; ``ValueError`` unless it is a whole number of at least ``least``."""
    if not is_int(size) or size < least:
        raise ValueError(f"expected a whole number >= {least} as {name}, got {size}")
    return int(size)


LIKELIHOODS = {  # each is called with the number of features, channels, levels and mixtures
    "bernoulli": lambda *sizes: BernoulliPixels(*sizes[:2]),
    "categorical": lambda *sizes: CategoricalPixels(*sizes[:3]),
    "logistic_mixture": LogisticMixturePixels,
}
