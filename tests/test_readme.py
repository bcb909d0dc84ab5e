"""The README keeps its promises: its code runs, its commands exist, its table is the course."""

import math
import re
from pathlib import Path

import pairs
import pytest

from vaelib.distributions import committed_rate
from vaelib.teaching import plotting

ROOT = Path(__file__).resolve().parent.parent
NAMES = ("README.md", "CONTRIBUTING.md")
PAGES = {name: (ROOT / name).read_text(encoding="utf-8") for name in NAMES}
README = PAGES["README.md"]
BLOCKS = re.findall(r"^```python\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
START = (ROOT / "notebooks/py/00_start_here.py").read_text(encoding="utf-8")


def run(block: str, names: dict[str, object]) -> None:
    """Run a python block exactly as it stands."""
    exec(compile(block, "README.md", "exec"), names)


def test_first_model_runs_and_is_kept(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    run(BLOCKS[0], names)
    # What the comments of the block promise.
    assert names["bound"].value.shape == (1000,) and names["log_px"].shape == (10,)
    assert names["images"].shape == (16, 1, 28, 28)
    assert names["history"]["test_bound"][-1] > names["history"]["test_bound"][0]
    trained = names["vae"].state_dict()
    run(BLOCKS[1], names)  # saves it and loads it again
    loaded = names["vae"].state_dict()
    assert len(loaded) > 0 and all(loaded[name].equal(trained[name]) for name in trained)


def test_delta_vae_for_colour_trains_a_step():
    assert len(BLOCKS) == 3, "a new python block: give it a test here"
    assert len(re.findall(r"^.*\S", BLOCKS[2], re.MULTILINE)) <= 13
    names: dict[str, object] = {}
    run(BLOCKS[2], names)
    vae, bound, images = names["vae"], names["bound"], names["images"]
    least = committed_rate(names["alpha"].double(), 32).item()
    assert least / math.log(2) == pytest.approx(79.4, abs=0.05)  # the number in the text
    assert (bound.rate > least).all() and bound.value.isfinite().all()
    assert all(parameter.grad is not None for parameter in vae.parameters())
    # The first step of Adam moves every parameter that has a gradient.
    again = vae.elbo(images)
    assert again.value.mean() > bound.value.mean() and (again.rate > least).all()


def test_course_is_the_same_in_table_map_and_folder():
    cell = re.search(r"^COURSE = \[.*?^CHAPTERS = [^\n]*\n", START, re.MULTILINE | re.DOTALL)
    tables: dict[str, object] = {}
    exec(cell.group(), tables)  # the tables COURSE and CHAPTERS of notebook 00
    course, chapters = tables["COURSE"], tables["CHAPTERS"]
    rows = re.findall(r"^\| \[?(\d\d) ([^]|(]+?)(?:\]\([^)]*\))?( \(planned\))? \|", README, re.M)
    titles = [(number, title.replace("\n", " ")) for number, title, _ in course]
    assert [(int(number), title) for number, title, _ in rows] == titles
    assert [n for numbers in chapters.values() for n in numbers] == [n for n, *_ in course]
    there = [re.sub("[ -]", "_", f"{n} {title}.ipynb").lower() for n, title, no in rows if not no]
    assert there == [path.name for path in pairs.notebooks()]
    figure = plotting.course_map(course, chapters, [0, 1, 2])
    words = [text.get_text() for text in figure.axes[0].texts]
    shown = [title if number < 3 else f"{title}\n(planned)" for number, title, _ in course]
    assert set(shown) <= set(words)
    plotting.plt.close(figure)


def test_documented_commands_and_files_exist():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert len(README.splitlines()) <= 140
    for name, page in PAGES.items():
        marked = "\n".join(re.findall(r"```.*?```|`[^`\n]+`", page, re.DOTALL))
        used = set(re.findall(r"\bmake ([a-z-]+)", marked))
        assert {"lab", "test"} <= used <= targets, f"{name}: {used - targets}"
        links = [link for link in re.findall(r"\]\(([^)\s#]+)", page) if ":" not in link]
        assert [link for link in links if not (ROOT / link).exists()] == []
