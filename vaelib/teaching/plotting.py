"""Tensors in, figures out, in one style; the only module that imports matplotlib.

Each concept keeps one colour through all notebooks: those of Okabe and Ito and their neighbours,
which colour-blind readers can tell apart.
"""

import os
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import seaborn as sns
import torch
from matplotlib.patches import Wedge
from torch import Tensor

COLORS = {"data": "#333333", "exact": "#000000"}
COLORS |= {"encoder": "#0072B2", "prior": "#009E73", "decoder": "#E69F00"}
COLORS |= {"rate": "#CC79A7", "distortion": "#56B4E9", "bound": "#7F7F7F"}
COLORS |= {"aevb": "#D55E00", "wake-sleep": "#5E3C99", "mcem": "#8C6D31"}
CLONE = Path(__file__).resolve().parents[2]
# A package that is installed elsewhere must not write beside itself.
FIGURES = (CLONE if (CLONE / "notebooks").is_dir() else Path.cwd()) / "figures"
STYLE = {"figure.dpi": 80, "savefig.dpi": 160, "savefig.bbox": "tight"}
STYLE |= {"figure.constrained_layout.use": True}
STYLE |= {"axes.spines.top": False, "axes.spines.right": False, "legend.frameon": False}
STYLE |= {"axes.titlesize": 13, "axes.labelsize": 13, "lines.linewidth": 2}
STYLE |= {"image.cmap": "gray", "image.interpolation": "nearest"}


def use_style() -> None:
    """Set the style of the course for all figures that follow."""
    sns.set_theme(style="ticks", context="notebook", palette="colorblind", rc=STYLE)


def latent_grid(rows: int) -> Tensor:
    """A grid of 2-D latent vectors that is even in prior probability, ``(rows², 2)``.

    z = Φ⁻¹(u) for evenly spaced u in the unit square, with Φ the distribution function of N(0, 1).
    Kingma & Welling (2013), figure 4. The first coordinate grows rightwards, the second upwards.
    """
    if rows < 2:
        raise ValueError(f"expected rows >= 2, got {rows}")
    axis = torch.special.ndtri(torch.linspace(0.5 / rows, 1 - 0.5 / rows, rows))
    second, first = torch.meshgrid(axis.flip(0), axis, indexing="ij")
    return torch.stack([first, second], dim=-1).flatten(0, 1)


