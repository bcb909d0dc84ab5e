"""Models described by recipes: built, trained once, and kept in a cache that notebooks share.

model, history = trained(Recipe(latents=(14, 2), alpha=(0.5, 0.9)))
"""

import hashlib
import json
import math
import os
import sys
import warnings
from contextlib import nullcontext, suppress
from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Literal, get_args, get_origin

import torch
from filelock import FileLock
from torch import nn
from torch.nn.utils import parameters_to_vector

from vaelib import data
from vaelib.data import DataError, Images
from vaelib.decoders import BernoulliMLP
from vaelib.encoders import AntiCausalEncoder, MLPEncoder
from vaelib.networks import fork_rng, latent_shape
from vaelib.pixelcnn import GatedPixelCNN, PixelCNN, PixelSNAIL
from vaelib.pixelcnn.likelihoods import LIKELIHOODS
from vaelib.posteriors import IndependentPosterior, SequentialPosterior
from vaelib.priors import AR1Prior, AuxiliaryPrior, StandardNormal
from vaelib.training.checkpoint import fingerprint, load_with_facts, save
from vaelib.training.learning import CodePrior, aevb_step
from vaelib.training.loop import History, adam, evaluate, fit, linear_decay
from vaelib.training.objectives import Annealing, Beta, FreeBits, Objective
from vaelib.vae import VAE, WithoutLatents

# In every key of the cache; raised when the library gives other models, which are trained anew.
FORMAT = 2
POSITIVE = ("epochs", "batch_size", "lr")  # the other numbers of a recipe may be 0


def small_digits() -> Images:
    """The 5,000 embedded digits, 14 × 14 and black or white: 2×2 averages above one half."""
    digits = data.mnist("5k")
    train, test = (data.binarize(data.downsample(x)) for x in (digits.train, digits.test))
    return digits._replace(train=train, test=test)


dynamic_binarization = partial(data.binarize, method="bernoulli")


def dynamic_mnist() -> Images:
    """All of MNIST, for :data:`dynamic_binarization`; the test pixels are drawn once."""
    digits, generator = data.mnist("full"), torch.Generator().manual_seed(0)
    return digits._replace(test=dynamic_binarization(digits.test, generator=generator))


def imagenet() -> Images:
    """ImageNet 32×32: the official files in the folder ``VAELIB_DATA``."""
    if folder := os.environ.get("VAELIB_DATA"):
        return data.imagenet32(folder)
    raise DataError(
        "expected VAELIB_DATA, the folder with the files of ImageNet 32x32, got nothing"
    )


DATASETS = {
    "digits14": small_digits,
    "mnist": dynamic_mnist,
    "cifar10": data.cifar10,  # the first 10,000 where VAELIB_DATA has them alone
    "cifar10-full": partial(data.cifar10, full=True),
    "imagenet32": imagenet,
}
TRANSFORMS = {"mnist": dynamic_binarization}  # of each batch


