"""The loop around the updates: batches, progress, evaluation, checkpoints, resuming.

One loop serves every size: under ``torchrun`` the same call uses all processes, see
:mod:`vaelib.engine`.
"""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from tqdm import tqdm

from vaelib.data import check_images
from vaelib.distributions import check_batch
from vaelib.engine import (
    Fabric,
    Parts,
    engine,
    same_weights,
    shared_bounds,
)
from vaelib.graphs import unchecked
from vaelib.learning import aevb_step
from vaelib.networks import evaluating
from vaelib.noise import isolated_random_state
from vaelib.runs import Run
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
    checkpoint_updates: int | None = None,
    progress: bool = True,
    fabric: Fabric | None = None,
    accumulate: int = 1,
    ema: float | None = None,
    compile: bool | str = False,
) -> History:
    """Train ``model`` on ``train`` in place and return what happened.

    The run is reproducible: order and noise depend on ``seed`` alone, and the random state of
    the caller is left as it was. Ctrl-C stops after the current update and keeps what was
    trained. The model comes back on the device it came from, in training mode.

    Under ``torchrun`` every process makes the same call. Each takes its share of each batch, and
    the weights are those of one process with the same batches, up to rounding. The first process
    writes the checkpoint and shows the progress. Noise within the network (dropout) differs.

    Args:
        model: the model to train.
        train: training images ``(N, C, H, W)`` in [0, 1], or vectors ``(N, dims)``.
        epochs: how many times to pass over ``train`` in all (a resumed run does the rest).
        batch_size: images per update, of all processes together; the last, smaller batch of an
            epoch is used too.
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
            it, as if it had never stopped: bit for bit on the same processor, up to rounding on a
            GPU. A process killed at any moment leaves a whole one.
        checkpoint_updates: rewrite it after every so many updates as well, for long epochs.
        progress: show a progress bar with the current bound and the time left.
        fabric: the engine, for a chosen device or precision, see :func:`vaelib.engine.engine`; by
            default all processes of ``torchrun``, else one CUDA GPU where there is one, else the
            CPU.
        accumulate: compute each batch in so many pieces, one after the other, to save memory: the
            same weights, up to rounding. Only what looks at the batch as a whole, such as free
            bits, sees the pieces.
        ema: also keep an average of the weights, average ← e · average + (1 − e) · weights after
            update u, with e = min(ema, (1 + u)/(10 + u)), so that a short run's average is not
            its beginning. It is what the test images are evaluated with, and comes back as
            ``history.average``.
        compile: run the model through ``torch.compile``; a word is its mode, "reduce-overhead" for
            CUDA graphs. It pays on a GPU. Compiled code draws noise of its own: the same law,
            other numbers. torch switches the validation of distributions off for it; here that
            comes back on when the run ends.

    Raises:
        TypeError: data that are not a float tensor.
        ValueError: settings out of range, images outside [0, 1], data that are not finite, or a
            checkpoint that is damaged or belongs to a run with other settings or other images.
        FloatingPointError: the bound of a batch is not finite.
    """
    if epochs < 1 or batch_size < 1 or evaluate_every < 1:
        raise ValueError(
            "expected epochs, batch_size and evaluate_every >= 1, "
            f"got {epochs}, {batch_size} and {evaluate_every}"
        )
    if accumulate < 1 or (checkpoint_updates is not None and checkpoint_updates < 1):
        raise ValueError(
            "expected accumulate and checkpoint_updates >= 1, "
            f"got {accumulate} and {checkpoint_updates}"
        )
    if isinstance(compile, str) and accumulate > 1:
        raise ValueError(
            f"expected accumulate=1 with compile={compile!r}: CUDA graphs do not add up"
        )
    if ema is not None and not 0 < ema < 1:
        raise ValueError(f"expected ema between 0 and 1, got {ema}")
    _check_data("train", train, None)
    if test is not None:
        _check_data("test", test, train.shape[1:])
    if optimizer is None:
        optimizer = adam
    if not isinstance(optimizer, Optimizer):
        optimizer = optimizer(model.parameters())
    fabric = fabric or engine()
    same_weights(model, fabric)
    if not model.training:
        model.train()
    with unchecked() if compile else nullcontext(), _brought_home(model) as home:
        run = Run(model, optimizer, fabric, train, batch_size, seed, compile)
        if ema is not None:
            run.keep_average(ema)
        if accumulate > 1 or fabric.world_size > 1:
            run.parts = Parts(fabric, accumulate, seed)
        if checkpoint is not None:
            run.load(Path(checkpoint))
        train = _placed(train, fabric.device)
        test = None if test is None else _placed(test, fabric.device)
        history = History(run.rows)

        with (
            isolated_random_state(fabric.device),
            _interruptible(fabric.world_size == 1) as interrupt,
            run.full_step_size(),
        ):
            run.restore_random_state()
            updates, update = epochs * run.batches, run.updater(step, transform)
            with _progress_bar(run.update, updates, progress and fabric.is_global_zero) as bar:
                while run.epoch < epochs and not interrupt.is_set():
                    for batch in run.remaining_batches():
                        if schedule is not None:
                            run.scale_step_size(schedule(run.update / updates))
                        images = train.index_select(0, batch.to(train.device))
                        update(images.to(fabric.device))
                        bar.update()
                        if run.update % 20 == 0:
                            bar.set_postfix_str(f"bound {run.mean_bound():.1f} nats", refresh=False)
                        if interrupt.is_set():
                            break
                        if checkpoint_updates and run.update % checkpoint_updates == 0:
                            run.save(checkpoint)
                    else:
                        last = run.epoch + 1 == epochs
                        now = test is not None and (last or (run.epoch + 1) % evaluate_every == 0)
                        run.end_epoch(evaluate(run.judged, test, fabric=fabric) if now else None)
                    run.save(checkpoint)
            history.interrupted = interrupt.is_set()
    if run.average is not None:
        history.average = run.average.module.to(home)
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
    fabric: Fabric | None = None,
) -> ELBO:
    """Mean bound over ``images``: an ELBO of two scalars, nats per image.

    The noise depends on ``seed`` alone, and the caller's random state is left as it was. With a
    ``fabric`` of several processes each computes its share, and all get the result.
    """
    check_batch(images)
    device = next(model.parameters()).device
    if batch_size < 1:
        raise ValueError(f"expected batch_size >= 1, got {batch_size}")
    with isolated_random_state(device), evaluating(model):
        torch.manual_seed(seed)
        if fabric is None or fabric.world_size == 1:
            bounds = [model.elbo(x.to(device), samples) for x in images.split(batch_size)]
        else:
            bounds = shared_bounds(model, images.split(batch_size), samples, seed, fabric)
    if bounds[0].rate.dim() != 1:
        raise ValueError(f"expected images (N, *image_shape), got shape {tuple(images.shape)}")
    distortion = torch.cat([bound.distortion for bound in bounds]).mean()
    return ELBO(distortion, torch.cat([bound.rate for bound in bounds]).mean())


