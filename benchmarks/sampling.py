"""How fast is drawing? ``python benchmarks/sampling.py [--json FILE]``

Drawing 16 images of a GatedPixelCNN with 10 layers and 128 channels, at 14×14 and at 28×28
pixels, in one run on the machine at hand:

1. cached, as ``sample()`` does it: each new pixel costs that pixel's activations only;
2. naive, as ``sample(cached=False)`` does it: the whole network for every pixel. Every pixel costs
   the same there, so a few are timed and multiplied. Required: cached at least 100 × faster;
3. one forward pass over the same images, as ``log_prob`` does it: the same arithmetic as cached
   drawing, all pixels at once. Required: cached drawing takes at most 3 × as long.

Both are required at 28×28. The contestants take turns, ratios are taken within a repeat, and
medians are reported.
"""

from functools import partial

import torch
from measure import interleaved, judge, main, show, stopwatch

from vaelib.pixelcnn import GatedPixelCNN

IMAGES, LAYERS, CHANNELS = 16, 10, 128
SIZES, REQUIRED = (14, 28), {28: {"naive, extrapolated": 1 / 100, "forward pass": 3.0}}
PIXELS = 2  # timed of the naive sampler, after a first turn that warms up


def new_model(size: int, device: torch.device) -> GatedPixelCNN:
    torch.manual_seed(0)
    model = GatedPixelCNN(image_shape=(1, size, size), layers=LAYERS, channels=CHANNELS)
    return model.to(device).eval()


def cached_turn(model: GatedPixelCNN, device: torch.device) -> float:
    return stopwatch(lambda: model().sample((IMAGES,)), device)


@torch.no_grad()
def forward_turn(model: GatedPixelCNN, images: torch.Tensor) -> float:
    return stopwatch(lambda: model().log_prob(images), images.device)


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


def measure(device: torch.device, repeats: int) -> dict:
    check_same_images(device)
    report = {}
    for size in SIZES:
        model = new_model(size, device)
        contestants = {
            "cached": partial(cached_turn, model, device),
            "naive, extrapolated": partial(naive_turn, model, device),
            "forward pass": partial(forward_turn, model, model().sample((IMAGES,))),
        }
        seconds = interleaved(contestants, repeats)
        show(f"{IMAGES} images of {size} × {size} pixels", "s", 1, seconds)
        ratios = [
            judge(seconds, "cached", other, REQUIRED.get(size, {}).get(other), device)
            for other in ("naive, extrapolated", "forward pass")
        ]
        report[str(size)] = {"seconds": seconds, "ratios": ratios}
    return {"sizes": report}


if __name__ == "__main__":
    main("Cached sampling against naive sampling and one forward pass.", measure, repeats=3)
