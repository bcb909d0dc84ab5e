"""Two learning algorithms against each other: figure 2 of Kingma & Welling (2013).

A lane is one model, trained from scratch by one method with one step size. Lanes take the same
steps at either scale. On a CPU they run one after the other, or one a process; on a GPU each is
captured as a CUDA graph and all run side by side, a stream each.
"""

import json
import math
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path

import torch
from torch import Tensor

from vaelib.data import Images, check_images
from vaelib.decoders import BernoulliMLP, GaussianMLP
from vaelib.encoders import MLPEncoder
from vaelib.graphs import FlatAdagrad, Graph, unchecked
from vaelib.likelihood import log_joint
from vaelib.networks import init_normal_
from vaelib.noise import isolated_random_state
from vaelib.priors import StandardNormal
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
    """What makes one runner of the race; its step size is found on the way.

    Attributes:
        images: ``"mnist"`` (Bernoulli pixels) or ``"frey"`` (Gaussian pixels).
        latents: Nz, the size of z.
        method: ``"aevb"`` or ``"wake-sleep"``.
        hidden: tanh units in encoder and in decoder.
        seed: of initial weights, order and noise.
        step_sizes: Adagrad's, to choose from.
    """

    images: str
    latents: int
    method: str
    hidden: int
    seed: int = 0
    step_sizes: tuple[float, ...] = STEP_SIZES

    def __post_init__(self):
        for name, options in (("images", tuple(LATENTS)), ("method", METHODS)):
            if getattr(self, name) not in options:
                raise ValueError(f"expected {name} in {options}, got {getattr(self, name)!r}")
        sizes = tuple(self.step_sizes)  # a list, as JSON has it, would not be hashable
        if not sizes or not all(math.isfinite(size) and size > 0 for size in sizes):
            raise ValueError(f"expected positive finite step sizes, got {sizes}")
        object.__setattr__(self, "step_sizes", sizes)


@dataclass
class Result:
    """How one runner fared.

    Attributes:
        setting: what ran.
        step_size: the one chosen: highest training bound at the end of the first stretch.
        rows: ``samples``, ``train_bound`` and ``test_bound`` (nats per image), ready for
            :func:`vaelib.plotting.learning_curves`.
        trials: the rows of the first stretch, by step size.
        diverged: samples seen when the bound stopped being finite, by step size; else empty.
        seconds: what the run took; runs that went side by side share their time equally.
    """

    setting: Setting
    step_size: float
    rows: list[dict]
    trials: dict[float, list[dict]]
    diverged: dict[float, int]
    seconds: float


def settings(hidden: Mapping[str, int], seed: int = 0) -> list[Setting]:
    """The 18 runs of figure 2, ``hidden`` units for each data set."""
    return [
        Setting(images, latents, method, hidden[images], seed)
        for images, sizes in LATENTS.items()
        for latents in sizes
        for method in METHODS
    ]


def budget(samples: float) -> int:
    """Samples that each lane may see: ``samples``, or VAELIB_RACE_SAMPLES where it is set.

    Raises:
        ValueError: fewer than a thousand, or not a number.
    """
    word = os.environ.get("VAELIB_RACE_SAMPLES") or samples
    try:
        value = int(float(word)) // UNIT * UNIT
    except (ValueError, OverflowError):
        value = 0
    if value < UNIT:
        raise ValueError(f"expected a number of samples >= {UNIT}, got {word!r}")
    return value


def schedule(samples: int, per_decade: int = 6) -> list[int]:
    """Where to evaluate: multiples of 1,000 up to ``samples``, even in their logarithm."""
    if samples < UNIT:
        raise ValueError(f"expected samples >= {UNIT}, got {samples}")
    points = 2 + round(per_decade * math.log10(samples / UNIT))
    exact = torch.logspace(math.log10(UNIT), math.log10(samples), points, dtype=torch.float64)
    return sorted({round(value / UNIT) * UNIT for value in exact.tolist()})


