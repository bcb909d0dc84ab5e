"""The loop around the updates: batches, progress, evaluation, checkpoints, devices.

The engine is Lightning Fabric: it is an ordinary object without global state, so runs on
different devices and precisions can live side by side in one notebook, and the loop stays ours.
"""

import inspect
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor
from torch.optim import Optimizer
from tqdm import tqdm

try:
    from lightning_fabric import Fabric
except ModuleNotFoundError:  # the package `lightning` ships the same engine under another name
    from lightning.fabric import Fabric

# Fabric sets this for programs that fork. Where no GPU is, it makes every update look for one
# anew, which takes longer than some updates.
os.environ.pop("PYTORCH_NVML_BASED_CUDA_CHECK", None)

from vaelib.data import check_images
from vaelib.learning import aevb_step
from vaelib.vae import ELBO, VAE, WithoutLatents


@dataclass
class History:
    """What happened during training, one row an epoch.

    Attributes:
        rows: dictionaries with ``epoch``, ``samples`` (training images seen so far),
            ``seconds``, and in nats per image ``train_bound``, ``train_distortion``,
            ``train_rate`` (running means over the epoch, before each update) and, where a
            test set was given, ``test_bound``, ``test_distortion``, ``test_rate``.
        interrupted: whether Ctrl-C ended the run early.
    """

    rows: list[dict] = field(default_factory=list)
    interrupted: bool = False

    def table(self) -> pd.DataFrame:
        """The rows as a pandas table."""
        return pd.DataFrame(self.rows)

    def __getitem__(self, column: str) -> list[float]:
        """One column, e.g. ``history["test_bound"]``; nan for epochs without that number."""
        if not any(column in row for row in self.rows):
            names = sorted({name for row in self.rows for name in row})
            raise KeyError(f"expected one of {names}, got {column!r}")
        return [row.get(column, float("nan")) for row in self.rows]


def fit(
    model: VAE | WithoutLatents,
    train: Tensor,
    *,
    epochs: int,
    batch_size: int = 100,
    optimizer: Optimizer | Callable[..., Optimizer] | None = None,
    step: Callable[..., ELBO] = aevb_step,
    schedule: Callable[[float], float] | None = None,
    transform: Callable[[Tensor], Tensor] | None = None,
    test: Tensor | None = None,
    evaluate_every: int = 1,
    seed: int = 0,
    checkpoint: str | os.PathLike | None = None,
    progress: bool = True,
    fabric: Fabric | None = None,
) -> History:
    """Train ``model`` on ``train`` in place and return what happened.

    The run is reproducible: order and noise depend on ``seed`` alone, and the random state of
    the caller is left as it was. Ctrl-C stops after the current update and keeps what was
    trained. The model comes back on the device it came from.

    Args:
        model: the model to train.
        train: training images ``(N, C, H, W)`` in [0, 1], or vectors ``(N, dims)``.
        epochs: how many times to pass over ``train`` in all (a resumed run does the rest).
        batch_size: images per update; the last, smaller batch of an epoch is used too.
        optimizer: an optimiser, or a function of the parameters that makes one, such as
            ``partial(torch.optim.Adagrad, lr=0.02)``; Adam with step size 1e-3 by default.
        step: one update, ``step(model, batch, optimizer, backward=…)`` returning the ELBO of
            the batch, such as :func:`vaelib.learning.aevb_step`. A step that takes ``update`` is
            told how many updates came before it.
        schedule: factor of the optimiser's step sizes as a function of the share of the run that
            is done, in [0, 1), such as :func:`decay_late`. It depends on ``epochs``: resume a run
            with the same number.
        transform: applied to each batch, for instance ``data.binarize`` for fresh binary digits.
        test: images on which the bound is evaluated.
        evaluate_every: epochs between evaluations; the last epoch is always evaluated.
        seed: of batch order and noise.
        checkpoint: file that is rewritten after every epoch. If it exists, the run goes on from
            it, bit for bit as if it had never stopped on the same machine.
        progress: show a progress bar with the current bound and the time left.
        fabric: the engine, for a chosen device or precision; by default one CUDA GPU where there is
            one, else the CPU.

    Raises:
        TypeError: data that are not a float tensor.
        ValueError: settings out of range, images outside [0, 1], data that are not finite, or a
            checkpoint that is damaged or belongs to a run with other settings.
        FloatingPointError: the bound of a batch is not finite.
    """
    if epochs < 1 or batch_size < 1 or evaluate_every < 1:
        raise ValueError(
            "expected epochs, batch_size and evaluate_every >= 1, "
            f"got {epochs}, {batch_size} and {evaluate_every}"
        )
    _check_data("train", train, None)
    if test is not None:
        _check_data("test", test, train.shape[1:])
    if optimizer is None:
        optimizer = adam
    if not isinstance(optimizer, Optimizer):
        optimizer = optimizer(model.parameters())
    # Not "auto": Apple's GPU has no float64, and is slower than the processor for small networks.
    kind = "cuda" if torch.cuda.is_available() else "cpu"
    fabric = fabric or Fabric(accelerator=kind, devices=1)
    home = next(model.parameters()).device
    run = _Run(model, optimizer, fabric, len(train), batch_size, seed)
    if checkpoint is not None:
        run.load(Path(checkpoint))
    train = train.to(fabric.device)
    test = None if test is None else test.to(fabric.device)
    history = History(run.rows)

    with _isolated_random_state(fabric.device), _interruptible() as interrupt:
        run.restore_random_state()
        updates, counts = epochs * run.batches, _takes_update(step)
        with _progress_bar(run.update, updates, progress and fabric.is_global_zero) as bar:
            while run.epoch < epochs and not interrupt.is_set():
                for batch in run.remaining_batches():
                    x = train[batch.to(fabric.device)]
                    x = x if transform is None else transform(x)
                    if schedule is not None:
                        run.scale_step_size(schedule(run.update / updates))
                    count = {"update": run.update} if counts else {}
                    bound = step(run.wrapped, x, run.optimizer, backward=fabric.backward, **count)
                    run.record(bound)
                    bar.update()
                    if run.update % 20 == 0:
                        bar.set_postfix_str(f"bound {run.mean_bound():.1f} nats", refresh=False)
                    if interrupt.is_set():
                        break
                else:
                    last = run.epoch + 1 == epochs
                    evaluated = test is not None and (last or (run.epoch + 1) % evaluate_every == 0)
                    run.end_epoch(evaluate(model, test) if evaluated else None)
                if checkpoint is not None and fabric.is_global_zero:
                    run.save(Path(checkpoint))
        history.interrupted = interrupt.is_set()
    model.to(home)
    return history


