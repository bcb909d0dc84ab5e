"""Networks without probability in them: layers in, tensors out."""

import math
from collections.abc import Sequence
from itertools import pairwise

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
        hidden = [hidden] if isinstance(hidden, int) else list(hidden)
        sizes = [inputs, *hidden, outputs]
        if not all(isinstance(size, int) and size > 0 for size in sizes):
            raise ValueError(f"expected positive layer sizes, got {sizes}")
        layers: list[nn.Module] = []
        for before, after in pairwise(sizes[:-1]):
            layers += [nn.Linear(before, after), activation()]
        super().__init__(*layers, nn.Linear(sizes[-2], sizes[-1]))


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
