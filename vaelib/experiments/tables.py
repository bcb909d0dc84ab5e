"""The papers' numbers, others', and ours: published.json, a JSON file for each of our runs, a page.

No number of the page is typed by hand.
"""

import json
import math
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path

import pandas as pd

from vaelib.experiments.recipes import build
from vaelib.experiments.rows import RECIPES

FOLDER = Path(__file__).resolve().parents[2] / "figures" / "paper"
FIGURES = {  # notebooks that leave a figure there, and what it should show
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
IMAGES = {"mnist": 60_000, "cifar10": 50_000, "imagenet32": 1_281_167}  # to train on
UNITS = {"nats": ("nats", 2), "bits/dim": ("bits_per_dim", 3)}  # our key, and digits shown


def published() -> dict:
    """The numbers of others, from the one file that holds them: ``tables`` and ``sources``."""
    return json.loads(Path(__file__).with_name("published.json").read_text(encoding="utf-8"))


def target(name: str, prior: str) -> dict | None:
    """The paper's number for a row of ours, else another's: model, value, unit and source."""
    known = published()
    for table, row in ((one, row) for one in known["tables"] for row in one["rows"]):
        if row.get("ours") == [name, prior] and (entries := [*_paper(row), *row.get("others", [])]):
            source = known["sources"][entries[0]["source"]]
            return entries[0] | {"unit": table["unit"], "source": source}
    return None


def _paper(row: dict) -> list[dict]:
    return [{"model": row["model"]} | row["paper"]] if "paper" in row else []


def results(folder: Path = FOLDER) -> dict[str, dict]:
    """What was trained, by name; ``ValueError`` where a file has other contents."""
    found = {}
    for path in (path for name in RECIPES if (path := folder / f"{name}.json").exists()):
        try:
            found[path.stem] = json.loads(path.read_text(encoding="utf-8")) | {"name": path.stem}
        except (TypeError, ValueError) as error:
            raise ValueError(f"{path}: expected a result of a row, got {error!r}") from error
    return found


def changes(result: dict) -> dict[str, object]:
    """Fields in which a result's recipe is not that of its row today."""
    row = json.loads(json.dumps(asdict(RECIPES[result["name"]])))
    return {field: value for field, value in result["recipe"].items() if row.get(field) != value}


def undrawn(folder: Path) -> list[str]:
    """The figures that the folder lacks."""
    return [name for name in FIGURES if not (folder / f"{name}.png").exists()]


def listing() -> str:
    """Our rows, and the compute that each needs."""
    lines = []
    for name, recipe in RECIPES.items():
        count = sum(p.numel() for p in build(recipe).parameters())
        seen = IMAGES[recipe.data] * recipe.epochs
        size = f"{6 * count * math.prod(recipe.image_shape[1:]) * seen / 1e18:.1f}"
        line = {"row": f"`{name}`", "model": recipe.label, "parameters": f"{count:,}"}
        more = {"images seen": f"{seen:,}", "10¹⁸ FLOP": size, "needs": NEEDS[recipe.data]}
        lines.append(line | more)
    note = "Six operations for each weight, pixel and image seen; attention and evaluations come on"
    return f"{_markdown(lines)}\n\n{note} top.\nA GPU at 100 TFLOP/s makes 0.36 · 10¹⁸ an hour."


def page(ours: dict[str, dict], folder: Path = FOLDER) -> str:
    """The text of ``README.md`` in a folder with these results and with figures."""
    known = published()
    numbers = {source: i for i, source in enumerate(known["sources"], 1)}
    parts = [
        "# The papers' numbers, others', and ours",
        "Written by `python -m vaelib.experiments table` from the JSON files beside it and from "
        "`vaelib/experiments/published.json`. Lower is better. Values are negative log-likelihoods "
        "or, with ≤, negative bounds on them; rates stand in brackets. "
        "`VAELIB_SCALE=paper python -m vaelib.experiments missing` trains what is missing, on a "
        "GPU.",
    ]
    for table in known["tables"]:
        lines = []
        for row in table["rows"]:
            other = {"paper": _paper(row), "others": row.get("others", [])}
            line = {key: _cited(entries, row, numbers) for key, entries in other.items()}
            lines.append({"model": row["model"], **line, "ours": _ours(row, table["unit"], ours)})
        parts += [f"## {table['title']}, {table['unit']}", _markdown(lines)]
    parts += ["\n".join(f"[{i}] {text}  " for i, text in enumerate(known["sources"].values(), 1))]
    if ours:
        parts += ["## Our runs", _markdown(map(_run, ours.values()))]
        note = "not at paper scale, or with the changes of the recipe named in the last column."
        parts += [f"\\* {note}\nFewer training images than a paper's cost bits."]
    waits = {name: (FIGURES[name].split(":")[0], NEEDS[name]) for name in undrawn(folder)}
    for name in (name for name in RECIPES if name not in ours):
        after = ", then an auxiliary prior" if RECIPES[name].auxiliary_epochs else ""
        made = RECIPES[name].label.split(", auxiliary")[0] + after
        waits[name] = made, NEEDS[RECIPES[name].data]
    if waits:
        lines = [{"run": f"`{k}`", "makes": made, "needs": v} for k, (made, v) in waits.items()]
        parts += ["## What waits for a GPU", _markdown(lines)]
        command = "python -m vaelib.experiments NAME --result figures/paper/NAME.json"
        parts += [f"One row: `VAELIB_SCALE=paper {command}`."]
    return "\n\n".join(parts) + "\n"


def _markdown(lines: Iterable[dict]) -> str:
    return pd.DataFrame(lines).to_markdown(index=False, disable_numparse=True)


def _cited(entries: list[dict], row: dict, numbers: dict[str, int]) -> str:
    """Numbers, whose they are where the row does not say so, and their sources."""
    cited = []
    for one in entries:
        rate = f" ({one['rate']})" if "rate" in one else ""
        whose = f" {one['model']}" if one["model"] != row["model"] else ""
        cited.append(f"{one['value']}{rate}{whose} [{numbers[one['source']]}]")
    return "; ".join(cited) or "–"


def _ours(row: dict, unit: str, ours: dict[str, dict]) -> str:
    name, prior = row.get("ours", (None, None))
    if prior not in ours.get(name, {}).get("numbers", {}):
        return f"waits (`{name}`)" if name else "–"
    key, digits = UNITS[unit]
    numbers, result = ours[name]["numbers"][prior][key], ours[name]
    mark = " *" if changes(result) or result["scale"] != "paper" else ""
    value, rate = (f"{numbers[part]:.{digits}f}" for part in ("negative_bound", "rate"))
    alone = result["recipe"]["latents"] is None
    return f"**{value}**{mark}" if alone else f"**≤ {value}** ({rate}){mark}"


def _run(one: dict) -> dict[str, str]:
    """What a number of ours cost, and what sets it apart."""
    line = {"row": f"`{one['name']}`", "training images": f"{one['data']['train']:,}"}
    line |= {"test images": f"{one['data']['test']:,}", "parameters": f"{one['parameters']:,}"}
    line |= {"hardware": f"{one['processes']} × {one['hardware']}"}
    line |= {"precision": one["options"]["precision"], "time": f"{one['seconds'] / 60:.0f} min"}
    changed = "".join(f", {key} {value}" for key, value in changes(one).items())
    return line | {"scale": f"{one['scale']}{changed}"}
