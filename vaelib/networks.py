"""What slots and pixel models share: an MLP, and small helpers for shapes, types and modes."""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from numbers import Integral

import torch
from torch import Tensor, nn


class MLP(nn.Sequential):
    """Fully connected network, an activation after every layer but the last.

    Args:
        inputs: size of the input vector.
        hidden: sizes of the hidden layers; an int for a single one.
        outputs: size of the output vector.
        activation: class of the non-linearity, tanh as in Kingma & Welling (2013), appendix C.

    Shapes: ``(*batch, inputs)`` to ``(*batch, outputs)``.
    """

    def __init__(
        self,
        inputs: int,
        hidden: int | Sequence[int],
        outputs: int,
        activation: type[nn.Module] = nn.Tanh,
    ):
        sizes = [inputs, *([hidden] if is_int(hidden) else hidden), outputs]
        if not all(is_int(size) and size > 0 for size in sizes):
            raise ValueError(f"expected positive layer sizes, got {sizes}")
        layers: list[nn.Module] = []
        for before, after in pairwise(sizes[:-1]):
            layers += [nn.Linear(before, after), activation()]
        super().__init__(*layers, nn.Linear(sizes[-2], sizes[-1]))

    def forward(self, x: Tensor) -> Tensor:
        check_dtype(x, next(iter(self)).weight)  # self[0] takes longer than the check
        return super().forward(x)


def gate(x: Tensor, dim: int = -1) -> Tensor:
    """tanh(a) · sigmoid(b) of the two halves of the channels, ``(…, 2·C)`` to ``(…, C)``.

    van den Oord et al. (2016), *Conditional Image Generation with PixelCNN Decoders*, equation 2.
    """
    value, gate = x.chunk(2, dim)
    return value.tanh() * gate.sigmoid()


def init_normal_(module: nn.Module, std: float = 0.01) -> nn.Module:
    """Draw every weight and bias of ``module`` from N(0, std²), in place; returns the module.

    Kingma & Welling (2013), section 5, start their networks this way.
    """
    if not (std > 0 and math.isfinite(std)):
        raise ValueError(f"expected a positive finite std, got {std}")
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(0, std)
    return module


def is_int(x: object) -> bool:
    """Whether ``x`` is a whole number, numpy's included, and no boolean."""
    return isinstance(x, Integral) and not isinstance(x, bool)


def latent_shape(latents: int | Sequence[int]) -> tuple[int, ...]:
    """``d`` as ``(d,)``, and ``(rows, d)`` as it is.

    Raises:
        ValueError: other numbers of sizes, or sizes below 1.
    """
    shape = tuple(latents) if hasattr(latents, "__len__") else (latents,)
    if not 1 <= len(shape) <= 2 or not all(is_int(size) and size >= 1 for size in shape):
        raise ValueError(f"expected latents d or (rows, d) with sizes >= 1, got {latents}")
    return tuple(int(size) for size in shape)


def flatten_events(x: Tensor, event_shape: Sequence[int], name: str = "x") -> Tensor:
    """Flatten the event dimensions: ``(*batch, *event_shape)`` to ``(*batch, numel)``.

    Raises:
        ValueError: if the last dimensions of ``x`` are not ``event_shape``.
    """
    event_shape = tuple(event_shape)
    batch = x.dim() - len(event_shape)
    if batch < 0 or tuple(x.shape[batch:]) != event_shape:
        raise ValueError(f"expected {name} of shape (*batch, {event_shape}), got {tuple(x.shape)}")
    return x.flatten(batch) if event_shape else x


def halved_sizes(image_shape: Sequence[int], times: int) -> list[tuple[int, int]]:
    """(H, W) of an image (C, H, W) and of ``times`` maps, each half as large, rounded up."""
    if len(image_shape) != 3 or times < 1:
        raise ValueError(f"expected image_shape (C, H, W) and a layer, got {tuple(image_shape)}")
    sizes = [tuple(image_shape[1:])]
    for _ in range(times):
        sizes.append(tuple(-(-side // 2) for side in sizes[-1]))
    return sizes


def check_dtype(x: Tensor, weight: Tensor) -> None:
    """Raise ``TypeError`` unless ``x`` has the dtype of the weights; autocast takes any float."""
    if x.dtype != weight.dtype and not torch.is_autocast_enabled(x.device.type):
        raise TypeError(f"expected {weight.dtype}, as the weights are, got {x.dtype}")


def to_float32(x: Tensor) -> Tensor:
    """Half precision widened to float32; all other types come back as they are.

    bfloat16 has 8 significant bits: a bound near 80 nats would be rounded to a multiple of one
    half. So what a network puts out is widened before it becomes a distribution.
    """
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def full_precision(function: Callable[..., Tensor], x: Tensor, *rest) -> Tensor:
    """``function(x, *rest)`` without autocast, x in float32 at least."""
    device = x.device.type
    if not torch.is_autocast_enabled(device):
        return function(x, *rest)
    with torch.autocast(device, enabled=False):
        return function(to_float32(x), *rest)


@contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """Evaluation mode (no dropout) within the block; then every module has its old mode again."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


@contextmanager
def fork_rng(device: torch.device | None = None) -> Iterator[None]:
    """Restore the caller's random state when the block ends.

    That of the CPU, of ``device``, and of the current GPU where one is in use, because
    ``torch.manual_seed`` sets it too.
    """
    gpus = {torch.cuda.current_device()} if torch.cuda.is_initialized() else set()
    if device is not None and device.type == "cuda":
        gpus.add(torch.cuda.current_device() if device.index is None else device.index)
    with torch.random.fork_rng(devices=sorted(gpus)):
        yield
