"""Two learning algorithms against each other: figure 2 of Kingma & Welling (2013).

A lane is one model, trained from scratch by one method with one step size.
"""

import json
import math
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from itertools import starmap
from multiprocessing import get_context
from pathlib import Path

import torch

from vaelib.data import Images, check_images
from vaelib.decoders import BernoulliMLP, GaussianMLP
from vaelib.distributions import no_validation
from vaelib.encoders import MLPEncoder
from vaelib.experiments.recipes import expect
from vaelib.networks import fork_rng, init_normal_
from vaelib.priors import StandardNormal
from vaelib.training.checkpoint import fingerprint, write_text
from vaelib.training.learning import aevb_step, wake_sleep_step
from vaelib.vae import VAE

METHODS = ("aevb", "wake-sleep")
STEP_SIZES = (0.01, 0.02, 0.1)
LATENTS = {"mnist": (3, 5, 10, 20, 200), "frey": (2, 5, 10, 20)}
DECODERS = {"mnist": BernoulliMLP, "frey": GaussianMLP}
BATCH = 100
UPDATES = 10  # made at a time; every number of samples is a multiple of these
UNIT = BATCH * UPDATES


@dataclass(frozen=True)
class Setting:
    """What makes one run of the race."""

    images: str  # "mnist" (Bernoulli pixels) or "frey" (Gaussian pixels)
    latents: int  # Nz, the size of z
    method: str  # one of METHODS
    hidden: int  # tanh units in encoder and in decoder
    seed: int = 0  # of initial weights, order and noise
    step_sizes: tuple[float, ...] = STEP_SIZES  # Adagrad's, to choose from

    def __post_init__(self):
        sizes = tuple(self.step_sizes)  # a list, as JSON has it, would not be hashable
        good = sizes and all(0 < size < math.inf for size in sizes)
        expect(self.images in LATENTS, f"images in {tuple(LATENTS)}", self.images)
        expect(self.method in METHODS, f"method in {METHODS}", self.method)
        expect(good, "positive finite step sizes", sizes)
        object.__setattr__(self, "step_sizes", sizes)


@dataclass
class Result:
    """What became of one run; bounds are in nats per image."""

    setting: Setting
    step_size: float  # highest training bound at the end of the first stretch
    rows: list[dict]  # samples, train_bound, test_bound: for plotting.learning_curves
    trials: dict[float, list[dict]]  # the rows of the first stretch, by step size
    diverged: dict[float, int]  # samples seen when the bound was no longer finite, by step size
    seconds: float


def settings(hidden: Mapping[str, int], seed: int = 0) -> list[Setting]:
    """The 18 runs of figure 2, ``hidden`` units for each data set."""
    pairs = [(name, z) for name, sizes in LATENTS.items() for z in sizes]
    return [Setting(name, z, method, hidden[name], seed) for name, z in pairs for method in METHODS]


def budget(samples: float) -> int:
    """Samples of each lane: ``samples``, or VAELIB_RACE_SAMPLES where it is set; at least 1,000."""
    word = os.environ.get("VAELIB_RACE_SAMPLES") or samples
    try:
        value = int(float(word)) // UNIT * UNIT
    except (ValueError, OverflowError):
        value = 0
    expect(value >= UNIT, f"a number of samples >= {UNIT}", word)
    return value


def schedule(samples: int, stretch: int) -> set[int]:
    """Where to evaluate: multiples of 1,000, six in each decade, and after the stretch."""
    points = 2 + round(6 * math.log10(samples / UNIT))
    exact = torch.logspace(math.log10(UNIT), math.log10(samples), points, dtype=torch.float64)
    return {stretch, *(round(value / UNIT) * UNIT for value in exact.tolist())}


class Lane:
    """One model and its optimisers; ``advance`` makes updates, ``look`` evaluates.

    Weights start from N(0, 0.01), a variance. Their prior N(0, I) is a weight decay of 1/N, because
    the loss is a mean over images. Batches are drawn with replacement.
    """

    def __init__(self, setting: Setting, step_size: float, images: Images, device: torch.device):
        self.setting, self.step_size = setting, step_size
        self.train = check_images(images.train).to(device)  # an error here, no divergence later
        check_images(images.test, images.train.shape[1:])
        chosen = torch.randperm(len(images.train), generator=torch.Generator().manual_seed(0))
        shown = self.train[chosen[: len(images.test)].to(device)]  # the same in every lane
        self.shown = {"train": shown, "test": images.test.to(device)}
        self.rows, self.seen, self.diverged = [], 0, False
        torch.manual_seed(setting.seed)
        shape, z, hidden = images.train.shape[1:], setting.latents, setting.hidden
        decoder = DECODERS[setting.images](z, shape, hidden)
        vae = VAE(MLPEncoder(z, shape, hidden), StandardNormal(z), decoder)
        self.vae = init_normal_(vae, std=0.1).to(device)
        options = {"lr": step_size, "weight_decay": 1 / len(self.train), "fused": True}
        parts = [vae] if setting.method == "aevb" else [vae.decoder, vae.encoder]
        self.optimizers = [torch.optim.Adagrad(part.parameters(), **options) for part in parts]
        self.random = torch.cuda if device.type == "cuda" else torch
        self.random_state = self.random.get_rng_state()

    def advance(self) -> None:
        """Make ``UPDATES`` updates, on random minibatches; a bound not finite ends the run."""
        self.random.set_rng_state(self.random_state)
        step, optimizer = wake_sleep_step, self.optimizers
        if self.setting.method == "aevb":
            step, (optimizer,) = aevb_step, self.optimizers
        try:
            for _ in range(UPDATES):
                chosen = torch.randint(len(self.train), (BATCH,), device=self.train.device)
                step(self.vae, self.train[chosen], optimizer)
        except (FloatingPointError, ValueError):  # ValueError: a distribution refused a nan
            self.diverged = True
        self.random_state = self.random.get_rng_state()
        self.seen += UNIT

    @torch.no_grad()
    def look(self) -> None:
        """Evaluate both bounds, always with the same noise, and keep a row."""
        row = {"samples": self.seen}
        with fork_rng(self.train.device), no_validation():
            torch.manual_seed(0)
            for name, images in self.shown.items():
                values = [self.vae.elbo(x).value for x in images.split(1000)]
                row[f"{name}_bound"] = float(torch.cat(values).mean())
        self.diverged = not all(map(math.isfinite, row.values()))
        self.rows += [] if self.diverged else [row]

    def run(self, until: int, marks: set[int]) -> None:
        """Go on to so many samples, evaluated at the marks, unless the run diverges."""
        while self.seen < until and not self.diverged:
            self.advance()
            if self.seen in marks and not self.diverged:
                self.look()


