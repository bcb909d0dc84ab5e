"""How much does the memory save? ``python benchmarks/sampling.py [--json FILE]``

Drawing 16 images of a GatedPixelCNN with 10 layers and 128 channels, at 14×14 and at 28×28
pixels, in one run on the machine at hand:

1. cached, as ``sample()`` does it: each new pixel costs that pixel's activations only. Timed in
   full;
2. naive, as ``sample(cached=False)`` does it: the whole network for every pixel. Every pixel costs
   the same there, so a few are timed and multiplied.

Required: cached at least 100 × faster at 28×28. Naive sampling costs one pass of all positions
for each position, so the ratio has to grow with the image. The contestants take turns, ratios are
taken within a repeat, and medians are reported.
"""

import argparse
from functools import partial
from pathlib import Path

import torch
from measure import compare, interleaved, machine, stopwatch, write_json
from training_step import on_cpu, show

from vaelib.pixelcnn import GatedPixelCNN

IMAGES, LAYERS, CHANNELS = 16, 10, 128
SIZES, REQUIRED = (14, 28), {28: 100}
PIXELS = 2  # timed of the naive sampler, after a first turn that warms up


def new_model(size: int, device: torch.device) -> GatedPixelCNN:
    torch.manual_seed(0)
    model = GatedPixelCNN(image_shape=(1, size, size), layers=LAYERS, channels=CHANNELS)
    return model.to(device).eval()


def cached_turn(model: GatedPixelCNN, device: torch.device) -> float:
    return stopwatch(lambda: model().sample((IMAGES,)), device)


@torch.no_grad()
def naive_turn(model: GatedPixelCNN, device: torch.device) -> float:
    height, width = model.image_shape[1:]
    x = torch.zeros(IMAGES, height, width, 1, device=device)
    given, uniforms = torch.zeros_like(x, dtype=torch.bool), torch.rand_like(x)
    maps = model.context(None, None)
    seconds = stopwatch(lambda: model.draw_naively(x, given, uniforms, maps, PIXELS), device)
    return seconds * height * width / PIXELS


def check_same_images(device: torch.device) -> None:
    """Both samplers draw the same small images from the same random numbers."""
    # Double precision: a GPU may round the convolutions of one way, not the products of the other.
    model, generator = new_model(7, device).double(), torch.Generator(device)
    cached, naive = (
        model().sample((IMAGES,), cached=cached, generator=generator.manual_seed(0))
        for cached in (True, False)
    )
    if not torch.equal(cached, naive):
        raise AssertionError("cached and naive sampling drew different images")


def judge(seconds: dict[str, list[float]], at_least: float | None) -> dict:
    """Print and return how many times faster the cached sampler is, and whether it is enough."""
    ratio = compare(seconds["naive, extrapolated"], seconds["cached"])
    met = None if at_least is None else ratio["median"] >= at_least
    verdict = "" if met is None else f", required >= {at_least}: {'met' if met else 'NOT MET'}"
    quartiles = f"(quartiles {ratio['quartile_1']:.0f}, {ratio['quartile_3']:.0f})"
    print(f"  cached is {ratio['median']:.0f} × faster {quartiles}{verdict}")
    return {**ratio, "at_least": at_least, "met": met}


def main() -> None:
    parser = argparse.ArgumentParser(description="Time cached against naive sampling.")
    parser.add_argument("--repeats", type=int, default=3, help="turns of each contestant")
    parser.add_argument("--device", default="cpu", help="cpu (default) or cuda")
    parser.add_argument("--json", type=Path, help="write the report to this file too")
    options = parser.parse_args()
    device = torch.device(options.device)

    report = {"machine": machine(device), "sizes": {}}
    print(", ".join(f"{name} {value}" for name, value in report["machine"].items()))
    check_same_images(device)
    for size in SIZES:
        model = new_model(size, device)
        turns = {"cached": cached_turn, "naive, extrapolated": naive_turn}
        contestants = {name: partial(turn, model, device) for name, turn in turns.items()}
        seconds = interleaved(contestants, options.repeats)
        show(f"{IMAGES} images of {size} × {size} pixels (median)", "s", 1, seconds)
        limit = on_cpu(REQUIRED.get(size), device)
        report["sizes"][size] = {"seconds": seconds, "ratio": judge(seconds, limit)}
    if options.json:
        write_json(report, options.json)


if __name__ == "__main__":
    main()
