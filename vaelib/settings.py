"""What a model depends on: a recipe, its checks, and the data that it names."""

import math
import os
from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from vaelib import data
from vaelib.data import DataError, Images
from vaelib.pixels import LIKELIHOODS

ENCODERS = ("mlp", "anti-causal", "causal", "unrestricted")
DECODERS = ("mlp", "pixelcnn", "gated", "pixelsnail")


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """All that a trained model depends on, apart from the pixels of its data.

    Data
        data: a name in :data:`DATASETS`.
        image_shape: shape of one image, (C, H, W).
        likelihood, levels, mixtures: of a pixel, see :class:`vaelib.autoregressive.PixelModel`.

    Latents
        latents: ``None``, the decoder alone; d, one vector; ``(H, d)``, one vector for each row.
        alpha: correlations of an AR(1) prior, one for each of d channels, with the posterior
            family around its minimiser; empty, a prior N(0, I) and any diagonal Gaussian. All
            zero is N(0, I) as well, in the family of the others: their exact control.
        delta: if above 0, the posterior family that commits each latent variable to this many
            nats against N(0, 1).
        auxiliary_epochs: if above 0, an LSTM prior is trained afterwards on codes of the training
            images for so long, and takes the prior's slot.

    Networks
        encoder: "mlp"; "anti-causal", "causal" or "unrestricted", a convolutional one for rows.
        encoder_size: hidden units of the MLP, or channels.
        encoder_layers, encoder_kernel: of the convolutional encoder.
        decoder: "mlp", "pixelcnn", "gated" or "pixelsnail".
        hidden: units of the MLP decoder.
        channels, layers, kernel, first_kernel: of the pixel model; a PixelSNAIL takes ``layers``
            as its residual blocks before each attention and has no kernels to choose.
        blocks, heads, dropout: of a PixelSNAIL.
        inject, position, context: how z and the position enter a pixel model.

    Objective, at most one of the three
        beta: price of the rate.
        annealing_epochs: epochs in which the price rises from 0 to 1.
        free_bits, free_bits_group: nats free of charge for each group, and what a group is.

    Training
        epochs, batch_size, seed: as in :func:`vaelib.training.fit`.
        lr: step size of Adam, in a straight line to 0 over the second half.

    Raises:
        ValueError: settings that are unknown, out of range, or do not fit each other.

    >>> Recipe(latents=(14, 2), alpha=(0.5, 0.9))  # a δ-VAE for small digits
    """

    data: str = "digits14"
    image_shape: tuple[int, int, int] = (1, 14, 14)
    likelihood: str = "bernoulli"
    levels: int = 256
    mixtures: int = 10

    latents: int | tuple[int, int] | None = None
    alpha: tuple[float, ...] = ()
    delta: float = 0.0
    auxiliary_epochs: int = 0

    encoder: str = "unrestricted"
    encoder_size: int = 16
    encoder_layers: int = 2
    encoder_kernel: int = 3

    decoder: str = "gated"
    hidden: int = 300
    channels: int = 16
    layers: int = 3
    kernel: int = 5
    first_kernel: int = 5
    blocks: int = 1
    heads: int = 1
    dropout: float = 0.0
    inject: str = "bias"
    position: bool = True
    context: int = 16

    beta: float = 1.0
    annealing_epochs: int = 0
    free_bits: float = 0.0
    free_bits_group: str = "total"

    epochs: int = 6
    batch_size: int = 25
    lr: float = 5e-3
    seed: int = 0

    def __post_init__(self):
        for name in ("image_shape", "latents", "alpha"):
            if isinstance(getattr(self, name), list):  # equal recipes must have equal hashes
                object.__setattr__(self, name, tuple(getattr(self, name)))
        _check_recipe(self)

    @property
    def label(self) -> str:
        """A short name for progress lines and files."""
        if self.latents is None:
            return f"{self.decoder}, no latents"
        size = "×".join(map(str, self._latent_shape))
        extras = {
            "α": "…".join(f"{a:g}" for a in sorted({*self.alpha[:1], *self.alpha[-1:]})),
            "δ": self.delta and f"{self.delta:g}",
            "β": self.beta != 1 and f"{self.beta:g}",
            "annealed": self.annealing_epochs,
            "free bits": self.free_bits and f"{self.free_bits:g}",
            "auxiliary": self.auxiliary_epochs,
        }
        shown = [f"{name} {value}" for name, value in extras.items() if value]
        return ", ".join([self.decoder, f"z {size}", self.encoder, *shown])

    @property
    def _latent_shape(self) -> tuple[int, ...]:
        return (self.latents,) if isinstance(self.latents, int) else tuple(self.latents or ())


