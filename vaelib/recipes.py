"""Models described by their settings, trained once, and kept.

A :class:`Recipe` says everything about a model and its training; :func:`build` makes the model,
and :func:`trained` trains it or takes it from a cache that notebooks share::

    model, history = trained(Recipe(latents=(14, 2), alpha=(0.5, 0.9)))
"""

import hashlib
import json
import math
import os
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from vaelib import data
from vaelib.checkpoints import kept, set_aside
from vaelib.data import Images
from vaelib.decoders import BernoulliMLP
from vaelib.encoders import AntiCausalEncoder, MLPEncoder
from vaelib.learning import aevb_step, auxiliary_prior_step
from vaelib.objectives import Annealing, Beta, FreeBits, Objective
from vaelib.pixelcnn import GatedPixelCNN, PixelCNN, PixelSNAIL
from vaelib.posteriors import IndependentPosterior, Posterior, SequentialPosterior
from vaelib.priors import AR1Prior, AuxiliaryPrior, StandardNormal
from vaelib.training import History, adam, decay_late, fit
from vaelib.vae import ELBO, VAE, WithoutLatents

# Part of every key in the cache. Raise it when a change of the library changes what a recipe
# gives: every model is then trained again.
FORMAT = 1

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


def build(recipe: Recipe) -> VAE | WithoutLatents:
    """The untrained model; its random weights depend on the recipe's seed alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        decoder = _decoder(recipe)
        if recipe.latents is None:
            return WithoutLatents(decoder)
        return VAE(_encoder(recipe), _prior(recipe), decoder)


def objective(recipe: Recipe, images: int) -> Objective | None:
    """What the recipe minimises on so many training images; ``None`` is the negative bound."""
    if recipe.annealing_epochs:
        return Annealing(recipe.annealing_epochs * -(-images // recipe.batch_size))
    if recipe.free_bits:
        return FreeBits(recipe.free_bits, recipe.free_bits_group)
    return None if recipe.beta == 1 else Beta(recipe.beta)


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

DATASETS = {"digits14": Dataset(small_digits), "mnist": Dataset(drawn_digits, draw)}


def load(recipe: Recipe) -> Images:
    """The images of the recipe."""
    return DATASETS[recipe.data].load()


def trained(
    recipe: Recipe,
    images: Images | None = None,
    folder: str | os.PathLike | None = None,
    progress: bool = True,
) -> tuple[VAE | WithoutLatents, History]:
    """The trained model of a recipe and the history of its training, from the cache if there.

    The cache holds a file for each recipe and data, see :func:`vaelib.checkpoints.kept`: of
    several processes that ask for one model, one trains it. A run that was killed goes on after
    its last whole epoch.

    Args:
        recipe: what to train.
        images: the training and test images; :func:`load` gets them by default.
        folder: of the cache; ``models`` in :func:`vaelib.data.cache_folder` by default.
        progress: say on stderr what is trained, with a progress bar.

    Returns:
        The model, in evaluation mode on the CPU, and its history; the last row has the bound on
        the test images.

    Raises:
        ValueError: images whose shape is not that of the recipe.
        KeyboardInterrupt: Ctrl-C; the same call goes on after the last whole epoch.
    """
    images = load(recipe) if images is None else images
    if tuple(images.train.shape[1:]) != recipe.image_shape:
        raise ValueError(
            f"expected images of shape {recipe.image_shape}, got {tuple(images.train.shape[1:])}"
        )
    folder = Path(folder or data.cache_folder() / "models")

    def make(part: Path | None) -> dict:
        if not recipe.auxiliary_epochs:
            return _train(recipe, images, part, progress)
        base = replace(recipe, auxiliary_epochs=0)
        return _train_auxiliary(
            recipe, trained(base, images, folder, progress)[0], images, progress
        )

    return kept(
        folder / f"{_key(recipe, images)}.pt", make, partial(_use, recipe), recipe.label, progress
    )


def _train(recipe: Recipe, images: Images, part: Path | None, progress: bool) -> dict:
    if part is not None and not _can_go_on(part, build(recipe)):
        set_aside(part, "expected a checkpoint of this run")
    return _fit(
        build(recipe),
        recipe,
        images,
        progress,
        epochs=recipe.epochs,
        step=partial(aevb_step, objective=objective(recipe, len(images.train))),
        optimizer=partial(adam, lr=recipe.lr),
        checkpoint=part,
    )


def _train_auxiliary(recipe: Recipe, vae: VAE, images: Images, progress: bool) -> dict:
    """The model with an LSTM in the prior's slot, trained on codes of the training images."""
    vae.prior = _auxiliary_prior(recipe)

    def step(model, x, optimizer, backward):
        rate = auxiliary_prior_step(vae, vae.prior, x, optimizer, backward)
        return ELBO(torch.zeros_like(rate), rate)

    optimizer = adam(vae.prior.parameters(), lr=recipe.lr)
    epochs = recipe.auxiliary_epochs
    return _fit(vae, recipe, images, progress, epochs=epochs, step=step, optimizer=optimizer)