def expect(holds: object, what: str, got: object) -> None:
    """``ValueError`` unless it holds."""
    if not holds:
        raise ValueError(f"expected {what}, got {got!r}")


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """All that a trained model depends on, apart from the pixels of its data.

    ``python -m vaelib.experiments mnist-delta-vae --help`` prints the meaning of every field.
    """

    data: Literal[*DATASETS] = "digits14"  # where the images come from
    image_shape: tuple[int, int, int] = (1, 14, 14)  # shape of one image, (C, H, W)
    likelihood: Literal[*LIKELIHOODS] = "bernoulli"  # of a pixel, see PixelModel
    levels: int = 256  # values that a pixel can take
    mixtures: int = 10  # components of a logistic mixture

    latents: int | tuple[int, int] | None = None  # None; d, one vector; (H, d), one for each row
    # Correlations of an AR(1) prior, one a channel, with the posterior family around its minimiser.
    # Empty: N(0, I), any diagonal Gaussian. All 0: N(0, I) in the first family, an exact control.
    alpha: tuple[float, ...] = ()
    delta: float = 0.0  # If > 0, nats against N(0, 1) that the posterior commits for each latent
    auxiliary_epochs: int = 0  # If > 0, an LSTM prior is trained so long on codes and put in place

    # An MLP, or a convolutional encoder for rows that sees the rows so named.
    encoder: Literal["mlp", "anti-causal", "causal", "unrestricted"] = "unrestricted"
    encoder_size: int = 16  # hidden units of the MLP, or channels
    encoder_layers: int = 2  # of the convolutional encoder
    encoder_kernel: int = 3  # of the convolutional encoder

    decoder: Literal["mlp", "pixelcnn", "gated", "pixelsnail"] = "gated"  # an MLP, or a pixel model
    hidden: int = 300  # units of the MLP decoder
    channels: int = 16  # of the pixel model
    layers: int = 3  # of the pixel model; of a PixelSNAIL residual blocks before each attention
    kernel: int = 5  # of the pixel model; a PixelSNAIL has none to choose
    first_kernel: int = 5  # of the pixel model's first layer
    blocks: int = 1  # of a PixelSNAIL, each of residual blocks and one attention
    heads: int = 1  # of the attention in a PixelSNAIL
    dropout: float = 0.0  # probability in the residual blocks of a PixelSNAIL
    inject: Literal["bias", "map"] = "bias"  # how z enters a pixel model
    position: bool = True  # whether a pixel model has a learned bias for each position
    context: int = 16  # size of the maps that carry z and the position to the layers

    beta: float = 1.0  # KL weight; at most one of beta, annealing_epochs and free_bits is set
    annealing_epochs: int = 0  # epochs in which the KL weight rises from 0 to 1
    free_bits: float = 0.0  # nats free of charge for each group
    free_bits_group: Literal["total", "row", "latent"] = "total"  # what a group is

    epochs: int = 6  # passes over the training images
    batch_size: int = 25  # images per update
    lr: float = 5e-3  # step size of Adam, in a straight line to 0 over the second half
    seed: int = 0  # of weights, batch order and noise

    def __post_init__(self):
        for field in fields(self):  # equal recipes have equal hashes and files
            value = _plain(getattr(self, field.name), float in (field.type, *get_args(field.type)))
            object.__setattr__(self, field.name, value)
        _check_recipe(self)

    @property
    def label(self) -> str:
        """A short name for progress lines and files."""
        if self.latents is None:
            return f"{self.decoder}, no latents"
        size = "×".join(map(str, latent_shape(self.latents)))
        alpha = "…".join(f"{a:g}" for a in sorted({*self.alpha[:1], *self.alpha[-1:]}))
        extras = {"δ": self.delta, "β": self.beta != 1 and self.beta}
        extras |= {"annealed": self.annealing_epochs, "free bits": self.free_bits}
        extras["auxiliary"] = self.auxiliary_epochs
        shown = [f"α {alpha}"] if alpha else []
        shown += [f"{name} {value:g}" for name, value in extras.items() if value]
        return ", ".join([self.decoder, f"z {size}", self.encoder, *shown])


def _plain(value: object, as_float: bool) -> object:
    """Numbers of numpy and torch as Python's, lists and arrays as tuples."""
    value = value.tolist() if hasattr(value, "tolist") else value
    if isinstance(value, (list, tuple)):
        return tuple(_plain(one, as_float) for one in value)
    return float(value) if as_float and type(value) is int else value


def _check_recipe(r: Recipe) -> None:
    shape, latents, alpha = r.image_shape, r.latents, r.alpha
    for name, value, kind in ((f.name, getattr(r, f.name), f.type) for f in fields(r)):
        if get_origin(kind) is Literal:
            expect(value in get_args(kind), f"{name} in {get_args(kind)}", value)
        elif words := {int: "a whole number", float: "a finite", bool: "True or False,"}.get(kind):
            least, positive = (1e-30, "> 0") if name in POSITIVE else (0, ">= 0")
            good = type(value) is kind and math.isfinite(value) and value >= least
            expect(good, f"{words} {name} {positive}", value)
    none, rows = latents is None, isinstance(latents, tuple) and len(latents) == 2
    expect(none or rows or type(latents) is int, "latents None, d or (H, d)", latents)
    expect(isinstance(shape, tuple) and len(shape) == 3, "image_shape (C, H, W)", shape)
    expect(r.annealing_epochs <= r.epochs, f"annealing_epochs <= {r.epochs}", r.annealing_epochs)
    weights = r.beta, r.annealing_epochs, r.free_bits
    changed = sum(value != default for value, default in zip(weights, (1, 0, 0), strict=True))
    expect(changed <= 1, "at most one of beta, annealing_epochs and free_bits", weights)
    needed = r.decoder == "mlp" or r.auxiliary_epochs
    expect(not (none and needed), "latents for an MLP decoder or an auxiliary prior", latents)
    bernoulli = r.decoder != "mlp" or r.likelihood == "bernoulli"
    expect(bernoulli, "Bernoulli pixels of an MLP decoder", r.likelihood)
    needed = alpha or r.auxiliary_epochs or r.encoder != "mlp"
    what = "latents (H, d) for alpha, an auxiliary prior or a convolutional encoder"
    expect(none or rows or not needed, what, latents)
    expect(not rows or latents[0] == shape[1], f"latents of {shape[1]} rows", latents)
    fits = isinstance(alpha, tuple) and (not alpha or (rows and len(alpha) == latents[1]))
    expect(fits, "one alpha for each of d channels", alpha)
    expect(not (alpha and r.delta), "alpha or delta", (alpha, r.delta))


