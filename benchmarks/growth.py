"""How does the cost grow? ``python benchmarks/growth.py [--json FILE] [--picture FILE]``

Seconds and memory against one size at a time, in one run on the machine at hand:

1. KL(q ‖ AR(1)) against the number of latent rows n. The closed form should grow like n, the KL
   of the same two distributions as dense multivariate normals like n³.
2. Drawing one image of p × p pixels from a GatedPixelCNN. The cached sampler should grow like the
   number of pixels, the naive one like its square. (The naive time is extrapolated from a few
   pixels, which all cost the same.)
3. One training step of a δ-VAE with that decoder against the number of pixels: its seconds, and
   what it keeps in memory for the backward pass. Both should grow like the number of pixels.
4. On a GPU: the training step compiled against eager, and in bf16 against float32.

The exponent of a curve is the slope of a straight line through its logarithms, over the larger
half of the sizes, where fixed costs no longer matter.
"""

import argparse
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median

import numpy as np
import torch
from measure import compare, interleaved, machine, stopwatch, write_json
from torch.distributions import MultivariateNormal, kl_divergence

from vaelib import plotting
from vaelib.distributions import AR1, DiagNormal
from vaelib.pixelcnn import GatedPixelCNN
from vaelib.recipes import Recipe, build

BATCH, CHANNELS = 64, 8  # of the KL
ROWS, DENSE_ROWS = (128, 256, 512, 1024, 2048, 4096, 8192), (128, 256, 512, 1024)
SIDES, TRAINED_SIDES = (8, 12, 16, 24, 32, 48), (14, 20, 28, 40)
PIXELS = 2  # timed of the naive sampler
EXPECTED = {
    "KL, closed form": 1,
    "KL, dense": 3,
    "sampling, cached": 1,
    "sampling, naive": 2,
    "training step": 1,
    "training step, memory": 1,
}


def closed_kl(rows: int, device: torch.device) -> float:
    alpha = torch.linspace(0.5, 0.95, CHANNELS, device=device)
    scale = torch.full((BATCH, rows, CHANNELS), 0.5, device=device)
    q, p = DiagNormal(torch.zeros_like(scale), scale, event_dims=2), AR1(alpha, rows)
    return stopwatch(lambda: kl_divergence(q, p), device)


def dense_kl(rows: int, device: torch.device) -> float:
    """One channel of one image; the others would only multiply it."""
    t = torch.arange(rows, device=device, dtype=torch.float64)
    covariance = 0.8 ** (t[:, None] - t).abs()
    p = MultivariateNormal(torch.zeros_like(t), covariance)
    q = MultivariateNormal(torch.zeros_like(t), 0.25 * torch.eye(rows, device=device).double())
    return stopwatch(lambda: kl_divergence(q, p), device)


def sampler(side: int, device: torch.device) -> GatedPixelCNN:
    torch.manual_seed(0)
    return GatedPixelCNN(image_shape=(1, side, side), layers=4, channels=32).to(device).eval()


def cached_sampling(side: int, device: torch.device) -> float:
    model = sampler(side, device)
    return stopwatch(lambda: model().sample((1,)), device)


@torch.no_grad()
def naive_sampling(side: int, device: torch.device) -> float:
    model = sampler(side, device)
    x = torch.zeros(1, side, side, 1, device=device)
    given, uniforms = torch.zeros_like(x, dtype=torch.bool), torch.rand_like(x)
    maps = model.context(None, None)
    seconds = stopwatch(lambda: model.draw_naively(x, given, uniforms, maps, PIXELS), device)
    return seconds * side**2 / PIXELS


def delta_vae(side: int, device: torch.device):
    """A δ-VAE for images of this side, two latents a row, and a batch of black and white noise."""
    recipe = Recipe(image_shape=(1, side, side), latents=(side, 2), alpha=(0.5, 0.9))
    images = torch.rand(16, 1, side, side, generator=torch.Generator().manual_seed(0))
    return build(replace(recipe, channels=32)).to(device), images.round().to(device)


def training_step(side: int, device: torch.device) -> float:
    vae, x = delta_vae(side, device)

    def step():
        vae.zero_grad()
        (-vae.elbo(x).value.mean()).backward()

    step()  # the first one sets up
    return stopwatch(step, device)


