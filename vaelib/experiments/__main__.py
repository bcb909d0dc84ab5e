"""Train rows of the papers' tables.

    python -m vaelib.experiments NAME       train one row; NAME --help: all that can be changed
    python -m vaelib.experiments list       the rows, and the compute that each needs
    python -m vaelib.experiments missing    make what figures/paper lacks (VAELIB_SCALE=paper)
    python -m vaelib.experiments table      write figures/paper/README.md

On several GPUs: torchrun --nproc-per-node 8 -m vaelib.experiments NAME
"""

import gc
import hashlib
import json
import math
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Literal

import torch
import torch.distributed as dist
import tyro

from vaelib.data import DataError, Images, cache_folder
from vaelib.experiments import recipes, tables
from vaelib.experiments.recipes import Recipe, expect
from vaelib.experiments.rows import RECIPES, prior_name
from vaelib.teaching import scaling
from vaelib.training.checkpoint import save, versions, write_text
from vaelib.training.loop import History, fit


@dataclass(frozen=True, kw_only=True)
class Options:
    """How to train, whatever is trained; the weights of a run depend on most of it."""

    precision: Literal["32", "bf16"] | None = None  # of the networks; bf16 on a GPU, else 32
    device: Literal["cpu", "cuda"] | None = None  # a GPU where there is one
    compile: bool = False  # run the model through torch.compile
    ema: float = 0.999  # decay of the average of the weights that is evaluated and kept; 0: none
    evaluations: int = 10  # how many times the test images are evaluated on the way
    checkpoint: Path | None = None  # file to go on from; one in VAELIB_CACHE, named by the row
    result: Path | None = None  # JSON file to write
    progress: bool = True  # say on stderr what happens

    def __post_init__(self):
        expect(0 <= self.ema < 1, "ema in [0, 1)", self.ema)
        expect(self.evaluations >= 1, "evaluations >= 1", self.evaluations)


@dataclass
class Row:
    """Train one row of the papers' tables. Under torchrun, on all its processes."""

    recipe: tyro.conf.FlagConversionOff[Recipe]
    options: Options


