"""The noise of images: the same numbers however their batch is cut into parts.

Whoever computes a part of a batch draws the noise of the whole batch from a generator that all
parts share, and keeps its own. So a batch that is cut among processes, or computed piece after
piece, gives each image the noise that it would have had uncut.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor


class Part(NamedTuple):
    """Images ``first`` … ``last`` − 1 of a batch of ``total``.

    Attributes:
        weight: share of the batch that these images stand for. A process that is left without an
            image computes the first one with weight 0, so that all take the same steps.
    """

    first: int
    last: int
    total: int
    weight: float

    @property
    def images(self) -> slice:
        """These images, as an index of the batch."""
        return slice(self.first, self.last)


def parts(total: int, rank: int = 0, world: int = 1, pieces: int = 1) -> list[Part]:
    """What process ``rank`` of ``world`` computes of a batch, one piece after the other.

    >>> [part.images for part in parts(5, rank=1, world=2, pieces=2)]
    [slice(2, 4, None), slice(4, 5, None)]
    """
    first, last = total * rank // world, total * (rank + 1) // world
    if first == last:
        return [Part(0, 1, total, 0.0)]
    size = -(-(last - first) // pieces)
    cuts = [*range(first, last, size), last]
    return [Part(a, b, total, (b - a) / total) for a, b in pairwise(cuts)]


_part: Part | None = None
_generator: torch.Generator | None = None


@contextmanager
def noise_of(part: Part, generator: torch.Generator) -> Iterator[None]:
    """Within the block, batches of the size of ``part`` get their own part of the noise."""
    global _part, _generator
    before = _part, _generator
    _part, _generator = part, generator
    try:
        yield
    finally:
        _part, _generator = before


def standard_normal(
    sample_shape: Sequence[int],
    batch_shape: Sequence[int],
    event_shape: Sequence[int],
    like: Tensor,
) -> Tensor | None:
    """Draws from N(0, 1), ``(*sample_shape, *batch_shape, *event_shape)``, for part of a batch.

    ``None`` where the batch is not cut, or ``batch_shape`` is not that of the part: then the draw
    is nobody else's business.
    """
    # Most batches are not cut, and compiled code should see no more than that.
    return None if _part is None else _part_of_noise(sample_shape, batch_shape, event_shape, like)


@torch.compiler.disable
def _part_of_noise(sample_shape, batch_shape, event_shape, like: Tensor) -> Tensor | None:
    if tuple(batch_shape) != (_part.last - _part.first,):
        return None
    whole = (*sample_shape, _part.total, *event_shape)
    noise = torch.empty(whole, dtype=like.dtype, device=like.device).normal_(generator=_generator)
    return noise.narrow(len(sample_shape), _part.first, _part.last - _part.first)


@contextmanager
def isolated_random_state(device: torch.device | None = None) -> Iterator[None]:
    """Whatever is drawn or seeded within the block, the caller's random state is left as it was.

    That of the CPU, of ``device``, and of the current GPU where one is in use: ``manual_seed``
    reaches it from anywhere.
    """
    gpus = set()
    if torch.cuda.is_initialized():
        gpus.add(torch.cuda.current_device())
    if device is not None and device.type == "cuda":
        gpus.add(torch.cuda.current_device() if device.index is None else device.index)
    with torch.random.fork_rng(devices=sorted(gpus)):
        yield
