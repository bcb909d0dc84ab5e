"""The rows of the papers' tables that we train: a recipe for each.

Sizes follow Razavi et al. (2019), table 6, where it states them (layers, channels, attention,
correlations); what it does not state (step size, batch, epochs, dropout) is our choice.
"""

from dataclasses import replace

from vaelib.experiments.recipes import Recipe

_SNAIL = Recipe(decoder="pixelsnail", epochs=100, batch_size=64)
_CODES = {"encoder": "anti-causal", "auxiliary_epochs": 20}
_DIGITS = replace(_SNAIL, data="mnist", image_shape=(1, 28, 28), lr=1e-3, dropout=0.1)
_DIGITS = replace(_DIGITS, channels=128, blocks=4, layers=3, heads=2, context=32)
_DIGITS_DELTA = replace(_DIGITS, latents=(28, 2), alpha=(0.5, 0.9), **_CODES)
_DIGITS_DELTA = replace(_DIGITS_DELTA, encoder_size=64, encoder_layers=4, encoder_kernel=5)
_COLOUR = replace(_SNAIL, data="cifar10", image_shape=(3, 32, 32), lr=3e-4, dropout=0.3)
_COLOUR = replace(_COLOUR, likelihood="logistic_mixture", channels=256, blocks=6, layers=5)
_COLOUR = replace(_COLOUR, heads=4, context=64)
# Eight channels, evenly spaced: a committed rate of 79.4 bits an image.
_EIGHT = tuple(round(0.5 + 0.45 * k / 7, 10) for k in range(8))
_COLOUR_DELTA = replace(_COLOUR, latents=(32, 8), alpha=_EIGHT, **_CODES)
_COLOUR_DELTA = replace(_COLOUR_DELTA, encoder_size=128, encoder_layers=20, encoder_kernel=3)
_IMAGENET = {"data": "imagenet32", "dropout": 0.0, "epochs": 10, "batch_size": 128}

RECIPES: dict[str, Recipe] = {
    "mnist-gated": replace(_DIGITS, decoder="gated", layers=10, kernel=5, first_kernel=7),
    "mnist-pixelsnail": _DIGITS,
    "mnist-delta-vae": _DIGITS_DELTA,
    "mnist-collapse": replace(_DIGITS_DELTA, alpha=(0.0, 0.0), auxiliary_epochs=0),
    "cifar10-pixelsnail": _COLOUR,
    "cifar10-delta-vae": _COLOUR_DELTA,
    "imagenet32-pixelsnail": replace(_COLOUR, **_IMAGENET),
    "imagenet32-delta-vae": replace(_COLOUR_DELTA, **_IMAGENET | {"auxiliary_epochs": 2}),
}


def prior_name(recipe: Recipe) -> str:
    """What the tables call the prior that a recipe is trained with."""
    if recipe.latents is None:
        return "no latents"
    return "AR(1) prior" if any(recipe.alpha) else "N(0, I) prior"
