"""The training loop: batches, progress, evaluation, checkpoints, many GPUs under ``torchrun``."""

import atexit
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field

import pandas as pd
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer
from torch.optim.swa_utils import AveragedModel
from tqdm import tqdm

from vaelib.data import Images, as_tensors, check_images
from vaelib.distributions import check_batch
from vaelib.networks import eval_mode, fork_rng, is_int
from vaelib.training.checkpoint import Checkpoint
from vaelib.training.learning import aevb_step
from vaelib.vae import ELBO, VAE, WithoutLatents

LABELS = "with labels only the whole model can be called"
SEVERAL = "on several processes only calls of the whole model have their gradients averaged"


@dataclass
class History:
    """What happened during training.

    Attributes:
        rows: one dictionary an epoch, with ``epoch``, ``samples`` (training images seen so far),
            ``seconds``, and in nats per image ``train_bound``, ``train_distortion``,
            ``train_rate`` (means over the epoch, before each update) and ``test_…`` likewise.
        interrupted: whether Ctrl-C ended the run early.
        average: a second model with the averaged weights, where ``ema`` was asked for.
    """

    rows: list[dict] = field(default_factory=list)
    interrupted: bool = False
    average: nn.Module | None = None

    def table(self) -> pd.DataFrame:
        """The rows as a pandas table."""
        return pd.DataFrame(self.rows)

    def __getitem__(self, column: str) -> list[float]:
        """One column, e.g. ``history["test_bound"]``; nan for epochs without that number."""
        if not any(column in row for row in self.rows):
            names = sorted({name for row in self.rows for name in row})
            raise KeyError(f"expected one of {names}, got {column!r}")
        return [row.get(column, float("nan")) for row in self.rows]


def adam(parameters, lr: float = 1e-3) -> Optimizer:
    """Adam with all parameters updated in one fused kernel, the default of :func:`fit`."""
    return torch.optim.Adam(parameters, lr=lr, fused=True)


def linear_decay(progress: float) -> float:
    """A schedule: the full step size for half of the run, then in a straight line down to 0."""
    return min(1.0, 2 * (1 - progress))


