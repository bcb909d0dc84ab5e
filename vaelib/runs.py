"""Where a training run stands: its updates, its sums, and the checkpoint that resumes it."""

import inspect
import os
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from vaelib.engine import Parts, keep_inputs, random_state
from vaelib.files import remove_leftovers, save_atomically
from vaelib.vae import ELBO


class Run:
    """Everything that a checkpoint must hold, and where the run stands.

    Args:
        model, optimizer, fabric, batch_size, seed, compile: as in :func:`vaelib.training.fit`.
        images: what to train on.
    """

    def __init__(self, model, optimizer, fabric, images, batch_size, seed, compile=False):
        self.model, self.fabric = model, fabric
        if compile:
            mode = compile if isinstance(compile, str) else None
            # Two shapes, a batch and the last of an epoch, each compiled for what it is.
            model = torch.compile(model, mode=mode, dynamic=False)
        keep_inputs(fabric)
        self.wrapped, wrapper = fabric.setup(model, optimizer)
        self.stepped, self.optimizer, self.backward = wrapper, optimizer, fabric.backward
        if fabric.world_size == 1 and fabric.strategy.precision.precision == "32-true":
            # Fabric's wrappers have nothing to convert here, and take a share of small updates.
            self.wrapped, self.stepped, self.backward = model, optimizer, Tensor.backward
        self.images, self.batch_size, self.seed = len(images), batch_size, seed
        self.batches = -(-self.images // batch_size)
        self.fingerprint = _fingerprint(images)
        self.epoch, self.batch, self.rows = 0, 0, []
        # Sums over the epoch so far of distortion and rate. Kept on the device, in float64, so
        # that no update has to wait for a number to reach the host.
        self.sums = torch.zeros(2, dtype=torch.float64, device=fabric.device)
        self.seconds, self.started = 0.0, time.perf_counter()
        self.random_state: dict[str, Tensor] | None = None
        self.average: AveragedModel | None = None
        self.parts: Parts | None = None

    @property
    def update(self) -> int:
        """How many updates were made."""
        return self.epoch * self.batches + self.batch

    def remaining_batches(self) -> Iterator[Tensor]:
        """Indices of the images of each batch that is left in this epoch."""
        order = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        permutation = torch.randperm(self.images, generator=order)
        yield from permutation.split(self.batch_size)[self.batch :]

    def scale_step_size(self, factor: float) -> None:
        """Each group's step size, times ``factor``; a checkpoint keeps the full one, too."""
        for group in self.optimizer.param_groups:
            # A key of our own: torch's schedulers, which a caller may use, have "initial_lr".
            group["lr"] = factor * group.setdefault("full_lr", group["lr"])

    @contextmanager
    def full_step_size(self) -> Iterator[None]:
        """However the block ends, the optimiser has its full step size again."""
        try:
            yield
        finally:
            for group in self.optimizer.param_groups:
                group["lr"] = group.pop("full_lr", group["lr"])

    def keep_average(self, ema: float) -> None:
        """Average the weights from now on, see :func:`vaelib.training.fit`."""

        def blend(average: list[Tensor], weights: list[Tensor], count: Tensor) -> None:
            decay = min(ema, (1 + self.update) / (10 + self.update))
            torch._foreach_lerp_(average, weights, 1 - decay)

        self.average = AveragedModel(self.model, multi_avg_fn=blend)

    def updater(
        self, step: Callable[..., ELBO], transform: Callable[[Tensor], Tensor] | None
    ) -> Callable[[Tensor], None]:
        """A function that makes one update with a batch, whole or in parts."""
        counts = _takes_update(step)

        def update(x: Tensor) -> None:
            more = {"update": self.update} if counts else {}
            if self.parts is None:
                x = x if transform is None else transform(x)
                self.record(step(self.wrapped, x, self.stepped, backward=self.backward, **more))
            else:
                x = x if transform is None else self.parts.transformed(transform, x)
                inputs = self.wrapped, x, self.stepped, self.update
                for part, bound in self.parts.update(step, *inputs, **more):
                    if part.weight:
                        self.record(bound)
            self.batch += 1
            if self.average is not None:
                self.average.update_parameters(self.model)

        return update

    def record(self, bound: ELBO) -> None:
        """Add a bound, ``(B,)``, to the sums of the epoch."""
        self.sums += torch.stack([bound.distortion, bound.rate]).sum(1)

    def mean_bound(self) -> float:
        """Over the epoch so far; of several processes, what the first has seen of it."""
        seen = min(self.batch * self.batch_size, self.images)
        return -self.sums.sum().item() / seen * self.fabric.world_size

    def all_sums(self) -> Tensor:
        """The sums of all processes."""
        if self.fabric.world_size == 1:
            return self.sums
        return self.fabric.all_reduce(self.sums.clone(), reduce_op="sum")

    @property
    def judged(self) -> nn.Module:
        """The model to evaluate: the averaged one where there is an average."""
        return self.model if self.average is None else self.average.module

    def end_epoch(self, tested: ELBO | None) -> None:
        """Write down the row of an epoch, with its bound on the test images."""
        trained = ELBO(*(self.all_sums() / self.images).tolist())
        self.epoch, self.batch = self.epoch + 1, 0
        self.sums.zero_()
        row = {"epoch": self.epoch, "samples": self.epoch * self.images, "seconds": self.elapsed()}
        for name, bound in {"train": trained, "test": tested}.items():
            if bound is not None:
                row[f"{name}_bound"] = float(bound.value)
                row[f"{name}_distortion"] = float(bound.distortion)
                row[f"{name}_rate"] = float(bound.rate)
        self.rows.append(row)

    def elapsed(self) -> float:
        """Seconds, with those before the run was resumed."""
        return self.seconds + time.perf_counter() - self.started

    def settings(self) -> dict:
        """What must agree for a checkpoint to be continued."""
        shapes = {name: list(value.shape) for name, value in self.model.state_dict().items()}
        return {
            "images": self.images,
            "batch_size": self.batch_size,
            "seed": self.seed,
            "data": self.fingerprint,
            "optimizer": type(self.optimizer).__name__,
            "step_sizes": self._step_sizes(),
            "parameters": shapes,
        }

    def _step_sizes(self) -> list[float]:
        groups = self.optimizer.param_groups
        return [float(group.get("full_lr", group["lr"])) for group in groups]

    def save(self, path: str | os.PathLike | None) -> None:
        """The first process writes; all must call, because all have a share in the sums."""
        if path is None:
            return
        state = {
            "settings": self.settings(),
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "progress": {"epoch": self.epoch, "batch": self.batch, "seconds": self.elapsed()},
            "sums": self.all_sums(),
            "rows": self.rows,
            "random_state": self._random_state(),
            "precision": self.fabric.strategy.precision.state_dict(),  # float16 scales its loss
        }
        if self.average is not None:
            state["average"] = self.average.state_dict()
        if self.fabric.is_global_zero:
            save_atomically(state, path)

    def load(self, path: Path) -> None:
        """Go on from a checkpoint, where there is one: the first process reads it for all."""
        state = self._read(path) if self.fabric.is_global_zero else None
        state = self.fabric.broadcast(state)
        if isinstance(state, ValueError):
            raise state
        if state is None:
            return
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.epoch, self.batch = state["progress"]["epoch"], state["progress"]["batch"]
        self.seconds, self.started = state["progress"]["seconds"], time.perf_counter()
        self.sums = state["sums"].to(self.sums.device) / self.fabric.world_size
        self.rows = state["rows"]
        self.random_state = state["random_state"]
        if self.average is not None:
            self.average.load_state_dict(state["average"])
        if state.get("precision"):
            self.fabric.strategy.precision.load_state_dict(state["precision"])

    def _read(self, path: Path) -> dict | ValueError | None:
        remove_leftovers(path)
        if not path.exists():
            return None
        alone = self.fabric.world_size == 1
        place = self.sums.device if alone else "cpu"
        try:
            state = torch.load(path, map_location=place, weights_only=True)
            saved, settings = state["settings"], self.settings()
        except Exception as error:
            return ValueError(f"{path}: expected a checkpoint of fit, got {error}")
        differing = [name for name in settings if saved.get(name) != settings[name]]
        if differing:
            found = ", ".join(f"{n} {saved.get(n)} (here {settings[n]})" for n in differing)
            return ValueError(f"{path} belongs to a run with other settings: {found}")
        if self.average is not None and "average" not in state:
            return ValueError(f"{path} belongs to a run without ema")
        return state

    def _random_state(self) -> dict[str, Tensor]:
        """Of the noise of the images, as a single process has it: any number may go on."""
        state = random_state(self.sums.device)
        if self.parts is not None:
            state[self.sums.device.type] = self.parts.noise.get_state()
        return state

    def restore_random_state(self) -> None:
        """Start all generators, or set them to where the checkpoint left them."""
        torch.manual_seed(self.seed)
        if self.parts is not None:
            self.parts.noise.manual_seed(self.seed)
        if self.random_state is None:
            return
        state = {name: value.cpu() for name, value in self.random_state.items()}
        torch.set_rng_state(state["cpu"])
        if "cuda" in state and self.sums.is_cuda:
            torch.cuda.set_rng_state(state["cuda"], self.sums.device)
        if self.parts is not None and self.sums.device.type in state:
            self.parts.noise.set_state(state[self.sums.device.type])


def _fingerprint(images: Tensor) -> int:
    """Of sixteen images spread over all: enough to tell another set, at no cost for a large one."""
    some = images[:: max(1, len(images) // 16)][:16]
    return zlib.crc32(some.detach().cpu().contiguous().view(torch.uint8).numpy())


def _takes_update(step: Callable[..., ELBO]) -> bool:
    parameters = inspect.signature(step).parameters.values()
    return any(one.name == "update" or one.kind is one.VAR_KEYWORD for one in parameters)
