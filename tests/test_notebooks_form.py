"""The form of every notebook: paired, executed, short, in the house's shape."""

import ast
import base64
import io
import os
import re
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path
from urllib.parse import unquote

import nbformat
import numpy as np
import pairs
import pytest
import run
from PIL import Image

NOTEBOOKS = pairs.notebooks()
SOLUTIONS = sorted((pairs.NOTEBOOKS / "solutions").glob("[0-9][0-9]_*.py"))

LARGEST = 1_000_000  # bytes: what a notebook page still shows quickly
FEWEST_WORDS = 500
USUAL_LINES, MOST_LINES, LONG_CELLS = 15, 25, 3
OPENING = ("What you will do", "What you will learn", "What you need")
CLOSING = ("Claims", "Exercises", "Further reading")
NBVAL_TAGS = {
    "nbval-ignore-output",
    "nbval-check-output",
    "nbval-raises-exception",
    "nbval-skip",
}
PICTURES = {"image/png"}  # nbval compares SVG and PDF as text, and no two machines draw alike
MACHINE_PATH = re.compile(r"(?<![\w.])/(?:work|root|tmp|home|Users)/")
HEADING = re.compile(r"^(#+) +(.+?)\s*#*$", re.MULTILINE)
# A solution takes 30 s by itself; here it shares the processor with other tests.
SOLUTION_SECONDS = 60


def test_there_are_notebooks():
    assert NOTEBOOKS, f"expected notebooks in {pairs.NOTEBOOKS}, got none"


def test_every_text_has_its_notebook():
    texts = {path.stem for path in (pairs.NOTEBOOKS / "py").glob("*.py")}
    assert texts == {path.stem for path in NOTEBOOKS}


def test_every_notebook_has_its_own_number():
    numbers = [path.name[:2] for path in NOTEBOOKS]
    assert len(set(numbers)) == len(numbers), f"expected one notebook a number, got {numbers}"


@pytest.fixture(params=NOTEBOOKS, ids=lambda path: path.stem)
def path(request) -> Path:
    return request.param


@pytest.fixture
def notebook(path):
    return nbformat.read(path, 4)


