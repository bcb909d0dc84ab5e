"""The papers' tables and figures beside ours: ``make paper`` makes what is missing.

Each trained row leaves one JSON file in ``figures/paper/``. ``make paper-table`` makes the tables
of these files and of what has been published; no number in them is typed by hand. Figures are made
by running their notebooks at paper scale.
"""

import argparse
import gc
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import torch

from vaelib import scaling
from vaelib.data import DataError, Images, cache_folder
from vaelib.engine import is_first_process
from vaelib.files import write_json, write_text
from vaelib.rows import RECIPES, Published, published
from vaelib.settings import Recipe
from vaelib.train import Options, run

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "figures" / "paper"
# What torchrun tells its processes: a notebook that is run by one of them is a process of its own.
TORCHRUN = {"RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"}
# Notebooks that leave a figure there. The paper has no table of what they show.
FIGURES = {
    "04_race_wake_sleep": "Kingma & Welling (2013), figure 2: AEVB above wake-sleep everywhere, "
    "MNIST between −150 and −100 nats, Frey Face between 0 and 1600",
    "05_estimate_the_marginal_likelihood": "Kingma & Welling (2013), figure 3: log p(x) between "
    "−160 and −100 nats for 1,000 images, between −160 and −125 for 50,000",
}
NEEDS = {
    "04_race_wake_sleep": "MNIST and the real Frey Face, in `VAELIB_DATA` or downloaded",
    "05_estimate_the_marginal_likelihood": "MNIST, in `VAELIB_DATA` or downloaded",
    "mnist": "MNIST, in `VAELIB_DATA` or downloaded",
    "cifar10": "CIFAR-10, in `VAELIB_DATA` or downloaded",
    "imagenet32": "the official files of ImageNet 32×32 in `VAELIB_DATA`",
}
UNITS = {"nats": ("nats", 2), "bits/dim": ("bits_per_dim", 3)}  # our key, and digits shown


def is_tiny() -> bool:
    """Whether ``VAELIB_PAPER_TINY`` asks for every row in miniature, on made-up pixels."""
    return os.environ.get("VAELIB_PAPER_TINY", "0") not in ("", "0")


def tiny(recipe: Recipe) -> Recipe:
    """The same row, cut down until a processor trains it in seconds."""
    small = {"channels": 8, "blocks": 1, "layers": 1, "heads": 2, "context": 4, "mixtures": 2}
    small |= {"encoder_size": 4, "encoder_layers": 1, "epochs": 2, "batch_size": 4}
    return replace(recipe, **small, auxiliary_epochs=min(1, recipe.auxiliary_epochs))


def made_up(recipe: Recipe) -> Images:
    """A few images of noise with the levels that the recipe's pixels have."""
    top = 1 if recipe.likelihood == "bernoulli" else recipe.levels - 1
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(top + 1, (14, *recipe.image_shape), generator=generator) / top
    return Images(x[:10], None, x[10:], None, "made up")


def train_missing(folder: Path, names: Sequence[str] = tuple(RECIPES)) -> int:
    """Train every row that has no JSON file, in the order of the tables -> exit status.

    A row that fails or whose data cannot be had is named, and the next one begins.
    """
    missing, failed = [name for name in names if not (folder / f"{name}.json").exists()], []
    say(f"{len(names) - len(missing)} of {len(names)} rows are there. Missing: {missing or 'none'}")
    first = is_first_process()
    for name in missing:
        recipe = tiny(RECIPES[name]) if is_tiny() else RECIPES[name]
        images = made_up(recipe) if is_tiny() else None
        start = time.perf_counter()
        try:
            options = Options(checkpoint=folder / f"{name}.pt", checkpoint_updates=1000)
            result = run(name, recipe, options, images)
        except DataError as error:
            say(f"{name} waits for its data: {error}")
            continue
        except Exception as error:  # the rows after it may still do
            failed.append(name)
            say(f"{name} FAILED: {type(error).__name__}: {error}")
            continue
        finally:
            gc.collect()
            torch.cuda.empty_cache()
        if first:
            result["scale"] = "tiny" if is_tiny() else result["scale"]
            write_json(result, folder / f"{name}.json")
        say(f"{name} done in {time.perf_counter() - start:.0f} s")
    return 1 if failed else 0