def race(
    settings: Sequence[Setting], images, samples, stretch, folder=None, workers=1, device="cpu"
) -> list[Result]:
    """Run every setting until it has seen ``samples`` training images.

    All step sizes of a setting run for a first ``stretch``; the one with the highest training
    bound at its end goes on. ``images``, ``samples`` and ``stretch`` (multiples of 1,000) are by
    data set; ``folder`` keeps each finished run as JSON, and a run that is there is not run again;
    ``workers`` are processes of one thread each.
    """
    for first, count in ((stretch[name], samples[name]) for name in samples):
        good = UNIT <= first <= count and not first % UNIT and not count % UNIT
        expect(good, f"multiples of {UNIT}, stretch <= samples", (first, count))
    jobs, paths, done = [], {}, {}
    for setting in settings:
        job = (setting, *(part[setting.images] for part in (images, samples, stretch)))
        paths[setting] = Path(folder or ".") / _file_name(*job)
        if folder is not None and paths[setting].exists():
            (done[setting],) = load(paths[setting])
        else:
            jobs.append((*job, torch.device(device)))
    for result in _finished(jobs, workers):
        done[result.setting] = result
        if folder is not None:
            save([result], paths[result.setting])
    return [done[setting] for setting in settings]


def _finished(jobs: list[tuple], workers: int) -> Iterator[Result]:
    if workers <= 1:
        yield from starmap(_run, jobs)
        return
    context = get_context("spawn")  # a forked child of a process with threads may hang
    with ProcessPoolExecutor(workers, context, torch.set_num_threads, (1,)) as pool:
        runs = [pool.submit(_run, *job) for job in jobs]
        yield from (run.result() for run in as_completed(runs))


def _run(setting: Setting, images: Images, samples: int, stretch: int, device) -> Result:
    start, marks = time.perf_counter(), schedule(samples, stretch)
    with fork_rng(device):
        lanes = [Lane(setting, size, images, device) for size in setting.step_sizes]
        for lane in lanes:
            lane.run(stretch, marks)
        trials = {lane.step_size: list(lane.rows) for lane in lanes}
        scores = [-math.inf if lane.diverged else lane.rows[-1]["train_bound"] for lane in lanes]
        best = lanes[scores.index(max(scores))]
        best.run(samples, marks)
    diverged = {lane.step_size: lane.seen for lane in lanes if lane.diverged}
    found = best.step_size, best.rows, trials, diverged
    return Result(setting, *found, time.perf_counter() - start)


def estimate(settings, images, samples, stretch, workers=1, device="cpu") -> float:
    """Seconds that :func:`race` would take, from a thousand samples and one look in every lane."""
    device, total = torch.device(device), 0.0
    with fork_rng(device):
        for setting in settings:
            name, others = setting.images, len(setting.step_sizes) - 1
            lane = Lane(setting, setting.step_sizes[0], images[name], device)
            marks, times = schedule(samples[name], stretch[name]), []
            for act in (lane.advance, lane.advance, lane.look):  # the first updates are slower
                act()
                times.append(time.perf_counter())
            updates = (samples[name] + others * stretch[name]) / UNIT
            looks = len(marks) + others * sum(mark <= stretch[name] for mark in marks)
            total += (times[1] - times[0]) * updates + (times[2] - times[1]) * looks
    return total / workers


def save(results: Sequence[Result], path: str | os.PathLike, **facts) -> None:
    """Write results, and whatever else is worth knowing, as JSON."""
    facts["runs"] = [asdict(result) for result in results]
    write_text(json.dumps(facts, indent=1), Path(path))


def load(path: str | os.PathLike) -> list[Result]:
    """Read what :func:`save` wrote; ``ValueError`` where the file holds something else."""
    try:
        runs = json.loads(Path(path).read_text(encoding="utf-8"))["runs"]
        for run in runs:
            run["setting"] = Setting(**run["setting"])
            for name in ("trials", "diverged"):
                run[name] = {float(size): value for size, value in run[name].items()}
        return [Result(**run) for run in runs]
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: expected the results of a race, got {error!r}") from error


def _file_name(setting: Setting, images: Images, samples: int, stretch: int) -> str:
    """A name that holds everything a run depends on."""
    pixels = "-".join(fingerprint(x).split()[-1][:8] for x in (images.train, images.test))
    sizes = "-".join(f"{size:g}" for size in setting.step_sizes)
    name = f"{setting.images}-{images.source}-{pixels}_z{setting.latents}_{setting.method}"
    return f"{name}_h{setting.hidden}_s{setting.seed}_{sizes}_{samples}_{stretch}.json"
