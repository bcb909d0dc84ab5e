"""How fast is log p(x)? ``python benchmarks/likelihood.py [--json FILE]``

Importance sampling of the 1,000 embedded test digits with 100 samples each, under the MLP VAE of
Kingma & Welling (2013), 784-500-20. Three contestants, in one run on the machine at hand:

1. ``inference.likelihood.importance_sampled``;
2. ``get_nll`` of pythae (only where it is installed). Required: ours at least 2 × faster;
3. the decoder's matrix products alone, which no estimator of this kind can do without.
   Required: ours at no less than half their speed.

The contestants take turns, ratios are taken within a repeat, and medians are reported.
"""

import warnings
from functools import partial

import torch
from measure import interleaved, judge, main, show, stopwatch
from torch import Tensor
from training_step import copy_weights, have_pythae, new_vae, pythae_vae

from vaelib import data
from vaelib.inference.likelihood import importance_sampled

SAMPLES = 100
LIMITS = {"pythae": 1 / 2, "matrix products": 2.0}  # the requirements, as ratios of seconds


def ours_turn(vae, images: Tensor) -> float:
    return stopwatch(lambda: importance_sampled(vae, images, SAMPLES), images.device)


@torch.no_grad()
def products_turn(vae, images: Tensor) -> float:
    """Latents in, pixels out: two layers and nothing between them, in chunks of the same size."""
    first, _, last = vae.decoder.network
    rows = 1_000_000 // images[0].numel()
    z = torch.randn(SAMPLES * len(images), first.in_features, device=images.device)

    def work():
        for chunk in z.split(rows):
            torch.addmm(last.bias, torch.addmm(first.bias, chunk, first.weight.T), last.weight.T)

    return stopwatch(work, images.device)


def pythae_turn(model, images: Tensor) -> float:
    return stopwatch(lambda: model.get_nll(images, n_samples=SAMPLES), images.device)


def check_same_answer(vae, model, images: Tensor) -> None:
    """Both estimate the same number; 100 samples leave them a few nats apart at most."""
    ours = importance_sampled(vae, images[:20], SAMPLES).mean().item()
    theirs = model.get_nll(images[:20], n_samples=SAMPLES)
    if abs(ours - theirs) > 1:
        raise AssertionError(f"pythae estimates another number: {theirs} against {ours} nats")


def measure(device: torch.device, repeats: int) -> dict:
    warnings.filterwarnings("ignore", "the estimates of")  # the model is not trained
    images, vae = data.mnist("5k").test.to(device), new_vae().to(device)
    contestants = {
        "importance_sampled": partial(ours_turn, vae, images),
        "matrix products": partial(products_turn, vae, images),
    }
    if have_pythae():
        model = pythae_vae().to(device)
        copy_weights(vae.encoder, model.encoder)
        copy_weights(vae.decoder, model.decoder)
        check_same_answer(vae, model.eval(), images)
        contestants["pythae"] = partial(pythae_turn, model, images)
    else:
        print("pythae is not installed: left out (see benchmarks/README.md).")
    seconds = interleaved(contestants, repeats)
    show(f"log p(x) of {len(images):,} digits, {SAMPLES} samples each", "s", 1, seconds)
    ratios = [
        judge(seconds, "importance_sampled", other, limit, device)
        for other, limit in LIMITS.items()
        if other in seconds
    ]
    return {"seconds": seconds, "ratios": ratios}


if __name__ == "__main__":
    main("Importance-sampled log p(x).", measure, repeats=5)