def draw_missing(folder: Path, names: Sequence[str] = tuple(FIGURES)) -> int:
    """Run the notebook of every figure that is missing, in a copy -> exit status.

    The notebooks keep what they have finished in the cache, and go on from there.
    """
    failed = []
    alone = {name: value for name, value in os.environ.items() if name not in TORCHRUN}
    for name in (name for name in names if not (folder / f"{name}.png").exists()):
        say(f"{name}, target {FIGURES[name]}")
        start = time.perf_counter()
        command = [sys.executable, "-m", "nbconvert", "--to", "notebook", "--execute"]
        command += ["--ExecutePreprocessor.timeout=-1", str(ROOT / "notebooks" / f"{name}.ipynb")]
        with tempfile.TemporaryDirectory() as copy:
            done = subprocess.run([*command, "--output-dir", copy], env=alone)
        if done.returncode or not (folder / f"{name}.png").exists():
            failed.append(name)
            say(f"{name} FAILED: see above")
        else:
            say(f"{name} done in {time.perf_counter() - start:.0f} s")
    return 1 if failed else 0


def results(folder: Path) -> dict[str, dict]:
    """What was trained, by name; nothing where the folder is not there.

    Raises:
        ValueError: a file with other contents.
    """
    found = {}
    for name in RECIPES:
        path = folder / f"{name}.json"
        if path.exists():
            try:
                result = json.loads(path.read_text(encoding="utf-8"))
                found[result["name"]] = result
            except (KeyError, TypeError, ValueError) as error:
                raise ValueError(f"{path}: expected a result of a row, got {error!r}") from error
    return found