def code(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def prose(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "markdown"]


def outputs(notebook):
    return [output for cell in code(notebook) for output in cell.outputs]


def tags(cell) -> set[str]:
    return set(cell.metadata.get("tags", []))


def headings(cell) -> list[tuple[int, str]]:
    """The headings of a text cell -> [(level, title)]; a code cell has none."""
    if cell.cell_type != "markdown":
        return []
    without_code = re.sub(r"```.*?```", "", cell.source, flags=re.DOTALL)
    return [(len(marks), title) for marks, title in HEADING.findall(without_code)]


def section(notebook, title: str) -> list:
    """The cells below a heading, up to the next heading of its level or above."""
    cells, level = [], None
    for cell in notebook.cells:
        for depth, name in headings(cell):
            if level is None and name == title:
                level = depth
            elif level is not None and depth <= level:
                return cells
        if level is not None:
            cells.append(cell)
    return cells


def machine_paths(text: str) -> list[str]:
    return [text[hit.start() : hit.end() + 40] for hit in MACHINE_PATH.finditer(text)]


def text_outputs(notebook) -> str:
    """All text that the cells printed or returned; pictures left out."""
    shown = []
    for output in outputs(notebook):
        shown.append(output.get("text", ""))
        shown += [
            str(value) for kind, value in output.get("data", {}).items() if "image" not in kind
        ]
    return "\n".join(shown)


def test_pair_is_in_step(path, notebook):
    text = pairs.text_path(path)
    assert text.is_file(), f"expected the text {text.name} in notebooks/py: run make sync"
    shown = text.read_text(encoding="utf-8")
    assert pairs.text_of(notebook) == shown, "the notebook and its text differ: run make sync"


def test_metadata_is_the_house_s(notebook):
    assert notebook.metadata == pairs.METADATA, "run the notebook with notebooks/run.py"
    for cell in notebook.cells:
        assert set(cell.metadata) <= {"tags", "lines_to_next_cell"}, f"{cell.metadata}"


def test_is_executed_from_top_to_bottom(notebook):
    counts = [cell.execution_count for cell in code(notebook)]
    assert counts == list(range(1, len(counts) + 1)), f"expected 1, 2, 3, ..., got {counts}"


def test_has_no_error_and_no_warning(notebook):
    for output in outputs(notebook):
        assert output.output_type != "error", f"{output.ename}: {output.evalue}"
        assert output.get("name") != "stderr", f"stored warning: {output.text}"


def test_has_no_path_of_a_machine(notebook):
    sources = "\n".join(cell.source for cell in notebook.cells)
    assert machine_paths(sources + "\n" + text_outputs(notebook)) == []


def test_is_small(path):
    assert path.stat().st_size <= LARGEST, f"{path.stat().st_size:,} bytes"


def test_has_30_to_60_cells(notebook):
    assert 30 <= len(notebook.cells) <= 60


def test_explains(notebook):
    words = sum(len(cell.source.split()) for cell in prose(notebook))
    share = len(prose(notebook)) / len(notebook.cells)
    assert share >= 0.4, f"expected 40 % of the cells to be text, got {share:.0%}"
    assert words >= FEWEST_WORDS, f"expected {FEWEST_WORDS} words of text, got {words}"


def test_code_cells_are_short(notebook):
    lengths = [
        sum(1 for line in cell.source.splitlines() if line.strip()) for cell in code(notebook)
    ]
    long = [length for length in lengths if length > USUAL_LINES]
    assert max(lengths) <= MOST_LINES, f"expected at most {MOST_LINES} lines, got {max(lengths)}"
    assert len(long) <= LONG_CELLS, f"cells over {USUAL_LINES} lines: {long}"


def test_opens_with_a_title_and_what_it_is_for(notebook):
    assert headings(notebook.cells[0])[:1] and headings(notebook.cells[0])[0][0] == 1
    titles = [title for cell in notebook.cells for level, title in headings(cell) if level == 1]
    assert len(titles) == 1, f"expected one title, got {titles}"
    text = "\n".join(cell.source for cell in prose(notebook))
    for name in OPENING:
        assert re.search(rf"^(#+ |\*\*){name}\b", text, re.MULTILINE), f"no {name!r}"


def test_closes_with_claims_exercises_reading(notebook):
    titles = [title for cell in notebook.cells for _, title in headings(cell)]
    for name in CLOSING:
        assert titles.count(name) == 1, f"expected one heading {name!r}, got {titles}"
    places = [titles.index(name) for name in CLOSING]
    assert all(first < second for first, second in pairwise(places)), f"order: {titles}"
    for name in CLOSING:
        assert section(notebook, name), f"{name!r} is empty"


def test_claims_are_asserted_and_compared(notebook):
    claims = code(nbformat.from_dict({"cells": section(notebook, "Claims")}))
    assert claims, "expected code cells below Claims, got none"
    for cell in claims:
        asserts = [node for node in ast.walk(ast.parse(cell.source)) if type(node) is ast.Assert]
        assert asserts, f"a claim without assert:\n{cell.source}"
        for statement in asserts:
            assert not isinstance(statement.test, ast.Constant), "this assert cannot fail"
        assert not any(tag.startswith("nbval") for tag in tags(cell)), (
            f"a claim tagged {tags(cell)}"
        )
        assert "NBVAL_" not in cell.source, "a claim that nbval is told not to compare"
        assert any(output.get("name") == "stdout" for output in cell.outputs), "nothing printed"


def test_nbval_knows_every_marker(notebook):
    for cell in code(notebook):
        markers = {tag for tag in tags(cell) if tag.lower().startswith("nbval")}
        markers |= set(re.findall(r"^\s*#\s*(NBVAL_\w+)", cell.source, re.MULTILINE))
        unknown = {mark for mark in markers if mark.lower().replace("_", "-") not in NBVAL_TAGS}
        assert not unknown, f"nbval would silently ignore {unknown}"
        skipped = {mark for mark in markers if "skip" in mark.lower() or "raises" in mark.lower()}
        assert not skipped, f"expected every cell to run without an error, got {skipped}"


def test_pictures_are_png(notebook):
    for output in outputs(notebook):
        kinds = {kind for kind in output.get("data", {}) if kind.startswith("image/")}
        kinds |= {kind for kind in output.get("data", {}) if "pdf" in kind}
        assert kinds <= PICTURES, f"expected PNG, got {kinds}"


def test_widgets_are_not_compared(notebook):
    for cell in code(notebook):
        kinds = {kind for output in cell.outputs for kind in output.get("data", {})}
        if any("widget-view" in kind for kind in kinds):
            assert "nbval-ignore-output" in tags(cell), f"untagged widget:\n{cell.source}"


def test_links_lead_somewhere(path, notebook):
    for cell in prose(notebook):
        for link in re.findall(r"\]\(([^)\s]+)[^)]*\)", cell.source):
            target = unquote(link.split("#")[0])
            if target and not re.match(r"[a-z]+:", target):
                assert (path.parent / target).exists(), f"dead link: {link}"


def test_has_a_solution(path):
    solution = pairs.NOTEBOOKS / "solutions" / f"{path.stem}.py"
    assert solution.is_file(), f"expected notebooks/solutions/{path.stem}.py"


@pytest.mark.parametrize("solution", SOLUTIONS, ids=lambda path: path.stem)
def test_solution_is_right(solution):
    tree = ast.parse(solution.read_text(encoding="utf-8"))
    assert any(isinstance(node, ast.Assert) for node in ast.walk(tree)), "it asserts nothing"
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, str(solution)],
        cwd=pairs.NOTEBOOKS,
        env={**os.environ, "MPLBACKEND": "Agg"},
        capture_output=True,
        text=True,
        timeout=SOLUTION_SECONDS,
    )
    seconds = time.perf_counter() - start
    assert done.returncode == 0, f"after {seconds:.0f} s:\n{done.stdout}\n{done.stderr}"