def load(recipe: Recipe, images: Images | None = None) -> Images:
    """The images of the recipe, or those given; ``ValueError`` where they have another shape."""
    images = images or DATASETS[recipe.data]()
    got = tuple(images.train.shape[1:])
    expect(got == recipe.image_shape, f"images of shape {recipe.image_shape}", got)
    return images


def build(recipe: Recipe) -> VAE | WithoutLatents:
    """The untrained model; its random weights depend on the recipe's seed alone."""

    def take(names: str) -> dict:
        return {name: getattr(recipe, name) for name in names.split()}

    z, shape, size, posterior = recipe.latents, recipe.image_shape, recipe.encoder_size, None
    pixels = take("channels likelihood levels mixtures inject position context")
    with fork_rng():
        torch.manual_seed(recipe.seed)
        if recipe.decoder == "mlp":
            decoder = BernoulliMLP(z, shape, recipe.hidden)
        elif recipe.decoder == "pixelsnail":
            pixels |= {"residuals": recipe.layers} | take("blocks heads dropout")
            decoder = PixelSNAIL(z, shape, **pixels)
        else:
            kind = PixelCNN if recipe.decoder == "pixelcnn" else GatedPixelCNN
            decoder = kind(z, shape, **take("layers kernel first_kernel"), **pixels)
        if z is None:
            return WithoutLatents(decoder)
        prior, alpha = StandardNormal(z), torch.tensor(recipe.alpha)
        if recipe.alpha:
            posterior, prior = SequentialPosterior(alpha, z[0]), AR1Prior(alpha, z[0])
        elif recipe.delta:
            posterior = IndependentPosterior(recipe.delta, z)
        if recipe.encoder == "mlp":
            return VAE(MLPEncoder(z, shape, size, posterior), prior, decoder)
        how = {"layers": recipe.encoder_layers, "kernel": recipe.encoder_kernel, "channels": size}
        encoder = AntiCausalEncoder(z[1], shape, posterior, order=recipe.encoder, **how)
        return VAE(encoder, prior, decoder)