def fit(
    model: VAE | WithoutLatents,
    train: Tensor | Images,
    *,
    epochs: int,
    batch_size: int = 100,
    optimizer: Optimizer | Sequence[Optimizer] | Callable[..., Optimizer] = adam,
    step: Callable[..., ELBO] = aevb_step,
    schedule: Callable[[float], float] | None = None,
    transform: Callable[[Tensor], Tensor] | None = None,
    test: Tensor | None = None,
    labels: Tensor | None = None,
    test_labels: Tensor | None = None,
    evaluate_every: int = 1,
    test_batch_size: int = 1000,
    seed: int = 0,
    checkpoint: str | os.PathLike | None = None,
    progress: bool = True,
    device: str | torch.device | None = None,
    bf16: bool = False,
    compile: bool = False,
    ema: float | None = None,
) -> History:
    """Train ``model`` on ``train`` in place and return what happened.

    Order and noise depend on ``seed`` alone, and the caller's random state is left as it was.
    Ctrl-C stops after the current update. The model comes back in training mode, on its device.
    Under ``torchrun`` every process makes the same call, takes its share of each batch (filled up
    with first images where it does not divide) with noise of its own, and torch averages gradients.

    Args:
        train: images ``(N, C, H, W)`` in [0, 1], or vectors ``(N, dims)``; whatever
            :func:`vaelib.data.as_tensors` takes.
        epochs: how many times to pass over ``train`` in all (a resumed run does the rest).
        batch_size: images per update, of all processes together.
        optimizer: a function of the parameters, such as ``partial(torch.optim.Adagrad, lr=0.02)``;
            or an optimiser; or what else ``step`` takes, such as wake-sleep's two.
        step: one update, ``step(model, batch, optimizer, update)`` returns the ELBO of the batch;
            any of :mod:`vaelib.training.learning`.
        schedule: factor of the step sizes as a function of the fraction of the run that is done,
            in [0, 1), such as :func:`linear_decay`.
        transform: applied to each batch, for instance ``data.binarize`` for fresh binary digits.
        test: images on which the bound is evaluated, every ``evaluate_every`` epochs and at the
            end, ``test_batch_size`` at a time.
        labels, test_labels: classes of the images ``(N,)``, for a decoder with ``classes``.
        checkpoint: file that is rewritten after every epoch; if it exists, the run goes on from
            it, on a processor bit for bit. One of a run that differs in anything is refused.
        device: a CUDA GPU where there is one, else the CPU, by default.
        bf16: bfloat16 autocast; weights, images and log probabilities stay float32.
        compile: run the model through ``torch.compile``, which pays on a GPU, with other noise.
        ema: average the weights, average ← e · average + (1 − e) · weights after update u, with
            e = min(ema, (1 + u)/(10 + u)); ``test`` is evaluated with ``history.average``.

    Raises:
        TypeError: data that are not float images or vectors; the message says what to do.
        ValueError: settings out of range, data that are not finite or images outside [0, 1], an
            optimiser of other parameters, or a checkpoint that is damaged or of another run.
        FloatingPointError: training diverged.
    """
    counts = {"evaluate_every": evaluate_every, "test_batch_size": test_batch_size}
    _check_settings(model, ema, epochs=epochs, batch_size=batch_size, **counts)
    train, labels = _checked("train", train, labels, model)
    if test is not None:
        test, test_labels = _checked("test", test, test_labels, model, train.shape[1:])
    rank, world, device = _join(device)
    home = next(model.parameters()).device
    model.to(device).train()
    if not isinstance(optimizer, (Optimizer, Sequence)):
        optimizer = optimizer(model.parameters())
    optimizers = [optimizer] if isinstance(optimizer, Optimizer) else list(optimizer)
    _check_parameters(optimizers, model)
    lrs = [float(group["lr"]) for one in optimizers for group in one.param_groups]
    average = None if ema is None else AveragedModel(model, multi_avg_fn=_ema(ema))
    judged = model if average is None else average.module
    network = torch.compile(model, dynamic=False) if compile else model
    if world > 1:
        network = _Called(DistributedDataParallel(network, broadcast_buffers=False), SEVERAL)
    history, batches = History(), -(-len(train) // batch_size)
    run = {"model": model, "optimizer": optimizers, "step": step, "transform": transform}
    run |= {"train": [train, labels], "test": [test, test_labels, evaluate_every]}
    run |= {"schedule": schedule and [schedule, epochs], "processes": world, "ema": ema}
    run |= {"batch_size": batch_size, "seed": seed, "bf16": bf16, "compile": compile}
    parts = {"model": model, "average": average}
    parts |= {f"optimizer {i}": one for i, one in enumerate(optimizers)}
    file = Checkpoint(checkpoint, run, parts, device, rank, world)

    def keep(row: dict) -> None:
        """Write the epoch down, then evaluate where it is time: a resumed run may be behind."""
        file.write(history.rows)
        last, now = row["epoch"] == epochs, row["epoch"] % evaluate_every == 0
        if test is not None and (last or now) and "test_bound" not in row:
            bound = _evaluate(judged, test, test_labels, 1, test_batch_size, 0, (rank, world))
            row |= _named("test", bound)
            file.write(history.rows)

    with (
        fork_rng(device),
        file.lock(),
        _interruptible(world == 1) as interrupt,
        _restored(model, home, optimizers, lrs),
        tqdm(total=epochs * batches, disable=not progress or rank > 0, unit="update") as bar,
    ):
        torch.manual_seed(seed + rank)
        if file.resume(history.rows, epochs, progress):
            bar.update(len(history.rows) * batches)
            keep(history.rows[-1])
        before = history.rows[-1]["seconds"] if history.rows else 0.0
        start, order, images = time.perf_counter(), torch.Generator(), _placed(train, device)
        update = len(history.rows) * batches
        for epoch in range(len(history.rows), epochs):
            order.manual_seed(seed * 1_000_003 + epoch)
            permutation = torch.randperm(len(train), generator=order, device="cpu")
            sums, seen = torch.zeros(2, dtype=torch.float64, device=device), 0
            for batch in permutation.split(batch_size):
                batch = _share(batch, rank, world)
                x = images.index_select(0, batch.to(images.device)).to(device)
                x = x if transform is None else transform(x)
                vae = network
                if labels is not None:
                    vae = _Called(network, LABELS, labels=labels[batch].to(device))
                if schedule is not None:
                    _set_lrs(optimizers, lrs, float(schedule(update / (epochs * batches))))
                try:  # clear the gradients, run forward and backward, move the parameters
                    with torch.autocast(device.type, torch.bfloat16) if bf16 else nullcontext():
                        bound = step(vae, x, optimizer, update)
                except (FloatingPointError, ValueError) as error:
                    if update == 0:  # more likely a setting that does not fit
                        raise
                    message = f"training diverged at update {update}: {error}; lower the step size"
                    raise FloatingPointError(message) from error
                update += 1
                sums += torch.stack([bound.distortion, bound.rate]).sum(1)
                seen += len(x)
                if average is not None:
                    average.update_parameters(model)
                bar.update()
                if update % 20 == 0:
                    shown = f"bound {-sums.sum().item() / seen:.1f} nats"
                    bar.set_postfix_str(shown, refresh=False)
                if interrupt.is_set():
                    break
            if interrupt.is_set():
                history.interrupted = True
                print(f"interrupted after update {update} of {epochs * batches}", file=sys.stderr)
                break
            if world > 1:
                dist.all_reduce(sums)
            row = {"epoch": epoch + 1, "samples": (epoch + 1) * len(train)}
            row["seconds"] = before + time.perf_counter() - start
            history.rows.append(row | _named("train", ELBO(*(sums / (seen * world)).tolist())))
            keep(history.rows[-1])
    history.average = None if average is None else judged.to(home)
    return history


@torch.no_grad()
def evaluate(
    model: VAE | WithoutLatents,
    images: Tensor | Images,
    samples: int = 1,
    batch_size: int = 1000,
    seed: int = 0,
    labels: Tensor | None = None,
) -> ELBO:
    """Mean bound over ``images``, and labels, as :func:`fit` takes them: two scalars, nats.

    The noise depends on ``seed`` alone, and the caller's random state is left as it was.
    """
    if batch_size < 1:
        raise ValueError(f"expected batch_size >= 1, got {batch_size}")
    images, labels = as_tensors(images, "images", labels)
    check_batch(images)
    labels = labels if _takes_labels(model) else None
    return _evaluate(model, images, labels, samples, batch_size, seed)


@torch.no_grad()
def _evaluate(model, images, labels, samples=1, batch_size=1000, seed=0, share=(0, 1)) -> ELBO:
    """``share``: number of this process and of all, each of which takes every so many batches."""
    rank, world = share
    device, bounds = next(model.parameters()).device, []
    with fork_rng(device), eval_mode(model):
        torch.manual_seed(seed + rank)
        for piece in torch.arange(len(images)).split(batch_size)[rank::world]:
            more = {} if labels is None else {"labels": labels[piece].to(device)}
            bounds.append(model.elbo(images[piece].to(device), samples, **more))
    if bounds and bounds[0].rate.dim() != 1:
        raise ValueError(f"expected images (N, *image_shape), got shape {tuple(images.shape)}")
    if world == 1:
        return ELBO(*(torch.cat(part).mean() for part in zip(*bounds, strict=True)))
    sums = torch.zeros(2, dtype=torch.float64, device=device)
    for bound in bounds:
        sums += torch.stack([bound.distortion, bound.rate]).sum(1)
    dist.all_reduce(sums)
    return ELBO(*(sums / len(images)))


class _Called:
    """A model that a step may only call: one that uses its slots one by one is refused."""

    def __init__(self, network: nn.Module, reason: str, **settings):
        self._network, self._reason, self._settings = network, reason, settings

    def __call__(self, *args, **more) -> ELBO:
        return self._network(*args, **more, **self._settings)

    def __getattr__(self, name: str):
        raise RuntimeError(f"this step uses vae.{name}, but {self._reason}: use one like aevb_step")


def _join(device: str | torch.device | None) -> tuple[int, int, torch.device]:
    """Rank, number of processes and device; joins the processes of ``torchrun``."""
    kind = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if not dist.is_torchelastic_launched() or int(os.environ["WORLD_SIZE"]) == 1:
        return 0, 1, kind
    if kind.type == "cuda":
        kind = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(kind)
    if not dist.is_initialized():
        dist.init_process_group("nccl" if kind.type == "cuda" else "gloo")
        atexit.register(dist.destroy_process_group)
    return dist.get_rank(), dist.get_world_size(), kind


def _share(batch: Tensor, rank: int, world: int) -> Tensor:
    """This process's part of a batch, as long as every other's."""
    whole = -(-len(batch) // world) * world
    return batch if world == 1 else batch[torch.arange(rank, whole, world) % len(batch)]


@contextmanager
def _restored(model: nn.Module, home: torch.device, optimizers, lrs) -> Iterator[None]:
    """However the block ends, the model is back on its device and the step sizes are full."""
    try:
        yield
    finally:
        model.to(home)
        _set_lrs(optimizers, lrs)


def _set_lrs(optimizers: Sequence[Optimizer], lrs: Sequence[float], factor: float = 1.0) -> None:
    groups = [group for one in optimizers for group in one.param_groups]
    for group, lr in zip(groups, lrs, strict=True):
        group["lr"] = lr * factor


@contextmanager
def _interruptible(alone: bool) -> Iterator[threading.Event]:
    """An event that the first Ctrl-C sets, so that no update is cut in half; a second one raises.

    Of several processes none may stop while others wait for it, and only the main thread is asked.
    """
    event, previous = threading.Event(), signal.getsignal(signal.SIGINT)

    def handler(number, frame):
        event.set()
        signal.signal(signal.SIGINT, previous)

    alone = alone and threading.current_thread() is threading.main_thread()
    if alone:
        signal.signal(signal.SIGINT, handler)
    try:
        yield event
    finally:
        if alone:
            signal.signal(signal.SIGINT, previous)


def _ema(decay: float):
    def blend(average: list[Tensor], weights: list[Tensor], count: Tensor) -> None:
        u = int(count) + 1
        torch._foreach_lerp_(average, weights, 1 - min(decay, (1 + u) / (10 + u)))

    return blend


def _named(split: str, bound: ELBO) -> dict[str, float]:
    values = {"bound": bound.value, "distortion": bound.distortion, "rate": bound.rate}
    return {f"{split}_{name}": float(value) for name, value in values.items()}


def _placed(images: Tensor, device: torch.device) -> Tensor:
    """On the device, unless they would fill more than a quarter of a GPU: then batches travel."""
    if device.type == "cuda":
        memory = torch.cuda.get_device_properties(device).total_memory
        device = "cpu" if images.numel() * images.element_size() > memory / 4 else device
    return images.to(device)


def _takes_labels(model: nn.Module) -> bool:
    return getattr(getattr(model, "decoder", None), "classes", None) is not None


def _checked(name: str, x, labels, model: nn.Module, shape=None) -> tuple[Tensor, Tensor | None]:
    """Images and labels that the model can be trained on."""
    given, (x, labels) = labels is not None, as_tensors(x, name, labels)
    if given and not _takes_labels(model):
        raise ValueError("expected no labels: this model's decoder has no classes")
    if labels is None and _takes_labels(model):
        raise ValueError(f"{name}: expected labels (N,), as the decoder has classes, got none")
    if shape is not None and x.shape[1:] != shape:
        raise ValueError(f"{name}: expected shape (N, *{tuple(shape)}), got {tuple(x.shape)}")
    if x.dim() == 4:
        check_images(x)
    elif x.dim() < 2 or not x.isfinite().all():
        raise ValueError(f"{name}: expected finite vectors (N, dims), got {tuple(x.shape)}")
    return x, labels if _takes_labels(model) else None


def _check_settings(model: nn.Module, ema: float | None, **counts) -> None:
    if not hasattr(model, "elbo"):
        kind = type(model).__name__
        raise TypeError(f"expected a VAE, got {kind}: a pixel model is WithoutLatents(model)")
    for name, count in counts.items():
        if not is_int(count) or count < 1:
            raise ValueError(f"expected a whole number {name} >= 1, got {count!r}")
    if ema is not None and not 0 < ema < 1:
        raise ValueError(f"expected ema between 0 and 1, got {ema}")


def _check_parameters(optimizers: Sequence[Optimizer], model: nn.Module) -> None:
    held = {id(p) for one in optimizers for group in one.param_groups for p in group["params"]}
    if held.isdisjoint(map(id, model.parameters())):
        raise ValueError("expected an optimizer of this model's parameters, got one of others")
