"""One GPU, many, or none: the engine under the training loop, and updates made of parts.

The engine is Lightning Fabric: it is an ordinary object without global state, so runs on
different devices and precisions can live side by side in one notebook, and the loop stays ours.
"""

import atexit
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

try:
    from lightning_fabric import Fabric
    from lightning_fabric.plugins import MixedPrecision
    from lightning_fabric.strategies import DDPStrategy
except ModuleNotFoundError:  # the package `lightning` ships the same engine under another name
    from lightning.fabric import Fabric
    from lightning.fabric.plugins import MixedPrecision
    from lightning.fabric.strategies import DDPStrategy

from vaelib.noise import Part, noise_of, parts
from vaelib.vae import ELBO

# Fabric sets this for programs that fork. Where no GPU is, it makes every update look for one
# anew, which takes longer than some updates.
os.environ.pop("PYTORCH_NVML_BASED_CUDA_CHECK", None)


def keep_inputs(fabric: Fabric) -> None:
    """Images stay as they are, whatever the networks compute in.

    Fabric would round the inputs of a model to half precision. bfloat16 moves a pixel by up to half
    a grey level, and the likelihood would score another image.
    """
    if isinstance(fabric.strategy.precision, MixedPrecision):
        fabric.strategy.precision.convert_input = lambda inputs: inputs


class Replicas(DDPStrategy):
    """A copy of the model in each process, and nothing around it.

    torch's own wrapper averages gradients in hooks of the model's ``forward``. Steps that use the
    slots one by one pass by it, and it counts a short share of a batch as much as a long one. So
    the gradients are summed just before the optimiser moves, see :class:`_PartOptimizer`.
    """

    def setup_module(self, module: nn.Module) -> nn.Module:
        """The module as it is."""
        return module


def engine(precision: str = "32-true", accelerator: str | None = None) -> Fabric:
    """The engine for what is there: all processes of ``torchrun``, one GPU, or the CPU.

    Args:
        precision: "32-true"; "bf16-mixed" or "16-mixed" run networks in half precision, with
            weights and log probabilities in float32.
        accelerator: "cpu" or "cuda"; by default a GPU where there is one.
    """
    # Not "auto": Apple's GPU has no float64, and is slower than the processor for small networks.
    kind = accelerator or ("cuda" if torch.cuda.is_available() else "cpu")
    world = int(os.environ.get("WORLD_SIZE", 1))
    if world == 1 or "LOCAL_WORLD_SIZE" not in os.environ:  # not under torchrun
        return Fabric(accelerator=kind, devices=1, precision=precision)
    here = int(os.environ["LOCAL_WORLD_SIZE"])
    fabric = Fabric(
        accelerator=kind,
        devices=here,
        num_nodes=world // here,
        strategy=Replicas(),
        precision=precision,
    )
    fabric.launch()
    atexit.register(_leave)
    return fabric


def is_first_process() -> bool:
    """Whether this process is the one of ``torchrun``'s that prints and writes, or is alone."""
    return int(os.environ.get("RANK", 0)) == 0


def _leave() -> None:
    """A process group whose threads nobody joins aborts its process at the end, now and then."""
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def same_weights(model: nn.Module, fabric: Fabric) -> None:
    """All processes start from the weights of the first."""
    if fabric.world_size > 1:
        state = {name: value.cpu() for name, value in model.state_dict().items()}
        model.load_state_dict(fabric.broadcast(state))