def tile(images: Tensor, columns: int = 0, gap: int = 1) -> Tensor:
    """Lay images side by side: ``(N, 1 or 3, H, W)`` to one ``(height, width)`` or ``(…, 3)``.

    Values are clipped to [0, 1]. ``columns``: images per row, about √N by default; ``gap``: white
    pixels between images.
    """
    images = torch.as_tensor(images)
    if images.dim() != 4 or images.shape[1] not in (1, 3):
        raise ValueError(f"expected images (N, 1 or 3, H, W), got {tuple(images.shape)}")
    number, channels, height, width = images.shape
    columns = columns or int(np.ceil(np.sqrt(number)))
    rows, height, width = -(-number // columns), height + gap, width + gap
    picture = torch.ones(channels, rows * height - gap, columns * width - gap)
    for index, image in enumerate(images.detach().cpu().float().clamp(0, 1)):
        top, left = index // columns * height, index % columns * width
        picture[:, top : top + height - gap, left : left + width - gap] = image
    return picture[0] if channels == 1 else picture.permute(1, 2, 0)


def show_images(
    images: Tensor, columns: int = 0, title: str = "", ax: plt.Axes | None = None, gap: int = 1
) -> plt.Axes:
    """Draw images ``(N, C, H, W)`` as :func:`tile` lays them, without axes."""
    ax = ax or plt.subplots(figsize=(6, 6))[1]
    ax.imshow(tile(images, columns, gap).numpy(), vmin=0, vmax=1)
    ax.set(title=title, xticks=[], yticks=[])
    sns.despine(ax=ax, left=True, bottom=True)
    return ax


def show_rows(rows: Mapping[str, Tensor], title: str | None = None) -> plt.Figure:
    """One labelled row of images each: ``{"data": (N, C, H, W), "reconstruction": …}``."""
    count, _, height, width = next(iter(rows.values())).shape
    size = (min(10, 0.9 * count + 1.5), 0.95 * len(rows) * height / width + 0.4)
    figure, axes = plt.subplots(len(rows), 1, figsize=size, squeeze=False)
    for ax, (name, images) in zip(axes[:, 0], rows.items(), strict=True):
        show_images(images, columns=count, ax=ax)
        ax.set_ylabel(name, rotation=0, ha="right", va="center")
    figure.suptitle(title)
    return figure


def show_manifold(images: Tensor, title: str | None = None, ax: plt.Axes | None = None) -> plt.Axes:
    """Draw the decoded :func:`latent_grid`: ``(rows², C, H, W)``, as one seamless picture."""
    rows = round(len(images) ** 0.5)
    if rows**2 != len(images):
        raise ValueError(f"expected a square number of images, got {len(images)}")
    ax = show_images(images, rows, title, ax, gap=0)
    ax.set(xlabel="$z_1$: prior quantile 0 → 1", ylabel="$z_2$: prior quantile 0 → 1")
    return ax


def learning_curves(
    histories: Mapping, ax: plt.Axes | None = None, colors: Mapping[str, str] | None = None
) -> plt.Axes:
    """Bound (nats) against training images seen: dashed on the training set, solid on the test set.

    ``histories``: under each label what ``fit`` returned, or its rows; ``colors``: of the labels.
    """
    ax = ax or plt.subplots(figsize=(7, 4))[1]
    cycle = sns.color_palette("colorblind", len(histories))
    for (label, history), color in zip(histories.items(), cycle, strict=True):
        color = (colors or {}).get(label, color)
        rows = getattr(history, "rows", history)
        for split, dashes in {"train": (0, (2, 1)), "test": "solid"}.items():
            points = [(r["samples"], r[f"{split}_bound"]) for r in rows if f"{split}_bound" in r]
            if points:
                ax.plot(*np.array(points).T, color=color, ls=dashes, label=f"{label}, {split}")
    ax.set(xscale="log", xlabel="training images seen", ylabel="bound (nats per image)")
    ax.legend()
    return ax


def latent_scatter(z: Tensor, labels: Tensor | None = None, ax: plt.Axes | None = None) -> plt.Axes:
    """Scatter latent vectors ``(N, 2)``, one colour a class and its label at its median."""
    z = torch.as_tensor(z).detach().cpu().numpy()
    if z.ndim != 2 or z.shape[1] != 2:
        raise ValueError(f"expected latent vectors (N, 2), got {z.shape}")
    ax = ax or plt.subplots(figsize=(6, 5.4))[1]
    ax.set(xlabel="$z_1$", ylabel="$z_2$", aspect="equal")
    if labels is None:
        return ax.scatter(*z.T, s=6, color=COLORS["encoder"], alpha=0.6).axes
    labels = torch.as_tensor(labels).cpu()
    classes = {str(name): z[(labels == name).numpy()] for name in labels.unique().tolist()}
    centres = np.stack([np.median(points, 0) for points in classes.values()])
    for _ in range(100):  # push them apart, until hardly any two are closer than a twentieth of all
        difference = centres[:, None] - centres  # (classes, classes, 2)
        length = np.linalg.norm(difference, axis=-1, keepdims=True).clip(1e-9)
        missing = (0.05 * np.ptp(z, axis=0).max() - length).clip(0)
        centres = centres + (difference / length * missing / 2).sum(1)
    for index, (name, points) in enumerate(classes.items()):
        color = plt.cm.tab10(index % 10)
        ax.scatter(*points.T, s=8, color=color, alpha=0.5, linewidths=0, label=name)
        ax.annotate(name, centres[index], ha="center", va="center", weight="bold")
        ax.texts[-1].set_bbox({"facecolor": "white", "alpha": 0.7, "linewidth": 0, "pad": 1})
    return ax


def save_figure(figure: plt.Figure, name: str, folder: str | os.PathLike | None = None) -> Path:
    """Save as ``name.png`` in ``folder``, by default VAELIB_FIGURES or ``figures``; the path."""
    folder = Path(folder or os.environ.get("VAELIB_FIGURES") or FIGURES)
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / f".{name}.{os.getpid()}.tmp"  # so that no file is seen half-written
    try:
        # Without the version of matplotlib in it, the same picture is the same file.
        figure.savefig(temporary, format="png", metadata={"Software": None})
        return temporary.replace(folder / f"{name}.png")
    finally:
        temporary.unlink(missing_ok=True)


def course_map(
    stops: Sequence[tuple], chapters: Mapping[str, Sequence[int]], written: Sequence[int]
) -> plt.Figure:
    """Draw a course as a path of numbered stops, seven in a row.

    ``stops``: (number, title, slots) each, slots being words out of encoder, prior, decoder: those
    thirds of the stop's ring are filled. ``chapters``: numbers of the stops below each name;
    ``written``: numbers of the stops that exist, the others are pale and marked "planned".
    """
    per_row = 7
    rows = -(-len(stops) // per_row)
    figure, ax = plt.subplots(figsize=(1.65 * per_row, 2.35 * rows + 0.6))
    place = {number: (i % per_row, -1.6 * (i // per_row)) for i, (number, *_) in enumerate(stops)}
    sectors = {"encoder": (150, 270), "prior": (30, 150), "decoder": (270, 390)}
    for a, b in pairwise(place.values()):
        right, left, middle = a[0] + 0.5, b[0] - 0.5, a[1] - 0.74
        turn = [(right, a[1]), (right, middle), (left, middle), (left, b[1])] if a[1] > b[1] else []
        ax.plot(*zip(a, *turn, b, strict=True), color="#BBBBBB", linewidth=3, zorder=0)
    for number, title, slots in stops:
        x, y = place[number]
        alpha, text = (1, title) if number in written else (0.3, f"{title}\n(planned)")
        for slot, angles in sectors.items():
            color = COLORS[slot] if slot in slots.split() else "#E4E4E4"
            ax.add_patch(Wedge((x, y), 0.26, *angles, color="white", zorder=1))
            ax.add_patch(Wedge((x, y), 0.25, *angles, width=0.1, color=color, alpha=alpha))
        style = {"ha": "center", "alpha": max(alpha, 0.55)}
        ax.text(x, y, f"{number:02d}", va="center", weight="bold", fontsize=12, **style)
        ax.text(x, y - 0.32, text, va="top", fontsize=9.5, linespacing=1.15, **style)
    for name, numbers in chapters.items():
        x, y = place[numbers[0]]
        ax.text(x - 0.28, y + 0.38, name, fontsize=13, weight="bold")
    handles = [Wedge((0, 0), 1, 0, 120, color=COLORS[slot], label=slot) for slot in sectors]
    ax.legend(handles=handles, ncols=3, loc="lower center", bbox_to_anchor=(0.5, 1))
    ax.set(xlim=(-0.6, per_row - 0.4), ylim=(-1.6 * rows + 0.72, 0.65), aspect="equal")
    ax.axis("off")
    return figure