class Lane:
    """One model and its optimisers on their way; ``advance`` makes updates, ``look`` evaluates.

    All weights start from N(0, 0.01), 0.01 read as a variance: the standard deviation is 0.1.
    The prior N(0, I) of the weights is a weight decay of 1/N, because the loss is a mean over
    images. Batches are drawn with replacement.
    """

    def __init__(self, setting: Setting, step_size: float, images: Images, device: torch.device):
        self.setting, self.step_size = setting, step_size
        # Wrong data are an error here, not a divergence later.
        self.train = check_images(images.train).to(device)
        check_images(images.test, images.train.shape[1:])
        chosen = torch.randperm(len(images.train), generator=torch.Generator().manual_seed(0))
        self.shown = {  # as many training images as test images, the same in every lane
            "train": self.train[chosen[: len(images.test)].to(device)],
            "test": images.test.to(device),
        }
        self.rows: list[dict] = []
        self.seen, self.diverged = 0, False
        torch.manual_seed(setting.seed)
        shape, size = images.train.shape[1:], (setting.latents, setting.hidden)
        encoder = MLPEncoder(size[0], shape, size[1])
        decoder = DECODERS[setting.images](size[0], shape, size[1])
        vae = VAE(encoder, StandardNormal(size[0]), decoder)
        self.vae = init_normal_(vae, std=0.1).to(device)
        self.parts = {
            "aevb": (self.vae,),
            "wake-sleep": (self.vae.decoder, self.vae.encoder),
        }[setting.method]
        self.prepare()
        self.random_state = torch.get_rng_state()

    def prepare(self) -> None:
        """Make the optimisers."""
        options = {"lr": self.step_size, "weight_decay": 1 / len(self.train), "fused": True}
        self.optimizers = [torch.optim.Adagrad(p.parameters(), **options) for p in self.parts]

    def objectives(self) -> Iterator[tuple]:
        """What to go down on a random minibatch, and the optimiser that does it."""
        chosen = torch.randint(len(self.train), (BATCH,), device=self.train.device)
        found = losses(self.vae, self.train[chosen], self.setting.method)
        return zip(found, self.optimizers, strict=True)

    def update(self) -> None:
        """One update, as in :mod:`vaelib.learning`."""
        for loss, optimizer in self.objectives():
            if not loss.isfinite():
                raise FloatingPointError(f"expected a finite loss, got {loss.item()} nats")
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()

    def advance(self) -> None:
        """Make ``UPDATES`` updates; a bound that is not finite ends the run."""
        torch.set_rng_state(self.random_state)
        try:
            for _ in range(UPDATES):
                self.update()
        except (FloatingPointError, ValueError):  # ValueError: a distribution refused a nan
            self.diverged = True
        self.random_state = torch.get_rng_state()
        self.seen += UNIT

    @torch.no_grad()
    def look(self) -> None:
        """Evaluate both bounds, always with the same noise, and keep a row."""
        row = {"samples": self.seen}
        with isolated_random_state(self.train.device), unchecked():
            torch.manual_seed(0)
            for name, images in self.shown.items():
                values = [self.vae.elbo(x).value for x in images.split(1000)]
                row[f"{name}_bound"] = float(torch.cat(values).mean())
        if all(math.isfinite(value) for value in row.values()):
            self.rows.append(row)
        else:
            self.diverged = True

    @property
    def score(self) -> float:
        """The latest training bound; what diverged comes last."""
        return -math.inf if self.diverged or not self.rows else self.rows[-1]["train_bound"]


def losses(vae: VAE, x: Tensor, method: str) -> Iterator[Tensor]:
    """What each optimiser of a method goes down, one after the other, in nats per image.

    The objectives of :mod:`vaelib.learning`, without reporting the bound and without asking the
    device anything, so that a graph can record them.
    """
    if method == "aevb":
        yield -vae(x).value.mean()
        return
    with torch.no_grad():
        z, dreamed_z = vae.encoder(x).rsample(), vae.prior().rsample((len(x),))
        dream = vae.decoder(dreamed_z)
        # A normal's sample() asks whether its scales are positive: a graph cannot wait for that.
        dreamed_x = dream.rsample() if dream.has_rsample else dream.sample()
    yield -log_joint(vae, x)(z).mean()
    yield -vae.encoder(dreamed_x).log_prob(dreamed_z).mean()


