"""The README keeps its promises: its code runs, and its table is the course."""

import math
import re
from pathlib import Path

import pairs
import pytest
from matplotlib import pyplot as plt

from vaelib import plotting
from vaelib.distributions import committed_rate

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```python\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
START = (ROOT / "notebooks/py/00_start_here.py").read_text(encoding="utf-8")


def course_of_notebook_00() -> dict[str, object]:
    """The tables COURSE and CHAPTERS, as the first notebook defines them."""
    cell = re.search(r"^COURSE = \[.*?^CHAPTERS = [^\n]*\n", START, re.MULTILINE | re.DOTALL)
    tables: dict[str, object] = {}
    exec(cell.group(), tables)
    return tables


def rows_of_readme() -> list[tuple[int, str, bool]]:
    """The course table -> [(number, title, planned)]."""
    found = re.findall(r"^\| \[?(\d\d) ([^]|(]+?)(?:\]\([^)]*\))?( \(planned\))? \|", README, re.M)
    return [(int(number), title, bool(planned)) for number, title, planned in found]


def run_block(heading: str) -> dict[str, object]:
    """Run the python block below a heading, exactly as it stands -> its names."""
    below = README.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    (block,) = re.findall(r"^```python\n(.*?)^```", below, re.MULTILINE | re.DOTALL)
    names: dict[str, object] = {"__source__": block}
    exec(compile(block, "README.md", "exec"), names)
    return names


def test_every_block_is_run():
    assert len(BLOCKS) == 2, "a new python block: give it a test below"


def test_first_model_runs():
    names = run_block("The equation")
    # What the comments of the block promise.
    assert names["bound"].value.shape == (1000,) and names["log_px"].shape == (10,)
    assert names["images"].shape == (16, 1, 28, 28)
    assert names["history"]["test_bound"][-1] > names["history"]["test_bound"][0]


def test_delta_vae_for_colour_trains_a_step():
    names = run_block("For researchers")
    lines = [line for line in names["__source__"].splitlines() if line.strip()]
    assert len(lines) <= 12
    vae, bound, images = names["vae"], names["bound"], names["images"]
    least = committed_rate(names["alpha"].double(), 32).item()
    assert least / math.log(2) == pytest.approx(79.4, abs=0.05)  # the number in the text
    assert (bound.rate > least).all() and bound.value.isfinite().all()
    assert all(parameter.grad is not None for parameter in vae.parameters())
    # The first step of Adam moves every parameter that has a gradient.
    again = vae.elbo(images)
    assert again.value.mean() > bound.value.mean()
    assert (again.rate > least).all()


def test_it_is_short():
    assert len(README.splitlines()) <= 120


def test_table_and_map_are_the_same_course():
    stops = [(n, title.replace("\n", " ")) for n, title, _ in course_of_notebook_00()["COURSE"]]
    assert [(number, title) for number, title, _ in rows_of_readme()] == stops


def test_what_is_not_planned_is_there():
    written = {int(path.name[:2]): path.name for path in pairs.notebooks()}
    for number, title, planned in rows_of_readme():
        assert planned == (number not in written), f"{number:02d} {title}: planned is {planned}"
        if not planned:
            name = re.sub("[ -]", "_", f"{number:02d} {title}.ipynb").lower()
            assert written[number] == name


def test_chapters_cover_the_course_once():
    tables = course_of_notebook_00()
    numbers = [number for numbers in tables["CHAPTERS"].values() for number in numbers]
    assert numbers == [number for number, *_ in tables["COURSE"]]


def test_map_fades_what_is_planned():
    tables = course_of_notebook_00()
    figure = plotting.course_map(tables["COURSE"], tables["CHAPTERS"], [0, 1, 2])
    words = [text.get_text() for text in figure.axes[0].texts]
    titles = [title for _, title, _ in tables["COURSE"]]
    assert all(title in words for title in titles[:3])
    assert all(f"{title}\n(planned)" in words for title in titles[3:])
    plt.close(figure)