class Dataset(NamedTuple):
    """Where images come from, and what is done to each training batch."""

    load: Callable[[], Images]
    transform: Callable[[Tensor], Tensor] | None = None


def small_digits() -> Images:
    """The 5,000 embedded digits, 14 × 14 and black or white: 2×2 averages above one half."""
    digits = data.mnist("5k")
    train, test = (data.binarize(data.downsample(x)) for x in (digits.train, digits.test))
    return digits._replace(train=train, test=test)


def drawn_digits() -> Images:
    """All of MNIST; the test pixels drawn once, the training pixels for :func:`draw` to draw."""
    digits = data.mnist("full")
    generator = torch.Generator().manual_seed(0)
    return digits._replace(test=data.binarize(digits.test, "bernoulli", generator))


draw = partial(data.binarize, method="bernoulli")


def imagenet() -> Images:
    """ImageNet 32×32: the official files in the folder ``VAELIB_DATA``."""
    folder = os.environ.get("VAELIB_DATA")
    if not folder:
        raise DataError(
            "expected VAELIB_DATA to name the folder with the files of ImageNet 32x32, got nothing"
        )
    return data.imagenet32(folder)


DATASETS = {
    "digits14": Dataset(small_digits),
    "mnist": Dataset(drawn_digits, draw),
    "cifar10": Dataset(data.cifar10),  # the 10,000 images where they are, else all
    "cifar10-full": Dataset(partial(data.cifar10, full=True)),
    "imagenet32": Dataset(imagenet),
}


def load(recipe: Recipe) -> Images:
    """The images of the recipe."""
    return DATASETS[recipe.data].load()


def _check_recipe(recipe: Recipe) -> None:
    choices = {"data": tuple(DATASETS), "encoder": ENCODERS, "decoder": DECODERS}
    choices["likelihood"] = tuple(LIKELIHOODS)
    for name, known in choices.items():
        if getattr(recipe, name) not in known:
            raise ValueError(f"expected {name} in {known}, got {getattr(recipe, name)!r}")
    for field in fields(recipe):
        value = getattr(recipe, field.name)
        if isinstance(value, float) and not (math.isfinite(value) and value >= 0):
            raise ValueError(f"expected a finite {field.name} >= 0, got {value}")
    for name in ("epochs", "batch_size", "lr"):
        if not getattr(recipe, name) > 0:
            raise ValueError(f"expected {name} > 0, got {getattr(recipe, name)}")
    if not 0 <= recipe.annealing_epochs <= recipe.epochs or recipe.auxiliary_epochs < 0:
        raise ValueError(
            f"expected 0 <= annealing_epochs <= {recipe.epochs} and auxiliary_epochs >= 0, "
            f"got {recipe.annealing_epochs} and {recipe.auxiliary_epochs}"
        )
    if (recipe.beta != 1) + bool(recipe.annealing_epochs) + bool(recipe.free_bits) > 1:
        raise ValueError("expected at most one of beta, annealing_epochs and free_bits")
    _check_latents(recipe)


def _check_latents(recipe: Recipe) -> None:
    rows = isinstance(recipe.latents, tuple)
    if recipe.latents is None and recipe.decoder == "mlp":
        raise ValueError("expected latents for an MLP decoder, got None")
    if recipe.decoder == "mlp" and recipe.likelihood != "bernoulli":
        raise ValueError(f"expected a Bernoulli MLP decoder, got {recipe.likelihood!r}")
    needs_rows = recipe.alpha or recipe.auxiliary_epochs or recipe.encoder != "mlp"
    if needs_rows and recipe.latents is not None and not rows:
        raise ValueError(
            "expected latents (H, d) for alpha, an auxiliary prior or a convolutional encoder, "
            f"got {recipe.latents}"
        )
    if rows and recipe.latents[0] != recipe.image_shape[1]:
        raise ValueError(f"expected {recipe.image_shape[1]} rows, got latents {recipe.latents}")
    if recipe.alpha and (recipe.latents is None or len(recipe.alpha) != recipe.latents[1]):
        raise ValueError(f"expected one alpha for each of d channels, got {recipe.alpha}")
    if recipe.alpha and recipe.delta:
        raise ValueError(f"expected alpha or delta, got {recipe.alpha} and {recipe.delta}")
    if recipe.auxiliary_epochs and recipe.latents is None:
        raise ValueError("expected latents for an auxiliary prior, got None")