def objective(recipe: Recipe, images: int) -> Objective | None:
    """What the recipe minimises on so many training images; ``None`` is the negative bound."""
    if recipe.annealing_epochs:
        return Annealing(recipe.annealing_epochs * -(-images // recipe.batch_size))
    if recipe.free_bits:
        return FreeBits(recipe.free_bits, recipe.free_bits_group)
    return None if recipe.beta == 1 else Beta(recipe.beta)


def fit_recipe(recipe: Recipe, model: nn.Module, images: Images, **settings) -> History:
    """Train ``model`` as the recipe says; ``settings`` go to :func:`vaelib.fit`."""
    step = partial(aevb_step, objective=objective(recipe, len(images.train)))
    settings |= {"optimizer": partial(adam, lr=recipe.lr), "step": step, "test": images.test}
    return _fit(recipe, model, images, recipe.epochs, **settings)


def fit_auxiliary(recipe: Recipe, vae: VAE, images: Images, **settings) -> History:
    """Put an LSTM into the prior's slot and train it alone, on codes of the training images.

    The last row has the test numbers of the whole model.
    """
    home = next(vae.parameters()).device
    with fork_rng():
        torch.manual_seed(recipe.seed)
        vae.prior = AuxiliaryPrior(recipe.latents[1], recipe.latents[0])
    codes = CodePrior(vae.encoder, vae.prior.to(home))
    # For the checkpoint: a prior fits the codes of one encoder.
    codes.encoder_weights = fingerprint(parameters_to_vector(vae.encoder.parameters()))
    vae.encoder.requires_grad_(False)
    try:
        settings |= {"optimizer": adam(vae.prior.parameters(), lr=recipe.lr)}
        history = _fit(recipe, codes, images, recipe.auxiliary_epochs, **settings)
        device = settings.get("device") or ("cuda" if torch.cuda.is_available() else "cpu")
        bound = evaluate(vae.to(device), images.test)
    finally:
        vae.to(home).encoder.requires_grad_(True)
    parts = {"bound": bound.value, "distortion": bound.distortion, "rate": bound.rate}
    history.rows[-1] |= {f"test_{name}": float(value) for name, value in parts.items()}
    return history


def _fit(recipe: Recipe, model: nn.Module, images: Images, epochs: int, **settings) -> History:
    settings = {"evaluate_every": epochs} | settings  # only at the end
    settings |= {"batch_size": recipe.batch_size, "seed": recipe.seed, "schedule": linear_decay}
    settings["transform"] = TRANSFORMS.get(recipe.data)
    # An evaluation holds as many numbers at once as that of 1,000 digits with 128 channels.
    maps = recipe.channels * math.prod(recipe.image_shape[1:])
    settings["test_batch_size"] = max(1, min(1000, 1000 * 128 * 28 * 28 // maps))
    history = fit(model, images.train, epochs=epochs, **settings)
    if history.interrupted:
        raise KeyboardInterrupt(f"stopped after {len(history.rows)} epochs")
    return history


def trained(
    recipe: Recipe, images: Images | None = None, folder: Path | None = None, progress: bool = True
) -> tuple[VAE | WithoutLatents, History]:
    """The trained model of a recipe and the history of its training, from the cache if there.

    Of several processes that ask for one model, one trains it and the others wait. A file that is
    damaged or of something else is named and replaced. ``folder``: of the cache, by default
    ``models`` in :func:`vaelib.data.cache_folder`. The model is in evaluation mode on the CPU; the
    history's last row has the bound on the test images. After Ctrl-C nothing is kept.
    """
    images = load(recipe, images)
    path = Path(folder or data.cache_folder() / "models") / f"{_key(recipe, images)}.pt"
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
    writable = os.access(path.parent, os.W_OK)
    with FileLock(path.with_suffix(".lock")) if writable else nullcontext():
        if path.exists():
            try:
                kept, facts = load_with_facts(path)
                if facts.get("recipe") == asdict(recipe):
                    return kept, History(facts.get("rows", []))
                raise ValueError(f"{path}: expected {recipe.label}, got that of another recipe")
            except ValueError as error:
                warnings.warn(f"{error}: trained again", stacklevel=2)
        model, train, epochs = build(recipe), fit_recipe, recipe.epochs
        if recipe.auxiliary_epochs:
            model, _ = trained(replace(recipe, auxiliary_epochs=0), images, folder, progress)
            train, epochs = fit_auxiliary, recipe.auxiliary_epochs
        if progress:
            print(f"training {recipe.label}, {epochs} epochs", file=sys.stderr, flush=True)
        history = train(recipe, model, images, progress=progress)
        try:
            save(model, path, recipe=asdict(recipe), rows=history.rows)
        except (OSError, RuntimeError) as error:  # a folder or a full disk that takes no file
            warnings.warn(f"{path} cannot be written, nothing is kept: {error}", stacklevel=2)
    return model.eval(), history


def _key(recipe: Recipe, images: Images) -> str:
    """A file name that holds everything the model depends on."""
    content = hashlib.sha256(json.dumps([FORMAT, asdict(recipe)]).encode())
    for part in (images.train, images.test):
        content.update(str((part.shape, part.dtype)).encode())
        content.update(part.detach().cpu().contiguous().numpy().tobytes())
    return f"{recipe.decoder}-{content.hexdigest()[:20]}"