class Parts:
    """An update whose batch is cut among processes, and into pieces one after the other.

        ∇ mean over the batch = Σ_parts (images of the part / images of the batch) ∇ mean over it

    The noise of the images comes from one generator that all parts share, the same that a single
    process would have drawn: the weights after the update are those of the uncut batch, up to
    rounding. Other draws, such as dropout, are each part's own.

    Args:
        fabric: the engine.
        pieces: how many pieces each process makes of its share.
        seed: of the draws that parts do not share.
    """

    def __init__(self, fabric: Fabric, pieces: int = 1, seed: int = 0):
        self.fabric, self.pieces, self.seed = fabric, pieces, seed
        self.noise = torch.Generator(fabric.device)

    def of(self, total: int) -> list[Part]:
        """What this process computes of a batch of ``total`` images."""
        return parts(total, self.fabric.global_rank, self.fabric.world_size, self.pieces)

    def transformed(self, transform: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        """``transform`` of a whole batch, which draws from the shared generator."""
        with default_generator(self.noise):
            return transform(x)

    def update(self, step: Callable, model: nn.Module, x: Tensor, optimizer, number: int, **more):
        """Take the step on each part of the batch x; yields its part and its bound."""
        mine, start = self.of(len(x)), self.noise.get_state()
        rank = self.fabric.global_rank
        for i, part in enumerate(mine):
            self.noise.set_state(start)
            # Own draws depend on update, process and piece alone: a run resumes as it went.
            torch.manual_seed(hash((self.seed, number, rank, i)) % 2**63)
            with noise_of(part, self.noise):
                yield (
                    part,
                    step(
                        model,
                        x[part.images],
                        _PartOptimizer(optimizer, self.fabric, i == 0, i == len(mine) - 1),
                        backward=lambda loss, part=part: self.fabric.backward(loss * part.weight),
                        **more,
                    ),
                )


class _PartOptimizer:
    """An optimiser as the parts of a batch see it: cleared before the first, moved by the last."""

    def __init__(self, optimizer: Optimizer, fabric: Fabric, first: bool, last: bool):
        self.optimizer, self.fabric, self.first, self.last = optimizer, fabric, first, last

    def zero_grad(self, set_to_none: bool = True) -> None:
        if self.first:
            self.optimizer.zero_grad(set_to_none=set_to_none)

    def step(self) -> None:
        if self.last:
            _sum_gradients(self.optimizer, self.fabric)
            self.optimizer.step()


def _sum_gradients(optimizer: Optimizer, fabric: Fabric) -> None:
    """Add up the gradients of all processes, as one vector."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    gradients = [p.grad for p in parameters if p.grad is not None]
    if fabric.world_size == 1 or not gradients:
        return
    flat = fabric.all_reduce(torch.cat([g.flatten() for g in gradients]), reduce_op="sum")
    pieces = flat.split([g.numel() for g in gradients])
    torch._foreach_copy_(
        gradients, [piece.view_as(g) for piece, g in zip(pieces, gradients, strict=True)]
    )


def shared_bounds(
    model: nn.Module, batches: Iterator[Tensor], samples: int, seed: int, fabric: Fabric
) -> list[ELBO]:
    """The bound of every image of every batch, each process having computed its share."""
    cut, bounds = Parts(fabric), []
    cut.noise.manual_seed(seed)
    for x in batches:
        (part,) = cut.of(len(x))
        both = torch.zeros(2, len(x), dtype=x.dtype, device=fabric.device)
        with noise_of(part, cut.noise):
            bound = model.elbo(x[part.images].to(fabric.device), samples)
        if part.weight:
            both[:, part.images] = torch.stack([bound.distortion, bound.rate]).to(both)
        bounds.append(ELBO(*fabric.all_reduce(both, reduce_op="sum")))
    return bounds


@contextmanager
def default_generator(generator: torch.Generator) -> Iterator[None]:
    """Within the block, torch draws from ``generator`` on its device."""
    device = generator.device
    if device.type == "cuda":
        get, put = torch.cuda.get_rng_state, torch.cuda.set_rng_state
    else:
        get, put = (lambda _: torch.get_rng_state()), (lambda state, _: torch.set_rng_state(state))
    before = get(device)
    put(generator.get_state(), device)
    try:
        yield
    finally:
        generator.set_state(get(device))
        put(before, device)


def random_state(device: torch.device) -> dict[str, Tensor]:
    """The state of the default generators, on the CPU."""
    state = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state
