"""Training on a GPU without the host in the way: updates recorded once, replayed as a CUDA graph.

Small networks spend most of a step waiting for Python. A graph replays hundreds of kernels with
one call, and graphs in several streams run side by side. In exchange nothing that is recorded
may ask the device a question: no ``.item()``, no ``if`` on a tensor, no validation.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.distributions import Distribution


class FlatAdagrad:
    """Adagrad on one flat vector of all parameters, recordable in a CUDA graph.

        g = ∇loss + decay · θ,   s ← s + g²,   θ ← θ − η g / (√s + 1e-10)

    The same numbers as ``torch.optim.Adagrad``. A gradient that is not finite changes nothing
    and raises the flag ``failed``, because a graph cannot stop in the middle.

    Args:
        module: its parameters become views of the flat vector.
        step_size: η > 0.
        decay: strength of the weight decay, 1/N for a prior N(0, I) of the weights.
    """

    def __init__(self, module: nn.Module, step_size: float, decay: float = 0.0):
        if not (step_size > 0 and decay >= 0):
            raise ValueError(f"expected step_size > 0 and decay >= 0, got {step_size} and {decay}")
        self.parameters, self.step_size, self.decay = list(module.parameters()), step_size, decay
        self.flat = torch.cat([p.detach().flatten() for p in self.parameters])
        sizes = [p.numel() for p in self.parameters]
        for parameter, part in zip(self.parameters, self.flat.split(sizes), strict=True):
            parameter.data = part.view_as(parameter)
        self.squares = torch.zeros_like(self.flat)
        self.failed = torch.zeros((), dtype=torch.bool, device=self.flat.device)

    @property
    def state(self) -> list[Tensor]:
        """All that a step changes."""
        return [self.flat, self.squares, self.failed]

    def step(self, loss: Tensor) -> None:
        """One step down the scalar ``loss``."""
        gradients = torch.autograd.grad(loss, self.parameters)
        with torch.no_grad():
            gradient = torch.cat([g.flatten() for g in gradients]) + self.decay * self.flat
            finite = gradient.isfinite().all() & loss.isfinite()
            gradient = torch.where(finite, gradient, 0)
            self.squares.addcmul_(gradient, gradient)
            self.flat.addcdiv_(gradient, self.squares.sqrt() + 1e-10, value=-self.step_size)
            self.failed |= ~finite


@contextmanager
def unchecked() -> Iterator[None]:
    """Distributions built inside do not validate: that would make the host wait."""
    checked = Distribution._validate_args  # torch has a setter for it and no getter
    Distribution.set_default_validate_args(False)
    try:
        yield
    finally:
        Distribution.set_default_validate_args(checked)


class Graph:
    """``count`` calls of ``update`` as one CUDA graph in a stream of its own.

    Graphs share torch's generator, whose offset moves under those that run at the same time: such
    runs are not repeatable bit for bit.

    Args:
        update: changes only the tensors in ``state``, in place.
        state: what the warm-up before the recording must leave as it was.
        count: updates in one replay.

    Raises:
        RuntimeError: without CUDA.
    """

    def __init__(self, update: Callable[[], None], state: Sequence[Tensor], count: int):
        if not torch.cuda.is_available():
            raise RuntimeError("expected a CUDA device to record a graph on, got none")
        self.stream, self.graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()
        self.stream.wait_stream(torch.cuda.current_stream())
        with unchecked(), torch.cuda.stream(self.stream):
            before = [part.clone() for part in state]
            for _ in range(3):  # libraries set themselves up on first use, outside the recording
                update()
            for part, old in zip(state, before, strict=True):
                part.copy_(old)
            self.stream.synchronize()
            with torch.cuda.graph(self.graph, stream=self.stream):
                for _ in range(count):
                    update()
        # What was written here must be there before another stream reads it.
        torch.cuda.current_stream().wait_stream(self.stream)

    def replay(self) -> None:
        """Queue all updates; returns at once."""
        with torch.cuda.stream(self.stream):
            self.graph.replay()
