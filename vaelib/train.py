"""Train one row of the papers' tables: ``python -m vaelib.train cifar10-delta-vae``.

Any field of its recipe can be given another value. On several GPUs or machines::

    torchrun --nproc-per-node 8 -m vaelib.train imagenet32-delta-vae --checkpoint run.pt
"""

import argparse
import json
import math
import platform
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch
from torch import nn

from vaelib import scaling
from vaelib.data import DataError, Images
from vaelib.engine import Fabric, engine, is_first_process
from vaelib.files import write_json
from vaelib.learning import aevb_step
from vaelib.recipes import auxiliary, build, objective
from vaelib.rows import RECIPES, prior_name, target
from vaelib.settings import DATASETS, Recipe, load
from vaelib.training import History, adam, decay_late, fit

PRECISIONS = {"32": "32-true", "bf16": "bf16-mixed", "16": "16-mixed"}
PROBE = 3  # updates that are timed for the estimate


@dataclass(frozen=True, kw_only=True)
class Options:
    """How to train, whatever is trained; the weights of a run depend on them all.

    Attributes:
        precision: "32", "bf16" or "16"; bf16 on a GPU by default, else 32.
        accelerator: "cpu" or "cuda"; a GPU where there is one by default.
        compile, ema, accumulate, checkpoint_updates: as in :func:`vaelib.training.fit`.
        checkpoint: file to go on from and to keep; the auxiliary prior's has another ending.
        evaluations: how many times the test images are evaluated on the way.
        progress: print what happens, on stderr.
    """

    precision: str | None = None
    accelerator: str | None = None
    compile: bool | str = False
    ema: float | None = 0.999
    accumulate: int = 1
    checkpoint: Path | None = None
    checkpoint_updates: int | None = None
    evaluations: int = 10
    progress: bool = True

    def engine(self) -> Fabric:
        """The engine for these options and what is there."""
        on_gpu = self.accelerator != "cpu" and torch.cuda.is_available()
        precision = self.precision or ("bf16" if on_gpu else "32")
        return engine(PRECISIONS[precision], self.accelerator)


def run(name: str, recipe: Recipe, options: Options, images: Images | None = None) -> dict:
    """Train a row -> what is worth knowing about it, ready for JSON.

    Under ``torchrun`` all processes call it, and all get the same.

    Args:
        name: of the row, see :data:`vaelib.rows.RECIPES`.
        recipe: that row's, or a changed one.
        options: how to train.
        images: by default those that the recipe names.

    Raises:
        DataError: the data cannot be had.
        ValueError: images whose shape is not that of the recipe.
        KeyboardInterrupt: Ctrl-C; with a checkpoint the same call goes on from there.
    """
    images = load(recipe) if images is None else images
    if tuple(images.train.shape[1:]) != recipe.image_shape:
        got = tuple(images.train.shape[1:])
        raise ValueError(f"expected images of shape {recipe.image_shape}, got {got}")
    fabric = options.engine()
    say = print if options.progress and fabric.is_global_zero else lambda *args, **kwargs: None
    model = build(recipe)
    result = _facts(name, recipe, options, images, model, fabric)
    say(_headline(result), file=sys.stderr, flush=True)
    if options.progress:
        seconds = estimate(recipe, images, fabric, options)
        say(f"about {_duration(seconds)} in all, without evaluations", file=sys.stderr, flush=True)
    step = partial(aevb_step, objective=objective(recipe, len(images.train)))
    settings = {"step": step, "optimizer": partial(adam, lr=recipe.lr)}
    settings |= {"ema": options.ema, "compile": options.compile}
    history = _fit(model, recipe, images, options, fabric, recipe.epochs, ".pt", **settings)
    prior = prior_name(recipe)
    _add(result, prior, history, say)
    if recipe.auxiliary_epochs:
        vae = model if history.average is None else history.average
        vae.requires_grad_(False)
        step, optimizer = auxiliary(recipe, vae)
        more = {"step": step, "optimizer": optimizer}
        epochs = recipe.auxiliary_epochs
        history = _fit(vae, recipe, images, options, fabric, epochs, ".prior.pt", **more)
        _add(result, "auxiliary prior", history, say)
    return result


