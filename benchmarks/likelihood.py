"""How fast is log p(x)? ``python benchmarks/likelihood.py [--json FILE]``

Importance sampling of the 1,000 embedded test digits with 100 samples each, under the MLP VAE of
Kingma & Welling (2013), 784-500-20. Three contestants, in one run on the machine at hand:

1. ``likelihood.importance_sampled``;
2. ``get_nll`` of pythae (only where it is installed). Required: ours at least 2 × faster;
3. the decoder's matrix products alone, which no estimator of this kind can do without.
   Required: ours at no less than half their speed.

The contestants take turns, ratios are taken within a repeat, and medians are reported.
"""

import argparse
from functools import partial
from pathlib import Path

import torch
from measure import interleaved, machine, stopwatch, write_json
from torch import Tensor
from training_step import copy_weights, have_pythae, judge, new_vae, on_cpu, pythae_vae, show

from vaelib import data
from vaelib.likelihood import importance_sampled

SAMPLES = 100
AGAINST_PYTHAE, AGAINST_PRODUCTS = 1 / 2, 2.0  # the requirements, as ratios of seconds


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


def main() -> None:
    parser = argparse.ArgumentParser(description="Time importance-sampled log p(x).")
    parser.add_argument("--repeats", type=int, default=5, help="turns of each contestant")
    parser.add_argument("--device", default="cpu", help="cpu (default) or cuda")
    parser.add_argument("--json", type=Path, help="write the report to this file too")
    options = parser.parse_args()
    device = torch.device(options.device)
    images, vae = data.mnist("5k").test.to(device), new_vae().to(device)

    report = {"machine": machine(device)}
    print(", ".join(f"{name} {value}" for name, value in report["machine"].items()))
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
    report["seconds"] = interleaved(contestants, options.repeats)
    title = f"log p(x) of {len(images):,} digits, {SAMPLES} samples each (median)"
    show(title, "s", 1, report["seconds"])
    limits = {"pythae": AGAINST_PYTHAE, "matrix products": AGAINST_PRODUCTS}
    report["ratios"] = [
        judge(report["seconds"], "importance_sampled", other, on_cpu(limit, device))
        for other, limit in limits.items()
        if other in report["seconds"]
    ]
    if options.json:
        write_json(report, options.json)


if __name__ == "__main__":
    main()