class GraphLane(Lane):
    """The same lane on a GPU, its updates recorded in one graph."""

    def prepare(self) -> None:
        decay = 1 / len(self.train)
        self.optimizers = [FlatAdagrad(part, self.step_size, decay) for part in self.parts]
        if self.train.is_cuda:
            state = [tensor for optimizer in self.optimizers for tensor in optimizer.state]
            self.graph = Graph(self.update, state, UPDATES)

    def update(self) -> None:
        for loss, optimizer in self.objectives():
            optimizer.step(loss)

    def advance(self) -> None:
        self.graph.replay()
        self.seen += UNIT

    def look(self) -> None:
        self.graph.stream.synchronize()
        self.diverged |= any(bool(optimizer.failed) for optimizer in self.optimizers)
        super().look()


def race(
    settings: Sequence[Setting],
    images: Mapping[str, Images],
    samples: Mapping[str, int],
    stretch: Mapping[str, int],
    folder: str | os.PathLike | None = None,
    workers: int = 1,
    device: str | torch.device = "cpu",
) -> list[Result]:
    """Run every setting until it has seen ``samples`` training images.

    All step sizes of a setting run for a first ``stretch``; the one with the highest training
    bound at its end goes on. On ``cuda`` all settings of a data set run side by side.

    Args:
        settings: the runners.
        images: data by name, ``"mnist"`` and ``"frey"``.
        samples: for each data set, a multiple of 1,000.
        stretch: for each data set, a multiple of 1,000, at most its ``samples``.
        folder: keeps each finished run as JSON; a run that is there is not run again.
        workers: processes on a CPU, one thread each.
        device: ``"cpu"`` or ``"cuda"``.
    """
    for first, count in ((stretch[name], samples[name]) for name in samples):
        if not UNIT <= first <= count or first % UNIT or count % UNIT:
            raise ValueError(
                f"expected multiples of {UNIT}, stretch <= samples, got {first} and {count}"
            )
    device, paths, done = torch.device(device), {}, {}
    for setting in settings:
        paths[setting] = _path(folder, setting, images, samples, stretch)
        if folder is not None and paths[setting].exists():
            done[setting] = load(paths[setting])[0]
    todo = [setting for setting in settings if setting not in done]
    for results in _runs(todo, images, samples, stretch, workers, device):
        for result in results:
            done[result.setting] = result
            if folder is not None:
                save([result], paths[result.setting])
    return [done[setting] for setting in settings]


def estimate(
    settings: Sequence[Setting],
    images: Mapping[str, Images],
    samples: Mapping[str, int],
    stretch: Mapping[str, int],
    workers: int = 1,
    device: str | torch.device = "cpu",
) -> float:
    """Seconds that :func:`race` would take, from a thousand samples and one look in every lane."""
    device, updates, looks = torch.device(device), 0, 0
    images = {name: _placed(images[name], device) for name in {s.images for s in settings}}
    with isolated_random_state(device):
        lanes = [_lane(s, s.step_sizes[0], images[s.images], device) for s in settings]
        _advance(lanes, UNIT, ())
        training = _seconds(device, lambda: _advance(lanes, 2 * UNIT, ()))
        looking = _seconds(device, lambda: [lane.look() for lane in lanes])
    for setting in settings:
        count, first = samples[setting.images], stretch[setting.images]
        marks, others = _marks(count, first), len(setting.step_sizes) - 1
        updates += count + others * first
        looks += len(marks) + others * sum(mark <= first for mark in marks)
    return (training / UNIT * updates + looking * looks) / max(1, len(lanes)) / workers


def _seconds(device: torch.device, work: Callable[[], object]) -> float:
    _synchronize(device)
    start = time.perf_counter()
    work()
    _synchronize(device)
    return time.perf_counter() - start