def training_memory(side: int, device: torch.device) -> float:
    """Bytes that the forward pass keeps for the backward pass, parameters left out."""
    vae, x = delta_vae(side, device)
    own, kept = {p.untyped_storage().data_ptr() for p in vae.parameters()}, {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = vae.elbo(x).value.mean()  # named, so that nothing is freed before it is counted
    del loss
    return float(sum(kept.values()))


def exponent(sizes: Sequence[float], values: Sequence[float]) -> float:
    """Slope of log(value) against log(size) over the larger half of the sizes."""
    half = len(sizes) // 2
    return float(np.polyfit(np.log(sizes[half:]), np.log(values[half:]), 1)[0])


def curve(
    name: str,
    measure: Callable[[int, torch.device], float],
    sizes: Sequence[int],
    device: torch.device,
    repeats: int,
) -> dict:
    """Medians of ``measure`` at each size, and how they grow."""
    values = []
    for size in sizes:
        measure(size, device)
        values.append(median(measure(size, device) for _ in range(repeats)))
    counts = [size**2 for size in sizes] if not name.startswith("KL") else list(sizes)
    grown = exponent(counts, values)
    unit = "rows" if name.startswith("KL") else "pixels"
    print(f"  {name:<24} ∝ {unit}^{grown:.2f}   (in theory {EXPECTED[name]})")
    report = {unit: counts, "values": values, "exponent": grown}
    return {**report, "in theory": EXPECTED[name], "in": "bytes" if "memory" in name else "s"}


def on_gpu(device: torch.device, repeats: int) -> dict:
    """One training step of the largest model: eager, compiled, and both in bf16."""
    vae, x = delta_vae(TRAINED_SIDES[-1], device)
    torch.set_float32_matmul_precision("high")

    def step(model, half):
        vae.zero_grad()
        with torch.autocast("cuda", torch.bfloat16, enabled=half):
            loss = -sum(model(x)).mean()
        loss.backward()

    def bound(images):
        elbo = vae.elbo(images)
        return -elbo.distortion, -elbo.rate

    compiled = torch.compile(bound)
    seconds = interleaved(
        {
            f"{name}{', bf16' if half else ''}": lambda m=model, h=half: stopwatch(
                lambda: step(m, h), device
            )
            for name, model in (("eager", bound), ("compiled", compiled))
            for half in (False, True)
        },
        max(repeats, 10),
    )
    ratios = {name: compare(seconds["eager"], seconds[name]) for name in list(seconds)[1:]}
    for name, ratio in ratios.items():
        print(f"  training step, {name}: {ratio['median']:.2f} × as fast as eager in float32")
    return {"seconds": seconds, "times faster than eager": ratios}


def draw(curves: dict, path: Path) -> None:
    """One picture: time against rows, time against pixels, memory against pixels."""
    plotting.use_style()
    colors = dict(
        zip(EXPECTED, ("aevb", "wake-sleep", "decoder", "mcem", "encoder", "encoder"), strict=True)
    )
    figure, axes = plotting.plt.subplots(1, 3, figsize=(13, 3.8))
    for name, found in curves.items():
        unit = "rows" if "rows" in found else "pixels"
        ax = axes[0 if unit == "rows" else 1 + (found["in"] == "bytes")]
        scale = 1e-6 if found["in"] == "bytes" else 1e3
        few = {"KL, closed form": f" ({BATCH} × {CHANNELS})", "KL, dense": " (1 × 1)"}.get(name, "")
        label = f"{name}{few} ∝ {unit}$^{{{found['exponent']:.1f}}}$"
        values = [scale * value for value in found["values"]]
        ax.loglog(found[unit], values, "o-", color=plotting.COLORS[colors[name]], label=label)
        ax.set(xlabel=f"{unit} of {'z' if unit == 'rows' else 'the image'}")
        ax.set(ylabel="megabytes" if found["in"] == "bytes" else "milliseconds")
    axes[2].sharex(axes[1])
    for ax, title in zip(
        axes,
        ("KL of images × channels", "one image drawn, 16 trained", "kept for the backward pass"),
        strict=True,
    ):
        ax.set_title(title)
        ax.xaxis.set_minor_formatter("")
        ax.yaxis.set_minor_formatter("")
        ax.legend(fontsize=9)
    plotting.save_figure(figure, path.stem, path.parent)


def main() -> None:
    parser = argparse.ArgumentParser(description="How seconds and memory grow with size.")
    parser.add_argument("--repeats", type=int, default=5, help="measurements of each point")
    parser.add_argument("--device", default="cpu", help="cpu (default) or cuda")
    parser.add_argument("--json", type=Path, help="write the report to this file too")
    parser.add_argument("--picture", type=Path, help="draw the curves to this PNG file")
    options = parser.parse_args()
    device = torch.device(options.device)

    report = {"machine": machine(device)}
    print(", ".join(f"{name} {value}" for name, value in report["machine"].items()))
    print("\nGrowth")
    measured = {
        "KL, closed form": (closed_kl, ROWS),
        "KL, dense": (dense_kl, DENSE_ROWS),
        "sampling, cached": (cached_sampling, SIDES),
        "sampling, naive": (naive_sampling, SIDES),
        "training step": (training_step, TRAINED_SIDES),
        "training step, memory": (training_memory, TRAINED_SIDES),
    }
    report["curves"] = {
        name: curve(name, measure, sizes, device, options.repeats)
        for name, (measure, sizes) in measured.items()
    }
    if device.type == "cuda":
        report["gpu"] = on_gpu(device, options.repeats)
    else:
        print("  compiled against eager, bf16 against float32: on a GPU only")
    if options.json:
        write_json(report, options.json)
    if options.picture:
        draw(report["curves"], options.picture)


if __name__ == "__main__":
    main()
