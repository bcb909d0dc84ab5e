"""Where half precision ends: networks may run in it, log probabilities may not.

bfloat16 has 8 significant bits: a bound near 80 nats would be rounded to a multiple of one half.
float16 ends at 65,504: an exponential or a sum over pixels overflows. So what a network puts out
is brought to float32 before it becomes a distribution.
"""

from collections.abc import Callable

import torch
from torch import Tensor

HALVES = (torch.float16, torch.bfloat16)
# The positive numbers whose squares are neither zero nor infinite, of each type.
SQUARED = {
    dtype: (torch.finfo(dtype).tiny ** 0.5, torch.finfo(dtype).max ** 0.5)
    for dtype in (torch.float32, torch.float64)
}


def precise(x: Tensor) -> Tensor:
    """At least float32: half precision is widened, all else comes back as it is."""
    return x.float() if x.dtype in HALVES else x


def extremes(x: Tensor) -> tuple[float, float]:
    """The least and the greatest number; nan, both of them, if there is one."""
    low, high = x.detach().aminmax()
    return low.item(), high.item()


def in_full(score: Callable[..., Tensor], features: Tensor, *rest) -> Tensor:
    """``score(features, *rest)``, in float32 where autocast would compute it in half precision."""
    device = features.device.type
    if not torch.is_autocast_enabled(device):
        return score(features, *rest)
    with torch.autocast(device, enabled=False):
        return score(precise(features), *rest)