def adam(parameters, lr: float = 1e-3) -> Optimizer:
    """Adam with all parameters updated in one fused kernel, the default of :func:`fit`."""
    return torch.optim.Adam(parameters, lr=lr, fused=True)


def decay_late(progress: float) -> float:
    """A schedule: the full step size for half of the run, then in a straight line down to 0."""
    return min(1.0, 2 * (1 - progress))


@torch.no_grad()
def evaluate(
    model: VAE | WithoutLatents,
    images: Tensor,
    samples: int = 1,
    batch_size: int = 1000,
    seed: int = 0,
) -> ELBO:
    """Mean bound over ``images``: an ELBO of two scalars, nats per image.

    The noise depends on ``seed`` alone, and the caller's random state is left as it was.
    """
    device = next(model.parameters()).device
    training = model.training
    model.eval()
    with _isolated_random_state(device):
        torch.manual_seed(seed)
        bounds = [model.elbo(x.to(device), samples) for x in images.split(batch_size)]
    model.train(training)
    distortion = torch.cat([bound.distortion for bound in bounds]).mean()
    return ELBO(distortion, torch.cat([bound.rate for bound in bounds]).mean())


class _Run:
    """Everything that a checkpoint must hold, and where the run stands."""

    def __init__(self, model, optimizer, fabric, images, batch_size, seed):
        self.model = model
        self.wrapped, self.optimizer = fabric.setup(model, optimizer)
        self.images, self.batch_size, self.seed = images, batch_size, seed
        self.batches = -(-images // batch_size)
        self.epoch, self.batch, self.rows = 0, 0, []
        # Sums over the epoch so far of distortion and rate. Kept on the device, in float64, so
        # that no update has to wait for a number to reach the host.
        self.sums = torch.zeros(2, dtype=torch.float64, device=fabric.device)
        self.seconds, self.started = 0.0, time.perf_counter()
        self.random_state: dict[str, Tensor] | None = None

    @property
    def update(self) -> int:
        return self.epoch * self.batches + self.batch

    def remaining_batches(self) -> Iterator[Tensor]:
        """Indices of the images of each batch that is left in this epoch."""
        order = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        permutation = torch.randperm(self.images, generator=order)
        yield from permutation.split(self.batch_size)[self.batch :]

    def scale_step_size(self, factor: float) -> None:
        """Each group's step size, times ``factor``; a checkpoint keeps the full one, too."""
        for group in self.optimizer.optimizer.param_groups:
            group["lr"] = factor * group.setdefault("initial_lr", group["lr"])

    def record(self, bound: ELBO) -> None:
        self.batch += 1
        self.sums += torch.stack([bound.distortion.sum(), bound.rate.sum()])

    def mean_bound(self) -> float:
        return -self.sums.sum().item() / min(self.batch * self.batch_size, self.images)

    def end_epoch(self, tested: ELBO | None) -> None:
        trained = ELBO(*(self.sums / self.images).tolist())
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
        return self.seconds + time.perf_counter() - self.started

    def settings(self) -> dict:
        """What must agree for a checkpoint to be continued."""
        shapes = {name: list(value.shape) for name, value in self.model.state_dict().items()}
        return {
            "images": self.images,
            "batch_size": self.batch_size,
            "seed": self.seed,
            "optimizer": type(self.optimizer.optimizer).__name__,
            "parameters": shapes,
        }

    def save(self, path: Path) -> None:
        state = {
            "settings": self.settings(),
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "progress": {"epoch": self.epoch, "batch": self.batch, "seconds": self.elapsed()},
            "sums": self.sums,
            "rows": self.rows,
            "random_state": _random_state(self.sums.device),
        }
        save_atomically(state, path)

    def load(self, path: Path) -> None:
        if not path.exists():
            return
        try:
            state = torch.load(path, map_location=self.sums.device, weights_only=True)
            saved, settings = state["settings"], self.settings()
        except Exception as error:
            raise ValueError(f"{path}: expected a checkpoint of fit, got {error}") from error
        differing = [name for name in settings if saved.get(name) != settings[name]]
        if differing:
            found = ", ".join(f"{n} {saved.get(n)} (here {settings[n]})" for n in differing)
            raise ValueError(f"{path} belongs to a run with other settings: {found}")
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.epoch, self.batch = state["progress"]["epoch"], state["progress"]["batch"]
        self.seconds, self.started = state["progress"]["seconds"], time.perf_counter()
        self.sums, self.rows = state["sums"], state["rows"]
        self.random_state = state["random_state"]

    def restore_random_state(self) -> None:
        if self.random_state is None:
            torch.manual_seed(self.seed)
            return
        torch.set_rng_state(self.random_state["cpu"].cpu())
        if "cuda" in self.random_state and self.sums.is_cuda:
            torch.cuda.set_rng_state(self.random_state["cuda"].cpu(), self.sums.device)


def save_atomically(state: dict, path: str | os.PathLike) -> None:
    """``torch.save`` that never leaves half a file: write, flush to disk, rename."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _takes_update(step: Callable[..., ELBO]) -> bool:
    parameters = inspect.signature(step).parameters.values()
    return any(one.name == "update" or one.kind is one.VAR_KEYWORD for one in parameters)


def _check_data(name: str, x: Tensor, shape: torch.Size | None) -> None:
    if shape is not None and x.shape[1:] != shape:
        raise ValueError(f"{name}: expected shape (N, *{tuple(shape)}), got {tuple(x.shape)}")
    if x.dim() == 4:
        check_images(x)
    elif not x.is_floating_point():
        raise TypeError(f"{name}: expected a float tensor, got {x.dtype}")
    elif x.dim() < 2 or not len(x) or not x.isfinite().all():
        raise ValueError(f"{name}: expected finite vectors (N, dims), got {tuple(x.shape)}")


def _random_state(device: torch.device) -> dict[str, Tensor]:
    state = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


@contextmanager
def _isolated_random_state(device: torch.device) -> Iterator[None]:
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        yield


@contextmanager
def _interruptible() -> Iterator[threading.Event]:
    """An event that the first Ctrl-C sets; a second one interrupts at once, as ever.

    Stopping between two updates keeps parameters and optimiser in step with each other.
    """
    event = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield event  # signals reach the main thread only
        return
    previous = signal.getsignal(signal.SIGINT)

    def handler(number, frame):
        event.set()
        signal.signal(signal.SIGINT, previous)

    signal.signal(signal.SIGINT, handler)
    try:
        yield event
    finally:
        signal.signal(signal.SIGINT, previous)


def _progress_bar(done: int, total: int, show: bool) -> tqdm:
    return tqdm(initial=done, total=total, disable=not show, unit="update", leave=True)