def run(name: str, recipe: Recipe, options: Options, images: Images | None = None) -> dict:
    """Train a row, or a changed one, and keep the model -> what to know about it, for JSON.

    By default on the images of the recipe. Under ``torchrun`` all processes call it and get the
    same. After ``KeyboardInterrupt`` (Ctrl-C) the same call goes on from the checkpoint.
    """
    model, images = recipes.build(recipe), recipes.load(recipe, images)
    device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    precision = options.precision or ("bf16" if device == "cuda" else "32")
    options = replace(options, precision=precision, device=device)
    how = {"device": device, "bf16": precision == "bf16", "progress": options.progress}
    say = _say if options.progress else lambda text: None
    result, mark = _facts(name, recipe, options, images), json.dumps(asdict(recipe)).encode()
    mark = "" if recipe == RECIPES[name] else f"-{hashlib.sha256(mark).hexdigest()[:8]}"
    stem = options.checkpoint or cache_folder() / "runs" / f"{name}{mark}"  # a sweep shares no file
    stem = str(stem.expanduser()).removesuffix(".pt")
    result["parameters"] = sum(p.numel() for p in model.parameters())
    say("{name}: {label}, {parameters:,} parameters".format(**result))
    say("  {train:,} training and {test:,} test images, {source}".format(**result["data"]))
    say(f"  {result['processes']} × {result['hardware']}, {precision}")
    for prior, text in result["targets"].items():
        say(f"  target {text}, {prior}")
    if result["changed"]:
        say(f"  changed: {result['changed']}")
    if options.progress:
        seconds = round(estimate(recipe, images, **how | {"progress": False}))
        say(f"  about {timedelta(seconds=seconds)} in all, without evaluations")
    more = {"ema": options.ema or None, "compile": options.compile}
    more["evaluate_every"] = max(1, recipe.epochs // options.evaluations)
    history = recipes.fit_recipe(recipe, model, images, checkpoint=f"{stem}.pt", **how, **more)
    model = model if history.average is None else history.average
    say(_add(result, prior_name(recipe), history))
    if recipe.auxiliary_epochs:
        how["checkpoint"] = f"{stem}.prior.pt"
        say(_add(result, "auxiliary prior", recipes.fit_auxiliary(recipe, model, images, **how)))
    if _torchrun("RANK", 0) == 0:
        save(model, f"{stem}.model.pt", recipe=asdict(recipe), result=result)
    say(f"vaelib.load({stem + '.model.pt'!r}) is the model")
    return result


def estimate(recipe: Recipe, images: Images, **how) -> float:
    """Seconds that training takes, from a few updates; compiled ones will be faster."""
    how |= {"epochs": 1, "batch_size": recipe.batch_size}
    how["transform"] = recipes.TRANSFORMS.get(recipe.data)
    times = [time.perf_counter()]
    for updates in (1, 1, 4):  # libraries set themselves up on first use
        fit(recipes.build(recipe), images.train[: updates * recipe.batch_size], **how)
        times.append(time.perf_counter())
    each = max(0.0, times[3] - 2 * times[2] + times[1]) / 3
    return each * recipe.epochs * -(-len(images.train) // recipe.batch_size)


def _facts(name: str, recipe: Recipe, options: Options, images: Images) -> dict:
    """What a reader of the numbers must know."""
    facts = {"recipe": asdict(recipe), "options": asdict(options)}
    facts = json.loads(json.dumps(facts, default=str)) | {"name": name, "label": recipe.label}
    facts |= {"seed": recipe.seed, "versions": versions(), "seconds": 0.0, "numbers": {}}
    facts["data"] = {"train": len(images.train), "test": len(images.test), "source": images.source}
    facts["scale"] = "tiny" if images.source == "synthetic" else scaling.current()
    facts["hardware"] = hardware(options.device)
    facts |= {"processes": _torchrun("WORLD_SIZE", 1), "changed": tables.changes(facts)}
    facts["targets"], row = {}, RECIPES[name]  # a target is for the data of its row
    own = (recipe.data.removesuffix("-full"), recipe.image_shape) == (row.data, row.image_shape)
    for prior in (prior_name(recipe), *["auxiliary prior"] * (recipe.auxiliary_epochs > 0)):
        if own and facts["scale"] != "tiny" and (one := tables.target(name, prior)):
            facts["targets"][prior] = "{value} {unit}, {model} ({source})".format(**one)
    return facts


def _add(result: dict, prior: str, history: History) -> str:
    """Add the numbers of a finished run -> how they compare."""
    row = history.rows[-1]
    nats = {"negative_bound": -row["test_bound"]}
    nats |= {part: row[f"test_{part}"] for part in ("distortion", "rate")}
    bit = math.prod(result["recipe"]["image_shape"]) * math.log(2)
    bits = {key: value / bit for key, value in nats.items()}
    rows = [row for row in history.rows if "test_bound" in row]
    curve = [{key: row[key] for key in ("epoch", "seconds", "test_bound")} for row in rows]
    result["numbers"][prior] = {"nats": nats, "bits_per_dim": bits, "curve": curve}
    result["seconds"] += row["seconds"]
    ours = f"{nats['negative_bound']:.2f} nats, {bits['negative_bound']:.3f} bits/dim"
    rate = f"rate {nats['rate']:.2f} nats, {bits['rate']:.3f} bits/dim"
    target = f"; target {result['targets'][prior]}" if prior in result["targets"] else ""
    return f"{result['name']}, {prior}: {ours} ({rate}){target}"


def hardware(device: str) -> str:
    """What computes, by its name."""
    if device == "cuda":
        return torch.cuda.get_device_name()
    with suppress(OSError):
        names = re.findall(r"model name\s*: (.+)", Path("/proc/cpuinfo").read_text())
        return names[0] if names else platform.machine()
    return platform.processor() or platform.machine()


def tiny(recipe: Recipe) -> tuple[Recipe, Images]:
    """The same row, cut down until a processor trains it in seconds, and images of noise."""
    small = {"channels": 8, "blocks": 1, "layers": 1, "heads": 2, "context": 4, "mixtures": 2}
    small |= {"encoder_size": 4, "encoder_layers": 1, "epochs": 2, "batch_size": 4}
    small["auxiliary_epochs"] = min(1, recipe.auxiliary_epochs)
    top = 1 if recipe.likelihood == "bernoulli" else recipe.levels - 1
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(top + 1, (14, *recipe.image_shape), generator=generator) / top
    return replace(recipe, **small), Images(x[:10], None, x[10:], None, "synthetic")


def missing() -> int:
    """Draw every figure and train every row that is not in ``figures/paper`` -> exit status.

    What fails or whose data cannot be had is named, and the next one begins. With
    VAELIB_PAPER_TINY=1 every row in miniature, in the cache.
    """
    small, failed = os.environ.get("VAELIB_PAPER_TINY", "0") not in ("", "0"), []
    folder = cache_folder() / "paper-tiny" if small else tables.FOLDER
    if not small:
        if scaling.current() != "paper" or not torch.cuda.is_available():
            _say("These runs take hours on a GPU and months on a processor: VAELIB_SCALE=paper")
            _say("with a GPU. In miniature, in another folder: VAELIB_PAPER_TINY=1")
            return 1
        failed = [] if dist.is_torchelastic_launched() else draw_missing(folder)
    for name in [name for name in RECIPES if not (folder / f"{name}.json").exists()]:
        recipe, images = tiny(RECIPES[name]) if small else (RECIPES[name], None)
        try:
            _write(run(name, recipe, Options(), images), folder / f"{name}.json")
        except DataError as error:
            _say(f"{name} waits for its data: {error}")
        except Exception as error:  # the rows after it may still do
            failed.append(name)
            _say(f"{name} FAILED: {type(error).__name__}: {error}")
        gc.collect()
        torch.cuda.empty_cache()
    return 1 if failed else 0


def draw_missing(folder: Path) -> list[str]:
    """Run the notebook of every figure that is missing, in a copy -> those that failed."""
    command = [sys.executable, *"-m nbconvert --to notebook --execute".split()]
    for name in tables.undrawn(folder):
        _say(f"{name}, target {tables.FIGURES[name]}")
        notebook = str(tables.FOLDER.parents[1] / "notebooks" / f"{name}.ipynb")
        with tempfile.TemporaryDirectory() as copy:
            more = ["--ExecutePreprocessor.timeout=-1", notebook, "--output-dir", copy]
            subprocess.run(command + more)
    failed = tables.undrawn(folder)
    for name in failed:
        _say(f"{name} FAILED: see above")
    return failed


def _torchrun(variable: str, alone: int) -> int:
    return int(os.environ[variable]) if dist.is_torchelastic_launched() else alone


def _say(text: str) -> None:
    if _torchrun("RANK", 0) == 0:
        print(text, file=sys.stderr, flush=True)


def _write(result: dict, path: Path | None) -> None:
    if path is not None and _torchrun("RANK", 0) == 0:
        write_text(json.dumps(result, indent=1, ensure_ascii=False, allow_nan=False) + "\n", path)


def _train(name: str, words: Sequence[str]) -> None:
    how = {"prog": f"python -m vaelib.experiments {name}", "config": (tyro.conf.OmitArgPrefixes,)}
    row = tyro.cli(Row, args=words, default=Row(RECIPES[name], Options()), **how)
    path = row.options.result
    if path is not None:  # better to know now than after the training
        path.parent.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=path.parent).close()
    result = run(name, row.recipe, row.options)
    if _torchrun("RANK", 0) == 0:
        print(json.dumps(result["numbers"], indent=1, ensure_ascii=False))
    _write(result, path)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line -> exit status."""
    name, *words = (sys.argv[1:] if arguments is None else arguments) or ["--help"]
    commands, page = {"missing": missing}, tables.FOLDER / "README.md"
    commands["list"] = lambda: print(tables.listing())
    commands["table"] = lambda: write_text(tables.page(tables.results()), page)
    commands["-h"] = commands["--help"] = lambda: print(f"{__doc__}\nRows: {', '.join(RECIPES)}")
    try:
        if name in RECIPES:
            _train(name, words)
        elif name in commands and not words:
            return commands[name]() or 0
        else:
            known, got = ", ".join([*commands, *RECIPES]), " ".join([name, *words])
            raise ValueError(f"expected one of {known}, got {got}")
    except (ValueError, OSError, FloatingPointError, DataError) as error:
        _say(f"error: {error}")
        return 2
    except KeyboardInterrupt as stop:
        _say(f"{stop}; the same command goes on from its checkpoint")
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
