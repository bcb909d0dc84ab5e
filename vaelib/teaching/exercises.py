"""The check under every exercise of the notebooks: your answer beside the true one."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def check(yours, true: float | Tensor | Sequence, tolerance: float = 1e-4) -> None:
    """Print your answer beside the true one, which is shown only once you answer.

    ``yours``: a number, tensor or sequence of numbers, compared in order, whatever their shape;
    ``...``, alone or among them, is no answer yet. ``tolerance``: how far each number may be off,
    as a share of the true one, in (0, 1).

    >>> check(0.6931, math.log(2))
    yours: 0.6931 | true: 0.6931 | correct
    """
    if not 0 < tolerance < 1:
        raise ValueError(f"expected a tolerance in (0, 1), got {tolerance}")
    digits = min(4, max(2, round(-math.log10(tolerance))))
    right = _numbers(true)
    if yours is ... or (isinstance(yours, (list, tuple)) and any(one is ... for one in yours)):
        return print("yours: not answered yet | true: shown once you answer")
    shown = _shown(right, digits)
    try:
        answer = _numbers(yours)
    except (TypeError, ValueError, RuntimeError):
        return print(f"yours: not numbers but {type(yours).__name__} | true: {shown} | not yet")
    close = answer.shape == right.shape and answer.allclose(right, tolerance, 0.01 * tolerance)
    verdict = "correct" if close else "not yet"
    print(f"yours: {_shown(answer, digits)} | true: {shown} | {verdict}")


def _numbers(values) -> Tensor:
    """All of them in a row, float64."""
    if isinstance(values, (list, tuple)):
        return torch.cat([_numbers(value) for value in values])
    numbers = torch.as_tensor(values).detach().cpu().flatten()
    if numbers.is_complex():
        raise TypeError("expected real numbers")
    return numbers.double()


def _shown(values: Tensor, digits: int) -> str:
    return ", ".join(f"{float(f'{value:.{digits}g}') + 0.0:g}" for value in values.tolist())
