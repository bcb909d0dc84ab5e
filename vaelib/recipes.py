"""Models described by their settings, trained once, and kept.

A :class:`vaelib.settings.Recipe` says everything about a model and its training; :func:`build`
makes the model, and :func:`trained` trains it or takes it from a cache that notebooks share::

    model, history = trained(Recipe(latents=(14, 2), alpha=(0.5, 0.9)))
"""

import hashlib
import json
import os
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import torch
from torch import nn
from torch.optim import Optimizer

from vaelib import data
from vaelib.checkpoints import kept, set_aside
from vaelib.data import Images
from vaelib.decoders import BernoulliMLP
from vaelib.encoders import AntiCausalEncoder, MLPEncoder
from vaelib.learning import aevb_step, auxiliary_prior_step
from vaelib.noise import isolated_random_state
from vaelib.objectives import Annealing, Beta, FreeBits, Objective
from vaelib.pixelcnn import GatedPixelCNN, PixelCNN, PixelSNAIL
from vaelib.posteriors import IndependentPosterior, Posterior, SequentialPosterior
from vaelib.priors import AR1Prior, AuxiliaryPrior, StandardNormal
from vaelib.settings import DATASETS, Recipe, load
from vaelib.training import History, adam, decay_late, fit
from vaelib.vae import ELBO, VAE, WithoutLatents

# Part of every key in the cache. Raise it when a change of the library changes what a recipe
# gives: every model is then trained again.
FORMAT = 1


def build(recipe: Recipe) -> VAE | WithoutLatents:
    """The untrained model; its random weights depend on the recipe's seed alone."""
    with isolated_random_state():
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


def auxiliary(recipe: Recipe, vae: VAE) -> tuple[Callable[..., ELBO], Optimizer]:
    """Put an untrained LSTM into the prior's slot -> the step that trains it, and its optimiser.

    For :func:`vaelib.training.fit`; encoder and decoder stay as they are.
    """
    vae.prior = _auxiliary_prior(recipe)

    def step(model, x, optimizer, backward):
        rate = auxiliary_prior_step(vae, vae.prior, x, optimizer, backward)
        return ELBO(torch.zeros_like(rate), rate)

    return step, adam(vae.prior.parameters(), lr=recipe.lr)


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
    step, optimizer = auxiliary(recipe, vae)
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
    with isolated_random_state():
        torch.manual_seed(recipe.seed)
        return AuxiliaryPrior(recipe.latents[1], recipe.latents[0])