def test_printed_lines_are_in_one_piece(notebook):
    """Otherwise the file would depend on how the lines happened to arrive."""
    for cell in code(notebook):
        names = [output.get("name") for output in cell.outputs]
        assert ("stdout", "stdout") not in pairwise(names), "run it with notebooks/run.py"


def test_lines_are_joined_between_pictures_only():
    out = nbformat.v4.new_output
    picture = out("display_data", {"text/plain": ""})
    printed = [out("stream", name="stdout", text=text) for text in ("one\n", "two\n", "three\n")]
    cell = nbformat.v4.new_code_cell(outputs=[*printed[:2], picture, printed[2]])
    run.join_lines(nbformat.v4.new_notebook(cells=[cell]))
    assert [output.get("text") for output in cell.outputs] == ["one\ntwo\n", None, "three\n"]


def test_a_drifted_pair_is_seen(notebook, path):
    """The comparison above can fail: one changed word in a cell is a difference."""
    notebook.cells[-1].source += "\nOne more line."
    assert pairs.text_of(notebook) != pairs.text_path(path).read_text(encoding="utf-8")


def stored_picture(pixels: np.ndarray) -> tuple[str, str]:
    """A picture ``(H, W, 3)`` in [0, 1] as a notebook would store it, before and after."""
    png = io.BytesIO()
    Image.fromarray((255 * pixels.clip(0, 1)).astype(np.uint8)).save(png, "PNG")
    before = base64.b64encode(png.getvalue()).decode()
    output = nbformat.v4.new_output("display_data", {"image/png": before})
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(outputs=[output])])
    run.shrink_pictures(notebook)
    after = notebook.cells[0].outputs[0].data["image/png"]
    run.shrink_pictures(notebook)  # a second time changes nothing
    assert notebook.cells[0].outputs[0].data["image/png"] == after
    return before, after


def pixels_of(picture: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(picture))).convert("RGB"), float)


def test_a_stored_drawing_loses_size_and_nothing_that_an_eye_sees():
    x, y = np.meshgrid(np.linspace(-1, 1, 300), np.linspace(-1, 1, 200))
    height = np.exp(-3 * (x**2 + y**2)) + 0.02 * np.random.default_rng(0).standard_normal(x.shape)
    before, after = stored_picture(np.stack([height, 0.6 * height, 1 - height], -1))
    assert len(after) < 0.8 * len(before)  # noise is what packs worst
    assert np.abs(pixels_of(after) - pixels_of(before)).max() < 16


def test_rare_colours_of_a_drawing_keep_their_hue():
    rng = np.random.default_rng(0)
    drawing = np.ones((200, 300, 3)) * rng.random((200, 300, 1))  # all shades of grey
    drawing[:, 100:180] = rng.random((200, 80, 1)) * [1, 0.6, 0.2] + [0, 0.2, 0.4]  # a colour map
    drawing[40, 20:60], drawing[50, 20:60] = (0.84, 0.37, 0.0), (0.0, 0.45, 0.7)  # two thin lines
    before, after = stored_picture(drawing)
    assert after != before
    assert np.abs(pixels_of(after) - pixels_of(before)).max() < 24


def test_a_stored_photograph_keeps_its_colours():
    before, after = stored_picture(np.random.default_rng(0).random((200, 300, 3)))
    assert after == before