def _fit(model, recipe, images, options, fabric, epochs, ending, **settings) -> History:
    checkpoint = options.checkpoint and options.checkpoint.with_suffix(ending)
    history = fit(
        model,
        images.train,
        epochs=epochs,
        batch_size=recipe.batch_size,
        schedule=decay_late,
        transform=DATASETS[recipe.data].transform,
        test=images.test,
        evaluate_every=max(1, epochs // options.evaluations),
        seed=recipe.seed,
        checkpoint=checkpoint,
        checkpoint_updates=options.checkpoint_updates,
        progress=options.progress,
        fabric=fabric,
        accumulate=options.accumulate,
        **settings,
    )
    if history.interrupted:
        raise KeyboardInterrupt(f"stopped after {len(history.rows)} epochs")
    return history


def estimate(recipe: Recipe, images: Images, fabric: Fabric, options: Options) -> float:
    """Seconds that training takes, from a few updates; compiled ones will be faster."""

    def seconds(updates: int) -> float:
        start = time.perf_counter()
        fit(
            build(recipe),
            images.train[: updates * recipe.batch_size],
            epochs=1,
            batch_size=recipe.batch_size,
            transform=DATASETS[recipe.data].transform,
            progress=False,
            fabric=fabric,
            accumulate=options.accumulate,
        )
        return time.perf_counter() - start

    seconds(1)  # libraries set themselves up on first use
    once = seconds(1)
    each = max(0.0, seconds(1 + PROBE) - once) / PROBE
    return each * recipe.epochs * -(-len(images.train) // recipe.batch_size)


def _facts(name, recipe, options, images, model: nn.Module, fabric: Fabric) -> dict:
    changed = {}
    if name in RECIPES:
        theirs = asdict(RECIPES[name])
        changed = {key: value for key, value in asdict(recipe).items() if value != theirs[key]}
    packages = ("torch", "lightning-fabric", "vaelib")
    return {
        "name": name,
        "scale": scaling.current(),
        "label": recipe.label,
        "recipe": asdict(recipe),
        "changed": changed,
        "seed": recipe.seed,
        "parameters": sum(p.numel() for p in model.parameters()),
        "data": {
            "source": images.source,
            "train": len(images.train),
            "test": len(images.test),
        },
        "device": hardware(fabric.device),
        "processes": fabric.world_size,
        "precision": str(fabric.strategy.precision.precision),
        "compile": options.compile,
        "ema": options.ema,
        "accumulate": options.accumulate,
        "versions": {"python": platform.python_version(), **_versions(packages)},
        "seconds": 0.0,
        "numbers": {},
    }


def _add(result: dict, prior: str, history: History, say) -> None:
    """Add the numbers of a finished run, and say how they compare."""
    row = history.rows[-1]
    nats = {
        "negative_bound": -row["test_bound"],
        "distortion": row["test_distortion"],
        "rate": row["test_rate"],
    }
    bit = math.prod(result["recipe"]["image_shape"]) * math.log(2)
    bits = {key: value / bit for key, value in nats.items()}
    compared = target(result["name"], prior)
    numbers = {"nats": nats, "bits_per_dim": bits, "seconds": row["seconds"], "target": compared}
    numbers["curve"] = [  # nats
        {"epoch": row["epoch"], "seconds": row["seconds"], "negative_bound": -row["test_bound"]}
        for row in history.rows
        if "test_bound" in row
    ]
    result["numbers"][prior] = numbers
    result["seconds"] += row["seconds"]
    ours = f"{nats['negative_bound']:.2f} nats, {bits['negative_bound']:.3f} bits/dim"
    rate = f"rate {nats['rate']:.2f} nats, {bits['rate']:.3f} bits/dim"
    against = f"; target {_shown(compared)}" if compared else ""
    say(f"{result['name']}, {prior}: {ours} ({rate}){against}", file=sys.stderr, flush=True)


def _headline(result: dict) -> str:
    count, data = result["parameters"], result["data"]
    compared = target(result["name"], prior_name(Recipe(**result["recipe"])))
    lines = [
        f"{result['name']}: {result['label']}, {count:,} parameters",
        f"{data['train']:,} training and {data['test']:,} test images, {data['source']}",
        f"{result['processes']} × {result['device']}, {result['precision']}",
        *([f"target {_shown(compared)}"] if compared else []),
        *([f"changed: {result['changed']}"] if result["changed"] else []),
    ]
    return "\n  ".join(lines)


def _shown(compared: dict) -> str:
    return "{value} {unit}, {model} ({source})".format(**compared)


def hardware(device: torch.device) -> str:
    """What computes, by the name of the hardware."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if "model name" in line)
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def _versions(packages: Sequence[str]) -> dict[str, str]:
    found = {}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:  # the engine may come in another package
            continue
    return found


def _duration(seconds: float) -> str:
    minutes = round(seconds / 60)
    return f"{seconds:.0f} s" if minutes < 2 else f"{minutes // 60} h {minutes % 60} min"


def parser() -> argparse.ArgumentParser:
    """The command line: options, and one for each field of a recipe."""
    found = argparse.ArgumentParser(
        prog="python -m vaelib.train",
        description="Train one row of the papers' tables. Under torchrun, on all its processes.",
        epilog="Values of fields are JSON: --epochs 3 --latents '[28, 2]' --data cifar10-full",
        allow_abbrev=False,
    )
    found.add_argument("name", choices=list(RECIPES), metavar="NAME", help=", ".join(RECIPES))
    found.add_argument("--precision", choices=list(PRECISIONS), help="bf16 on a GPU, else 32")
    found.add_argument("--accelerator", choices=["cpu", "cuda"], help="default: a GPU if there")
    found.add_argument(
        "--compile", nargs="?", const=True, default=False, metavar="MODE", help="torch.compile"
    )
    found.add_argument("--ema", type=float, default=0.999, help="0: no average (default 0.999)")
    found.add_argument("--accumulate", type=int, default=1, help="pieces of each batch")
    found.add_argument("--checkpoint", type=Path, help="file to keep, and to go on from")
    found.add_argument("--checkpoint-updates", type=int, help="write it every so many updates")
    found.add_argument("--evaluations", type=int, default=10, help="of the test images on the way")
    found.add_argument("--result", type=Path, help="JSON file to write")
    group = found.add_argument_group("fields of the recipe, see vaelib.settings.Recipe")
    for field in fields(Recipe):
        group.add_argument(f"--{field.name.replace('_', '-')}", type=_value, metavar="VALUE")
    return found


def _value(word: str) -> object:
    try:
        return json.loads(word)
    except json.JSONDecodeError:
        return word


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line -> exit status."""
    line = parser()
    given = line.parse_args(arguments)
    # A field may be set to null, so what was not given must be told apart from None.
    named = {word.split("=")[0] for word in (sys.argv[1:] if arguments is None else arguments)}
    changes = {
        field.name: getattr(given, field.name)
        for field in fields(Recipe)
        if f"--{field.name.replace('_', '-')}" in named
    }
    try:
        recipe = replace(RECIPES[given.name], **changes)
    except (TypeError, ValueError) as error:
        line.error(str(error))
    known = {field.name for field in fields(Options)} & set(vars(given))
    options = Options(**{name: getattr(given, name) for name in known} | {"ema": given.ema or None})
    try:
        result = run(given.name, recipe, options)
    except DataError as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt as stop:
        print(f"{stop}; the same command goes on from its checkpoint", file=sys.stderr)
        return 130
    if is_first_process():
        if given.result:
            write_json(result, given.result)
        print(json.dumps(result["numbers"], indent=1, ensure_ascii=False))
    return 0


if __name__ == "__main__":
    sys.exit(main())