def page(ours: dict[str, dict], folder: Path = FOLDER) -> str:
    """The text of ``README.md`` in a folder with these results and with figures."""
    known = published()
    parts = [
        "# The papers' numbers, others', and ours",
        "Written by `make paper-table` from the JSON files beside it and from "
        "`vaelib/published.json`. Lower is better. Values are negative log-likelihoods or, with "
        "≤, negative bounds on them; rates stand in brackets. `VAELIB_SCALE=paper make paper` "
        "trains what is missing, on a GPU.",
        *(_table(table, ours, known) for table in known.tables),
        _sources(known),
        _runs(ours),
        _waiting(ours, folder),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _table(table: dict, ours: dict[str, dict], known: Published) -> str:
    lines = [
        f"## {table['title']}, {table['unit']}",
        "",
        "| model | paper | others | ours |",
        "|---|---|---|---|",
    ]
    for row in table["rows"]:
        paper = _cited(row["paper"], known) if "paper" in row else "–"
        others = [_cited(one, known, row["model"]) for one in row.get("others", [])]
        cells = [row["model"], paper, "; ".join(others) or "–", _ours(row, table["unit"], ours)]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _cited(entry: dict, known: Published, row: str = "") -> str:
    """A number, whose it is where the row does not say so, and its source."""
    rate = f" ({entry['rate']})" if "rate" in entry else ""
    whose = f" {entry['model']}" if entry.get("model", row) != row else ""
    return f"{entry['value']}{rate}{whose} [{list(known.sources).index(entry['source']) + 1}]"


def _ours(row: dict, unit: str, ours: dict[str, dict]) -> str:
    if "ours" not in row:
        return "–"
    name, prior = row["ours"]
    if prior not in ours.get(name, {}).get("numbers", {}):
        return f"waits (`{name}`)"
    key, digits = UNITS[unit]
    numbers, result = ours[name]["numbers"][prior][key], ours[name]
    mark = " *" if differences(result) or result["scale"] != "paper" else ""
    value = f"{numbers['negative_bound']:.{digits}f}"
    if result["recipe"]["latents"] is None:
        return f"**{value}**{mark}"
    return f"**≤ {value}** ({numbers['rate']:.{digits}f}){mark}"


def differences(result: dict) -> dict[str, object]:
    """Fields in which a result's recipe is not that of its row today."""
    row = json.loads(json.dumps(asdict(RECIPES[result["name"]])))
    return {field: value for field, value in result["recipe"].items() if row.get(field) != value}


def _sources(known: Published) -> str:
    return "\n".join(f"[{i}] {text}  " for i, text in enumerate(known.sources.values(), 1))


def _runs(ours: dict[str, dict]) -> str:
    """What each of our numbers cost, and what sets it apart."""
    if not ours:
        return ""
    lines = [
        "## Our runs",
        "",
        "| row | training images | test images | parameters | device | precision | time | scale |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, one in ours.items():
        data = one["data"]
        changed = "".join(f", {field} {value}" for field, value in differences(one).items())
        cells = [
            f"`{name}`",
            f"{data['train']:,}",
            f"{data['test']:,}",
            f"{one['parameters']:,}",
            f"{one['processes']} × {one['device']}",
            one["precision"],
            f"{one['seconds'] / 60:.0f} min",
            f"{one['scale']}{changed}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    notes = "\\* not at paper scale, or with the changes of the recipe named in the last column."
    return "\n".join([*lines, "", notes, "Fewer training images than a paper's cost bits."])


def _waiting(ours: dict[str, dict], folder: Path) -> str:
    figures = [name for name in FIGURES if not (folder / f"{name}.png").exists()]
    waiting = [name for name in RECIPES if name not in ours]
    if not waiting and not figures:
        return ""
    lines = ["## What waits for a GPU", "", "| run | makes | needs |", "|---|---|---|"]
    for name in figures:
        makes = FIGURES[name].split(":")[0]
        lines.append(f"| `{name}` | {makes} | {NEEDS[name]} |")
    for name in waiting:
        recipe = RECIPES[name]
        after = ", then an auxiliary prior" if recipe.auxiliary_epochs else ""
        trains = f"{recipe.label.split(', auxiliary')[0]}{after}"
        lines.append(f"| `{name}` | {trains} | {NEEDS[recipe.data]} |")
    lines += ["", "One of them: `VAELIB_SCALE=paper python -m vaelib.paper run NAME`."]
    return "\n".join(lines)


def say(text: str) -> None:
    """Print on stderr, from one process."""
    if is_first_process():
        print(text, file=sys.stderr, flush=True)


def refusal() -> str:
    """Why nothing should be run here; empty if nothing speaks against it."""
    if is_tiny():
        return ""
    if scaling.current() != "paper":
        return "These runs take hours. If that is what you want: VAELIB_SCALE=paper make paper"
    if not torch.cuda.is_available():
        return (
            "No GPU here: a processor would take months. VAELIB_PAPER_TINY=1 proves every row in "
            "miniature, in another folder."
        )
    return ""


def main(arguments: Sequence[str] | None = None) -> int:
    """``run`` or ``table`` -> exit status."""
    line = argparse.ArgumentParser(prog="python -m vaelib.paper", description=__doc__)
    line.add_argument("what", choices=["run", "table"])
    line.add_argument("--folder", type=Path, help="of the JSON files (default: figures/paper)")
    known = [*FIGURES, *RECIPES]
    line.add_argument("names", nargs="*", metavar="NAME", help=f"what to run, of {known}")
    given = line.parse_args(arguments)
    if unknown := set(given.names) - set(known):
        line.error(f"expected names of {known}, got {sorted(unknown)}")
    folder = given.folder or (cache_folder() / "paper-tiny" if is_tiny() else FOLDER)
    if given.what == "table":
        write_text(page(results(folder), folder), folder / "README.md")
        return 0
    if reason := refusal():
        say(reason)
        return 1
    figures = [name for name in given.names or FIGURES if name in FIGURES]
    rows = [name for name in given.names or RECIPES if name in RECIPES]
    try:
        # Figures have no miniature here: VAELIB_RACE_SAMPLES cuts the race in notebook 04.
        draws = not is_tiny() and folder == FOLDER and is_first_process()
        drawn = draw_missing(folder, figures) if draws else 0
        return max(drawn, train_missing(folder, rows))
    except KeyboardInterrupt as stop:
        say(f"{stop}; the same command goes on from there")
        return 130


if __name__ == "__main__":
    sys.exit(main())