def _fit(model: nn.Module, recipe: Recipe, images: Images, progress: bool, **settings) -> dict:
    """Train, and return what the cache keeps."""
    if progress:
        print(f"training {recipe.label}, {settings['epochs']} epochs", file=sys.stderr, flush=True)
    history = fit(
        model,
        images.train,
        batch_size=recipe.batch_size,
        schedule=decay_late,
        transform=DATASETS[recipe.data].transform,
        test=images.test,
        evaluate_every=settings["epochs"],  # only at the end
        seed=recipe.seed,
        progress=progress,
        **settings,
    )
    if history.interrupted:
        raise KeyboardInterrupt(f"stopped after {len(history.rows)} epochs")
    return {"recipe": _settings(recipe), "model": model.state_dict(), "rows": history.rows}


def _can_go_on(part: Path, model: nn.Module) -> bool:
    """Whether there is no checkpoint, or a whole one of the same parameters."""
    if not part.exists():
        return True
    try:
        saved = torch.load(part, map_location="cpu", weights_only=True)["model"]
    except Exception:  # zip, pickle and torch each raise their own
        return False
    ours = {name: value.shape for name, value in model.state_dict().items()}
    return ours == {name: value.shape for name, value in saved.items()}


def _use(recipe: Recipe, state: dict) -> tuple[VAE | WithoutLatents, History]:
    if state["recipe"] != _settings(recipe):
        raise ValueError("expected the recipe asked for, got another")
    model = build(recipe)
    if recipe.auxiliary_epochs:
        model.prior = _auxiliary_prior(recipe)
    model.load_state_dict(state["model"])
    return model.eval(), History([dict(row) for row in state["rows"]])


def _key(recipe: Recipe, images: Images) -> str:
    """A file name that holds everything the model depends on."""
    content = hashlib.sha256(json.dumps([FORMAT, _settings(recipe)]).encode())
    for part in (images.train, images.test):
        content.update(str((part.shape, part.dtype)).encode())
        content.update(part.detach().cpu().contiguous().numpy().tobytes())
    return f"{recipe.decoder}-{content.hexdigest()[:20]}"


def _settings(recipe: Recipe) -> dict:
    """The fields as they come back from a file."""
    return json.loads(json.dumps(asdict(recipe)))


def _decoder(recipe: Recipe) -> nn.Module:
    shape = recipe.image_shape
    if recipe.decoder == "mlp":
        return BernoulliMLP(recipe.latents, shape, recipe.hidden)
    shared = {
        name: getattr(recipe, name)
        for name in (
            "channels",
            "likelihood",
            "levels",
            "mixtures",
            "inject",
            "position",
            "context",
        )
    }
    if recipe.decoder == "pixelsnail":
        extra = {name: getattr(recipe, name) for name in ("blocks", "heads", "dropout")}
        return PixelSNAIL(recipe.latents, shape, residuals=recipe.layers, **extra, **shared)
    kind = {"pixelcnn": PixelCNN, "gated": GatedPixelCNN}[recipe.decoder]
    extra = {name: getattr(recipe, name) for name in ("layers", "kernel", "first_kernel")}
    return kind(recipe.latents, shape, **extra, **shared)


def _encoder(recipe: Recipe) -> nn.Module:
    posterior = _posterior(recipe)
    if recipe.encoder == "mlp":
        return MLPEncoder(recipe.latents, recipe.image_shape, recipe.encoder_size, posterior)
    return AntiCausalEncoder(
        recipe.latents[1],
        recipe.image_shape,
        posterior,
        channels=recipe.encoder_size,
        layers=recipe.encoder_layers,
        kernel=recipe.encoder_kernel,
        order=recipe.encoder,
    )


def _posterior(recipe: Recipe) -> Posterior | None:
    if recipe.alpha:
        return SequentialPosterior(torch.tensor(recipe.alpha), recipe.latents[0])
    return IndependentPosterior(recipe.delta, recipe.latents) if recipe.delta else None


def _prior(recipe: Recipe) -> nn.Module:
    if recipe.alpha:
        return AR1Prior(torch.tensor(recipe.alpha), recipe.latents[0])
    return StandardNormal(recipe.latents)


def _auxiliary_prior(recipe: Recipe) -> AuxiliaryPrior:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        return AuxiliaryPrior(recipe.latents[1], recipe.latents[0])


def _check_recipe(recipe: Recipe) -> None:
    choices = {"data": tuple(DATASETS), "encoder": ENCODERS, "decoder": DECODERS}
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