def save(results: Sequence[Result], path: str | os.PathLike, **facts) -> None:
    """Write results, and whatever else is worth knowing, as JSON under its final name at once."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        text = json.dumps({**facts, "runs": [asdict(result) for result in results]}, indent=1)
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def load(path: str | os.PathLike) -> list[Result]:
    """Read what :func:`save` wrote.

    Raises:
        ValueError: the file holds something else.
    """
    try:
        runs = json.loads(Path(path).read_text(encoding="utf-8"))["runs"]
        return [_result(**run) for run in runs]
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: expected the results of a race, got {error!r}") from error


def _result(setting: dict, trials: dict, diverged: dict, **rest) -> Result:
    by_size = [{float(size): value for size, value in d.items()} for d in (trials, diverged)]
    return Result(Setting(**setting), trials=by_size[0], diverged=by_size[1], **rest)


def _path(folder, setting: Setting, images: Mapping[str, Images], samples, stretch) -> Path:
    """A name that holds everything a run depends on."""
    counts = f"{samples[setting.images]}_{stretch[setting.images]}"
    sizes = "-".join(f"{size:g}" for size in setting.step_sizes)
    source = images[setting.images].source
    name = f"{setting.images}-{source}-{len(images[setting.images].train)}_z{setting.latents}"
    name += f"_{setting.method}_h{setting.hidden}_s{setting.seed}_{sizes}_{counts}"
    return Path(folder or ".") / f"{name}.json"


def _runs(todo, images, samples, stretch, workers, device) -> Iterator[list[Result]]:
    """Groups of finished runs, as they finish."""
    if device.type == "cuda":
        for name in sorted({setting.images for setting in todo}):
            group = [setting for setting in todo if setting.images == name]
            yield _run(group, images[name], samples[name], stretch[name], device)
    elif workers == 1:
        for s in todo:
            name = s.images
            yield _run([s], images[name], samples[name], stretch[name], device)
    else:
        context = get_context("spawn")  # a forked child of a process with threads may hang
        with ProcessPoolExecutor(workers, context, torch.set_num_threads, (1,)) as pool:
            jobs = [
                pool.submit(_run, [s], images[name], samples[name], stretch[name], device)
                for s, name in ((s, s.images) for s in todo)
            ]
            for job in as_completed(jobs):
                yield job.result()


def _run(group, images: Images, samples: int, stretch: int, device) -> list[Result]:
    """All settings of one data set in step."""
    start, marks = time.perf_counter(), _marks(samples, stretch)
    images = _placed(images, device)
    with isolated_random_state(device):
        trials = [[_lane(s, size, images, device) for size in s.step_sizes] for s in group]
        _advance([lane for lanes in trials for lane in lanes], stretch, marks)
        first = [{lane.step_size: list(lane.rows) for lane in lanes} for lanes in trials]
        chosen = [max(lanes, key=lambda lane: lane.score) for lanes in trials]
        _advance(chosen, samples, marks)
    seconds = (time.perf_counter() - start) / len(group)
    return [
        Result(
            lane.setting,
            lane.step_size,
            lane.rows,
            rows,
            {other.step_size: other.seen for other in lanes if other.diverged},
            seconds,
        )
        for lane, lanes, rows in zip(chosen, trials, first, strict=True)
    ]


def _placed(images: Images, device: torch.device) -> Images:
    """On the device once, for all lanes."""
    return images._replace(train=images.train.to(device), test=images.test.to(device))


def _marks(samples: int, stretch: int) -> set[int]:
    """After how many samples a lane that runs to the end is evaluated."""
    return {*schedule(samples), stretch}


def _lane(setting: Setting, step_size: float, images: Images, device: torch.device) -> Lane:
    kind = GraphLane if device.type == "cuda" else Lane
    return kind(setting, step_size, images, device)


def _advance(lanes: Iterable[Lane], until: int, marks: Iterable[int]) -> None:
    """Bring all lanes to ``until`` samples in step, those that diverge left behind."""
    lanes = [lane for lane in lanes if not lane.diverged]
    while lanes and lanes[0].seen < until:
        for lane in lanes:
            lane.advance()
            if lane.seen in marks and not lane.diverged:
                lane.look()
        lanes = [lane for lane in lanes if not lane.diverged]


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