@contextmanager
def _brought_home(model: nn.Module) -> Iterator[torch.device]:
    """However the block ends, the model is back on the device it came from."""
    home = next(model.parameters()).device
    try:
        yield home
    finally:
        model.to(home)


def _placed(images: Tensor, device: torch.device) -> Tensor:
    """On the device, unless they would fill more than a quarter of a GPU: then batches travel."""
    if device.type == "cuda":
        memory = torch.cuda.get_device_properties(device).total_memory
        if images.numel() * images.element_size() > memory / 4:
            return images
    return images.to(device)


def _check_data(name: str, x: Tensor, shape: torch.Size | None) -> None:
    if shape is not None and x.shape[1:] != shape:
        raise ValueError(f"{name}: expected shape (N, *{tuple(shape)}), got {tuple(x.shape)}")
    if x.dim() == 4:
        check_images(x)
    elif not x.is_floating_point():
        raise TypeError(f"{name}: expected a float tensor, got {x.dtype}")
    elif x.dim() < 2 or not len(x) or not x.isfinite().all():
        raise ValueError(f"{name}: expected finite vectors (N, dims), got {tuple(x.shape)}")


@contextmanager
def _interruptible(alone: bool) -> Iterator[threading.Event]:
    """An event that the first Ctrl-C sets; a second one interrupts at once, as ever.

    Stopping between two updates keeps parameters and optimiser in step with each other. Of
    several processes none may stop while others wait for it: ``torchrun`` ends them all, and the
    latest checkpoint stands.
    """
    event = threading.Event()
    if not alone or threading.current_thread() is not threading.main_thread():
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
